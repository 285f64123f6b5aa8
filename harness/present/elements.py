"""Pieces of HTML that the page is put together from."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any


def html_text(value: Mapping[str, Any], key: str) -> str:
    return "" if value.get(key) is None else escape(str(value[key]))


def html_list(rows: Iterable[tuple[str, str]]) -> str:
    """A list of names and values; the values are HTML."""
    return "<dl>" + "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in rows) + "</dl>"


def html_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, style: str = "") -> str:
    """A table; its cells are HTML. On a phone each row is a block, in which each cell says its column."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        "<tr>" + "".join(f'<td data-label="{c}">{cell}</td>' for c, cell in zip(columns, row, strict=True)) + "</tr>"
        for row in rows
    )
    # Wide tables scroll inside, and can be scrolled with the keyboard.
    return (
        f'<div class="scroll" tabindex=0 role="region" aria-label="{escape(caption)}"><table class="{style}"><caption>'
        f"{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def html_join(parts: Iterable[str]) -> str:
    return "\n".join(part for part in parts if part)


def html_base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")

"""Text of somebody else in Markdown and on a terminal: on one line, and never markup. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def show(text: str, longest: int = 300) -> str:
    """Text as one printable line of at most `longest` characters."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def code(text: str, longest: int = 500) -> str:
    """Text as Markdown code, fenced so that nothing in it ends the code."""
    inside = show(text, longest).strip()
    if not inside:
        return "–"
    fence = "`"
    while fence in inside:
        fence += "`"
    pad = " " if inside.startswith("`") or inside.endswith("`") else ""
    return f"{fence}{pad}{inside}{pad}{fence}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table. A bar would end a cell, in code too."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [*lines, ""]


def count(number: int, what: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {what}{'' if number == 1 else 's'}"

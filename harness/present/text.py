"""Text of somebody else in Markdown and on a terminal: on one line, and never markup. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from harness.base.text import printable

_ROOTS = (Path(__file__).resolve().parents[2],)  # of the checkout, or of the installation
_ABSOLUTE = re.compile(r"(?<![\w./<])/(?:[^\s/'\"`:,;()<>\[\]{}]+/)+([^\s/'\"`:,;()<>\[\]{}]*)")


def show(text: str, longest: int = 300) -> str:
    """Text as one printable line of at most `longest` characters."""
    line = printable(text)
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


def without_local_paths(run_dir: Path) -> Callable[[str], str]:
    """A function that takes from a text where this machine keeps its files: a page is read on another. Paths in the
    run directory begin with RUN_DIR, those in the project are relative to it, of others the name is left."""
    here = [Path.cwd(), *_ROOTS]
    known = [(path, "") for root in here for path in {root.absolute(), root.resolve()}]
    if not any(run_dir.absolute().is_relative_to(root) for root, _ in known):
        known += [(path, "RUN_DIR") for path in {run_dir.absolute(), run_dir.resolve()}]
    known.sort(key=lambda pair: -len(str(pair[0])))
    rules = [
        (re.compile(rf"(?<![\w./-]){re.escape(str(path))}" + (r"(?![\w-]|\.\w)" if name else "/+")), name)
        for path, name in known
        if len(path.parts) > 1
    ]

    def clean(text: str) -> str:
        for rule, name in rules:
            text = rule.sub(name, text)
        return _ABSOLUTE.sub(lambda found: f"…/{found[1]}" if found[1] else "…", text)

    return clean

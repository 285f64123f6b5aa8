"""Results of a command that are kept, a JSON line each, so that it can be stopped and goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_rows(path: Path, key: str = "trial") -> dict[str, dict[str, Any]]:
    """The kept results by name."""
    if not path.exists():
        return {}
    return {row[key]: row for row in map(json.loads, path.read_text().splitlines())}


def write_rows(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text("".join(json.dumps(rows[name], ensure_ascii=False) + "\n" for name in sorted(rows)))
    unfinished.replace(path)

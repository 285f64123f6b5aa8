"""How a lane's process is told to record its own trace (harness/watch), and what of it there is at the end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.files import kind_at
from harness.evidence.watched import FOLDER

if TYPE_CHECKING:
    from harness.runs.table import WatchTable

HOOK = Path(__file__).resolve().parents[1] / "watch" / "hook"
SCHEMA = "watch_trace/1"


def watching(run_dir: Path, run_id: str, table: WatchTable, search: str) -> dict[str, str]:
    """The environment variables of a watched process. ``search``: its PYTHONPATH. Removes the traces of an earlier run.

    Raises NotOurs for another file in their folder; OSError."""
    folder = run_dir / FOLDER
    for path in sorted(folder.glob("*.jsonl")):
        if kind_at(path) == SCHEMA:
            path.unlink()
    options = {
        "folder": str(folder),
        "run_id": run_id,
        "every": table.every or 0,
        "modules": table.modules,
        "limit_bytes": table.limit_mb << 20,
    }
    return {
        "HARNESS_WATCH": json.dumps(options),
        "PYTHONPATH": os.pathsep.join([str(HOOK), *filter(None, [search])]),
    }


def traces(run_dir: Path) -> dict[str, Any]:
    """What is written down of the traces as an output of the run."""
    folder = run_dir / FOLDER
    count = len(list(folder.glob("*.jsonl")))
    found = f"{count} file{'s' * (count != 1)}" if count else "no trace of a process"
    return {"path": str(folder), "copy": FOLDER if count else None, "written": count > 0, "found": found}

"""A changed copy of the code, to run the lane from: small textual changes, never a switch inside the lane."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MEASUREMENTS = ROOT / "docs" / "measurements"  # the generated pages, and what they are made from


class Edit(NamedTuple):
    """Replace ``old`` by ``new`` in ``file`` (relative to the checkout); ``old`` must stand there exactly once."""

    file: str
    old: str
    new: str


def changed_copy(folder: Path, edits: Sequence[Edit]) -> Path:
    """Copy the package into ``folder``, apply ``edits``, and return ``folder``, to be given to the launcher as
    ``code``.

    The data is linked, not copied. Raises ValueError for an edit that does not fit the code any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "harness", folder / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data").symlink_to(ROOT / "data")
    for edit in edits:
        path = folder / edit.file
        text = path.read_text()
        if text.count(edit.old) != 1:
            raise ValueError(f"{edit.file} holds {edit.old!r} {text.count(edit.old)} times, not once: mend the edit")
        path.write_text(text.replace(edit.old, edit.new))
    return folder

"""What a lane writes into its project, so that a further run of it leaves no trace there.

The files that the first run wrote are known by their stamps, and copies of them are kept before a further run. After
it they are put back, and what it wrote besides is moved out of the way. A mark in the run directory says that this is
still to be done, for a session that is killed before.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from harness.base.files import write_json

MARK = "further_run.json"
SCHEMA = "further_run/1"
FILES_LIMIT = 50_000  # a project with more is not looked through
KEEP_LIMIT = 8 << 30  # bytes
# Folders of tools, which no lane's result depends on.
PASSED_OVER = {".git", ".hg", ".svn", "__pycache__", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
Stamp = list[int]


def stamp(path: Path) -> Stamp | None:
    """What changes whenever a file is written, whatever is written into it; None where there is none."""
    try:
        status = path.stat(follow_symlinks=False)
    except OSError:
        return None
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


class Footprint:
    """The files below `root`, except below `run_dir`, that a lane's runs write.

    `store`: a folder of the session's own, the same for each of its processes, one of which uses it at a time.
    """

    def __init__(self, root: Path, run_dir: Path, store: Path) -> None:
        self.root, self.run_dir, self.store = root, run_dir, store

    def begin(self) -> None:
        """Look at the project before the first run. Raises OSError."""
        (self.store / "footprint").mkdir(parents=True, exist_ok=True)
        self._write("before.json", self._stamps())

    def before_further(self) -> None:
        """Keep a copy of what the first run wrote, once, and say on the disk that a further run is under way. Raises
        OSError (a full disk)."""
        write_json(
            self.run_dir / MARK,
            {"schema": SCHEMA, "lane": "experimental", "kept": str(self.store / "footprint" / "kept")},
        )
        if (self.store / "footprint" / "after.json").exists():
            return
        before, after = self._read("before.json"), self._stamps()
        written = [name for name, status in (after or {}).items() if before is not None and before.get(name) != status]
        if after is not None and sum(after[name][2] for name in written) <= KEEP_LIMIT:
            for name in written:
                target = self.store / "footprint" / "kept" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.root / name, target, follow_symlinks=False)
        self._write("after.json", after)

    def put_back(self) -> list[str]:
        """The project as the first run left it: its files from their copies; files that are new are moved away, where
        nothing is lost. Returns a line for each file for which that cannot be done."""
        after, now = self._read("after.json"), self._stamps()
        if after is None or now is None:
            problems = [f"{self.root}: more than {FILES_LIMIT:,} files; what the lane wrote there is not put back"]
        else:
            changed = sorted(name for name in now.keys() | after.keys() if now.get(name) != after.get(name))
            problems = [line for name in changed if (line := self._put_back(name, is_new=name not in after))]
            self._write("after.json", self._stamps())  # a copy has a stamp of its own
        (self.run_dir / MARK).unlink(missing_ok=True)
        return problems

    def _put_back(self, name: str, *, is_new: bool) -> str | None:
        path, kept = self.root / name, self.store / "footprint" / "kept" / name
        try:
            if is_new:
                (self.store / "footprint" / "moved" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, self.store / "footprint" / "moved" / name)
                return f"{path}: a further run left it; moved to {self.store / 'footprint' / 'moved'}"
            elif os.path.lexists(kept):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)  # and nothing is written through a link
                shutil.copy2(kept, path, follow_symlinks=False)
            else:
                return f"{path}: a further run changed it, and of the first run no copy was kept"
        except OSError as error:
            return f"{path}: cannot be put back as the first run left it ({error.strerror})"
        return None

    def _write(self, name: str, files: dict[str, Stamp] | None) -> None:
        write_json(self.store / "footprint" / name, {"schema": "footprint/1", "lane": "experimental", "files": files})

    def _read(self, name: str) -> dict[str, Stamp] | None:
        found: dict[str, Stamp] | None = json.loads((self.store / "footprint" / name).read_bytes())["files"]
        return found

    def _stamps(self) -> dict[str, Stamp] | None:
        """The stamp of each file; None where there are too many."""
        found: dict[str, Stamp] = {}
        for folder, folders, names in os.walk(self.root):
            here = Path(folder)
            folders[:] = [
                name
                for name in folders
                if name not in PASSED_OVER
                and here / name not in (self.run_dir, self.store)
                and not (here / name / "pyvenv.cfg").exists()
            ]
            for name in names:
                if not name.startswith(".coverage") and (status := stamp(here / name)) is not None:
                    found[str((here / name).relative_to(self.root))] = status
            if len(found) > FILES_LIMIT:
                return None
        return found


def interrupted(run_dir: Path) -> str | None:
    """What to say of a session that was killed in a further run, once; None where none was."""
    try:
        kept = json.loads((run_dir / MARK).read_bytes())["kept"]
        (run_dir / MARK).unlink()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (
        "an earlier session was killed in a further run of the lane: files that the lane leaves in its project may be "
        f"of that run; those of its first run are in {kept}"
    )

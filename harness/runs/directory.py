"""The run directory of a lane whose files are copied: made empty for a run, and never of another's files."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.base.files import EMPTY, NotOurs, kind_at
from harness.base.lock import LOCK_NAME
from harness.evidence.errors import mismatch
from harness.evidence.formats import HISTORY
from harness.evidence.record import RUN_FILE, SCHEMA
from harness.evidence.strict import JSON_LIMIT, parse_json, read_bytes
from harness.numerics.digest import file_sha256
from harness.runs.footprint import SCHEMA as MARK_SCHEMA
from harness.runs.footprint import stamp

EARLIER = ("external_run.json", "external_run/1")  # the record of a run, before there was run.json
COPIES = {"status": "train_status.json", "manifest": "voice_dataset_manifest.json", "report": "train_report.txt",
          "tokens": "tokens.npy", "trace": "trace.jsonl", "environment": "environment.json",
          "checkpoint": "checkpoint"}  # fmt: skip
WORK = "work"  # the lane's own folder there
_STEMS = ("checkpoint", "initial")  # of copies that keep their suffix


@contextlib.contextmanager
def usable(run_dir: Path) -> Iterator[None]:
    """What the run directory does not let be written is a fault of it, and not of the lane. Raises EvidenceError."""
    try:
        yield
    except OSError as error:
        what = f"something that cannot be used ({error.strerror or error})"
        expected = "a run directory that can be written to, as in --lane-run-dir=DIR"
        raise mismatch(error.filename or run_dir, what, expected) from None


def make_empty(run_dir: Path) -> None:
    """Remove an earlier run: what its record lists, by name and content, and what the session that judged it wrote. The
    record stays, for the next run to replace, and so does the history. Makes the folder and the lane's own in it.

    Raises EvidenceError, with nothing removed, where anything else lies there; OSError."""
    if run_dir.exists() and any(path.name != LOCK_NAME for path in run_dir.iterdir()):
        expected = "an empty folder, or an earlier run of a lane and nothing else"
        record = run_dir / (RUN_FILE if (run_dir / RUN_FILE).exists() else EARLIER[0])
        try:
            if kind_at(record) not in (SCHEMA, EARLIER[1]):
                raise mismatch(run_dir, f"files, and no {RUN_FILE} of a run", expected)
        except NotOurs as error:
            raise mismatch(record, f"something that {error.strerror}", expected) from None
        facts = parse_json(read_bytes(record, JSON_LIMIT, "the record of a run"), record)
        for path in sorted(run_dir.rglob("*")):
            is_folder = path.is_dir() and not path.is_symlink()
            if not is_folder and not (_is_left(path, run_dir / WORK, facts) or _is_of_run(path, run_dir, facts)):
                raise mismatch(path, "a file that the earlier run's record does not list as it is", expected)
        for path in run_dir.iterdir():  # but for the record, which the next run replaces, and the history
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (RUN_FILE, HISTORY, LOCK_NAME):
                path.unlink()
    (run_dir / WORK).mkdir(parents=True, exist_ok=True)


def left_in(work: Path) -> dict[str, list[int]]:
    """Size and time (ns) of each file in the lane's own folder, by name."""
    files = [path for path in sorted(work.rglob("*")) if path.is_symlink() or not path.is_dir()]
    return {str(path.relative_to(work)): status[2:4] for path in files if (status := stamp(path))}


def files_in(run_dir: Path, name: str) -> list[str]:
    """A copy's file, or those of a folder, relative to the run directory."""
    place = run_dir / name
    return [str(path.relative_to(run_dir)) for path in place.rglob("*") if path.is_file()] if place.is_dir() else [name]


def _is_left(path: Path, work: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a file lies in the lane's own folder as its run left it. Of one that was killed nothing is listed."""
    if not path.is_relative_to(work):
        return False
    left = facts.get("work")
    return not isinstance(left, dict) or left.get(str(path.relative_to(work))) == (stamp(path) or [])[2:4]


def _is_of_run(path: Path, run_dir: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a file lies there because of the run with these facts. Raises OSError."""
    name = path.relative_to(run_dir)
    files, plain = facts.get("left", facts.get("files")), path.is_file() and not path.is_symlink()
    ended = "files" in facts or "left" in facts
    if not ended and plain and (path.name in ("lane.log", *COPIES.values()) or Path(name.parts[0]).stem in _STEMS):
        return True  # it was killed before it could list them; the folder was empty when it began
    if plain and isinstance(files, dict) and str(name) in files:
        return bool(file_sha256(path) == files[str(name)])
    try:
        known = (
            SCHEMA,
            EARLIER[1],
            "gates/1",
            "history/1",
            "watch_trace/1",
            "page",
            "listen/1",
            "clip",
            "lock",
            MARK_SCHEMA,
            EMPTY,
        )
        return kind_at(path) in known
    except NotOurs:
        return False

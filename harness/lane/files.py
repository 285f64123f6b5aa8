"""How the lane writes: every file appears whole under its name or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPORARY_PREFIX = ".lane-tmp-"
LFS_MAGIC = b"version https://git-lfs"


def show(path: Path) -> str:
    """A path as one line of plain text, whatever bytes it holds."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file is a git-LFS pointer: a few lines of text that stand for the real file."""
    with path.open("rb") as file:
        return file.read(len(LFS_MAGIC)) == LFS_MAGIC


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` under ``path``: a temporary file beside it, flushed to the disk, then renamed over it.

    A reader, or a kill at any instant, sees the old file or the new one. Raises OSError (disk full, read-only).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write strict JSON (a NaN is a ValueError, never a bare token), atomically."""
    atomic_write(path, (json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode())


def holds_run(status_path: Path, report_path: Path) -> bool:
    """Whether a run left these, or something else lies there: all but the word of a run that did not begin, because
    the set-up failed or a setting was refused. Such a word replaces nothing but its like."""
    try:
        status = json.loads(status_path.read_bytes())
        return bool(status["run_id"] != "none" and status["first_failed_step"] != "settings")
    except FileNotFoundError:
        return report_path.exists()
    except NotADirectoryError:
        return False
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return True


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes as hex digits, read as a stream."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

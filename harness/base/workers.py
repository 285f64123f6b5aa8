"""One worker of a test session at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, SoftFileLock


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Among the workers of a session, whose folder ``path`` lies in; also where the file system has no locks."""
    lock: FileLock | SoftFileLock = FileLock(path)
    try:
        lock.acquire()
    except OSError:
        lock = SoftFileLock(f"{path}.soft")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

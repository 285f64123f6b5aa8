"""One owner at a time for a run directory. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from harness.lane.files import check_place

LOCK_NAME = ".lane.lock"


class Busy(Exception):
    """A living process owns the folder; the text names it, and since when."""


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own ``folder``, which exists, while the block runs. The kernel lets go of the lock when its owner dies, however
    it dies.

    Raises Busy, NotOurs where something else lies in the lock's place, or OSError where it cannot be used.
    """
    path = folder / LOCK_NAME
    check_place(path, "lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(_owner(descriptor)) from None
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # a full disk: the lock holds, its owner stays nameless
            os.pwrite(descriptor, f"pid {os.getpid()} since {since}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    """What the lock file says of its owner. A dead process's name is an older one: the new owner is about to write."""
    for _ in range(20):
        text = os.pread(descriptor, 200, 0).decode("ascii", "replace")
        found = re.fullmatch(r"pid (\d{1,10}) since \S+\n", text)
        if found and Path(f"/proc/{found[1]}").exists():
            return text.strip()
        time.sleep(0.05)
    return "another process, which left no name"

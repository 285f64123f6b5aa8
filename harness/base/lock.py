"""One owner at a time for a run directory. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness.base.files import check_place

LOCK_NAME = ".lane.lock"


class Busy(Exception):
    """A living process owns the folder; the text names it, and since when."""


INHERITED = "HARNESS_LOCK_FD"  # names a descriptor by which whoever started this process owns its run directory
HELD_BY = "HARNESS_LOCK_HELD_BY"  # the same where no descriptor could be passed on: the number of the starter's process


class Hold:
    """A folder that this process owns, until ``release`` or its death: the kernel lets go of the lock. The folder is
    made where it is missing. A process that is started with ``descriptor`` and INHERITED owns it too.

    Raises Busy, NotOurs where something else lies in the lock's place, or OSError where it cannot be used.
    """

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOCK_NAME
        check_place(path, "lock")
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self.descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if shared:
                return
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            os.ftruncate(self.descriptor, 0)
            with contextlib.suppress(OSError):  # a full disk: the lock holds, its owner stays nameless
                os.pwrite(self.descriptor, f"pid {os.getpid()} since {since}\n".encode(), 0)
        except BlockingIOError:
            owner = _owner(self.descriptor)
            os.close(self.descriptor)
            raise Busy(owner) from None
        except BaseException:
            os.close(self.descriptor)
            raise

    def share(self) -> None:
        """From now on others may hold it too, with ``shared``; nobody may own it alone."""
        fcntl.flock(self.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def release(self) -> None:
        """Let go of it."""
        os.close(self.descriptor)


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own ``folder`` while the block runs, or know that whoever started this process does. Raises what Hold does."""
    if _is_inherited(folder) or os.environ.get(HELD_BY) == str(os.getppid()):
        yield
        return
    hold = Hold(folder)
    try:
        yield
    finally:
        hold.release()


def _is_inherited(folder: Path) -> bool:
    try:
        given, own = os.fstat(int(os.environ[INHERITED])), (folder / LOCK_NAME).lstat()
    except (KeyError, ValueError, OSError):
        return False
    return (given.st_dev, given.st_ino) == (own.st_dev, own.st_ino)


@contextlib.contextmanager
def could_own(folder: Path) -> Iterator[None]:
    """Raises what ``owned`` would, or what writing into the folder and those in it would; leaves nothing behind."""
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    for place in (there, *(inner for inner in folder.glob("*/") if there == folder)):
        with tempfile.TemporaryFile(dir=place) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(bytes(1 << 16))
            file.flush()
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(_owner(descriptor)) from None
        finally:
            os.close(descriptor)
    yield


def _owner(descriptor: int) -> str:
    """What the lock file says of its owner. A dead process's name is an older one: the new owner is about to write."""
    for _ in range(20):
        text = os.pread(descriptor, 200, 0).decode("ascii", "replace")
        found = re.fullmatch(r"pid (\d{1,10}) since \S+\n", text)
        if found and Path(f"/proc/{found[1]}").exists():
            return text.strip()
        time.sleep(0.05)
    return "another process, which left no name"

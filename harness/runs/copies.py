"""Copies of what a lane leaves, whatever lies there; and whether it was written since."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from harness.evidence import EvidenceError, checkpoint_files
from harness.runs.footprint import Stamp, stamp

COPY_LIMIT = 16 << 30  # bytes


def copied(source: Path, target: Path) -> str | None:
    """Copy a regular file under `target`, where nothing lies, whole or not at all; what is wrong, in words, if not."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:
        return f"a file that cannot be read ({getattr(error, 'strerror', None) or error})"
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        return "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
    with os.fdopen(descriptor, "rb") as file:
        room = min(COPY_LIMIT, shutil.disk_usage(target.parent).free)
        if status.st_size > room:
            return f"{status.st_size:,} bytes, of which no copy can be kept (room for {room:,})"
        try:
            with target.open("xb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        except FileExistsError:
            return f"a file, and another one in the place of its copy, {target}"
        except OSError as error:
            target.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                return f"a file, and no room for its copy in {target.parent}"
            return f"a file that cannot be copied ({error.strerror})"
    return None


def copied_folder(source: Path, target: Path) -> str | None:
    """The same for a folder that is a checkpoint: copies of its files that are parts of one."""
    try:
        names = checkpoint_files(source)
    except EvidenceError as error:
        return str(error)
    if not names:
        return "a folder with no checkpoint in it"
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if trouble := copied(source / name, target / name):
            shutil.rmtree(target)
            return f"{trouble}: {name}"
    return None


Stamps = dict[str, Stamp]


def stamps(path: Path, *, inside: bool) -> Stamps:
    """What changes when a file is written, by name; of a folder, with `inside`, for each part of a checkpoint in it."""
    names = [""]
    if inside and path.is_dir():
        try:
            names = checkpoint_files(path)
        except EvidenceError:
            names = [""]
    return {name: found for name in names if (found := stamp(path / name)) is not None}


def left_over(before: Stamps, after: Stamps) -> list[str]:
    """What was there before, and was not written."""
    return [name for name, found in after.items() if before.get(name) == found]

"""Ends a lane whose session is gone: `python guard.py PID RUN_ID`, started beside the lane by `Process`.

Standard input is a pipe whose other end the session holds. A byte on it says that the lane has ended in order. Its end
without a byte says that the session is gone, however it went (SIGKILL too): then all that the lane started is ended.
Standard library only, and nothing of this project, so that it starts in 20 ms.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

PROC = Path("/proc")


def send(signum: int, run_id: str, group: int | None) -> int:
    """Signal a process group, if one is given, and all that carries the run id in its environment: what the lane
    started, in whichever group it is now. Returns how many of the latter there are; on a system without /proc or pidfds
    they are not found."""
    if group is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signum)
    mark, count = f"LANE_RUN_ID={run_id}".encode(), 0
    for entry in PROC.iterdir() if PROC.is_dir() and hasattr(os, "pidfd_open") else ():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            process = os.pidfd_open(int(entry.name))  # first, so that what is read is of the process that is signalled
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    count += 1
                    signal.pidfd_send_signal(process, signum)
            finally:
                os.close(process)
    return count


def end(run_id: str, group: int | None, grace_s: float) -> None:
    """End all that carries the run id, and the group: asked first, and killed after `grace_s` seconds.

    `group`: the lane's process group, while its leader is not reaped yet; None afterwards, when its number may be
    another's.
    """
    for signum in (signal.SIGTERM, signal.SIGKILL):
        left = send(signum, run_id, group)
        deadline = time.monotonic() + grace_s
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = send(0, run_id, None)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not sys.stdin.buffer.read(1):
        end(sys.argv[1], None, 3.0)

"""Signals that end a run in order: they raise in the main thread, and are not lost."""

from __future__ import annotations

import signal
from types import FrameType

from harness.lane.console import say

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)
requests: list[int] = []  # signals that asked this process to stop


class Stopped(BaseException):
    """Raised in the main thread by a signal; not an Exception, so that no library swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def listen(on: bool) -> None:
    """Let signals stop the run, or (at its end, which takes a moment and is kept in order) ignore them."""
    if not on:
        signal.setitimer(signal.ITIMER_REAL, 0)
    for signum in SIGNALS:
        # Who started the lane with nohup does not want it to end with the terminal.
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _stop if on else signal.SIG_IGN)


def _stop(signum: int, frame: FrameType | None) -> None:
    requests.append(signum)
    raise Stopped(signum)


def raise_if_stopped(line: str | None = None) -> None:
    """Say ``line``, unless the run was asked to stop: an exception that a signal raises within a destructor is
    swallowed by Python, and must not be lost."""
    if line is not None:
        say(line)
    if requests:
        raise Stopped(requests[0])

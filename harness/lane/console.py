"""What the lane says: lines on stdout and stderr, whoever still reads them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO

from harness.base.report import one_line

_is_mute = False


def mute(on: bool) -> None:
    """Say nothing: of several processes that train together one speaks."""
    global _is_mute
    _is_mute = on


def say(line: str) -> None:
    """One line on stdout, at once. A reader who went away is no reason to fail."""
    _print(line, sys.stdout)


def complain(line: str) -> None:
    """One line on stderr."""
    _print(f"FAILED {one_line(line)}", sys.stderr)


def _print(line: str, stream: TextIO) -> None:
    if _is_mute:
        return
    try:
        print(line, file=stream, flush=True)
    except (OSError, ValueError):
        # What could not be written waits in the buffer. Python 3.12 tries once more at its end, and then makes the exit
        # code 120.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def prepare_streams() -> None:
    """Make sure that 0, 1 and 2 are open (else a file of the run would get such a number, and a library's chatter),
    and that any text can be printed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

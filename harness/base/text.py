"""Text that came from outside (a tensor's name, a command, another program's report), for a terminal or a log."""

from __future__ import annotations

import io
from typing import TextIO


def printable(text: str) -> str:
    """`text` with what does not print, line ends included, as escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def visible(text: str) -> str:
    """Lines of text with what does not print as escape sequences; none of them is a command to GitHub's runner, which
    takes any line for one that begins with two colons, blanks before them or not, and what follows `##[`."""
    return "\n".join(_visible(line) for line in text.split("\n"))


def _visible(line: str) -> str:
    line = "\t".join(map(printable, line.split("\t")))
    if line.lstrip().startswith("::"):
        line = line.replace(":", "\\x3a", 1)
    return line.replace("##[", "#\\x23[")


class VisibleStream(io.TextIOBase):
    """A stream of text, on which everything is `visible`; what goes to its `buffer` is not looked at."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.buffer = stream, stream.buffer

    def write(self, text: str) -> int:
        return self._stream.write(visible(text))

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

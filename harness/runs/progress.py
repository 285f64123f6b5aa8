"""A lane's output, as a few lines that read well on a terminal, in a log and in a notebook."""

from __future__ import annotations

import time
from collections.abc import Callable

_TOLD = ("FAILED", "SKIPPED", "EQUAL", "ESTIMATE", "DOWNLOAD", "RESUMED", "HELDOUT")


class Progress:
    """Shows what a lane says. One that writes lines as the voice lane does (`STEP train`, `PROGRESS 3 24 LOSS 4.1`) is
    shown by these alone; of any other at most four lines a second: some say thousands."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._last, self._steps = say, 0.0, False

    def __call__(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        fields = rest.split()
        if word == "STEP":
            self._steps = True
            self._say(f"lane: {rest}")
        elif not self._steps:
            if line.strip() and time.monotonic() - self._last >= 0.25:
                self._last = time.monotonic()
                self._say(f"lane: {line[:200]}")
        elif word in _TOLD:
            self._say(f"lane: {word} {rest}")
        elif word == "PROGRESS" and len(fields) >= 2 and fields[0].isdigit() and fields[1].isdigit():
            done, total = int(fields[0]), int(fields[1])
            if done in (1, total) or done % max(1, total // 8) == 0:
                self._say(f"lane: train {done}/{total} {' '.join(fields[2:]).replace('LOSS', 'loss')}")
        elif word == "TOKENS" and len(fields) == 2 and fields[0] == fields[1]:
            self._say(f"lane: tokenised {fields[1]} chunks")

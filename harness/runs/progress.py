"""A lane's output, as a few lines that read well on a terminal, in a log and in a notebook."""

from __future__ import annotations

import time
from collections.abc import Callable

_TOLD = ("FAILED", "SKIPPED", "EQUAL", "ESTIMATE", "DOWNLOAD", "RESUMED")


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
            said = dict(zip(fields[2::2], fields[3::2], strict=False))
            held_out = fields[fields.index("HELD_OUT") + 1 :][:2] if "HELD_OUT" in fields else []
            if done in (1, total) or done % max(1, total // 8) == 0 or held_out:
                text = f"lane: train {done}/{total} loss {said.get('LOSS', 'unknown')}"
                text += f" (smoothed {said['SMOOTHED']})" if "SMOOTHED" in said else ""
                self._say(text + (f", held out {held_out[0]} → {held_out[1]}" if len(held_out) == 2 else ""))
        elif word == "TOKENS" and len(fields) == 2 and fields[0] == fields[1]:
            self._say(f"lane: tokenised {fields[1]} chunks")

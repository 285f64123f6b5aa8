"""The file of a trace: one JSON object a line, each on the disk before the program goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Lines:
    """A new file `RANK.jsonl` in a folder that is made; of a second process of that rank, and of a third, with its
    number. Raises OSError where it cannot be made or written."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.size = 0  # characters
        folder.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            name = f"{rank}.jsonl" if number == 1 else f"{rank}-{number}.jsonl"
            try:
                self._file = (folder / name).open("x", encoding="utf-8")
                return
            except FileExistsError:
                number += 1

    def write(self, line: Mapping[str, Any]) -> None:
        written = json.dumps(line) + "\n"
        self.size += len(written)
        self._file.write(written)
        self._file.flush()

    def close(self) -> None:
        self._file.close()

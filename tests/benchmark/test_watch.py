"""What it costs a program to be watched, on a model of 11 and one of 103 million parameters. Prints, asserts nothing.

The recorder's own time is taken within the program, as a part of the rest of it: both see the same machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.runs.watching import HOOK

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]
PROGRAM = Path(__file__).parent / "programs" / "watched_gpt.py"


@pytest.mark.parametrize("size", [(320, 8, 8, 256, 64), (768, 14, 4, 512, 32)], ids=["11 million", "103 million"])
def test_cost_of_being_watched(size: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environ = {**os.environ, "PYTHONPATH": str(HOOK), "HARNESS_WATCH": json.dumps({"folder": str(tmp_path / "watch")})}
    command = [sys.executable, str(PROGRAM), *map(str, size)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    seconds, within = found["seconds"], found["within"]
    rest = sorted(a - b for a, b in zip(seconds, within, strict=True))
    with capsys.disabled():
        print(
            f"\n{found['parameters']:,} parameters, {len(seconds)} steps of {size[2]} × {size[3]} tokens: "
            f"{rest[len(rest) // 2]:.2f} s a step, the recorder {sum(within) / sum(rest):.2%} of all"
        )
    assert (tmp_path / "watch" / "0.jsonl").stat().st_size > 1000

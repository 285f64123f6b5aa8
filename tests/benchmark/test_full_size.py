"""What training costs at musicgen-small's true size, with made-up weights; docs/speed.md has results. Asserts no time.

    pytest -m benchmark tests/benchmark/test_full_size.py

Each measurement is a process of its own (full_size.py), so that its peak memory is its own. Takes minutes, and 0.9 GB
of disk. OMP_NUM_THREADS=1 measures the processor's time instead of the time on the wall: for a machine that others use.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.numerics.modes import environment_pins

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200)]
SCRIPT = Path(__file__).with_name("full_size.py")


def measured(*arguments: str) -> dict[str, Any]:
    threads = os.environ.get("OMP_NUM_THREADS", "2")
    environment = {**os.environ, **environment_pins("native", int(threads))}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_full_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured("build", str(tmp_path))
    start = measured("start", str(tmp_path))
    steps = [measured("step", str(tmp_path), str(tokens)) for tokens in (64, 256, 750)]
    codec = measured("codec", "5") if importlib.util.find_spec("transformers") else None
    with capsys.disabled():
        print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
        print("| tokens | step | floor | ratio (bar 1.2) | GFLOP/s | peak memory (bar 3.5 GB at 750) |")
        print("|---|---|---|---|---|---|")
        for row in steps:
            times = f"{row['step_s']:.2f} s | {row['floor_s']:.2f} s | {row['ratio']:.2f}"
            print(f"| {row['tokens']} | {times} | {row['gflops']:.0f} | {row['peak_gb']:.2f} GB |")
        print(f"saving a state of {steps[-1]['state_mb']:.0f} MB: {steps[-1]['save_s']:.2f} s")
        parts = ", ".join(f"{name} {start[f'{name}_s']:.1f} s" for name in ("torch", "audiocraft", "model"))
        print(f"start-up: {parts}; {start['parameters']:,} parameters; peak {start['peak_gb']:.2f} GB")
        if codec is not None:
            for dtype in ("float32", "float64"):
                rate = codec[f"{dtype}_frames_a_second"]
                print(f"codec ({codec['parameters']:,} parameters), {dtype}: {rate:.0f} frames/s")

"""What things cost, as ratios within one run on one machine. Prints tables and asserts no time."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.benchmark
ROOT = Path(__file__).resolve().parents[2]


def seconds(command: list[str], cwd: Path) -> float:
    """Wall seconds of one run of ``command``; fails the test if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LANE_")}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - started
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return taken


def test_smoke_run_against_import_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`pytest -m smoke` beside `python -c "import torch"`, in turn, on the shipped model in universal mode."""
    importing = [sys.executable, "-c", "import torch"]
    smoke = [sys.executable, "-m", "pytest", "-m", "smoke", "-q", f"--lane-run-dir={tmp_path}"]
    seconds(importing, ROOT)  # warms the disk's cache
    pairs = [(seconds(smoke, ROOT), seconds(importing, ROOT)) for _ in range(5)]
    ratios = [a / b for a, b in pairs]
    with capsys.disabled():
        print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
        print("| pytest -m smoke | import torch | ratio |\n|---|---|---|")
        for (a, b), ratio in zip(pairs, ratios, strict=True):
            print(f"| {a:.2f} s | {b:.2f} s | {ratio:.1f} |")
        print(f"median ratio {statistics.median(ratios):.2f} (bar 6, aim 4)")

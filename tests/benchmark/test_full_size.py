"""What training costs at musicgen-small's true size, with made-up weights. Asserts no time.

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
import time
from pathlib import Path
from typing import Any

import pytest

from harness.lane.settings import VARIABLES
from harness.numerics.modes import environment_pins

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200)]
SCRIPT = Path(__file__).with_name("full_size.py")
ROOT = SCRIPT.parents[2]


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


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "sentencepiece")),
    reason="not installed: transformers or sentencepiece (pip install '.[hub]')",
)
def test_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of facebook/musicgen-small with its defaults, and the gates that need no recording, from a cache of the
    real layout at the true sizes: language model, EnCodec and T5, their weights made up."""
    theirs = {*VARIABLES, "AUDIOCRAFT_CACHE_DIR"}
    ours = {name: value for name, value in os.environ.items() if name not in theirs}
    environment = {**ours, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    audio = ROOT / "data" / "knowledge_audio_source" / "auntie_dottie.flac"
    cache = [sys.executable, str(ROOT / "tests" / "support" / "hub_cache.py"), str(tmp_path / "home"), str(audio)]
    built = subprocess.run([*cache, "--true-size"], env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    gates = [str(ROOT / "tests" / "smoke" / f"test_{name}.py") for name in ("gates", "meaning")]
    smoke = [sys.executable, "-m", "pytest", "-m", "smoke", "-q", "-p", "no:cacheprovider", *gates]
    started = time.perf_counter()
    done = subprocess.run(
        [*smoke, f"--lane-run-dir={tmp_path / 'run'}"],
        env={**environment, "LANE_MODEL": "facebook/musicgen-small"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    status = json.loads((tmp_path / "run" / "train_status.json").read_text())
    with capsys.disabled():
        print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
        print("\n".join(line for line in done.stdout.splitlines() if "ESTIMATE" in line or " passed" in line))
        peak = status["peak_memory_bytes"] / 1e9
        print(f"the whole smoke run: {seconds:.0f} s (bar 600); the lane's peak memory {peak:.2f} GB")

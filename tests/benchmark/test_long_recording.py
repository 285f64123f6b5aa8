"""What three hours of audio cost: the lane's and the gates' memory, and the slowest gate. Asserts no time.

    pytest -m benchmark tests/benchmark/test_long_recording.py

Takes some minutes, nearly all of them the lane's tokens, and 1 GB of disk.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from harness.lane.settings import VARIABLES

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200)]
ROOT = Path(__file__).resolve().parents[2]
NARRATION = ROOT / "data" / "knowledge_audio_source" / "auntie_dottie.flac"
GATES = [str(ROOT / "tests" / "smoke" / f"test_{name}.py") for name in ("gates", "meaning", "own_lane")]
LIMIT = 1.2e9  # bytes


def write_long(path: Path, hours: float, rate: int, channels: int) -> Path:
    """The shipped narration again and again at another rate, each time shifted, in another loudness and noise."""
    wave, own = soundfile.read(NARRATION)
    wave = np.interp(np.arange(len(wave) * rate // own) * (own / rate), np.arange(len(wave)), wave)
    random, left, turn = np.random.default_rng(0), round(hours * 3600 * rate), 0
    with soundfile.SoundFile(path, "w", rate, channels, "PCM_16") as file:
        while left:
            turn += 1
            part = np.roll(wave, 7919 * turn)[:left, None] * (0.6 + 0.3 * math.cos(turn))
            file.write(part + random.normal(0, 2e-3, (len(part), channels)))
            left -= len(part)
    return path


def peak(command: list[str], settings: dict[str, str], log: Path) -> int:
    """The largest resident size in bytes of one process; fails the test if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    with log.open("w") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, env=environment | settings, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, log.read_text()[-6000:]
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize(("hours", "rate", "channels"), [(3.0, 48_000, 2), (26 / 60, 44_100, 1)])
def test_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str], hours: float, rate: int, channels: int) -> None:
    audio = write_long(tmp_path / "long.flac", hours, rate, channels)
    settings = {"AUDIO_PATH": str(audio), "LANE_RUN_DIR": str(tmp_path / "run"), "LANE_TIMEOUT_S": "7000"}
    lane = peak(["harness.lane"], settings, tmp_path / "lane.log")
    smoke = ["pytest", "-m", "smoke", "-p", "no:cacheprovider", "--durations=0", "-vv", *GATES]
    gates = peak([*smoke, f"--lane-evidence={tmp_path / 'run'}"], settings, tmp_path / "gates.log")
    called = re.findall(r"^(\d+\.\d+)s call .*::(\w+)", (tmp_path / "gates.log").read_text(), re.MULTILINE)
    seconds, gate = max((float(taken), gate) for taken, gate in called)
    with capsys.disabled():
        print(f"\n{hours:.2f} h, {rate:,} Hz, {channels} channels, {audio.stat().st_size / 1e6:,.0f} MB:")
        print(f"largest resident size: lane {lane / 1e9:.2f} GB, gates {gates / 1e9:.2f} GB (bar 1.2)")
        print(f"slowest gate: {gate}, {seconds:.1f} s (bar 20)")
    assert max(lane, gates) < LIMIT

"""The gates that run a lane again hold for the voice lane too; the smoke run leaves them out for its time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bare_machine import ROOT, clean_environ

AGAIN = "second_run_gives or depends_on_the_audio or names_and_times"
SHORT = {"LANE_STEPS": "2", "LANE_STRIDE_SECONDS": "40", "LANE_BATCH": "2", "LANE_THREADS": "1"}


def session(run_dir: Path, *words: str) -> str:
    command = [sys.executable, "-m", "pytest", "-m", "smoke", "-k", AGAIN, f"--lane-run-dir={run_dir}", "-rs", *words]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(command, cwd=ROOT, env=clean_environ(**SHORT), capture_output=True, text=True, timeout=240)
    return done.stdout + done.stderr


def test_the_voice_lane_agrees_with_itself_and_depends_on_its_audio_alone(tmp_path: Path) -> None:
    said = session(tmp_path, "--lane-runs=4")
    assert "3 passed" in said, said
    assert "the gates run it up to 4 times" in said

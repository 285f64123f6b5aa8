"""`--no-baseline`: every gate but the recording, said to be so; asked for, and never by itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
from bare_machine import ROOT, clean_environ

from harness.evidence import RunEvidence


def gates(run: RunEvidence, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "smoke", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/smoke/test_baseline.py", f"--lane-evidence={run.run_dir}", "--baselines=none", *options],
        cwd=ROOT,
        env=clean_environ(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("option", [[], ["--no-baseline"]], ids=["without", "with"])
def test_the_recording_is_left_out_only_where_that_is_asked_for(option: list[str], lane_run: RunEvidence) -> None:
    code, text = gates(lane_run, "tests/smoke/test_own_lane.py", *option)
    if option:
        assert code == 0 and "--no-baseline: the run is compared with no recording" in text, text
        assert "failed" not in text.splitlines()[-1]
    else:
        assert code == 1 and "4 failed" in text and "missing" in text, text


def test_recording_and_leaving_the_recording_out_are_refused_together(lane_run: RunEvidence) -> None:
    code, text = gates(lane_run, "--no-baseline", "--snapshot-update", "--baseline-reason=why")
    assert code not in (0, 1) and "choose one" in text, text

"""A recording that would be refused is refused before anything runs, and writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REASON = "--baseline-reason=the result is right"


@pytest.mark.parametrize(
    ("options", "variables", "says"),
    [((), {}, "needs a reason"), ((REASON,), {"CI": "true"}, "CI is set"), ((REASON,), {"GITHUB_ACTIONS": "1"}, "CI")],
    ids=["no reason", "CI", "GitHub"],
)
def test_recording_is_refused_before_the_lane_runs(
    options: tuple[str, ...], variables: dict[str, str], says: str, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "GITHUB_ACTIONS")}
    command = [sys.executable, "-m", "pytest", "-m", "smoke", "-q", "-p", "no:cacheprovider", "--snapshot-update"]
    command += [f"--lane-run-dir={tmp_path / 'run'}", f"--baselines={tmp_path / 'baselines'}", *options]
    done = subprocess.run(
        command, cwd=ROOT, env={**environment, **variables}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert says in done.stdout + done.stderr, done.stdout + done.stderr
    assert not (tmp_path / "run").exists() and not (tmp_path / "baselines").exists()

"""A run that has ended is waited for once: asking again gives what was found, and collects nothing anew."""

from __future__ import annotations

from pathlib import Path

import voice

SHORT = {"LANE_STEPS": "2", "LANE_STRIDE_SECONDS": "40", "LANE_BATCH": "2", "LANE_THREADS": "1"}


def test_a_second_wait_gives_what_the_first_gave(tmp_path: Path) -> None:
    run = voice.run_lane(tmp_path / "run", SHORT)
    found = (run.exit_code, run.seconds, run.report)
    record = (tmp_path / "run" / "run.json").stat().st_mtime_ns
    assert run.wait() is run
    assert (run.exit_code, run.seconds, run.report) == found and run.exit_code == 0
    assert (tmp_path / "run" / "run.json").stat().st_mtime_ns == record

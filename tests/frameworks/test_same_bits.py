"""Each program leaves the same bits whether it is watched or not, and its whole trace is there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from frameworks.programs_here import ALL, Program

from harness.evidence import load_run, read_checkpoints

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(600)]


@pytest.mark.parametrize("program", ALL, ids=lambda program: program.name)
def test_watched_and_not_watched(program: Program, tmp_path: Path) -> None:
    program.need()
    program.run(tmp_path / "plain")
    run_dir = tmp_path / "run"
    program.run(tmp_path / "watched", sys.executable, "-m", "harness", "watch", "--run-dir", str(run_dir), "--",
                sys.executable)  # fmt: skip
    checkpoint = program.table.split('"')[1]
    plain, watched = (read_checkpoints(tmp_path / name / checkpoint) for name in ("plain", "watched"))
    assert plain.tensor_digest == watched.tensor_digest
    traces = load_run(run_dir).watched
    assert [trace.header.rank for trace in traces] == list(range(program.ranks))
    for trace in traces:
        assert len(trace.steps) == program.steps and trace.unseen == []
        assert all(step.losses and step.batch != "none" for step in trace.steps)
        assert set(program.seen) <= set(trace.steps[0].grad) == set(trace.steps[0].param)

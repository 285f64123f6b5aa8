"""The result of an external lane: of what it gives, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_lane import Toy, edit_steps

from harness.baselines.result import result_of_run
from harness.evidence import EvidenceError, RunEvidence, load_run
from harness.runs.run import LaneRun
from harness.runs.table import parse_lane

COPY = """
import pathlib, shutil
for name in ("trace.jsonl", "out.pt", "status.json"):
    if pathlib.Path("given", name).exists():
        shutil.copy(pathlib.Path("given", name), name)
"""
STATUS = '{"status": "completed", "loss": 0.5}'


def external(tmp_path: Path, *gives: str, edit: Any = None) -> RunEvidence:
    """An external lane that leaves the trace and the checkpoint of a toy; `edit` changes the trace's lines."""
    toy = Toy().run(tmp_path / "toy")
    if edit is not None:
        edit_steps(toy.run_dir, edit)
    given = tmp_path / "given"
    given.mkdir()
    toy.path_of("trace").rename(given / "trace.jsonl")
    toy.checkpoint_path.rename(given / "out.pt")
    (given / "status.json").write_text(STATUS)
    (tmp_path / "lane.py").write_text(COPY)
    files = {"trace": "trace.jsonl", "checkpoint": "out.pt", "status": {"path": "status.json", "loss": "loss"}}
    table = {"command": ["{python}", "lane.py"], "code": ["lane.py"], **{name: files[name] for name in gives}}
    process = LaneRun(parse_lane("mine", table, tmp_path), tmp_path / "artifacts" / "mine")
    evidence = load_run(process.wait().run_dir, run_id=process.run_id)
    assert evidence.failure() is None
    return evidence


def test_a_trace_and_a_checkpoint_are_the_result(tmp_path: Path) -> None:
    evidence = external(tmp_path, "trace", "checkpoint")
    result = result_of_run(evidence)
    assert result_of_run(evidence, partial=True) is result, "of one run there is one result"
    assert (result.key.lane, result.key.mode, len(result.steps), len(result.tensors)) == ("mine", "external", 6, 3)
    assert set(result.end_losses) == {f"evaluation loss{end}" for end in ("", ", codebook 0", ", codebook 1")}
    assert result.unreadable == {}
    assert result.parts == ("tokens", "loss", "checkpoint"), "the lane names no manifest"
    assert result.settings["command"] == "{python} lane.py"


def test_a_trace_without_its_end_is_no_result_unless_that_is_asked_for(tmp_path: Path) -> None:
    evidence = external(tmp_path, "trace", "checkpoint", edit=lambda lines: lines.pop())
    with pytest.raises(EvidenceError, match="no end"):
        result_of_run(evidence)
    assert len(result_of_run(evidence, partial=True).steps) == 6


@pytest.mark.parametrize("partial", [False, True])
def test_without_a_trace_the_last_loss_is_the_curve(tmp_path: Path, partial: bool) -> None:
    result = result_of_run(external(tmp_path, "status", "checkpoint"), partial=partial)
    assert [step.loss for step in result.steps] == [0.5] and result.end_losses == {}
    assert len(result.tensors) == 3 and result.unreadable == {} and result.parts == ("loss", "checkpoint")

"""The gates on a watched program, on programs that are run for real: each fault is found by its gate and no other, and
where nothing is wrong, no gate says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.evidence import NotApplicable, RunEvidence, load_run
from harness.evidence.on_purpose import WORDS, is_on_purpose
from harness.gates import invariants
from harness.runs.run import LaneRun
from harness.runs.table import LaneTableError, find_lane, parse_lane

PROGRAMS = Path(__file__).parent / "programs"
GATES = [name for name in invariants.__all__ if name.startswith("test_")]
SOUND = ["plain", "accumulation", "gan", "critic", "scaler", "lbfgs", "tied", "evaluation", "scheduler", "workers",
         "teacher", "parallel"]  # fmt: skip
# The fault, its gate, the word for it in the table, and what the gate says.
FAULTS = [
    ("no_gradient", "test_every_parameter_has_a_gradient", "no_gradient",
     "step 1: first.weight has no gradient, nor at any other of the 12 steps recorded, up to 12"),
    ("not_moved", "test_every_parameter_moves", "not_moved",
     "step 1: 0.weight has not moved, nor up to step 12: its norm is "),
    ("dead", "test_every_parameter_moves", "not_moved", "step 1: 0.weight has not moved, nor up to step 12"),
    ("kept_gradient", "test_no_gradient_survives_a_step", "kept_gradient",
     "step 2: the gradient of 0.weight still holds that of the step before"),
    ("in_no_optimizer", "test_every_parameter_is_in_an_optimizer", "in_no_optimizer",
     "step 1: 3.weight has a gradient and is in no optimizer"),
    ("zero_rate", "test_learning_rate_is_not_zero", "zero_rate",
     "step 1: the learning rate of 0.weight and 1 more is 0, and so it is at all of the 12 steps recorded"),
    ("constant_rate", "test_learning_rate_follows_its_schedule", "constant_rate",
     "step 1: LinearLR was made for optimizer 0 (SGD), its step() was never called, and the learning rate of 0.weight"),
    ("same_batch", "test_no_batch_comes_twice_in_a_row", "same_batch",
     "step 2: optimizer 0 (SGD), with 0.weight and 3 more, is given the batch of its step before"),
    ("detached_loss", "test_loss_is_of_the_parameters", "detached_loss",
     "step 1: each parameter of optimizer 0 (SGD) has no gradient: 0.weight and 3 more; with a loss of "),
    ("detached_later", "test_loss_is_of_the_parameters", "detached_loss",
     "step 5: each parameter of optimizer 0 (SGD) has a gradient of norm 0: 0.weight and 3 more; with a loss of 1"),
    ("unlike_replicas", "test_replicas_agree_after_each_update", "unlike_replicas",
     "rank 1, step 1: 0.weight is another than on rank 0 after the update: its norm is "),
    ("not_finite", "test_everything_is_finite", "not_finite", "step 5: the loss is -inf"),
    ("evaluation_in_train_mode", "test_evaluations_are_in_evaluation_mode", "evaluation_in_train_mode",
     "between step 4 and step 5: Sequential: 1 (BatchNorm1d) was called in training mode with gradients off, 1 time; "),
    ("evaluation_at_the_end", "test_evaluations_are_in_evaluation_mode", "evaluation_in_train_mode",
     "after step 12, the last: Sequential: 1 (BatchNorm1d) was called in training mode with gradients off, 1 time"),
    ("training_in_evaluation_mode", "test_training_is_in_train_mode", "training_in_evaluation_mode",
     "step 5: 1 is in evaluation mode while 0.weight and 5 more is trained"),
]  # fmt: skip
NAMES = [f"sound.{name}" for name in SOUND] + [
    f"faults.{name}" for name in [name for name, *_ in FAULTS] + ["replaced"]
]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory for each program. They are all run as one lane, whose process forks."""
    project = tmp_path_factory.mktemp("watched")
    command = json.dumps(["{python}", str(PROGRAMS / "run.py"), *NAMES])
    (project / "pyproject.toml").write_text(f'[tool.harness.lanes.many]\ncommand = {command}\ntrace = "watch"\n')
    run = LaneRun(find_lane(project, "many"), project / "run").wait()
    assert run.exit_code == 0, (project / "run" / "lane.log").read_text()
    for watched in load_run(project / "run").watched:
        own = project / watched.header.program / "watch" / watched.path.name
        own.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(watched.path, own)
        shutil.copy(project / "run" / "run.json", own.parents[1])
    return project


def evidence(runs: Path, name: str, on_purpose: list[str] | None = None) -> RunEvidence:
    folder = runs / name
    if on_purpose is not None:
        copy = runs / f"{name}, {len(list(runs.iterdir()))}"
        shutil.copytree(folder, copy)
        record = json.loads((copy / "run.json").read_text())
        (copy / "run.json").write_text(json.dumps({**record, "on_purpose": on_purpose}))
        folder = copy
    return load_run(folder)


def ends(gate: str, run: RunEvidence) -> str:
    """How a gate ends: "passed", "not applicable", or what it says is wrong."""
    function: Callable[..., Any] = getattr(invariants, gate)
    try:
        function(run, lambda text: None)
    except NotApplicable:
        return "not applicable"
    except AssertionError as error:
        return str(error)
    return "passed"


def red(run: RunEvidence) -> dict[str, str]:
    found = {gate: ends(gate, run) for gate in GATES}
    return {gate: said for gate, said in found.items() if said not in ("passed", "not applicable")}


@pytest.mark.parametrize("name", SOUND)
def test_where_nothing_is_wrong_no_gate_says_so(name: str, runs: Path) -> None:
    run = evidence(runs, f"sound.{name}")
    assert red(run) == {}
    assert all(watched.end and watched.steps and not watched.unseen for watched in run.watched)


@pytest.mark.parametrize(("name", "gate", "word", "says"), FAULTS, ids=[name for name, *_ in FAULTS])
def test_each_fault_is_found_by_its_gate_alone(name: str, gate: str, word: str, says: str, runs: Path) -> None:
    found = red(evidence(runs, f"faults.{name}"))
    assert list(found) == [gate]
    assert found[gate].startswith(says), found[gate]
    assert "\n  next: " in found[gate] and f'watch = {{on_purpose = ["{word}' in found[gate]
    assert red(evidence(runs, f"faults.{name}", [word])) == {}


def test_each_word_has_its_gate_and_its_fault() -> None:
    assert {word for _, _, word, _ in FAULTS} == {*WORDS}
    assert {gate for _, gate, _, _ in FAULTS} == {*GATES}


def test_a_pattern_names_what_is_meant(runs: Path) -> None:
    """The rest is found as before; and nothing is said on purpose of another word's."""
    assert red(evidence(runs, "faults.no_gradient", ["no_gradient:first.*"])) == {}
    found = red(evidence(runs, "faults.no_gradient", ["no_gradient:*.weight", "not_moved"]))
    assert [said.splitlines()[0][:30] for said in found.values()] == ["step 1: first.bias has no grad"]
    assert is_on_purpose(["same_batch"], "same_batch") and not is_on_purpose(["same_batch"], "no_gradient", "a")


def test_a_layer_that_was_replaced_is_two_findings(runs: Path) -> None:
    """The optimizer has what no module has, and not what one has."""
    found = red(evidence(runs, "faults.replaced"))
    assert [*found] == ["test_every_parameter_has_a_gradient", "test_every_parameter_is_in_an_optimizer"]
    first, second = found.values()
    assert first.startswith("step 1: parameter 2 has no gradient"), first
    assert second.startswith("step 1: 2.weight has a gradient and is in no optimizer"), second


def test_the_scaler_left_out_steps_and_the_gates_looked_at_the_others(runs: Path) -> None:
    (watched,) = evidence(runs, "sound.scaler").watched
    assert [step.skipped for step in watched.steps].index(False) > 0


def test_replicas_are_compared_where_they_are_ones(runs: Path) -> None:
    gate = "test_replicas_agree_after_each_update"
    assert ends(gate, evidence(runs, "sound.parallel")) == "passed"
    assert ends(gate, evidence(runs, "sound.plain")) == "not applicable"


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("no_gradiant", "found the word 'no_gradiant', expected no_gradient?"),
        ("sound", "found the word 'sound', expected one of no_gradient, not_moved, "),
        ("same_batch:x", "found 'same_batch:x', expected same_batch alone"),
        ("not_moved:", "found 'not_moved:', expected not_moved alone, or not_moved:PATTERN, for the name of a tensor"),
    ],
)
def test_a_word_that_is_not_known_is_refused(entry: str, says: str, tmp_path: Path) -> None:
    table = {"command": ["x"], "trace": "watch", "watch": {"on_purpose": ["kept_gradient", entry]}}
    with pytest.raises(LaneTableError) as error:
        parse_lane("mine", table, tmp_path)
    assert "[tool.harness.lanes.mine] watch.on_purpose: " in str(error.value) and says in str(error.value)


def test_what_the_table_says_reaches_the_evidence(tmp_path: Path) -> None:
    """And of a lane that is not watched the gates have nothing to judge."""
    lanes = {"seen": {"command": ["true"], "trace": "watch", "watch": {"on_purpose": ["same_batch"]}},
             "other": {"command": ["true"], "status": "status.json"}}  # fmt: skip
    for name, table in lanes.items():
        LaneRun(parse_lane(name, table, tmp_path), tmp_path / name).wait()
    assert load_run(tmp_path / "seen").record.on_purpose == ["same_batch"]
    other = load_run(tmp_path / "other")
    assert other.record.on_purpose == [] and "on_purpose" not in json.loads((tmp_path / "other/run.json").read_text())
    assert {ends(gate, other) for gate in GATES} == {"not applicable"}
    with pytest.raises(NotApplicable, match='the lane other is not watched: trace = "watch" in its table'):
        invariants.test_every_parameter_moves(other, lambda text: None)

"""What is read of an external lane's run directory, which is built here by hand: no lane is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_directory import write_json, write_run

from harness.baselines.result import key_of
from harness.evidence import REPORT_TITLE, EvidenceError, NotApplicable, RunEvidence, load_run
from harness.evidence.report import CONTRACT_KEYS
from harness.numerics.digest import tensor_digest

DIGEST = "a" * 64
FIELDS = {"state": "state", "completed": "done", "loss": "last.loss"}


def given(copy: str | None, found: str = "a file") -> dict[str, Any]:
    """What is told of one file that the lane was to leave."""
    return {"path": f"/lane/{copy}", "copy": copy, "written": copy is not None, "found": found}


def external(run_dir: Path, *, run_id: str | None = None, **changes: Any) -> RunEvidence:
    """The evidence of a run that gives nothing but what `changes` say of it."""
    facts: dict[str, Any] = {
        "schema": "lane_run/1",
        "lane": "experimental",
        "promotable": False,
        "name": "mine",
        "default": False,
        "state": "ended",
        "formats": {},
        "numerics": "bits",
        "run_id": "r1",
        "exit_code": 0,
        "ended": "exited with 0",
        "seconds": 1.5,
        "started_at": "2026-01-01T00:00:00Z",
        "outputs": {},
        "fields": FIELDS,
        "report_begin": REPORT_TITLE,
        "initial": None,
        "vocabulary": None,
        "data": {"digest": None, "files": 0, "problems": [], "source": "none"},
        "numeric_class": "class",
        "settings_digest": DIGEST,
        "settings": {"command": "train"},
        "environment": {"python": "3.11"},
    }
    run_dir.mkdir(exist_ok=True)
    (run_dir / "lane.log").touch()
    write_json(run_dir / "run.json", {**facts, **changes})
    return load_run(run_dir, run_id=run_id)


def with_status(run_dir: Path, status: object, **changes: Any) -> RunEvidence:
    """The evidence of a run that leaves this status."""
    run = external(run_dir, outputs={"status": given("status.json")}, **changes)
    write_json(run_dir / "status.json", status)
    return run


def test_the_record_is_of_the_run_that_was_asked_for(tmp_path: Path) -> None:
    assert external(tmp_path).record.name == "mine"
    assert external(tmp_path, run_id="r1").record.run_id == "r1"
    with pytest.raises(EvidenceError, match=r"run\.json: run_id: found text 'r1', expected text 'r2'"):
        _ = external(tmp_path, run_id="r2").record


@pytest.mark.parametrize(
    "change", [{"promotable": True}, {"lane": "reference"}, {"settings_digest": "x"}, {"data": {}}]
)
def test_a_record_of_another_kind_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match=next(iter(change))):
        _ = external(tmp_path, **change).record


def test_the_option_that_runs_the_lane(tmp_path: Path) -> None:
    assert external(tmp_path).lane_option == " --lane=mine"
    (tmp_path / "run.json").write_text("{")
    assert load_run(tmp_path).lane_option == " --lane=NAME"


def test_what_the_lane_does_not_give_is_not_applicable_and_what_it_did_not_leave_an_error(tmp_path: Path) -> None:
    run = external(tmp_path, outputs={"checkpoint": given(None, "no such file"), "status": given("status.json")})
    assert run.gives("checkpoint") and not run.gives("trace")
    assert run.path_of("status") == tmp_path / "status.json"
    with pytest.raises(NotApplicable, match="the lane mine gives no trace"):
        run.path_of("trace")
    with pytest.raises(EvidenceError, match="found no such file, expected the checkpoint of lane mine") as error:
        _ = run.checkpoint
    assert not isinstance(error.value, NotApplicable)


def test_what_only_the_built_in_lane_has_is_not_applicable(tmp_path: Path) -> None:
    run = external(tmp_path)
    for part in ("tokens", "checkpoint_sidecar", "initial_checkpoint", "run_id_files"):
        with pytest.raises(NotApplicable):
            getattr(run, part)
    assert run.checkpoint_float64 is None
    assert run.environment["python"] == "3.11"
    with pytest.raises(NotApplicable, match="has no numeric_mode"):
        _ = run.environment["numeric_mode"]


def test_a_run_that_has_not_ended_is_an_error_and_not_left(tmp_path: Path) -> None:
    run = external(tmp_path, state="running")
    value = json.loads((tmp_path / "run.json").read_text())
    write_json(tmp_path / "run.json", {key: value[key] for key in value.keys() - {"exit_code", "ended", "settings"}})
    assert not run.is_left() and "has not ended" in str(run.failure())
    with pytest.raises(EvidenceError, match=r"run\.json: exit_code") as error:
        _ = run.record.exit_code
    assert not isinstance(error.value, NotApplicable) and run.name == "mine"


@pytest.mark.parametrize(
    ("what", "part", "limit"),
    [("status", "own_status", "16,777,216"), ("report", "report", "1,048,576")],
)
def test_a_copy_above_its_limit_is_not_read(what: str, part: str, limit: str, tmp_path: Path) -> None:
    run = external(tmp_path, outputs={what: given("copy")})
    with (tmp_path / "copy").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(EvidenceError, match=f"of at most {limit} bytes"):
        getattr(run, part)


class TestStatus:
    def test_is_told_under_the_names_of_the_built_in_lane(self, tmp_path: Path) -> None:
        own = {"state": "done", "last": {"loss": 0.5}, "loss": 9.0, "root_cause": "why", "settings": 1, "run_id": "own"}
        run = with_status(tmp_path, own)
        assert run.own_status == own
        assert run.status.status == "completed" and run.status.loss == 0.5
        assert run.status.run_id == "r1" and run.status.settings == {"command": "train"}
        assert run.status.root_cause == "why" and run.status.first_failed_step == "none"
        with pytest.raises(NotApplicable, match="has no sanitized_logits"):
            _ = run.status.sanitized_logits

    @pytest.mark.parametrize(
        ("completed", "state", "status"),
        [
            ("done", "done", "completed"),
            ("done", "stopped", "stopped"),
            ("done", "completed", "'completed'"),
            ("completed", "completed", "completed"),
        ],
    )
    def test_is_completed_only_where_the_lanes_own_word_says_so(
        self, completed: str, state: str, status: str, tmp_path: Path
    ) -> None:
        run = with_status(tmp_path, {"state": state}, fields={**FIELDS, "completed": completed})
        assert run.status.status == status
        assert (run.failure() is None) == (status == "completed")

    def test_without_a_loss_has_none(self, tmp_path: Path) -> None:
        run = with_status(tmp_path, {"state": "done", "loss": 9.0, "last": [0.5]})
        with pytest.raises(NotApplicable, match="has no loss"):
            _ = run.status.loss

    @pytest.mark.parametrize(("status", "found"), [([], "a list of 0"), ({"state": 1}, "found 1"), ({}, "found null")])
    def test_of_another_kind_is_refused(self, status: object, found: str, tmp_path: Path) -> None:
        with pytest.raises(EvidenceError, match=found):
            _ = with_status(tmp_path, status).status

    @pytest.mark.parametrize(
        ("code", "status"), [(0, "completed"), (1, "failed"), (-9, "failed"), (-1, "failed"), (None, "failed")]
    )
    def test_of_a_lane_that_writes_none_is_its_exit_code(self, code: int | None, status: str, tmp_path: Path) -> None:
        assert external(tmp_path, exit_code=code).status.status == status


class TestFailure:
    """Why an external lane failed, in one line."""

    @pytest.mark.parametrize(
        ("code", "ended"), [(1, "exited with 1"), (-1, "was killed by SIGHUP"), (None, "did not end")]
    )
    def test_from_the_exit_code_where_the_lane_writes_no_status(
        self, code: int | None, ended: str, tmp_path: Path
    ) -> None:
        assert external(tmp_path).failure() is None
        run = external(tmp_path, exit_code=code, ended=ended)
        assert run.failure() == f"the lane mine {ended}; log: {run.log_path}"

    def test_from_the_status_with_its_cause_where_it_names_one(self, tmp_path: Path) -> None:
        run = with_status(tmp_path, {"state": "stopped"})
        found = "/lane/status.json: state: found stopped, expected done"
        assert run.failure() == f"{found}; log: {run.log_path}"
        assert with_status(tmp_path, {"state": "stopped", "root_cause": "disk"}).failure() == (
            f"{found}: text 'disk'; log: {run.log_path}"
        )
        assert with_status(tmp_path, {"state": "done", "root_cause": "disk"}).failure() is None

    def test_from_both(self, tmp_path: Path) -> None:
        run = with_status(tmp_path, {"state": "stopped"}, exit_code=1, ended="exited with 1")
        found = "/lane/status.json: state: found stopped, expected done"
        assert run.failure() == f"{found}; the lane mine exited with 1; log: {run.log_path}"

    def test_an_unreadable_status_is_no_success(self, tmp_path: Path) -> None:
        assert "found 1" in str(with_status(tmp_path, {"state": 1}).failure())

    def test_is_cut_where_it_is_long(self, tmp_path: Path) -> None:
        run = external(tmp_path, exit_code=1, ended="x" * 1000)
        reason, log = str(run.failure()).split("; log: ")
        assert len(reason) == 500 and reason.endswith("x…") and log == str(run.log_path)


class TestReport:
    def test_begins_with_the_lanes_own_line(self, tmp_path: Path) -> None:
        run = external(tmp_path, outputs={"report": given("report.txt")}, report_begin="=== MINE ===")
        (tmp_path / "report.txt").write_text("=== MINE ===\nloss: 0.5\n")
        assert run.report == {"loss": "0.5"}
        with pytest.raises(NotApplicable, match="the lane's report has no seed"):
            _ = run.report["seed"]
        with pytest.raises(NotApplicable, match="of another kind"):
            _ = run.report_keys

    def test_that_begins_like_the_built_in_lanes_has_its_keys(self, tmp_path: Path) -> None:
        assert external(tmp_path).report_keys == CONTRACT_KEYS


class TestData:
    def test_a_manifest_in_a_format_of_the_lanes_own_is_not_applicable(self, tmp_path: Path) -> None:
        data = {"digest": DIGEST, "files": 3, "problems": [], "source": "m.json"}
        run = external(tmp_path, outputs={"manifest": given("manifest.json")}, data=data)
        with pytest.raises(NotApplicable, match="in a format of its own"):
            _ = run.manifest
        assert run.dataset_files() == 3 and run.dataset_digest() == DIGEST

    def test_problems_are_those_found_when_the_run_had_ended(self, tmp_path: Path) -> None:
        data = {"digest": None, "files": 1, "problems": ["one is gone", "two is gone"], "source": "m.json"}
        run = external(tmp_path, outputs={"manifest": given("m.json")}, data=data)
        assert run.manifest_problems() == ["one is gone", "two is gone"]
        with pytest.raises(EvidenceError, match="one is gone") as error:
            run.dataset_digest()
        assert not isinstance(error.value, NotApplicable)
        (problem,) = external(tmp_path, outputs={"manifest": given(None, "no such file")}).manifest_problems()
        assert "no such file" in problem

    def test_no_manifest_is_not_applicable(self, tmp_path: Path) -> None:
        run = external(tmp_path)
        with pytest.raises(NotApplicable, match="gives no manifest"):
            run.manifest_problems()
        with pytest.raises(NotApplicable, match="neither a manifest nor its audio"):
            run.dataset_digest()

    def test_the_digest_that_was_taken(self, tmp_path: Path) -> None:
        data = {"digest": DIGEST, "files": 1, "problems": [], "source": "m.json"}
        assert external(tmp_path, data=data).dataset_digest() == DIGEST


def traced(tmp_path: Path, **changes: Any) -> RunEvidence:
    """The evidence of a run with a trace in the built-in lane's format, without the sketches."""
    source = write_run(tmp_path / "built-in", checkpoint=False) / "trace.jsonl"
    run = external(tmp_path / "run", outputs={"trace": given("trace.jsonl")}, **changes)
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    for line in lines:
        line.pop("sketch", None)
    (tmp_path / "run" / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


class TestTrace:
    def test_needs_no_sketches(self, tmp_path: Path) -> None:
        run = traced(tmp_path)
        assert run.trace.complete and run.trace.header.mode == "universal"
        assert run.outline is run.partial_trace and run.outline.complete

    def test_is_compared_under_the_external_lanes_own_key(self, tmp_path: Path) -> None:
        data = {"digest": DIGEST, "files": 1, "problems": [], "source": "m.json"}
        run = traced(tmp_path, initial="initial.npz", data=data)
        np.savez(tmp_path / "run" / "initial.npz", w=np.ones(2))
        key = key_of(run, run.outline)
        assert (key.lane, key.mode, key.numeric_class) == ("mine", "external", "class")
        assert key.settings_digest == key.dataset_digest == DIGEST
        assert key.model_digest == run.initial_checkpoint.tensor_digest == tensor_digest({"w": np.ones(2)})

    def test_is_compared_as_far_as_it_goes(self, tmp_path: Path) -> None:
        run = traced(tmp_path)
        path = tmp_path / "run" / "trace.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
        assert len(run.partial_trace.steps) == 2 and not run.partial_trace.complete
        with pytest.raises(EvidenceError, match="a whole trace"):
            _ = run.trace

    def test_of_a_lane_that_writes_none_is_one_step_with_the_last_loss(self, tmp_path: Path) -> None:
        for loss in (0.5, 2):
            run = with_status(tmp_path, {"state": "done", "last": {"loss": loss}})
            (step,) = run.outline.steps
            assert (step.step, step.loss, step.sanitized) == (1, float(loss), 0)
            assert step.grad == step.param == {} and step.chunks == []
            assert not run.outline.complete and run.outline.path == tmp_path / "run.json"
            key = key_of(run, run.outline)
            assert key.model_digest == "none" and key.dataset_digest == ""

    @pytest.mark.parametrize("loss", [True, "0.5", None, [0.5]])
    def test_without_a_number_for_a_loss_has_no_step(self, loss: object, tmp_path: Path) -> None:
        assert with_status(tmp_path, {"state": "done", "last": {"loss": loss}}).outline.steps == []

    def test_an_initial_checkpoint_that_cannot_be_read_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(EvidenceError, match=r"initial\.npz: found no such file"):
            run = external(tmp_path, initial="initial.npz")
            key_of(run, run.outline)


def test_run_ids_are_those_that_the_lane_wrote(tmp_path: Path) -> None:
    run = traced(tmp_path)
    outputs = {"status": given("s.json"), "report": given(None), "trace": given("trace.jsonl"), "manifest": given("m")}
    write_json(tmp_path / "run" / "s.json", {"run_id": "one"})
    write_json(tmp_path / "run" / "m", {"run_id": 3})
    own = run.trace.header.run_id
    assert external(tmp_path / "run", outputs=outputs).run_ids() == {"s.json": "one", "trace.jsonl": own}
    write_json(tmp_path / "run" / "s.json", {"run_id": "none"})
    assert external(tmp_path / "run", outputs=outputs).run_ids() == {"trace.jsonl": own}
    assert external(tmp_path / "run").run_ids() == {}

"""What the gates of one session share: each run is made once, each verdict found once, each refusal remembered."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toy_lane import Toy

from harness.baselines import snapshot as snapshot_module
from harness.baselines.baseline import Code
from harness.baselines.record import RecordRefused, record
from harness.baselines.result import EXTERNAL, PARTS, Result, result_of_run
from harness.baselines.snapshot import Gates
from harness.baselines.store import Store
from harness.evidence import RunEvidence

CODE = Code("a" * 40, False, "1" * 64)
TOY = Toy()
DRIFT = TOY.with_(rate_factor=1.01)
NATIVE = Toy(mode="native")
ELSEWHERE = NATIVE.with_(numeric_class="bbbbbbbbbbbbbbbb", noise=1e-7)
REASON = "the schedule was fixed"


class Lane:
    """Runs a toy, and counts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def __call__(self, toy: Toy) -> RunEvidence:
        self.count += 1
        return toy.run(self.folder / f"run{self.count}")


Make = Callable[..., Gates]


@pytest.fixture
def lane(tmp_path: Path) -> Lane:
    return Lane(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "baselines")


@pytest.fixture
def gates(lane: Lane, store: Store) -> Make:
    """Makes the gates of a session that ran `toy`, and that can run it again."""

    def make(toy: Toy, **options: Any) -> Gates:
        return Gates(lane(toy), store, **{"code": CODE, "rerun": lambda: lane(toy), "environment": {}, **options})

    return make


@pytest.fixture
def recorded(lane: Lane, store: Store) -> Callable[[Toy], Path]:
    def save(toy: Toy) -> Path:
        first, second = lane(toy), lane(toy)
        record(first, second, store, reason=REASON, code=CODE, environment={})
        return store.path_for(result_of_run(first))

    return save


def test_a_verdict_is_found_once_with_the_second_run_that_a_regression_needs(
    gates: Make, lane: Lane, recorded: Any
) -> None:
    recorded(TOY)
    session, before = gates(DRIFT), lane.count
    assert session.told()[:2] == (0, None) and lane.count == before
    verdict = session.verdict
    assert verdict.kind == "environment-moved" and lane.count == before + 1
    assert session.verdict is verdict and session.told()[0] == 1 and lane.count == before + 1
    assert [session.holds(part) for part in PARTS] == [True, True, False, False]


def test_a_session_that_records_runs_again_only_to_record(gates: Make, lane: Lane, recorded: Any) -> None:
    recorded(TOY)
    session, before = gates(DRIFT, update=True, reason=REASON), lane.count
    assert [session.holds(part) for part in PARTS] == [True, True, False, False] and lane.count == before
    session.record()
    assert lane.count == before + 1 and session.told()[2][0].startswith("changed ")
    assert session.verdict.kind == "match" and all(map(session.holds, PARTS))


def test_the_processes_of_one_session_share_its_verdict_and_its_recording(
    gates: Make, lane: Lane, recorded: Any, tmp_path: Path
) -> None:
    recorded(TOY)
    options: dict[str, Any] = {"update": True, "reason": REASON, "shared": tmp_path / "verdict"}
    one, other = gates(DRIFT, **options), gates(DRIFT, **options)
    assert not one.holds("loss") and not other.holds("loss")
    before = lane.count
    one.record()
    other.record()  # it had looked before that
    assert lane.count == before + 1 and one.verdict == other.verdict and one.told() == other.told()
    assert one.verdict.kind == "match" and one.told()[2][0].startswith("changed ")
    refusing = [gates(DRIFT, update=True, shared=tmp_path / "refused") for _ in range(2)]
    for session in refusing:
        with pytest.raises(RecordRefused, match="reason"):
            session.record()


def test_a_part_of_a_regression_that_did_not_move_holds_while_recording(gates: Make, recorded: Any) -> None:
    recorded(TOY)
    assert gates(TOY, update=True).holds("loss")
    assert not gates(DRIFT, update=True).holds("loss")


def test_another_class_s_recording_holds_but_is_to_be_recorded_for_the_own(
    gates: Make, recorded: Any, store: Store
) -> None:
    path = recorded(NATIVE)
    compared, recording = gates(ELSEWHERE), gates(ELSEWHERE, update=True)
    own = store.path_for(result_of_run(compared.evidence))
    assert own != path and (compared.location, recording.location) == (path, own)
    assert compared.holds("loss") and not recording.holds("loss")


def test_what_nothing_was_recorded_for_has_a_place(gates: Make, store: Store) -> None:
    session = gates(TOY)
    assert session.location == store.path_for(result_of_run(session.evidence)) and not session.holds("loss")


@pytest.mark.parametrize("update", [False, True])
def test_a_run_that_cannot_be_read_has_every_part_and_no_place(gates: Make, store: Store, update: bool) -> None:
    session = gates(TOY, update=update, reason=REASON)
    session.evidence.path_of("trace").unlink()
    assert session.parts() == PARTS and session.location == store.root / "none.json"
    assert not any(map(session.holds, PARTS))
    with pytest.raises(RecordRefused, match=r"the run is no good, and a failed run is never recorded: .*trace\.jsonl"):
        session.record()


def test_a_baseline_that_cannot_be_read_takes_no_part_away(gates: Make, recorded: Any) -> None:
    path = recorded(TOY)
    path.write_text("{")
    assert gates(TOY).parts() == PARTS
    path.unlink()
    path.mkdir()
    assert gates(TOY).parts() == PARTS
    path.rmdir()
    assert gates(TOY).parts() == PARTS


def test_the_parts_of_an_external_lane(gates: Make, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    session = gates(TOY)
    whole = result_of_run(session.evidence)
    key = dataclasses.replace(whole.key, mode=EXTERNAL)

    def parts(**changes: Any) -> tuple[str, ...]:
        result: Result = dataclasses.replace(whole, key=key, **changes)
        monkeypatch.setattr(snapshot_module, "result_of_run", lambda evidence: result)
        return session.parts()

    assert parts() == PARTS
    assert parts(dataset_digest="", steps=()) == ("tokens", "checkpoint")
    assert parts(tensors={}) == ()
    assert parts(tensors={}, unreadable={"checkpoint": "cut short"}) == PARTS
    monkeypatch.setattr(Store, "get", lambda *_: SimpleNamespace(result=whole))
    assert parts(dataset_digest="", steps=()) == PARTS


def test_a_refusal_is_the_same_each_time_and_runs_nothing_again(gates: Make, lane: Lane, store: Store) -> None:
    def crash() -> RunEvidence:
        lane.count += 1
        raise RuntimeError("the lane crashed")

    session, before = gates(TOY, update=True, reason=REASON, rerun=crash), lane.count
    for _ in range(3):
        with pytest.raises(RecordRefused, match=r"^the second run failed, so nothing is recorded: the lane crashed$"):
            session.record()
    assert lane.count == before + 1 and store.paths() == []


def test_no_second_run_no_recording(gates: Make, store: Store) -> None:
    with pytest.raises(RecordRefused, match="no way to run the lane again here"):
        gates(TOY, reason=REASON, rerun=None).record()
    assert store.paths() == []


def test_a_reason_is_asked_for_before_the_lane_is_run_again(gates: Make, lane: Lane) -> None:
    session = gates(TOY)
    with pytest.raises(RecordRefused, match="reason"):
        session.record()
    assert lane.count == 1


def test_the_environment_says_whether_this_is_ci(
    gates: Make, lane: Lane, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(RecordRefused, match="under CI"):
        gates(TOY, reason=REASON, environment=None).record()
    assert lane.count == 1 and store.paths() == []
    gates(TOY, reason=REASON, environment={}).record()
    assert len(store.paths()) == 1


def test_a_recording_by_somebody_else_is_not_lost(gates: Make, lane: Lane, recorded: Any, store: Store) -> None:
    def meanwhile() -> RunEvidence:
        recorded(TOY)
        return lane(DRIFT)

    session = gates(DRIFT, reason=REASON, rerun=meanwhile)
    with pytest.raises(RecordRefused, match="changed by somebody else"):
        session.record()
    assert len(store.paths()) == 1


def test_the_command_of_an_external_lane_names_it(
    gates: Make, lane: Lane, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunEvidence, "lane_option", " --lane other")
    assert re.match(r"pytest -m smoke --lane other --snapshot-update", gates(TOY).verdict.next_command)
    monkeypatch.setattr(RunEvidence, "lane_option", "")
    assert re.match(r"pytest -m smoke --snapshot-update", gates(TOY).verdict.next_command)

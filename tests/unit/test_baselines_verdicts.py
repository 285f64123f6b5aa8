"""The verdicts: each is reached by a run that deserves it; what can go wrong is red, with a line of its own."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_directory import edit_json, write_record
from toy_lane import Toy, edit_steps

from harness.baselines import compare as compare_module
from harness.baselines import differences
from harness.baselines.baseline import Baseline, Code
from harness.baselines.compare import compare, judge
from harness.baselines.document import dump, load
from harness.baselines.record import record
from harness.baselines.result import PARTS
from harness.baselines.store import Store
from harness.baselines.verdict import SecondLegUnavailable, Verdict
from harness.evidence import EvidenceError, RunEvidence, load_run

CODE = Code("a" * 40, False, "1" * 64)
OTHER_CODE = Code("b" * 40, False, "2" * 64)
TOY = Toy()
NATIVE = Toy(mode="native")
OTHER_ENVIRONMENT = {"packages": {"torch": "2.8.0"}, "threads": 1}
ELSEWHERE = NATIVE.with_(numeric_class="bbbbbbbbbbbbbbbb", noise=1e-7)

Run = Callable[[Toy], RunEvidence]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a toy in a folder of its own."""
    counter: Iterator[int] = iter(range(1000))
    return lambda toy: toy.run(tmp_path / f"run{next(counter)}")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "baselines")


def recorded(run: Run, store: Store, toy: Toy) -> None:
    assert record(run(toy), run(toy), store, reason="for a test", code=CODE, environment={})


def one_screen(verdict: Verdict) -> str:
    text = verdict.text()
    assert len(text.splitlines()) <= 30, text
    json.dumps(verdict.to_json(), allow_nan=False)
    return text


# The seven verdicts.


@pytest.mark.parametrize("toy", [TOY, NATIVE], ids=lambda toy: toy.mode)
def test_match(run: Run, store: Store, toy: Toy) -> None:
    recorded(run, store, toy)
    verdict = judge(run(toy), store, rerun=lambda: pytest.fail("a good run needs no second one"))
    assert (verdict.kind, verdict.passed, verdict.notes) == ("match", True, ())
    assert all(verdict.holds(part) for part in PARTS)
    assert verdict.compared["loss"] > toy.steps


def test_match_on_a_machine_that_drifts_less_than_the_guard(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    assert compare(run(TOY.with_(drift=1e-13, numeric_class="cccccccccccccccc")), store).kind == "match"
    drifted = compare(run(TOY.with_(drift=1e-7)), store)
    assert drifted.kind == "regression" and not drifted.holds("checkpoint") and drifted.holds("loss")
    assert "every step agrees, the checkpoint does not" in one_screen(drifted)


def test_tolerance_match_for_another_numeric_class_and_only_there(run: Run, store: Store) -> None:
    recorded(run, store, NATIVE)
    verdict = judge(run(ELSEWHERE), store)
    assert verdict.kind == "tolerance-match" and verdict.passed
    assert "nothing is recorded for numeric class bbbbbbbb" in one_screen(verdict)
    # The same deviation in the recorded class is a failure: there the bits are asked for.
    assert compare(run(NATIVE.with_(noise=1e-7)), store).kind == "regression"


@pytest.mark.parametrize("change", [{"rate_factor": 1.01}, {"rate_factor": 1.001}, {"swap_step": 3}, {"epsilon": 1e-3}])
def test_a_change_is_red_in_another_numeric_class_too(run: Run, store: Store, change: dict[str, Any]) -> None:
    recorded(run, store, NATIVE)
    verdict = judge(run(ELSEWHERE.with_(**change)), store)
    assert verdict.kind == "regression"
    assert "beyond the tolerance for another numeric class (aaaaaaaa)" in one_screen(verdict)


def test_the_own_class_is_used_and_never_the_nearest(run: Run, store: Store) -> None:
    recorded(run, store, NATIVE)
    changed = NATIVE.with_(numeric_class="bbbbbbbbbbbbbbbb", rate_factor=1.01)
    recorded(run, store, changed)
    assert compare(run(changed), store).kind == "match"
    assert compare(run(NATIVE), store).kind == "match"
    assert compare(run(changed.with_(numeric_class="aaaaaaaaaaaaaaaa")), store).kind == "regression"


def test_regression_by_a_changed_learning_rate_names_step_phase_and_tensor(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    changed = TOY.with_(rate_factor=1.0001)
    verdict = judge(run(changed), store, rerun=lambda: run(changed), code=OTHER_CODE)
    text = one_screen(verdict)
    assert verdict.kind == "regression" and not verdict.passed
    assert verdict.where is not None
    assert (verdict.where.step, verdict.where.phase) == (1, "optimizer")
    assert set(verdict.where.tensors) == {"0.taps", "0.bias", "0.out"}
    assert "the gradients agree and the parameters do not: the update (learning rate" in text
    assert "the code moved it" in text and "not chance" in text
    assert "guarded tensor digest" in text and "(allowed 1e-11)" in text
    assert "harness explain" in text and "--snapshot-update" in text
    assert verdict.holds("dataset") and verdict.holds("tokens")


def test_regression_by_one_run_alone_says_that_it_is_one(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    assert "this is one run" in judge(run(TOY.with_(rate_factor=1.01)), store).text()


def test_nondeterministic(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    noisy = TOY.with_(noise=1e-3)
    verdict = judge(run(noisy.with_(noise_seed=1)), store, rerun=lambda: run(noisy.with_(noise_seed=2)))
    text = one_screen(verdict)
    assert verdict.kind == "nondeterministic" and not verdict.passed
    assert "draws without a seed" in text and "step 1 of 6, phase backward" in text
    assert verdict.cause.endswith("in the backward phase")


def test_a_run_that_went_on_is_not_called_chance(run: Run, store: Store) -> None:
    """The second one begins from nothing: where it differs, what the first one went on from may have done it."""
    recorded(run, store, TOY)
    noisy = TOY.with_(noise=1e-3)
    first = run(noisy.with_(noise_seed=1))
    write_record(first.run_dir, 0, went_on=["LANE_RESUME=1"])
    verdict = judge(load_run(first.run_dir), store, rerun=lambda: run(noisy.with_(noise_seed=2)))
    assert verdict.kind == "regression" and not verdict.passed
    assert "LANE_RESUME=1" in one_screen(verdict) and "without a seed" not in verdict.text()


def test_environment_moved_is_shown_by_the_second_leg(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    here = TOY.with_(noise=1e-4, environment=OTHER_ENVIRONMENT)
    asked: list[Baseline] = []

    def second_leg(baseline: Baseline) -> RunEvidence:
        asked.append(baseline)
        return run(here)

    verdict = judge(run(here), store, rerun=lambda: run(here), second_leg=second_leg, code=OTHER_CODE)
    text = one_screen(verdict)
    assert verdict.kind == "environment-moved" and not verdict.passed
    assert "packages.torch 2.13.0 → 2.8.0" in text and "fails in the same way" in text
    assert asked[0].provenance.code == CODE


def test_regression_in_a_moved_environment_is_shown_by_the_second_leg(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    here = TOY.with_(rate_factor=1.01, environment=OTHER_ENVIRONMENT)
    leg = TOY.with_(environment=OTHER_ENVIRONMENT)
    verdict = judge(run(here), store, lambda: run(here), lambda baseline: run(leg), OTHER_CODE)
    assert verdict.kind == "regression"
    assert "run here, still gives the recorded result: the code moved it" in one_screen(verdict)


def test_regression_when_code_and_environment_both_moved(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    leg = TOY.with_(noise=1e-4, environment=OTHER_ENVIRONMENT)
    here = leg.with_(rate_factor=1.01)
    verdict = judge(run(here), store, lambda: run(here), lambda baseline: run(leg), OTHER_CODE)
    assert verdict.kind == "regression" and "environment and code both moved" in one_screen(verdict)


@pytest.mark.parametrize(
    ("packages", "moved"),
    [({"torch": "2.13.0", "triton": "3.5"}, "triton none → 3.5"), ({}, "torch 2.13.0 → none")],
)
def test_a_package_on_one_side_alone_moves_the_environment(
    run: Run, store: Store, packages: dict[str, str], moved: str
) -> None:
    """So the code is not accused unheard."""
    recorded(run, store, TOY)
    here = TOY.with_(rate_factor=1.01, environment={"packages": packages, "threads": 1})
    verdict = judge(run(here), store, lambda: run(here), None, OTHER_CODE)
    assert verdict.kind == "regression" and list(verdict.moved) == [f"packages.{moved}"]
    text = one_screen(verdict)
    assert "which of them moved it is not known" in text and "the environment is as recorded" not in text


def test_a_second_leg_that_cannot_be_run_is_said_and_decides_nothing(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    here = TOY.with_(noise=1e-4, environment=OTHER_ENVIRONMENT)

    def second_leg(baseline: Baseline) -> RunEvidence:
        raise SecondLegUnavailable("commit aaaaaaaaaaaa is not in this shallow clone")

    verdict = judge(run(here), store, lambda: run(here), second_leg, OTHER_CODE)
    assert verdict.kind == "regression" and "not known" in one_screen(verdict) and "shallow clone" in verdict.text()


def test_the_same_code_needs_no_second_leg(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    here = TOY.with_(noise=1e-4, environment=OTHER_ENVIRONMENT)
    verdict = judge(run(here), store, lambda: run(here), None, CODE)
    assert verdict.kind == "environment-moved" and "file by file, that of the recording" in one_screen(verdict)


def test_the_same_code_in_the_same_environment_accuses_neither_the_code_nor_chance(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    here = TOY.with_(noise=1e-4)
    verdict = judge(run(here), store, lambda: run(here), None, CODE)
    assert verdict.kind == "environment-moved" and "nothing that the provenance names" in one_screen(verdict)


def test_a_second_leg_that_computes_something_else_decides_nothing(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    here = TOY.with_(noise=1e-4, environment=OTHER_ENVIRONMENT)
    verdict = judge(run(here), store, lambda: run(here), lambda baseline: run(TOY.with_(seed=1)), OTHER_CODE)
    assert verdict.kind == "regression" and "computes something else: no help" in one_screen(verdict)


def test_a_second_leg_may_drift_as_any_run_may(run: Run, store: Store) -> None:
    """In universal mode what the leg agrees with, the recording or this run, it agrees with up to the drift."""
    recorded(run, store, TOY)
    here = TOY.with_(noise=1e-4, environment=OTHER_ENVIRONMENT)
    drifted = here.with_(rate_factor=1 + 1e-14)
    same = judge(run(here), store, lambda: run(here), lambda baseline: run(drifted), OTHER_CODE)
    assert same.kind == "environment-moved" and "fails in the same way" in one_screen(same)
    leg = TOY.with_(rate_factor=1 + 1e-14, environment=OTHER_ENVIRONMENT)
    good = judge(run(here), store, lambda: run(here), lambda baseline: run(leg), OTHER_CODE)
    assert good.kind == "regression" and "still gives the recorded result: the code moved it" in one_screen(good)


def test_a_second_leg_in_float32_agrees_to_the_bit_or_not_at_all(run: Run, store: Store) -> None:
    recorded(run, store, NATIVE)
    here = NATIVE.with_(noise=1e-4, environment=OTHER_ENVIRONMENT)
    leg = here.with_(drift=1e-7)
    verdict = judge(run(here), store, lambda: run(here), lambda baseline: run(leg), OTHER_CODE)
    assert verdict.kind == "regression" and "environment and code both moved" in one_screen(verdict)


@pytest.mark.parametrize("ours", ["1" * 64, "2" * 64, "", None])
@pytest.mark.parametrize("theirs", ["1" * 64, ""])
def test_the_code_is_the_same_only_where_both_digests_are_known(
    run: Run, store: Store, ours: str | None, theirs: str
) -> None:
    code = None if ours is None else Code("b" * 40, False, ours)
    assert record(run(TOY), run(TOY), store, reason="for a test", code=Code("a" * 40, False, theirs), environment={})
    here = TOY.with_(noise=1e-4)
    verdict = judge(run(here), store, lambda: run(here), None, code)
    if ours == theirs and ours:
        assert verdict.kind == "environment-moved"
    else:
        told = "and the lane's code is not: the code" if ours and theirs else "so the code"
        assert verdict.kind == "regression" and verdict.notes[-1] == f"the environment is as recorded, {told} moved it"


# Of the environment of an external lane little is known: that it is as recorded excuses nothing.

FOREIGN = Toy(mode="external")


@pytest.mark.parametrize(
    ("environment", "code", "words"),
    [
        (OTHER_ENVIRONMENT, OTHER_CODE, "the environment differs, and so may the code; which of them"),
        (FOREIGN.environment, OTHER_CODE, "the lane's code differs, and so may its environment; which of them"),
        (FOREIGN.environment, Code("b" * 40, True, ""), "the lane's code may differ, and so may its environment;"),
    ],
)
def test_an_external_lane_that_was_not_run_as_of_the_recording_accuses_nobody(
    run: Run, store: Store, environment: dict[str, Any], code: Code, words: str
) -> None:
    recorded(run, store, FOREIGN)
    here = FOREIGN.with_(noise=1e-4, environment=environment)
    verdict = judge(run(here), store, lambda: run(here), None, code)
    assert verdict.kind == "regression" and words in one_screen(verdict)


@pytest.mark.parametrize("toy", [NATIVE, FOREIGN], ids=lambda toy: toy.mode)
def test_of_an_external_lane_it_is_said_where_its_code_may_come_from(run: Run, store: Store, toy: Toy) -> None:
    """A lane that is installed as a package would be run from the package as of any commit."""
    recorded(run, store, toy)
    here = toy.with_(noise=1e-4, environment=OTHER_ENVIRONMENT)
    for code in (CODE, OTHER_CODE):
        verdict = judge(run(here), store, lambda: run(here), lambda baseline: run(here), code)
        assert verdict.kind == "environment-moved" and "fails in the same way" in one_screen(verdict)
        assert ("and not from an installed package" in verdict.text()) is (toy is FOREIGN and code is OTHER_CODE)


@pytest.mark.parametrize("toy", [NATIVE, FOREIGN], ids=lambda toy: toy.mode)
def test_an_external_lane_s_table_may_leave_out_what_moved_it(run: Run, store: Store, toy: Toy) -> None:
    recorded(run, store, toy)
    here = toy.with_(noise=1e-4)
    verdict = judge(run(here), store, lambda: run(here), lambda baseline: run(here), CODE)
    assert verdict.kind == "environment-moved" and "nothing that the provenance names" in one_screen(verdict)
    assert ("that the lane's table does not name" in verdict.text()) is (toy is FOREIGN)


def test_the_numeric_class_of_a_run_is_that_of_its_trace(run: Run) -> None:
    for toy in (TOY, NATIVE):
        result = compare_module.result_of_run(run(toy))
        assert (result.numeric_class, result.key.numeric_class) == ("a" * 16, "" if toy is TOY else "a" * 16)
        assert {len(step.chunks) for step in result.steps} == {16}
    evidence = run(NATIVE)
    edit_steps(evidence.run_dir, lambda lines: lines[0].update(numeric_class=None))
    result = compare_module.result_of_run(load_run(evidence.run_dir))
    assert result.numeric_class == result.key.numeric_class == "none"


def test_a_trace_without_an_end_is_taken_as_far_as_it_goes_only_where_that_is_asked_for(run: Run) -> None:
    evidence = run(TOY)
    cut_trace(evidence)
    result = compare_module.result_of_run(load_run(evidence.run_dir), partial=True)
    assert len(result.steps) == 6 and result.end_losses == {}
    with pytest.raises(EvidenceError, match="found no end"):
        compare_module.result_of_run(load_run(evidence.run_dir))


def test_parameters_before_rounding_are_of_universal_mode_alone(run: Run) -> None:
    native, universal = run(NATIVE), run(TOY)
    universal.checkpoint_path.with_suffix(".float64.pt").rename(native.checkpoint_path.with_suffix(".float64.pt"))
    result = compare_module.result_of_run(load_run(native.run_dir))
    assert result.values64 is None and not result.unreadable


def test_a_run_whose_report_names_no_model_is_compared_all_the_same(run: Run, store: Store) -> None:
    without, missing = run(TOY), run(TOY)
    lines = without.path_of("report").read_text().splitlines(keepends=True)
    without.path_of("report").write_text("".join(line for line in lines if not line.startswith("model_id:")))
    missing.path_of("report").unlink()
    for evidence in (without, missing):
        fresh = load_run(evidence.run_dir)
        assert compare_module.result_of_run(fresh).model == "unknown"
        assert compare(fresh, store).kind == "missing"


def test_a_run_without_its_environment_is_compared_all_the_same(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    evidence = run(TOY)
    evidence.path_of("environment").unlink()
    fresh = load_run(evidence.run_dir)
    assert compare_module.result_of_run(fresh).environment == {} and compare(fresh, store).kind == "match"


def test_of_other_classes_the_latest_recording_counts(run: Run, store: Store) -> None:
    for name, at, factor in (
        ("b" * 16, "2026-01-02", 1.0),
        ("c" * 16, "2026-01-01", 1.5),
        ("d" * 16, "2026-01-03", 1.1),
    ):
        recorded(run, store, NATIVE.with_(numeric_class=name, rate_factor=factor))
        (path,) = (path for path in store.paths() if name[:8] in path.name)
        baseline = load(path)
        provenance = dataclasses.replace(baseline.provenance, recorded_at=f"{at}T00:00:00+00:00")
        path.write_text(dump(dataclasses.replace(baseline, provenance=provenance)))
    assert compare(run(NATIVE.with_(rate_factor=1.1)), store).kind == "tolerance-match"
    assert compare(run(NATIVE), store).kind == "regression"


def test_a_second_run_that_fails_does_not_hide_the_failure(run: Run, store: Store) -> None:
    recorded(run, store, TOY)

    def rerun() -> RunEvidence:
        raise OSError("no space left on device")

    verdict = judge(run(TOY.with_(rate_factor=1.01)), store, rerun)
    assert verdict.kind == "regression" and "no space left on device" in one_screen(verdict)


@pytest.mark.parametrize(
    ("toy", "words"),
    [
        (TOY.with_(data=1), "--no-baseline"),
        (TOY.with_(model="other"), "other model: its result"),
        (TOY.with_(learning_rate=0.00303), "learning_rate 0.003 → 0.00303"),
        (TOY.with_(seed=1), "seed 0 → 1"),
    ],
)
def test_incomparable_names_what_differs_and_how_to_record(run: Run, store: Store, toy: Toy, words: str) -> None:
    recorded(run, store, TOY)
    verdict = judge(run(toy), store, rerun=lambda: pytest.fail("an incomparable run needs no second one"))
    text = one_screen(verdict)
    assert verdict.kind == "incomparable" and not verdict.passed and not verdict.holds("loss")
    assert words in text
    assert ("--snapshot-update" in text) == (toy.data == TOY.data), "a change of data is not to be recorded on the way"


def test_a_run_that_is_no_good_in_itself_needs_no_second_one(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    for spoil, kind in ((fail_status, "incomparable"), (remove("tokens.npy"), "regression")):
        evidence = run(TOY)
        spoil(evidence)
        verdict = judge(load_run(evidence.run_dir), store, rerun=lambda: pytest.fail("it was run again"))
        assert verdict.kind == kind and not verdict.passed


def test_missing_in_an_empty_store_and_in_another_mode(run: Run, store: Store) -> None:
    verdict = compare(run(TOY), store)
    assert verdict.kind == "missing" and not verdict.passed
    assert "pytest -m smoke --snapshot-update --baseline-reason" in one_screen(verdict)
    recorded(run, store, TOY)
    verdict = compare(run(NATIVE), store)
    assert verdict.kind == "missing" and "there is one in universal" in verdict.text()


# The vacuity battery: what a comparison could overlook. Each is red, with a line of its own.


def drop_metric(evidence: RunEvidence) -> None:
    def edit(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            line.pop("loss_by_codebook", None)

    edit_steps(evidence.run_dir, edit)


def drop_codebook(evidence: RunEvidence) -> None:
    def edit(lines: list[dict[str, Any]]) -> None:
        lines[1]["shape"][1] = 1
        for line in lines:
            for name in ("loss_by_codebook", "eval_loss_by_codebook", "valid"):
                if name in line:
                    line[name] = line[name][:1]

    edit_steps(evidence.run_dir, edit)


def set_steps(count: int) -> Callable[[RunEvidence], None]:
    """A trace that is whole in itself, of another number of steps."""

    def change(evidence: RunEvidence) -> None:
        def edit(lines: list[dict[str, Any]]) -> None:
            steps = lines[3:-1]
            steps = (steps + steps[-1:] * count)[:count]
            end = lines[-1] | {"steps": count, "loss": [lines[2], *steps][-1]["loss"]}
            lines[3:] = [*(step | {"step": n} for n, step in enumerate(steps, 1)), end]
            lines[0]["steps"] = count

        edit_steps(evidence.run_dir, edit)

    return change


def set_losses(value: str, *, last_only: bool) -> Callable[[RunEvidence], None]:
    def change(evidence: RunEvidence) -> None:
        def edit(lines: list[dict[str, Any]]) -> None:
            for line in lines[-2:-1] if last_only else lines[2:-1]:
                line["loss"] = value

        edit_steps(evidence.run_dir, edit)

    return change


def remove(*names: str) -> Callable[[RunEvidence], None]:
    return lambda evidence: [(evidence.run_dir / name).unlink() for name in names] and None


def claim_other_tokens(evidence: RunEvidence) -> None:
    edit_steps(evidence.run_dir, lambda lines: lines[1].update(tokens_digest="0" * 64))


def drop_tensor_of_checkpoint(evidence: RunEvidence) -> None:
    import torch

    for path in (evidence.checkpoint_path, evidence.checkpoint_path.with_suffix(".float64.pt")):
        held = torch.load(path, weights_only=True)
        del held["adapter"]["0.bias"]
        torch.save(held, path)


def one_ulp_of_the_checkpoint(evidence: RunEvidence) -> None:
    import torch

    held = torch.load(evidence.checkpoint_path, weights_only=True)
    held["adapter"]["0.out"].view(torch.int32)[3, 1] += 1
    torch.save(held, evidence.checkpoint_path)


def fail_status(evidence: RunEvidence) -> None:
    cause = "non_finite: loss is nan"
    edit_json(evidence.path_of("status"), lambda status: status.update(status="failed", root_cause=cause))


def edit_audio(evidence: RunEvidence) -> None:
    path = evidence.run_dir / "knowledge_audio" / "one.flac"
    path.write_bytes(path.read_bytes()[::-1])


def cut_trace(evidence: RunEvidence) -> None:
    edit_steps(evidence.run_dir, lambda lines: lines.pop())


def claim_another_run(evidence: RunEvidence) -> None:
    edit_steps(evidence.run_dir, lambda lines: lines[0].update(run_id="f" * 32))


VACUITY: dict[str, tuple[Callable[[RunEvidence], None], str]] = {
    "a dropped metric": (drop_metric, "loss_by_codebook: found no such key"),
    "a dropped codebook": (drop_codebook, "loss of codebook 1, step 1"),
    "a shorter trace": (set_steps(5), "steps in the trace"),
    "a longer trace": (set_steps(7), "steps in the trace"),
    "a trace of no step": (set_steps(0), "steps in the trace"),
    "an all-NaN trace": (set_losses("nan", last_only=False), "not a number"),
    "a NaN in the last step": (set_losses("nan", last_only=True), "not a number"),
    "an infinity in the last step": (set_losses("inf", last_only=True), "loss, step 6"),
    "an exploded last step": (set_losses((1e30).hex(), last_only=True), "loss, step 6"),
    "a trace without an end": (cut_trace, "trace.jsonl: found no end after line"),
    "a trace of another run": (claim_another_run, "is the file stale?"),
    "no trace": (remove("trace.jsonl"), "trace.jsonl: found no such file"),
    "no tokens": (remove("tokens.npy"), "tokens.npy"),
    "a trace of other tokens": (claim_other_tokens, "the trace says 000000000000"),
    "no status": (remove("train_status.json"), "train_status.json"),
    "no manifest": (remove("knowledge_audio/voice_dataset_manifest.json"), "voice_dataset_manifest.json"),
    "no checkpoint": (remove("checkpoints/tts_voice_train_toy.pt"), "no tts_voice_train_<model>.pt"),
    "no float64": (remove("checkpoints/tts_voice_train_toy.float64.pt"), "float64.pt"),
    "a dropped tensor": (drop_tensor_of_checkpoint, "dtype and shape of 0.bias"),
    "one ULP in the checkpoint": (one_ulp_of_the_checkpoint, "0.out"),
    "a failed run": (fail_status, "non_finite: loss is nan"),
    "an edited audio file": (edit_audio, "dataset_digest|incomparable"),
}


def vacuity(name: str, toy: Toy, run: Run, store: Store) -> Verdict:
    """The verdict on a good run, spoilt in one way."""
    evidence = run(toy)
    VACUITY[name][0](evidence)
    return compare(load_run(evidence.run_dir), store)


@pytest.mark.parametrize("name", VACUITY)
def test_the_vacuity_battery(run: Run, store: Store, name: str) -> None:
    recorded(run, store, TOY)
    assert compare(run(TOY), store).passed
    verdict = vacuity(name, TOY, run, store)
    assert not verdict.passed
    assert not all(verdict.holds(part) for part in PARTS)
    assert any(words in one_screen(verdict) for words in VACUITY[name][1].split("|")), verdict.text()


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"schema": "lane_baseline/1"}', "\x00", "NaN"])
def test_an_empty_or_broken_baseline_is_red_and_says_so(run: Run, store: Store, text: str) -> None:
    recorded(run, store, TOY)
    (path,) = store.paths()
    path.write_text(text)
    verdict = judge(run(TOY), store)
    assert not verdict.passed and not verdict.holds("dataset")
    assert str(path) in one_screen(verdict) and "--snapshot-update" in verdict.text()


def test_a_baseline_whose_every_parameter_is_guarded_compares_nothing(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    evidence = run(TOY)
    baseline = store.get(compare_module.result_of_run(evidence))
    assert baseline is not None
    result = compare_module.result_of_run(evidence)
    everything = {name: range(values.size) for name, values in (result.values or {}).items()}
    items = compare_module._nothing_compared(
        list(differences.walk(result, result, compare_module.BITS)),
        dataclasses.replace(baseline.result, guarded=everything),
    )
    assert [item.part for item in items] == ["checkpoint"]


def test_each_part_in_which_nothing_decides_is_red(run: Run, store: Store) -> None:
    result = compare_module.result_of_run(run(TOY))
    items = list(differences.walk(result, result, compare_module.BITS))
    assert compare_module._nothing_compared(items, result) == []
    assert [item.part for item in compare_module._nothing_compared([], result)] == list(PARTS)
    for part in PARTS:
        rest = [item for item in items if item.part != part or not item.criterion]
        (item,) = compare_module._nothing_compared(rest, result)
        assert (item.part, item.step, item.phase, item.criterion) == (part, 0, "start", True)
        assert (item.obtained, item.distance, item.allowed) == ("0", math.inf, 0.0)


def test_one_parameter_that_is_not_guarded_is_a_comparison(run: Run, store: Store) -> None:
    result = compare_module.result_of_run(run(TOY))
    items = list(differences.walk(result, result, compare_module.BITS))
    every = {name: range(values.size) for name, values in (result.values or {}).items()}
    almost = dataclasses.replace(result, guarded={**every, "0.out": range(1, 32)})
    assert compare_module._nothing_compared(items, almost) == []


def test_what_cannot_be_read_is_red_where_a_run_reads_it(run: Run, store: Store) -> None:
    result = compare_module.result_of_run(run(TOY))
    spoilt = dataclasses.replace(result, unreadable={"dataset": "a", "tokens": "b", "checkpoint": "c"})
    items = compare_module._unreadable(spoilt)
    assert [(i.part, i.step, i.phase, i.distance, i.allowed, i.criterion) for i in items] == [
        ("dataset", 0, "data", math.inf, 0.0, True),
        ("tokens", 0, "tokens", math.inf, 0.0, True),
        ("checkpoint", 7, "checkpoint", math.inf, 0.0, True),
    ]


def test_a_verdict_counts_what_decided_and_names_the_parts_that_failed(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    # Of each of 6 steps: chunks, batch, loss, 2 codebooks, valid, sanitized. 2 losses before, 3 after, model, length.
    # Of each of 3 tensors: kind and values; and the digest.
    assert compare(run(TOY), store).compared == {
        "dataset": 1,
        "tokens": 1,
        "loss": 6 * 7 + 7,
        "checkpoint": 7 + 3 + 6 * 4 + 3,
    }
    changed = compare(run(TOY.with_(rate_factor=1.01)), store)
    assert changed.headline == "not the recorded result: loss, checkpoint"
    assert [part for part in PARTS if changed.holds(part)] == ["dataset", "tokens"]


# The comparator itself, broken: a battery that would not notice is no battery.


def _always(self: differences.Item) -> bool:
    return True


def _never(self: differences.Item) -> bool:
    return False


def _inverted(self: differences.Item) -> bool:
    return bool(self.distance <= self.allowed)


def _nan_passes(self: differences.Item) -> bool:
    return bool(self.distance > self.allowed)


def _mostly(self: differences.Item) -> bool:
    """One percent of the steps may fail: forgives the last one."""
    return not self.distance <= self.allowed and self.step < 6


def _no_digests(self: differences.Item) -> bool:
    return not self.distance <= self.allowed and "digest" not in self.what


MUTANTS = [_always, _never, _inverted, _nan_passes, _mostly, _no_digests]


def battery_holds(run: Run, store: Store) -> bool:
    """Whether the comparison passes what is good and fails what is not."""
    return (
        compare(run(TOY), store).passed
        and compare(run(NATIVE), store).passed
        and not compare(run(TOY.with_(drift=3e-10)), store).passed
        and not vacuity("one ULP in the checkpoint", NATIVE, run, store).passed
        and not any(vacuity(name, TOY, run, store).passed for name in VACUITY)
    )


def test_the_battery_holds(run: Run, store: Store) -> None:
    recorded(run, store, TOY)
    recorded(run, store, NATIVE)
    assert battery_holds(run, store)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_broken_comparator_fails_the_battery(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch, mutant: Callable[[Any], bool]
) -> None:
    recorded(run, store, TOY)
    recorded(run, store, NATIVE)
    monkeypatch.setattr(differences.Item, "out_of_bounds", property(mutant))
    assert not battery_holds(run, store)


def test_nan_equals_nothing_not_even_itself() -> None:
    for bits in (True, False):
        assert math.isnan(differences._apart(math.nan, math.nan, 1.0, bits=bits))
        assert math.isinf(differences._apart(math.inf, math.inf, 1.0, bits=bits))


def test_minus_zero_is_zero_within_tolerance_and_not_to_the_bit() -> None:
    assert differences._apart(0.0, -0.0, 1.0, bits=False) == 0.0
    assert differences._apart(0.0, -0.0, 1.0, bits=True) == math.inf

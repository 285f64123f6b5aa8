"""`explain`: the first difference and its likely cause, for runs, checkpoints and baselines."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_directory import edit_json
from toy_lane import Toy, edit_steps

from harness.baselines import explain as explain_module
from harness.baselines.baseline import Code
from harness.baselines.checkpoints import compare_tensors, in_memory
from harness.baselines.explain import explain, main
from harness.baselines.record import record
from harness.baselines.store import Store
from harness.evidence import EvidenceError, RunEvidence

TOY = Toy()
NATIVE = Toy(mode="native")
CODE = Code("a" * 40, False, "1" * 64)

Run = Callable[[Toy], RunEvidence]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    counter: Iterator[int] = iter(range(1000))
    return lambda toy: toy.run(tmp_path / f"run{next(counter)}")


def lines_of(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 40, text
    return text


def of_runs(run: Run, capsys: pytest.CaptureFixture[str], a: Toy, b: Toy, *, code: int = 1) -> str:
    one, two = run(a).run_dir, run(b).run_dir
    assert main([str(one), str(two)]) == code
    text = lines_of(capsys)
    assert main([str(one), str(two), "--json"]) == code
    document = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"bare {name}"))
    assert document["differ"] is bool(code) and document["kind"] == "runs"
    return text


# Two runs.


def test_equal_runs_are_no_difference(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert of_runs(run, capsys, TOY, TOY, code=0).startswith("no difference\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rate_factor": 1.01}, ["step 1 of 6, phase optimizer, tensor", "the update (learning rate"]),
        ({"learning_rate": 0.00303}, ["phase optimizer", "the settings differ (learning_rate 0.00303 → 0.003)"]),
        ({"noise": 1e-4}, ["step 1 of 6, phase backward, tensor", "the losses agree and the gradients do not"]),
        ({"swap_step": 4}, ["step 4 of 6, phase data (order of chunks, step 4)", "in another order", "equally often"]),
        ({"seed": 1}, ["phase start, tensor", "the seeds are 0 and 1"]),
        ({"data": 1}, ["phase data (dataset digest)", "the audio itself differs"]),
        ({"steps": 5}, ["steps in the trace", "steps 5 → 6"]),
        ({"mode": "native"}, ["A is computed in universal mode and B in native mode"]),
        (
            {"noise": 1e-4, "environment": {"packages": {"torch": "2.13.0"}, "threads": 2}},
            ["the thread settings differ (threads 2 → 1)"],
        ),
    ],
)
def test_where_and_why_two_runs_differ(
    run: Run, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: list[str]
) -> None:
    text = of_runs(run, capsys, TOY, TOY.with_(**change))
    for word in words:
        assert word in text


def test_a_difference_of_the_size_of_rounding_is_called_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    text = of_runs(run, capsys, NATIVE, NATIVE.with_(noise=1e-7, numeric_class="bbbbbbbbbbbbbbbb"))
    assert "the size of float32 rounding" in text
    assert "numeric class bbbbbbbbbbbbbbbb → aaaaaaaaaaaaaaaa" in text


def test_drift_in_universal_mode_is_the_same_result(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    text = of_runs(run, capsys, TOY, TOY.with_(noise=1e-15))
    assert "within the drift that universal mode allows" in text


def test_from_which_step_on_everything_differs(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the loss differs at every step from step 2 on" in of_runs(run, capsys, TOY, TOY.with_(rate_factor=1.1))


def test_one_tensor_only_is_said_and_where_in_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    one, two = run(NATIVE), run(NATIVE)
    held = torch.load(two.checkpoint_path, weights_only=True)
    held["adapter"]["0.taps"].view(torch.int32)[7, 3] += 5
    torch.save(held, two.checkpoint_path)
    assert main([str(one.run_dir), str(two.run_dir)]) == 1
    text = lines_of(capsys)
    assert "every step agrees, the checkpoint does not" in text
    (row,) = (line for line in text.splitlines() if line.startswith("  0.taps"))
    assert "1 of 160" in row and " 5 " in row and "[7, 3] = 115" in row


def test_a_run_that_ended_early_is_explained_as_far_as_it_goes(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = run(TOY), run(TOY.with_(rate_factor=1.1))
    lines = two.path_of("trace").read_text().splitlines(keepends=True)
    two.path_of("trace").write_text("".join(lines[:6]) + lines[6][:50])
    two.checkpoint_path.unlink()
    assert main([str(one.run_dir), str(two.run_dir)]) == 1
    text = lines_of(capsys)
    assert "3 steps, ended early" in text and "step 1 of 6, phase optimizer" in text and "checkpoint" in text


def differing_in(run: Run, values: dict[int, float], steps: int = 6) -> list[str]:
    """The notes on two runs of which one has other losses at these steps: the other's loss times the value."""
    one, two = run(NATIVE.with_(steps=steps)), run(NATIVE.with_(steps=steps))

    def edit(lines: list[dict[str, Any]]) -> None:
        for step, factor in values.items():
            lines[2 + step]["loss"] = (float.fromhex(lines[2 + step]["loss"]) * factor).hex()
        lines[-1]["loss"] = lines[-2]["loss"]

    edit_steps(one.run_dir, edit)
    return explain(one.run_dir, two.run_dir).notes


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({2: 1.5, 3: 1.25, 5: 1.125}, "at 3 of 6 steps, first at step 2, by 5.0e-01 at first and 1.2e-01 at last"),
        ({4: 0.5}, "at 1 of 6 steps, first at step 4, by 5.0e-01 at first and 5.0e-01 at last"),
        ({1: 2.0, 2: 1.5, 3: 1.5, 4: 1.5, 5: 1.5}, "at 5 of 6 steps, first at step 1, by 1.0e+00 at first"),
        ({6: 3.0}, "at every step from step 6 on, by 2.0e+00 at first and 2.0e+00 at last"),
        ({3: 1.5, 4: 1.5, 5: 4.0, 6: 3.0}, "at every step from step 3 on, by 5.0e-01 at first and 2.0e+00 at last"),
        (dict.fromkeys(range(1, 7), 1.5), "at every step from step 1 on, by 5.0e-01"),
    ],
)
def test_how_the_loss_differs_over_the_steps(run: Run, values: dict[int, float], note: str) -> None:
    (found,) = differing_in(run, values)
    assert found.startswith(f"the loss differs {note}")


def test_of_losses_that_agree_no_course_is_told(run: Run) -> None:
    one, two = run(NATIVE), run(NATIVE.with_(drift=1e-3))
    found = explain(one.run_dir, two.run_dir)
    assert found.differ and found.notes == []


def test_a_loss_of_zero_is_infinitely_far_from_another(run: Run) -> None:
    one, two = run(NATIVE), run(NATIVE)
    edit_steps(two.run_dir, lambda lines: lines[4].update(loss=(0.0).hex()))
    assert "by inf at first and inf at last" in explain(one.run_dir, two.run_dir).notes[0]
    assert "by 1.0e+00 at first and 1.0e+00 at last" in explain(two.run_dir, one.run_dir).notes[0]


def test_what_the_traces_say_of_the_data(run: Run) -> None:
    """Which is read where the runs differ; what the traces claim of chunks is no difference in itself."""

    def edited(edit: Callable[[dict[str, Any]], object]) -> list[str]:
        other = run(NATIVE.with_(noise=1e-3))
        edit_steps(other.run_dir, lambda lines: edit(lines[1]))
        notes = [explain(pair[0], pair[1]).notes for pair in ((one, other.run_dir), (other.run_dir, one))]
        told = [[note for note in found if "chunk" in note] for found in notes]
        assert told[0] == told[1]
        return told[0]

    one = run(NATIVE).run_dir
    assert edited(lambda tokens: None) == []
    assert edited(lambda tokens: tokens["chunks"][1].update(digest="0" * 16)) == [
        "1 of 3 chunks have other tokens, from the same audio, first chunk 1"
    ]
    assert edited(lambda tokens: [chunk.update(digest="0" * 16) for chunk in tokens["chunks"][1:]]) == [
        "2 of 3 chunks have other tokens, from the same audio, first chunk 1"
    ]
    for change in ({"start": 1}, {"file": "0" * 64}):
        assert edited(lambda tokens, change=change: tokens["chunks"][2].update(digest="0" * 16, **change)) == [
            "1 of 3 chunks have other tokens, from other audio, first chunk 2"
        ]
    # One chunk of another file is enough.
    assert edited(
        lambda tokens: [
            chunk.update(digest="0" * 16, start=chunk["start"] + (n == 1)) for n, chunk in enumerate(tokens["chunks"])
        ]
    ) == ["3 of 3 chunks have other tokens, from other audio, first chunk 0"]


def test_another_number_of_chunks_is_said(run: Run) -> None:
    one, two = run(NATIVE), run(NATIVE.with_(noise=1e-3))

    def longer(lines: list[dict[str, Any]]) -> None:
        lines[1]["chunks"].append(lines[1]["chunks"][0])
        lines[1]["shape"][0] += 1

    edit_steps(two.run_dir, longer)
    assert "the audio gave 3 chunks in A and 4 in B" in explain(one.run_dir, two.run_dir).notes
    assert "the audio gave 4 chunks in A and 3 in B" in explain(two.run_dir, one.run_dir).notes


def test_the_order_of_chunks_is_spoken_of_only_where_it_is_all_that_differs(run: Run) -> None:
    order = "both runs draw the same chunks equally often, in another order"
    one, two, three = (run(NATIVE.with_(**change)).run_dir for change in ({}, {"swap_step": 4}, {"noise": 1e-3}))
    assert order in explain(one, two).notes and order not in explain(one, three).notes

    def another_chunk(lines: list[dict[str, Any]]) -> None:
        lines[5]["chunks"] = [lines[5]["chunks"][0]] * 2

    edit_steps(three, another_chunk)
    assert order not in explain(one, three).notes and order not in explain(three, one).notes


def test_a_trace_that_ends_before_its_tokens_says_nothing_of_data(run: Run) -> None:
    one, two = run(NATIVE).run_dir, run(NATIVE).run_dir
    edit_steps(two, lambda lines: lines.__delitem__(slice(1, None)))
    for pair in ((one, two), (two, one)):
        found = explain(*pair)
        assert found.differ and not any("chunk" in note for note in found.notes)


def test_what_the_provenance_explains_is_said_first(run: Run) -> None:
    one = run(NATIVE).run_dir
    for change, words in (
        ({"mode": "universal", "seed": 1}, "A is computed in native mode and B in universal mode; "),
        ({"seed": 1, "model": "other"}, "the settings differ (seed 1 → 0); "),
        ({"model": "other", "noise": 1e-3}, "the models differ; "),
        ({"noise": 1e-3}, "the losses agree"),
    ):
        cause = explain(one, run(NATIVE.with_(noise_seed=1, **change)).run_dir).cause
        assert words in cause[: len(words) + 60], cause
    assert explain(one, run(NATIVE.with_(noise=1e-3)).run_dir).cause.count("; ") == 0


def test_only_two_universal_runs_are_the_same_result_by_their_drift(run: Run) -> None:
    words = "within the drift that universal mode allows"
    toys = [Toy(mode=mode, noise=noise) for mode, noise in (("universal", 0.0), ("universal", 1e-15), ("native", 0.0))]
    one, two, other = (run(toy).run_dir for toy in toys)
    assert words in explain(one, two).cause
    # A native run lies within float32's tolerance of both, and is another result.
    for pair in ((one, other), (other, one), (other, run(NATIVE.with_(noise=1e-7)).run_dir)):
        assert words not in explain(*pair).cause


def test_values_of_the_checkpoint_are_in_a_table_of_their_own(run: Run) -> None:
    found = explain(run(TOY).run_dir, run(TOY.with_(rate_factor=1.01)).run_dir)
    kinds = {(item.phase, bool(item.tensor)) for item in found.items}
    assert ("checkpoint", False) in kinds and ("optimizer", True) in kinds and ("forward", False) in kinds
    assert ("checkpoint", True) not in kinds and all(item.out_of_bounds for item in found.items)
    assert [tensor.name for tensor in found.tensors] == ["0.bias", "0.out", "0.taps"] and found.tensor_count == 3


@pytest.mark.parametrize("loses", [0, 1])
def test_a_tensor_or_a_checkpoint_that_one_run_lacks_is_counted(run: Run, loses: int) -> None:
    import torch

    runs = [run(NATIVE), run(NATIVE)]
    path = runs[loses].checkpoint_path
    held = torch.load(path, weights_only=True)
    del held["adapter"]["0.bias"]
    torch.save(held, path)
    found = explain(runs[0].run_dir, runs[1].run_dir)
    assert found.differ and found.headline == "the runs differ; 1 of 3 tensors, 16 values"
    path.unlink()
    found = explain(runs[0].run_dir, runs[1].run_dir)
    assert found.differ and found.headline == "the runs differ; 3 of 3 tensors, 208 values"


def test_why_a_run_failed_is_told_with_what_cannot_be_read(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    good, failed = run(NATIVE), run(NATIVE)
    for evidence in (good, failed):
        evidence.path_of("trace").unlink()
    edit_json(failed.path_of("status"), lambda status: status.update(status="failed", root_cause="oom: no memory"))
    assert main([str(good.run_dir), str(good.run_dir)]) == 2
    assert "trace.jsonl" in (error := capsys.readouterr().err) and "None" not in error
    assert main([str(failed.run_dir), str(failed.run_dir)]) == 2
    assert "trace.jsonl" in (error := capsys.readouterr().err) and "oom: no memory" in error


# A run and a baseline.


@pytest.fixture
def baseline(run: Run, tmp_path: Path) -> Path:
    """The recording of a native run."""
    store = Store(tmp_path / "baselines")
    record(run(NATIVE), run(NATIVE), store, reason="for a test", code=CODE, environment={})
    (path,) = store.paths()
    return path


def test_what_a_gate_would_pass_is_the_recorded_result(run: Run, baseline: Path) -> None:
    """A norm on the way is no criterion: it says where a difference begins, and is none."""
    one = run(NATIVE)

    def edit(lines: list[dict[str, Any]]) -> None:
        norms = lines[4]["grad"]
        norms["0.out"] = math.nextafter(float.fromhex(norms["0.out"]), 9).hex()

    edit_steps(one.run_dir, edit)
    found = explain(one.run_dir, baseline)
    assert not found.differ and found.where is None and found.cause == ""
    assert found.headline == "the recorded result, as far as the exact part goes"


def test_the_recorded_result_of_another_key_is_a_difference(run: Run, baseline: Path) -> None:
    found = explain(run(NATIVE.with_(model="other")).run_dir, baseline)
    assert found.differ and found.where is None
    assert found.notes == ["the keys differ (model_digest): a gate would not compare these two"]
    found = explain(run(NATIVE.with_(model="other", noise=1e-3)).run_dir, baseline)
    assert found.headline == "not the recorded result" and found.cause.startswith("the models differ; the losses agree")


@pytest.mark.parametrize("run_first", [True, False])
def test_a_run_is_a_and_a_baseline_b_and_that_is_said_where_they_came_otherwise(
    run: Run, baseline: Path, run_first: bool
) -> None:
    one = run(NATIVE.with_(rate_factor=1.01)).run_dir
    found = explain(*((one, baseline) if run_first else (baseline, one)))
    assert found.kind == "run and baseline" and "for a test" in found.b and found.differ
    assert found.notes[0].startswith("the loss differs at every step from step 2 on")
    assert "good to a factor of 2.6: 3 differ" in found.notes[1]
    assert found.notes[2:] == ([] if run_first else ["A is the run here, B the baseline, whatever their order was"])


def test_tensors_are_estimated_apart_where_they_are_and_on_both_sides(run: Run, baseline: Path, tmp_path: Path) -> None:
    import torch

    def changed(edit: Callable[[dict[str, Any]], object]) -> RunEvidence:
        evidence = run(NATIVE)
        held = torch.load(evidence.checkpoint_path, weights_only=True)
        edit(held["adapter"])
        torch.save(held, evidence.checkpoint_path)
        return evidence

    moved = changed(lambda tensors: tensors["0.out"].mul_(1.5)).run_dir
    assert [note for note in explain(moved, baseline).notes if note.endswith(": 1 differ")]
    more = changed(lambda tensors: tensors.update({"0.more": tensors["0.out"] * 2})).run_dir
    assert not [note for note in explain(more, baseline).notes if "sketches" in note]


def test_a_run_and_a_baseline_in_either_order(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = Store(tmp_path / "baselines")
    record(run(TOY), run(TOY), store, reason="for a test", code=CODE, environment={})
    (path,) = map(str, store.paths())
    same, other = str(run(TOY).run_dir), str(run(TOY.with_(rate_factor=1.01)).run_dir)
    assert main([same, path]) == 0 and "the recorded result" in lines_of(capsys)
    for pair in ([other, path], [path, other]):
        assert main(pair) == 1
        text = lines_of(capsys)
        assert "step 1 of 6, phase optimizer" in text and "of its change (allowed 1e-09)" in text
        assert "estimates from sketches" in text and "for a test" in text
    seeded = str(run(TOY.with_(seed=1)).run_dir)
    assert main([seeded, path, "--json"]) == 1
    assert "the keys differ (settings_digest)" in json.loads(capsys.readouterr().out)["notes"][0]


# Two checkpoints.


def save(path: Path, tensors: dict[str, Any], **more: Any) -> Path:
    import torch

    torch.save({"adapter": {name: torch.as_tensor(value) for name, value in tensors.items()}, "meta": more}, path)
    return path


def test_one_ulp_in_two_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(0).standard_normal((700, 800)).astype(np.float32)
    moved = values.copy()
    moved[401, 17] = np.nextafter(moved[401, 17], np.float32(9))
    a = save(tmp_path / "a.pt", {"x": values, "y": values})
    b = save(tmp_path / "b.pt", {"x": values, "y": moved})
    assert main([str(a), str(a)]) == 0
    capsys.readouterr()
    assert main([str(a), str(b)]) == 1
    text = lines_of(capsys)
    assert "1 of 2 tensors, 1 values" in text and "[401, 17] = 320817" in text
    assert "one tensor only, y: one value by one ULP" in text
    assert f"{values[401, 17]:.9g}" in text and f"{moved[401, 17]:.9g}" in text


def test_nan_equals_nothing_and_has_no_distance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = save(tmp_path / "a.pt", {"x": np.array([1.0, math.nan], np.float32)})
    assert main([str(a), str(a)]) == 1
    assert "not finite" in lines_of(capsys)
    assert main([str(a), str(a), "--json"]) == 1
    (tensor,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["tensors"]
    assert tensor["differing"] == 1 and tensor["absolute"] == "nan" and tensor["ulps"] is None


def test_other_tensors_shapes_and_dtypes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.ones((2, 3), np.float32)
    a = save(tmp_path / "a.pt", {"x": x})
    for name, tensors, words in (
        ("b", {"x": x, "z": x}, "z is on one side only"),
        ("c", {"x": x.T.copy()}, "x is float32 2x3 and float32 3x2"),
        ("d", {"x": x.astype(np.float64)}, "x is float32 2x3 and float64 2x3"),
        ("e", {"x": x + 1}, "far more than rounding"),
        ("f", {"x": x * np.float32(1 + 3e-7)}, "the size of float32 rounding"),
    ):
        assert main([str(a), str(save(tmp_path / f"{name}.pt", tensors))]) == 1
        assert words in lines_of(capsys)


@pytest.mark.parametrize("other", [None, {"x": np.zeros(2, np.float32)}])
def test_tensors_are_counted_on_both_sides(tmp_path: Path, other: dict[str, Any] | None) -> None:
    both = {"x": np.ones(2, np.float32), "y": np.ones(2, np.float32)}
    a, b = save(tmp_path / "a.pt", both), save(tmp_path / "b.pt", other or {"x": both["x"]})
    for pair in ((a, b), (b, a)):
        found = explain(*pair)
        count = 2 if other else 1
        assert found.headline == f"the checkpoints differ: {count} of 2 tensors, {2 * count} values"
        assert found.cause.startswith("y is on one side only")


def cause(a: Any, b: Any, *, equal: int = 0) -> str:
    """What is said of one tensor with these values, or of several, beside `equal` others."""
    tensors = [a, b] if isinstance(a, dict) else [{"x": a}, {"x": b}]
    more = {f"same{n}": np.ones(3, np.float32) for n in range(equal)}
    stored = [in_memory({**{name: np.asarray(value) for name, value in side.items()}, **more}) for side in tensors]
    found = compare_tensors(*stored)
    return explain_module._tensor_cause(found, len(set(stored[0]) | set(stored[1])))


ONE = np.float32(1)
UP = np.nextafter(ONE, np.float32(2))
ONE_ULP = "one value by one ULP: it lies on a rounding boundary, or somebody changed it"
ROUNDING = "the size of float32 rounding: other kernels, threads or libraries computed the same thing"
FAR = "far more than rounding: another computation, other data, or another seed"


def test_one_value_by_one_ulp_is_that_and_no_other() -> None:
    ones = np.ones(4, np.float32)
    assert cause([ONE, ONE], [ONE, UP]) == ONE_ULP
    assert cause([ONE, ONE], [UP, UP]) == ROUNDING, "two values"
    assert cause([ONE, ONE], [ONE, np.nextafter(UP, ONE + 1)]) == ROUNDING, "two ULP"
    assert cause({"x": ones, "y": ones}, {"x": [*ones[1:], UP], "y": [*ones[1:], UP]}) == ROUNDING
    assert cause(np.array([0.0, 1.0]), np.array([-0.0, 1.0])) == ONE_ULP
    assert cause([1000, 1000], [1000, 1001]) == FAR, "of whole numbers there is no ULP"


def test_that_it_is_one_tensor_of_several_is_said() -> None:
    for equal in (1, 2):
        assert cause([ONE, ONE], [ONE, UP], equal=equal) == f"one tensor only, x: {ONE_ULP}"
        assert cause([ONE, ONE], [UP, UP], equal=equal) == f"one tensor only, x: {ROUNDING}"
        assert cause([ONE], [ONE + 1], equal=equal) == f"one tensor only, x: {FAR}"
    two = {"x": [ONE], "y": [ONE]}, {"x": [ONE + 1], "y": [ONE + 1]}
    assert cause(*two) == cause(*two, equal=1) == FAR


def test_up_to_which_size_a_difference_is_rounding() -> None:
    (found,) = compare_tensors(in_memory({"x": np.ones(2)}), in_memory({"x": np.full(2, 1.5)}))
    for relative, said in ((1e-5, ROUNDING), (math.nextafter(1e-5, 1), FAR), (1e-6, ROUNDING), (0.5, FAR)):
        near = dataclasses.replace(found, relative=relative)
        assert explain_module._tensor_cause([near], 1) == said
        # The farthest tensor counts.
        small = dataclasses.replace(found, relative=1e-9)
        assert explain_module._tensor_cause([small, near], 2) == explain_module._tensor_cause([near, small], 2) == said


def test_one_tensor_that_is_not_finite_is_said_before_all_others() -> None:
    nan = {"x": [ONE], "y": np.array([math.nan], np.float32)}
    assert cause(nan, {"x": [ONE + 1], "y": [ONE]}) == "a value is not finite"
    assert cause(nan, {"x": [ONE + 1]}).startswith("y is on one side only")


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/exploded-by-explain"),))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import zipfile

    good = save(tmp_path / "good.pt", {"x": np.ones(3, np.float32)})
    bad = tmp_path / "bad.pt"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w", zipfile.ZIP_STORED) as target:
        for info in source.infolist():
            data = pickle.dumps({"adapter": {"x": Bomb()}, "meta": {}}, 2) if "data.pkl" in info.filename else None
            target.writestr(info.filename, data if data is not None else source.read(info))
    assert main([str(good), str(bad)]) == 2
    assert "found no tensor" in capsys.readouterr().err
    assert not Path("/tmp/exploded-by-explain").exists()


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
def test_damaged_checkpoints_are_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: float
) -> None:
    good = save(tmp_path / "good.pt", {"x": np.ones(3000, np.float32)})
    bad = tmp_path / "bad.pt"
    bad.write_bytes(good.read_bytes()[: int(cut * good.stat().st_size)])
    assert main([str(good), str(bad)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("explain: ") and error.count("\n") == 1 and "bad.pt" in error


# Usage.


def test_what_cannot_be_compared_is_exit_code_2(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save(tmp_path / "a.pt", {"x": np.ones(3, np.float32)})
    one = run(TOY).run_dir
    other = run(TOY).run_dir
    edit_steps(other, lambda lines: lines.clear())
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for pair, words in (
        ((checkpoint, one), "is a checkpoint"),
        ((tmp_path / "nothing", one), "there is no such file"),
        ((one, tmp_path / "empty"), "trace.jsonl"),
        ((one, other), "trace.jsonl"),
        ((one, tmp_path / "b.json"), "no valid baseline"),
        ((tmp_path / "b.json", tmp_path / "b.json"), "give two runs"),
    ):
        assert main([str(pair[0]), str(pair[1])]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert main(["x" * 5000, str(one)]) == 2, "a name that no file can have"
    assert capsys.readouterr().err.startswith("explain: ")
    with pytest.raises(EvidenceError):
        explain(checkpoint, one)
    with pytest.raises(SystemExit) as caught:
        main(["one"])
    assert caught.value.code == 2


@pytest.mark.benchmark
def test_two_checkpoints_of_50_mb_that_differ_by_one_ulp(tmp_path: Path) -> None:
    """The bar: 2 s, with bounded memory."""
    random = np.random.default_rng(0)
    tensors = {f"layer{n}": random.standard_normal((1024, 1024)).astype(np.float32) for n in range(12)}
    a = save(tmp_path / "a.pt", tensors)
    moved = tensors["layer7"].copy()
    moved[3, 5] = np.nextafter(moved[3, 5], np.float32(9))
    b = save(tmp_path / "b.pt", tensors | {"layer7": moved})
    program = (
        "import sys, pathlib; from harness.baselines.explain import main; code = main(sys.argv[1:])\n"
        "print(pathlib.Path('/proc/self/status').read_text(), file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", program]
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([*command, str(a), str(b)], capture_output=True, text=True, check=False)
        best = min(best, time.perf_counter() - start)
    assert done.returncode == 1 and "[3, 5] = 3077" in done.stdout
    (peak,) = (line.split()[1] for line in done.stderr.splitlines() if line.startswith("VmHWM"))
    size = a.stat().st_size / 1e6
    print(f"explain, two checkpoints of {size:.0f} MB: {best:.2f} s (bar 2 s), peak {int(peak) / 1024:.0f} MB")

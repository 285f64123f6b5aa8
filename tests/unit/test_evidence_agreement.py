"""What the files of one run must say of each other: true of a whole run, red for each way in which it can be false."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from run_directory import edit_trace, write_run

from harness.evidence import (
    EvidenceError,
    NotApplicable,
    RunEvidence,
    Status,
    Trace,
    checkpoint_agrees,
    end_agrees,
    finite_loss,
    load_run,
    loss_agrees,
    one_run_id,
    rounding_agrees,
    tokens_agree,
)
from harness.evidence.formats import Tensor

Values = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunEvidence:
    return load_run(write_run(tmp_path_factory.mktemp("runs") / "run"))


def test_a_whole_run_agrees(run: RunEvidence) -> None:
    assert loss_agrees(run.status, run.report, run.trace) == finite_loss(run.status.loss) == run.trace.end.loss
    assert len(run.run_ids()) == 6 and one_run_id(run.run_ids()) == run.status.run_id
    assert checkpoint_agrees(run.checkpoint, run.checkpoint_sidecar, run.status) == run.status.checkpoint_tensor_digest
    assert tokens_agree(run.tokens, run.trace) == run.tokens_digest()
    assert run.checkpoint_float64 is not None
    rounding_agrees(run.checkpoint, run.checkpoint_float64)
    end_agrees(run.checkpoint, run.trace)


@pytest.mark.parametrize(
    "loss", [None, True, False, "2.5", "nan", "0x1p0", [2.5], {}, float("nan"), float("inf"), -float("inf")]
)
def test_a_loss_that_is_no_finite_number(run: RunEvidence, loss: object) -> None:
    with pytest.raises(EvidenceError, match=r"train_status\.json: loss: found .*, expected a finite number"):
        finite_loss(loss)
    with pytest.raises(EvidenceError):
        loss_agrees(structs.replace(run.status, loss=loss), run.report, run.trace)


def test_a_loss_that_is_missing(run: RunEvidence) -> None:
    with pytest.raises(NotApplicable, match="status has no loss"):
        loss_agrees(Status(status="completed", run_id="r"), run.report, run.trace)


def test_a_loss_may_be_a_whole_number_or_zero() -> None:
    assert finite_loss(2) == 2.0 and finite_loss(0.0) == 0.0


def changed(trace: Trace, **parts: Any) -> Trace:
    """The trace with other steps, or with another part; without it, where that is None."""
    other = Trace(trace.path)
    other.steps = parts.get("steps", trace.steps)
    for part in ("header", "tokens", "start", "end"):
        if (value := parts.get(part, getattr(trace, part)) if part in parts or trace.has(part) else None) is not None:
            setattr(other, part, value)
    return other


@pytest.mark.parametrize("text", ["none", "nan", "true", "2.5", "", "1_0", "inf", " 2.5", "9" * 400])
def test_a_report_with_another_loss(run: RunEvidence, text: str) -> None:
    with pytest.raises(EvidenceError, match=r"train_report\.txt: loss"):
        loss_agrees(run.status, {**run.report, "loss": text}, run.trace)


def test_a_report_without_a_loss(run: RunEvidence) -> None:
    with pytest.raises(EvidenceError, match=r"train_report\.txt: loss"):
        loss_agrees(run.status, {"lane": "experimental"}, run.trace)


def test_a_report_may_write_the_loss_as_hex(run: RunEvidence) -> None:
    assert loss_agrees(run.status, {**run.report, "loss": run.status.loss.hex()}, run.trace) == run.status.loss


def test_a_report_may_write_a_loss_with_forty_characters_and_no_more(run: RunEvidence) -> None:
    text = repr(run.status.loss).ljust(40, "0")
    assert loss_agrees(run.status, {**run.report, "loss": text}, run.trace) == run.status.loss
    with pytest.raises(EvidenceError, match=r"train_report\.txt: loss"):
        loss_agrees(run.status, {**run.report, "loss": text + "0"}, run.trace)


@pytest.mark.parametrize("where", ["end", "last step"])
@pytest.mark.parametrize("change", [lambda loss: np.nextafter(loss, 9.0).item(), lambda loss: float("nan")])
def test_a_trace_with_another_loss(run: RunEvidence, where: str, change: Callable[[float], float]) -> None:
    end, last = (structs.replace(part, loss=change(part.loss)) for part in (run.trace.end, run.trace.steps[-1]))
    parts: Values = {"end": end} if where == "end" else {"steps": [*run.trace.steps[:-1], last]}
    with pytest.raises(EvidenceError, match=r"trace\.jsonl"):
        loss_agrees(run.status, run.report, changed(run.trace, **parts))


def test_a_trace_of_nothing(run: RunEvidence) -> None:
    for trace in (changed(run.trace, steps=[]), changed(run.trace, end=None)):
        with pytest.raises(EvidenceError, match="expected a whole trace"):
            loss_agrees(run.status, run.report, trace)
    with pytest.raises(EvidenceError, match="expected a whole trace"):
        end_agrees(run.checkpoint, changed(run.trace, end=None))


def test_run_ids_that_differ() -> None:
    with pytest.raises(EvidenceError, match=r"b: run_id: found text 'y', expected text 'x' of a"):
        one_run_id({"a": "x", "b": "y"})
    with pytest.raises(EvidenceError, match="no file with a run id"):
        one_run_id({})


@pytest.mark.parametrize(
    ("sidecar", "status"),
    [
        ({"sha256": "0" * 64}, {}),
        ({"bytes": 1}, {}),
        ({"tensor_digest": "0" * 64}, {}),
        ({}, {"checkpoint_sha256": None}),
        ({}, {"checkpoint_sha256": "0" * 64}),
        ({}, {"checkpoint_tensor_digest": "0" * 64}),
        ({"tensors": {}}, {}),
        ({"tensors": {"0.gate": Tensor("float32", [4])}}, {}),
    ],
)
def test_a_checkpoint_that_is_not_what_it_is_said_to_be(run: RunEvidence, sidecar: Values, status: Values) -> None:
    with pytest.raises(EvidenceError, match=r"\.pt: .*, as "):
        said = structs.replace(run.checkpoint_sidecar, **sidecar), structs.replace(run.status, **status)
        checkpoint_agrees(run.checkpoint, *said)


@pytest.mark.parametrize("entry", [Tensor("float64", [8, 3]), Tensor("float32", [3, 8])])
def test_a_tensor_that_is_not_what_it_is_said_to_be(run: RunEvidence, entry: Tensor) -> None:
    tensors = {**run.checkpoint_sidecar.tensors, "0.taps": entry}
    sidecar = structs.replace(run.checkpoint_sidecar, tensors=tensors)
    with pytest.raises(EvidenceError, match=r"0\.taps: found \('float32', \[8, 3\]\), expected"):
        checkpoint_agrees(run.checkpoint, sidecar, run.status)


def test_a_checkpoint_that_is_not_the_rounding(run: RunEvidence) -> None:
    before = run.checkpoint_float64
    assert before is not None
    moved = {name: value.copy() for name, value in before.tensors.items()}
    moved["0.taps"][2, 1] *= 1 + 2e-7
    with pytest.raises(EvidenceError, match=r"0\.taps at 7: found .* rounded to float32"):
        rounding_agrees(run.checkpoint, replace(before, tensors=moved))
    with pytest.raises(EvidenceError, match="expected float32 from float64"):
        rounding_agrees(run.checkpoint, run.checkpoint)
    with pytest.raises(EvidenceError, match=r"0\.taps: found an additional tensor"):
        rounding_agrees(run.checkpoint, replace(before, tensors={"0.gate": before.tensors["0.gate"]}))


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda lines: lines[1].update(tokens_digest="0" * 64), "digest: found"),
        (lambda lines: lines[1]["chunks"][2].update(digest="0" * 16), "chunk 2: found"),
        (lambda lines: lines[1].update(shape=[3, 2, 6]), "shape: found"),
        (lambda lines: lines[4].update(batch_digest="0" * 16), "batch of step 2: found"),
        (lambda lines: lines[4]["chunks"].reverse(), "batch of step 2: found"),
    ],
)
def test_tokens_that_are_not_the_traces(tmp_path: Path, edit: Callable[[list[Values]], object], found: str) -> None:
    run_dir = write_run(tmp_path / "run", checkpoint=False)
    edit_trace(run_dir / "trace.jsonl", edit)
    run = load_run(run_dir)
    with pytest.raises(EvidenceError, match=found):
        tokens_agree(run.tokens, run.trace)


def changed_end(trace: Trace, **parts: Values) -> Trace:
    values = {key: {**getattr(trace.end, key), **value} for key, value in parts.items()}
    return changed(trace, end=structs.replace(trace.end, **values))


def test_an_end_that_is_not_the_checkpoints(run: RunEvidence) -> None:
    norm, projections = run.trace.end.param["0.taps"], run.trace.end.sketch["0.taps"]
    end_agrees(run.checkpoint, changed_end(run.trace, param={"0.taps": norm * (1 + 1e-7)}))
    for wrong in (norm * (1 + 1e-5), float("nan"), float("inf")):
        with pytest.raises(EvidenceError, match=r"0\.taps: norm: found"):
            end_agrees(run.checkpoint, changed_end(run.trace, param={"0.taps": wrong}))
    for other in (projections[::-1], [float("nan")] * 16, []):
        with pytest.raises(EvidenceError, match=r"0\.taps: sketch: found"):
            end_agrees(run.checkpoint, changed_end(run.trace, sketch={"0.taps": other}))
    with pytest.raises(EvidenceError, match="more: found no such tensor"):
        end_agrees(run.checkpoint, changed_end(run.trace, param={"more": 1.0}))


def test_an_end_without_sketches_is_held_against_the_norm_of_each_tensor(run: RunEvidence) -> None:
    bare = changed(run.trace, end=structs.replace(run.trace.end, sketch={}))
    end_agrees(run.checkpoint, bare)
    for name, norm in run.trace.end.param.items():
        wrong = changed_end(bare, param={name: 2 * norm})
        with pytest.raises(EvidenceError, match=f"{name}: norm: found"):
            end_agrees(run.checkpoint, wrong)


def test_a_tensor_of_zeros_agrees_with_zeros_and_nothing_else(run: RunEvidence) -> None:
    zeros = {name: np.zeros_like(value) for name, value in run.checkpoint.tensors.items()}
    checkpoint = replace(run.checkpoint, tensors=zeros)
    trace = changed_end(run.trace, param=dict.fromkeys(zeros, 0.0), sketch={name: [0.0] * 16 for name in zeros})
    end_agrees(checkpoint, trace)
    with pytest.raises(EvidenceError, match=r"0\.taps: norm: found"):
        end_agrees(checkpoint, changed_end(trace, param={"0.taps": 1e-30}))
    with pytest.raises(EvidenceError, match=r"0\.taps: sketch: found"):
        end_agrees(checkpoint, changed_end(trace, sketch={"0.taps": [1e-30] * 16}))

"""Gates that need nothing of a lane's inside: what it left, and what it leaves when it runs again.

A gate whose evidence the lane does not give is skipped as not applicable, with the reason. Three of them run the lane
again, as often as `--lane-runs` or the table allows: `lane_again` as it is, `lane_other_audio` with other audio under
the same names, `lane_same_audio` with the same audio under other names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.baselines.checkpoints import TensorDifference, compare_tensors, in_memory
from harness.evidence import NotApplicable, RunEvidence, finite_loss
from harness.gates.training import Measured
from harness.numerics.digest import file_sha256

pytestmark = pytest.mark.smoke

Rerun = Callable[[], RunEvidence]


def test_lane_completes(lane_run: RunEvidence, measured: Measured) -> None:
    """The lane ends with exit code 0, and with what its table calls completed."""
    # A lane that says otherwise in its status, or by its exit code, has failed every gate before it gets here.
    assert lane_run.failure() is None, lane_run.failure()
    measured(f"{lane_run.record.ended}, {lane_run.record.seconds:.1f} s")
    assert lane_run.status.status == "completed"


def test_artifacts_are_of_this_run(lane_run: RunEvidence, measured: Measured) -> None:
    """The run left everything that its table names, and wrote each file itself."""
    outputs = lane_run.record.outputs
    measured(f"{sum(o.written for o in outputs.values())} of {len(outputs)} files written")
    missing = [f"{o.path}: found {o.found}, expected the run's {what}" for what, o in outputs.items() if not o.copy]
    assert not missing, "the run did not leave what its table names:\n" + "\n".join(missing)
    stale = [f"{o.path} ({what})" for what, o in outputs.items() if not o.written]
    assert not stale, (
        f"stale: {', '.join(stale)} lay there before the run that started at {lane_run.record.started_at}, and it "
        "did not write it: what it says is of another run"
    )
    ids = lane_run.run_ids()
    assert len(set(ids.values())) <= 1, f"stale: the files carry other run ids: {ids}"


def test_report_status_and_files_agree(lane_run: RunEvidence, measured: Measured) -> None:
    """What report, status and files say of each other is true."""
    compared, problems = agreement(lane_run)
    measured(f"{compared} statements compared")
    assert not problems, "report, status and files do not agree:\n" + "\n".join(problems)
    if not compared:
        raise NotApplicable("the lane's report and status say nothing that another of its files says too")


def test_last_loss_is_finite(lane_run: RunEvidence, measured: Measured) -> None:
    """The last loss is a finite number."""
    measured(f"{finite_loss(loss_of(lane_run)):.6g}")


def test_loss_is_below_that_of_a_uniform_guess(lane_run: RunEvidence, measured: Measured) -> None:
    """The last loss is below that of a guess that knows nothing."""
    loss = loss_of(lane_run)
    vocabulary = lane_run.record.vocabulary
    if vocabulary is None:
        raise NotApplicable(f"the table of lane {lane_run.name} gives no vocabulary")
    bound = math.log(vocabulary)
    measured(f"{loss}; a guess has {bound:.4f}")
    assert isinstance(loss, int | float) and loss < bound, (
        f"the loss is {loss}, and a guess that knows nothing has ln({vocabulary}) = {bound:.4f}: the lane trains on "
        "the wrong thing (targets that are random, shifted, or of other data)"
    )


def test_manifest_says_what_is_on_the_disk(lane_run: RunEvidence, measured: Measured) -> None:
    """The manifest lists the audio as it lay on the disk when the run had ended."""
    problems = lane_run.manifest_problems()
    measured(f"files: {lane_run.dataset_files()}")
    assert not problems, "\n".join(problems)


def test_second_run_gives_the_same(lane_run: RunEvidence, lane_again: Rerun, measured: Measured) -> None:
    """A second run, at once, gives the same checkpoint and loss, to the bit."""
    lane_run.checkpoint_path  # noqa: B018 - not applicable before anything is run
    again = lane_again()
    assert again.failure() is None, f"the second run failed, and the first did not: {again.failure()}"
    written_by(again)
    differing = differences(lane_run, again)
    count = len(lane_run.checkpoint.tensors)
    measured(f"{len(differing)} of {count} tensors differ")
    unlike = lane_run.record.unlike_further if lane_run.is_recorded else ""
    cause = "something draws without a seed, or depends on time, on order, or on the run directory's path"
    why = f"of this run, {unlike}" if unlike else cause
    assert not differing, (
        f"{'not repeated' if unlike else 'nondeterministic'}: a second run, at once, gave another checkpoint: "
        f"{len(differing)} of {count} tensors differ, {named(differing)}; {why}"
    )
    losses = [run.status.get("loss") for run in (lane_run, again)]
    assert losses[0] == losses[1], (
        f"nondeterministic: the checkpoints agree, the losses are {losses[0]} and {losses[1]}"
    )


def test_checkpoint_is_not_the_initial_one(lane_run: RunEvidence, measured: Measured) -> None:
    """The checkpoint is another than the one that training started from."""
    first, last = lane_run.initial_checkpoint, lane_run.checkpoint
    measured(f"digest {first.tensor_digest[:12]} before, {last.tensor_digest[:12]} after")
    assert last.tensor_digest != first.tensor_digest, (
        f"{lane_run.output('checkpoint').path} holds what training started from, value for value: nothing "
        "was trained, or something else was written"
    )


def test_every_tensor_moved(lane_run: RunEvidence, measured: Measured) -> None:
    """The training moved every tensor."""
    first, last = lane_run.initial_checkpoint.tensors, lane_run.checkpoint.tensors
    assert set(first) == set(last), f"other tensors than in the initial checkpoint: {sorted(set(first) ^ set(last))}"
    still = [name for name, value in first.items() if np.array_equal(value, last[name], equal_nan=True)]
    measured(f"{len(first) - len(still)} of {len(first)} tensors moved")
    assert not still, f"not moved by the training: {', '.join(still)}"


def test_checkpoint_depends_on_the_audio(
    lane_run: RunEvidence, lane_again: Rerun, lane_other_audio: Rerun, measured: Measured
) -> None:
    """With other audio, or other data, under the same names the lane gives another checkpoint."""
    lane_run.checkpoint_path  # noqa: B018 - not applicable before anything is run
    if differences(lane_run, lane_again()):
        raise NotApplicable("two runs on the same data differ already, so that data cannot be told from chance")
    other = lane_other_audio()
    assert other.failure() is None, f"with other data the lane fails: {other.failure()}"
    written_by(other)
    measured(f"{len(differences(lane_run, other))} of {len(lane_run.checkpoint.tensors)} tensors differ")
    assert other.checkpoint.tensor_digest != lane_run.checkpoint.tensor_digest, (
        "blind to its data: with other data (audio backwards, its first half softer; items backwards, every second "
        "line left out) the lane gives the same checkpoint, value for value: it does not train on what it is given"
    )


def test_checkpoint_does_not_depend_on_names_and_times(
    lane_run: RunEvidence, lane_again: Rerun, lane_same_audio: Rerun, measured: Measured
) -> None:
    """The same audio or data under other names, in another order and with other times, gives the same checkpoint."""
    lane_run.checkpoint_path  # noqa: B018 - not applicable before anything is run
    if differences(lane_run, lane_again()):
        raise NotApplicable("two runs on the same data differ already, so that names cannot be told from chance")
    other = lane_same_audio()
    assert other.failure() is None, f"with the same data under other names the lane fails: {other.failure()}"
    written_by(other)
    differing = differences(lane_run, other)
    measured(f"{len(differing)} of {len(lane_run.checkpoint.tensors)} tensors differ")
    assert not differing, (
        "the same data under other names, in the opposite order and with other times, gives another checkpoint: "
        f"{named(differing)}; the lane orders its data, or draws, by names or times (order it by what the files hold)"
    )


def loss_of(run: RunEvidence) -> Any:
    """The last loss, from the status or else the report. Raises NotApplicable where neither gives one."""
    if (loss := run.status.get("loss")) is not None:
        return loss
    try:
        text = run.report["loss"]
    except NotApplicable:
        raise NotApplicable(f"the lane {run.name} gives no loss in its status or report") from None
    try:
        return float(text)
    except ValueError:
        return text


def written_by(run: RunEvidence) -> None:
    """A run that did not write its checkpoint says nothing about it."""
    output = run.output("checkpoint")
    assert output.copy and output.written, f"this run did not write {output.path}, so that nothing is compared"


def differences(one: RunEvidence, other: RunEvidence) -> list[TensorDifference]:
    """The tensors in which two checkpoints differ."""
    if one.checkpoint.tensor_digest == other.checkpoint.tensor_digest:
        return []
    return compare_tensors(in_memory(one.checkpoint.tensors), in_memory(other.checkpoint.tensors))


def named(differing: list[TensorDifference]) -> str:
    """The tensors, the farthest first, in a few words."""
    order = sorted(differing, key=lambda t: (-t.relative if not math.isnan(t.relative) else -math.inf, t.name))
    texts = [f"{t.name} ({t.differing} of {t.size} values, relative distance {t.relative:.1e})" for t in order[:3]]
    return ", ".join(texts) + (f" and {len(order) - 3} more" if len(order) > 3 else "")


def agreement(run: RunEvidence) -> tuple[int, list[str]]:
    """How many statements of report, status and files were compared, and a line for each pair that does not agree."""
    problems: list[str] = []
    compared = 0

    def agree(what: str, found: Any, expected: Any, who: str) -> None:
        nonlocal compared
        compared += 1
        if found != expected:
            problems.append(f"{what}: found {found!r}, expected {expected!r}, as {who}")

    report: Mapping[str, Any] = run.report if run.gives("report") else {}
    status: Mapping[str, Any] = run.own_status if run.gives("status") else {}
    if "objective_status" in report:
        agree("report: objective_status", report["objective_status"], run.status.status, "the status says")
        if report["objective_status"] == "completed":
            for key in ("first_failed_step", "root_cause"):
                agree(f"report: {key}", report.get(key, "none"), "none", "for a run that completed")
    if "training_status_json" in report and status and report["training_status_json"] != "none":
        try:
            said = json.loads(report["training_status_json"])
        except ValueError:
            said = report["training_status_json"]
        agree("report: training_status_json", said, dict(status), "the status file holds")
    loss = run.status.get("loss")
    if "loss" in report and loss is not None:
        agree("report: loss", _number(report["loss"]), loss, "the status says")
    if run.gives("checkpoint") and run.output("checkpoint").copy:
        copy = run.checkpoint_path
        path = copy if run.promises("checkpoint") else Path(run.output("checkpoint").path)
        digest = None
        if copy.is_dir():
            sha256, size = run.checkpoint.sha256, run.checkpoint.bytes
        else:
            sha256, size = file_sha256(copy), copy.stat().st_size
        for where, source in (("report", report), ("status", status)):
            if "checkpoint_sha256" in source:
                agree(f"{where}: checkpoint_sha256", source["checkpoint_sha256"], sha256, "the file gives")
            if "checkpoint_tensor_digest" in source:
                digest = digest or run.checkpoint.tensor_digest
                agree(
                    f"{where}: checkpoint_tensor_digest", source["checkpoint_tensor_digest"], digest, "the file gives"
                )
            if "checkpoint_size_bytes" in source:
                agree(
                    f"{where}: checkpoint_size_bytes", str(source["checkpoint_size_bytes"]), str(size), "the file has"
                )
            if "checkpoint_exists" in source:
                agree(f"{where}: checkpoint_exists", str(source["checkpoint_exists"]).lower(), "true", "it does")
            if "checkpoint_path" in source:
                agree(
                    f"{where}: checkpoint_path", Path(str(source["checkpoint_path"])).name, path.name, "the table says"
                )
    if run.gives("manifest") and run.output("manifest").copy:
        count = str(run.dataset_files())
        if "manifest_entry_count" in report and not run.manifest_problems():
            agree("report: manifest_entry_count", report["manifest_entry_count"], count, "the manifest has")
        if "manifest_exists" in report:
            agree("report: manifest_exists", report["manifest_exists"].lower(), "true", "it does")
    digest = run.record.data.digest
    traced: Mapping[str, Any] = {}
    if run.gives("trace"):
        traced = {"dataset_digest": run.trace.header.dataset_digest}
    if traced and loss is not None:
        agree("trace: the loss of the last step", run.trace.end.loss, loss, "the status says")
    for where, source in (("report", report), ("status", status), ("trace", traced)):
        if digest and source.get("dataset_digest", "none") not in ("none", None):
            agree(f"{where}: dataset_digest", source["dataset_digest"], digest, "the files give")
    return compared, problems


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


__all__ = [name for name in list(globals()) if name.startswith("test_")] + ["pytestmark"]

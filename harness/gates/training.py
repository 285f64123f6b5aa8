"""The gates on what the voice lane writes: each one requirement on the evidence of the session's one run.

A lane of another project that gives the same evidence (a trace) is held to the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from harness.evidence import (
    NotApplicable,
    RunEvidence,
    check_report_keys,
    checkpoint_agrees,
    end_agrees,
    finite_loss,
    loss_agrees,
    one_run_id,
    rounding_agrees,
    tokens_agree,
)
from harness.evidence.errors import mismatch
from harness.evidence.trace import HeldOut
from harness.numerics.digest import tensor_digest

pytestmark = pytest.mark.smoke

Measured = Callable[[str], None]  # the plugin's fixture: what a gate found, for the page

# How far the loss on the first batch must fall from before to after the training, in nats; see docs/lane.md.
LOSS_MARGIN = 0.05
HELD_OUT_MARGIN = 0.04
SMOOTHING = 0.9  # of the smoothed loss: what each step keeps


def test_report_has_the_twenty_keys_in_order(lane_run: RunEvidence, measured: Measured) -> None:
    """The report has the contract's twenty keys, then the lane's own, in their order."""
    measured(f"{len(lane_run.report)} keys")
    check_report_keys(lane_run.report, lane_run.path_of("report"), lane_run.report_keys)


def test_objective_status_is_completed(lane_run: RunEvidence, measured: Measured) -> None:
    """The report says that the run completed."""
    found = lane_run.report["objective_status"]
    measured(found)
    assert found == "completed", f"the report says objective_status: {found}"


def test_first_failed_step_is_none(lane_run: RunEvidence, measured: Measured) -> None:
    """The report names no step that failed."""
    found = lane_run.report["first_failed_step"]
    measured(found)
    assert found == "none", f"the report says first_failed_step: {found}"


def test_root_cause_is_none(lane_run: RunEvidence, measured: Measured) -> None:
    """The report names no cause of a failure."""
    found = lane_run.report["root_cause"]
    measured(found)
    assert found == "none", f"the report says root_cause: {found}"


def test_status_file_is_valid_and_completed(lane_run: RunEvidence, measured: Measured) -> None:
    """The status says that all steps that were asked for are done, and the trace has each of them."""
    status = lane_run.status
    assert status.status == "completed", f"the status is {status.status}: {status.root_cause}"
    asked, traced = lane_run.trace.header.steps, len(lane_run.trace.steps)
    counts = f"{status.steps_done} of {status.steps_total} steps; the trace has {traced} of {asked}"
    measured(counts)
    assert status.steps_done == status.steps_total == asked == traced, f"the status says {counts}"


def test_loss_is_finite(lane_run: RunEvidence, measured: Measured) -> None:
    """The last loss is a finite number, and so is the loss of every step."""
    loss = finite_loss(lane_run.status.loss)
    measured(f"{loss:.6g} at the end of {len(lane_run.trace.steps)} steps")
    for step in lane_run.trace.steps:
        assert math.isfinite(step.loss), f"the loss of step {step.step} is {step.loss}"


def test_loss_is_the_same_in_status_report_and_trace(lane_run: RunEvidence, measured: Measured) -> None:
    """Status, report and trace give the same last loss, to the bit."""
    measured(repr(loss_agrees(lane_run.status, lane_run.report, lane_run.trace)))


def test_checkpoint_is_not_empty_and_finite(lane_run: RunEvidence, measured: Measured) -> None:
    """The checkpoint holds tensors, none of them empty, and finite values alone."""
    # The reader itself refuses a checkpoint that holds no tensor.
    tensors = lane_run.checkpoint.tensors
    measured(f"{len(tensors)} tensors, {sum(tensor.size for tensor in tensors.values()):,} values")
    for name, tensor in tensors.items():
        assert tensor.size, f"{name} is empty"
        bad = int(np.count_nonzero(~np.isfinite(tensor)))
        assert not bad, (
            f"{name} has {bad} of {tensor.size} values that are not finite; if it is none of the model's, leave it out "
            f"in the lane's table: tensors = {{exclude = [{json.dumps(name)}]}}"
        )


def test_checkpoint_sha_is_that_of_the_file(lane_run: RunEvidence, measured: Measured) -> None:
    """SHA-256 and tensor digest, taken from the checkpoint, are those in report, status and the .json beside it."""
    measured(f"SHA-256 {lane_run.checkpoint.sha256[:12]}, tensors {lane_run.checkpoint.tensor_digest[:12]}")
    checkpoint_agrees(lane_run.checkpoint, lane_run.checkpoint_sidecar, lane_run.status)
    found, said = lane_run.checkpoint.sha256, lane_run.report["checkpoint_sha256"]
    assert found == said, f"the checkpoint's SHA-256 is {found}, the report says {said}"
    found, said = lane_run.checkpoint.tensor_digest, lane_run.report["checkpoint_tensor_digest"]
    assert found == said, f"the checkpoint's tensor digest is {found}, the report says {said}"


def test_checkpoint_is_what_training_ended_with(lane_run: RunEvidence, measured: Measured) -> None:
    """The checkpoint's tensors are those that the trace saw at the end of the training."""
    measured(f"{len(lane_run.checkpoint.tensors)} tensors, by norm and sketch")
    end_agrees(lane_run.checkpoint, lane_run.trace)
    if lane_run.checkpoint_float64 is not None:
        rounding_agrees(lane_run.checkpoint, lane_run.checkpoint_float64)


def test_manifest_lists_what_is_on_disk(lane_run: RunEvidence, measured: Measured) -> None:
    """The manifest lists the staged files as they lie on the disk, and the data set's digest is theirs."""
    problems = lane_run.manifest_problems()
    assert not problems, "\n".join(problems)
    digest = lane_run.dataset_digest()
    measured(f"files: {lane_run.dataset_files()}, digest {digest[:12]}")
    claims = {"report": lane_run.report["dataset_digest"], "trace": lane_run.trace.header.dataset_digest}
    for where, said in claims.items():
        assert said == digest, f"the {where} says {said}, the files give {digest}"


def test_tokens_are_those_of_the_trace(lane_run: RunEvidence, measured: Measured) -> None:
    """The tokens on the disk are, by their digests, those of the trace and of the report."""
    digest = tokens_agree(lane_run.tokens, lane_run.trace)
    measured(f"{' × '.join(map(str, lane_run.tokens.shape))} tokens, digest {digest[:12]}")
    said = lane_run.report["tokens_digest"]
    assert digest == said, f"the tokens' digest is {digest}, the report says {said}"


def test_all_files_are_of_this_run(lane_run: RunEvidence, measured: Measured) -> None:
    """Every file of the run carries the run's own id: none is left from an earlier one."""
    ids = lane_run.run_ids()
    measured(f"files: {len(ids)}, ids: {len(set(ids.values()))}")
    assert len(ids) == lane_run.run_id_files, f"a run id is in {sorted(ids)} only"
    one_run_id(ids)


def test_sanitizer_replaced_nothing(lane_run: RunEvidence, measured: Measured) -> None:
    """No logit was replaced in the training because it was not finite."""
    total = lane_run.status.sanitized_logits
    measured(f"{total} replaced")
    assert total == 0, f"the status says that {total} logits were replaced"
    for step in lane_run.trace.steps:
        assert step.sanitized == 0, f"step {step.step} replaced {step.sanitized} logits"


def test_every_chunk_is_trained_on_and_in_whole_batches(lane_run: RunEvidence, measured: Measured) -> None:
    """Each chunk that is not held out is trained on once before any is again, in whole batches."""
    # The reader itself refuses a step whose batch is not whole, and a chunk that is not there.
    trace = lane_run.trace
    meant = [chunk for chunk, told in enumerate(trace.tokens.chunks) if told.use == "train"]
    used = [chunk for step in trace.steps for chunk in step.chunks]
    measured(f"{len(meant)} chunks, trained on {len(used)} times in all")
    assert meant, "no chunk is to be trained on"
    for epoch in range(len(used) // len(meant)):
        found = sorted(used[epoch * len(meant) : (epoch + 1) * len(meant)])
        assert found == meant, f"epoch {epoch}: a chunk is left out or repeated, or is not to be trained on"
    last = used[len(used) // len(meant) * len(meant) :]
    assert len(set(last)) == len(last), "the last, incomplete epoch repeats a chunk"


def held_out_of(lane_run: RunEvidence) -> tuple[HeldOut, list[tuple[int, HeldOut]]]:
    """The held-out loss before the training, and after each step at which it was measured. Raises NotApplicable where
    nothing is held out, and EvidenceError where something should be and no loss of it is in the trace."""
    trace = lane_run.trace
    before, after = trace.start.held_out, [(step.step, step.held_out) for step in trace.steps if step.held_out]
    share = (lane_run.status.settings or {}).get("holdout")
    if before is None or not after:
        if share:
            raise mismatch(trace.path, "no held-out loss", f"that of the held-out audio (LANE_HOLDOUT={share:g})")
        raise NotApplicable("nothing is held out (LANE_HOLDOUT=0)" if share == 0 else "the trace has no held-out loss")
    return before, after


def test_held_out_audio_is_never_trained_on(lane_run: RunEvidence, measured: Measured) -> None:
    """No batch holds a chunk that is held out, or one that overlaps held-out audio; the share that was asked for is
    held out."""
    held_out_of(lane_run)
    trace = lane_run.trace
    chunks, length = trace.tokens.chunks, max(1, trace.tokens.samples)
    held_out = [chunk for chunk in chunks if chunk.use == "held_out"]
    used = {number: f"step {step.step} trains on" for step in trace.steps for number in step.chunks}
    meant = {number: "to be trained on is" for number, chunk in enumerate(chunks) if chunk.use == "train"}
    for number, how in {**meant, **used}.items():
        chunk = chunks[number]
        near = [one for one in held_out if one.file == chunk.file and abs(one.start - chunk.start) < length]
        assert not near, f"{how} chunk {number}, which overlaps held-out audio"
    share = (lane_run.status.settings or {}).get("holdout") or 0.0
    found = len(held_out) / len(chunks)
    measured(f"{len(held_out)} of {len(chunks)} chunks are held out; {share:.0%} was asked for")
    assert set(trace.start.held_out_chunks) <= {n for n, c in enumerate(chunks) if c.use == "held_out"}, (
        "the held-out loss is measured on chunks that are not held out"
    )
    one = 1 / len(chunks)  # whole files are held out, or else whole chunks
    assert share / 2 - one <= found <= share + one, (
        f"{len(held_out)} of {len(chunks)} chunks are held out, and {share:.0%} was asked for"
    )


def test_held_out_loss_falls(lane_run: RunEvidence, measured: Measured) -> None:
    """On audio that is never trained on the loss falls by a margin, from before the training to what was written."""
    before, after = held_out_of(lane_run)
    best = min(found.loss for _, found in after)
    fall = before.loss - best
    measured(f"by {fall:.4f}, from {before.loss:.4f} to {best:.4f}; at least {HELD_OUT_MARGIN} is asked for")
    assert fall >= HELD_OUT_MARGIN, (
        f"on the held-out audio the loss was {before.loss:.4f} before the training and is {best:.4f} at best: it fell "
        f"by {fall:.4f}, and at least {HELD_OUT_MARGIN} is expected. The adapter learned nothing that helps on unheard "
        "audio of this voice: train on more of it, or with other settings (docs/lane.md)"
    )


def test_checkpoint_is_the_best_by_held_out_loss(lane_run: RunEvidence, measured: Measured) -> None:
    """What was written is the adapters after the step with the lowest held-out loss; report and status name it."""
    before, after = held_out_of(lane_run)
    trace, status = lane_run.trace, lane_run.status
    best, lowest = min(after, key=lambda one: one[1].loss)
    measured(f"that of step {best} of {trace.end.steps}, {lowest.loss:.4f}")
    assert after[-1][0] == trace.end.steps, "the held-out loss was not measured after the last step"
    assert trace.end.best_step == best, f"written is step {trace.end.best_step}, and the best one is step {best}"
    assert trace.end.param == trace.steps[best - 1].param, f"what was written is not what step {best} ended with"
    told = {
        "held_out_loss_first": before.loss,
        "held_out_loss": lowest.loss,
        "best_step": best,
        "loss_smoothed": trace.steps[-1].loss_smoothed,
    }
    for name, value in told.items():
        assert status.get(name) == value, f"the status says {name} {status.get(name)}, the trace {value!r}"
        assert lane_run.report[name] == repr(value), f"the report says {name} {lane_run.report[name]}, not {value!r}"


def test_smoothed_loss_is_that_of_the_steps(lane_run: RunEvidence, measured: Measured) -> None:
    """The smoothed loss is the moving average of the steps' losses."""
    steps = lane_run.trace.steps
    if steps[0].loss_smoothed is None:
        raise NotApplicable("the trace has no smoothed loss")
    total = 0.0
    for step in steps:
        total = SMOOTHING * total + (1 - SMOOTHING) * step.loss
        expected = total / (1 - SMOOTHING**step.step)
        assert step.loss_smoothed is not None and math.isclose(step.loss_smoothed, expected, rel_tol=1e-12), (
            f"after step {step.step} the smoothed loss is {step.loss_smoothed}, expected {expected!r}"
        )
    measured(f"{steps[-1].loss_smoothed:.4f} after {len(steps)} steps")


def test_adapter_starts_as_the_identity(lane_run: RunEvidence, measured: Measured) -> None:
    """At first the adapter changes nothing: the first loss is that of the model without it, to the bit."""
    start = lane_run.trace.start
    measured(f"{start.loss!r}; without adapters {start.loss_without_adapters!r}")
    assert start.loss == start.loss_without_adapters, "the first loss differs from the loss without adapters"
    assert start.loss == lane_run.trace.steps[0].loss, "the first step's loss is not the first loss"
    assert start.chunks == lane_run.trace.steps[0].chunks, "the first loss is of another batch"


def test_all_ranks_hold_the_same_parameters(lane_run: RunEvidence, measured: Measured) -> None:
    """All processes that trained together have the same parameters after each step; the files say how many they are."""
    trace = lane_run.trace
    ranks = trace.header.ranks
    measured(f"ranks: {ranks}")
    for where, said in (("report", lane_run.report.get("ranks")), ("status", lane_run.status.get("ranks"))):
        assert said is None or str(said) == str(ranks), f"the {where} says {said} ranks, the trace {ranks}"
    for step in trace.steps:
        digests = step.param_by_rank
        assert len(digests) == (ranks if ranks > 1 else 0), f"step {step.step} has digests of {len(digests)} ranks"
        for rank, digest in enumerate(digests):
            assert digest == digests[0], (
                f"after step {step.step} rank {rank} has other parameters ({digest}) than rank 0 ({digests[0]}): the "
                "ranks do not make the same update from the same values"
            )
    if ranks > 1:
        kept = {n.split(".", 1)[1][: -len(".value")]: v for n, v in lane_run.last_step.tensors.items() if _after(n)}
        found = tensor_digest(kept)[:16]
        assert found == trace.steps[-1].param_by_rank[0], (
            f"what was kept of the last step has digest {found}, and rank 0 had {trace.steps[-1].param_by_rank[0]}"
        )


def _after(name: str) -> bool:
    return name.startswith("after.") and name.endswith(".value")


def test_base_model_is_unchanged(lane_run: RunEvidence, measured: Measured) -> None:
    """The training leaves the frozen model as it was, by its digest."""
    before, after = lane_run.trace.start.base_digest, lane_run.trace.end.base_digest
    measured(f"{before[:12]} before, {after[:12]} after")
    assert before == after, f"the frozen model's digest was {before} before the training and is {after} after it"


def test_loss_falls(lane_run: RunEvidence, measured: Measured) -> None:
    """On the first batch the loss falls from before the training to after it, by a margin."""
    before, after = lane_run.trace.start.loss, lane_run.trace.end.eval_loss
    measured(f"by {before - after:.4f}, from {before:.4f} to {after:.4f}; at least {LOSS_MARGIN} is asked for")
    assert before - after >= LOSS_MARGIN, (
        f"on the first batch the loss was {before:.4f} before and is {after:.4f} after the training: "
        f"it fell by {before - after:.4f}, and at least {LOSS_MARGIN} is expected"
    )


def test_first_loss_is_below_that_of_a_model_that_knows_nothing(lane_run: RunEvidence, measured: Measured) -> None:
    """The first loss is below that of a uniform guess: the targets are what the model was made for."""
    # A codebook's size is a power of two; the tokens tell which.
    bound = math.log(2 ** int(lane_run.tokens.max()).bit_length())
    measured(f"{lane_run.trace.start.loss:.4f}; a guess has {bound:.4f}")
    assert lane_run.trace.start.loss < bound, "the model does no better on these targets than a uniform guess"


def test_lane_says_that_it_is_experimental(lane_run: RunEvidence, measured: Measured) -> None:
    """Every file says that lane and run are experimental and not promotable."""
    # Status, manifest, environment, trace and sidecar are refused when read if they say anything else.
    marked: dict[str, Mapping[str, Any]] = {"report": lane_run.report, "checkpoint": lane_run.checkpoint.meta}
    if lane_run.checkpoint_float64 is not None:
        marked["checkpoint before rounding"] = lane_run.checkpoint_float64.meta
    refused = (lane_run.status, lane_run.manifest, lane_run.environment, lane_run.checkpoint_sidecar)
    measured(f"in {len(refused) + len(marked)} files")
    for where, says in marked.items():
        found = (says.get("lane"), says.get("promotable"))
        expected = ("experimental", "false" if where == "report" else False)
        assert found == expected, (
            f"the {where} says lane {found[0]}, promotable {found[1]}, and not experimental, false"
        )


__all__ = [name for name in list(globals()) if name.startswith("test_")] + ["pytestmark"]

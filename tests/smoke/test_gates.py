"""The gates: each one requirement on the evidence of the session's one run."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.evidence import (
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

pytestmark = pytest.mark.smoke

# How far the loss on the first batch must fall from before to after the training, in nats; see docs/lane.md.
LOSS_MARGIN = 0.05


def test_report_has_the_twenty_keys_in_order(lane_run: RunEvidence) -> None:
    check_report_keys(lane_run.report, lane_run.report_path)


def test_objective_status_is_completed(lane_run: RunEvidence) -> None:
    assert lane_run.report["objective_status"] == "completed"


def test_first_failed_step_is_none(lane_run: RunEvidence) -> None:
    assert lane_run.report["first_failed_step"] == "none"


def test_root_cause_is_none(lane_run: RunEvidence) -> None:
    assert lane_run.report["root_cause"] == "none"


def test_status_file_is_valid_and_completed(lane_run: RunEvidence) -> None:
    status = lane_run.status
    assert status["status"] == "completed"
    assert status["steps_done"] == status["steps_total"] == lane_run.trace.header["steps"] == len(lane_run.trace.steps)


def test_loss_is_finite(lane_run: RunEvidence) -> None:
    finite_loss(lane_run.status)
    for step in lane_run.trace.steps:
        assert math.isfinite(step["loss"]), f"the loss of step {step['step']} is {step['loss']}"


def test_loss_is_the_same_in_status_report_and_trace(lane_run: RunEvidence) -> None:
    loss_agrees(lane_run.status, lane_run.report, lane_run.trace)


def test_checkpoint_is_not_empty_and_finite(lane_run: RunEvidence) -> None:
    tensors = lane_run.checkpoint.tensors
    assert tensors, f"{lane_run.checkpoint.path} holds no tensor"
    for name, tensor in tensors.items():
        assert tensor.size, f"{name} is empty"
        bad = int(np.count_nonzero(~np.isfinite(tensor)))
        assert not bad, f"{name} has {bad} of {tensor.size} values that are not finite"


def test_checkpoint_sha_is_that_of_the_file(lane_run: RunEvidence) -> None:
    checkpoint_agrees(lane_run.checkpoint, lane_run.checkpoint_sidecar, lane_run.status)
    found, said = lane_run.checkpoint.sha256, lane_run.report["checkpoint_sha256"]
    assert found == said, f"the checkpoint's SHA-256 is {found}, the report says {said}"
    found, said = lane_run.checkpoint.tensor_digest, lane_run.report["checkpoint_tensor_digest"]
    assert found == said, f"the checkpoint's tensor digest is {found}, the report says {said}"


def test_checkpoint_is_what_training_ended_with(lane_run: RunEvidence) -> None:
    end_agrees(lane_run.checkpoint, lane_run.trace)
    if lane_run.checkpoint_float64 is not None:
        rounding_agrees(lane_run.checkpoint, lane_run.checkpoint_float64)


def test_manifest_lists_what_is_on_disk(lane_run: RunEvidence) -> None:
    problems = lane_run.manifest_problems()
    assert not problems, "\n".join(problems)
    digest = lane_run.dataset_digest()
    assert digest == lane_run.report["dataset_digest"] == lane_run.trace.header["dataset_digest"]


def test_tokens_are_those_of_the_trace(lane_run: RunEvidence) -> None:
    digest = tokens_agree(lane_run.tokens, lane_run.trace)
    assert digest == lane_run.report["tokens_digest"]


def test_all_files_are_of_this_run(lane_run: RunEvidence) -> None:
    ids = lane_run.run_ids()
    assert len(ids) == 6, f"a run id is in {sorted(ids)} only"
    one_run_id(ids)


def test_sanitizer_replaced_nothing(lane_run: RunEvidence) -> None:
    assert lane_run.status["sanitized_logits"] == 0
    for step in lane_run.trace.steps:
        assert step["sanitized"] == 0, f"step {step['step']} replaced {step['sanitized']} logits"


def test_every_chunk_is_trained_on_and_in_whole_batches(lane_run: RunEvidence) -> None:
    trace = lane_run.trace
    batch, chunks = trace.header["batch"], trace.tokens["shape"][0]
    used = [chunk for step in trace.steps for chunk in step["chunks"]]
    assert all(len(step["chunks"]) == batch for step in trace.steps)
    assert set(used) <= set(range(chunks))
    for epoch in range(len(used) // chunks):
        found = sorted(used[epoch * chunks : (epoch + 1) * chunks])
        assert found == list(range(chunks)), f"epoch {epoch}: a chunk is left out or repeated"
    last = used[len(used) // chunks * chunks :]
    assert len(set(last)) == len(last), "the last, incomplete epoch repeats a chunk"


def test_adapter_starts_as_the_identity(lane_run: RunEvidence) -> None:
    start = lane_run.trace.start
    assert start["loss"] == start["loss_without_adapters"], "the first loss differs from the loss without adapters"
    assert start["loss"] == lane_run.trace.steps[0]["loss"], "the first step's loss is not the first loss"
    assert start["chunks"] == lane_run.trace.steps[0]["chunks"]


def test_base_model_is_unchanged(lane_run: RunEvidence) -> None:
    before, after = lane_run.trace.start["base_digest"], lane_run.trace.end["base_digest"]
    assert before == after, f"the frozen model's digest was {before} before the training and is {after} after it"


def test_loss_falls(lane_run: RunEvidence) -> None:
    before, after = lane_run.trace.start["loss"], lane_run.trace.end["eval_loss"]
    assert before - after >= LOSS_MARGIN, (
        f"on the first batch the loss was {before:.4f} before and is {after:.4f} after the training: "
        f"it fell by {before - after:.4f}, and at least {LOSS_MARGIN} is expected"
    )


def test_first_loss_is_below_that_of_a_model_that_knows_nothing(lane_run: RunEvidence) -> None:
    bound = math.log(256)
    assert lane_run.trace.start["loss"] < bound, "the model does no better on these targets than a uniform guess"


def test_lane_says_that_it_is_experimental(lane_run: RunEvidence) -> None:
    # Status, manifest, environment, trace and sidecar are refused when read if they say anything else.
    assert lane_run.report["lane"] == "experimental"
    assert lane_run.report["promotable"] == "false"
    for part in (lane_run.status, lane_run.manifest, lane_run.environment, lane_run.checkpoint_sidecar):
        assert (part["lane"], part["promotable"]) == ("experimental", False)
    meta = lane_run.checkpoint.meta
    assert (meta["lane"], meta["promotable"]) == ("experimental", False)

"""What the files of one run must say of each other. Each function returns the agreed value, or raises EvidenceError."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from harness.evidence.checkpoint import Array, Checkpoint
from harness.evidence.errors import EvidenceError, mismatch, one_line, show
from harness.evidence.formats import Sidecar, Status
from harness.evidence.strict import hex_float
from harness.evidence.trace import Trace
from harness.numerics.digest import array_digest
from harness.numerics.sketch import sketch, sketch_distance

# Rounding to float32 moves a tensor by at most 2^-24 of its norm; the rest is margin for the estimate of a distance.
ROUNDING = 1e-6


def finite_loss(loss: Any) -> float:
    """The loss of a status: a finite number. Raises EvidenceError when it is no number, or not finite."""
    if isinstance(loss, bool) or not isinstance(loss, int | float) or not math.isfinite(loss):
        raise mismatch("train_status.json: loss", show(loss), "a finite number")
    return float(loss)


def loss_agrees(status: Status, report: Mapping[str, str], trace: Trace) -> float:
    """The run's loss: one finite number in the status, the report, the trace's end and its last step, to the bit.

    Raises EvidenceError where they differ. NaN agrees with nothing.
    """
    loss = finite_loss(status.loss)
    if not trace.complete or not trace.steps:
        raise mismatch("trace.jsonl", f"{len(trace.steps)} steps and no end", "a whole trace")
    for where, found in (
        ("train_report.txt: loss", _number(report.get("loss", "none"))),
        ("trace.jsonl: the end's loss", trace.end.loss),
        (f"trace.jsonl: the loss of step {len(trace.steps)}", trace.steps[-1].loss),
    ):
        if found != loss:
            raise mismatch(where, repr(found), f"{loss!r}, as train_status.json says")
    return loss


def _number(text: str) -> float:
    """A number in a report: decimal with all its digits, or as float.hex() writes it. NaN for anything else."""
    if len(text) <= 40 and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", text):
        return float(text)
    try:
        return hex_float(text)
    except ValueError:
        return math.nan


def one_run_id(run_ids: Mapping[str, str]) -> str:
    """The one id of `RunEvidence.run_ids()`. Raises EvidenceError when there is none, or a file carries another."""
    if not run_ids:
        raise EvidenceError("the run directory: found no file with a run id, expected the files of one run")
    first, expected = next(iter(run_ids.items()))
    for name, found in run_ids.items():
        if found != expected:
            raise mismatch(f"{name}: run_id", show(found), f"{show(expected)} of {first} (is one of them stale?)")
    return expected


def checkpoint_agrees(checkpoint: Checkpoint, sidecar: Sidecar, status: Status) -> str:
    """The checkpoint's tensor digest, when the file is what the `.json` beside it and the status say that it is.

    Raises EvidenceError for a SHA-256, size, tensor digest, dtype or shape that differs, and for a tensor more or less.
    """
    path = checkpoint.path
    for field, found, says, who in (
        ("SHA-256", checkpoint.sha256, sidecar.sha256, "the .json beside it"),
        ("SHA-256", checkpoint.sha256, status.checkpoint_sha256, "train_status.json"),
        ("size", checkpoint.bytes, sidecar.bytes, "the .json beside it"),
        ("tensor digest", checkpoint.tensor_digest, sidecar.tensor_digest, "the .json beside it"),
        ("tensor digest", checkpoint.tensor_digest, status.checkpoint_tensor_digest, "train_status.json"),
    ):
        if found != says:
            raise mismatch(f"{path}: {field}", str(found), f"{says}, as {who} says")
    described = {name: (entry.dtype, entry.shape) for name, entry in sidecar.tensors.items()}
    held = {name: (checkpoint.dtypes[name], list(array.shape)) for name, array in checkpoint.tensors.items()}
    for name in sorted(described.keys() | held.keys()):
        if described.get(name) != held.get(name):
            expected = f"{described.get(name, 'no such tensor')}, as the .json beside it says"
            raise mismatch(f"{path}: {one_line(name, 80)}", str(held.get(name, "no such tensor")), expected)
    return checkpoint.tensor_digest


def rounding_agrees(checkpoint: Checkpoint, before: Checkpoint) -> None:
    """Raises EvidenceError unless each tensor of `checkpoint` is that of `before` (float64) rounded to float32."""
    _same_names(checkpoint, before.tensors.keys(), f"the tensors of {before.path.name}")
    for name, rounded in checkpoint.tensors.items():
        exact = before.tensors[name]
        where = f"{checkpoint.path}: {one_line(name, 80)}"
        if rounded.dtype != np.float32 or exact.dtype != np.float64 or rounded.shape != exact.shape:
            found = f"{rounded.dtype} {list(rounded.shape)} from {exact.dtype} {list(exact.shape)}"
            raise mismatch(where, found, "float32 from float64, of one shape")
        with np.errstate(over="ignore"):
            same = rounded.view(np.uint32) == exact.astype(np.float32).view(np.uint32)
        if not same.all():
            at = int(np.argmin(same.reshape(-1)))
            found, expected = rounded.reshape(-1)[at], exact.reshape(-1)[at]
            raise mismatch(f"{where} at {at}", repr(float(found)), f"{float(expected)!r} rounded to float32")


def tokens_agree(tokens: Array, trace: Trace) -> str:
    """The digest of `tokens` (int16 `[chunks, codebooks, frames]`), when it and all of its parts are the trace's.

    Raises EvidenceError, naming the first chunk or step that differs.
    """
    if list(tokens.shape) != trace.tokens.shape:
        raise mismatch("tokens.npy: shape", str(list(tokens.shape)), f"{trace.tokens.shape}, as the trace says")
    for index, (chunk, says) in enumerate(zip(tokens, trace.tokens.chunks, strict=True)):
        if array_digest("chunk", chunk)[:16] != says.digest:
            raise mismatch(
                f"tokens.npy: chunk {index}", array_digest("chunk", chunk)[:16], f"{says.digest}, as the trace says"
            )
    for step in trace.steps:
        found = array_digest("batch", tokens[step.chunks])[:16]
        if found != step.batch_digest:
            raise mismatch(f"tokens.npy: batch of step {step.step}", found, f"{step.batch_digest}, as the trace says")
    digest = array_digest("tokens", tokens)
    if digest != trace.tokens.tokens_digest:
        raise mismatch("tokens.npy: digest", digest, f"{trace.tokens.tokens_digest}, as the trace says")
    return digest


def end_agrees(checkpoint: Checkpoint, trace: Trace) -> None:
    """Raises EvidenceError unless the trace's last norms and sketches are those of the checkpoint's tensors.

    Up to the rounding to float32: 1e-6 of the tensor's norm. Of another project's lane there may be no sketches.
    """
    if not trace.complete:
        raise mismatch("trace.jsonl", "no end", "a whole trace")
    _same_names(checkpoint, trace.end.param.keys(), "the tensors of trace.jsonl")
    for name, array in checkpoint.tensors.items():
        where = f"{checkpoint.path}: {one_line(name, 80)}"
        norm, says = float(np.linalg.norm(array.astype(np.float64).reshape(-1))), trace.end.param[name]
        # Written so that a NaN fails.
        if not abs(norm - says) <= ROUNDING * norm:
            raise mismatch(f"{where}: norm", repr(norm), f"{says!r}, as the trace says")
        if not trace.end.sketch:
            continue
        recorded = np.asarray(trace.end.sketch[name])
        if (
            recorded.size == 0
            or not sketch_distance(sketch(array, projections=recorded.size), recorded) <= ROUNDING * norm
        ):
            raise mismatch(f"{where}: sketch", "other projections", "those in the trace")


def _same_names(checkpoint: Checkpoint, names: Any, whose: str) -> None:
    if different := checkpoint.tensors.keys() ^ set(names):
        name = min(different)
        state = "an additional tensor" if name in checkpoint.tensors else "no such tensor"
        raise mismatch(f"{checkpoint.path}: {one_line(name, 80)}", state, whose)

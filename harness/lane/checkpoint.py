"""Step ``checkpoint``: the adapters alone, as bytes that depend on nothing but their values."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.base.files import atomic_write, file_sha256, remove, write_json
from harness.lane.adapter import RANK
from harness.lane.errors import LaneError
from harness.lane.settings import Settings
from harness.numerics.digest import tensor_digest


def adapter_tensors(adapters: nn.ModuleList, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The adapters' parameters, detached copies on the CPU in ``dtype``, in name order."""
    state = adapters.state_dict()
    return {name: state[name].detach().to("cpu", dtype).clone().contiguous() for name in sorted(state)}


def write_checkpoint(
    settings: Settings, adapters: nn.ModuleList, *, keep_float64: bool, fingerprint: str, step: int
) -> dict[str, Any]:
    """Write the checkpoint, and the ``.json`` beside it that ties it to this run; returns what the latter says.

    Float32, whatever the lane computed in; ``keep_float64`` also writes the values before that rounding, from which a
    baseline finds the positions that lie near a rounding boundary. ``fingerprint`` names the model (voice.py), ``step``
    the step after which the adapters were like this. No time and no run id is inside the ``.pt``.
    Raises LaneError (exit code 2) before anything is written if a value is not finite in float32.
    """
    path = settings.checkpoint_path
    tensors = adapter_tensors(adapters, torch.float32)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            cause = f"parameter {name} is not finite in float32 (float64 reaches further); largest float32: 3.4e38"
            action = "look at trace.jsonl; a smaller LANE_LEARNING_RATE is the usual mend"
            raise LaneError("checkpoint", "non_finite", cause, action, status="failed", exit_code=2)
    meta: dict[str, str | int | bool] = {
        "lane": "experimental",
        "promotable": False,
        "model_id": settings.model_id,
        "model_fingerprint": fingerprint,
        "adapter": "low-rank (LoRA) on the transformer's feed-forward layers",
        "rank": RANK,
        "seed": settings.seed,
        "steps": settings.steps,
        "best_step": step,
    }
    if keep_float64:
        before = {"adapter": adapter_tensors(adapters, torch.float64), "meta": meta}
        atomic_write(settings.checkpoint_float64_path, _serialise(before))
    else:
        remove(settings.checkpoint_float64_path, "checkpoint")  # an earlier run's, where RESET_TRAIN_OUTPUTS=0
    atomic_write(path, _serialise({"adapter": tensors, "meta": meta}))
    sidecar = {
        "schema": "checkpoint/1",
        "run_id": settings.run_id,
        "lane": "experimental",
        "promotable": False,
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "tensor_digest": tensor_digest({name: tensor.numpy() for name, tensor in tensors.items()}),
        "tensors": {name: {"dtype": "float32", "shape": list(tensor.shape)} for name, tensor in tensors.items()},
    }
    write_json(settings.checkpoint_sidecar_path, sidecar)
    return sidecar


def write_last_step(settings: Settings, last_step: dict[str, Any]) -> None:
    """Write values and moments before and after the last update, in the dtype that they were computed in: from them the
    gates compute that step again. Raises OSError."""
    boundary = {"schema": "last_step/1", "run_id": settings.run_id, "lane": "experimental", "promotable": False}
    atomic_write(settings.last_step_path, _serialise({**boundary, "step": settings.steps, **last_step}))


def load_adapters(path: Path, adapters: nn.ModuleList) -> None:
    """Put a checkpoint's tensors into ``adapters`` (any float dtype). Raises RuntimeError if names or shapes differ."""
    adapters.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["adapter"])


def _serialise(value: Any) -> bytes:
    """``torch.save`` through memory: the archive's inner folder is then always ``archive``, not the file's name."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()

"""The trace: what happened at each step, exactly, one JSON object a line. Floats are written as ``float.hex()``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.base.files import drop, reserve, settle
from harness.lane.settings import Settings
from harness.numerics.sketch import sketch

NamedTensors = Mapping[str, Tensor]


def hex_float(value: float) -> str:
    """``float.hex()``; a value that is not finite is ``nan``, ``inf`` or ``-inf``."""
    return float(value).hex()


def norms(tensors: NamedTensors) -> dict[str, float]:
    """The Euclidean norm of each tensor, summed in float64: in float32 that of a million values is 1e-5 off (measured),
    ten times what the gate allows between the trace and the checkpoint."""
    values = torch.stack(torch._foreach_norm(list(tensors.values()), 2, torch.float64)).tolist()
    return dict(zip(tensors, values, strict=True))


def hex_norms(values: Mapping[str, float]) -> dict[str, str]:
    return {name: hex_float(value) for name, value in values.items()}


def sketches(adapters: nn.Module) -> dict[str, list[str]]:
    """A sketch of each parameter: a few projections from which distances to another run are estimated."""
    return {
        name: [hex_float(v) for v in sketch(parameter.detach().double().cpu().numpy())]
        for name, parameter in sorted(adapters.named_parameters())
    }


class Trace:
    """Writes ``trace.jsonl``: under a temporary name while the run goes on, under its own when it ends, however it
    ends."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.trace_path
        self._temporary = reserve(self._path)
        self._file = self._temporary.open("x", encoding="ascii")

    def write(self, kind: str, **values: Any) -> None:
        """Append one line."""
        self._file.write(json.dumps({"kind": kind, **values}, allow_nan=False) + "\n")

    def so_far(self) -> str:
        """The lines after the first two (header and tokens), as they were written."""
        self._file.flush()
        with self._temporary.open(encoding="ascii") as file:
            file.readline()
            file.readline()
            return file.read()

    def resume(self, lines: str) -> None:
        """Append the lines that ``so_far`` gave in the run that this one goes on from."""
        self._file.write(lines)

    def publish(self) -> Path:
        """Flush to the disk and rename to the final name. Safe to call twice."""
        if not self._file.closed:
            try:
                with self._file:
                    self._file.flush()
                    os.fsync(self._file.fileno())
                settle(self._temporary, self._path, "lane_trace/1")
            except BaseException:
                # A trace that ends in the middle of a line would be a lie; closed, so that nothing is flushed later.
                drop(self._temporary)
                raise
        return self._path

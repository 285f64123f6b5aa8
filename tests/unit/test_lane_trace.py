"""What the trace says of large tensors is exact enough for the gate that holds it against the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from lazy import Lazy

if TYPE_CHECKING:
    import torch

    from harness.lane import trace
else:
    torch, trace = Lazy("torch"), Lazy("harness.lane.trace")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norm_of_a_million_values(dtype: str) -> None:
    """Summed in float32 it was 1.3e-5 off, and the gate allows 1e-6: red for every real model, and for no small one."""
    values = np.random.default_rng(0).standard_normal((1024, 1024)).astype(dtype)
    exact = float(np.linalg.norm(values.astype(np.float64)))
    assert trace.norms({"x": torch.from_numpy(values)})["x"] == pytest.approx(exact, rel=1e-9)

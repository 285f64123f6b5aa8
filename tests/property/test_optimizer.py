"""The lane's AdamW is torch's: the same bits, whatever the gradients."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lazy import Lazy

if TYPE_CHECKING:
    import torch

    from harness.lane import optimizer
else:
    torch, optimizer = Lazy("torch"), Lazy("harness.lane.optimizer")

SHAPES = ((3,), (2, 5), (1, 1, 7))


def parameters(seed: int, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=draws, dtype=dtype)) for shape in SHAPES]


@given(
    seed=st.integers(0, 1000),
    wide=st.booleans(),
    rates=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=5),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e4]),
    decay=st.sampled_from([0.0, 0.01]),
    idle=st.integers(-1, 2),
    again=st.integers(0, 5),
)
def test_same_bits_as_torchs_own(
    seed: int, wide: bool, rates: list[float], scale: float, decay: float, idle: int, again: int
) -> None:
    """Also with a parameter that gets no gradient (``idle``), and with a state saved and loaded before step
    ``again``."""
    dtype = torch.float64 if wide else torch.float32
    mine, theirs = parameters(seed, dtype), parameters(seed, dtype)
    options = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": decay}
    ours = optimizer.AdamW(mine, **options)
    torchs = torch.optim.AdamW(theirs, fused=True, **options)
    draws = torch.Generator().manual_seed(seed + 1)
    for number, rate in enumerate(rates):
        if number == again:
            file = io.BytesIO()
            torch.save(ours.state_dict(), file)
            ours = optimizer.AdamW(mine, **options)
            ours.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        ours.zero_grad()
        torchs.zero_grad()
        for which, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            if which != idle:
                a.grad = torch.randn(a.shape, generator=draws, dtype=dtype) * scale
                b.grad = a.grad.clone()
        ours.lr = torchs.param_groups[0]["lr"] = rate
        ours.step()
        torchs.step()
        for a, b in zip(mine, theirs, strict=True):
            assert torch.equal(a, b)


def test_a_state_of_other_parameters_is_refused() -> None:
    ours = optimizer.AdamW(parameters(0, torch.float32), 0.1, (0.9, 0.999), 1e-6, 0.0)
    other = optimizer.AdamW(parameters(0, torch.float64), 0.1, (0.9, 0.999), 1e-6, 0.0)
    with pytest.raises(ValueError, match=r"a moment is torch\.float64 \[3\], and not torch\.float32 \[3\]"):
        ours.load_state_dict(other.state_dict())

"""How long the training will take: said before it starts, and again when a few steps were measured."""

from __future__ import annotations

import time
from typing import Any

import torch

OPERATIONS = 4  # for each parameter and token: two forward, two backward to the activations; frozen weights get none
SIZE = 512  # of the matrix product that is timed
MEASURED_AFTER = 3  # steps; the first one also warms up


class Estimate:
    """Lines for people. Nothing that is computed depends on them."""

    def __init__(self, model: Any, steps: int, tokens: int, dtype: torch.dtype, device: str) -> None:
        """``tokens``: of one step, all chunks of its batch. Takes some milliseconds: a matrix product is timed."""
        self._steps, self._tokens = steps, tokens
        self._parameters = sum(parameter.numel() for parameter in model.lm.parameters())
        self._rate = _product_rate(dtype, device)
        self._times = [time.monotonic()]

    def before(self) -> str:
        """From the number of parameters and tokens, and the rate of a matrix product here."""
        step = OPERATIONS * self._parameters * self._tokens / self._rate
        size = f"{self._parameters / 1e6:.1f}M parameters, {self._tokens} tokens a step, {self._rate / 1e9:.0f} GFLOP/s"
        return f"about {self._steps * step:.0f} s or more for {self._steps} steps ({size})"

    def after(self, done: int) -> str | None:
        """Called after each step; a line once, from what the steps took, where there is some time to go."""
        self._times.append(time.monotonic())
        if len(self._times) != MEASURED_AFTER + 1 or done >= self._steps:
            return None
        step = min(b - a for a, b in zip(self._times[1:], self._times[2:], strict=False))
        return f"about {(self._steps - done) * step:.0f} s to go, {step:.2f} s a step"


def _product_rate(dtype: torch.dtype, device: str) -> float:
    """Operations a second of a matrix product."""
    x = torch.ones(SIZE, SIZE, dtype=dtype, device=device)
    best = 1e9
    for _ in range(3):
        started = time.perf_counter()
        (x @ x).sum().item()
        best = min(best, time.perf_counter() - started)
    return 2.0 * SIZE**3 / best

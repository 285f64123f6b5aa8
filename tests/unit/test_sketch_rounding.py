"""A sketch on the way is kept in float32: for a tensor that hardly moves, that rounding is much of its change."""

from __future__ import annotations

import numpy as np
import pytest

from harness.baselines.differences import ROUNDED_SKETCH, rounding


@pytest.mark.parametrize("seed", range(20))
def test_rounding_bounds_what_float32_loses(seed: int) -> None:
    generator = np.random.default_rng(seed)
    exact = generator.normal(size=16) * 10.0 ** generator.uniform(-3, 3)
    kept = exact.astype(np.float32).astype(np.float64)
    scale = 10.0 ** generator.uniform(-4, 2)
    lost = float(np.sqrt(np.mean(np.square(exact - kept)))) / scale
    assert lost <= rounding(kept, scale)


def test_a_tensor_that_hardly_moves_is_not_out_of_bounds() -> None:
    exact = np.full(16, 26.0000009)  # a decay of norm 26 that moved by 0.05
    kept = exact.astype(np.float32).astype(np.float64)
    lost = float(np.sqrt(np.mean(np.square(exact - kept)))) / 0.05
    assert ROUNDED_SKETCH <= lost <= rounding(kept, 0.05)


def test_rounding_hides_no_change_of_a_tensor_that_moves() -> None:
    assert rounding(np.full(16, 1.0), 1.0) < 1e-6
    assert rounding(np.full(16, 26.0), 0.0) == 0.0

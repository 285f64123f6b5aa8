"""The reference of the recipe (tests/support/reference.py): of its own, and right where the answer is known."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

REFERENCE = Path(__file__).resolve().parents[1] / "support" / "reference.py"


def test_it_shares_nothing_with_the_lane() -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse(REFERENCE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert names <= {"__future__", "collections", "contextlib", "math", "typing", "numpy", "torch"}, names


@pytest.mark.parametrize("steps", [2, 3, 24, 300])
def test_its_learning_rate_starts_and_ends_as_the_page_says(steps: int) -> None:
    import reference

    rates = [reference.learning_rate(step, steps, 0.006) for step in range(1, steps + 1)]
    assert rates[:2] == pytest.approx([0.002, 0.004])
    if steps > 2:
        assert rates[-1] == pytest.approx(0.0006)
        assert np.ptp(np.diff(rates[2:])) < 1e-12 if steps > 3 else True


def test_its_update_is_torchs_own() -> None:
    import reference
    import torch

    random = np.random.default_rng(0)
    parameter = torch.nn.Parameter(torch.from_numpy(random.normal(size=(4, 3))))
    optimizer = torch.optim.AdamW(
        [parameter], lr=0.01, betas=(reference.BETA1, reference.BETA2), eps=reference.EPSILON, weight_decay=0.1
    )
    value = parameter.detach().clone()
    first = second = torch.zeros_like(value)
    for step in range(1, 6):
        gradient = torch.from_numpy(random.normal(size=(4, 3)))
        parameter.grad = gradient.clone()
        optimizer.step()
        value, first, second = reference.adamw(value, gradient, first, second, step=step, rate=0.01, decay=0.1)
        assert torch.allclose(parameter.detach(), value, rtol=1e-13, atol=0)


@pytest.mark.parametrize("count", [1, 16, 17, 100])
def test_its_measured_chunks_are_spread_evenly(count: int) -> None:
    import reference

    found = reference.measured(range(count))
    assert len(found) == min(count, 16) and sorted(set(found)) == found
    assert max(np.diff([-1, *found, count])) <= count / 16 + 1

"""The whole training, computed a second time: each step's loss, gradients and update, from settings, tokens and model.

What acts at some steps only (a condition dropped now and then, a state rounded when the run went on) shows nowhere
else without a recording. It takes about as long as the training, so it is no part of the smoke run: the default suite
has it, and `pytest tests/smoke/test_whole_recipe.py --lane-evidence=DIR` holds it against the run in DIR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from harness.evidence import RunEvidence
from harness.gates.training import Measured
from harness.numerics.sketch import sketch, sketch_distance

if TYPE_CHECKING:
    from reference_run import Reference

pytestmark = pytest.mark.whole_recipe


def test_whole_training_is_the_recipes(lane_run: RunEvidence, reference: Reference, measured: Measured) -> None:
    """Every step, and the checkpoint, are those of the reference, which trains by itself."""
    import torch

    trace, worst = lane_run.trace, 0.0
    values = reference.first
    best = values
    for found, due in zip(trace.steps, reference.all_steps(), strict=True):
        limit = reference.drift_limit
        apart = reference.hold(found, due, loss=limit, gradient=limit, change=limit)
        worst = max(worst, apart["gradient"], apart["parameter"])
        values = due.values
        for name, told in found.sketch.items():
            apart = sketch_distance(np.asarray(told), sketch(values[name].numpy(), projections=len(told)))
            assert apart <= max(reference.drift_limit, 1e-6) * float(values[name].norm()), (
                f"at step {found.step} the sketch of {name} is not that of the reference's value"
            )
        best = values if found.step == (trace.end.best_step or trace.header.steps) else best
    for name, value in best.items():
        written = torch.from_numpy(lane_run.checkpoint.tensors[name].astype(np.float64))
        limit = max(reference.drift_limit, 1e-6)  # one of two that differ by rounding may be rounded up
        reference.hold_tensor(
            f"{name} in the checkpoint", written, value.float().double(), reference.first[name], limit
        )
    measured(f"{len(trace.steps)} steps, at most {worst:.1e} apart, relatively")

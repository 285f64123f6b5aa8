"""The whole training, computed a second time: each step's loss, gradients and update, from settings, tokens and model.

What acts at some steps only (a condition dropped now and then, a state rounded when the run went on) shows nowhere
else without a recording. It takes about as long as the training, so it is no part of the smoke run: the default suite
has it, and `pytest tests/smoke/test_whole_recipe.py --lane-evidence=DIR` holds it against the run in DIR.
"""

from __future__ import annotations

import numpy as np
import pytest
from truth import Truth

from harness.evidence import RunEvidence
from harness.gates.training import Measured
from harness.numerics.sketch import sketch, sketch_distance

pytestmark = pytest.mark.whole_recipe


def test_whole_training_is_the_recipes(lane_run: RunEvidence, truth: Truth, measured: Measured) -> None:
    """Every step, and the checkpoint, are those of the reference, which trains by itself."""
    from reference_run import Reference

    reference = Reference(truth.model, truth.run, truth.conditions_of)
    trace, worst = lane_run.trace, 0.0
    values = reference.first
    best = values
    for found, due in zip(trace.steps, reference.all_steps(), strict=True):
        where = f"at step {found.step}"
        apart = float((np.abs(np.array(found.loss_by_codebook) - due.losses) / due.losses).max())
        assert apart <= reference.drift_limit, (
            f"{where} the losses by codebook are {found.loss_by_codebook}, the reference's are {due.losses.tolist()}"
        )
        for name, gradient in due.gradients.items():
            size, change = float(gradient.norm()), float(due.changes[name].norm())
            apart = abs(found.grad[name] - size) / size if size else found.grad[name]
            worst = max(worst, apart)
            assert apart <= reference.drift_limit, (
                f"{where} the gradient of {name} has norm {found.grad[name]!r}, the reference's {size!r}"
            )
            size = float(due.values[name].norm())
            apart = abs(found.param[name] - size) / change
            worst = max(worst, apart)
            assert apart <= reference.drift_limit, (
                f"{where} {name} has norm {found.param[name]!r} after the update, the reference's {size!r}"
            )
        values = due.values
        for name, told in found.sketch.items():
            apart = sketch_distance(np.asarray(told), sketch(values[name].numpy(), projections=len(told)))
            assert apart <= max(reference.drift_limit, 1e-6) * float(values[name].norm()), (
                f"{where} the sketch of {name} is not that of the reference's value"
            )
        best = values if found.step == (trace.end.best_step or trace.header.steps) else best
    for name, value in best.items():
        written = lane_run.checkpoint.tensors[name]
        apart = float(
            np.linalg.norm(written - value.numpy()) / np.linalg.norm(value.numpy() - reference.first[name].numpy())
        )
        assert apart <= max(reference.drift_limit, 1e-6), (  # the checkpoint is rounded to float32
            f"{name} in the checkpoint is {apart:.1e} of what was learned away from the reference's"
        )
    measured(f"{len(trace.steps)} steps, at most {worst:.1e} apart, relatively")

"""The lane did what docs/lane.md says: held against a second computation of the recipe, which needs no recording.

tests/support/reference.py computes it in float64, and shares no code with the lane. The first two steps are computed
from nothing but settings, tokens and model; the last one from the values and moments that the run left of it.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest

from harness.evidence import RunEvidence
from harness.gates.training import Measured

if TYPE_CHECKING:
    from reference_run import Reference

pytestmark = pytest.mark.smoke


def test_chunks_are_cut_as_the_recipe_says(lane_run: RunEvidence, reference: Reference, measured: Measured) -> None:
    """The chunks of the trace are those that manifest and settings give: every stretch of the audio, none twice."""
    found = [(chunk.file, chunk.start) for chunk in lane_run.trace.tokens.chunks]
    for number, (told, due) in enumerate(itertools.zip_longest(found, reference.chunks)):
        assert told == due, f"chunk {number} is {show(told)}, and by manifest and settings it is {show(due)}"
    measured(f"{len(found)} chunks")


def show(chunk: tuple[str, int] | None) -> str:
    return f"file {chunk[0][:12]} from sample {chunk[1]:,} on" if chunk else "not there"


def test_each_chunk_is_used_as_the_recipe_says(lane_run: RunEvidence, reference: Reference, measured: Measured) -> None:
    """Which chunks are held out, measured, and trained on in which step is what seed and data give."""
    trace = lane_run.trace
    found = [chunk.use for chunk in trace.tokens.chunks]
    wrong = [i for i, (told, due) in enumerate(zip(found, reference.uses, strict=True)) if told != due]
    assert not wrong, f"chunk {wrong[0]} is {found[wrong[0]]}, and the recipe says {reference.uses[wrong[0]]}"
    assert trace.start.held_out_chunks == reference.measured, "the held-out loss is measured on other chunks"
    assert trace.start.chunks == reference.batches[0], "the first batch is another one"
    for step, due in zip(trace.steps, reference.batches, strict=True):
        assert step.chunks == due, f"step {step.step} takes the chunks {step.chunks}, and the recipe says {due}"
    found = [step.step for step in trace.steps if step.held_out is not None]
    assert found == reference.measured_after, f"the held-out loss is measured after the steps {found}"
    measured(f"{len(trace.steps)} batches, {len(reference.measured)} held-out chunks")


def test_adapters_begin_as_the_recipe_says(lane_run: RunEvidence, reference: Reference, measured: Measured) -> None:
    """The adapters' tensors before the training have the names and norms of those that the seed gives."""
    found = lane_run.trace.start.param
    assert sorted(found) == sorted(reference.first), "the adapters have other tensors"
    worst = 0.0
    for name, value in reference.first.items():
        due = float(value.norm())
        worst = max(worst, abs(found[name] - due) / (due or 1.0))
        assert abs(found[name] - due) <= reference.rounding * due, (
            f"{name} begins with norm {found[name]!r}, not {due!r}"
        )
    measured(f"norms at most {worst:.1e} apart, relatively")


def test_learning_rate_of_each_step_is_the_recipes(
    lane_run: RunEvidence, reference: Reference, measured: Measured
) -> None:
    """Each update has the learning rate of the schedule: up in two steps, then straight down to a tenth."""
    for step in lane_run.trace.steps:
        due = reference.rate(step.step)
        assert step.learning_rate is not None, f"the trace has no learning rate for step {step.step}"
        assert abs(step.learning_rate - due) <= 1e-12 * due, (
            f"step {step.step} has the learning rate {step.learning_rate!r}, and the recipe says {due!r}"
        )
    measured(f"{len(lane_run.trace.steps)} steps")


def test_first_two_steps_are_the_recipes(lane_run: RunEvidence, reference: Reference, measured: Measured) -> None:
    """Losses, gradients and parameters of the first two steps are the reference's, from settings, tokens and model."""
    worst: dict[str, float] = {}
    limits = {"loss": reference.loss_limit, "gradient": reference.gradient_limit, "change": reference.first_limit}
    for found, due in zip(lane_run.trace.steps[:2], reference.two_steps, strict=True):
        for what, apart in reference.hold(found, due, **limits).items():
            worst[what] = max(worst.get(what, 0.0), apart)
    measured(", ".join(f"{what} {value:.1e}" for what, value in worst.items()) + " apart, relatively")


def test_last_step_is_the_recipes(lane_run: RunEvidence, reference: Reference, measured: Measured) -> None:
    """From what there was before the last update, the reference computes what there is after it."""
    last, traced = reference.last, lane_run.trace.steps[-1]
    assert lane_run.last_step.meta["step"] == traced.step, "the last step that was left is of another step"
    limits = {"loss": reference.loss_limit, "gradient": reference.gradient_limit, "change": reference.last_limit}
    reference.hold(traced, last, **limits)
    worst = 0.0
    for name, after in last.after.items():
        for kind, due in after.items():
            what = f"the last update of {name}: its {WORDS[kind]}"
            found, before = reference.left("after", name, kind), reference.left("before", name, kind)
            worst = max(worst, reference.hold_tensor(what, found, due, before, reference.last_limit))
    measured(f"at most {worst:.1e} of the change apart, {reference.last_limit:.0e} allowed")


WORDS = {"value": "value", "first": "first moment", "second": "second moment"}


def test_last_step_belongs_to_the_run(lane_run: RunEvidence, reference: Reference, measured: Measured) -> None:
    """The last step's values have the trace's norms, and its second moments are what all gradients add up to."""
    from reference_run import relative

    trace, worst = lane_run.trace, 0.0
    norms = {"before": trace.steps[-2].param, "after": trace.steps[-1].param}
    for name in reference.first:
        for when, told in norms.items():
            due = float(reference.left(when, name, "value").norm())
            assert abs(told[name] - due) <= reference.rounding * max(due, 1e-3), (
                f"{name} has norm {due!r} {when} the last update, and the trace says {told[name]!r}"
            )
        due = reference.second_moments(name)
        found = float(reference.left("after", name, "second").sum())
        worst = max(worst, relative(found, due))
        assert relative(found, due) <= reference.moment_limit, (
            f"the second moments of {name} add up to {found!r}; by the trace's gradients, to {due!r}"
        )
    if trace.end.best_step == trace.header.steps and lane_run.checkpoint_float64 is not None:
        for name, value in lane_run.checkpoint_float64.tensors.items():
            assert np.array_equal(value, reference.left("after", name, "value").numpy()), (
                f"{name} in the checkpoint is not what the last step left"
            )
    measured(f"second moments at most {worst:.1e} apart, relatively")

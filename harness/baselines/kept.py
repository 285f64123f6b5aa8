"""Which steps a recording keeps, and of which of them each tensor."""

from __future__ import annotations

from collections.abc import Sequence

from harness.baselines.result import StepResult

CURVE_STEPS = 512  # up to which all are in the curve; of more, so many from each step to the one of twice its number
TENSOR_BYTES = 400_000  # of norms of single tensors in the recording of a watched program


def is_watched(steps: Sequence[StepResult]) -> bool:
    """Whether the steps are of a watched program (which has learning rates of groups) and not of a lane's own trace."""
    return any(step.rates for step in steps)


def curve(steps: Sequence[StepResult]) -> list[StepResult]:
    """The steps that are kept. Which these are depends on a step's number alone, but for the last, which always is."""
    if not is_watched(steps):
        return list(steps)

    def is_kept(step: int) -> bool:
        return step % (1 << max(0, step.bit_length() - CURVE_STEPS.bit_length())) == 0

    return [step for step in steps if is_kept(step.step) or step is steps[-1]]


def kept_steps(steps: Sequence[StepResult]) -> list[StepResult]:
    """The steps whose single tensors are kept: the first one, and (it may be the same) the middle one with sketches. Of
    a watched program as many as there is room for: all of them, or the first ones, and then ever fewer."""
    known = [step for step in curve(steps) if step.grad and step.param]
    if not is_watched(steps):
        sketched = [step for step in known if step.sketch]
        return [*known[:1], *sketched[len(sketched) // 2 :][:1]]
    every = 1
    while sum(map(_bytes, chosen := _thinned(known, every))) > TENSOR_BYTES and len(chosen) > 1:
        every *= 2
    return chosen


def _thinned(steps: Sequence[StepResult], every: int) -> list[StepResult]:
    return [step for step in steps if (step.step - 1) % every == 0] or list(steps[:1])


def _bytes(step: StepResult) -> int:
    return sum(60 + len(name) + (8 * len(step.sketch[name]) if name in step.sketch else 0) for name in step.grad)

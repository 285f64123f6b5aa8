"""In words: what a difference that begins at a place usually comes from."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from harness.baselines.differences import Divergence, Item
from harness.baselines.result import Result


def likely_cause(
    where: Divergence | None,
    obtained: Result,
    expected: Result,
    items: Sequence[Item],
    *,
    code_moved: bool = False,
) -> str:
    """In words, what a difference that begins there usually comes from; nothing where the place is not known.
    `code_moved`: it is known that the code did it, and so not the rounding of other kernels."""
    if where is None:
        return ""
    step, phase, item = where.step, where.phase, where.item
    differing = {i.tensor for i in items if i.out_of_bounds and i.tensor} - {"all"}
    every = {i.tensor for i in items if i.tensor} - {"all"}
    seeds = [r.settings.get("seed") for r in (obtained, expected)]
    seed = f"; the seeds are {seeds[0]} and {seeds[1]}" if seeds[0] != seeds[1] and None not in seeds else ""
    only = ""
    if len(differing) == 1 and len(every) > 1:
        only = f" Of {len(every)} tensors only {next(iter(differing))} differs."
    if item.part == "dataset":
        return "the audio itself differs; everything after it follows"
    is_watched = any(s.rates for s in expected.steps[:1])
    if phase == "data" and is_watched:
        return f"at step {step} the batch is another: the data, their order, or what is made of them on the way{seed}"
    if phase == "data":
        return (
            f"from step {step} on other chunks are drawn, or in another order: the seed or the drawing of batches{seed}"
        )
    if phase == "tokens" and step == 0:
        return (
            "the same audio gave other tokens: how it is mixed, how it is cut into chunks and in which order, "
            "resampling, the codec or its precision, or tokens that were kept from another run"
        )
    if phase == "tokens":
        return f"the same chunks gave another batch at step {step}: how tokens are cut or put together"
    if phase == "start":
        if item.what.startswith("norm of the initial"):
            what = "trained tensors" if is_watched else "adapters"
            return f"the {what} start elsewhere: their initialisation, or what it draws from{seed}.{only}"
        if item.what.startswith("setting of"):
            return f"the optimizer is given another setting: {item.what.removeprefix('setting of ')}"
        if item.what == "digest of the frozen model":
            return "the frozen model is another: its weights, or how they are loaded and cast"
        if item.what == "loss without adapters":
            return "the model without adapters already computes another loss: the model, its condition or the objective"
        if item.what.startswith("held-out"):
            return "the first batch's loss agrees, the held-out one does not: which chunks it is of, or its sums"
        return "the adapters start with the same norms and compute another loss: their forward function or their values"
    small = (
        0.0 < item.distance <= 1e-5
        and not isinstance(item.obtained, str)
        and obtained.key.mode != "universal"
        and phase != "checkpoint"
        and not code_moved
    )
    if small:
        return (
            f"at step {step} the difference has the size of float32 rounding ({item.distance:.0e}): other kernels, "
            f"thread settings or libraries, rather than another computation.{only}"
        )
    if item.what == "steps in the trace":
        return "every common step agrees; one run has fewer steps: cut short, or another number of steps"
    if None in (item.obtained, item.expected) and phase in ("forward", "evaluation"):
        return "a value is recorded on one side only: a metric was dropped or added"
    since = f"everything up to step {step - 1} agrees, everything from step {step} on differs: " if step > 1 else ""
    if phase == "forward":
        if math.isnan(item.distance):
            return f"{since}the loss is not a number from here on"
        return f"{since}the forward pass or the objective" + (
            ", in something that depends on the step (a schedule, dropout, a counter) or in values no norm shows"
            if step > 1
            else " (the data are the same)"
        )
    if phase == "backward":
        hidden = (
            "the adapters' forward function (which no loss shows while they are the identity), "
            if step == 1 and not is_watched
            else ""
        )
        return (
            f"{since}the losses agree and the gradients do not: {hidden}backward pass, a mask, what is detached.{only}"
        )
    if phase == "optimizer" and item.what.startswith("learning rate"):
        return f"{since}the learning rate is another: its peak, its schedule, or when the schedule moves.{only}"
    if phase == "optimizer":
        return (
            f"{since}the gradients agree and the parameters do not: the update (learning rate, betas, epsilon, weight "
            f"decay, clipping).{only}"
        )
    if phase == "evaluation" and any(i.out_of_bounds and i.tensor and i.phase == "checkpoint" for i in items):
        return (
            "every step agrees, and what was evaluated and written at the end does not: other adapters than those of "
            f"the recorded step, an average of several, say.{only}"
        )
    if phase == "evaluation":
        return (
            "every step agrees, the evaluation of the trained adapters does not: the evaluation batch or its objective"
        )
    return f"every step agrees, the checkpoint does not: how it is collected, rounded or written.{only}"


_PATH = re.compile(r"(?:\A|[.\s'\"])(?:/[\w.+@=-]+){2,}|[A-Z]:\\\\")
_TIME = re.compile(r"(?:\A|[._])(?:time|timestamp|time_\w+|\w+_time|elapsed|duration|seconds|\w+_seconds|date)\Z")
_EPOCH = (1.2e9, 4e9)  # seconds since 1970: of the years 2008 to 2096


def not_learned(items: Sequence[Item]) -> list[str]:
    """A line where tensors of the checkpoint that differ look like paths or times, which are others in every run."""
    differing = {i.tensor: i for i in items if i.out_of_bounds and i.tensor and i.phase == "checkpoint"}
    values = {i.tensor: i.obtained for i in items if i.phase == "checkpoint" and isinstance(i.obtained, float)}
    lines = []
    for what, found in (
        ("have an absolute path in their names", [name for name in differing if _PATH.search(name)]),
        ("look like times", [n for n in differing if _TIME.search(n) or _EPOCH[0] < values.get(n, 0.0) < _EPOCH[1]]),
    ):
        if found:
            lines.append(
                f"{len(found)} of the tensors that differ {what} ({found[0][:120]}): likely the reason; "
                f'leave them out with tensors = {{exclude = ["{_pattern(found[0])}"]}} in the lane\'s table'
            )
    return lines


def _pattern(name: str) -> str:
    """A pattern for names like this one: up to the path, without what a pattern reads otherwise."""
    found = _PATH.search(name)
    begin = name[: found.start()] if found else name
    return re.sub(r"[*?\[\]{}'\"]+.*[*?\[\]{}'\"]+", "*", begin) + ("*" if found else "")

"""Gates on a watched program (`trace = "watch"`, docs/watch.md) that need no recording: what is true of every sound
training, whatever it trains.

Each says only what was measured: which tensor, at which step. What a program does on purpose its lane's table says, in
the words of evidence/on_purpose.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from harness.evidence import NotApplicable, RunEvidence
from harness.evidence.on_purpose import WORDS, is_on_purpose
from harness.evidence.watched import Watched
from harness.gates.courses import (
    blind,
    counted,
    courses,
    is_blind,
    more,
    of,
    precision_of,
    processes_of,
    rate_of,
    show,
    some,
    tensors_at,
    where_of,
)
from harness.gates.training import Measured

pytestmark = pytest.mark.smoke

NAMED = 5  # findings that a message shows
LASTING = 3  # steps after which a loss without gradients is no chance
NOISE = 16.0  # times a type's precision: of a gradient that is so much smaller than the largest nothing is expected


@dataclass(frozen=True)
class Finding:
    """What is wrong, of what (a tensor, a module; empty where it is of the whole program), and from which step on."""

    name: str
    step: int
    text: str


def test_every_parameter_has_a_gradient(lane_run: RunEvidence, measured: Measured) -> None:
    """Every trainable parameter of an optimizer has a gradient, in one of the recorded steps at least."""
    found, count = [], 0
    for course in courses(lane_run):
        if not any(step.grad for step in course.recorded):
            continue  # of none at all: the next gate but six says so
        count += len(course.trained)
        for name, steps in course.trained.items():
            if not any(name in step.grad for step in steps):
                at = f"{course.where}step {steps[0].step}: {name} has no gradient"
                found.append(Finding(name, steps[0].step, f"{at}, nor at any other of {of(steps)}"))
    judge(lane_run, measured, "no_gradient", found, f"{count} parameters",
          "the loss does not depend on it: look for detach(), .data, .item(), no_grad, a list and no ModuleList, or "
          "a part that is not called; or freeze it: requires_grad_(False)")  # fmt: skip


def test_every_parameter_moves(lane_run: RunEvidence, measured: Measured) -> None:
    """Every trainable parameter that has a gradient and a learning rate is another one after the training."""
    found, count = [], 0
    for course in courses(lane_run):
        if len(course.recorded) < 2 or is_blind(course):
            continue
        start = {name: value for part in course.watched.tensors for name, value in part.start.items()}
        group_of = {name: group for group, names in course.groups.items() for name in names}
        for name, steps in course.trained.items():
            with_rate = [step for step in steps if rate_of(step, group_of.get(name)) != 0.0 and name in step.grad]
            if len(with_rate) < 2 or name not in start:
                continue
            count += 1
            norm, bits = start[name]
            if any(step.param[name] != norm or step.param_bits.get(name, bits) != bits for step in steps):
                continue
            gradients = [step.grad[name] for step in with_rate]
            precision = precision_of(course, name, with_rate[0])
            largest = max(course.largest_gradient[step.step] for step in with_rate)
            if 0.0 < max(gradients) <= NOISE * precision * largest:
                continue  # a bias before a normalization, say, which changes nothing
            module = name.rpartition(".")[0]
            beside = [n for n in course.trained if n != name and n.rpartition(".")[0] == module]
            if not any(gradients) and any(step.grad.get(n) for n in beside for step in with_rate):
                continue  # nor does one that all outputs have in common, where only their differences count
            first, last = with_rate[0], with_rate[-1]
            found.append(Finding(name, first.step,
                f"{course.where}step {first.step}: {name} has not moved, nor up to step {last.step}: its norm is "
                f"{norm:.6g} as before the training, its gradient's was {min(gradients):.3g} to {max(gradients):.3g} "
                f"at a learning rate of {rate_of(first, group_of.get(name)):.3g}"))  # fmt: skip
    judge(lane_run, measured, "not_moved", found, f"{count} parameters",
          "where the gradient is 0, something before it is (a dead activation, a mask, a factor of 0); where not, the "
          "update is smaller than the type's precision (bfloat16: keep a copy in float32), or undone")  # fmt: skip


def test_no_gradient_survives_a_step(lane_run: RunEvidence, measured: Measured) -> None:
    """No gradient is left from the step before."""
    found: dict[str, Finding] = {}
    looked = courses(lane_run)
    for course in looked:
        for step in course.taken:
            for name in step.kept_gradient:
                text = f"{course.where}step {step.step}: the gradient of {name} still holds that of the step before"
                found.setdefault(name, Finding(name, step.step, text))
    judge(lane_run, measured, "kept_gradient", list(found.values()), counted(looked),
          "call zero_grad() once after each step, on this optimizer; where gradients are copied into the same tensors "
          "(master copies of the weights), or add up over steps as meant, say so")  # fmt: skip


def test_every_parameter_is_in_an_optimizer(lane_run: RunEvidence, measured: Measured) -> None:
    """Every trainable parameter that the loss depends on is in an optimizer."""
    found: dict[str, Finding] = {}
    looked = courses(lane_run)
    for course in looked:
        parts = course.watched.tensors
        for step in course.taken:
            for name in step.no_optimizer:
                kinds = [part.tensors[name] for part in parts if name in part.tensors]
                if kinds and all(kind.optimizer is None for kind in kinds):
                    text = f"{course.where}step {step.step}: {name} has a gradient and is in no optimizer"
                    found.setdefault(name, Finding(name, step.step, text))
    names = {name for course in looked for part in course.watched.tensors for name in part.tensors}
    judge(lane_run, measured, "in_no_optimizer", list(found.values()), f"{len(names)} parameters",
          "make the optimizer when the model is whole, or add_param_group(); freeze what is not to be trained: "
          "requires_grad_(False)")  # fmt: skip


def test_learning_rate_is_not_zero(lane_run: RunEvidence, measured: Measured) -> None:
    """No parameter group has a learning rate of 0 at every step."""
    found = []
    looked = courses(lane_run)
    for course in looked:
        for group, names in course.groups.items():
            rates = [step.learning_rates[group] for step in course.taken if group < len(step.learning_rates)]
            meant = [name for name in names if is_on_purpose(lane_run.record.on_purpose, "zero_rate", name)]
            if rates and not any(rates) and meant != names:
                first = course.taken[0].step
                text = f"{course.where}step {first}: the learning rate of {names[0]}{more(names)} is 0"
                text += f", and so it is at all of {of(course.taken)}: group {group} of {course.label}"
                found.append(Finding(names[0], first, text))
    judge(lane_run, measured, "zero_rate", found, f"{sum(len(c.groups) for c in looked)} groups",
          "give the group a rate, or look at what computes it (a warm-up in whole numbers, a schedule that has ended); "
          "freeze what is not to be trained: requires_grad_(False)")  # fmt: skip


def test_learning_rate_follows_its_schedule(lane_run: RunEvidence, measured: Measured) -> None:
    """Where there is a learning-rate scheduler, it is stepped, or the rate moves."""
    found, told = [], []
    for course in courses(lane_run):
        end = course.watched.end
        made = [s for s in end.schedulers if s.optimizer == course.number] if end else []
        rates = {tuple(step.learning_rates) for step in course.taken}
        told += [f"{s.kind}: {s.steps} calls of step(), {len(rates)} rates" for s in made]
        if made and not any(s.steps for s in made) and len(rates) == 1 and len(course.taken) > 1:
            first = course.taken[0]
            text = f"{course.where}step {first.step}: {made[0].kind} was made for {course.label}, its step() was never "
            text += f"called, and the learning rate of {some(course)} is {show(first.learning_rates)} at all of "
            found.append(Finding("", first.step, text + of(course.taken)))
    if not told:
        raise NotApplicable("no scheduler was seen to be made for an optimizer that took steps")
    judge(lane_run, measured, "constant_rate", found, "; ".join(dict.fromkeys(told)),
          "call the scheduler's step() once an epoch or a step, as it counts; in a run that ends before its first "
          "epoch does, it is meant")  # fmt: skip


def test_no_batch_comes_twice_in_a_row(lane_run: RunEvidence, measured: Measured) -> None:
    """No optimizer takes two steps in a row on the same batch."""
    found, pairs = [], 0
    for course in courses(lane_run):
        twice = []
        for before, step in zip(course.steps, course.steps[1:], strict=False):
            pairs += "none" not in (before.batch, step.batch)
            if before.batch == step.batch != "none":
                twice.append(step)
        if twice:
            text = f"{course.where}step {twice[0].step}: {course.label}, with {some(course)}, is given the batch of "
            text += f"its step before, {twice[0].batch}; so it is at {len(twice)} of its {len(course.steps)} steps"
            found.append(Finding("", twice[0].step, text))
    if not pairs:
        raise NotApplicable("the batches of no two steps in a row were seen")
    judge(lane_run, measured, "same_batch", found, f"{pairs} pairs of steps",
          "look for next(iter(loader)) within the loop, an index that stands still, a generator that is seeded in each "
          "step; a program that has all its data in one batch, or overfits one, means it")  # fmt: skip


def test_loss_is_of_the_parameters(lane_run: RunEvidence, measured: Measured) -> None:
    """The loss of an optimizer's steps gives a gradient other than 0 to some of its parameters."""
    found = []
    looked = [course for course in courses(lane_run) if course.trained]
    for course in looked:
        steps = blind(course)
        if steps and (is_blind(course) or len(steps) >= LASTING):
            first, names = steps[0], list(course.trained)
            what = "has a gradient of norm 0" if first.grad else "has no gradient"
            text = f"{course.where}step {first.step}: each parameter of {course.label} {what}: {names[0]}{more(names)}"
            losses = f"a loss of {show(first.losses)}" if first.losses else f"{first.backwards} backward passes seen"
            found.append(Finding("", first.step, f"{text}; with {losses}, and so up to step {steps[-1].step}"))
    judge(lane_run, measured, "detached_loss", found, counted(looked),
          "look whether the loss is computed from the model's own output with gradients on, whether zero_grad() comes "
          "between backward() and step(), and whether the optimizer has this model's parameters and not a copy's"
          )  # fmt: skip


def test_replicas_agree_after_each_update(lane_run: RunEvidence, measured: Measured) -> None:
    """The processes of a data-parallel run have the same parameters after each update."""
    ranks: dict[int, list[Watched]] = {}
    for watched in processes_of(lane_run):
        if watched.header.ranks > 1 and watched.tensors:
            ranks.setdefault(watched.header.rank, []).append(watched)
    if len(ranks) < 2:
        raise NotApplicable("one process trained: there are no replicas")
    own, *others = (ranks[rank] for rank in sorted(ranks))
    found, compared = [], 0
    for other in others:
        for one, two in zip(own, other, strict=False):
            if whole(one) == whole(two) != {}:
                compared += min(len(one.steps), len(two.steps))
                found += list(_unlike(one, two))[:1]
    if not compared:
        raise NotApplicable("the processes have other values before the first step: parts of a model, or no replicas")
    judge(lane_run, measured, "unlike_replicas", found, f"{compared} steps of {len(ranks)} processes",
          "look whether each process averages its gradients (DistributedDataParallel, all_reduce) before its step, and "
          "whether anything but the data depends on the rank")  # fmt: skip


def test_everything_is_finite(lane_run: RunEvidence, measured: Measured) -> None:
    """No loss, gradient or parameter is NaN or infinite, but in steps that a gradient scaler left out."""
    found = []
    words = lane_run.record.on_purpose
    processes = processes_of(lane_run)
    for watched in processes:
        where = where_of(watched, processes)
        ours = (one for one in _not_finite(watched, where) if not is_on_purpose(words, "not_finite", one.name))
        found += [one for _, one in zip(range(1), ours, strict=False)]
    judge(lane_run, measured, "not_finite", found, f"{sum(len(w.steps) for w in processes)} steps",
          "this is the first one: what comes after follows from it; look at what that step was computed from (a "
          "logarithm or a root of 0, a division, a rate that is too high, float16 without a scaler)")  # fmt: skip


def test_evaluations_are_in_evaluation_mode(lane_run: RunEvidence, measured: Measured) -> None:
    """Between steps, no module with dropout or statistics of batches is called in training mode without gradients."""
    found: list[Finding] = []
    looked = courses(lane_run)
    for course in looked:
        # What comes before each of its steps is part of the step: a generator's output, say. What comes before the
        # first step of all only tries whether the model runs.
        steps = [step for step in course.steps if step.evaluations_in_train_mode and step.step > 1]
        if steps and len(steps) < len([step for step in course.steps if step.step > 1]):
            first = steps[0]
            text = f"{course.where}between step {first.step - 1} and step {first.step}: {_called(first)}"
            found.append(Finding("", first.step, f"{text}; so it is before {len(steps)} of {len(course.steps)} steps"))
    for watched in lane_run.watched:
        if watched.end and watched.end.evaluations_in_train_mode:
            text = f"{where_of(watched, lane_run.watched)}after step {watched.end.steps}, the last: "
            found.append(Finding("", watched.end.steps, text + _called(watched.end)))
    judge(lane_run, measured, "evaluation_in_train_mode", found, counted(looked),
          "call eval() before an evaluation, and train() after it: what is evaluated now is another model in each "
          "call, and batch normalization learns from the data it is evaluated on")  # fmt: skip


def test_training_is_in_train_mode(lane_run: RunEvidence, measured: Measured) -> None:
    """Where parameters are trained, dropout and batch normalization are in training mode."""
    found: dict[str, Finding] = {}
    looked = courses(lane_run)
    for course in looked:
        for step in course.taken:
            for name in step.in_evaluation_mode:
                text = f"{course.where}step {step.step}: {name} is in evaluation mode"
                found.setdefault(name, Finding(name, step.step, f"{text} while {some(course)} is trained"))
    judge(lane_run, measured, "training_in_evaluation_mode", list(found.values()), counted(looked),
          "call train() after an evaluation, and after loading a model that comes in evaluation mode")  # fmt: skip


def judge(run: RunEvidence, measured: Measured, word: str, found: Sequence[Finding], looked: str, action: str) -> None:
    """Fails for what is found and is not meant."""
    words = run.record.on_purpose
    left = [one for one in found if not is_on_purpose(words, word, one.name)]
    measured(f"{looked}; {len(left)} findings" + (f", {len(found) - len(left)} on purpose" * (len(left) < len(found))))
    lines = [one.text for one in sorted(left, key=lambda one: one.step)]
    if len(lines) > NAMED:
        lines[NAMED:] = [f"and {len(lines) - NAMED} more"]
    said = f"{word}:{left[0].name}" if left and WORDS[word] and left[0].name else word
    meant = f'where it is meant, in the lane\'s table: watch = {{on_purpose = ["{said}"]}}'
    is_sound = not left
    assert is_sound, "\n".join([*lines, f"next: {action}; {meant}"])


def _called(what: object) -> str:
    count, part = getattr(what, "evaluations_in_train_mode", 0), getattr(what, "random_part", "")
    return f"{part or 'a module'} was called in training mode with gradients off, {count} time{'s' * (count != 1)}"


def whole(watched: Watched) -> dict[str, tuple[float, str]]:
    """What the tensors that a process holds as a whole were before the first step."""
    first = watched.tensors[0]
    return {name: value for name, value in first.start.items() if not first.tensors[name].part}


def _unlike(one: Watched, two: Watched) -> Iterator[Finding]:
    """Where two processes differ after a step."""
    for a, b in zip(one.steps, two.steps, strict=False):
        if a.optimizer != b.optimizer:
            return
        for name in a.param:
            if name in b.param and (a.param[name], a.param_bits.get(name)) != (b.param[name], b.param_bits.get(name)):
                known = tensors_at(one, a.step).tensors.get(name)
                if known is None or known.part or math.isnan(a.param[name] + b.param[name]):
                    continue
                yield Finding(name, a.step,
                    f"rank {two.header.rank}, step {a.step}: {name} is another than on rank {one.header.rank} after "
                    f"the update: its norm is {b.param[name]:.9g}, there {a.param[name]:.9g}, and before the first "
                    "step all were the same")  # fmt: skip


def _not_finite(watched: Watched, where: str) -> Iterator[Finding]:
    """What is NaN or infinite, in the order in which it comes about."""

    def norms(step: int, when: str, what: str, values: dict[str, float]) -> Iterator[Finding]:
        for name, norm in values.items():
            if not math.isfinite(norm):
                yield Finding(name, step, f"{where}{when}: the norm of {what}{name} is {norm}")

    parts = iter([*watched.tensors])
    part = next(parts, None)
    for step in watched.steps:
        while part is not None and part.before_step <= step.step:
            yield from norms(
                step.step, f"before step {step.step}", "", {n: norm for n, (norm, _) in part.start.items()}
            )
            part = next(parts, None)
        if step.skipped:
            continue
        for loss in step.losses:
            if not math.isfinite(loss):
                yield Finding("loss", step.step, f"{where}step {step.step}: the loss is {loss}")
        yield from norms(step.step, f"step {step.step}", "the gradient of ", step.grad)
        yield from norms(step.step, f"step {step.step}, after the update", "", step.param)


__all__ = [name for name in list(globals()) if name.startswith("test_")] + ["pytestmark"]

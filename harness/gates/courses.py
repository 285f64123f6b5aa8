"""What each optimizer of a watched program did, step by step, as the gates on it read it (invariants.py)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.evidence import NotApplicable, RunEvidence
from harness.evidence.watched import Tensors, Watched, WatchedStep

# Of a number of this type, relatively.
PRECISION = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float64": 2.0**-52}  # of other types float32's
FLOAT32 = 2.0**-23


@dataclass(frozen=True)
class Course:
    """The steps that one optimizer took in one process."""

    where: str  # the process, where there are several
    watched: Watched
    number: int
    steps: list[WatchedStep]

    @cached_property
    def taken(self) -> list[WatchedStep]:
        return [step for step in self.steps if not step.skipped]

    @cached_property
    def recorded(self) -> list[WatchedStep]:
        """The steps of which norms were recorded."""
        return [step for step in self.taken if step.param]

    @cached_property
    def trained(self) -> dict[str, list[WatchedStep]]:
        """The trainable tensors, and the recorded steps in which each was one."""
        found: dict[str, list[WatchedStep]] = {}
        for step in self.recorded:
            tensors = tensors_at(self.watched, step.step).tensors
            for name in step.param:
                if name in tensors and tensors[name].trainable:
                    found.setdefault(name, []).append(step)
        return found

    @cached_property
    def groups(self) -> dict[int, list[str]]:
        """The trainable tensors of each parameter group."""
        found: dict[int, dict[str, None]] = {}
        for part in self.watched.tensors:
            for name, tensor in part.tensors.items():
                if tensor.optimizer == self.number and tensor.trainable and tensor.group is not None:
                    found.setdefault(tensor.group, {})[name] = None
        return {group: list(names) for group, names in found.items()}

    @property
    def label(self) -> str:
        optimizers = tensors_at(self.watched, self.steps[0].step).optimizers
        kind = optimizers[self.number].kind if self.number < len(optimizers) else "optimizer"
        return f"optimizer {self.number} ({kind})"

    @cached_property
    def largest_gradient(self) -> dict[int, float]:
        """By recorded step the largest norm of a trainable tensor's gradient; -1 where none has one."""
        found = {}
        for step in self.recorded:
            tensors = tensors_at(self.watched, step.step).tensors
            norms = [norm for name, norm in step.grad.items() if name in tensors and tensors[name].trainable]
            found[step.step] = math.nan if any(map(math.isnan, norms)) else max(norms, default=-1.0)
        return found


def processes_of(run: RunEvidence) -> list[Watched]:
    """The traces of a watched lane's processes. Raises NotApplicable for a lane that is not watched."""
    if not run.gives("watch"):
        raise NotApplicable(f'the lane {run.name} is not watched: trace = "watch" in its table')
    return run.watched


def courses(run: RunEvidence) -> list[Course]:
    """What each optimizer of each process did. Raises NotApplicable for a lane that is not watched."""
    processes, found = processes_of(run), []
    for watched in processes:
        steps: dict[int, list[WatchedStep]] = {}
        for step in watched.steps:
            steps.setdefault(step.optimizer, []).append(step)
        where = where_of(watched, processes)
        found += [Course(where, watched, number, taken) for number, taken in sorted(steps.items())]
    return found


def where_of(watched: Watched, processes: Sequence[Watched]) -> str:
    """Words for a process at the beginning of a message."""
    if len(processes) == 1:
        return ""
    return f"rank {watched.header.rank}, " if watched.header.ranks > 1 else f"{watched.path.name}, "


def tensors_at(watched: Watched, step: int) -> Tensors:
    """The tensors and optimizers as they were before a step."""
    return watched.tensors[max(0, bisect_right(watched.tensors, step, key=lambda part: part.before_step) - 1)]


def blind(course: Course) -> list[WatchedStep]:
    """The recorded steps, from one on to the end, in which no trainable parameter had a gradient other than 0; those
    with a loss of 0 left out, which has been reached."""
    steps: list[WatchedStep] = []
    for step in reversed(course.recorded):
        if not course.largest_gradient[step.step] <= 0.0:
            break
        if not step.losses or any(step.losses):
            steps.insert(0, step)
    return steps


def is_blind(course: Course) -> bool:
    """Whether that is so from the first recorded step on."""
    steps = blind(course)
    return bool(steps) and steps[0] is course.recorded[0]


def precision_of(course: Course, name: str, step: WatchedStep) -> float:
    kind = tensors_at(course.watched, step.step).tensors[name].kind
    return PRECISION.get(kind.partition(" ")[0], FLOAT32)


def counted(looked: Sequence[Course]) -> str:
    steps = sum(len(course.steps) for course in looked)
    return f"{steps} steps of {len(looked)} optimizers" if len(looked) > 1 else f"{steps} steps"


def of(steps: Sequence[WatchedStep]) -> str:
    return f"the {len(steps)} steps recorded, up to {steps[-1].step}"


def more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def show(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in dict.fromkeys(values))


def some(course: Course) -> str:
    """A parameter of an optimizer, and how many there are."""
    names = list(course.trained) or [name for group in course.groups.values() for name in group] or ["no parameter"]
    return names[0] + more(names)


def rate_of(step: WatchedStep, group: int | None) -> float:
    """The learning rate of a group; of an unknown one, the highest."""
    rates = step.learning_rates
    return rates[group] if group is not None and group < len(rates) else max(rates, default=0.0)

"""The trace of a watched program (harness/watch): one file for each process that trained, one JSON object a line."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from harness.evidence.errors import EvidenceError, mismatch, show
from harness.evidence.strict import Count, Hex16, HexFloat, Positive, Text, as_struct, open_regular, parse_json
from harness.evidence.trace import TRACE_LIMIT, Step, Trace

FOLDER = "watch"  # in the run directory
LINE_LIMIT = 64 << 20
Norms = dict[str, HexFloat]


class Header(Struct):
    """The first line: of which run and process."""

    schema: Literal["watch_trace/1"]
    run_id: Text
    lane: Literal["experimental"]
    promotable: Literal[False]
    torch: Text
    rank: Count
    ranks: Positive
    every: Positive
    program: Text


class Tensor(Struct):
    """A parameter of the program; `optimizer`: the number of the one that has it, and `group` its group there; `part`:
    whether the process holds a part of it (FSDP), of which its norms and bits are."""

    kind: Text
    trainable: bool
    optimizer: Count | None
    part: bool = False
    group: Count | None = None


class Optimizer(Struct):
    """An optimizer; `settings`: of each parameter group, but for the learning rate."""

    kind: Text = field(name="class")
    settings: list[dict[str, str]]


class Tensors(Struct):
    """All parameters and optimizers from a step on. `start`: norm and bits of those that are new, before that step."""

    before_step: Positive
    tensors: dict[str, Tensor]
    optimizers: list[Optimizer]
    start: dict[str, tuple[HexFloat, Hex16]]


class Settings(Struct):
    """The optimizers from a step on, where only their settings are others than before."""

    before_step: Positive
    optimizers: list[Optimizer]


class WatchedStep(Struct):
    """One `step()` of an optimizer. Norms and bits are there at some steps (docs/watch.md)."""

    step: Positive
    optimizer: Count
    backwards: Count
    losses: list[HexFloat]
    learning_rates: list[HexFloat]
    batch: Annotated[str, Meta(pattern=r"^([0-9a-f]{16}|none)\Z")]
    skipped: bool = False
    grad: Norms = {}
    param: Norms = {}
    grad_bits: dict[str, Hex16] = {}
    param_bits: dict[str, Hex16] = {}
    sketch: dict[str, list[HexFloat]] = {}
    forward: dict[str, tuple[HexFloat, Hex16]] = {}
    no_gradient: list[str] = []
    kept_gradient: list[str] = []
    no_optimizer: list[str] = []
    in_evaluation_mode: list[str] = []
    evaluations_in_train_mode: Count = 0
    random_part: str = ""


class Scheduler(Struct):
    """A learning-rate scheduler, of which optimizer it is, and how often the program called its `step`."""

    kind: Text = field(name="class")
    optimizer: Count
    steps: Count


class End(Struct):
    """The last line, where the process came to its end: how many steps, what could not be seen, and evaluations after
    the last step."""

    steps: Count
    unseen: list[str]
    schedulers: list[Scheduler] = []
    evaluations_in_train_mode: Count = 0
    random_part: str = ""


PARTS: dict[str, type[Struct]] = {
    "header": Header,
    "tensors": Tensors,
    "settings": Settings,
    "step": WatchedStep,
    "end": End,
}


class Watched:
    """The trace of one process. `end` is None where the process was killed, or is still there."""

    header: Header

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: list[Tensors] = []
        self.steps: list[WatchedStep] = []
        self.end: End | None = None

    @property
    def unseen(self) -> list[str]:
        """What the trace does not show, one line each."""
        if self.end is None:
            return [f"what came after step {len(self.steps)}: the process did not come to its end"]
        return self.end.unseen

    def outline(self) -> Trace:
        """What a comparison takes of it: its steps in the terms of the lane's trace."""
        outline = Trace(self.path)
        outline.initial = {name: norm for part in self.tensors for name, (norm, _) in part.start.items()}
        outline.optimizers = {
            f"optimizer {number} {optimizer.kind}.{index}.{name}": value
            for part in self.tensors[:1]
            for number, optimizer in enumerate(part.optimizers)
            for index, group in enumerate(optimizer.settings)
            for name, value in group.items()
        }
        outline.steps = [_step(step) for step in self.steps]
        return outline


def _step(step: WatchedStep) -> Step:
    return Step(
        step.step,
        [step.optimizer],
        step.batch,
        HexFloat(math.fsum(step.losses)),  # of no backward pass that was seen, 0
        [],
        [],
        0,
        step.grad,
        step.param,
        step.sketch,
        learning_rates=step.learning_rates,
        grad_bits=step.grad_bits,
        param_bits=step.param_bits,
        forward=step.forward,
        skipped=step.skipped,
    )


def read_watched(folder: Path, run_id: str | None = None) -> list[Watched]:
    """The traces of all processes of a run, by rank and then in the order in which they began. ``run_id``: only those
    of this run. Raises EvidenceError for a file that is not such a trace; one that ends within a line is read up to
    there."""
    try:
        names = sorted(path.name for path in folder.iterdir() if re.fullmatch(r"\d+(-\d+)?\.jsonl", path.name))
    except OSError:
        return []
    found = [_read(folder / name) for name in sorted(names, key=lambda n: [int(x) for x in re.findall(r"\d+", n)])]
    return [watched for watched in found if run_id in (None, watched.header.run_id)]


def _read(path: Path) -> Watched:
    watched = Watched(path)
    what = "the trace of a watched program"
    with open_regular(path, TRACE_LIMIT, what) as file:
        number = 0
        while (line := file.readline(LINE_LIMIT)).endswith(b"\n"):
            number += 1
            _take(watched, parse_json(line, f"{path} line {number}"), f"{path} line {number}")
    if not number:
        raise mismatch(path, "no whole line", what)
    return watched


def _take(watched: Watched, value: Any, where: str) -> None:
    """One line. Raises EvidenceError for one that cannot come here."""
    kind = value.get("kind") if isinstance(value, dict) else None
    is_first = "header" not in watched.__dict__
    if kind not in PARTS or is_first != (kind == "header") or watched.end is not None:
        raise mismatch(f"{where}: kind", show(kind), "header first, then tensors and steps, then end")
    found: Any = as_struct(value, PARTS[kind], where)
    if kind == "step":
        if found.step != len(watched.steps) + 1:
            raise mismatch(f"{where}: step", str(found.step), str(len(watched.steps) + 1))
        watched.steps.append(found)
    elif kind == "tensors":
        watched.tensors.append(found)
    elif kind == "settings":
        if not watched.tensors:
            raise mismatch(f"{where}: kind", show(kind), "tensors before it")
        watched.tensors.append(Tensors(found.before_step, watched.tensors[-1].tensors, found.optimizers, {}))
    elif kind == "header":
        watched.header = found
    else:
        if found.steps != len(watched.steps):
            raise EvidenceError(f"{where}: steps: found {found.steps}, expected {len(watched.steps)}, as there are")
        watched.end = found

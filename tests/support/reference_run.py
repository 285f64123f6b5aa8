"""What the reference (reference.py) says of one run: computed when it is first asked for, and once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import reference
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.evidence import RunEvidence
from harness.evidence.trace import Step


@dataclass(frozen=True)
class OneStep:
    """``losses`` by codebook and ``valid`` positions of a batch; by tensor its gradient, its value after the update and
    how far the update took it."""

    losses: NDArray[np.float64]
    valid: list[int]
    gradients: dict[str, Tensor]
    after: dict[str, dict[str, Tensor]]
    changes: dict[str, Tensor]

    @property
    def values(self) -> dict[str, Tensor]:
        return {name: of["value"] for name, of in self.after.items()}


def check(holds: bool, what: str) -> None:
    """An assert that `python -O` keeps, and that is one outside of the test's own file."""
    if not holds:
        raise AssertionError(what)


def relative(found: float, due: float, size: float | None = None) -> float:
    """How far ``found`` is from ``due``, as a part of ``size`` (else of ``due``); where that is 0, all or nothing."""
    size = abs(due) if size is None else size
    return abs(found - due) / size if size else math.inf if found != due else 0.0


class Reference:
    """The recipe of one run. ``model``: audiocraft's, in float64; ``conditions``: of so many chunks."""

    def __init__(self, model: Any, run: RunEvidence, conditions: Callable[[int], Any]) -> None:
        self.lm, self.run, self._conditions = model.lm, run, conditions
        self._settings = run.status.settings or {}
        self._rate = int(model.sample_rate)
        self._frame = round(self._rate / model.frame_rate)  # samples
        universal, half = run.trace.header.mode == "universal", run.environment["device"] != "cpu"
        # About thirty times what was measured on the shipped model (docs/lane.md): in float32, and in half, where the
        # frozen model computes in float16, on a GPU. There no more than half of a change, however: a lost update shows
        # as 0.55 of it.
        kind = "universal" if universal else "half" if half else "float32"
        self.rounding, self.moment_limit = {"universal": (1e-12, 1e-9)}.get(kind, (1e-5, 1e-4))
        self.loss_limit = {"universal": 1e-9, "float32": 1e-5, "half": 5e-3}[kind]
        self.gradient_limit = {"universal": 1e-9, "float32": 1e-4, "half": 0.3}[kind]
        # Adam's first steps show rounding most.
        self.first_limit = {"universal": 1e-9, "float32": 0.05, "half": 0.07}[kind]
        self.drift_limit = {"universal": 1e-9, "float32": 0.05, "half": 0.5}[kind]  # of many steps, one after the other
        self.last_limit = {"universal": 1e-9, "float32": 1e-3, "half": 0.5}[kind]
        self._clamp = math.inf if half else reference.CLAMP  # the lane clamps on a CPU alone
        # What rounding alone moves a value by: a tensor that the update leaves (learning rate 0) is no further off.
        self._grain = 1e-14 if universal else 1e-6

    @cached_property
    def chunks(self) -> list[tuple[str, int]]:
        """Of each chunk the file's SHA-256 and the first sample, by the manifest and the settings."""
        files = [(entry.sha256, entry.frames, entry.sample_rate) for entry in self.run.manifest.entries]
        lengths = (self._settings["chunk_seconds"], self._settings["stride_seconds"])
        return list(reference.chunks_of(files, self._rate, self._frame, *lengths))

    @cached_property
    def _split(self) -> tuple[list[int], list[int]]:
        out = reference.held_out(self.chunks, self._settings["holdout"])
        length = self.run.trace.tokens.shape[2] * self._frame
        return reference.trained_on(self.chunks, out, length), out

    @property
    def uses(self) -> list[str]:
        """What each chunk is for."""
        train, out = self._split
        told = {**dict.fromkeys(train, "train"), **dict.fromkeys(out, "held_out")}
        return [told.get(i, "neither") for i in range(len(self.chunks))]

    @property
    def measured(self) -> list[int]:
        return reference.measured(self._split[1])

    @property
    def measured_after(self) -> list[int]:
        """The steps after which the held-out loss is measured."""
        steps, every = self._settings["steps"], self._settings["eval_every"]
        return [s for s in range(1, steps + 1) if self.measured and (s % every == 0 or s == steps)]

    @cached_property
    def batches(self) -> list[list[int]]:
        told = self._settings
        return reference.batches(self._split[0], told["seed"], told["batch"], told["steps"])

    @cached_property
    def first(self) -> dict[str, Tensor]:
        return reference.first_values(self.lm, self._settings["seed"])

    def rate(self, step: int) -> float:
        return reference.learning_rate(step, self._settings["steps"], self._settings["learning_rate"])

    def all_steps(self) -> Iterator[OneStep]:
        """Every step, each from what the one before gave."""
        zeros = {name: torch.zeros_like(value) for name, value in self.first.items()}
        state = {name: {"value": v, "first": zeros[name], "second": zeros[name]} for name, v in self.first.items()}
        for step in range(1, self._settings["steps"] + 1):
            yield (now := self._step(state, step))
            state = now.after

    @cached_property
    def two_steps(self) -> list[OneStep]:
        """The first two steps."""
        return list(itertools.islice(self.all_steps(), 2))

    @cached_property
    def last(self) -> OneStep:
        """The last step, from what the run had before it."""
        kinds = ("value", "first", "second")
        state = {name: {kind: self.left("before", name, kind) for kind in kinds} for name in self.first}
        return self._step(state, self._settings["steps"])

    def _step(self, state: dict[str, dict[str, Tensor]], step: int) -> OneStep:
        codes = torch.from_numpy(self.run.tokens[self.batches[step - 1]].astype(np.int64))
        values = {name: of["value"] for name, of in state.items()}
        losses, valid, gradients = reference.gradients(
            self.lm, values, codes, self._conditions(len(codes)), self._clamp
        )
        how = {"step": step, "rate": self.rate(step), "decay": self._settings["weight_decay"]}
        moved = {
            n: reference.adamw(of["value"], gradients[n], of["first"], of["second"], **how) for n, of in state.items()
        }
        after = {name: dict(zip(("value", "first", "second"), of, strict=True)) for name, of in moved.items()}
        changes = {name: after[name]["value"] - values[name] for name in values}
        return OneStep(losses.numpy(), valid, gradients, after, changes)

    def hold(self, found: Step, due: OneStep, *, loss: float, gradient: float, change: float) -> dict[str, float]:
        """Holds a step of the trace against the reference's: losses and gradients by themselves, each parameter's norm
        by the change that the update made. Gives how far they are apart at most."""
        where, apart = f"at step {found.step}", {"loss": 0.0, "gradient": 0.0, "parameter": 0.0}

        def one(kind: str, what: str, told: float, is_due: float, limit: float, size: float | None = None) -> None:
            apart[kind] = max(apart[kind], off := relative(told, is_due, size))
            of = "relatively" if size is None else "of the change"
            check(
                off <= limit,
                f"{where} {what} is {told!r}, the reference's {is_due!r}: {off:.1e} {of}, {limit:.0e} allowed",
            )

        check(found.valid == due.valid, f"{where} {found.valid} positions count, and the reference has {due.valid}")
        count = len(found.loss_by_codebook)
        check(count == len(due.losses), f"{where} {count} codebooks have a loss, and the model has {len(due.losses)}")
        for k, (told, is_due) in enumerate(zip(found.loss_by_codebook, due.losses.tolist(), strict=True)):
            one("loss", f"the loss of codebook {k}", told, is_due, loss)
        one("loss", "the loss", found.loss, float(due.losses.mean()), loss)
        for name, value in due.gradients.items():
            one(
                "gradient",
                f"the gradient norm of {name}",
                found.grad.get(name, math.nan),
                float(value.norm()),
                gradient,
            )
        for name, value in due.values.items():
            size = self._size(due.changes[name], value, change)
            one(
                "parameter",
                f"the norm of {name} after the update",
                found.param.get(name, math.nan),
                float(value.norm()),
                change,
                size,
            )
        return apart

    def hold_tensor(self, what: str, found: Tensor, due: Tensor, before: Tensor, limit: float) -> float:
        """Holds a tensor against the reference's, by the change since ``before``. Gives how far they are apart."""
        apart = relative(float((found - due).norm()), 0.0, self._size(due - before, due, limit))
        check(apart <= limit, f"{what} is {apart:.1e} of the change away from the reference's, {limit:.0e} allowed")
        return apart

    def _size(self, change: Tensor, value: Tensor, limit: float) -> float:
        """The size of a change; where there is next to none, what rounding alone may be."""
        return max(float(change.norm()), self._grain * float(value.norm()) / limit)

    def left(self, when: str, name: str, kind: str) -> Tensor:
        """What the run left of its last step, ``before`` or ``after`` it: a ``value``, its ``first`` or ``second``
        moment, in float64."""
        return torch.from_numpy(self.run.last_step.tensors[f"{when}.{name}.{kind}"].astype(np.float64))

    def second_moments(self, name: str) -> float:
        """The sum of a tensor's second moments after the last step, by the norms of all its gradients: each update
        keeps 0.999 of them and adds 0.001 of the gradient's squares."""
        total = 0.0
        for step in self.run.trace.steps:
            total = reference.BETA2 * total + (1 - reference.BETA2) * step.grad[name] ** 2
        return total

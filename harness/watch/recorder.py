"""Records what a PyTorch program computes in each step, from inside its process and without a line changed in it.

Loaded by hook/sitecustomize.py into a program that need not know this project: nothing here imports anything of it, and
besides the standard library only torch (and NumPy for sketches, where it is there). docs/watch.md says what is seen
how, and what is not; the format of the file is in docs/evidence.md.

It reads and never writes: no random number is drawn, no tensor of the program is touched, no graph is added to. What
goes wrong here ends the recording, is said in its last line, and goes no further.
"""

from __future__ import annotations

import json
import os
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .lines import Lines
from .measure import (
    bits,
    digest,
    every_for,
    flat,
    hexes,
    is_full,
    norms,
    plain,
    rank,
    rate,
    settings,
    sketch_function,
    text,
    together,
)
from .modes import in_evaluation_mode, random_part
from .names import first_here, is_part
from .parameters import ByParameter, labels, owners

SCHEMA = "watch_trace/1"
SMALL = 250_000  # values of all tensors together up to which their bits are recorded at every step
SKETCHED = 4_000_000  # values up to which there are sketches
PROJECTIONS = 8
NAMED = 20  # tensors that a list names


class Recorder:
    """What is known of this process. One optimizer's `step()` is a step, whichever optimizer it is of."""

    def __init__(self, options: Mapping[str, Any], attend: Callable[[Any], None]) -> None:
        self._attend = attend  # called with each module that is found to own parameters and lies in no other
        self.folder = Path(options["folder"])
        self.run_id: str = options.get("run_id", "none")
        self.every: int = options.get("every", 0)  # 0: as often as every_for says
        self.limit: int = options.get("limit_bytes", 64 << 20)
        self.modules: list[str] = options.get("modules", [])
        self.pid = os.getpid()
        self.is_in_place = False
        self.broken = ""  # why nothing is recorded any more
        self._reset()

    def _reset(self) -> None:
        self.file: Lines | None = None
        self.in_file = 0  # steps
        self.steps = 0
        self.inside: list[int] = []  # optimizers whose step() runs: one that calls another's is one step
        self.unseen: dict[str, None] = {}
        self.scaled_from = 0
        self.seen_inputs = False
        self.optimizers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.taken: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # steps of each optimizer
        self.names = ByParameter()
        self.roots: list[Any] = []  # weak references to modules, outermost first
        self.told = ["", ""]  # of the tensors and of the optimizers, when they were last written
        self.met = ByParameter()  # parameters whose first values were written
        self.kept: dict[int, list[Any]] = {}  # by optimizer, its parameters and their gradients after its last step
        self.cleared: set[int] = set()  # of those, the ones that were seen to be zero since, or away
        self.schedulers: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
        self.scheduled: list[dict[str, Any]] = []  # what the last line says of them
        self._between()

    def _between(self) -> None:
        """Forget what belongs to one step."""
        self.depth, self.backwards, self.train_mode, self.random = 0, 0, 0, ""
        self.within_backward = False
        self.inputs: list[str] = []
        self.loaded: list[str] = []
        self.losses: list[Any] = []
        self.scale = 1.0  # of a gradient scaler
        self.outputs: dict[str, tuple[float, int]] = {}
        self.gradients: dict[str, Any] | None = None

    # What torch calls

    def adopt(self, optimizer: Any) -> None:
        """A new optimizer: find the modules that own its parameters, for names and inputs."""
        self._here()
        self.optimizers[optimizer] = len(self.optimizers)
        self._name()

    def schedule(self, scheduler: Any) -> None:
        """A new learning-rate scheduler."""
        if (number := self.optimizers.get(scheduler.optimizer)) is not None:
            self.schedulers[scheduler] = {"class": type(scheduler).__name__, "optimizer": number, "steps": 0}
            self.scheduled.append(self.schedulers[scheduler])

    def before_schedule(self, scheduler: Any) -> None:
        if scheduler in self.schedulers and not getattr(scheduler, "_is_initial", False):
            self.schedulers[scheduler]["steps"] += 1

    def before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._here()
        if id(optimizer) in self.inside:  # a step that ended in an exception
            self.inside.clear()
        self.inside.append(id(optimizer))
        if len(self.inside) == 1:
            self._open()
            self._tell_tensors()
            self.gradients = None
            if not args and kwargs.get("closure") is None:  # else they are computed within
                self.gradients = self._gradients(optimizer)

    def after_step(self, optimizer: Any) -> None:
        self._here()
        if id(optimizer) in self.inside:
            del self.inside[self.inside.index(id(optimizer)) :]
        if self.inside:
            return
        gradients = self.gradients if self.gradients is not None else self._gradients(optimizer)
        own = self._count(optimizer)
        parameters = self._parameters(optimizer)
        line = self._line(optimizer) | gradients
        if self._is_due(own):
            values = [plain(p) for p in parameters.values()]
            line["param"] = dict(zip(parameters, map(text, norms(values)), strict=True))
            if self._is_full(own):
                line["param_bits"] = {name: hexes(bits(plain(p), first_here(p))) for name, p in parameters.items()}
                line |= self._state(parameters)
                if sketches := self._sketches(dict(zip(parameters, values, strict=True))):
                    line["sketch"] = sketches
        self.kept.pop(id(optimizer), None)
        if is_full(own) or is_full(own + 1):  # looked at in the step after
            self.kept[id(optimizer)] = [
                (weakref.ref(p), weakref.ref(p.grad)) for p in parameters.values() if p.grad is not None
            ]
        self.cleared.clear()
        self._write(line)
        self._between()

    def skipped(self, optimizer: Any) -> None:
        """A gradient scaler left out a step."""
        self._here()
        self._open()
        self._tell_tensors()
        self._count(optimizer)
        self._write({**self._line(optimizer), "skipped": True})
        self._between()

    def before_scaled_step(self, scaler: Any, *_: Any, **__: Any) -> None:
        if scaler.is_enabled():
            self.scale, self.scaled_from = scaler.get_scale(), self.steps

    def after_scaled_step(self, _: Any, scaler: Any, optimizer: Any, *__: Any, **___: Any) -> None:
        if scaler.is_enabled() and self.steps == self.scaled_from:
            self.skipped(optimizer)

    def after_backward(self, *_: Any, **__: Any) -> None:
        self.within_backward = False

    def before_backward(self, tensors: Any = (), *_: Any, **__: Any) -> None:
        self._here()
        if self.within_backward:  # a checkpointed part computes its own
            return
        self.within_backward, self.depth = True, 0
        self.backwards += 1
        for loss in [tensors] if isinstance(tensors, torch.Tensor) else tensors or ():
            if isinstance(loss, torch.Tensor) and loss.numel() == 1:
                self.losses.append(loss.detach().clone())
        for gradients in self.kept.values():
            held = [(p(), g()) for p, g in gradients if g() is not None]
            away = [p is None or p.grad is not g for p, g in held]  # a wrapper may give the same tensor back
            zero = [norm == 0.0 for norm in norms([plain(g) for _, g in held])]
            self.cleared.update(id(g) for (_, g), *free in zip(held, away, zero, strict=True) if any(free))

    def before_forward(self, module: Any, args: Any, kwargs: Any) -> None:
        self._here()
        self.depth += 1
        if self.depth > 1:
            return
        if torch.is_grad_enabled():
            self.inputs.append(digest((args, kwargs)))
        elif found := random_part(module):
            self.train_mode += 1
            self.random = self.random or f"{type(module).__name__}: {found}"

    def after_forward(self) -> None:
        self.depth = max(0, self.depth - 1)

    def after_load(self, batch: Any) -> None:
        self._here()
        if torch.is_grad_enabled():
            self.loaded.append(digest(batch))

    def after_module(self, name: str, output: Any) -> None:
        """The output of a module that was asked for: the first in a step counts."""
        parts = flat(output)
        found = next((part for part in parts if part.is_floating_point()), None)
        if found is not None and name not in self.outputs and torch.is_grad_enabled():
            self.outputs[name] = (norms([plain(found)])[0], bits(plain(found)))

    # What is written

    def _line(self, optimizer: Any) -> dict[str, Any]:
        line: dict[str, Any] = {
            "kind": "step",
            "step": self.steps,
            "optimizer": self.optimizers.setdefault(optimizer, len(self.optimizers)),
            "backwards": self.backwards,
            "losses": [text(float(loss) / self.scale) for loss in self.losses],
            "learning_rates": [text(rate(group)) for group in optimizer.param_groups],
            "batch": together([*self.loaded, *self.inputs]),
        }
        self.seen_inputs |= line["batch"] != "none"
        if self.outputs:
            line["forward"] = {name: [text(norm), hexes(found)] for name, (norm, found) in sorted(self.outputs.items())}
        if self.train_mode:
            line |= {"evaluations_in_train_mode": self.train_mode, "random_part": self.random}
        return line

    def _count(self, optimizer: Any) -> int:
        """One step more; returns which of this optimizer it is. What is recorded when goes by that: of two that take
        turns, each second step of all would be those of one."""
        self.steps += 1
        self.taken[optimizer] = self.taken.get(optimizer, 0) + 1
        return self.taken[optimizer]

    def _gradients(self, optimizer: Any) -> dict[str, Any]:
        """The gradients as the optimizer meets them: after clipping and unscaling. In the midst of its step (a closure)
        and after it alike: those of the one that is not counted yet."""
        step = self.taken.get(optimizer, 0) + 1
        if not self._is_due(step):
            return {}
        parameters = self._parameters(optimizer)
        there = {name: plain(p.grad) for name, p in parameters.items() if p.grad is not None}
        found: dict[str, Any] = {"grad": dict(zip(there, map(text, norms(list(there.values()))), strict=True))}
        if missing := [name for name, p in parameters.items() if p.grad is None and p.requires_grad]:
            found["no_gradient"] = missing[:NAMED]
        before = {id(g()) for _, g in self.kept.get(id(optimizer), []) if g() is not None} - self.cleared
        survived = [name for name, p in parameters.items() if p.grad is not None and id(p.grad) in before]
        if survived and self.backwards:  # without one, what computes the gradients writes over them
            found["kept_gradient"] = survived[:NAMED]
        if is_full(step):
            owned = {id(p) for o in self.optimizers for group in o.param_groups for p in group["params"]}
            free = {id(p): p for root in self._alive() for p in root.parameters() if id(p) not in owned}
            if idle := [self.names[p] for p in free.values() if p.requires_grad and p.grad is not None]:
                found["no_optimizer"] = idle[:NAMED]
        if self._is_full(step):
            found["grad_bits"] = {name: hexes(bits(g, first_here(parameters[name]))) for name, g in there.items()}
        return found

    def _state(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Which modules are in evaluation mode in or beside what learns."""
        trained = {id(p) for p in parameters.values() if p.requires_grad}
        found = [name for root in self._alive() for name in in_evaluation_mode(root, trained)]
        return {"in_evaluation_mode": found[:NAMED]} if found else {}

    def _sketches(self, values: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
        if sum(v.numel() for v in values.values()) > SKETCHED:
            return {}
        sketch = sketch_function()
        return {name: [text(x) for x in sketch(v.double().cpu().numpy(), projections=PROJECTIONS)]
                for name, v in values.items() if not v.is_complex()} if sketch else {}  # fmt: skip

    def _tell_tensors(self) -> None:
        """The tensors and optimizers, where they are others than were written last: before the first step, or new.
        Of a tensor that is new also what it is before that step."""
        where = {
            id(p): {"optimizer": number, "group": index}
            for o, number in self.optimizers.items()
            for index, group in enumerate(o.param_groups)
            for p in group["params"]
        }
        self._name()
        everything = {id(p): p for root in self._alive() for p in root.parameters()}
        wanted = [p for o in self.optimizers for group in o.param_groups for p in group["params"]]
        everything |= {id(p): p for p in wanted}
        if not all(p in self.names for p in everything.values()):  # a module has got further ones
            self.names = labels(self._alive(), wanted)
        tensors = {
            self.names[p]: {"kind": f"{str(p.dtype).removeprefix('torch.')} {'x'.join(map(str, p.shape))}",
                              "trainable": p.requires_grad, "optimizer": None, **where.get(key, {})}
                              | ({"part": True} if is_part(p) else {})
            for key, p in everything.items()
        }  # fmt: skip
        optimizers = [
            {"class": type(o).__name__, "settings": [settings(group) for group in o.param_groups]}
            for o in sorted(self.optimizers, key=lambda o: self.optimizers[o])
        ]
        is_known, were = [json.dumps(tensors), json.dumps(optimizers)], self.told
        self.told = is_known
        if is_known[0] == were[0] and is_known[1] != were[1]:  # a schedule of the momentum, say
            self._write({"kind": "settings", "before_step": self.steps + 1, "optimizers": optimizers})
        elif is_known != were:
            new = {self.names[p]: p for p in everything.values() if p not in self.met}
            for p in everything.values():
                self.met[p] = ""
            values = zip(new.items(), norms(list(map(plain, new.values()))), strict=True)
            start = {name: [text(norm), hexes(bits(plain(p), first_here(p)))] for (name, p), norm in values}
            self._write({"kind": "tensors", "before_step": self.steps + 1, "tensors": tensors, "optimizers": optimizers,
                         "start": start})  # fmt: skip

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.file is None:
            return
        if self.file.size > self.limit:
            self.broken = f"the trace has reached its limit of {self.limit:,} bytes"
            self.unseen[f"the steps from {self.steps} on: {self.broken}"] = None
            self.close()
            return
        self.file.write(line)
        self.in_file += line["kind"] == "step"

    def _open(self) -> None:
        if self.file is not None or self.broken:
            return
        own, ranks = rank()
        self.file = Lines(self.folder, own)
        self._write(
            {"kind": "header", "schema": SCHEMA, "run_id": self.run_id, "lane": "experimental", "promotable": False,
             "torch": torch.__version__, "rank": own, "ranks": ranks, "every": self.every or every_for(self._size()),
             "program": Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "none"}
        )  # fmt: skip

    def close(self) -> None:
        """The last line: how many steps there were, and what was not seen."""
        if self.file is None or os.getpid() != self.pid:
            return
        if self.steps and not self.seen_inputs:
            self.unseen["the batches: neither a DataLoader nor the call of a module was seen"] = None
        file, self.file = self.file, None
        end = {"kind": "end", "steps": self.in_file, "unseen": list(self.unseen), "schedulers": self.scheduled}
        if self.train_mode:
            end |= {"evaluations_in_train_mode": self.train_mode, "random_part": self.random}
        file.write(end)
        file.close()

    def fail(self, error: Exception) -> None:
        """End the recording for a fault of its own."""
        self.broken = f"{type(error).__name__}: {error}"[:200]
        self.unseen[f"what came after step {self.steps}: the recorder failed ({self.broken})"] = None
        try:
            self.close()
        except Exception:
            self.file = None

    # What there is to see

    def _here(self) -> None:
        """In a process that was forked from the recorded one a recording of its own begins, if it trains."""
        if os.getpid() != self.pid:
            self.pid = os.getpid()
            names, roots = self.names, self.roots
            self._reset()
            self.names, self.roots = names, roots  # what the parent had is here too

    def _is_due(self, step: int) -> bool:
        return step <= 2 or is_full(step) or step % (self.every or every_for(self._size())) == 0

    def _is_full(self, step: int) -> bool:
        return is_full(step) or self._size() <= SMALL

    def _size(self) -> int:
        return sum(p.numel() for o in self.optimizers for group in o.param_groups for p in group["params"])

    def _parameters(self, optimizer: Any) -> dict[str, Any]:
        self._name()
        return {self.names[p]: p for group in optimizer.param_groups for p in group["params"]}

    def _alive(self) -> list[Any]:
        return [module for module in (root() for root in self.roots) if module is not None]

    def _name(self) -> None:
        """Names for the parameters of all optimizers, from the modules that own them; where none does, by number."""
        wanted = [p for o in self.optimizers for group in o.param_groups for p in group["params"]]
        if all(p in self.names for p in wanted):
            return
        roots = owners(wanted)
        self.names = labels(roots, wanted)
        known = {id(root) for root in self._alive()}
        if {id(p) for p in wanted} - {id(p) for root in roots for p in root.parameters()}:
            self.unseen["the names of parameters: no module that has them was found, and they go by number"] = None
        self.roots = [weakref.ref(root) for root in roots]
        for root in roots:
            if id(root) not in known:
                self._attend(root)

"""Where two results part, by how much, and what that looks like; shared by the comparison with a baseline and explain.

`walk` lists everything two results can be compared in, in the order in which a run computes it; a `Rule` says what is
out of bounds. The first item that is out of bounds is where the results part. Only *criterion* items decide: all, but
for the sketches of the end where bits are compared, which the digest decides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.baselines.result import Result, StepResult, total
from harness.numerics.sketch import Sketch, sketch_distance

ROUNDED_SKETCH = 1e-5  # sketches on the way are kept in float32: nothing smaller shows in them
EQUAL_SKETCH = 1e-9  # equal tensors have equal sketches, up to the order in which a BLAS adds


@dataclass(frozen=True)
class Rule:
    """What may differ. A tolerance of 0 means: to the bit."""

    name: str
    digests: bool  # whether the tensor digests must be equal
    loss: float  # of every loss: |obtained - expected| / |expected|
    tensor: float  # of every tensor: L2 distance / L2 norm of its change in training


@dataclass(frozen=True)
class Item:
    """One thing that two results can be compared in. A value of None is one that is not there."""

    part: str
    step: int
    phase: str
    what: str
    obtained: str | float | None
    expected: str | float | None
    distance: float  # 0: equal; NaN or infinity: no distance can be given
    allowed: float
    tensor: str = ""
    criterion: bool = True

    @property
    def out_of_bounds(self) -> bool:
        """NaN equals nothing: a distance that is not a number is out of bounds."""
        return not self.distance <= self.allowed

    def row(self) -> tuple[str, str, str, str]:
        """What, obtained, expected, distance: a row of the table of a failure."""
        pair = _text(self.obtained), _text(self.expected)
        if pair[0] == pair[1] and isinstance(self.obtained, float) and isinstance(self.expected, float):
            pair = repr(self.obtained), repr(self.expected)  # every digit, where ten show no difference
        return self.what, *pair, self._distance()

    def _distance(self) -> str:
        if isinstance(self.obtained, str) or isinstance(self.expected, str) or None in (self.obtained, self.expected):
            return "differs"
        if math.isnan(self.distance):
            return "not a number"
        unit = (" of its change" if self.phase == "checkpoint" else " relative") if self.criterion else ""
        allowed = f" (allowed {self.allowed:.0e})" if self.criterion and self.allowed else ""
        return f"{self.distance:.1e}{unit}{allowed}"


@dataclass(frozen=True)
class Divergence:
    """The first place in which two results differ."""

    step: int  # 0: before training; one more than the last step: after it
    steps: int
    phase: str
    tensors: tuple[str, ...]  # that differ there, the farthest first; empty where single tensors are not known
    item: Item
    tensors_known: int  # tensors that could have differed there

    def text(self) -> str:
        """One line: `step 3 of 24, phase optimizer, tensor 0.linear1.up`."""
        if self.phase in ("data", "tokens", "start") and self.step == 0:
            place = "before the first step"
        elif self.step > self.steps:
            place = "after the last step"
        else:
            place = f"step {self.step} of {self.steps}"
        named = ", ".join(self.tensors[:2]) + (f" and {len(self.tensors) - 2} more" if len(self.tensors) > 2 else "")
        tensor = f", tensor {named}" if self.tensors else ""
        what = "" if self.tensors else f" ({self.item.what})"
        return f"{place}, phase {self.phase}{tensor}{what}"


def walk(obtained: Result, expected: Result, rule: Rule) -> Iterator[Item]:
    """Everything in which the two can be compared under `rule`, in the order in which a run computes it."""
    norms = 0.0 if rule.loss == 0.0 else rule.tensor if not rule.digests else rule.loss

    def text(part: str, step: int, phase: str, what: str, a: str | None, b: str | None, tensor: str = "") -> Item:
        return Item(part, step, phase, what, a, b, 0.0 if a == b and a is not None else math.inf, 0.0, tensor)

    def loss(step: int, phase: str, what: str, a: float | None, b: float | None) -> Item:
        scale = abs(b) if b is not None else 1.0
        return Item("loss", step, phase, what, a, b, _apart(a, b, scale, bits=rule.loss == 0.0), rule.loss)

    def norm_items(step: int, phase: str, label: str, a: Mapping[str, float], b: Mapping[str, float]) -> Iterator[Item]:
        floor = 0.01 * total(b.values())
        where = f", step {step}" if step else ""
        for name in sorted(set(a) & set(b)):
            distance = _apart(a[name], b[name], max(b[name], floor), bits=norms == 0.0)
            what = f"norm of the {label} of {name}{where}"
            yield Item("checkpoint", step, phase, what, a[name], b[name], distance, norms, name)

    def batch(a: StepResult, b: StepResult) -> Item:
        """Of data-parallel ranks (evidence/ranks.py) it says which of them has another batch."""
        each = list(itertools.zip_longest(a.batch.split("/"), b.batch.split("/"), fillvalue="none"))
        other = [str(rank) for rank, (x, y) in enumerate(each) if x != y]
        whose = f" of rank {' and '.join(other[:3])}" if other and len(each) > 1 else ""
        phase = "data" if b.rates else "tokens"
        return text("loss", b.step, phase, f"digest of the batch{whose}, step {b.step}", a.batch, b.batch)

    yield text("dataset", 0, "data", "dataset digest", obtained.dataset_digest, expected.dataset_digest)
    yield text("tokens", 0, "tokens", "tokens digest", obtained.tokens_digest, expected.tokens_digest)
    yield text("loss", 0, "start", "digest of the frozen model", obtained.base_digest, expected.base_digest)
    yield from norm_items(0, "start", "initial value", obtained.start_param, expected.start_param)
    optimizers = [{n: v for n, v in r.settings.items() if n.startswith("optimizer ")} for r in (obtained, expected)]
    if all(optimizers):
        for name in sorted({*optimizers[0], *optimizers[1]}):
            yield text("loss", 0, "start", f"setting of {name}", optimizers[0].get(name), optimizers[1].get(name))
    computed = {step.step: step for step in obtained.steps}  # a recording may leave out some of many steps
    pairs = [(computed[step.step], step) for step in expected.steps if step.step in computed]
    # The losses before the first step are those of its batch: where that is another, so are they.
    for a, b in pairs[:1]:
        yield text("loss", b.step, "data", f"order of chunks, step {b.step}", a.chunks, b.chunks)
        yield batch(a, b)
    # As they are computed (without adapters, with them, held out): the first that differs says the most.
    for name in sorted({*obtained.start_losses, *expected.start_losses}, key=lambda n: (n[:4] != "loss", -len(n))):
        label = {"loss": "loss before the first step", "loss_without_adapters": "loss without adapters"}.get(name, name)
        yield loss(0, "start", label, obtained.start_losses.get(name), expected.start_losses.get(name))

    scales = _scales(expected)
    for index_of_pair, (a, b) in enumerate(pairs):
        where = f", step {b.step}"
        if index_of_pair:
            yield text("loss", b.step, "data", f"order of chunks{where}", a.chunks, b.chunks)
            yield batch(a, b)
        for name in sorted(set(a.forward) & set(b.forward)):
            yield loss(b.step, "forward", f"norm of the output of {name}{where}", a.forward[name], b.forward[name])
        yield loss(b.step, "forward", f"loss{where}", a.loss, b.loss)
        for index, (x, y) in enumerate(itertools.zip_longest(a.by_codebook, b.by_codebook)):
            yield loss(b.step, "forward", f"loss of {'rank' if b.rates else 'codebook'} {index}{where}", x, y)
        yield text("loss", b.step, "forward", f"valid positions{where}", _counts(a.valid), _counts(b.valid))
        yield text("loss", b.step, "forward", f"sanitized logits{where}", str(a.sanitized), str(b.sanitized))
        yield from norm_items(b.step, "backward", "gradient", a.grad, b.grad)
        yield from norm_items(b.step, "backward", "gradient", {"all": a.grad_total}, {"all": b.grad_total})
        if a.grad_bits and b.grad_bits:
            yield text("loss", b.step, "backward", f"bits of all gradients{where}", a.grad_bits, b.grad_bits)
        for index, (x, y) in enumerate(itertools.zip_longest(a.rates, b.rates)):
            yield loss(b.step, "optimizer", f"learning rate of group {index}{where}", x, y)
        for name in sorted(set(a.sketch) & set(b.sketch)):
            distance = _sketches_apart(a.sketch[name], b.sketch[name], scales.get(name, 0.0))
            what = f"{name} after step {b.step}"
            allowed = max(rule.tensor, ROUNDED_SKETCH, rounding(b.sketch[name], scales.get(name, 0.0)))
            yield Item("checkpoint", b.step, "optimizer", what, None, None, distance, allowed, name)
        yield from norm_items(b.step, "optimizer", "value", a.param, b.param)
        yield from norm_items(b.step, "optimizer", "value", {"all": a.param_total}, {"all": b.param_total})
        if a.param_bits and b.param_bits:
            yield text("loss", b.step, "optimizer", f"bits of all parameters{where}", a.param_bits, b.param_bits)
    ends = [steps[-1].step if steps else 0 for steps in (obtained.steps, expected.steps)]
    count = min(ends) + 1
    yield text("loss", count, "forward", "steps in the trace", *map(str, ends))
    for name in sorted(set(obtained.end_losses) | set(expected.end_losses)):
        yield loss(count, "evaluation", name, obtained.end_losses.get(name), expected.end_losses.get(name))

    for name in sorted(set(obtained.tensors) | set(expected.tensors)):
        p, q = obtained.tensors.get(name), expected.tensors.get(name)
        kinds = (p.kind if p else None, q.kind if q else None)
        yield text("checkpoint", count, "checkpoint", f"dtype and shape of {name}", *kinds, tensor=name)
        if p is not None and q is not None:
            distance = _sketches_apart(p.sketch, q.sketch, scales[name])
            criterion, allowed = rule.tensor > 0.0, rule.tensor or EQUAL_SKETCH
            yield Item(
                "checkpoint",
                count,
                "checkpoint",
                f"norm of {name}",
                p.norm,
                q.norm,
                distance,
                allowed,
                name,
                criterion=criterion,
            )
    if rule.digests:
        digest = obtained.digest_as(expected)
        label = "guarded tensor digest" if rule.name == "universal" else "tensor digest"
        yield text("checkpoint", count, "checkpoint", label, digest or None, expected.tensor_digest or None)


def first_divergence(items: Iterable[Item], steps: int) -> Divergence | None:
    """The first item out of bounds, with the tensors that are out of bounds at the same step and phase."""
    found = list(items)
    first = next((item for item in found if item.out_of_bounds), None)
    if first is None:
        return None
    there = [item for item in found if (item.step, item.phase) == (first.step, first.phase) and item.tensor]
    apart: dict[str, float] = {}
    for item in there:
        if item.out_of_bounds and item.tensor != "all":
            distance = item.distance if math.isfinite(item.distance) else math.inf
            apart[item.tensor] = max(apart.get(item.tensor, 0.0), distance)
    known = {item.tensor for item in there} - {"all"}
    tensors = tuple(sorted(apart, key=lambda name: (-apart[name], name)))
    return Divergence(first.step, steps, first.phase, tensors, first, len(known))


NO_TRACE = "no trace: cannot say where, in which step and phase, the two part"


def where_known(where: Divergence | None, *results: Result) -> Divergence | None:
    """The place, where it was measured: without a trace on both sides, nobody saw the way to a result."""
    return where if where is None or where.item.part == "dataset" or all(r.is_traced for r in results) else None


def rows(items: Iterable[Item], part: str | None = None, *, limit: int = 12) -> tuple[list[Item], int]:
    """The items for a table of at most `limit` rows, and how many are left out.

    What decides comes first; of a curve the first, the worst and the last step; the first norm on the way; then the
    tensors, farthest first.
    """
    bad = [item for item in items if item.out_of_bounds and part in (None, item.part)]
    curve = [item for item in bad if item.phase == "forward" and item.part == "loss" and item.criterion]
    losses = [item for item in curve if item.what == f"loss, step {item.step}"]
    chosen = losses or curve
    kept = {id(item) for item in (*chosen[:1], *chosen[-1:], *sorted(chosen, key=_far)[:1])}
    tensors = sorted((i for i in bad if i.phase == "checkpoint" and i.tensor), key=_far)
    on_the_way = [i for i in bad if i.tensor and i.phase != "checkpoint" and i.obtained is not None]  # norms
    others = [i for i in bad if i.criterion and not i.tensor and i not in curve]
    shown = [*others[:4], *(item for item in curve if id(item) in kept), *on_the_way[:1], *tensors]
    order = {id(item): index for index, item in enumerate(bad)}
    table = sorted(shown[:limit], key=lambda item: order[id(item)])
    return table, sum(item.criterion for item in bad) - sum(item.criterion for item in table)


def moved(obtained: Result, expected: Result) -> list[str]:
    """What the provenance says of the machine and the software that differs: `torch 2.8.0 → 2.13.0`, recorded first."""
    pairs = dict(expected.environment), dict(obtained.environment)
    if expected.numeric_class and obtained.numeric_class:
        pairs[0]["numeric class"], pairs[1]["numeric class"] = expected.numeric_class, obtained.numeric_class
    return _changes(*pairs)


def settings_changed(obtained: Result, expected: Result) -> list[str]:
    """The settings that differ: `learning_rate 0.003 → 0.00303`, recorded first."""
    return _changes(expected.settings, obtained.settings)


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    changed: list[str] = []
    for name in sorted(set(before) | set(after)):
        a, b = before.get(name, "none"), after.get(name, "none")
        if a != b:
            changed.append(f"{name} {_short(a)} → {_short(b)}")
    return changed


def table(items: Sequence[Item], left_out: int) -> list[str]:
    """The lines of a table of `items`: what, obtained, expected, distance."""
    cells = [("out of bounds", "obtained", "expected", "distance"), *(item.row() for item in items)]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    lines = ["  " + "  ".join((*(row[c].ljust(widths[c]) for c in range(3)), row[3])).rstrip() for row in cells]
    if left_out:
        lines.append(f"  and {left_out} more values out of bounds")
    return lines


def _scales(expected: Result) -> dict[str, float]:
    """For each tensor the L2 norm of its change in training, by its sketches; no less than 1 % of all tensors' change.

    The change is counted from the first step that has sketches, or from zero where none has. The floor is for tensors
    that hardly move. Of a watched program the checkpoint may call its tensors otherwise, or not have them: then the
    change is that between the first and the last step with sketches, or a tensor's norm where there is one such step.
    """
    sketched = [step for step in expected.steps if step.sketch]
    on_the_way = {
        name: sketch_distance(sketched[-1].sketch[name], begin)
        if len(sketched) > 1 and name in sketched[-1].sketch
        else sketched[0].param.get(name, 0.0)
        for step in sketched[:1]
        for name, begin in step.sketch.items()
        if name not in expected.tensors
    }
    first: StepResult | None = next((step for step in expected.steps if step.sketch), None)
    changes: dict[str, float] = {}
    for name, tensor in expected.tensors.items():
        begin = first.sketch.get(name) if first is not None else None
        fits = begin is not None and begin.shape == tensor.sketch.shape
        changes[name] = sketch_distance(tensor.sketch, begin) if fits and begin is not None else tensor.norm
    return _no_less(changes) | _no_less(on_the_way)


def _no_less(changes: Mapping[str, float]) -> dict[str, float]:
    floor = 0.01 * total(changes.values())
    return {name: max(change, floor) for name, change in changes.items()}


def _apart(a: float | None, b: float | None, scale: float, *, bits: bool) -> float:
    """|a - b| / scale; infinite where one is missing; NaN where one is not a number. With `bits`, 0 only if equal."""
    if a is None or b is None:
        return math.inf
    if math.isnan(a) or math.isnan(b):
        return math.nan
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    if a == b:
        return math.inf if bits and a.hex() != b.hex() else 0.0
    relative = abs(a - b) / scale if scale > 0.0 else math.inf
    return relative or math.ulp(0.0)


def _sketches_apart(a: Sketch, b: Sketch, scale: float) -> float:
    if a.shape != b.shape:
        return math.inf
    distance = sketch_distance(a, b)
    if distance == 0.0:
        return 0.0
    return distance / scale if scale > 0.0 else math.inf


def rounding(kept: Sketch, scale: float) -> float:
    """How far a sketch lies at most from its own float32 values, over `scale`; 0 where there is no scale."""
    largest = float(np.sqrt(np.mean(np.square(kept)))) * 2.0**-24
    # Twice that: the values that were rounded are known by their rounded ones only.
    return 2.0 * largest / scale if scale > 0.0 else 0.0


def _far(item: Item) -> float:
    """Sorts the farthest first, and what has no distance before all."""
    return -item.distance if math.isfinite(item.distance) else -math.inf


def _counts(values: Sequence[int]) -> str:
    return "/".join(map(str, values))


def _text(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, float | np.floating):
        return f"{float(value):.10g}"
    return _short(str(value))


def _short(text: str) -> str:
    is_digest = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
    return text[:12] if is_digest else text if len(text) <= 40 else text[:39] + "…"

"""`python3 -m harness explain A B`: where two results part, by how much, and what that usually comes from.

A and B are two run directories, two checkpoints, or a run directory and a baseline file. Exit code 0: no difference;
1: they differ; 2: they cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.baselines.checkpoints import TensorDifference, compare_tensors, in_memory, open_checkpoint
from harness.evidence import EvidenceError, load_run

if TYPE_CHECKING:
    from harness.baselines.differences import Divergence, Item
    from harness.baselines.result import Result
    from harness.evidence import RunEvidence

_ROWS = 12


@dataclass
class Explanation:
    """What was found of two things: text for people, values for machines."""

    kind: str  # "runs", "checkpoints" or "run and baseline"
    a: str
    b: str
    headline: str = "no difference"
    where: Divergence | None = None
    items: Sequence[Item] = ()
    tensors: Sequence[TensorDifference] = ()
    tensor_count: int = 0
    moved: list[str] = field(default_factory=list)
    cause: str = ""
    notes: list[str] = field(default_factory=list)
    differ: bool = False

    def text(self) -> str:
        """On one screen: the first difference, what is out of bounds, the tensors, the likely cause."""
        lines = [self.headline, f"A         {self.a}", f"B         {self.b}"]
        if self.where is not None:
            lines.append(f"where     {self.where.text()}")
        if self.items:
            from harness.baselines.differences import rows, table

            chosen, left_out = rows(self.items, limit=_ROWS)
            titled = table(chosen, left_out)
            titled[0] = titled[0].replace("obtained", "A       ", 1).replace("expected", "B       ", 1)
            lines += titled if chosen else []
        lines += _tensor_table(self.tensors, self.tensor_count)
        if self.moved:
            more = f" and {len(self.moved) - 6} more" if len(self.moved) > 6 else ""
            lines.append(f"provenance, B → A: {'; '.join(self.moved[:6])}{more}")
        if self.cause:
            lines.append(f"likely    {self.cause}")
        return "\n".join([*lines, *(f"note      {note}" for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        """Strict JSON values."""
        from harness.baselines.differences import rows

        chosen, left_out = rows(self.items, limit=1000) if self.items else ([], 0)
        where = self.where
        return {
            "kind": self.kind,
            "a": self.a,
            "b": self.b,
            "differ": self.differ,
            "headline": self.headline,
            "where": None
            if where is None
            else {"step": where.step, "phase": where.phase, "tensors": list(where.tensors), "what": where.item.what},
            "out_of_bounds": [dict(zip(("what", "a", "b", "distance"), i.row(), strict=True)) for i in chosen],
            "more": left_out,
            "tensors": [difference.to_json() for difference in self.tensors],
            "provenance": self.moved,
            "cause": self.cause,
            "notes": self.notes,
        }


def explain_checkpoints(a: Path, b: Path) -> Explanation:
    """Two checkpoints. Raises EvidenceError for a file that is none."""
    found = Explanation("checkpoints", str(a), str(b))
    one, two = open_checkpoint(a), open_checkpoint(b)
    found.tensors = compare_tensors(one, two)
    found.tensor_count = len(set(one) | set(two))
    if found.tensors:
        found.differ = True
        found.headline = f"the checkpoints differ: {_count(found)}"
        found.cause = _tensor_cause(found.tensors, found.tensor_count)
    return found


def explain_runs(a: Path, b: Path) -> Explanation:
    """Two run directories. Raises EvidenceError when the trace of one cannot be read."""
    from harness.baselines import differences
    from harness.baselines.compare import BITS, tolerance_for, tolerance_rule
    from harness.baselines.differences import moved, settings_changed, walk
    from harness.baselines.result import UNIVERSAL

    runs = load_run(a), load_run(b)
    one, two = (_result(run) for run in runs)
    found = Explanation("runs", _described(one), _described(two))
    items = list(walk(one, two, BITS))
    values = in_memory(one.values or {}), in_memory(two.values or {})
    found.tensors = compare_tensors(*values)
    found.tensor_count = len(set(values[0]) | set(values[1]))
    found.moved = [*moved(one, two), *settings_changed(one, two)]
    first = differences.first_divergence(items, max(len(one.steps), len(two.steps)))
    # The tensors have a table of their own, with indices and values.
    found.items = [item for item in items if item.out_of_bounds and not (item.phase == "checkpoint" and item.tensor)]
    found.notes = [f"{r.source}: {part}: {why}" for r in (one, two) for part, why in r.unreadable.items()]
    if first is None:  # then no tensor differs either: their digests and norms are among the items
        return found
    found.differ = True
    found.headline = f"the runs differ; {_count(found)}"
    _place(found, first, one, two, items)
    found.notes += _course(one, two) + _data_notes(runs)
    rule = tolerance_rule(tolerance_for(one.key.mode))
    if one.key.mode == two.key.mode == UNIVERSAL and not any(
        i.criterion and i.out_of_bounds for i in walk(one, two, rule)
    ):
        found.cause = "everything is within the drift that universal mode allows between machines: the same result"
    return found


def _place(found: Explanation, first: Divergence, one: Result, two: Result, items: Sequence[Item]) -> None:
    """Say where the two part and what that usually comes from, as far as it was measured."""
    from harness.baselines.causes import likely_cause
    from harness.baselines.differences import NO_TRACE, where_known

    found.where = where_known(first, one, two)
    cause = _provenance(one, two, found.moved) + likely_cause(found.where, one, two, items)
    found.cause = cause.removesuffix("; ")
    if found.where is None:
        found.notes.append(NO_TRACE)


def explain_run_and_baseline(run: Path, file: Path, *, run_first: bool) -> Explanation:
    """A run directory and a baseline file. Raises EvidenceError when the trace, or the baseline, cannot be read."""
    from harness.baselines.baseline import BaselineError
    from harness.baselines.compare import exact_rule
    from harness.baselines.differences import first_divergence, moved, settings_changed, walk
    from harness.baselines.document import load

    one = _result(load_run(run))
    try:
        baseline = load(file)
    except BaselineError as error:
        raise EvidenceError(str(error)) from None
    two = baseline.result
    found = Explanation("run and baseline", _described(one), f"{two.source} ({baseline.recorded})")
    rule = exact_rule(baseline)
    items = list(walk(one, two, rule))
    found.items = [item for item in items if item.out_of_bounds]
    first = first_divergence(items, len(two.steps))
    found.differ = any(item.criterion for item in found.items)
    found.moved = [*moved(one, two), *settings_changed(one, two)]
    found.notes = [f"{one.source}: {part}: {why}" for part, why in one.unreadable.items()]
    if fields := one.key.differing(two.key):
        found.notes.append(f"the keys differ ({', '.join(fields)}): a gate would not compare these two")
        found.differ = True
    if first is None or not found.differ:
        found.headline = "the recorded result, as far as the exact part goes"
        return found
    found.headline = "not the recorded result"
    _place(found, first, one, two, items)
    found.notes += _course(one, two)
    apart = [name for name, tensor in one.tensors.items() if name in two.tensors and _far(tensor, two.tensors[name])]
    if apart:
        found.notes.append(
            f"distances of tensors are estimates from sketches, good to a factor of 2.6: {len(apart)} differ"
        )
    if not run_first:
        found.notes.append("A is the run here, B the baseline, whatever their order was")
    return found


def main(argv: Sequence[str]) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python3 -m harness explain",
        description="Say where two results part: step, phase, tensor; by how much; and what that usually comes from.",
        epilog="exit codes: 0 no difference; 1 they differ; 2 they cannot be compared; 64 wrong usage",
    )
    parser.add_argument("a", metavar="A", help="a run directory, a checkpoint (.pt, .npz) or a baseline (.json)")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument("--json", action="store_true", help="for machines")
    options = parser.parse_args(argv)
    try:
        found = explain(Path(options.a), Path(options.b))
    except (EvidenceError, OSError) as error:
        print(f"explain: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found.to_json(), indent=1, allow_nan=False) if options.json else found.text())
    return 1 if found.differ else 0


def explain(a: Path, b: Path) -> Explanation:
    """What differs between two things. Raises EvidenceError for what cannot be read, and for kinds that do not fit."""
    kinds = _kind(a), _kind(b)
    if kinds == ("run", "run"):
        return explain_runs(a, b)
    if kinds == ("checkpoint", "checkpoint"):
        return explain_checkpoints(a, b)
    if kinds == ("run", "baseline"):
        return explain_run_and_baseline(a, b, run_first=True)
    if kinds == ("baseline", "run"):
        return explain_run_and_baseline(b, a, run_first=False)
    raise EvidenceError(
        f"{a} is a {kinds[0]} and {b} a {kinds[1]}: give two runs, two checkpoints, or a run and a baseline"
    )


def _kind(path: Path) -> str:
    if path.is_dir():
        return "run"
    if not path.exists():
        raise EvidenceError(f"{path}: there is no such file or directory")
    return "baseline" if path.suffix == ".json" else "checkpoint"


def _result(run: RunEvidence) -> Result:
    from harness.baselines.result import result_of_run

    try:
        complete = run.outline.complete
    except EvidenceError as error:
        failure = run.failure()
        raise EvidenceError(f"{error}; {failure}" if failure else str(error)) from None
    return result_of_run(run, partial=not complete)


def _described(result: Result) -> str:
    key = result.key
    complete = result.end_losses or result.key.mode == "external"
    steps = f"{len(result.steps)} steps" + ("" if complete else ", ended early")
    return f"{result.source} ({key.mode}, class {result.numeric_class[:8]}, {steps})"


def _count(found: Explanation) -> str:
    if not found.tensor_count:
        return "their checkpoints are not known"
    values = sum(difference.differing for difference in found.tensors)
    return (
        f"{len(found.tensors)} of {found.tensor_count} tensors, {values} values"
        if found.tensors
        else "no tensor differs"
    )


def _tensor_table(tensors: Sequence[TensorDifference], count: int) -> list[str]:
    if not tensors:
        return []
    cells = [("tensor", "values that differ", "ULP", "largest", "at", "A", "B", "relative L2")]
    order = sorted(tensors, key=lambda t: (-t.relative if not math.isnan(t.relative) else -math.inf, t.name))
    for t in order[:_ROWS]:
        if t.kind_a != t.kind_b:
            cells.append((t.name, "all", "", "", "", t.kind_a, t.kind_b, ""))
            continue
        index = f"[{', '.join(map(str, t.index))}]" + (f" = {t.flat}" if len(t.index) > 1 else "")
        ulps = "-" if t.ulps is None else str(t.ulps)
        cells.append(
            (t.name, f"{t.differing} of {t.size}", ulps, f"{t.absolute:.1e}", index, _digits(t.a, t.kind_a),
             _digits(t.b, t.kind_b), f"{t.relative:.1e}")
        )  # fmt: skip
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
    if len(order) > _ROWS:
        lines.append(f"  and {len(order) - _ROWS} more of {count} tensors")
    return lines


def _digits(value: float, kind: str) -> str:
    return f"{value:.9g}" if "32" in kind else f"{value:.17g}" if "64" in kind else f"{value:g}"


def _tensor_cause(tensors: Sequence[TensorDifference], count: int) -> str:
    """In words, for two checkpoints of which nothing else is known."""
    unlike = [t for t in tensors if t.kind_a != t.kind_b]
    if unlike:
        missing = [t.name for t in unlike if "missing" in (t.kind_a, t.kind_b)]
        if missing:
            return f"{missing[0]} is on one side only: other adapters, or another version of the code that names them"
        return f"{unlike[0].name} is {unlike[0].kind_a} and {unlike[0].kind_b}: other sizes or another dtype"
    values = sum(t.differing for t in tensors)
    if any(t.ulps is None and t.kind_a.startswith("float") for t in tensors):
        return "a value is not finite"
    largest = max(t.ulps or 0 for t in tensors)
    only = f"one tensor only, {tensors[0].name}: " if len(tensors) == 1 and count > 1 else ""
    if values == 1 and largest == 1:
        return f"{only}one value by one ULP: it lies on a rounding boundary, or somebody changed it"
    relative = max(t.relative for t in tensors)
    if relative <= 1e-5:
        return f"{only}the size of float32 rounding: other kernels, threads or libraries computed the same thing"
    return f"{only}far more than rounding: another computation, other data, or another seed"


def _provenance(one: Result, two: Result, differing: Sequence[str]) -> str:
    """What the provenance already explains, as the beginning of a sentence."""
    from harness.baselines.differences import settings_changed

    if one.key.mode != two.key.mode:
        return f"A is computed in {one.key.mode} mode and B in {two.key.mode} mode; "
    if changed := settings_changed(one, two):
        return f"the settings differ ({'; '.join(changed[:3])}); "
    if one.key.model_digest != two.key.model_digest:
        return "the models differ; "
    threads = [line for line in differing if "thread" in line.lower()]
    return f"the thread settings differ ({threads[0]}); " if threads else ""


def _course(one: Result, two: Result) -> list[str]:
    """Whether everything differs from a step on, or only some steps, and how the difference grows."""
    pairs = list(zip(one.steps, two.steps, strict=False))
    apart = [a.step for a, b in pairs if a.loss != b.loss]
    if not apart:
        return []
    first, last = pairs[apart[0] - 1], pairs[apart[-1] - 1]
    sizes = [abs(a.loss - b.loss) / abs(b.loss) if b.loss else math.inf for a, b in (first, last)]
    growth = f"by {sizes[0]:.1e} at first and {sizes[1]:.1e} at last"
    whole = apart == list(range(apart[0], len(pairs) + 1))
    if whole:
        return [f"the loss differs at every step from step {apart[0]} on, {growth}"]
    return [f"the loss differs at {len(apart)} of {len(pairs)} steps, first at step {apart[0]}, {growth}"]


def _data_notes(runs: tuple[RunEvidence, RunEvidence]) -> list[str]:
    """What the traces of two runs say of the data: chunks, their tokens, and their order."""
    notes: list[str] = []
    one, two = runs[0].outline, runs[1].outline
    if not one.has("tokens") or not two.has("tokens"):
        return notes
    a, b = one.tokens.chunks, two.tokens.chunks
    if len(a) != len(b):
        notes.append(f"the audio gave {len(a)} chunks in A and {len(b)} in B")
    other = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x.digest != y.digest]
    if other:
        same_audio = all((a[i].file, a[i].start) == (b[i].file, b[i].start) for i in other)
        of = "the same audio" if same_audio else "other audio"
        notes.append(f"{len(other)} of {len(a)} chunks have other tokens, from {of}, first chunk {other[0]}")
    orders = [[chunk for step in trace.steps for chunk in step.chunks] for trace in (one, two)]
    if orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]):
        notes.append("both runs draw the same chunks equally often, in another order")
    return notes


def _far(a: Any, b: Any) -> bool:
    from harness.numerics.sketch import sketch_distance

    return bool(a.sketch.shape == b.sketch.shape and sketch_distance(a.sketch, b.sketch) > 1e-9 * max(b.norm, 1e-300))

"""The comparison of a run with what was recorded, and its verdict.

`compare` looks at one run. Whether a failure comes from the code, from the environment or from chance takes further
runs, which `judge` asks for through callables: this package never starts the lane by itself.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Sequence

from harness.baselines.baseline import FLOAT32_TOLERANCE, UNIVERSAL_TOLERANCE, Baseline, BaselineError, Code, Tolerance
from harness.baselines.causes import likely_cause, not_learned
from harness.baselines.differences import (
    NO_TRACE,
    Item,
    Rule,
    first_divergence,
    moved,
    settings_changed,
    walk,
    where_known,
)
from harness.baselines.result import EXTERNAL, PARTS, UNIVERSAL, Result, result_of_run
from harness.baselines.store import Store
from harness.baselines.verdict import GATES_COMMAND, RECORD, Kind, Verdict
from harness.evidence import EvidenceError, RunEvidence

BITS = Rule("to the bit", digests=True, loss=0.0, tensor=0.0)


def tolerance_for(mode: str) -> Tolerance:
    """The tolerances that are recorded for a numeric mode."""
    return UNIVERSAL_TOLERANCE if mode == UNIVERSAL else FLOAT32_TOLERANCE


def exact_rule(baseline: Baseline) -> Rule:
    """What the exact part of a baseline asks of a run with the same key."""
    if baseline.result.key.mode != UNIVERSAL:
        return BITS
    tolerance = bounded(baseline)
    return Rule("universal", digests=True, loss=tolerance.loss, tensor=tolerance.tensor)


def bounded(baseline: Baseline) -> Tolerance:
    """The recorded tolerance, and no more than the code's own: what a file says cannot make a comparison blind."""
    own, recorded = tolerance_for(baseline.result.key.mode), baseline.tolerance
    return dataclasses.replace(recorded, loss=min(recorded.loss, own.loss), tensor=min(recorded.tensor, own.tensor))


def tolerance_rule(tolerance: Tolerance) -> Rule:
    """What may differ between two results that need not round alike."""
    return Rule("within tolerance", digests=False, loss=tolerance.loss, tensor=tolerance.tensor)


def compare(evidence: RunEvidence, store: Store) -> Verdict:
    """The verdict on one run alone; `regression` then only says that it fails (see `judge`). Raises nothing."""
    try:
        result = _completed(evidence)
    except EvidenceError as error:
        return Verdict("incomparable", f"there is nothing to compare in this run: {error}", next_command=_read_log())
    return compare_result(result, store)[0]


def judge(
    evidence: RunEvidence,
    store: Store,
    rerun: Callable[[], RunEvidence] | None = None,
    second_leg: Callable[[Baseline], RunEvidence | None] | None = None,
    code: Code | None = None,
) -> Verdict:
    """The verdict on a run, with the further runs that a failure needs.

    `rerun` runs the lane again at once, elsewhere; `second_leg` runs the lane as of the baseline's commit here, and
    raises SecondLegUnavailable where that cannot be done. Neither is called for a run that is good, or that cannot be
    compared. `code` is the code of this run. An exception of either becomes a note: the run still fails.
    """
    try:
        result = _completed(evidence)
    except EvidenceError:
        return compare(evidence, store)
    verdict, baseline = compare_result(result, store)
    if verdict.kind != "regression" or baseline is None or result.unreadable:
        return verdict
    if rerun is None:
        note = (
            "this is one run, and the lane is not run again here: whether the code, the environment or chance moved it "
            "takes a second one (a session without --lane-evidence)"
        )
        return dataclasses.replace(verdict, notes=(*verdict.notes, note))
    try:
        second = _completed(rerun())
    except Exception as error:
        return _noted(verdict, f"the second run failed, so that chance is not ruled out: {_one_line(error)}")
    differing = [item for item in walk(second, result, BITS) if item.out_of_bounds]
    unlike = evidence.record.unlike_further if evidence.is_recorded else ""
    if any(item.criterion for item in differing) and unlike:
        note = f"a second run differs too, and whether by chance it cannot tell: of this run, {unlike}"
        return _noted(verdict, note)
    if any(item.criterion for item in differing):
        return _nondeterministic(verdict, result, second)
    verdict = _noted(verdict, "a second run, at once, gave the same bits: not chance")
    return _code_or_environment(verdict, result, baseline, second_leg, code)


def compare_result(result: Result, store: Store) -> tuple[Verdict, Baseline | None]:
    """`compare` for a result, with the baseline that it was compared with."""
    try:
        baseline = store.get(result)
    except (BaselineError, OSError) as error:
        found, mend = (error.found, error.mend) if isinstance(error, BaselineError) else (str(error), "")
        headline = f"what was recorded cannot be read: {found}"
        return Verdict("incomparable", headline, store.path_for(result), next_command=mend or RECORD), None
    if baseline is not None:
        return _against(result, baseline, exact_rule(baseline), "match"), baseline
    everything, broken = store.all()
    notes = tuple(f"left out: {line}" for line in broken)
    same_mode = [b for b in everything if (b.result.key.lane, b.result.key.mode) == (result.key.lane, result.key.mode)]
    if not same_mode:
        modes = sorted({b.result.key.mode for b in everything if b.result.key.lane == result.key.lane})
        recorded = f" in {result.key.mode} mode; there is one in {' and '.join(modes)}" if modes else ""
        return Verdict(
            "missing", f"nothing is recorded{recorded}", store.path_for(result), notes=notes, next_command=RECORD
        ), None
    other_class = [b for b in same_mode if result.key.differing(b.result.key) == ["numeric_class"]]
    if other_class:
        latest = max(other_class, key=lambda b: (b.provenance.recorded_at, b.path.name))
        verdict = _against(result, latest, tolerance_rule(bounded(latest)), "tolerance-match")
        return dataclasses.replace(verdict, notes=(*notes, *verdict.notes)), latest
    return _incomparable(result, same_mode, store, notes), None


def _completed(evidence: RunEvidence) -> Result:
    """The result of a run that completed. Raises EvidenceError for another."""
    if evidence.is_recorded and (failure := evidence.failure()):
        raise EvidenceError(failure)
    status = evidence.status
    if status.status != "completed":
        raise EvidenceError(f"it did not complete: {status.status} at {status.first_failed_step}: {status.root_cause}")
    return result_of_run(evidence)


def _against(result: Result, baseline: Baseline, rule: Rule, good: Kind) -> Verdict:
    expected = baseline.result
    items = [*_unreadable(result), *walk(result, expected, rule)]
    items += _nothing_compared(items, expected)
    compared = {part: sum(item.criterion and item.part == part for item in items) for part in PARTS}
    verdict = Verdict(good, "", baseline.path, baseline.recorded, items, compared=compared)
    if all(verdict.holds(part) for part in PARTS):
        headline = "the result is the recorded one"
        if good == "tolerance-match":
            headline = (
                f"nothing is recorded for numeric class {result.key.numeric_class[:8]}; loss curve and tensors are "
                f"within tolerance of the recording from class {expected.key.numeric_class[:8]}"
            )
        return dataclasses.replace(verdict, headline=headline)
    where = where_known(first_divergence(items, len(expected.steps)), result, expected)
    failed = [part for part in PARTS if not verdict.holds(part)]
    other = f", and beyond the tolerance for another numeric class ({expected.key.numeric_class[:8]})"
    return dataclasses.replace(
        verdict,
        kind="regression",
        headline=f"not the recorded result: {', '.join(failed)}{'' if good == 'match' else other}",
        where=where,
        cause=likely_cause(where, result, expected, items),
        moved=tuple(moved(result, expected)),
        notes=(
            *(f"{part}: {why}" for part, why in result.unreadable.items()),
            *(() if where is not None or result.unreadable else (NO_TRACE,)),
            *not_learned(items),
        ),
        next_command=f"{_explain(result, expected)}\nif the change is meant: {RECORD}",
    )


def _unreadable(result: Result) -> list[Item]:
    phases = {"dataset": "data", "tokens": "tokens", "checkpoint": "checkpoint"}
    after = {"checkpoint": len(result.steps) + 1}
    return [
        Item(
            part,
            after.get(part, 0),
            phases.get(part, "start"),
            f"the run's {part}",
            "unreadable",
            "readable",
            math.inf,
            0.0,
        )
        for part in result.unreadable
    ]


def _nothing_compared(items: Sequence[Item], expected: Result) -> list[Item]:
    """An item out of bounds for each part in which nothing decides: a comparison of nothing is a failure."""
    empty = [part for part in PARTS if not any(item.criterion and item.part == part for item in items)]
    sizes = [math.prod(map(int, filter(None, t.kind.split(" ")[1].split("x")))) for t in expected.tensors.values()]
    if "checkpoint" not in empty and sum(sizes) <= sum(map(len, expected.guarded.values())):
        empty.append("checkpoint")
    return [Item(part, 0, "start", f"values compared: {part}", "0", "at least 1", math.inf, 0.0) for part in empty]


def _nondeterministic(verdict: Verdict, first: Result, second: Result) -> Verdict:
    items = list(walk(second, first, BITS))
    where = where_known(first_divergence(items, len(first.steps)), first, second)
    return dataclasses.replace(
        verdict,
        kind="nondeterministic",
        headline="two runs of the same code, one after the other, differ (the table is against the baseline)",
        where=where,
        notes=(*verdict.notes, *not_learned(items)) if not not_learned(verdict.items) else verdict.notes,
        cause=(
            "something draws without a seed, depends on time, memory addresses or thread timing, on the run "
            "directory's path or what lay there (the second run has a new one), or runs a nondeterministic "
            f"kernel{f', in the {where.phase} phase' if where else ''}"
        ),
        next_command=_explain(first, second),
    )


def _code_or_environment(
    verdict: Verdict,
    result: Result,
    baseline: Baseline,
    second_leg: Callable[[Baseline], RunEvidence | None] | None,
    code: Code | None,
) -> Verdict:
    recorded = baseline.provenance.code
    code_known = code is not None and bool(code.digest) and bool(recorded.digest)
    same_code = code is not None and code_known and code.digest == recorded.digest
    external = baseline.result.key.mode == EXTERNAL  # of whose environment little is known: it takes the second leg
    if not verdict.moved and not same_code and not external:
        told = "and the lane's code is not: the code moved it" if code_known else "so the code moved it"
        return _code_moved(verdict, result, baseline, f"the environment is as recorded, {told}")
    leg: Result | None = None
    reason = "no way to run it was given"
    if second_leg is not None:
        try:
            evidence = second_leg(baseline)
            leg = None if evidence is None else _completed(evidence)
        except Exception as error:  # a leg that fails must not hide the failure that it was to explain
            reason = _one_line(error)
    if leg is None and same_code:
        return _environment_moved(verdict, "the lane's code is, file by file, that of the recording", external)
    if leg is None:
        told = "the environment differs, and so may the code"
        if not verdict.moved:
            told = f"the lane's code {'differs' if code_known else 'may differ'}, and so may its environment"
        note = (
            f"{told}; which of them moved it is not known, because the lane as of {recorded.commit[:12]} was not run "
            f"here: {reason}"
        )
        return _noted(verdict, note)
    if leg.key != baseline.result.key:
        return _noted(verdict, f"the lane as of {recorded.commit[:12]}, run here, computes something else: no help")
    if _agree(leg, baseline.result, exact_rule(baseline)):
        told = "the code moved it"
        if same_code:
            told = "a file in git moved it, though none of the lane's code"
        note = f"the lane as of {recorded.commit[:12]}, run here, still gives the recorded result: {told}"
        return _code_moved(verdict, result, baseline, note)
    between = tolerance_rule(bounded(baseline)) if leg.key.mode == UNIVERSAL else BITS
    if _agree(leg, result, between):
        why = f"the lane as of {recorded.commit[:12]}, run here, fails in the same way"
        if external and not same_code:
            why += " (if it takes its code from the folder that it runs in, and not from an installed package)"
        return _environment_moved(verdict, why, external)
    note = (
        f"the lane as of {recorded.commit[:12]}, run here, fails too, and in another way: "
        "environment and code both moved"
    )
    return _noted(verdict, note)


def _code_moved(verdict: Verdict, result: Result, baseline: Baseline, note: str) -> Verdict:
    cause = likely_cause(verdict.where, result, baseline.result, verdict.items, code_moved=True)
    return dataclasses.replace(verdict, cause=cause, notes=(*verdict.notes, note))


def _environment_moved(verdict: Verdict, why: str, external: bool) -> Verdict:
    other = "a library's build, or the baseline file"
    if external:
        other = "a variable, a file or data that the lane's table does not name, a library, or the baseline file"
    named = "; ".join(verdict.moved[:3])
    differs = f"it differs in {named}" if named else f"nothing that the provenance names differs: look at {other}"
    tried = "which of the differences did it was not tried" if named else "no difference is on record"
    return dataclasses.replace(
        verdict,
        kind="environment-moved",
        headline=f"the environment changed the result, not the code; {differs}",
        cause="; ".join(filter(None, (why, tried, verdict.cause))),
        next_command=f"go back to the recorded environment, or accept this one: {RECORD}",
    )


def _agree(obtained: Result, expected: Result, rule: Rule) -> bool:
    return not obtained.unreadable and not any(i.criterion and i.out_of_bounds for i in walk(obtained, expected, rule))


def _incomparable(result: Result, others: Sequence[Baseline], store: Store, notes: tuple[str, ...]) -> Verdict:
    """The recording with the fewest differing fields says what differs. Nothing of the result is compared with it."""
    nearest = min(others, key=lambda b: (len(result.key.differing(b.result.key)), b.path.name))
    fields = result.key.differing(nearest.result.key)
    words = {
        "dataset_digest": "data",
        "model_digest": "model",
        "settings_digest": "settings",
        "numeric_class": "numeric class",
    }
    changes = [
        f"{words[name]} {getattr(nearest.result.key, name)[:12]} → {getattr(result.key, name)[:12]}" for name in fields
    ]
    if "settings_digest" in fields:
        changes += settings_changed(result, nearest.result)
    kinds = " and ".join(words[name] for name in fields)
    otherwise = f"record: {RECORD}"
    if "dataset_digest" in fields:  # a change of data that nobody meant must not be recorded on the way
        otherwise = f"for audio of your own, of which nothing is recorded: {GATES_COMMAND} --no-baseline"
    return Verdict(
        "incomparable",
        f"no recording has this run's {kinds}",
        store.path_for(result),
        moved=changes,
        cause=f"against {nearest.path.name} ({nearest.recorded}), other {kinds}: its result is no measure for this run",
        notes=notes,
        next_command=f"undo the change of {kinds}, or {otherwise}",
    )


def _noted(verdict: Verdict, note: str) -> Verdict:
    return dataclasses.replace(verdict, notes=(*verdict.notes, note))


def _one_line(error: Exception) -> str:
    return " ".join(f"{error}".split())[:200] or type(error).__name__


def _explain(one: Result, other: Result) -> str:
    return f"python3 -m harness explain {shlex.quote(one.source)} {shlex.quote(other.source)}"


def _read_log() -> str:
    return "read lane.log and train_report.txt in the run directory"

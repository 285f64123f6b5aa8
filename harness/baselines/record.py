"""Recording: the only code that writes baselines, and what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import os
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from harness.base.git import GitFailed, git
from harness.baselines.baseline import Baseline, BaselineError, Code, Provenance
from harness.baselines.compare import BITS, compare_result, exact_rule, tolerance_for
from harness.baselines.differences import first_divergence, rows, table, walk
from harness.baselines.document import dump
from harness.baselines.guard import GUARD, MEASURED_DRIFT, guarded_positions
from harness.baselines.result import EXTERNAL, UNIVERSAL, Result, result_of_run
from harness.baselines.store import NOT_COMPARED, Store
from harness.evidence import EvidenceError, RunEvidence
from harness.numerics.digest import tensor_digest

REASON_OPTION = '--baseline-reason "why the result is right"'
CI_VARIABLES = (
    "CI", "GITHUB_ACTIONS", "GITLAB_CI", "BUILDKITE", "CIRCLECI", "TRAVIS", "JENKINS_URL", "TEAMCITY_VERSION",
    "TF_BUILD",
)  # fmt: skip
MOST_GUARDED = 0.05  # share of the parameters that a digest may leave out and still mean something
NOT_LOOKED = b"nobody looked"
BEGINS = (b'{\n "digest": ', b'{\n "exact": ')  # of every recording


class RecordRefused(Exception):
    """Nothing was written. The message says why, and what to do."""


def refusal(reason: str | None, environment: Mapping[str, str]) -> str | None:
    """Why a recording with this reason in this environment is refused before anything is run; None if it is not."""
    for name in CI_VARIABLES:
        if environment.get(name, "").strip().lower() not in ("", "0", "false", "no", "off"):
            return (
                f"baselines are not recorded under CI ({name} is set): record on a machine of yours, "
                "and commit the file so that somebody reviews it"
            )
    if reason is None or len(reason.split()) < 2:
        return f"a baseline needs a reason, in words that a reviewer understands: {REASON_OPTION}"
    if len(reason) > 300 or not reason.isprintable():
        return "a reason is one line of at most 300 printable characters"
    return None


def record(
    first: RunEvidence,
    second: RunEvidence,
    store: Store,
    *,
    reason: str | None,
    code: Code,
    environment: Mapping[str, str] | None = None,
    seen: bytes | None = NOT_LOOKED,
    held: Sequence[str] = (),
    red: Sequence[str] = (),
) -> list[str]:
    """Record two runs that agree to the bit as the baseline of their key. Returns what moved, a line each: old → new.

    Nothing is written, and the list is empty, when the recorded baseline holds for them. `seen`: what `Store.read` gave
    when the caller compared, so that nobody's newer recording is lost. `held`, `red`: the gates that need no recording
    and held for the first run, and those that did not. Raises RecordRefused, with nothing written, without a reason,
    under CI, where one is red, for runs that failed, differ, or are one and the same, and when somebody else changed
    the baseline in the meantime.
    """
    refused = refusal(reason, os.environ if environment is None else environment)
    if refused or reason is None:
        raise RecordRefused(refused)
    if red:
        others = f" and {len(red) - 3} more" if len(red) > 3 else ""
        raise RecordRefused(
            f"a recording says that a run is right, and gates that need none say that this one is not: "
            f"{', '.join(red[:3])}{others}; what they say is to be mended first"
        )
    result = _agreed(first, second)
    path = store.path_for(result)
    provenance = Provenance(
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), reason, code, tuple(sorted(held))
    )
    try:
        baseline = baseline_of(result, provenance, path)
        text = dump(baseline)
    except ValueError as error:
        raise RecordRefused(f"this result cannot be recorded: {error}") from None
    with _locked(store.root):
        _check_place(path)
        old: Baseline | None = None
        try:
            old = store.get(result)
            if old is not None and is_current(result, old, store):
                return []
            lines = _moved(baseline, old)
        except BaselineError as error:
            lines = [f"  replaced a file that was no baseline: {error}"]
        if seen is not NOT_LOOKED and store.read(result) != seen:
            raise RecordRefused(f"{path} was changed by somebody else while this ran: look at it, then run this again")
        try:
            _write(path, text)
        except OSError as error:
            raise RecordRefused(f"{path} cannot be written, and is as it was: {error.strerror}") from None
    return [f"{'recorded' if old is None else 'changed'} {path}", *lines, *_ignored(path)]


def _ignored(path: Path) -> list[str]:
    """A line where git ignores a recording: nobody else would get it."""
    try:
        git(path.absolute().parent, "check-ignore", "-q", path.name)
    except GitFailed:  # it does not ignore it, or there is no git
        return []
    return [f"  git ignores this file, and nobody else will have it; next: git add -f {shlex.quote(str(path))}"]


def baseline_of(result: Result, provenance: Provenance, path: Path) -> Baseline:
    """The baseline that records a run's result. Raises ValueError for one that no comparison could hold to."""
    guard = drift = None
    if result.values is None or not result.values or not (result.steps or result.key.mode == EXTERNAL):
        raise ValueError("it has no tensors or no steps")
    if result.key.mode == UNIVERSAL:
        if result.values64 is None:
            raise ValueError("universal mode needs the parameters before rounding, and the run left none")
        guard, drift = GUARD, MEASURED_DRIFT
        guarded = {name: guarded_positions(values, guard) for name, values in result.values64.items()}
        guarded = {name: places for name, places in guarded.items() if places}
        count, size = sum(map(len, guarded.values())), sum(values.size for values in result.values.values())
        if count > MOST_GUARDED * size:
            raise ValueError(
                f"{count} of {size} parameters lie within {guard:g} of a rounding boundary: too many to leave out"
            )
        result = dataclasses.replace(result, guarded=guarded, tensor_digest=tensor_digest(result.values, guarded))
    return Baseline(path, provenance, result, tolerance_for(result.key.mode), guard, drift)


def is_current(result: Result, old: Baseline, store: Store) -> bool:
    """Whether a recorded baseline holds for a result, with the guard, the tolerances and the form of today."""
    guard = GUARD if result.key.mode == UNIVERSAL else None
    unchanged = old.tolerance == tolerance_for(result.key.mode) and old.guard == guard
    unchanged = unchanged and old.provenance.held is not None
    return unchanged and compare_result(result, store)[0].kind == "match"


def unused_baselines(store: Store, used: Iterable[Path]) -> list[str]:
    """A line for each file under `baselines/` that no run of this session needs any more, or ever can.

    Named are files that cannot be read, that are no baselines, and baselines of the same lane, model and mode as a used
    one, for other data, another model digest or other settings. One for another numeric class is not unused.
    """
    lines: list[str] = []
    baselines, broken = store.all()
    lines += broken
    paths = {path.resolve() for path in used}
    live = [b.result for b in baselines if b.path.resolve() in paths]
    for baseline in baselines:
        result = baseline.result
        if store.path_for(result) != baseline.path:
            lines.append(f"{baseline.path}: its name is not that of its key ({store.path_for(result).name})")
        elif baseline.path.resolve() not in paths:
            for other in live:
                same = (result.key.lane, result.key.mode, result.model) == (other.key.lane, other.key.mode, other.model)
                fields = result.key.differing(other.key)
                if same and fields != ["numeric_class"]:
                    words = ", ".join(field.replace("_", " ") for field in fields if field != "numeric_class")
                    lines.append(f"{baseline.path}: unused, it is of another {words} ({baseline.recorded})")
                    break
    known = set(store.paths())
    for path in sorted(store.root.rglob("*")):
        apart = path.name == "README.md" or path.relative_to(store.root).parts[0] in NOT_COMPARED
        stray = path.is_file() and path not in known and not apart
        if stray:
            lines.append(f"{path}: no baseline")
    return lines


def _agreed(first: RunEvidence, second: RunEvidence) -> Result:
    """The result of two runs that agree to the bit. Raises RecordRefused."""
    results: list[Result] = []
    for which, evidence in (("first", first), ("second", second)):
        try:
            status = evidence.status
            if status.status != "completed":
                raise EvidenceError(f"{status.status} at {status.first_failed_step}: {status.root_cause}")
            result = result_of_run(evidence)
            if result.unreadable:
                raise EvidenceError("; ".join(f"{part}: {why}" for part, why in result.unreadable.items()))
        except EvidenceError as error:
            raise RecordRefused(f"the {which} run is no good, and a failed run is never recorded: {error}") from None
        results.append(result)
    if first.status.run_id == second.status.run_id:
        raise RecordRefused("recording takes two runs, and these are one and the same")
    one, two = results
    if one.key != two.key:
        raise RecordRefused(f"the two runs are of different {', '.join(one.key.differing(two.key))}")
    before = [tensor_digest(result.values64) for result in results if result.values64 is not None]
    items = list(walk(two, one, BITS))
    if len(set(before)) > 1 or any(item.criterion and item.out_of_bounds for item in items):
        where = first_divergence(items, len(one.steps))
        chosen, left_out = rows(items)
        place = f"first at {where.text()}" if where else "in the parameters before rounding to float32"
        lines = [f"two runs, one after the other, differ: {place}", *(table(chosen, left_out) if chosen else [])]
        lines.append("a result that does not repeat is no baseline: first find what is not seeded")
        raise RecordRefused("\n".join(lines))
    return one


def _moved(new: Baseline, old: Baseline | None) -> list[str]:
    result = new.result
    if old is None:
        told = "no loss"  # of an external lane that gives none
        if result.steps:
            told = f"{len(result.steps)} steps, loss {result.steps[0].loss:.6g} to {result.steps[-1].loss:.6g}"
        return [
            f"  {told}; "
            f"tensor digest {result.tensor_digest[:12]}, {sum(map(len, result.guarded.values()))} parameters guarded"
        ]
    chosen, left_out = rows(walk(result, old.result, exact_rule(old)))
    lines = []
    for item in chosen:
        what, obtained, expected, distance = item.row()
        lines.append(f"  {what}: {expected} → {obtained}; {distance}")
    if left_out:
        lines.append(f"  and {left_out} more values")
    if old.provenance.held is None:
        lines.append("  the file's form: it has a digest of itself now, and names the gates that held")
    if old.tolerance != new.tolerance or old.guard != new.guard:
        lines.append(f"  tolerance {old.tolerance} → {new.tolerance}, guard {old.guard} → {new.guard}")
    return lines


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One writer at a time for the whole folder; the kernel lets go of the lock when its owner dies."""
    root.mkdir(parents=True, exist_ok=True)
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _check_place(path: Path) -> None:
    """Raises RecordRefused where something lies that no recording wrote. A damaged recording, known by its beginning,
    and an empty file are replaced."""
    if not os.path.lexists(path):
        return
    begins = b""
    if stat.S_ISREG(path.lstat().st_mode):
        with path.open("rb") as file:
            begins = file.read(20)
        if not begins or begins.startswith(BEGINS):
            return
    raise RecordRefused(
        f"{path} is not what a recording wrote, and is left as it is: move it away, then run this again"
    )


def _write(path: Path, text: str) -> None:
    """Replace a file, or leave it as it is: never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    file = temporary.open("xb")  # and so through no link
    try:
        with file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

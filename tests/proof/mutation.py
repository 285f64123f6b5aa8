"""``python tests/proof mutation``: every fault, seeded into a copy of the lane, and which gates notice it.

Each fault is run twice, whole: in universal mode against the recorded baseline, and in float32 with a recording from
another numeric class only, so that the tolerance tier and the gates that need no recording are all there is. Results
are kept in a file of JSON lines, so that the command can be stopped and goes on where it was; a result is kept for as
long as the fault, the lane and the gates are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from proof import recordings
from proof.copies import MEASUREMENTS, ROOT
from proof.faults import RECORDED, Fault, cause_of, faults, one_of_each_family
from proof.judge import changed_checkout, gates, preload, run_lane
from proof.kept import read_rows, write_rows
from support import voice

from harness.numerics.processor import forced

COLUMNS = ("universal", "float32")
RESULTS = MEASUREMENTS / "detection.jsonl"
OTHER_CLASS = forced(aten="default")  # the class of the float32 recordings
MESSAGE = 500  # characters of a gate's message that are kept
# A kept result is of these files.
CODE = ("harness/lane", "harness/numerics", "harness/gates", "tests/smoke", "tests/support")


@dataclass(frozen=True)
class Trial:
    """One fault in one column; ``fault`` None is the lane as it is, which must pass every gate."""

    fault: Fault | None
    column: str
    data: str = "shipped"

    @property
    def name(self) -> str:
        return f"{self.fault.name if self.fault else f'unchanged lane, {self.data} data'} ({self.column})"


def code_digest() -> str:
    """SHA-256 over the lane and the gates, as they are."""
    digest = hashlib.sha256()
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def fits(trial: Trial, code: str) -> str:
    """A digest of what a kept result must have been made of to be good for ``trial``."""
    return hashlib.sha256(json.dumps([asdict(trial), code], sort_keys=True).encode()).hexdigest()[:16]


def classic_gates(run_dir: Path) -> list[str]:
    """Which of the four gates that such lanes usually have are red: completed, finite, non-empty, completed."""
    red: list[str] = []
    try:
        report = (run_dir / "train_report.txt").read_text()
        status = json.loads((run_dir / "train_status.json").read_text())
    except (OSError, ValueError):
        return ["report completed", "status completed"]
    if "\nobjective_status: completed\n" not in report:
        red.append("report completed")
    loss = status.get("loss")
    if not isinstance(loss, float) or not math.isfinite(loss):
        red.append("finite loss")
    if not any(path.stat().st_size for path in (run_dir / "checkpoints").glob("*.pt")):
        red.append("non-empty checkpoint")
    if status.get("status") != "completed":
        red.append("status completed")
    return red


class Campaign:
    """What all trials share: the data sets and the recordings, in a folder of its own."""

    def __init__(self, folder: Path, columns: Sequence[str] = COLUMNS, data: Sequence[str] = ("shipped", "mixed")):
        self.folder = folder
        self.settings = recordings.make(folder / "data")
        self.stores = {column: folder / f"baselines-{column}" for column in columns}
        for column in columns:
            self.stores[column].mkdir()
            if column == "universal":
                shutil.copytree(ROOT / "baselines" / "experimental", self.stores[column] / "experimental")
            for name in data:
                # The shipped data's universal recording is the repository's own.
                if (column, name) != ("universal", "shipped"):
                    self._record(column, name)

    def settings_of(self, column: str, data: str) -> dict[str, str]:
        """The lane's settings for a data set in a column."""
        mode = "universal" if column == "universal" else "native"
        return {**self.settings[data], "LANE_NUMERICS": mode}

    def _record(self, column: str, data: str) -> None:
        from harness.baselines.record import record
        from harness.baselines.second_leg import code_of
        from harness.baselines.store import Store
        from harness.evidence import load_run

        settings = self.settings_of(column, data) | (OTHER_CLASS if column == "float32" else {})
        runs = []
        for number in (1, 2):
            say(f"recording {data} data, {column}, run {number} of 2")
            ended = voice.run_lane(self.folder / f"recorded-{column}-{data}-{number}", settings)
            runs.append(load_run(ended.run_dir, run_id=ended.run_id))
        store = Store(self.stores[column])
        record(runs[0], runs[1], store, reason="for the mutation campaign", code=code_of(ROOT), environment={})

    def run(self, trial: Trial) -> dict[str, Any]:
        """Run one trial; returns what is kept of it."""
        started = time.monotonic()
        fault = trial.fault
        data = fault.data if fault else trial.data
        settings = self.settings_of(trial.column, data) | dict(fault.settings if fault else ())
        with tempfile.TemporaryDirectory(prefix="fault-", dir=self.folder) as name:
            folder = Path(name)
            checkout = changed_checkout(folder / "code", fault.edits if fault else ())
            run_dir = folder / "run"
            if fault and fault.before:
                earlier = self.settings_of(trial.column, fault.before)
                # Before the fault can show, it may be as good as absent: the earlier run need not be judged.
                run_lane(checkout, run_dir, earlier)
            if fault and fault.resumes:
                run_lane(checkout, run_dir, settings | {"LANE_SAVE_EVERY": "12"}, kill_at="train_state.pt")
                settings = settings | {"LANE_RESUME": "1"}
            if not (fault and fault.trains):
                run_lane(checkout, run_dir, settings)
            store = self.stores[trial.column]
            messages = gates(checkout, run_dir, store, settings, train=bool(fault and fault.trains))
            red = {gate: text for gate, text in messages.items() if text}
            broken = _broken(run_dir)
            return {
                "trial": trial.name,
                "fault": fault.name if fault else "",
                "column": trial.column,
                "outcome": outcome(fault, trial.column, red, broken) if fault else ("alarm" if red else "green"),
                "alone": outcome_alone(fault, red, broken) if fault else "",
                "classic": classic_gates(run_dir),
                "gates": len(messages),
                "red": sorted(red),
                "message": broken or _said(fault, trial.column, red),
                "likely": likely_of(red),
                "message_alone": red.get(fault.expected_alone()[0], "")[:MESSAGE] if fault else "",
                "seconds": round(time.monotonic() - started, 1),
            }


def _said(fault: Fault | None, column: str, red: dict[str, str]) -> str:
    """The beginning of the named gate's message, or of the first there is: enough to see why it is red."""
    named = fault.expected(column)[0] if fault else ""
    return red.get(named, next(iter(red.values()), ""))[:MESSAGE]


def likely_of(red: dict[str, str]) -> str:
    """The cause that the verdict gives, where a recording was compared with."""
    texts = (red[gate] for gate in RECORDED if gate in red)
    return next((found[1].strip() for text in texts if (found := re.search(r"^\W*likely +(.+)$", text, re.M))), "")


def _broken(run_dir: Path) -> str:
    """Why the changed lane itself broke down, which is no detection: a crash, or no report at all. Else empty."""
    try:
        lines = (run_dir / "train_report.txt").read_text().splitlines()
    except OSError:
        output = run_dir.with_name("lane-output.txt")
        said = output.read_text(errors="replace").strip() if output.exists() else ""
        return f"there is no report; the last that the lane said: {said[-300:] or 'nothing'}"
    cause = next((line for line in lines if line.startswith("root_cause: ")), "")
    return cause.removeprefix("root_cause: ") if "internal_error:" in cause or "lane_killed:" in cause else ""


def outcome(fault: Fault, column: str, red: dict[str, str], broken: str = "") -> str:
    """`caught`, `missed`, `other reason` (a gate is red, and not the named one for the named reason), `other cause`
    (the verdict's likely cause is not the fault's), or `broken`.

    ``red``: the message of each gate that failed. ``broken``: why the changed lane itself broke down.
    """
    if broken:
        return "broken"
    gate, says = fault.expected(column)
    if says in red.get(gate, ""):
        is_right = column != "universal" or cause_of(fault) in likely_of(red) or not likely_of(red)
        return "caught" if is_right else "other cause"
    return "other reason" if red else "missed"


def outcome_alone(fault: Fault, red: dict[str, str], broken: str = "") -> str:
    """The same without a recording: the gates that compare with one are left out."""
    if broken:
        return "broken"
    gate, says = fault.expected_alone()
    if gate and says in red.get(gate, ""):
        return "caught"
    return "other reason" if set(red) - set(RECORDED) else "missed"


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


_campaign: Campaign


def _work(trial: Trial) -> tuple[Trial, dict[str, Any]]:
    try:
        return trial, _campaign.run(trial)
    except Exception as error:  # an edit that does not fit any more, or pytest that does not start: said, and no result
        return trial, {"error": f"{type(error).__name__}: {error}"}


def run_trials(trials: Sequence[Trial], campaign: Campaign, workers: int) -> Iterator[tuple[Trial, dict[str, Any]]]:
    """Run trials, in processes that are forked after everything heavy was imported."""
    global _campaign
    _campaign = campaign
    context = multiprocessing.get_context("fork")
    with context.Pool(workers, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(_work, trials)


def main(arguments: list[str]) -> int:
    """The command; returns 0 if every fault is caught in every column and the unchanged lane passes, 1 otherwise."""
    parser = argparse.ArgumentParser(
        prog="python tests/proof mutation",
        description="Seed every fault into a copy of the lane, see which gates notice it, and write detection.md.",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="kept results (JSON lines)")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="trials at once")
    parser.add_argument("--short", action="store_true", help="one fault of each family, in universal mode")
    parser.add_argument("--only", default="", metavar="TEXT", help="only faults whose name holds TEXT")
    parser.add_argument("--column", choices=COLUMNS, help="only this column")
    parser.add_argument("--again", action="store_true", help="forget the kept results of the faults that are run")
    parser.add_argument("--list", action="store_true", help="list the faults, and run none")
    options = parser.parse_args(arguments)
    chosen = [f for f in (one_of_each_family() if options.short else faults()) if options.only in f.name]
    if options.list:
        for fault in chosen:
            print(f"{fault.family:10} {fault.name}: {fault.what}\n{'':10} {fault.gate}: {fault.says!r}")
        return 0
    columns = [options.column] if options.column else ["universal"] if options.short else list(COLUMNS)
    sets = ("shipped",) if options.short else ("shipped", "mixed")
    controls = [Trial(None, column, name) for column in columns for name in sets]
    trials = ([] if options.short else controls) + [
        Trial(fault, column)
        for fault in chosen
        for column in columns
        if column == "universal" or not fault.float64_alone
    ]
    kept = read_rows(options.results)
    code = code_digest()
    fresh = {t.name for t in trials if not options.again and kept.get(t.name, {}).get("fits") == fits(t, code)}
    waiting = [trial for trial in trials if trial.name not in fresh]
    say(f"{len(trials)} trials, {len(trials) - len(waiting)} of them kept")
    bad = sum(not _good(trial, kept[trial.name]) for trial in trials if trial.name in fresh)
    if waiting:
        preload()
        from harness.baselines.second_leg import code_of

        commit = code_of(ROOT, CODE)
        with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
            campaign = Campaign(Path(folder), columns, sets)
            for number, (trial, row) in enumerate(run_trials(waiting, campaign, options.workers), 1):
                if "error" not in row:
                    row |= {
                        "fits": fits(trial, code),
                        "date": time.strftime("%Y-%m-%d"),
                        "commit": commit.commit[:12] + ("-dirty" if commit.dirty else ""),
                    }
                    kept[trial.name] = row
                    write_rows(options.results, kept)
                bad += not _good(trial, row)
                say(f"{number}/{len(waiting)} {trial.name}: {_line(trial, row)}")
    print(f"{len(trials) - bad} of {len(trials)} as they should be")
    if options.results == RESULTS:
        print("python tests/proof detection writes the page")
    return 1 if bad else 0


def _good(trial: Trial, row: dict[str, Any]) -> bool:
    if trial.fault is None:
        return bool(row.get("outcome") == "green")
    alone = trial.column != "universal" or row.get("alone") == "caught" or bool(trial.fault.missed)
    return bool(row.get("outcome") == "caught" and alone)


def _line(trial: Trial, row: dict[str, Any]) -> str:
    if "error" in row:
        return f"ERROR {row['error']}"
    if _good(trial, row):
        classic = "caught" if row["classic"] else "missed"
        return f"{row['outcome']}; {classic} by the classic gates; {row['seconds']} s"
    alone = f", without a recording {row.get('alone', '').upper()}" if trial.fault else ""
    red = ", ".join(row["red"]) or "none"
    return f"{row['outcome'].upper()}{alone}: red are {red}: {' '.join(row['message'].split())}"

"""``python tests/proof universality``: the shipped lane on every way to compute that can be had, against the baseline.

Each case is one whole run in universal mode. Results are kept in a file of JSON lines, so that the command can be
stopped, and extended by cases that take minutes (an emulated processor) or gigabytes (another torch release).
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from proof.copies import MEASUREMENTS, ROOT, Edit, changed_copy
from proof.kept import read_rows, write_rows
from support.voice import run_lane

from harness.baselines.compare import compare
from harness.baselines.guard import GUARD
from harness.baselines.second_leg import code_of
from harness.baselines.store import Store
from harness.evidence import RunEvidence, load_run
from harness.numerics.processor import forced, lacking

FOREACH = Edit("harness/lane/optimizer.py", "            fused=True,\n", "            foreach=True,\n")
DOCUMENT = MEASUREMENTS / "universality.md"
EMULATED = ("Haswell", "EPYC-Rome")
EMULATORS = ("qemu-x86_64", "qemu-x86_64-static")
NOT_RUN = "not run"


@dataclass(frozen=True)
class Case:
    """One way to compute. ``settings`` are environment variables; ``interpreter`` starts Python."""

    name: str
    settings: dict[str, str]
    foreach: bool = False
    interpreter: tuple[str, ...] = ()


def native_cases() -> Iterator[Case]:
    """Every combination of kernel dispatch, library pins, threads and optimizer; `why_not` tells those that
    this processor cannot run."""
    for aten, onednn, mkl, threads, optimizer in itertools.product(
        ("default", "avx2", "avx512"), ("", "AVX2"), ("", "COMPATIBLE"), ("1", "2"), ("fused", "foreach")
    ):
        settings = {**forced(aten=aten, onednn=onednn, mkl=mkl), "LANE_THREADS": threads}
        pins = f"oneDNN {onednn or 'free'}, MKL {mkl.lower() or 'free'}"
        name = f"ATen {aten}, {pins}, {threads} thread{'s' * (threads != '1')}, {optimizer}"
        yield Case(name, settings, foreach=optimizer == "foreach")


def rank_cases() -> Iterator[Case]:
    """Processes that train together, of one thread and of two."""
    for ranks, threads in itertools.product(("1", "2", "3", "4"), ("1", "2")):
        name = f"{ranks} rank{'s' * (ranks != '1')}, {threads} thread{'s' * (threads != '1')} each"
        yield Case(name, {"LANE_RANKS": ranks, "LANE_THREADS": threads})


def emulated_cases() -> Iterator[Case]:
    """Emulated processors; qemu-user must be installed."""
    for processor in EMULATED:
        emulator = next(filter(None, map(shutil.which, EMULATORS)), EMULATORS[0])
        settings = {"LANE_TIMEOUT_S": "7200"}
        yield Case(f"emulated {processor}", settings, interpreter=(emulator, "-cpu", processor, sys.executable))


def other_cases(interpreters: Sequence[str]) -> Iterator[Case]:
    """The lane in other environments, given by their Python: another torch release, another Python."""
    for python in interpreters:
        import subprocess

        ask = (
            "import sys, torch; print(f'Python {sys.version_info[0]}.{sys.version_info[1]}, torch {torch.__version__}')"
        )
        name = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
        yield Case(name, {}, interpreter=(python,))


def why_not(case: Case) -> str:
    """Why a case cannot be run on this machine; empty if it can."""
    if case.interpreter and shutil.which(case.interpreter[0]) is None:
        return f"there is no {case.interpreter[0]} here"
    return lacking(case.settings)


def run_case(case: Case, reference: RunEvidence | None) -> dict[str, Any]:
    """Run one case, if it can be run here; returns what the table shows.

    ``reference``: a run on this machine, for the parameters' drift."""
    if why := why_not(case):
        return {"case": case.name, "verdict": NOT_RUN, "why": why}
    with tempfile.TemporaryDirectory(prefix="universality-") as folder:
        code = changed_copy(Path(folder) / "code", [FOREACH] if case.foreach else [])
        started = time.monotonic()
        ended = run_lane(Path(folder) / "run", case.settings, root=code, python=case.interpreter or (sys.executable,))
        seconds = time.monotonic() - started
        evidence = load_run(Path(folder) / "run", run_id=ended.run_id)
        if reason := evidence.failure():
            return {"case": case.name, "verdict": "failed", "why": reason}
        verdict = compare(evidence, Store(ROOT / "baselines"))
        row = {
            "case": case.name,
            "date": time.strftime("%Y-%m-%d"),
            "commit": code_of(ROOT).commit[:12],
            "torch": evidence.environment["packages"]["torch"],
            "python": evidence.environment["python"],
            "numeric_class": evidence.report["numeric_class"],
            "verdict": verdict.kind,
            "parts": {part: verdict.holds(part) for part in ("checkpoint", "tokens", "loss")},
            "seconds": round(seconds, 1),
        }
        if not verdict.passed:
            row["why"] = verdict.text()
        if reference is not None:
            row |= _drift(evidence, reference)
        return row


def _drift(evidence: RunEvidence, reference: RunEvidence) -> dict[str, Any]:
    """Largest difference of a float64 parameter, flipped float32 roundings, largest relative difference of a loss."""
    ours, theirs = evidence.checkpoint_float64, reference.checkpoint_float64
    assert ours is not None and theirs is not None
    drift = max(float(np.abs(values - theirs.tensors[name]).max()) for name, values in ours.tensors.items())
    rounded = evidence.checkpoint.tensors
    flips = sum(int((values != reference.checkpoint.tensors[name]).sum()) for name, values in rounded.items())
    losses = [abs(a.loss - b.loss) / b.loss for a, b in zip(evidence.trace.steps, reference.trace.steps, strict=True)]
    return {"drift": drift, "flips": flips, "loss": max(losses)}


def document(rows: Sequence[dict[str, Any]]) -> str:
    """The page with the table."""
    run = [row for row in rows if row["verdict"] != NOT_RUN]
    passed = sum(row["verdict"] == "match" for row in run)
    drifts = [row["drift"] for row in rows if "drift" in row]
    worst = max(drifts, default=float("nan"))
    lines = [
        "# One digest on every machine: the proof",
        "",
        "Written by `python tests/proof universality`; do not edit. Each row is one whole run of the shipped lane in",
        "universal mode, compared with the recorded baseline. *Drift*: the largest difference of a float64",
        "parameter from an unpinned run on the machine that made it. *Flips*: float32 parameters that came",
        "out rounded the other way; all of them are positions that the baseline lists as guarded, or the verdict",
        "would not be `match`. *Loss*: the largest relative difference.",
        "",
        f"{passed} of {len(run)} match; {len(rows) - len(run)} could not be run.",
        f"Largest drift {worst:.2g}, {worst / GUARD:.2g} of the guard ({GUARD:g});",
        "the bar is 0.1.",
        "",
        "| case | verdict | digest | tokens | loss curve | drift | of guard | flips | loss | class | torch | when |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "parts" not in row:
            lines.append(f"| {row['case']} | {row['verdict']}: {row['why']} |" + " |" * 10)
            continue
        holds = [("same" if row["parts"][part] else "**differs**") for part in ("checkpoint", "tokens", "loss")]
        moved = ["–"] * 4
        if "drift" in row:
            moved = [f"{row['drift']:.1e}", f"{row['drift'] / GUARD:.4f}", str(row["flips"]), f"{row['loss']:.1e}"]
        end = [f"`{row['numeric_class'][:8]}`", row["torch"], f"{row['date']}, {row['commit']}"]
        lines.append(f"| {' | '.join([row['case'], row['verdict'], *holds, *moved, *end])} |")
    lines += [
        "",
        "Emulated: the processor is `qemu-user`'s, without AVX-512, and no pin is set. Real Intel and ARM hardware",
        "was not available. On ARM (aarch64 builds of Python 3.11 and torch 2.8.0 under qemu-user, 2026-11-26) the",
        "lane was run by hand: every gate that needs no further run holds, the verdict is `match`, and the checkpoint",
        "file is the same.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """The command; returns 0 if every case matches, 1 otherwise."""
    parser = argparse.ArgumentParser(
        prog="python tests/proof universality",
        description="Run the shipped lane on every way to compute that can be had, and write universality.md.",
    )
    parser.add_argument("--results", type=Path, default=MEASUREMENTS / "universality.jsonl", help="kept results")
    parser.add_argument("--emulated", action="store_true", help="also emulated processors (qemu-user; minutes each)")
    parser.add_argument("--python", action="append", default=[], metavar="PYTHON", help="also in this environment")
    parser.add_argument("--again", action="store_true", help="forget the kept results of the cases that are run")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name holds TEXT")
    options = parser.parse_args(arguments)
    cases = [
        *native_cases(),
        *rank_cases(),
        *(emulated_cases() if options.emulated else ()),
        *other_cases(options.python),
    ]
    cases = [case for case in cases if options.only in case.name]
    kept = read_rows(options.results, "case")
    with tempfile.TemporaryDirectory(prefix="universality-") as folder:
        ended = run_lane(Path(folder))
        reference = load_run(Path(folder), run_id=ended.run_id)
        if reason := reference.failure():
            print(reason, file=sys.stderr)
            return 1
        for number, case in enumerate(cases, 1):
            if options.again or kept.get(case.name, {}).get("verdict", NOT_RUN) == NOT_RUN:
                kept[case.name] = run_case(case, reference)
                write_rows(options.results, kept)
            print(f"{number}/{len(cases)} {case.name}: {kept[case.name]['verdict']}", flush=True)
    DOCUMENT.write_text(document(list(kept.values())))
    print(f"{DOCUMENT} has {len(kept)} rows")
    return 0 if all(row["verdict"] in ("match", NOT_RUN) for row in kept.values()) else 1

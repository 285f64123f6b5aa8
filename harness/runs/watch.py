"""`python3 -m harness watch -- COMMAND`: a program, run once and watched, with no table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.base.project import as_typed, default_run_dir
from harness.evidence import EvidenceError, RunEvidence, load_run
from harness.runs.run import LaneRun
from harness.runs.table import WATCH, Lane, Table, WatchTable

NO_LIMIT_S = 9_999_999.0
FAILED = 2


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the program's exit code; 2 where nothing could be run or recorded."""
    parser = argparse.ArgumentParser(
        prog="python3 -m harness watch",
        usage="%(prog)s [--run-dir DIR] [--every N] [--module PATTERN] -- COMMAND [ARGUMENTS]",
        description="Run a PyTorch program and record what it computes in each step, without a line changed in it.",
        epilog="exit code: the program's; 2 if it does not start, or nothing of it was seen; 64 wrong usage",
    )
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where the trace goes (artifacts/watch)")
    parser.add_argument(
        "--every", type=int, metavar="N", help="norms of tensors at every N-th step (by the model's size)"
    )
    parser.add_argument("--module", action="append", default=[], metavar="PATTERN",
                        help="the output of the modules with such a name too, as in 'transformer.h.*'")  # fmt: skip
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the program, after --")
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command or (options.every is not None and options.every < 1):
        parser.error(
            "no command: python3 -m harness watch -- python3 train.py" if not command else "--every: at least 1"
        )
    table = Table(command=command, trace=WATCH, watch=WatchTable(every=options.every, modules=options.module),
                  time_limit=NO_LIMIT_S)  # fmt: skip
    run_dir = options.run_dir or default_run_dir() / "watch"
    try:
        run = LaneRun(Lane("watched", Path.cwd(), table), run_dir, on_line=lambda line: print(line, flush=True)).wait()
    except EvidenceError as error:
        print(f"watch: {error}", file=sys.stderr)
        return FAILED
    try:
        print("\n".join(told(load_run(run_dir))), file=sys.stderr)
    except EvidenceError as error:
        print(f"watch: {error}", file=sys.stderr)
        return run.exit_code or FAILED
    return run.exit_code if run.exit_code >= 0 else 128 - run.exit_code


def told(run: RunEvidence) -> list[str]:
    """What was seen, a line for each process, and how to compare it with another run."""
    lines = []
    for watched in run.watched:
        steps, last = watched.steps, watched.tensors[-1]
        losses = [f"{sum(step.losses):.6g}" for step in (steps[0], steps[-1])] if steps else ["none", "none"]
        several = f" of {len(last.optimizers)} optimizers" if len(last.optimizers) > 1 else ""
        lines.append(
            f"watch: {as_typed(watched.path)}: {len(steps)} steps{several}, {len(last.tensors)} tensors; "
            f"loss {losses[0]} → {losses[1]}"
        )
        lines += [f"watch: not seen: {line}" for line in watched.unseen]
    here = as_typed(run.run_dir)
    return [*lines, f"watch: next: another run with --run-dir OTHER, then python3 -m harness explain {here} OTHER"]

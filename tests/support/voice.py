"""The voice lane of this checkout, run as a session runs it: for tests and proofs that need a run of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from harness.base.lock import Hold
from harness.runs.run import LaneRun
from harness.runs.table import Lane, find_lane

ROOT = Path(__file__).resolve().parents[2]


@cache
def lane() -> Lane:
    """Its table."""
    return find_lane(ROOT, "experimental")


def start(
    run_dir: Path,
    settings: Mapping[str, str] | None = None,
    *,
    root: Path | None = None,
    python: Sequence[str] = (sys.executable,),
    hold: Hold | None = None,
    on_line: Callable[[str], None] = lambda line: None,
) -> LaneRun:
    """Start it. `settings`: environment variables; `root`: the checkout whose lane it is; see LaneRun."""
    return LaneRun(lane(), run_dir, environ=settings, root=root, python=python, hold=hold, on_line=on_line)


def run_lane(
    run_dir: Path,
    settings: Mapping[str, str] | None = None,
    *,
    root: Path | None = None,
    python: Sequence[str] = (sys.executable,),
    on_line: Callable[[str], None] = lambda line: None,
) -> LaneRun:
    """Run it once, and wait for its end."""
    return start(run_dir, settings, root=root, python=python, on_line=on_line).wait()

"""What a session says of its lane before it runs: the provenance of its result, as far as it is known then."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest

from harness.base.text import printable, visible
from harness.runs.table import LaneTableError
from harness.session.lane import lane_code, most_runs, session_lane


def pytest_report_header(config: pytest.Config) -> list[str]:
    """The lane, its code, what it computes with, the settings in force, and how many trainings there will be."""
    try:
        lane = session_lane(config)
    except LaneTableError as error:
        return [visible(printable(f"lane: {error}"))]
    if lane is None:
        return []
    code = lane_code(config)
    changed = ", lane code changed since" if code.dirty else ""
    digest = f"; code {code.digest[:12]}" if code.digest else ""
    lines = [f"lane: {lane.name}: {' '.join(lane.table.command)}; commit {code.commit[:12]}{changed}{digest}"]
    if packages := ", ".join(f"{name} {version(name)}" for name in ("torch", "audiocraft", "numpy") if _is_here(name)):
        lines.append(f"lane: {packages}")
    if settings := lane.variables_set():
        lines.append("lane: " + " ".join(f"{name}={value}" for name, value in settings.items()))
    if not config.getoption("--lane-evidence"):
        most = most_runs(config, lane) or lane.most_runs
        count = "once" if most == 1 else f"up to {most} times"
        verdict = (
            "a recording takes a second run"
            if config.getoption("--snapshot-update", default=False)
            else ("what is not the recorded result takes a second run, and one of the recorded code")
        )
        more = "" if config.getoption("--no-baseline") else f"; {verdict}"
        lines.append(f"lane: the gates run it {count} (--lane-runs){more}")
    return [visible(printable(line)) for line in lines]


def _is_here(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True

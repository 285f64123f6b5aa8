"""What a test session knows of its one run, and the report that ends the session: of this run, or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

from harness.evidence import EvidenceError, RunEvidence, load_run
from harness.present.collect import NAME
from harness.present.facts import load_here

GATE = "smoke"  # the marker


@dataclass(frozen=True)
class SessionRun:
    """The session's run. ``run_id``: None where it was made earlier (`--lane-evidence`). ``told``: the report that its
    process printed, for a run that could leave none in ``run_dir``; or why it did not start. ``places``: of files that
    the lane's table has elsewhere, for a run that nobody could write a record of."""

    run_dir: Path
    run_id: str | None
    told: str = ""
    places: Mapping[str, Path] = field(default_factory=dict)

    @cached_property
    def evidence(self) -> RunEvidence:
        """The run's evidence, from where the user's settings put it; with its id, so that no stale file passes."""
        if self.run_id is None:
            return load_here(self.run_dir)
        return load_run(self.run_dir, run_id=self.run_id, places=self.places, told=self.told)

    def report(self) -> str:
        """The report of this run: the file's, or what its process told. One line that says so where there is none."""
        evidence = self.evidence
        try:
            if evidence.report and (evidence.is_left() or not self.told):
                return evidence.path_of("report").read_text(encoding="utf-8", errors="backslashreplace")
            reason = "it does not say how the run ended"
        except (EvidenceError, OSError) as error:
            reason = str(error)
        return self.told or f"no report of this run ({reason}); the lane's log: {evidence.log_path}"


def of_session(report: str, failed: Sequence[pytest.TestReport], exit_status: int, action: str) -> Iterator[str]:
    """The report's lines as the session ends: under a run that completed and a session that is red, the four that say
    how it ended are the session's. The file is the lane's own, and stays."""
    lines = report[:100_000].splitlines()
    if exit_status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        yield from lines
        return
    changed: Mapping[str, str] = {}
    if "objective_status: completed" in lines:
        changed = {
            "objective_status": "failed",
            "first_failed_step": "gates" if all(GATE in test.keywords for test in failed) else "tests",
            "root_cause": _cause(failed, exit_status),
            "next_unblock_action": action,
        }
    for line in lines:
        key = line.partition(": ")[0]
        yield f"{key}: {changed[key]}" if key in changed else line


def _cause(failed: Sequence[pytest.TestReport], exit_status: int) -> str:
    if not failed:
        return f"pytest ended with exit code {int(exit_status)}, and the run itself completed"
    names = [test.nodeid.rpartition("::")[2] for test in failed]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"the run completed, and {len(names)} failed: {', '.join(names[:3])}{more}"


class ToldOnce:
    """What fails many gates is told by the first of them, in whole; the terminal points there from the others. JUnit,
    page and summary have had the reason of each by then, and group them in their own way."""

    def __init__(self) -> None:
        self._first: dict[object, str] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "failed" or GATE not in report.keywords:
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        cause = (crash.path, crash.lineno, crash.message) if crash is not None else report.longreprtext
        first = self._first.setdefault(cause, report.nodeid)
        if first != report.nodeid:
            report.longrepr = f"for the same reason as {first.rpartition('::')[2]}, above"


def next_action(config: pytest.Config) -> str:
    """What to do about a red session: what the verdict says, else to read what failed."""
    verdict = getattr(config.pluginmanager.get_plugin(NAME), "verdict", None) or {}
    command = str(verdict.get("next") or "")
    return "; ".join(command.splitlines()) or "read what pytest printed of the first failure, above"

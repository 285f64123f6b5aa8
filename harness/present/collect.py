"""The pytest plugin that collects how the gates ended and tells everybody: page, gates.json, JUnit, GitHub.

It lives in the process that the user started; under pytest-xdist the workers' reports arrive there by themselves. The
verdict is handed over by the process that found it, see `publish_verdict`. Nothing here changes how a session ends: a
page that cannot be written is one line on the terminal.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.present.changed import Place, base_of, changed_place
from harness.present.gates import NOT_APPLICABLE, GateResult, by_reason, holds_run
from harness.present.text import count

MARKER = "smoke"
NAME = "lane-gates"
_VERDICT = "lane_verdict"
NOT_THE_CODE = ("nondeterministic", "environment-moved")  # verdicts
_ANNOTATIONS = 10  # GitHub shows no more of one step


class GateCollector:
    """Register one in `pytest_configure`, except in a worker of pytest-xdist.

    ``run_dir`` gives the session's run directory at the end of the session, or None when no run was asked for.
    """

    def __init__(self, config: pytest.Config, run_dir: Callable[[], Path | None]) -> None:
        self.config = config
        self.run_dir = run_dir
        self.gates: dict[str, GateResult] = {}
        self.verdict: dict[str, Any] | None = None
        self.lines: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A gate's phases come one by one; the worst of them is how it ended."""
        if MARKER not in report.keywords:
            return
        before = self.gates.get(report.nodeid)
        counts = report.when == "call" or report.outcome != "passed"
        if counts and (before is None or before.outcome == "passed"):
            self.gates[report.nodeid] = result_of(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """With pytest-xdist: the verdict of the worker that found one."""
        self.verdict = getattr(node, "workeroutput", {}).get(_VERDICT, self.verdict)

    @pytest.hookimpl(tryfirst=True)  # JUnit's plugin writes its file in this hook
    def pytest_sessionfinish(self) -> None:
        run_dir = self.run_dir()
        if run_dir is None or not self.gates:
            return
        if not holds_run(run_dir):
            self.lines = [f"no page: {run_dir} holds no run"]
            return
        try:
            from harness.present.page import present_run

            file, self.lines = present_run(run_dir, list(self.gates.values()), self.verdict)
            self._add_junit_properties(file.metrics)
        except Exception as error:  # the gates have spoken; how they are shown must not change that
            self.lines = [f"no page: {type(error).__name__}: {' '.join(str(error).split())[:300]}"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.lines:
            terminalreporter.write_line(line)
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in annotation_lines(self.gates.values(), place_of_change(self.verdict)):
                terminalreporter.write_line(line)

    def _add_junit_properties(self, metrics: Mapping[str, str]) -> None:
        # What the fixture record_testsuite_property does; a fixture would end before the verdict is known.
        for plugin in self.config.pluginmanager.get_plugins():
            add: Callable[[str, str], None] | None = getattr(plugin, "add_global_property", None)
            if add is not None:
                for name, value in metrics.items():
                    add(name, value)


def register(config: pytest.Config, run_dir: Callable[[], Path | None]) -> None:
    """Register a collector where one belongs; for `pytest_configure`."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(GateCollector(config, run_dir), NAME)


def publish_verdict(config: pytest.Config, verdict: Mapping[str, Any]) -> None:
    """Hand the session's verdict (``Verdict.to_json()``) to the collector, from a worker too. Before the session
    ends."""
    worker_output: dict[str, Any] | None = getattr(config, "workeroutput", None)
    collector = config.pluginmanager.get_plugin(NAME)
    if worker_output is not None:
        worker_output[_VERDICT] = dict(verdict)
    elif isinstance(collector, GateCollector):
        collector.verdict = dict(verdict)


def tell_wants(items: Iterable[pytest.Item]) -> None:
    """Let each gate's report say what the gate wants: the first paragraph of its docstring. From a worker too."""
    for item in items:
        doc = inspect.getdoc(getattr(item, "function", None)) if MARKER in item.keywords else None
        if doc:
            item.user_properties.append(("wants", " ".join(doc.partition("\n\n")[0].split())))


def result_of(report: pytest.TestReport) -> GateResult:
    """What a report says of its gate, in one line (the first of the message) and in full."""
    details, reason = "", ""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        reason = str(report.longrepr[2])
    elif report.outcome != "passed":
        details = report.longreprtext
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = str(crash.message) if crash is not None else details
    path, line, _ = report.location
    told = dict(report.user_properties)
    outcome: str = "error" if report.outcome == "failed" and report.when != "call" else report.outcome
    if outcome == "skipped" and reason.startswith(f"Skipped: {NOT_APPLICABLE}: "):
        outcome, reason = NOT_APPLICABLE, reason.removeprefix(f"Skipped: {NOT_APPLICABLE}: ")
    return GateResult(
        nodeid=report.nodeid,
        outcome=outcome,
        reason=_one_line(reason.removeprefix("AssertionError: ").removeprefix("Failed: ")),
        details=_head(details, 8000),
        path=path.replace(os.sep, "/"),
        line=(line or 0) + 1,
        seconds=round(report.duration, 3),
        wants=_one_line(str(told.get("wants", ""))),
        measured=_one_line(str(told.get("measured", ""))),
    )


def place_of_change(verdict: Mapping[str, Any] | None) -> Place | None:
    """Where the lane's code changed, in a CI job that knows what it is compared with; None where the verdict says that
    it was not the code."""
    base = base_of(os.environ)
    if not base or (verdict is not None and verdict.get("verdict") in NOT_THE_CODE):
        return None
    return changed_place(base)


def annotation_lines(gates: Iterable[GateResult], place: Place | None = None) -> Iterator[str]:
    """GitHub's workflow commands for gates that did not pass: at the changed line if one is known, where a reviewer
    sees it in the diff, else at the gate. Gates with one and the same reason (a lane that failed fails them all) share
    an annotation, so that the few that GitHub shows say the most."""
    groups = [group for group in by_reason(list(gates)) if group[0].outcome != "skipped"]
    for number, failed in enumerate(groups):
        if number == _ANNOTATIONS:
            yield f"::notice::{len(groups) - number} more reasons for failed gates are in the job's summary"
            return
        first = failed[0]
        title = first.name if len(failed) == 1 else f"{first.name} and {len(failed) - 1} more gates"
        path, line, text = first.path, first.line, first.reason or "no reason given"
        if place is not None:
            text += f" (gate: {path}:{line}; {count(place.count, 'place')} of the lane's code changed)"
            path, line = place.path, place.line
        yield f"::error file={_property(path)},line={line},title={_property('gate: ' + title)}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _one_line(text: str) -> str:
    first = next(iter(text[:4000].strip().splitlines()), "")
    line = " ".join("".join(c if c.isprintable() else " " for c in first).split())
    return line if len(line) <= 500 else line[:499] + "…"


def _head(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}\n… and {len(text) - longest:,} more characters"

"""The pytest plugin that collects how the gates ended and tells everybody: page, gates.json, JUnit, GitHub.

It lives in the process that the user started; under pytest-xdist the workers' reports arrive there by themselves. The
verdict is handed over by the process that found it, see `publish_verdict`. Nothing here changes how a session ends: a
page that cannot be written is one line on the terminal.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.base.text import visible
from harness.present.changed import Place, base_of, changed_place
from harness.present.gates import NOT_APPLICABLE, NOT_RUN, OUTCOMES, XFAILED, XPASSED, GateResult, by_reason, holds_run
from harness.present.text import count

if TYPE_CHECKING:
    from harness.evidence import RunEvidence

MARKER = "smoke"
NAME = "lane-gates"
_VERDICT = "lane_verdict"
_COLLECTED = "lane_gates"
NOT_THE_CODE = ("nondeterministic", "environment-moved")  # verdicts
_ANNOTATIONS = 10  # GitHub shows no more of one step
_NOT_RUN = "it was deselected, or the session ended before it"
_PYTESTS_OWN = ("passed", "failed", "skipped")


class GateCollector:
    """Register one in `pytest_configure`, except in a worker of pytest-xdist.

    ``run`` gives the session's run, or its directory, at the end of the session; None when no run was asked for.
    """

    def __init__(self, config: pytest.Config, run: Callable[[], RunEvidence | Path | None]) -> None:
        self.config = config
        self.run = run
        self.verdict: dict[str, Any] | None = None
        self.verdict_lines: list[str] = []
        self.lines: list[str] = []
        self._found = 0
        # What each process said of each gate: with `--dist each` several do.
        self._reports: dict[str, dict[object, list[pytest.TestReport]]] = {}
        self._crashes: list[pytest.TestReport] = []
        self._collected: dict[str, GateResult] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what is said of a gate: it comes phase by phase, and all of it again where a plugin runs it again."""
        report = copy(report)  # some plugins write the next outcome into the same report
        worker = report.__dict__.pop("node", None)  # with it, the text of a failure begins with the worker's name
        if MARKER in report.keywords:
            self._reports.setdefault(report.nodeid, {}).setdefault(worker, []).append(report)
        elif not report.keywords:  # pytest-xdist's word on a test that its worker died in
            self._crashes.append(report)

    @property
    def gates(self) -> list[GateResult]:
        """How the gates ended, each once: of several processes, as in the one where it ended worst."""
        said = {nodeid: list(by_process.values()) for nodeid, by_process in self._reports.items()}
        files = {nodeid.partition("::")[0] for nodeid in said}
        for crash in self._crashes:
            # Nobody knows the marks of such a test; one that stands among gates is taken for one.
            if not files or crash.nodeid.partition("::")[0] in files:
                said.setdefault(crash.nodeid, []).append([crash])
        endings = [[ending for reports in each if (ending := result_of(reports))] for each in said.values()]
        # Of the outcomes the first is the good one; the others follow, the worst first.
        return [min(each, key=lambda gate: OUTCOMES.index(gate.outcome) or len(OUTCOMES)) for each in endings if each]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """With pytest-xdist: what a worker knew of the verdict when it ended."""
        output = getattr(node, "workeroutput", {})
        if _VERDICT in output:
            self.take_verdict(*output[_VERDICT])
        self.take_collected(output.get(_COLLECTED, ()))

    def take_collected(self, gates: Iterable[Sequence[Any]]) -> None:
        """The gates that a process found, (node id, path, line, wants) of each: those that it then ran, and others."""
        for nodeid, path, line, wants in gates:
            self._collected[nodeid] = GateResult(nodeid, NOT_RUN, _NOT_RUN, path=path, line=line, wants=wants)

    @property
    def judged(self) -> list[GateResult]:
        """How the gates ended, with those that were not run; nothing where none was."""
        gates = self.gates
        ran = {gate.nodeid for gate in gates}
        return [*gates, *(gate for nodeid, gate in self._collected.items() if nodeid not in ran)] if gates else []

    def take_verdict(self, found: int, verdict: Mapping[str, Any] | None, lines: Sequence[str]) -> None:
        """Of what the processes of a session knew of its one verdict, the latest: that with most findings."""
        if found > self._found:
            self._found, self.verdict, self.verdict_lines = found, None if verdict is None else dict(verdict), [*lines]

    @pytest.hookimpl(tryfirst=True)  # JUnit's plugin writes its file in this hook
    def pytest_sessionfinish(self) -> None:
        run = self.run()
        gates = self.judged
        if run is None or not gates:
            return
        run_dir = run if isinstance(run, Path) else run.run_dir
        if not holds_run(run_dir):
            self.lines = [f"no page: {run_dir} holds no run"]
            return
        try:
            from harness.present.page import present_run

            file, self.lines = present_run(run, gates, self.verdict)
            self._add_junit_properties(file.metrics)
        except Exception as error:  # the gates have spoken; how they are shown must not change that
            self.lines = [f"no page: {type(error).__name__}: {' '.join(str(error).split())[:300]}"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.lines:
            terminalreporter.write_line(visible(line))
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in annotation_lines(self.gates, place_of_change(self.verdict)):
                terminalreporter.write_line(line)

    def _add_junit_properties(self, metrics: Mapping[str, str]) -> None:
        # What the fixture record_testsuite_property does; a fixture would end before the verdict is known.
        for plugin in self.config.pluginmanager.get_plugins():
            add: Callable[[str, str], None] | None = getattr(plugin, "add_global_property", None)
            if add is not None:
                for name, value in metrics.items():
                    add(name, value)


def register(config: pytest.Config, run: Callable[[], RunEvidence | Path | None]) -> GateCollector:
    """Register a collector; for `pytest_configure`."""
    collector = GateCollector(config, run)
    config.pluginmanager.register(collector, NAME)
    return collector


def publish_verdict(config: pytest.Config, found: int, verdict: Mapping[str, Any] | None, lines: Sequence[str]) -> None:
    """Hand what this process knows of the session's verdict to the collector, from a worker too, before the session
    ends. ``found``: the findings that it rests on; ``verdict``: ``Verdict.to_json()``; ``lines``: for the terminal."""
    worker_output: dict[str, Any] | None = getattr(config, "workeroutput", None)
    collector = config.pluginmanager.get_plugin(NAME)
    if worker_output is not None:
        worker_output[_VERDICT] = [found, verdict, list(lines)]
    elif isinstance(collector, GateCollector):
        collector.take_verdict(found, verdict, lines)


def tell_gates(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """Let each gate's report say what the gate wants: the first paragraph of its docstring. And let the collector know
    of all gates, before any is deselected. From a worker too."""
    gates = []
    for item in items:
        if MARKER not in item.keywords:
            continue
        doc = inspect.getdoc(getattr(item, "function", None)) or ""
        wants = " ".join(doc.partition("\n\n")[0].split())
        if wants:
            item.user_properties.append(("wants", wants))
        path, line, _ = item.location
        gates.append([item.nodeid, path.replace(os.sep, "/"), (line or 0) + 1, _one_line(wants)])
    collector = config.pluginmanager.get_plugin(NAME)
    if hasattr(config, "workeroutput"):
        config.workeroutput[_COLLECTED] = gates
    elif isinstance(collector, GateCollector):
        collector.take_collected(gates)


def result_of(reports: Sequence[pytest.TestReport]) -> GateResult | None:
    """How a gate ended, from all that one process said of it: by the worst phase of its last run. None for a gate
    that was set up and torn down only (`--setup-only`)."""
    last, reruns = _last_run(reports)
    bad = [report for report in last if report.outcome != "passed"]
    calls = [report for report in last if report.when == "call"]
    if bad:
        result = _result(next((report for report in bad if report.outcome != "skipped"), bad[0]))
    elif calls:
        result = _result(calls[-1])
    elif last[-1].when == "teardown":
        return None
    else:
        result = replace(_result(last[-1]), outcome="error", reason="it did not run to its end")
    return replace(result, reruns=reruns)


def _last_run(reports: Sequence[pytest.TestReport]) -> tuple[list[pytest.TestReport], int]:
    """(The reports of the last run of a test, how many runs before it count no more.) A plugin that runs a test again
    says so by an outcome of its own, and begins with the set-up or with the phase that it did not accept."""
    last: list[pytest.TestReport] = []
    reruns = 0
    for report in reports:
        before = last[-1] if last and type(last[-1]) is pytest.TestReport else None  # and not that of a subtest
        rejected = before and before.outcome not in _PYTESTS_OWN and report.when == before.when
        if last and (rejected or report.when == "setup"):
            last, reruns = [], reruns + 1
        last.append(report)
    return last, reruns


def _result(report: pytest.TestReport) -> GateResult:
    """What a report says of its gate, in one line (the first of the message) and in full."""
    details, reason = "", ""
    expected = getattr(report, "wasxfail", None)
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        reason = str(report.longrepr[2])
    elif report.outcome != "passed":
        details = report.longreprtext
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = str(crash.message) if crash is not None else details
    path, line, _ = report.location
    told = dict(report.user_properties)
    outcome: str = "error" if report.outcome == "failed" and report.when != "call" else report.outcome
    if expected is not None and outcome in ("skipped", "passed"):
        outcome, reason = (XFAILED if outcome == "skipped" else XPASSED), f"expected to fail: {expected or reason}"
    elif outcome not in ("error", *_PYTESTS_OWN):
        outcome, reason = "error", f"its outcome is {outcome!r}, which is not known here: {reason or 'no reason given'}"
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
    groups = [group for group in by_reason(list(gates)) if group[0].outcome in ("failed", "error")]
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

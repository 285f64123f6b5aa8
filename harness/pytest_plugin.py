"""The pytest plugin: one training run a session, shared by all gates, and the report at the end."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.base.lock import Busy, Hold
from harness.base.text import visible
from harness.base.workers import one_at_a_time
from harness.baselines.baseline import Baseline
from harness.baselines.record import refusal
from harness.baselines.second_leg import remove_dead_worktrees
from harness.baselines.snapshot import BaselineFactory, Gates, baseline_factory
from harness.baselines.store import Store
from harness.bootstrap.report import REPORT_SHOWN
from harness.evidence import EvidenceError, NotApplicable, RunEvidence
from harness.evidence.errors import mismatch
from harness.lane.environment import let_warnings_be_warnings
from harness.present.collect import NAME as COLLECTOR
from harness.present.collect import GateCollector, publish_verdict, register, tell_gates
from harness.present.gates import NOT_APPLICABLE
from harness.runs.footprint import interrupted
from harness.runs.further import FurtherRuns
from harness.runs.progress import Progress
from harness.runs.run import LaneRun
from harness.runs.table import Lane, LaneTableError
from harness.session.applicable import Applicable
from harness.session.header import pytest_report_header
from harness.session.lane import (
    HOLD,
    footprint_of,
    gates_command,
    hold_until_end,
    lane_code,
    lane_to_run,
    most_runs,
    promises,
    run_directory,
    session_lane,
    shared_place,
    store_of,
)
from harness.session.options import pytest_addoption, pytest_cmdline_main, pytest_load_initial_conftests
from harness.session.recording import other_gates, recording_last
from harness.session.report import GATE, SessionRun, ToldOnce, next_action, of_session
from harness.session.terminal import Terminal

# Before anything imports a gate: its `assert` then says what it found, and is one under `python -O` too.
pytest.register_assert_rewrite("harness.gates")

RUN = pytest.StashKey[SessionRun]()
APPLICABLE = pytest.StashKey[Applicable]()

__all__ = ["pytest_addoption", "pytest_cmdline_main", "pytest_load_initial_conftests", "pytest_report_header"]  # hooks


def pytest_configure(config: pytest.Config) -> None:
    """Read the lane's table, and collect how the gates end: for report.html, gates.json, JUnit and GitHub."""
    if sys.flags.optimize and config.getoption("assertmode") == "plain":
        raise pytest.UsageError("python -O with --assert=plain: every gate would pass; leave one of them out")
    if not any(line.startswith("smoke") for line in config.getini("markers")):
        config.addinivalue_line("markers", "smoke: the gates; each reads the one run of the session")
    if config.getoption("--lane"):  # of the default one only a session that runs it needs to know
        try:
            session_lane(config)
        except LaneTableError as error:
            raise pytest.UsageError(str(error)) from None
    if hasattr(config, "workerinput"):
        return
    config.stash[APPLICABLE] = Applicable(register(config, lambda: run_that_was_left(config)))
    config.pluginmanager.register(config.stash[APPLICABLE], "lane-applicable")
    config.pluginmanager.register(ToldOnce(), "lane-told-once")


def run_that_was_left(config: pytest.Config) -> RunEvidence | None:
    """The session's run, where it lies in the run directory: of another's, nothing is touched."""
    run = config.stash.get(RUN, None)
    if run is None or not run.evidence.is_left():
        return None
    if HOLD not in config.stash and run.run_id is not None:  # the workers have ended: another may own it by now
        try:
            hold_until_end(config, run.run_dir, shared=True)
        except (Busy, OSError):
            return None
    return run.evidence


@pytest.fixture(scope="session")
def lane_process(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], RunEvidence]]:
    """Starts the session's one run and returns at once; what it yields waits for the run's end and gives its evidence.

    For a fixture that has something to load meanwhile. With pytest-xdist the first worker that gets here runs the
    lane, and the others wait for it.
    """
    config = request.config
    # Before minutes go by; and here, because a session that runs no lane may update snapshots of another kind.
    if config.getoption("--snapshot-update", default=False) and (
        why := refusal(config.getoption("--baseline-reason"), os.environ)
    ):
        why = f"nothing was run, and nothing recorded: {why}"
        if hasattr(config, "workerinput"):
            pytest.fail(why, pytrace=False)  # pytest-xdist takes a worker that ends the session for one that broke
        pytest.exit(why, returncode=pytest.ExitCode.USAGE_ERROR)
    remove_dead_worktrees(config.rootpath)
    if not config.getoption("--lane-evidence"):
        _lane(config)
    run_dir = run_directory(config)
    worker = getattr(config, "workerinput", None)

    def know(run: SessionRun) -> RunEvidence:
        config.stash[RUN] = run
        if worker is not None:
            config.workeroutput["lane_run"] = [str(run.run_dir), run.run_id, run.told]  # type: ignore[attr-defined]
        return run.evidence

    def start(say: Callable[[str], None] | None = None) -> LaneRun:
        lane = _lane(config)
        hold: Hold | None = None
        try:
            hold = hold_until_end(config, run_dir)
        except (Busy, OSError) as error:
            reason = f"in use by {error}" if isinstance(error, Busy) else str(error.strerror)
        with told():
            if hold is None and not lane.table.in_place:  # which says by itself what is in its way
                raise mismatch(run_dir, f"a folder that cannot be used: {reason}", "the run directory, free")
            if footprint := footprint_of(config, lane, store_of(config, tmp_path_factory)):
                if say and (line := interrupted(run_dir)):
                    say(f"lane: {line}")
                footprint.begin()
            on_line = Progress(say) if say else _ignore
            return LaneRun(lane, run_dir, hold=hold, numeric_class=_numeric_class, on_line=on_line)

    @contextlib.contextmanager
    def told() -> Iterator[None]:
        try:
            yield
        except EvidenceError as error:
            know(SessionRun(run_dir, "none", f"no run: {error}"))
            pytest.fail(str(error), pytrace=False)

    def end(process: LaneRun) -> RunEvidence:
        with told():
            process.wait()
        return know(SessionRun(run_dir, process.run_id, process.report, process.places))

    if config.getoption("--lane-evidence"):
        evidence = know(SessionRun(run_dir, None))
        yield lambda: evidence
    elif worker is None:
        with Terminal(config) as say:
            process = start(say)
            know(SessionRun(run_dir, process.run_id, places=process.places))
            try:
                lane_code(config)  # now, and not when the run has ended
                yield lambda: end(process)
            finally:
                process.stop()
    else:
        lane_code(config)
        result = shared_place(config, tmp_path_factory, "run")
        assert result is not None
        with one_at_a_time(result.with_suffix(".lock")):
            if not result.exists():
                end(start())
                if HOLD in config.stash:
                    config.stash[HOLD].share()
                unfinished = result.with_suffix(".tmp")
                unfinished.write_text(json.dumps([config.stash[RUN].run_id, config.stash[RUN].told]))
                unfinished.replace(result)
        evidence = know(SessionRun(run_dir, *json.loads(result.read_text())))
        if HOLD not in config.stash:
            with contextlib.suppress(Busy, OSError):
                hold_until_end(config, run_dir, shared=True)
        yield lambda: evidence


def _lane(config: pytest.Config) -> Lane:
    """The session's lane, for a test that needs one: without it, that test fails."""
    try:
        return lane_to_run(config)
    except LaneTableError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def lane_run(request: pytest.FixtureRequest, lane_process: Callable[[], RunEvidence]) -> RunEvidence:
    """The evidence of the session's one run. Never raises for a lane that failed: see ``RunEvidence.failure``."""
    # While the lane trains on one core, this process imports on another what the gates will need.
    with warnings.catch_warnings(), contextlib.suppress(ImportError):  # which the lane meets too, and says so
        let_warnings_be_warnings()
        if promises(request.config, "checkpoint"):
            importlib.import_module("torch").set_num_threads(1)
    gc.freeze()  # pytest's and Python's last collections would look through all that torch made: 0.6 s (measured)
    return lane_process()


def _numeric_class() -> str:
    """The numeric class of this process, for a lane that does not say its own."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    return str(importlib.import_module("harness.numerics.battery").numeric_class())


def _ignore(line: str) -> None:
    pass


@pytest.fixture(scope="session")
def further_runs(
    request: pytest.FixtureRequest, lane_run: RunEvidence, tmp_path_factory: pytest.TempPathFactory
) -> FurtherRuns | None:
    """The further runs of the lane; None where nothing is run."""
    config = request.config
    if config.getoption("--lane-evidence"):
        return None
    lane, store = _lane(config), store_of(config, tmp_path_factory)
    footprint = footprint_of(config, lane, store)
    return FurtherRuns(lane, lane_run.run_dir, store, footprint, lambda: Terminal(config), most_runs(config, lane))


def _further(runs: FurtherRuns | None, which: str) -> Callable[[], RunEvidence]:
    def nothing() -> RunEvidence:
        raise NotApplicable("--lane-evidence runs nothing, and this takes another run of the lane")

    return nothing if runs is None else getattr(runs, which)


@pytest.fixture(scope="session")
def lane_again(further_runs: FurtherRuns | None) -> Callable[[], RunEvidence]:
    """Gives the evidence of a second run of the lane, once a session."""
    return _further(further_runs, "repeated")


@pytest.fixture(scope="session")
def lane_other_audio(further_runs: FurtherRuns | None) -> Callable[[], RunEvidence]:
    """Gives the evidence of a run of the lane with other audio."""
    return _further(further_runs, "other_audio")


@pytest.fixture(scope="session")
def lane_same_audio(further_runs: FurtherRuns | None) -> Callable[[], RunEvidence]:
    """Gives the evidence of a run of the lane with the same audio under other names."""
    return _further(further_runs, "same_audio")


@pytest.fixture(scope="session")
def baseline_gates(
    request: pytest.FixtureRequest,
    lane_run: RunEvidence,
    further_runs: FurtherRuns | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gates]:
    """What the gates that compare with a baseline share: the verdict, found once, and the recording."""
    config = request.config

    def second_leg(baseline: Baseline) -> RunEvidence:
        assert further_runs is not None
        return further_runs.second_leg(baseline)

    gates = Gates(
        lane_run,
        Store(config.rootpath / config.getoption("--baselines")),
        code=lane_code(config),
        rerun=None if further_runs is None else further_runs.again,
        second_leg=None if further_runs is None else second_leg,
        update=bool(config.getoption("--snapshot-update", default=False)),
        reason=config.getoption("--baseline-reason"),
        shared=shared_place(config, tmp_path_factory, "verdict"),
        others=other_gates(config),
        command=gates_command(config),
    )
    yield gates
    publish_verdict(config, *gates.told())


@pytest.fixture
def baseline(request: pytest.FixtureRequest) -> BaselineFactory:
    """The recorded baseline, part by part: ``assert lane_run == baseline("loss")``."""
    if request.config.getoption("--no-baseline"):
        pytest.skip(f"{NOT_APPLICABLE}: --no-baseline: the run is compared with no recording")
    return baseline_factory(request, request.getfixturevalue("baseline_gates"))


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """A gate says with it what it found, in a few words. The page shows it beside what the gate wants, JUnit too."""
    return lambda text: record_property("measured", text)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Gates without a lane to run are refused once, and not once for each of them."""
    config = session.config
    if config.getoption("--lane-evidence") or config.option.collectonly or hasattr(config, "workerinput"):
        return
    if any("lane_process" in getattr(item, "fixturenames", ()) for item in session.items):
        try:
            lane_to_run(config)
        except LaneTableError as error:
            raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tell the collector which gates there are; before -k deselects some."""
    if config.getoption("forked", False) and any(item.get_closest_marker("smoke") for item in items):
        raise pytest.UsageError(
            "--forked runs each test in a process of its own, and the gates share the one run of their session: leave "
            "it out, or leave the gates out with -m 'not smoke'"
        )
    tell_gates(config, items)
    recording_last(config, items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hypothesis' plugin imports hypothesis when it has nothing to summarise either: half a second (measured)."""
    if "hypothesis" not in sys.modules:
        session.config.pluginmanager.unregister(name="hypothesispytest")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A failed lane, or evidence that cannot be read, fails the gate with one line that says why."""
    arguments: Mapping[str, Any] = pyfuncitem.funcargs
    run = arguments.get("lane_run")
    if isinstance(run, RunEvidence) and (reason := run.failure()):
        pytest.fail(reason, pytrace=False)
    try:
        with warnings.catch_warnings():
            if pyfuncitem.function.__module__.startswith("harness.gates."):
                let_warnings_be_warnings()
            return (yield)
    except NotApplicable as error:
        skipped, said = True, f"{NOT_APPLICABLE}: {error}"
    except EvidenceError as error:
        skipped, said = False, str(error)
    # Not within the except above: pytest would show both exceptions, which say the same.
    if skipped:
        pytest.skip(said)
    pytest.fail(said, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a gate says holds names and texts of the lane's: they are shown as what they are, and do nothing."""
    report = yield
    if GATE in report.keywords:
        if isinstance(report.longrepr, str):
            report.longrepr = visible(report.longrepr)
        for traceback, crash, _ in getattr(report.longrepr, "chain", ()):
            for entry in traceback.reprentries:
                entry.lines[:] = map(visible, entry.lines)
            if crash is not None:
                crash.message = visible(crash.message)
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """With pytest-xdist: learn from a worker where the session's run lies."""
    if told := getattr(node, "workeroutput", {}).get("lane_run"):
        run_dir, *rest = told
        node.config.stash[RUN] = SessionRun(Path(run_dir), *rest)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> Generator[None, None, None]:
    """The lane's report, last (after pytest's own summary), whatever happened."""
    yield
    if (applicable := config.stash.get(APPLICABLE, None)) is not None:
        for line in applicable.lines():
            terminalreporter.write_line(visible(line))
    collector = config.pluginmanager.get_plugin(COLLECTOR)
    for line in collector.verdict_lines if isinstance(collector, GateCollector) else ():
        terminalreporter.write_line(visible(line))
    if (run := config.stash.get(RUN, None)) is not None:
        failed = [test for kind in ("failed", "error") for test in terminalreporter.stats.get(kind, [])]
        terminalreporter.write_line("")
        for line in of_session(run.report(), failed, exitstatus, next_action(config)):
            terminalreporter.write_line(visible(line))
        if shown := os.environ.get(REPORT_SHOWN):
            Path(shown).touch()

"""The pytest plugin: one training run a session, shared by all gates, and the report at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from harness.base.lock import Busy, Hold
from harness.base.text import visible
from harness.base.workers import one_at_a_time
from harness.baselines.baseline import Baseline, Code, Store
from harness.baselines.compare import GATES_COMMAND
from harness.baselines.record import refusal
from harness.baselines.second_leg import code_of, remove_dead_worktrees, run_second_leg
from harness.baselines.snapshot import BaselineFactory, Gates, baseline_factory
from harness.bootstrap.report import REPORT_SHOWN
from harness.evidence import EvidenceError, NotApplicable, RunEvidence, load_run
from harness.evidence.errors import mismatch
from harness.evidence.record import RUN_FILE
from harness.evidence.strict import is_there
from harness.external_runs import ExternalRuns
from harness.lane.environment import let_warnings_be_warnings
from harness.lane.settings import VARIABLES
from harness.lanes import ExternalLane, ExternalProcess, LaneTableError, find_lane
from harness.launch import LaneProcess, run_lane
from harness.present.collect import NAME as COLLECTOR
from harness.present.collect import GateCollector, publish_verdict, register, tell_gates
from harness.present.gates import NOT_APPLICABLE
from harness.runs.footprint import Footprint, interrupted
from harness.session_run import GATE, SessionRun, ToldOnce, of_session

# Before anything imports a gate: its `assert` then says what it found, and is one under `python -O` too.
pytest.register_assert_rewrite("harness.gates")

ASTRAY = pytest.StashKey[bool]()
RUN = pytest.StashKey[SessionRun]()
HOLD = pytest.StashKey[Hold]()
LANE = pytest.StashKey[ExternalLane | None]()
CODE = pytest.StashKey[Code]()
APPLICABLE = pytest.StashKey["Applicable"]()


OPTIONS = ("--lane", "--lane-run-dir", "--lane-evidence", "--baselines", "--baseline-reason")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lane", "the training lane and its gates")
    group.addoption(
        "--lane",
        metavar="NAME",
        help="run the lane of [tool.harness.lanes.NAME] in pyproject.toml in place of the built-in one",
    )
    group.addoption(
        "--lane-run-dir",
        metavar="DIR",
        help="the session's run directory; default: LANE_RUN_DIR, else artifacts/ in the root directory",
    )
    group.addoption(
        "--lane-evidence",
        metavar="DIR",
        help="do not train: hold the gates against the run that lies in DIR",
    )
    group.addoption(
        "--baselines",
        metavar="DIR",
        default="baselines",
        help="where the recorded baselines lie, relative to the root directory; default: baselines",
    )
    group.addoption(
        "--baseline-reason",
        metavar="TEXT",
        help="why the result is right; with --snapshot-update, which records the run as the new baseline",
    )


def joined(words: Sequence[str]) -> list[str]:
    """A command line on which a value of ours follows its option after `=`, and not as a word of its own."""
    known: list[str] = []
    for index, word in enumerate(words):
        before = known[-1] if known else ""
        if before in OPTIONS and not word.startswith("-"):
            known[-1] = f"{before}={word}"
        elif word == "--":
            return [*known, *words[index:]]
        else:
            known.append(word)
    return known


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> Generator[None, None, None]:
    """pytest finds its root directory before it knows these options, and takes the DIR of `--lane-evidence DIR` for one
    of the paths that say where that is. Nothing of such a pass is used: pytest_cmdline_main makes another."""
    words = list(early_config.invocation_params.args)
    added = shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
    if joined(added) != added:
        os.environ["PYTEST_ADDOPTS"] = shlex.join(joined(added))
    if joined(added) != added or joined(words) != words:
        early_config.stash[ASTRAY] = True
        early_config.known_args_namespace.noconftest = True
        args.clear()
    yield


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Begin again, with a command line that leads pytest to the same root directory with and without our options."""
    if not config.stash.get(ASTRAY, False):
        return None
    return pytest.main(joined(config.invocation_params.args), plugins=config.invocation_params.plugins)


def pytest_configure(config: pytest.Config) -> None:
    """Read the table of `--lane`, and collect how the gates end: for report.html, gates.json, JUnit and GitHub."""
    if sys.flags.optimize and config.getoption("assertmode") == "plain":
        raise pytest.UsageError("python -O with --assert=plain: every gate would pass; leave one of them out")
    if not any(line.startswith("smoke") for line in config.getini("markers")):
        config.addinivalue_line("markers", "smoke: the gates; each reads the one run of the session")
    name = config.getoption("--lane")
    try:
        config.stash[LANE] = find_lane(config.rootpath, name) if name else None
    except LaneTableError as error:
        raise pytest.UsageError(str(error)) from None
    if hasattr(config, "workerinput"):
        return
    collector = register(config, lambda: run_that_was_left(config))
    if is_external(config):
        config.stash[APPLICABLE] = Applicable(collector)
        config.pluginmanager.register(config.stash[APPLICABLE], "lane-applicable")
    config.pluginmanager.register(ToldOnce(), "lane-told-once")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What this session computes with and from: the provenance of its result, as far as it is known before the run."""
    code = lane_code(config)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "audiocraft", "numpy") if _installed(name))
    changed = ", lane code changed since" if code.dirty else ""
    if (lane := config.stash.get(LANE, None)) is not None:
        return [f"lane: {lane.name}: {' '.join(lane.command)}; commit {code.commit[:12]}{changed}"]
    mode = os.environ.get("LANE_NUMERICS", "universal for the shipped model")
    return [f"lane: numerics {mode}; {packages}; commit {code.commit[:12]}{changed}; code {code.digest[:12]}"]


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


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


def is_external(config: pytest.Config) -> bool:
    """Whether the session's run is that of an external lane."""
    return config.stash.get(LANE, None) is not None or (
        bool(config.getoption("--lane-evidence")) and is_there(run_directory(config) / RUN_FILE)
    )


def lane_code(config: pytest.Config) -> Code:
    """The code of the session's lane as it was when the run began; its digest is empty where an external lane's table
    does not name its code."""
    if CODE not in config.stash:
        lane = config.stash.get(LANE, None)
        code = code_of(config.rootpath) if lane is None else code_of(config.rootpath, lane.code_paths, "")
        config.stash[CODE] = code if lane is None or lane.code else dataclasses.replace(code, digest="")
    return config.stash[CODE]


def run_directory(config: pytest.Config) -> Path:
    """The session's run directory: option, then LANE_RUN_DIR, then ``artifacts`` in pytest's root directory; of an
    external lane ``artifacts/NAME``."""
    lane = config.stash.get(LANE, None)
    if lane is not None and not config.getoption("--lane-evidence"):
        own = config.getoption("--lane-run-dir")
        return config.invocation_params.dir / own if own else config.rootpath / "artifacts" / lane.name
    chosen = config.getoption("--lane-evidence") or config.getoption("--lane-run-dir") or os.environ.get("LANE_RUN_DIR")
    return (config.invocation_params.dir / chosen) if chosen else config.rootpath / "artifacts"


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
    run_dir = run_directory(config)
    worker = getattr(config, "workerinput", None)
    lane = config.stash.get(LANE, None)
    footprint = footprint_of(config, tmp_path_factory)

    def know(run: SessionRun) -> RunEvidence:
        config.stash[RUN] = run
        if worker is not None:
            config.workeroutput["lane_run"] = [str(run.run_dir), run.run_id, run.told]  # type: ignore[attr-defined]
        return run.evidence

    def start(say: Callable[[str], None] | None = None) -> LaneProcess | ExternalProcess:
        try:
            hold: Hold | None = hold_until_end(config, run_dir)
        except (Busy, OSError) as error:
            hold, hindrance = None, f"in use by {error}" if isinstance(error, Busy) else str(error.strerror)
        if lane is None:  # which says by itself what hinders it
            return LaneProcess(run_dir, hold=hold, on_line=(lambda line: _show_progress(line, say)) if say else _ignore)
        with told():
            if hold is None:
                raise mismatch(run_dir, f"a folder that cannot be used: {hindrance}", "the run directory, free")
            if say and (line := interrupted(run_dir)):
                say(f"lane: {line}")
            footprint.begin()
            show = _Throttled(say) if say else _ignore
            return ExternalProcess(lane, run_dir, numeric_class=_numeric_class, on_line=show)

    @contextlib.contextmanager
    def told() -> Iterator[None]:
        try:
            yield
        except EvidenceError as error:
            know(SessionRun(run_dir, "none", f"no run: {error}"))
            pytest.fail(str(error), pytrace=False)

    def end(process: LaneProcess | ExternalProcess) -> RunEvidence:
        with told():
            ended = process.wait()
        return know(SessionRun(run_dir, ended.run_id, getattr(ended, "report", "")))

    if config.getoption("--lane-evidence"):
        evidence = know(SessionRun(run_dir, None))
        yield lambda: evidence
    elif worker is None:
        with _terminal(config) as say:
            process = start(say)
            know(SessionRun(run_dir, process.run_id))
            try:
                lane_code(config)  # now, and not when the run has ended
                yield lambda: end(process)
            finally:
                process.stop()
    else:
        lane_code(config)
        result = _shared(config, tmp_path_factory, "run")
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


@pytest.fixture(scope="session")
def lane_run(request: pytest.FixtureRequest, lane_process: Callable[[], RunEvidence]) -> RunEvidence:
    """The evidence of the session's one run. Never raises for a lane that failed: see ``RunEvidence.failure``."""
    # While the lane trains on one core, this process imports on another what the gates will need.
    with warnings.catch_warnings(), contextlib.suppress(ImportError):  # which the lane meets too, and says so
        let_warnings_be_warnings()
        if not is_external(request.config):  # of whose gates none needs it
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
def external_runs(
    request: pytest.FixtureRequest, lane_run: RunEvidence, tmp_path_factory: pytest.TempPathFactory
) -> ExternalRuns | None:
    """The further runs of an external lane; None where nothing is run."""
    lane = request.config.stash.get(LANE, None)
    if lane is None or request.config.getoption("--lane-evidence"):
        return None
    footprint = footprint_of(request.config, tmp_path_factory)
    return ExternalRuns(lane, lane_run.run_dir, footprint, lambda: _terminal(request.config))


def footprint_of(config: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Footprint:
    """What the lane writes into the project; the same for every worker of the session."""
    store = _shared(config, tmp_path_factory, "runs") or tmp_path_factory.getbasetemp() / "lane-runs"
    return Footprint(config.rootpath, run_directory(config), store)


def hold_until_end(config: pytest.Config, run_dir: Path, *, shared: bool = False) -> Hold:
    """Own the run directory until the session has written all that it has to say. With pytest-xdist the workers share
    it once the lane has ended, and the controller takes it over from them. Raises Busy and OSError."""
    config.stash[HOLD] = hold = Hold(run_dir, shared=shared)
    config.add_cleanup(hold.release)
    return hold


def _shared(config: pytest.Config, tmp_path_factory: pytest.TempPathFactory, what: str) -> Path | None:
    """With pytest-xdist: a place that is the same for every worker of the session, and for no other session's."""
    worker = getattr(config, "workerinput", None)
    return worker and tmp_path_factory.getbasetemp().parent / f"lane-{what}-{worker['testrunuid']}"


def _further(runs: ExternalRuns | None, which: str) -> Callable[[], RunEvidence]:
    def nothing() -> RunEvidence:
        raise NotApplicable("--lane-evidence runs nothing, and this takes another run of the lane")

    return nothing if runs is None else getattr(runs, which)


@pytest.fixture(scope="session")
def lane_again(external_runs: ExternalRuns | None) -> Callable[[], RunEvidence]:
    """Gives the evidence of a second run of an external lane, which takes place once a session."""
    return _further(external_runs, "again")


@pytest.fixture(scope="session")
def lane_other_audio(external_runs: ExternalRuns | None) -> Callable[[], RunEvidence]:
    """Gives the evidence of a run of an external lane with other audio."""
    return _further(external_runs, "other_audio")


@pytest.fixture(scope="session")
def lane_same_audio(external_runs: ExternalRuns | None) -> Callable[[], RunEvidence]:
    """Gives the evidence of a run of an external lane with the same audio under other names."""
    return _further(external_runs, "same_audio")


@pytest.fixture(scope="session")
def baseline_gates(
    request: pytest.FixtureRequest,
    lane_run: RunEvidence,
    external_runs: ExternalRuns | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gates]:
    """What the gates that compare with a baseline share: the verdict, found once, and the recording."""
    config = request.config
    trained_here = not config.getoption("--lane-evidence")

    def run_again(code: Path | None = None) -> RunEvidence:
        if external_runs is not None:
            return external_runs.again()
        folder = tmp_path_factory.mktemp("second-run")
        with _terminal(config) as say:
            say("lane: running again, from the baseline's code" if code else "lane: running again, to rule out chance")
            # In a folder of its own, wherever the user put the session's files.
            own = dict.fromkeys(("TRAIN_STATUS_PATH", "KNOWLEDGE_AUDIO_DIR", "RUN_PREPARE"), "")
            ended = run_lane(folder, own, code=code, on_line=lambda line: _show_progress(line, say))
        return load_run(folder, run_id=ended.run_id, told=ended.report)

    def second_leg(baseline: Baseline) -> RunEvidence:
        if external_runs is not None:
            return external_runs.second_leg(baseline)
        return run_second_leg(baseline, config.rootpath, run_again)

    code = lane_code(config)
    gates = Gates(
        lane_run,
        Store(config.rootpath / config.getoption("--baselines")),
        code=code,
        rerun=run_again if trained_here else None,
        second_leg=second_leg if trained_here else None,
        update=bool(config.getoption("--snapshot-update", default=False)),
        reason=config.getoption("--baseline-reason"),
        shared=_shared(config, tmp_path_factory, "verdict"),
        command=gates_command(config),
    )
    yield gates
    publish_verdict(config, *gates.told())


def gates_command(config: pytest.Config) -> str:
    """What to type, from where this session was started, to run its gates with its settings: `pytest -m smoke`, with
    what it takes here."""
    settings = VARIABLES if config.stash.get(LANE, None) is None else ()
    words = [f"{name}={shlex.quote(os.environ[name])}" for name in settings if os.environ.get(name)]
    words.append("python3 -m harness run" if REPORT_SHOWN in os.environ else GATES_COMMAND)
    if (store := config.getoption("--baselines")) != "baselines":
        words.append(f"--baselines={shlex.quote(store)}")
    named = config.args_source is config.ArgsSource.ARGS and config.invocation_params.dir != config.rootpath
    if named and not hasattr(config, "workerinput"):
        words += map(shlex.quote, config.args)
    return " ".join(words)


@pytest.fixture
def baseline(request: pytest.FixtureRequest, baseline_gates: Gates) -> BaselineFactory:
    """The recorded baseline, part by part: ``assert lane_run == baseline("loss")``."""
    return baseline_factory(request, baseline_gates)


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """A gate says with it what it found, in a few words. The page shows it beside what the gate wants, JUnit too."""
    return lambda text: record_property("measured", text)


def _show_progress(line: str, say: Callable[[str], None]) -> None:
    """Turn the lane's output into a few lines that read well on a terminal, in a log and in a notebook."""
    word, _, rest = line.partition(" ")
    if word == "STEP":
        say(f"lane: {rest}")
    elif word == "PROGRESS":
        done, total, _, loss = rest.split()
        if int(done) in (1, int(total)) or int(done) % max(1, int(total) // 8) == 0:
            say(f"lane: train {done}/{total} loss {loss}")
    elif word == "TOKENS":
        done, total = rest.split()
        if done == total:
            say(f"lane: tokenised {total} chunks")
    elif word in ("FAILED", "SKIPPED", "EQUAL", "ESTIMATE", "DOWNLOAD", "RESUMED"):
        say(f"lane: {word} {rest}")


class _Throttled:
    """Shows what an external lane says, at most four lines a second: some say thousands."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._last = say, 0.0

    def __call__(self, line: str) -> None:
        if line.strip() and time.monotonic() - self._last >= 0.25:
            self._last = time.monotonic()
            self._say(f"lane: {line[:200]}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The gates for external lanes run the lane again, and are for those alone. First, before -k deselects some."""
    if config.getoption("forked", False) and any(item.get_closest_marker("smoke") for item in items):
        raise pytest.UsageError(
            "--forked runs each test in a process of its own, and the gates share the one run of their session: leave "
            "it out, or leave the gates out with -m 'not smoke'"
        )
    if not is_external(config):
        module = "harness.gates.black_box"
        black_box = [item for item in items if getattr(getattr(item, "function", None), "__module__", "") == module]
        config.hook.pytest_deselected(items=black_box)
        items[:] = [item for item in items if item not in black_box]
    tell_gates(config, items)


class Applicable:
    """Counts the gates of an external lane that had something to judge. A session in which none had is a failure."""

    def __init__(self, collector: GateCollector) -> None:
        self.collector = collector
        self.judged = 0
        self.reasons: dict[str, list[str]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for gate in self.collector.gates:
            if gate.outcome == NOT_APPLICABLE:
                self.reasons.setdefault(gate.reason, []).append(gate.name)
            else:
                self.judged += gate.outcome != "skipped"
        if self.reasons and not self.judged:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def lines(self) -> Iterator[str]:
        """For the end of the session: what was not judged, by reason."""
        if self.reasons:
            count = sum(map(len, self.reasons.values()))
            yield f"not applicable: {count} gates, which have judged nothing; {self.judged} have"
        for reason, names in self.reasons.items():
            yield f"  {reason}: {', '.join(names)}"
        if self.reasons and not self.judged:
            yield "FAILED: no gate had anything to judge; name more of what the lane leaves in its table"


class _terminal:
    """Gives a function that writes a line to the terminal, also while pytest captures the output, from any thread."""

    def __init__(self, config: pytest.Config) -> None:
        self._capture = config.pluginmanager.getplugin("capturemanager")
        self._quiet = hasattr(config, "workerinput") or config.get_verbosity() < -1

    def __enter__(self) -> Callable[[str], None]:
        if self._quiet:
            self._descriptor = os.open(os.devnull, os.O_WRONLY)
        elif self._capture is None:
            self._descriptor = os.dup(1)
        else:
            with self._capture.global_and_fixture_disabled():
                sys.stdout.flush()
                self._descriptor = os.dup(1)
        os.write(self._descriptor, b"\n")
        return self._say

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # whoever was watching is gone; the run goes on
            os.write(self._descriptor, f"{visible(line)}\n".encode("utf-8", "backslashreplace"))

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


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
    output = getattr(node, "workeroutput", {})
    if "lane_run" in output:
        run_dir, *rest = output["lane_run"]
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
        for line in of_session(run.report(), failed, exitstatus, _next_action(config)):
            terminalreporter.write_line(visible(line))
        if shown := os.environ.get(REPORT_SHOWN):
            Path(shown).touch()


def _next_action(config: pytest.Config) -> str:
    """What to do about a red session: what the verdict says, else to read what failed."""
    verdict = getattr(config.pluginmanager.get_plugin(COLLECTOR), "verdict", None) or {}
    command = str(verdict.get("next") or "")
    return "; ".join(command.splitlines()) or "read what pytest printed of the first failure, above"

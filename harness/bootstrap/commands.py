"""The commands that work on a bare machine: set up, then hand over to the interpreter that was set up."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from harness.base.project import checkout_here, project_folder
from harness.bootstrap.errors import SetupError
from harness.bootstrap.ready import Setup, find_ready
from harness.bootstrap.report import REPORT_SHOWN, is_kept, publish_failure, run_directory
from harness.bootstrap.settings import read_settings
from harness.bootstrap.steps import SetupLog, explain_to_terminal
from harness.bootstrap.target import Target, choose_target

EXIT_CHECK_FAILED = 1
PYTEST_USAGE = 4
EXIT_SETUP_FAILED = 10
EXIT_SETUP_BLOCKED = 11
EXIT_USAGE = 64


class Ended(BaseException):
    """A signal asked this process to end; not an Exception, so that nothing on the way out swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def prepare(environ: dict[str, str], root: Path, *, tests: bool = False) -> Setup | int:
    """Sync, check and set up as the environment's switches say (``tests``: for the suite too); on failure report it and
    return the exit code."""
    log = SetupLog()

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    previous = signal.signal(signal.SIGTERM, end)
    code = EXIT_SETUP_FAILED
    try:
        settings = read_settings(environ, root)
        if settings.git_sync or settings.expected_head:
            from harness.bootstrap.git_sync import check_expected_head, sync

            if settings.git_sync and sync(root, environ, log):
                _start_again(environ)
            if settings.expected_head:
                check_expected_head(root, settings.expected_head)
        target = choose_target(environ, root)
        if ready := find_ready(root, target, settings, tests=tests):
            return ready
        from harness.bootstrap.setup import set_up  # what a second call does not pay for

        return set_up(root, environ, settings, target, log, tests=tests)
    except SetupError as error:
        failure = error
        code = EXIT_SETUP_BLOCKED if error.blocked else EXIT_SETUP_FAILED
    except (KeyboardInterrupt, Ended) as end_request:
        number = end_request.number if isinstance(end_request, Ended) else signal.SIGINT
        failure = SetupError(
            "interrupted", f"the set-up was ended by signal {signal.Signals(number).name}", "run the same command again"
        )
        code = 128 + number
    except Exception as error:
        log.traceback = traceback.format_exc()
        failure = SetupError(
            "set_up",
            f"the set-up itself broke: {type(error).__name__}: {error}",
            "this is a defect of harness/bootstrap: report it with the log named above",
        )
    finally:
        signal.signal(signal.SIGTERM, previous)
    # The logs of a set-up are no part of a run either.
    kept, has_said = is_kept(root, environ), bool(log.stdout or log.traceback)
    directory = Path(tempfile.mkdtemp(prefix="set-up-")) if kept and has_said else run_directory(root, environ)
    explain_to_terminal(failure, log, directory)
    publish_failure(failure, root, environ)
    return code


def _start_again(environ: dict[str, str]) -> None:
    """The checkout has moved: go on with the code that is there now, and do not sync a second time."""
    print("The checkout has moved; starting again with its own code\n", flush=True)
    os.execve(sys.executable, [sys.executable, "-m", "harness", *sys.argv[1:]], {**environ, "RUN_GIT_SYNC": "0"})


def run_child(argv: Sequence[str | Path], environ: dict[str, str], folder: Path) -> int:
    """Run ``argv`` in a folder on this terminal; returns its exit code, 128 + N for a signal N.

    Ctrl-C reaches it by itself, SIGTERM is passed on; in both cases its own end is waited for, because it has a
    report to write.
    """
    process = subprocess.Popen([str(word) for word in argv], cwd=folder, env=environ)

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        while True:
            try:
                code = process.wait()
                return code if code >= 0 else 128 - code
            except KeyboardInterrupt:
                continue
    finally:
        signal.signal(signal.SIGTERM, previous)


def bootstrap(arguments: list[str]) -> int:
    """Only set up. Returns 0 when the environment is ready."""
    setup = prepare(dict(os.environ), project_folder())
    if isinstance(setup, int):
        return setup
    print(f"Ready: {setup.python} (audiocraft: {setup.audiocraft_import})")
    return 0


def run(arguments: list[str]) -> int:
    """Set up, then ``pytest -m smoke``. The report is pytest's to print; if pytest ended without one, it is printed
    here."""
    environ, root = dict(os.environ), project_folder()
    setup = prepare(environ, root)
    if isinstance(setup, int):
        return setup
    with tempfile.TemporaryDirectory() as folder:
        shown = Path(folder) / "shown"
        child = {**setup.child_environ(environ), REPORT_SHOWN: str(shown)}
        code = run_child([setup.python, "-m", "pytest", "-m", "smoke", *arguments], child, root)
        is_shown = shown.exists()
    if code != 0 and not is_shown:
        failure = SetupError(
            "pytest",
            f"pytest ended with exit code {code} and without the report of a run",
            "read what pytest printed above",
            command=shlex.join(["pytest", "-m", "smoke", *arguments]),
        )
        publish_failure(failure, root, environ)
    return EXIT_USAGE if code == PYTEST_USAGE else code


def test(arguments: list[str]) -> int:
    """Set up, then ruff, mypy and the whole suite; all of them run, and any of them fails the whole."""
    environ, root = dict(os.environ), project_folder()
    setup = prepare(environ, root, tests=True)
    if isinstance(setup, int):
        return setup
    child = setup.child_environ(environ)
    checks: list[tuple[str, list[str]]] = [
        ("ruff check", ["ruff", "check", "."]),
        ("ruff format", ["ruff", "format", "--check", "."]),
        ("mypy", ["mypy"]),
    ]
    failed: list[str] = []
    took: list[str] = []
    for name, words in checks:
        if _timed(name, [setup.python, "-m", *words], child, root, took) != 0:
            failed.append(name)
    # Two processes, each file in one of them; `-n 0` among the arguments is one process, as with plain pytest.
    options = ["-n", "2", "--dist", "loadfile", "--durations", "10"]
    code = _timed("pytest", [setup.python, "-m", "pytest", *options, *arguments], child, root, took)
    print(f"== {', '.join(took)}", flush=True)
    if failed:
        print(f"Failed besides the tests: {', '.join(failed)} (see above)", file=sys.stderr)
    return EXIT_USAGE if code == PYTEST_USAGE else code or (EXIT_CHECK_FAILED if failed else 0)


def _timed(name: str, command: Sequence[str | Path], environ: dict[str, str], root: Path, took: list[str]) -> int:
    """Run one part of the test under a heading; ``took`` is told how long it was."""
    print(f"== {name}", flush=True)
    started = time.monotonic()
    code = run_child(command, environ, root)
    took.append(f"{name} {time.monotonic() - started:.0f} s")
    return code


def call_where_it_is(package: str, name: str, arguments: list[str]) -> int:
    """Run a command that only reads where the package is that it lacks here: in an environment of the checkout that is
    ready. Nothing is set up for it."""
    environ, root = dict(os.environ), checkout_here()
    setup = None if root is None else _ready(root, environ)
    if setup is not None:
        sys.stdout.flush()
        return run_child([setup.python, "-m", "harness", name, *arguments], setup.child_environ(environ), Path.cwd())
    command = (
        f"{shlex.quote(sys.executable)} -m pip install {package}" if root is None else "python3 -m harness bootstrap"
    )
    print(f"{name} needs the package {package}, which {sys.executable} lacks; next: {command}", file=sys.stderr)
    return EXIT_SETUP_BLOCKED


def _ready(root: Path, environ: dict[str, str]) -> Setup | None:
    """A set-up of the checkout in another interpreter than this one."""
    with contextlib.suppress(SetupError):
        settings = read_settings(environ, root)
        for target in (choose_target(environ, root), Target("own", root / ".venv")):
            found = find_ready(root, target, settings)
            if found is not None and found.prefix.resolve() != Path(sys.prefix).resolve():
                return found
    return None

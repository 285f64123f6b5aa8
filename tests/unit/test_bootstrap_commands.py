"""What run and test do once the environment is ready, and how they end."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from bare_machine import ROOT, clean_environ

from harness.bootstrap import commands
from harness.bootstrap.commands import call_where_it_is, run_child
from harness.bootstrap.ready import Setup
from harness.bootstrap.report import REPORT_SHOWN

Calls = list[list[str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """The environment is ready, and what would be started in it is noted; "codes" decides how each one ends."""
    seen: Calls = []
    monkeypatch.setenv("LANE_RUN_DIR", str(tmp_path))
    ready = Setup(ROOT, Path("/ready/python"), Path("/ready"), "installed", None)
    monkeypatch.setattr(commands, "prepare", lambda environ, root, tests=False: ready)
    answer_with(monkeypatch, seen, lambda words: 0)
    return seen


def answer_with(monkeypatch: pytest.MonkeyPatch, seen: Calls, answer: Callable[[Sequence[str]], int]) -> None:
    def child(argv: Sequence[str | Path], environ: dict[str, str], folder: Path) -> int:
        assert environ["AUDIOCRAFT_IMPORT"] == "installed"
        seen.append([str(word) for word in argv][2:])
        return answer(seen[-1])

    monkeypatch.setattr(commands, "run_child", child)


def test_run_is_the_gates_with_what_was_added(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(["-x", "-k", "loss"]) == 0
    assert calls == [["pytest", "-m", "smoke", "-x", "-k", "loss"]]
    assert capsys.readouterr().out == "", "the report is pytest's to print"


def test_a_report_that_pytest_has_shown_is_not_followed_by_another(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def child(argv: Sequence[str | Path], environ: dict[str, str], folder: Path) -> int:
        Path(environ[REPORT_SHOWN]).touch()
        return 1

    monkeypatch.setattr(commands, "run_child", child)
    assert commands.run([]) == 1
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("code", "ours"), [(3, 3), (4, 64), (5, 5), (137, 137)])
def test_pytest_that_ended_before_the_lane_ran_still_ends_in_a_report(
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    code: int,
    ours: int,
) -> None:
    answer_with(monkeypatch, calls, lambda words: code)
    for _ in range(2):  # the second replaces what the first left
        assert commands.run(["--no-such-option"]) == ours
        said = capsys.readouterr().out
        assert said == (tmp_path / "train_report.txt").read_text()
        assert f"first_failed_step: pytest\nroot_cause: pytest ended with exit code {code}" in said


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("train_status.json", '{"run_id": "abc", "first_failed_step": "none", "status": "completed"}'),
        ("train_status.json", '{"run_id": "abc", "first_failed_step": "preflight", "status": "blocked"}'),
        ("train_status.json", "[]"),
        ("train_status.json", "no JSON"),
        ("train_report.txt", "an earlier run's, whose status was removed"),
    ],
)
def test_a_mistyped_option_costs_no_run(
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    holds: str,
) -> None:
    (tmp_path / name).write_text(holds)
    answer_with(monkeypatch, calls, lambda words: 4)
    assert commands.run(["--steps", "10"]) == 64
    assert "objective_status: failed\nfirst_failed_step: pytest\n" in capsys.readouterr().out
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: holds}


def test_a_status_path_that_is_a_users_file_is_not_written(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recording = tmp_path / "voice.wav"
    recording.write_bytes(b"RIFF\xff\xfe")
    monkeypatch.setenv("TRAIN_STATUS_PATH", str(recording))
    answer_with(monkeypatch, calls, lambda words: 4)
    assert commands.run(["--steps"]) == 64
    assert recording.read_bytes() == b"RIFF\xff\xfe" and list(tmp_path.iterdir()) == [recording]


PYTEST = ["pytest", "-n", "2", "--dist", "loadfile", "--durations", "10"]


def test_test_runs_every_check_and_pytest_last(calls: Calls) -> None:
    assert commands.test(["-q"]) == 0
    assert calls == [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], [*PYTEST, "-q"]]


@pytest.mark.parametrize("broken", ["check", "format", "mypy"])
def test_a_check_that_fails_fails_the_whole_and_the_tests_still_run(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    answer_with(monkeypatch, calls, lambda words: int(broken in words))
    assert commands.test([]) == 1
    assert calls[-1] == PYTEST and broken in capsys.readouterr().err


def test_pytests_own_exit_code_is_kept(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, calls, lambda words: 5 if words[0] == "pytest" else 1)
    assert commands.test([]) == 5
    answer_with(monkeypatch, calls, lambda words: 4)
    assert commands.test(["--no-such-option"]) == 64


def test_a_command_that_lacks_a_package_goes_where_it_is(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Into an environment of the checkout that is ready, if it is another one than this; else it says what to do."""
    ready = Setup(tmp_path, Path("/ready/python"), Path("/ready"), "installed", None)
    monkeypatch.setattr(commands, "find_ready", lambda root, target, settings: ready)
    assert call_where_it_is("numpy", "explain", ["a", "b"]) == 0
    assert calls == [["harness", "explain", "a", "b"]]
    here = dataclasses.replace(ready, python=Path(sys.executable), prefix=Path(sys.prefix))
    for found, folder, command in (
        (here, ROOT, "python3 -m harness bootstrap"),
        (None, ROOT, "python3 -m harness bootstrap"),
        (ready, tmp_path, f"{sys.executable} -m pip install numpy"),
    ):
        monkeypatch.setattr(commands, "find_ready", lambda root, target, settings, found=found: found)
        monkeypatch.chdir(folder)
        assert call_where_it_is("numpy", "explain", []) == 11
        (line,) = capsys.readouterr().err.splitlines()
        assert "numpy" in line and line.endswith(f"; next: {command}")
    assert len(calls) == 1


@pytest.mark.parametrize(("code", "expected"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_the_childs_end_is_the_commands(code: str, expected: int) -> None:
    assert run_child([sys.executable, "-c", f"import os, sys; {code}"], dict(os.environ), ROOT) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_child_and_its_own_end_is_waited_for(number: int, tmp_path: Path) -> None:
    marker = tmp_path / "ready"
    child = (
        "import pathlib, signal, sys, time\n"
        "def end(number, frame): time.sleep(0.3); print('report written', flush=True); sys.exit(9)\n"
        "signal.signal(signal.SIGTERM, end); signal.signal(signal.SIGINT, end)\n"
        f"pathlib.Path({str(marker)!r}).touch(); time.sleep(60)\n"
    )
    parent = (
        "import os, sys; from harness.bootstrap.commands import run_child\n"
        f"sys.exit(run_child([sys.executable, '-c', {child!r}], dict(os.environ), '.'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent],
        cwd=ROOT,
        env=clean_environ(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not marker.exists():
            assert process.poll() is None
            time.sleep(0.02)
        # A terminal sends Ctrl-C to the whole group, `kill` sends SIGTERM to one process.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        said, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 9 and said == "report written\n"

"""What a session says of its one run: the report at its end is this run's or none, and one cause is told once."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_directory import edit_json, write_run
from smoke_session import ROOT, smoke, voice_table
from toy_lane import Toy

from harness.baselines import explain
from harness.baselines.baseline import Code
from harness.baselines.record import record
from harness.baselines.snapshot import Gates
from harness.baselines.store import Store
from harness.bootstrap.command_line import COMMANDS
from harness.evidence import load_run
from harness.session.options import OPTIONS, joined
from harness.session.report import GATE, SessionRun, ToldOnce, of_session

TOLD = "=== COLAB TRAIN REPORT ===\nobjective_status: blocked\nfirst_failed_step: run_directory\nroot_cause: no locks\n"
COMPLETED = "objective_status: completed\nfirst_failed_step: none\nroot_cause: none\nnext_unblock_action: none\nloss: 2"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", run_id="a" * 32)
    return tmp_path / "run"


def test_the_report_is_this_runs_or_none(run_dir: Path) -> None:
    report = (run_dir / "train_report.txt").read_text()
    assert SessionRun(run_dir, "a" * 32, TOLD).report() == report
    assert SessionRun(run_dir, None).report() == report, "the run that was judged"
    assert SessionRun(run_dir, "b" * 32, TOLD).report() == TOLD
    assert "objective_status" not in SessionRun(run_dir, "b" * 32).report()
    (run_dir / "train_report.txt").write_text(report.replace("a" * 32, "b" * 32))
    assert SessionRun(run_dir, "a" * 32, TOLD).report() == TOLD, "the status alone is this run's"


def test_a_run_that_left_nothing_fails_by_what_its_process_told(run_dir: Path) -> None:
    reason = load_run(run_dir, run_id="b" * 32, told=TOLD).failure()
    assert reason == "the lane ended as blocked in step run_directory: no locks; next: none"
    assert load_run(run_dir, run_id="a" * 32, told=TOLD).failure() is None, "its own files come first"
    edit_json(run_dir / "train_status.json", lambda status: status.update(root_cause="run_not_ended: it has begun"))
    assert load_run(run_dir, run_id="a" * 32, told=TOLD).failure() == reason, "the disk was full when it ended"
    assert SessionRun(run_dir, "a" * 32, TOLD).report() == TOLD
    completed = TOLD.replace("blocked", "completed")
    assert "is the file stale?" in str(load_run(run_dir, run_id="b" * 32, told=completed).failure())


def failure(name: str, message: str, *, is_gate: bool = True, line: int = 1) -> Any:
    crash = SimpleNamespace(path="gates.py", lineno=line, message=message)
    keywords = {GATE: 1} if is_gate else {}
    return SimpleNamespace(
        outcome="failed", nodeid=f"t.py::{name}", keywords=keywords, longrepr=SimpleNamespace(reprcrash=crash)
    )


def test_a_red_sessions_report_says_so() -> None:
    gates = [failure(f"test_{n}", "bad") for n in range(5)]
    said = dict(line.split(": ", 1) for line in of_session(COMPLETED, gates, 1, "look"))
    assert said["objective_status"] == "failed" and said["first_failed_step"] == "gates"
    assert "5 failed: test_0, test_1, test_2 and 2 more" in said["root_cause"]
    assert said["next_unblock_action"] == "look" and said["loss"] == "2"
    assert "first_failed_step: tests" in of_session(COMPLETED, [failure("test_x", "bad", is_gate=False)], 1, "look")
    assert next(of_session(COMPLETED, [], 2, "look")) == "objective_status: failed", "interrupted"
    assert list(of_session(COMPLETED, [], 0, "look")) == COMPLETED.splitlines()
    assert list(of_session(TOLD, gates, 1, "look")) == TOLD.splitlines(), "the lane's own failure is the cause"


def test_one_cause_is_told_once() -> None:
    told = ToldOnce()
    reports = [failure("a", "one"), failure("b", "one"), failure("c", "two"), failure("d", "one", line=2)]
    reports.append(failure("e", "one", is_gate=False))
    whole = [report.longrepr for report in reports]
    for report in reports:
        told.pytest_runtest_logreport(report)
    assert [report.longrepr is was for report, was in zip(reports, whole, strict=True)] == [1, 0, 1, 1, 1]
    assert reports[1].longrepr == "for the same reason as a, above"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_directory_that_cannot_be_used(run_dir: Path, workers: str) -> None:
    """An earlier run's good report lies there, and where the lock would be, something else."""
    (run_dir / ".lane.lock").mkdir()
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    arguments = ("-n", workers, "-k", "loss_is_finite or root_cause", "--lane-run-dir", "run")
    voice_table(run_dir.parent)
    code, said = smoke(run_dir.parent, "-B", *arguments, LANE_THREADS="1")
    assert code == 1 and "objective_status: completed" not in said
    assert "\nobjective_status: blocked\nfirst_failed_step: run_directory\n" in said
    failures = said.partition("= FAILURES =")[2].partition("short test summary")[0]
    assert failures.count("the lane ended as blocked in step run_directory") == 1
    assert failures.count("for the same reason as test_") == 2
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before, "another run's, and not touched"


@pytest.mark.parametrize(
    ("typed", "known"),
    [
        ("-m smoke --lane-evidence DIR", ["-m", "smoke", "--lane-evidence=DIR"]),
        ("--lane a --baselines=b --baselines c t.py", ["--lane=a", "--baselines=b", "--baselines=c", "t.py"]),
        ("--lane-evidence -q", ["--lane-evidence", "-q"]),
        ("--lane", ["--lane"]),
        ("-q -- --lane a", ["-q", "--", "--lane", "a"]),
        ("--baseline-reason 'two words'", ["--baseline-reason=two words"]),
    ],
)
def test_a_value_after_a_space(typed: str, known: list[str]) -> None:
    assert joined(shlex.split(typed)) == known
    assert joined(known) == known


def rootdir_of(folder: Path, *words: str, **environ: str) -> tuple[int, str]:
    """Exit code of collecting the gates with these words, and the root directory that pytest takes."""
    command = [sys.executable, "-m", "pytest", "-m", "smoke", "--collect-only", "-p", "no:cacheprovider", *words]
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "LANE_"))}
    done = subprocess.run(command, cwd=folder, env={**ours, **environ}, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, re.findall(r"^rootdir: (.*)$", done.stdout, re.MULTILINE)[-1]


def test_no_option_of_ours_moves_the_root_directory(tmp_path: Path) -> None:
    """Its value names a folder of another project; the session is started in a subfolder of this one."""
    project, other = tmp_path / "project", tmp_path / "other"
    for folder in (project, other):
        folder.mkdir()
        (folder / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (project / "conftest.py").write_text("def pytest_addoption(parser):\n    parser.addoption('--theirs')\n")
    (project / "test_lane.py").write_text("from harness.gates import *\n")
    (project / "sub").mkdir()
    words = "../test_lane.py --theirs x --lane-evidence ../../other --baselines ../../other --lane-run-dir ../../other"
    assert rootdir_of(project / "sub", *words.split(), PYTHONPATH=str(ROOT)) == (0, str(project))
    added = "--lane-run-dir ../../other"
    found = rootdir_of(project / "sub", "../test_lane.py", PYTHONPATH=str(ROOT), PYTEST_ADDOPTS=added)
    assert found == (0, str(project))


def typed(command: str) -> tuple[list[str], list[str]]:
    """The settings and the words of a printed command, as a shell takes them."""
    words = shlex.split(command)
    count = next(index for index, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))
    return words[:count], words[count:]


def test_the_commands_of_verdicts_work_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "some baselines")
    first, second = Toy().run(tmp_path / "it's one"), Toy().run(tmp_path / "two")
    moved = Toy(rate_factor=1.01).run(tmp_path / 'a "third" run')
    code = Code("a" * 40, False, "1" * 64)
    command = "LANE_DESCRIPTION='two words' python3 -m harness run --baselines='some baselines'"

    def printed(evidence: Any) -> list[str]:
        return Gates(evidence, store, code=code, environment={}, command=command).verdict.next_command.splitlines()

    (missing,) = printed(first)
    record(first, second, store, reason="it is right", code=code, environment={})
    look, meant = printed(moved)
    for line in (missing, meant.partition(": ")[2]):
        settings, words = typed(line)
        assert settings == ["LANE_DESCRIPTION=two words"]
        assert words[:5] == ["python3", "-m", "harness", "run", "--baselines=some baselines"]
        assert words[5:] == ["--snapshot-update", "--baseline-reason", "why the result is right"]
    assert typed(look)[1][:4] == ["python3", "-m", "harness", "explain"]
    assert explain.main(typed(look)[1][4:]) == 1 and "differ" in capsys.readouterr().out
    next(iter(store.paths())).write_text("{")
    assert "--snapshot-update" in typed(*printed(moved))[1]  # no git has it


def texts(path: Path) -> list[str]:
    """Every text of a Python file, with `{}` for what is filled in; a documentation page is one text."""
    if path.suffix == ".md":
        return [path.read_text()]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_every_command_that_is_named_exists_and_gives_our_options_their_values_safely() -> None:
    files = [*(ROOT / "harness").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    every = [(path, text) for path in files for text in texts(path)]
    for path, text in every:
        for command in re.findall(r"python3? -m harness ([a-z][a-z-]*)", text):
            assert command in COMMANDS, f"{path}: python3 -m harness {command}"
        filled = [option for option in OPTIONS if f"{option} {{}}" in text]
        assert not filled, f"{path}: {filled[0]} and its value are two words, and may move the root directory"
    assert sum("python3 -m harness" in text for _, text in every) > 20

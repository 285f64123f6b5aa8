"""Sessions beside each other and sessions that are killed, with a lane of another project, as its user would start
them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from smoke_session import ROOT
from waiting import until

LANE = """
import json, os, pathlib, sys, time
import numpy as np
pathlib.Path("out").mkdir(exist_ok=True)
np.savez("out/voice.npz", w=np.arange(4.0))
open("out/log.txt", "a").write("a run\\n")
pathlib.Path("pid").write_text(str(os.getpid()))
while pathlib.Path("wait").exists():
    time.sleep(0.02)
"""
TABLE = '[tool.harness.lanes]\nmine = {command = ["{python}", "train.py"], checkpoint = "out/voice.npz"}\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(LANE)
    (tmp_path / "pyproject.toml").write_text(TABLE)
    (tmp_path / "test_lane.py").write_text("from harness.gates import *\n")
    return tmp_path


def session(project: Path, *options: str) -> subprocess.Popen[str]:
    """`pytest -m smoke --lane=mine` in a project."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "LANE_", "CI"))}
    words = [
        "-m",
        "pytest",
        "-q",
        "-m",
        "smoke",
        "--lane=mine",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        *options,
    ]
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=project,
        env={**inherited, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "GITHUB_ACTIONS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Under nohup this suite ignores SIGHUP, and what it starts would too.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def kept(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text()


GATES = ("-k", "checkpoint_is_not_empty or artifacts_are")


def test_of_sessions_in_one_directory_one_works_and_the_others_write_nothing(project: Path) -> None:
    (project / "wait").touch()
    owner = session(project, *GATES)
    until(lambda: (project / "pid").exists())
    before = kept(project / "artifacts")
    others = [session(project, *GATES) for _ in range(2)]
    said = [other.communicate(timeout=240)[0] for other in others]
    assert [other.returncode for other in others] == [1, 1]
    assert all(f"pid {owner.pid} since" in text for text in said), said
    assert kept(project / "artifacts") == before
    (project / "wait").unlink()
    text = owner.communicate(timeout=240)[0]
    assert owner.returncode == 0, text
    assert (project / "artifacts" / "mine" / "gates.json").exists()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_a_session_that_is_ended_takes_its_lane_along_and_the_next_one_works(
    signum: signal.Signals, project: Path
) -> None:
    (project / "wait").touch()
    killed = session(project, *GATES)
    until(lambda: (project / "pid").exists())
    lane = int(until(lambda: (project / "pid").read_text()))
    killed.send_signal(signum)
    killed.communicate(timeout=60)
    until(lambda: not is_alive(lane), 30)
    (project / "wait").unlink()
    after = session(project, *GATES)
    text = after.communicate(timeout=240)[0]
    assert after.returncode == 0, text


def test_further_runs_leave_the_projects_files_as_the_first_run_did(project: Path) -> None:
    """A file that the table does not name included."""
    ended = session(project, "-k", "second_run")
    text = ended.communicate(timeout=240)[0]
    assert ended.returncode == 0, text
    assert (project / "out" / "log.txt").read_text() == "a run\n"


def test_nothing_that_a_lane_names_acts_on_the_terminal_or_in_ci(project: Path) -> None:
    """A tensor's name, its output, a status: none begins a line with a command of GitHub's, or moves the cursor."""
    name = "\\x1b[2J\\n::error::w"
    (project / "train.py").write_text(
        "import json, os, pathlib\nimport numpy as np\npathlib.Path('out').mkdir(exist_ok=True)\n"
        f"np.savez('out/voice.npz', **{{'{name}': np.arange(3.0) * float('nan')}})\n"
        f"print('{name}', flush=True)\nprint('::error::said', flush=True)\n"
        f"json.dump({{'status': 'completed', 'loss': 1.0, 'root_cause': '{name}'}}, open('status.json', 'w'))\n"
    )
    (project / "pyproject.toml").write_text(TABLE.replace("}\n", ', status = "status.json"}\n'))
    text = session(project, "-k", "checkpoint_is_not_empty or recorded").communicate(timeout=240)[0]
    lines = [line for line in text.split("\n") if not line.startswith("::error file=")]
    assert "\\x1b[2J" in text and "\x1b[2J" not in text
    assert not any(line.strip().startswith("::") for line in lines), text

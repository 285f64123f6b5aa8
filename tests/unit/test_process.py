"""A lane's process ends with all that it started, whatever ends the session that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from harness.runs import process as runs_process
from harness.runs.process import Ended, Process

ROOT = Path(__file__).resolve().parents[2]
# Starts three processes: in its group, in a session of its own, and one whose parent is gone; then waits.
FAMILY = """
import subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
subprocess.Popen(sleep)
subprocess.Popen(sleep, start_new_session=True)
subprocess.run([sys.executable, "-c", f"import subprocess; subprocess.Popen({sleep!r}, start_new_session=True)"])
print("ready", flush=True)
"""


def family(run_id: str) -> list[int]:
    """The living processes that carry a run id."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"LANE_RUN_ID={run_id}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def run(code: str, folder: Path, limit_s: float = 60, **options: Any) -> tuple[Ended, str]:
    """How a few lines of Python ended as a lane's process, and the run id."""
    run_id = uuid.uuid4().hex
    environment = {**os.environ, "LANE_RUN_ID": run_id}
    return Process([sys.executable, "-c", code], environment, folder, limit_s=limit_s, **options).wait(), run_id


def test_what_it_says_is_heard_and_kept(tmp_path: Path) -> None:
    heard: list[str] = []
    code = "import sys; print('one'); print('two', file=sys.stderr, flush=True); raise SystemExit(3)"
    ended, _ = run(code, tmp_path, log=tmp_path / "log", on_line=heard.append)
    assert (ended.exit_code, ended.timed_out, ended.last_line) == (3, False, heard[-1])
    assert sorted(heard) == ["one", "two"] and sorted((tmp_path / "log").read_text().split()) == ["one", "two"]


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_a_limit_of_months_is_one(has_pidfd: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a system that tells the end of a process only to who asks."""
    if not has_pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    ended, _ = run("import time; time.sleep(0.1)", tmp_path, limit_s=9.9e6)
    assert (ended.exit_code, ended.timed_out) == (0, False)


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("a user's")
    (tmp_path / "log").symlink_to("theirs")
    with pytest.raises(FileExistsError):
        run("print(1)", tmp_path, log=tmp_path / "log")
    assert (tmp_path / "theirs").read_text() == "a user's"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="found by /proc")
@pytest.mark.parametrize("ends", ["by itself", "at its limit"])
def test_nothing_that_it_started_stays(ends: str, tmp_path: Path) -> None:
    code, limit_s = (FAMILY, 60) if ends == "by itself" else (f"{FAMILY}\ntime.sleep(600)", 2)
    ended, run_id = run(code, tmp_path, limit_s=limit_s)
    assert ended.timed_out == (ends == "at its limit")
    assert family(run_id) == []


def test_one_that_hears_nothing_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_process, "GRACE_S", 0.5)
    code = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(1, flush=True)\ntime.sleep(600)"
    ended, _ = run(code, tmp_path, limit_s=1)
    assert ended.exit_code == -signal.SIGKILL and ended.timed_out


SESSION = """
import os, pathlib, sys
from harness.runs.process import Process
environment = {**os.environ, "LANE_RUN_ID": sys.argv[1]}
Process([sys.executable, "-c", sys.argv[2]], environment, pathlib.Path.cwd(), limit_s=600).wait()
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="found by /proc")
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_a_session_that_is_ended_takes_its_lane_with_it(signum: signal.Signals, tmp_path: Path) -> None:
    run_id = uuid.uuid4().hex
    session = subprocess.Popen(
        [sys.executable, "-c", SESSION, run_id, f"{FAMILY}\ntime.sleep(600)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    until(lambda: len(family(run_id)) == 4)
    session.send_signal(signum)
    session.wait()
    until(lambda: not family(run_id), 30)

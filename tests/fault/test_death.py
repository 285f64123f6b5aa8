"""The run is killed, stopped or hangs, at any point: no half-written file, no claim, and the next run starts clean."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import lane_child
import pytest
import voice
from waiting import until

from harness.evidence import load_run

pytestmark = pytest.mark.fault

FEW = {"LANE_STEPS": "3", "LANE_STRIDE_SECONDS": "40", "LANE_BATCH": "2"}
STEPS = ["preflight", "prepare", "load_model", "tokenise", "adapt", "train", "checkpoint"]
CHECKPOINT = "checkpoints/tts_voice_train_musicgen_nano.pt"


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """The lane's output, line by line as it comes."""
    assert process.stdout is not None
    while select.select([process.stdout], [], [], 600)[0] and (line := process.stdout.readline()):
        yield line.rstrip("\n")


def kill_at(run_dir: Path, when: str, delay: float, signum: int, **variables: str) -> tuple[int, str]:
    """Start a lane, wait for the output line that starts with ``when`` (empty: the start itself) and then for
    ``delay`` seconds, send the signal; returns the exit code and stderr."""
    process = lane_child.start(run_dir, {**FEW, **variables})
    try:
        if when:
            assert any(line.startswith(when) for line in lines(process)), f"the lane never said {when!r}"
        time.sleep(delay)
        process.send_signal(signum)
        _, stderr = process.communicate(timeout=600)
    finally:
        process.kill()
    return process.returncode, stderr


def assert_whole(run_dir: Path, *, run_id: str) -> None:
    """Every file under its final name can be read to its end, and none of this run says that it completed."""
    for path in run_dir.rglob("*.json"):
        assert lane_child.strict_json(path), path
    if (trace := run_dir / "trace.jsonl").exists():
        text = trace.read_text()
        assert text.endswith("\n") or not text
    if (report := run_dir / "train_report.txt").exists():
        said = lane_child.parse_report(report.read_text())
        assert said["objective_status"] != "completed" or said["run_id"] != run_id
        assert "log_path" in said, "the report is cut"
    if (status := run_dir / "train_status.json").exists():
        found = lane_child.strict_json(status)
        assert found["status"] != "completed" or found["run_id"] != run_id
    if (tokens := run_dir / "tokens.npy").exists():
        import numpy as np

        assert np.load(tokens).ndim == 3
    for path in run_dir.rglob("*.pt"):
        import torch

        loaded = torch.load(path, weights_only=True)
        assert loaded["before"] if path.name.endswith(".last_step.pt") else loaded["adapter"], path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a run that nothing disturbs."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    ended = lane_child.run(run_dir, FEW)
    assert ended.exit_code == 0, ended.stderr
    return run_dir


@pytest.fixture(scope="session")
def expected(undisturbed: Path) -> bytes:
    """Its checkpoint."""
    return (undisturbed / CHECKPOINT).read_bytes()


def assert_next_run_is_clean(run_dir: Path, expected: bytes) -> None:
    ended = lane_child.run(run_dir, FEW)
    assert ended.exit_code == 0, ended.stderr
    assert not lane_child.leftovers(run_dir)
    assert (run_dir / CHECKPOINT).read_bytes() == expected


def says_completed(run_dir: Path, run_id: str) -> bool:
    path = run_dir / "train_status.json"
    status = lane_child.strict_json(path) if path.exists() else {}
    return status.get("status") == "completed" and status["run_id"] == run_id


def kill_often(run_dir: Path, points: list[tuple[str, float]], expected: bytes, *, reset: str) -> int:
    """SIGKILL at each point in one run directory; returns how many runs were killed before they ended."""
    killed = 0
    for number, (when, delay) in enumerate(points):
        run_id = f"killed-{number}"
        code, _ = kill_at(run_dir, when, delay, signal.SIGKILL, LANE_RUN_ID=run_id, RESET_TRAIN_OUTPUTS=reset)
        if code == -signal.SIGKILL and says_completed(run_dir, run_id):
            assert (run_dir / CHECKPOINT).read_bytes() == expected  # it had, and was killed on its way out
        elif code == -signal.SIGKILL:
            killed += 1
            assert_whole(run_dir, run_id=run_id)
            if when not in ("", "STEP preflight"):  # past the preflight, the run had said that it has not ended
                status = lane_child.strict_json(run_dir / "train_status.json")
                assert (status["run_id"], status["status"]) == (run_id, "interrupted"), f"killed at {when} + {delay}"
                assert status["root_cause"].startswith("run_not_ended")
    return killed


def test_sigkill(tmp_path: Path, undisturbed: Path, expected: bytes) -> None:
    """A few points, over an earlier run's results; the soak has forty."""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    points = [
        ("", 0.1),
        ("STEP preflight", 0.05),
        ("STEP prepare", 0.0),
        ("STEP load_model", 0.3),
        ("STEP train", 0.02),
    ]
    assert kill_often(tmp_path, points, expected, reset="0") >= 4
    assert_next_run_is_clean(tmp_path, expected)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("reset", ["1", "0"])
def test_sigkill_everywhere(reset: str, tmp_path: Path, expected: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """Forty points: the start, and five delays after each step's line."""
    points = [("", 0.05 * n) for n in range(5)]
    points += [(f"STEP {step}", 0.01 * n * n) for step in STEPS for n in range(5)]
    killed = kill_often(tmp_path, points, expected, reset=reset)
    with capsys.disabled():
        print(f"\nSIGKILL at {len(points)} points, {killed} before the run's end, RESET_TRAIN_OUTPUTS={reset}")
    assert killed >= 30
    assert_next_run_is_clean(tmp_path, expected)


@pytest.mark.parametrize(
    ("signum", "when"),
    [(signal.SIGTERM, "STEP preflight"), (signal.SIGINT, "STEP load_model")],
)
def test_signal_leaves_status_and_report(signum: int, when: str, tmp_path: Path) -> None:
    code, stderr = kill_at(tmp_path, when, 0.0, signum)
    assert code == 128 + signum, stderr
    ended = lane_child.Ended(tmp_path, code, (tmp_path / "train_report.txt").read_text(), stderr)
    name = signal.Signals(signum).name
    lane_child.assert_refused(ended, "interrupted", name, exit_code=128 + signum, status="interrupted")
    assert not lane_child.leftovers(tmp_path)
    assert_whole(tmp_path, run_id=ended.status["run_id"])


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_everywhere(signum: int, tmp_path: Path, expected: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    if signal.getsignal(signum) == signal.SIG_IGN:
        pytest.skip(f"{signal.Signals(signum).name} is ignored here (nohup), and so it is by the lane")
    interrupted = 0
    for step in STEPS:
        for delay in (0.0, 0.03, 0.3):
            run_id = f"stopped-{step}-{delay}"
            code, stderr = kill_at(tmp_path, f"STEP {step}", delay, signum, LANE_RUN_ID=run_id)
            status = lane_child.strict_json(tmp_path / "train_status.json")
            assert status["run_id"] == run_id
            assert (code, status["status"]) in ((128 + signum, "interrupted"), (0, "completed")), stderr
            interrupted += code != 0
            assert not lane_child.leftovers(tmp_path)
            if code:
                assert_whole(tmp_path, run_id=run_id)
    with capsys.disabled():
        print(f"\n{signal.Signals(signum).name} at {3 * len(STEPS)} points, {interrupted} before the run's end")
    assert interrupted >= len(STEPS)
    assert_next_run_is_clean(tmp_path, expected)


# Chunks that take longer to encode than any test may take, and a signal meanwhile.
SLOW = """
import os, signal, threading, time
from harness.lane import tokens
real = tokens.tokenise
def tokenise(settings, manifest, codec, report, ranks):
    codec.encode = lambda wave: time.sleep(3600)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    return real(settings, manifest, codec, report, ranks)
tokens.tokenise = tokenise
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_signal_does_not_wait_for_chunks_that_are_being_encoded(threads: str, tmp_path: Path) -> None:
    ended = lane_child.run(tmp_path, {**FEW, "LANE_THREADS": threads}, plant=SLOW, timeout=100)
    lane_child.assert_refused(ended, "interrupted", "SIGTERM", "step tokenise", exit_code=143, status="interrupted")


# A signal that comes when the trace's file is open, and nobody has promised yet to close it.
TOO_EARLY = """
import os, signal
from harness.lane import trace
real = trace.Trace.__init__
def init(self, settings):
    real(self, settings)
    os.kill(os.getpid(), signal.SIGTERM)
trace.Trace.__init__ = init
"""


def test_signal_between_a_file_and_its_owner_leaves_no_temporary_file(tmp_path: Path) -> None:
    ended = lane_child.run(tmp_path, FEW, plant=TOO_EARLY)
    lane_child.assert_refused(ended, "interrupted", "SIGTERM", "step train", exit_code=143, status="interrupted")
    assert not lane_child.leftovers(tmp_path)


# A signal whose exception Python swallows: it comes while a destructor runs.
SWALLOWED = """
import os, signal
from harness.lane import dataset
class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass
real = dataset.prepare_dataset
def prepare_dataset(*arguments):
    Dying()
    return real(*arguments)
dataset.prepare_dataset = prepare_dataset
"""


def test_signal_that_python_swallows_still_stops_the_run(tmp_path: Path) -> None:
    ended = lane_child.run(tmp_path, FEW, plant=SWALLOWED)
    lane_child.assert_refused(ended, "interrupted", "SIGTERM", exit_code=143, status="interrupted")
    assert "ignored in" in (tmp_path / "lane.log").read_text()


def test_second_signal_does_not_cut_the_ending_short(tmp_path: Path) -> None:
    process = lane_child.start(tmp_path, FEW)
    assert any(line.startswith("STEP prepare") for line in lines(process))
    for _ in range(30):
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode in (130, 143), stderr
    ended = lane_child.Ended(tmp_path, process.returncode, stdout, stderr)
    lane_child.assert_refused(ended, "interrupted", exit_code=process.returncode, status="interrupted")


# Hangs.

HANG = """
import time
from harness.lane import preflight
preflight.check_narration = lambda settings: time.sleep(600)
"""
# Like a library that hangs in C with every signal that can be blocked blocked.
DEAF_HANG = """
import ctypes, signal
from harness.lane import preflight
def hang(settings):
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    ctypes.CDLL(None).sleep(600)
preflight.check_narration = hang
"""


def test_hang_is_ended_by_the_lanes_own_limit(tmp_path: Path) -> None:
    ended = lane_child.run(tmp_path, {"LANE_TIMEOUT_S": "1"}, plant=HANG, timeout=120)
    lane_child.assert_refused(ended, "time_limit", "limit of 1 s", "in step preflight", exit_code=4, status="failed")


def test_hang_that_hears_no_signal_is_ended_by_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the launcher leaves the status and the report that the lane could not write."""
    monkeypatch.setattr("harness.runs.run.EARLY_S", 0.5)
    plant = tmp_path / "plant"
    plant.mkdir()
    (plant / "sitecustomize.py").write_text(DEAF_HANG)
    settings = {"LANE_TIMEOUT_S": "1", "PYTHONPATH": f"{plant}{os.pathsep}{lane_child.ROOT}"}
    ended = voice.run_lane(tmp_path / "run", settings)
    assert ended.exit_code == -signal.SIGKILL
    status = lane_child.strict_json(tmp_path / "run" / "train_status.json")
    assert status["run_id"] == ended.run_id
    assert re.match(
        r"time_limit: the lane's process was ended by SIGKILL after \d+ s .*limit of 1 s", status["root_cause"]
    )
    report = lane_child.parse_report((tmp_path / "run" / "train_report.txt").read_text())
    assert report["objective_status"] == "failed"
    assert report["root_cause"] == status["root_cause"]
    assert lane_child.strict_json(tmp_path / "run" / "run.json")["exit_code"] == -9


def test_launcher_speaks_for_a_lane_that_was_killed(tmp_path: Path) -> None:
    process = voice.start(tmp_path, FEW)
    until((tmp_path / "train_status.json").exists)
    process.send(signal.SIGKILL)
    ended = process.wait()
    status = lane_child.strict_json(tmp_path / "train_status.json")
    assert status["run_id"] == ended.run_id
    assert (status["status"], status["first_failed_step"]) == ("failed", "lane_process")
    assert status["root_cause"].startswith("lane_killed: the lane's process was ended by SIGKILL")


def test_launcher_speaks_for_a_lane_that_never_started(tmp_path: Path) -> None:
    """An interpreter that cannot import the lane: exit code 1, and an earlier run's files in place."""
    (tmp_path / "train_status.json").write_text(
        '{"schema": "train_status/1", "run_id": "an earlier one", "lane": "experimental", "status": "completed"}'
    )
    empty = tmp_path / "empty" / "harness"
    empty.mkdir(parents=True)
    (empty / "__init__.py").write_text("raise ImportError('a broken installation')")
    ended = voice.run_lane(tmp_path, root=empty.parent)
    assert ended.exit_code == 1
    status = lane_child.strict_json(tmp_path / "train_status.json")
    assert status["run_id"] == ended.run_id
    assert status["root_cause"].startswith("lane_died: ")
    assert "a broken installation" in status["root_cause"]


def test_launcher_writes_nothing_for_a_lane_that_was_refused(tmp_path: Path) -> None:
    """The lane ends with 3 and no status of its own: another run owned the directory then, and may be done by now."""
    lane = tmp_path / "code" / "harness" / "lane"
    lane.mkdir(parents=True)
    (lane / "__main__.py").write_text("import sys; sys.exit(3)")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "train_status.json").write_text('{"run_id": "the owner", "status": "completed", "root_cause": "none"}')
    before = (run_dir / "train_status.json").read_bytes()
    assert voice.run_lane(run_dir, root=tmp_path / "code").exit_code == 3
    assert (run_dir / "train_status.json").read_bytes() == before
    assert [path.name for path in run_dir.iterdir()] == ["train_status.json"]


@pytest.mark.parametrize("value", ["1e3", "²", "nan"])
def test_launcher_takes_any_limit_and_lets_the_lane_judge(value: str, tmp_path: Path) -> None:
    process = voice.start(tmp_path, {"LANE_TIMEOUT_S": value, "LANE_THREADS": value, "RUN_TRAIN": "0"})
    assert process._limit_s == (1000.0 if value == "1e3" else 3600.0)
    assert process.wait().exit_code == 3  # LANE_THREADS, or LANE_TIMEOUT_S before it, is not understood
    assert "not understood" in lane_child.strict_json(tmp_path / "train_status.json")["root_cause"]


def test_git_is_asked_without_a_lock(tmp_path: Path) -> None:
    """A run that is killed while git works for it must not leave ``index.lock`` in the user's repository."""
    log = tmp_path / "git.log"
    tool = tmp_path / "git"
    tool.write_text(f'#!/bin/sh\necho "$GIT_OPTIONAL_LOCKS $*" >> "{log}"\nexit 1\n')
    tool.chmod(0o755)
    ended = lane_child.run(tmp_path / "run", {"RUN_TRAIN": "0", "PATH": f"{tmp_path}:/bin:/usr/bin"})
    assert ended.exit_code == 0 and ended.report["head_commit"] == "unknown"
    asked = log.read_text().splitlines()
    for line in asked:
        assert line.startswith("0 "), f"git {line}: asked without GIT_OPTIONAL_LOCKS=0"
        assert re.search(r"\b(status|rev-parse)\b", line), f"git {line}: takes a lock that is not optional"
    assert asked


def test_status_of_another_run_is_told(tmp_path: Path) -> None:
    """A lane that ends well and leaves a status with another run's id has not said how this run ended."""
    program = """
import json, os, sys, pathlib
status = {"schema": "train_status/1", "lane": "experimental", "run_id": "an-older-one"}
status |= {"status": "completed", "root_cause": "none"}
pathlib.Path(os.environ["LANE_RUN_DIR"], "train_status.json").write_text(json.dumps(status))
"""
    tmp_path.joinpath("run").mkdir()
    process = voice.start(tmp_path / "run", python=(sys.executable, "-c", program))
    ended = process.wait()
    status = lane_child.strict_json(tmp_path / "run" / "train_status.json")
    assert ended.exit_code == 0 and status["status"] == "failed" and status["run_id"] == ended.run_id
    cause = f"its status is that of run an-older-one, and not of {ended.run_id}"
    assert status["root_cause"].startswith("status_of_another_run: ") and cause in status["root_cause"]


def test_a_status_that_is_wrong_in_its_fields_is_still_the_lanes_own(tmp_path: Path) -> None:
    """A bare NaN: the gates say what is wrong with it, and nobody writes another one over it."""
    program = """
import os, pathlib
own = '{"schema": "train_status/1", "lane": "experimental", "run_id": "%s", "status": "completed", '
own = own % os.environ["LANE_RUN_ID"] + '"root_cause": "none", "loss": NaN}'
pathlib.Path(os.environ["LANE_RUN_DIR"], "train_status.json").write_text(own)
"""
    tmp_path.joinpath("run").mkdir()
    voice.start(tmp_path / "run", python=(sys.executable, "-c", program)).wait()
    assert "NaN" in (tmp_path / "run" / "train_status.json").read_text()
    assert "NaN" in str(load_run(tmp_path / "run").failure())

"""Two runs in one directory: the second is refused, and touches nothing. Many in their own: all right, and equal."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import lane_child
import pytest
from run_directory import write_run
from voice import run_lane
from waiting import until

pytestmark = pytest.mark.fault

HOLD = """
import time
from harness.lane import dataset
dataset.prepare_dataset = lambda settings, narration: time.sleep(600)
"""


def wait_for(path: Path, text: str) -> None:
    until(lambda: path.exists() and text in path.read_text())


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_second_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    owner = lane_child.start(run_dir, {"LANE_RUN_ID": "owner"}, plant=HOLD)
    try:
        wait_for(run_dir / "lane.log", "step prepare")
        before = state(run_dir)
        second = lane_child.run(run_dir, {"LANE_RUN_ID": "second"})
        launched = run_lane(run_dir)
        refused_setting = lane_child.run(run_dir, {"LANE_STEPS": "many"})
        assert state(run_dir) == before, "the refused runs changed the owner's files"
        elsewhere = lane_child.run(tmp_path / "other", {"KNOWLEDGE_AUDIO_DIR": str(run_dir), "RUN_TRAIN": "0"})
        assert elsewhere.exit_code == 3, "the staging folder lies where another run writes"
        assert "KNOWLEDGE_AUDIO_DIR" in elsewhere.stderr
    finally:
        owner.kill()
        owner.communicate()
    for ended in (second, refused_setting):
        assert ended.exit_code == 3
        assert re.search(rf"in use by pid {owner.pid} since \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ", ended.stderr)
        assert ended.printed_report["root_cause"].startswith("run_directory_busy: ")
        assert ended.printed_report["training_status_json"] == "none"
    assert launched.exit_code == 3
    # The owner is dead now, by SIGKILL; its lock does not block.
    after = lane_child.run(run_dir, {"RUN_TRAIN": "0", "LANE_RUN_ID": "third"})
    assert after.exit_code == 0, after.stderr
    assert after.status["run_id"] == "third"


def test_launcher_of_a_killed_second_run_touches_nothing(tmp_path: Path) -> None:
    """The second lane dies before it can be refused; its launcher must not speak in the owner's directory."""
    run_dir, plant = tmp_path / "run", tmp_path / "plant"
    plant.mkdir()
    (plant / "sitecustomize.py").write_text(f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    owner = lane_child.start(run_dir, {"LANE_RUN_ID": "owner"}, plant=HOLD)
    try:
        wait_for(run_dir / "lane.log", "step prepare")
        before, said = state(run_dir), []
        ended = run_lane(run_dir, {"PYTHONPATH": str(plant)}, on_line=said.append)
        assert ended.exit_code == -signal.SIGKILL
        assert state(run_dir) == before
        assert any(f"in use by pid {owner.pid}" in line for line in said), said
    finally:
        owner.kill()
        owner.communicate()


def test_two_started_together(tmp_path: Path) -> None:
    """Whichever is first: one is refused with the other's pid, and the other completes."""
    settings = {"RUN_TRAIN": "0"}
    pair = [lane_child.start(tmp_path, settings) for _ in range(2)]
    ended = [process.communicate(timeout=250) for process in pair]
    codes = [process.returncode for process in pair]
    assert sorted(codes) in ([0, 3], [0, 0]), ended  # a fast first may be done before the second begins
    if 3 in codes:
        first, second = codes.index(0), codes.index(3)
        assert f"in use by pid {pair[first].pid} since" in ended[second][1]


SHORT = {"LANE_STEPS": "2", "LANE_STRIDE_SECONDS": "80", "LANE_BATCH": "2"}


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_sixteen_at_once_in_sixteen_directories(tmp_path: Path) -> None:
    count = 16
    processes = [lane_child.start(tmp_path / str(n), SHORT) for n in range(count)]
    try:
        for process in processes:
            stdout, stderr = process.communicate(timeout=3000)
            assert process.returncode == 0, stdout[-1000:] + stderr
    finally:
        for process in processes:
            process.kill()
    kinds = ("checkpoints/tts_voice_train_musicgen_nano.pt", "tokens.npy")
    for kind in kinds:
        assert len({(tmp_path / str(n) / kind).read_bytes() for n in range(count)}) == 1, f"{kind} differs"
    assert (
        len({lane_child.strict_json(tmp_path / str(n) / "train_status.json")["run_id"] for n in range(count)}) == count
    )


def test_pid_in_the_lock_is_the_living_owners(tmp_path: Path) -> None:
    """A lock file that a dead run left says another pid, until the new owner has written its own."""
    from harness.base.lock import LOCK_NAME, Busy, owned

    (tmp_path / LOCK_NAME).write_text("pid 999999999 since 2020-01-01T00:00:00Z\n")
    with owned(tmp_path):
        assert f"pid {os.getpid()} " in (tmp_path / LOCK_NAME).read_text()
        with pytest.raises(Busy, match=f"^pid {os.getpid()} since "), owned(tmp_path):
            pass
        (tmp_path / LOCK_NAME).write_text("pid 999999999 since 2020-01-01T00:00:00Z\n")
        with pytest.raises(Busy, match="left no name"), owned(tmp_path):
            pass
    with owned(tmp_path):
        pass


def test_a_run_directory_of_another_user(tmp_path: Path) -> None:
    """Into which this one may not even look."""
    write_run(tmp_path / "run")
    before = state(tmp_path / "run")
    (tmp_path / "run").chmod(0)
    ended = lane_child.run(tmp_path / "run", unprivileged=True)
    (tmp_path / "run").chmod(0o700)
    assert ended.exit_code == 3 and "Traceback" not in ended.stderr
    assert ended.printed_report["root_cause"].startswith("run_directory_unusable: ")
    assert state(tmp_path / "run") == before

"""An interrupted run that goes on ends as one that was never interrupted: the same bytes, wherever it was stopped."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lane_child import Ended, assert_refused, leftovers, run, start
from lazy import Lazy

from harness.evidence import end_agrees, load_run
from harness.lane.errors import LaneError
from harness.lane.settings import read_settings

if TYPE_CHECKING:
    import torch

    from harness.lane import state as lane_state
    from harness.lane.state import StateFile
else:
    torch, lane_state = Lazy("torch"), Lazy("harness.lane.state")

STEPS = 6
# At ten times the usual rate the first step is the best one: what goes on must have kept it.
SETTINGS = {"LANE_STEPS": str(STEPS), "LANE_STRIDE_SECONDS": "30", "LANE_BATCH": "2", "LANE_EVAL_EVERY": "1"}
SETTINGS["LANE_LEARNING_RATE"] = "0.05"
CHECKPOINT = "checkpoints/tts_voice_train_musicgen_nano"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A run from the first step to the last; it saves no state."""
    return completed(run(tmp_path_factory.mktemp("whole"), {**SETTINGS, "LANE_SAVE_EVERY": "0"}))


def completed(ended: Ended) -> Ended:
    assert ended.exit_code == 0, ended.stderr
    return ended


def interrupted(run_dir: Path, after: int, signum: int, **settings: str) -> None:
    """Start a run and end it by a signal once it has said that ``after`` steps are done."""
    # It waits at that step for the signal: a tiny model is otherwise done before the signal comes.
    plant = (
        "import time\nfrom harness.lane import __main__ as lane\nreal = lane.say\n"
        f"def say(line):\n    real(line)\n    if line.startswith('PROGRESS {after} '): time.sleep(60)\nlane.say = say\n"
        "import sys\nsys.exit(lane.main())"
    )
    process = start(run_dir, {**SETTINGS, **settings}, plant=plant)
    try:
        assert process.stdout is not None
        assert any(line.startswith(f"PROGRESS {after} ") for line in process.stdout), "the run never got that far"
        process.send_signal(signum)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0


def lines(run_dir: Path) -> list[str]:
    """The trace without its header, which carries the run id."""
    return (run_dir / "trace.jsonl").read_text().splitlines()[1:]


def assert_same(found: Path, expected: Path) -> None:
    for name in (f"{CHECKPOINT}.pt", f"{CHECKPOINT}.float64.pt", "tokens.npy"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), f"{name} differs"
    assert lines(found) == lines(expected)
    assert not (found / "train_state.pt").exists(), "a completed run has left its state behind"
    assert not leftovers(found)


@pytest.mark.parametrize(
    ("after", "every", "signum"),
    [
        (1, "1", signal.SIGKILL),  # before the first update by a learning rate that is not warming up
        (3, "2", signal.SIGTERM),  # between two saved states: one step is done again
        (STEPS, "1", signal.SIGKILL),  # every step is done; the checkpoint is not written
    ],
    ids=["first", "between", "last"],
)
def test_the_result_is_that_of_a_run_never_interrupted(
    after: int, every: str, signum: int, whole: Ended, tmp_path: Path
) -> None:
    interrupted(tmp_path, after, signum, LANE_SAVE_EVERY=every)
    assert (tmp_path / "train_state.pt").is_file()
    saved = after // int(every) * int(every)
    ended = completed(run(tmp_path, {**SETTINGS, "LANE_RESUME": "1", "LANE_SAVE_EVERY": "1"}))
    assert f"RESUMED after step {saved} of {STEPS}" in ended.stdout
    assert f"PROGRESS {saved} " not in ended.stdout, "a step that was saved is done again"
    assert_same(tmp_path, whole.run_dir)
    learned = ("loss_smoothed", "held_out_loss_first", "held_out_loss", "best_step")
    for key in ("loss", "loss_first", *learned, "steps_done", "sanitized_logits"):
        assert ended.status[key] == whole.status[key], key


def test_interrupted_twice(whole: Ended, tmp_path: Path) -> None:
    interrupted(tmp_path, 2, signal.SIGTERM, LANE_SAVE_EVERY="1")
    interrupted(tmp_path, 4, signal.SIGKILL, LANE_SAVE_EVERY="1", LANE_RESUME="1")
    completed(run(tmp_path, {**SETTINGS, "LANE_RESUME": "1"}))
    assert_same(tmp_path, whole.run_dir)


def test_the_best_checkpoint_is_written_and_not_the_last(whole: Ended) -> None:
    run = load_run(whole.run_dir)
    held_out = {step.step: step.held_out.loss for step in run.trace.steps if step.held_out}
    assert len(held_out) == STEPS and held_out[1] == min(held_out.values()), "the first step was to be the best one"
    assert (run.trace.end.best_step, run.checkpoint.meta["best_step"]) == (1, 1)
    assert run.trace.end.param == run.trace.steps[0].param != run.trace.steps[-1].param
    end_agrees(run.checkpoint, run.trace)


def test_without_a_state_it_begins(whole: Ended, tmp_path: Path) -> None:
    ended = completed(run(tmp_path, {**SETTINGS, "LANE_RESUME": "1"}))
    assert "RESUMED nothing" in ended.stdout
    assert_same(tmp_path, whole.run_dir)


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory in which a run was interrupted after three steps."""
    folder = tmp_path_factory.mktemp("stopped")
    interrupted(folder, 3, signal.SIGTERM, LANE_SAVE_EVERY="1")
    return folder


def test_the_interrupted_run_says_how_to_go_on(stopped: Path) -> None:
    ended = Ended(stopped, 143, "", "")
    assert ended.status["status"] == "interrupted"
    assert "LANE_RESUME=1" in ended.status["next_unblock_action"]
    saved = torch.load(stopped / "train_state.pt", weights_only=True)
    assert (saved["lane"], saved["promotable"]) == ("experimental", False)


def test_a_state_of_another_run_is_refused(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    ended = run(tmp_path / "run", {**SETTINGS, "LANE_RESUME": "1", "LANE_LEARNING_RATE": "0.004"})
    assert_refused(ended, "state_of_another_run", "train_state.pt", "settings_digest")
    assert (tmp_path / "run" / "train_state.pt").read_bytes() == (stopped / "train_state.pt").read_bytes()


def state_file(run_dir: Path, **identity: str) -> StateFile:
    """The file of the run that ``identity`` describes, where it differs from the stopped run's."""
    own = torch.load(run_dir / "train_state.pt", weights_only=True)["identity"]
    return lane_state.StateFile(read_settings({"LANE_RUN_DIR": str(run_dir)}), {**own, **identity})


@pytest.mark.parametrize(
    "what", ["settings_digest", "model_digest", "tokens_digest", "code_digest", "numeric_mode", "device"]
)
def test_everything_that_a_state_depends_on_is_compared(what: str, stopped: Path) -> None:
    assert state_file(stopped).load() is not None
    with pytest.raises(LaneError, match=f"saved with {what} .* and this run's is another"):
        state_file(stopped, **{what: "another"}).load()


@pytest.mark.parametrize("damage", ["cut", "text", "code"])
def test_a_damaged_state_is_refused(damage: str, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    file = state_file(tmp_path / "run")
    data = file.path.read_bytes()
    code = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    file.path.write_bytes({"cut": data[: len(data) // 2], "text": b"{}", "code": code}[damage])
    with pytest.raises(LaneError, match="cannot be read as a saved state") as caught:
        file.load()
    assert caught.value.code == "state_unreadable"
    assert not (tmp_path / "ran").exists()


def test_without_resume_an_old_state_is_removed(stopped: Path, whole: Ended, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    completed(run(tmp_path / "run", SETTINGS))
    assert_same(tmp_path / "run", whole.run_dir)

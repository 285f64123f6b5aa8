"""LANE_TENSORBOARD=1: what TensorBoard shows is what the trace says, and nothing else moves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import lane_child

SHORT = {"LANE_STEPS": "4", "LANE_EVAL_EVERY": "2"}


def test_scalars_are_the_traces_and_change_nothing(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="python3 -m pip install tensorboard"
    )
    plain = lane_child.run(tmp_path / "plain", SHORT)
    shown = lane_child.run(tmp_path / "shown", {**SHORT, "LANE_TENSORBOARD": "1"})
    assert shown.exit_code == 0, shown.stdout
    assert shown.report["checkpoint_tensor_digest"] == plain.report["checkpoint_tensor_digest"]
    (folder,) = (tmp_path / "shown" / "tensorboard").iterdir()
    assert folder.name == shown.report["run_id"]
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    found = {tag: {one.step: one.value for one in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    lines = [json.loads(line) for line in (tmp_path / "shown" / "trace.jsonl").read_text().splitlines()]
    start = next(line for line in lines if line["kind"] == "start")
    steps = [line for line in lines if line["kind"] == "step"]
    expected = {
        "loss/train": {line["step"]: float.fromhex(line["loss"]) for line in steps},
        "loss/train_smoothed": {line["step"]: float.fromhex(line["loss_smoothed"]) for line in steps},
        "loss/held_out": {
            0: float.fromhex(start["held_out"]["loss"]),
            **{line["step"]: float.fromhex(line["held_out"]["loss"]) for line in steps if "held_out" in line},
        },
    }
    assert sorted(expected["loss/held_out"]) == [0, 2, 4]
    for tag, values in expected.items():
        assert found[tag] == pytest.approx(values, rel=1e-6), tag
    assert found["learning_rate"] == pytest.approx(
        {1: 0.005 / 3, 2: 0.01 / 3, 3: 0.005 * 0.55, 4: 0.0005}, rel=1e-6
    )  # docs/lane.md
    assert not (tmp_path / "plain" / "tensorboard").exists()


FULL = """
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem as files
real, written = files.append, []
def append(*arguments):
    written.append(arguments)
    if len(written) > 4:
        raise OSError(28, "No space left on device")
    return real(*arguments)
files.append = append
"""


@pytest.mark.parametrize("how", ["a file in the way", "a full disk"])
def test_what_goes_wrong_with_them_ends_them_and_not_the_training(how: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="python3 -m pip install tensorboard")
    plant, reason = (FULL, "No space left") if how == "a full disk" else (None, "Not a directory")
    if not plant:
        (tmp_path / "tensorboard").write_text("somebody's notes")
    ended = lane_child.run(tmp_path, {**SHORT, "LANE_TENSORBOARD": "1"}, plant=plant)
    assert ended.exit_code == 0, ended.stdout
    assert "Traceback" not in ended.stderr
    (said,) = [line for line in ended.stdout.splitlines() if line.startswith("TENSORBOARD ")]
    assert reason in said
    assert plant or (tmp_path / "tensorboard").read_text() == "somebody's notes"


def test_without_tensorboard_the_command_that_installs_it_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tensorboard.py").write_text("raise ImportError('No module named tensorboard')\n")
    ended = lane_child.run(tmp_path / "run", {**SHORT, "LANE_TENSORBOARD": "1", "PYTHONPATH": str(broken)})
    lane_child.assert_refused(ended, "tensorboard_missing", "LANE_TENSORBOARD")
    assert "-m pip install tensorboard" in ended.report["next_unblock_action"]

"""The example lanes, run for real: each defect is found by the gate that is meant for it; the good ones pass all."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from smoke_session import smoke

from harness.evidence import NotApplicable, load_run
from harness.gates import black_box
from harness.runs.footprint import Footprint
from harness.runs.further import FurtherRuns
from harness.runs.run import LaneRun
from harness.runs.table import find_lane

HERE = Path(__file__).parent
TABLES = """
[tool.harness.lanes.wrapper]
command = ["{python}", "wrapper.py", "DEFECT"]
env = {PYTHONPATH = "HERE"}
status = "artifacts_tts/train_status.json"
manifest = "artifacts_tts/knowledge_audio/voice_dataset_manifest.json"
checkpoint = "artifacts_tts/checkpoints/tts_voice_train_toy.pt"
report = {output = true}
audio = {path = "data", env = "AUDIO_PATH"}
vocabulary = 16

[tool.harness.lanes.torch]
command = ["{python}", "plain_torch.py"]
env = {PYTHONPATH = "HERE"}
status = "out/status.json"
manifest = "out/manifest.json"
checkpoint = "out/voice.pt"
initial_checkpoint = "initial.pt"
report = {output = true, begin = "## trained ##"}
audio = {path = "data", env = "AUDIO_PATH"}
vocabulary = 16

[tool.harness.lanes.numpy]
command = ["{python}", "plain_numpy.py", "{audio}", "{run_dir}"]
env = {PYTHONPATH = "HERE"}
status = {path = "{run_dir}/status.json", state = "job.state", completed = "succeeded", loss = "metrics.loss"}
checkpoint = "{run_dir}/voice.npz"
initial_checkpoint = "initial.npz"
audio = "data"
vocabulary = 16
code = ["plain_numpy.py"]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the example lanes and two sounds."""
    sys.path.insert(0, str(HERE))
    try:
        from sounds import write_sound
    finally:
        sys.path.remove(str(HERE))
    for name in ("wrapper.py", "plain_torch.py", "plain_numpy.py"):
        shutil.copy(HERE / name, tmp_path)
    write_sound(tmp_path / "data" / "a.wav", 220)
    write_sound(tmp_path / "data" / "b.wav", 330)
    write_tables(tmp_path, "none")
    return tmp_path


def write_tables(project: Path, defect: str) -> None:
    text = TABLES.replace("HERE", str(HERE)).replace("DEFECT", defect)
    (project / "pyproject.toml").write_text(text)


class Session:
    """What the plugin's fixtures give the gates, for one lane."""

    def __init__(self, project: Path, name: str) -> None:
        lane = find_lane(project, name)
        footprint = Footprint(project, project / "artifacts" / name, project / "further")
        footprint.begin()
        process = LaneRun(lane, project / "artifacts" / name)
        process.wait()
        self.run = load_run(project / "artifacts" / name, run_id=process.run_id)
        self.runs = FurtherRuns(lane, self.run.run_dir, project / "further", footprint, _silent)
        self.fixtures: dict[str, Callable[..., Any]] = {
            "measured": lambda text: None,
            "lane_again": self.runs.again,
            "lane_other_audio": self.runs.other_audio,
            "lane_same_audio": self.runs.same_audio,
        }

    def gate(self, name: str) -> str:
        """How a gate of black_box ends: "passed", "not applicable", or what it says is wrong."""
        function: Any = getattr(black_box, name)
        wanted = function.__code__.co_varnames[1 : function.__code__.co_argcount]
        try:
            function(self.run, *(self.fixtures[argument] for argument in wanted))
        except NotApplicable:
            return "not applicable"
        except AssertionError as error:
            return str(error)
        return "passed"


class _silent:
    def __enter__(self) -> Callable[[str], None]:
        return lambda line: None

    def __exit__(self, *_: object) -> None:
        pass


GATES = [name for name in black_box.__all__ if name.startswith("test_")]


@pytest.mark.parametrize(
    ("defect", "gate", "says"),
    [
        ("unseeded", "test_second_run_gives_the_same", "nondeterministic: a second run, at once, gave another"),
        (
            "random-targets",
            "test_loss_is_below_that_of_a_uniform_guess",
            "ln(16) = 2.7726: the lane trains on the wrong",
        ),
        ("blind", "test_checkpoint_depends_on_the_audio", "blind to its data"),
        ("disagree", "test_report_status_and_files_agree", "status: checkpoint_sha256: found '000"),
    ],
)
def test_each_defect_is_found_by_its_gate(defect: str, gate: str, says: str, project: Path) -> None:
    write_tables(project, defect)
    session = Session(project, "wrapper")
    assert session.run.failure() is None, "the wrapper itself says that all is well"
    assert says in session.gate(gate)
    # What costs no further run finds nothing else: a red gate names the defect.
    further = {"lane_again", "lane_other_audio", "lane_same_audio"}
    cheap = [name for name in GATES if not further & {*getattr(black_box, name).__code__.co_varnames} and name != gate]
    assert {name for name in cheap if session.gate(name) not in ("passed", "not applicable")} == set()


def test_a_lane_that_differs_anyway_does_not_pass_for_one_that_hears_its_audio(project: Path) -> None:
    write_tables(project, "unseeded-blind")
    assert Session(project, "wrapper").gate("test_checkpoint_depends_on_the_audio") == "not applicable"


def test_a_stale_checkpoint_is_found(project: Path) -> None:
    checkpoint = project / "artifacts_tts" / "checkpoints" / "tts_voice_train_toy.pt"
    checkpoint.parent.mkdir(parents=True)
    import torch

    torch.save({"adapter_state": {"0.weight": torch.ones(3)}}, checkpoint)
    write_tables(project, "stale")
    session = Session(project, "wrapper")
    assert session.run.failure() is None
    found = session.gate("test_artifacts_are_of_this_run")
    assert found.startswith("stale: ") and "tts_voice_train_toy.pt" in found and "it did not write it" in found


def test_a_good_torch_lane_passes_every_gate(project: Path) -> None:
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 16))
    state = {name: torch.randn(value.shape, generator=generator) for name, value in model.state_dict().items()}
    torch.save(state, project / "initial.pt")
    session = Session(project, "torch")
    assert {name: session.gate(name) for name in GATES} == dict.fromkeys(GATES, "passed")


def test_a_numpy_lane_from_nothing_to_a_baseline_that_holds_and_one_that_does_not(project: Path) -> None:
    """The whole way, as a user goes it; the lane has no torch, no report, no manifest and no trace."""
    import numpy as np

    np.savez(project / "initial.npz", table=np.ones((16, 16)), bias=np.ones(16))
    code, text = smoke(
        project, "-B", "-p", "no:xdist", "--lane", "numpy", "--snapshot-update", "--baseline-reason", "a first result"
    )
    assert code == 0, text
    assert "13 passed" in text and "not applicable: 39 gates, which have judged nothing; 13 have" in text
    assert "on a report and files as docs/evidence.md has them" in text and "recorded " in text
    baselines = list((project / "baselines" / "numpy").glob("*.json"))
    assert len(baselines) == 1
    # -O: the gates judge as before, and the changed lane is red for its baseline alone.
    script = (project / "plain_numpy.py").read_text()
    (project / "plain_numpy.py").write_text(script.replace("20.0 * gradient", "20.5 * gradient"))
    code, text = smoke(project, "-O", "-p", "no:xdist", "--lane", "numpy")
    assert code == 1, text
    assert "regression: not the recorded result: loss, checkpoint" in text
    assert "a second run, at once, gave the same bits: not chance" in text
    assert "--lane=numpy --snapshot-update" in text and "2 failed, 11 passed" in text
    page = (project / "artifacts" / "numpy" / "report.html").read_text()
    assert "regression" in page and "not applicable" in page
    from harness.baselines.explain import explain
    from harness.present.summary import render

    told = explain(project / "artifacts" / "numpy", baselines[0])
    assert told.differ and "loss" in told.text() and "ended early" not in told.text()
    summary, there = render(project / "artifacts" / "numpy")
    assert there and "regression" in summary and "39 not applicable" in summary


def test_a_session_in_which_nothing_is_judged_fails(project: Path) -> None:
    (project / "pyproject.toml").write_text(
        '[tool.harness.lanes.silent]\ncommand = ["{python}", "-c", "print(1)"]\nreport = "none.txt"\n'
    )
    code, text = smoke(
        project, "-B", "-p", "no:xdist", "--lane", "silent", "-k", "checkpoint_is_not_empty or tokens_are"
    )
    assert code == 1, text
    assert "FAILED: no gate had anything to judge" in text
    code, text = smoke(project, "-O", "-p", "no:xdist", "--lane", "silent", "--assert=plain")
    assert code == 4 and "every gate would pass" in text


def test_a_lane_without_a_checkpoint_is_told_that_nothing_can_be_recorded(project: Path) -> None:
    (project / "train.py").write_text(
        "print(open('status.json', 'w').write('{\"status\": \"completed\", \"loss\": 1}'))"
    )
    table = '[tool.harness.lanes.said]\ncommand = ["{python}", "train.py"]\nstatus = "status.json"\n'
    (project / "pyproject.toml").write_text(table)
    code, text = smoke(project, "-B", "-p", "no:xdist", "--snapshot-update", "--baseline-reason", "a first result")
    assert code == 1 and "nothing was recorded: a recording holds the tensors of a checkpoint" in text, text
    assert "a recording takes a second run" in text and "1 failed, 3 passed" in text
    assert not (project / "baselines").exists()


def test_gates_without_a_lane_to_run_are_refused_once(project: Path) -> None:
    """A table with a mistake, two lanes of which none is the default, no table; and what runs no gate goes on."""
    lane = '[tool.harness.lanes.{}]\ncommand = ["true"]\nstatus = "s.json"\n'
    for table, says in (
        (lane.format("one") + "rums = 1\n", "rums: found a key that is not known, expected runs?"),
        (lane.format("one") + lane.format("two"), "expected default = true in one of one, two, or --lane=NAME"),
        ("", "found no lane, expected a table [tool.harness.lanes.NAME]"),
    ):
        (project / "pyproject.toml").write_text(table)
        code, text = smoke(project, "-B", "-p", "no:xdist")
        assert code == 4 and text.count(says) in (1, 2) and "Traceback" not in text, text
        code, text = smoke(project, "-B", "-p", "no:xdist", "-m", "not smoke")
        assert code == 5, text

"""A folder as one checkpoint, patterns for what of it is judged, and a status that is any JSON."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.baselines.causes import not_learned
from harness.baselines.differences import Item
from harness.evidence import EvidenceError, RunEvidence, load_run, read_checkpoint, read_checkpoints
from harness.evidence.folder import selected
from harness.runs.run import LaneRun
from harness.runs.table import LaneTableError, parse_lane


def saved(path: Path, **tensors: Any) -> Path:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: torch.tensor(value) for name, value in tensors.items()}, path)
    return path


def shard(path: Path, **arrays: Any) -> Path:
    """A safetensors file."""
    header, data = {}, b""
    for name, value in arrays.items():
        array = np.asarray(value, "<f4")
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    shard(tmp_path / "model-00001-of-00002.safetensors", a=[1.0])
    shard(tmp_path / "model-00002-of-00002.safetensors", b=[2.0])
    (tmp_path / "config.json").write_text("{}")
    found = read_checkpoints(tmp_path)
    assert {name: value.tolist() for name, value in found.tensors.items()} == {"a": [1.0], "b": [2.0]}
    whole = read_checkpoint(shard(tmp_path / "whole.safetensors", a=[1.0], b=[2.0]))
    assert found.tensor_digest == whole.tensor_digest and found.bytes < whole.bytes * 2


def test_names_that_collide_have_their_files_before_them(tmp_path: Path) -> None:
    saved(tmp_path / "rank0.pt", w=[1.0])
    saved(tmp_path / "rank1.pt", w=[2.0])
    saved(tmp_path / "inner" / "opt.bin", m=[3.0])
    assert list(read_checkpoints(tmp_path).tensors) == ["m", "rank0.w", "rank1.w"]


def test_what_holds_no_tensor_is_listed_and_what_is_damaged_is_an_error(tmp_path: Path) -> None:
    import torch

    saved(tmp_path / "a.pt", w=[1.0])
    torch.save({"cpu": torch.get_rng_state()}, tmp_path / "rng_state.pth")
    torch.save({"last_epoch": 3}, tmp_path / "scheduler.pt")
    found = read_checkpoints(tmp_path)
    assert list(found.tensors) == ["w"]
    assert found.meta == {"rng_state.pth": "<the state of random number generators>", "scheduler.pt": "<no tensor>"}
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:200])
    with pytest.raises(EvidenceError, match=r"b\.pt: found no readable archive"):
        read_checkpoints(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(EvidenceError, match="a folder with no file that holds tensors"):
        read_checkpoints(tmp_path)


def test_patterns_choose_what_is_judged(tmp_path: Path) -> None:
    import torch

    state = {"model.w": torch.ones(2).bfloat16(), "model.count": torch.ones(1), "best./tmp/a.ckpt": torch.ones(1)}
    torch.save(state, tmp_path / "a.pt")
    whole = read_checkpoint(tmp_path / "a.pt")
    assert selected(whole, [], []) is whole
    assert selected(whole, ["*"], []).tensor_digest == whole.tensor_digest
    assert list(selected(whole, ["model.*"], ["*.count"]).tensors) == ["model.w"]
    assert list(selected(whole, [], ["best.*"]).dtypes) == ["model.count", "model.w"]
    with pytest.raises(EvidenceError, match=r"no tensor for 'modle\.\*' of tensors\.include"):
        selected(whole, ["modle.*"], [])
    with pytest.raises(EvidenceError, match="all of its 3 tensors left out"):
        selected(whole, [], ["*"])


def run(folder: Path, script: str, **table: Any) -> RunEvidence:
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(script)
    lane = parse_lane("mine", {"command": ["{python}", "train.py"], **table}, folder)
    LaneRun(lane, folder / "run").wait()
    return load_run(folder / "run")


SAVES = """
import os, sys
import numpy as np
os.makedirs("out/inner", exist_ok=True)
np.savez("out/a.npz", w=np.ones(2))
if not os.path.exists("out/inner/b.npz"):
    np.savez("out/inner/b.npz", w=np.ones(3))
"""


def test_a_lane_that_leaves_a_folder(tmp_path: Path) -> None:
    left = run(tmp_path / "lane", SAVES, checkpoint="out")
    assert list(left.checkpoint.tensors) == ["a.w", "inner/b.w"] and left.failure() is None
    output = left.output("checkpoint")
    assert output.written and output.found == "a folder"
    # A second run takes the place of the first in the run directory, and does not write one of the files.
    again = run(tmp_path / "lane", SAVES, checkpoint="out", tensors={"exclude": ["inner/*"]})
    assert list(again.checkpoint.tensors) == ["a.w"]
    assert not again.output("checkpoint").written
    assert again.output("checkpoint").found == "inner/b.npz, which this run did not write"


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    left = run(tmp_path / "lane", "import os; os.mkdir('out')", checkpoint="out")
    assert left.output("checkpoint").found == "a folder with no checkpoint in it"


@pytest.mark.parametrize(
    ("document", "fields", "status", "loss"),
    [
        ({"log_history": [{"loss": 3.0}, {"loss": 2.5}, {"runtime": 1}]}, {"loss": "log_history[-2].loss"}, "completed",
         2.5),
        ([{"loss": 3.0}, {"loss": 2.0}], {"loss": "[-1].loss"}, "completed", 2.0),
        ({"a": [[1.0, 2.0]]}, {"loss": "a[0][1]"}, "completed", 2.0),
        ({"status": "failed", "l": 1.0}, {"loss": "l"}, "failed", 1.0),
        ({"l": [1.0]}, {"loss": "l[3]"}, "completed", None),
        ({"runs": [{"state": "done"}]}, {"state": "runs[0].state", "completed": "done"}, "completed", None),
    ],
)  # fmt: skip
def test_a_status_of_any_json(
    document: Any, fields: dict[str, str], status: str, loss: float | None, tmp_path: Path
) -> None:
    script = f"import json; json.dump({document!r}, open('s.json', 'w'))"
    found = run(tmp_path / "lane", script, status={"path": "s.json", **fields}).status
    assert (found.status, found.get("loss")) == (status, loss)


def test_a_program_that_failed_has_failed_whatever_its_status_lacks(tmp_path: Path) -> None:
    script = "import json; json.dump({'l': 1.0}, open('s.json', 'w')); raise SystemExit(3)"
    left = run(tmp_path / "lane", script, status={"path": "s.json", "loss": "l"})
    assert left.status.status == "failed" and left.failure()


def test_a_key_of_tensors_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(LaneTableError, match=r"tensors\.exlude: found a key that is not known, expected exclude\?"):
        parse_lane("mine", {"command": [sys.executable], "checkpoint": "a", "tensors": {"exlude": ["a"]}}, tmp_path)


def test_the_patterns_are_part_of_the_key(tmp_path: Path) -> None:
    table = {"command": [sys.executable], "checkpoint": "a.npz"}
    plain = parse_lane("mine", table, tmp_path).settings()
    assert "tensors.exclude" not in plain
    chosen = parse_lane("mine", {**table, "tensors": {"exclude": ["a.*", "b"]}}, tmp_path).settings()
    assert chosen == plain | {"tensors.exclude": "a.* b"}


def item(tensor: str, obtained: Any = None, expected: Any = "float32 1") -> Item:
    return Item("checkpoint", 3, "checkpoint", "a row", obtained, expected, float("inf"), 0.0, tensor)


def test_a_path_and_a_time_are_named_as_the_likely_reason() -> None:
    best = "callbacks.ModelCheckpoint{'monitor': None}.best_k_models./tmp/a/last.ckpt"
    (path,) = not_learned([item(best), item("model.w")])
    assert "1 of the tensors that differ have an absolute path in their names (callbacks." in path
    assert 'tensors = {exclude = ["callbacks.ModelCheckpoint*.best_k_models*"]}' in path
    (time,) = not_learned([item("started_time", 3.0, 4.0)])
    assert "look like times (started_time)" in time
    assert not_learned([item("at", 1.77e9, 1.78e9)]) and not not_learned([item("model.w", 1.0, 2.0)])

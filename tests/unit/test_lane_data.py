"""`data` of a lane's table: files of any kind that are part of the key, that gates alter and rename, and that reach the
second leg."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.evidence import NotApplicable, load_run
from harness.gates import black_box
from harness.runs.further import FurtherRuns
from harness.runs.run import LaneRun
from harness.runs.table import Lane, parse_lane
from harness.runs.variants import data_for

SCRIPT = """
import os, numpy as np
from pathlib import Path
table, tokens = Path(os.environ.get("CSV", "data/a.csv")), Path(os.environ.get("TOKENS", "data/tokens"))
rows = [float(line) for line in table.read_text().splitlines()[1:]] if "BLIND" not in os.environ else [1.0]
files = sorted(tokens.iterdir(), key=lambda file: file.read_bytes())
found = [np.fromfile(file, "uint16") * np.arange(4.0) for file in files] if "BLIND" not in os.environ else [[0.0]]
order = [ord(file.name[0]) for file in sorted(tokens.iterdir())] if "NAMES" in os.environ else []
np.savez(os.environ["LANE_RUN_DIR"] + "/out.npz", rows=sum(rows), found=np.sum(found), order=np.array([0.0, *order]))
"""
TABLE: dict[str, Any] = {
    "command": ["{python}", "lane.py"],
    "checkpoint": "{run_dir}/out.npz",
    "data": [
        {"path": "data/a.csv", "env": "CSV", "alter": "lines"},
        {"path": "data/tokens", "env": "TOKENS", "alter": "uint16", "rename": True},
    ],
}


def lane_in(folder: Path, **more: Any) -> Lane:
    (folder / "lane.py").write_text(SCRIPT)
    (folder / "data" / "tokens").mkdir(parents=True)
    (folder / "data" / "a.csv").write_text("value\n1\n2\n3\n")
    for name, first in (("x.bin", 1), ("y.bin", 300)):
        np.arange(first, first + 4, dtype="uint16").tofile(folder / "data" / "tokens" / name)
    return parse_lane("mine", {**TABLE, **more}, folder)


def further_runs(lane: Lane) -> FurtherRuns:
    first = LaneRun(lane, lane.root / "first").wait()
    silent = contextlib.nullcontext(lambda line: None)
    return FurtherRuns(lane, first.run_dir, lane.root / "store", None, lambda: silent)


def gate(name: str, runs: FurtherRuns, other: Any) -> str:
    """What a gate says is wrong; nothing where it holds."""
    try:
        getattr(black_box, name)(load_run(runs.first), runs.repeated, other, lambda text: None)
    except AssertionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("env", "blind", "names"),
    [({}, "", ""), ({"BLIND": "1"}, "blind to its data", ""), ({"NAMES": "1"}, "", "orders its data, or draws, by")],
    ids=["sound", "blind", "by names"],
)
def test_gates_alter_and_rename_what_the_table_allows(
    env: dict[str, str], blind: str, names: str, tmp_path: Path
) -> None:
    runs = further_runs(lane_in(tmp_path, env=env))
    for said, found in (
        (blind, gate("test_checkpoint_depends_on_the_audio", runs, runs.other_audio)),
        (names, gate("test_checkpoint_does_not_depend_on_names_and_times", runs, runs.same_audio)),
    ):
        assert said in found and bool(said) == bool(found), found
    first, other = (load_run(runs.store / kind if kind else runs.first) for kind in ("", "other-audio"))
    assert other.record.data.digest != first.record.data.digest, "what was altered is in the record"
    if not env:
        assert first.checkpoint.tensors["rows"] == 6 and other.checkpoint.tensors["rows"] == 2
    assert (tmp_path / "data" / "a.csv").read_text() == "value\n1\n2\n3\n"


def test_what_may_not_be_varied_is_not(tmp_path: Path) -> None:
    lane = lane_in(tmp_path, data=["data/a.csv", "data/tokens"])
    assert lane.most_runs == 2
    runs = further_runs(lane)
    for ask in (runs.other_audio, runs.same_audio):
        with pytest.raises(NotApplicable, match="names no audio, and no data with"):
            ask()


def test_the_data_are_in_the_key_with_their_names_where_those_count(tmp_path: Path) -> None:
    def digest(name: str, change: str, table: dict[str, Any]) -> str | None:
        folder = tmp_path / name
        folder.mkdir()
        lane = lane_in(folder, **table)
        if change == "content":
            (folder / "data" / "a.csv").write_text("value\n1\n2\n4\n")
        if change == "name":
            (folder / "data" / "tokens" / "x.bin").rename(folder / "data" / "tokens" / "z.bin")
        return load_run(LaneRun(lane, folder / "run").wait().run_dir).record.data.digest

    plain = {"data": ["data/a.csv", "data/tokens"]}
    assert len({digest(f"plain{c}", c, plain) for c in ("", "content", "name")}) == 3, "a name may be a label"
    same = digest("table", "", {})
    assert same == digest("table2", "name", {}) != digest("table3", "content", {})


def test_data_that_are_missing_are_named(tmp_path: Path) -> None:
    run = LaneRun(lane_in(tmp_path, data=["data/nothing.bin"]), tmp_path / "run").wait()
    assert load_run(run.run_dir).record.data.problems == [
        f"{tmp_path}/data/nothing.bin: found no file, expected data that the lane trains on"
    ]


def test_data_that_git_lacks_are_put_into_another_checkout(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    lane = lane_in(here)
    (there / "data").mkdir(parents=True)
    (there / "data" / "a.csv").write_text("a pointer to a large file")
    data_for(lane, there)
    assert (there / "data" / "a.csv").read_text() == "value\n1\n2\n3\n"
    assert sorted(path.name for path in (there / "data" / "tokens").iterdir()) == ["x.bin", "y.bin"]
    assert not (there / "data" / "tokens").is_symlink(), "what the lane adds there stays there"
    copy = there / "data" / "tokens" / next(path.name for path in (there / "data" / "tokens").iterdir())
    before = (lane.root / "data" / "tokens" / copy.name).read_bytes()
    copy.write_bytes(b"what the recorded code makes of it")
    assert (lane.root / "data" / "tokens" / copy.name).read_bytes() == before, "nor does it reach the user's files"

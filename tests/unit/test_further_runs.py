"""How often a session runs its lane again: as often as it may, each kind once; what needs more is not applicable."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.evidence import EvidenceError, NotApplicable, load_run
from harness.runs.further import FurtherRuns
from harness.runs.run import LaneRun
from harness.runs.table import parse_lane

SCRIPT = """
import os, numpy as np
open("runs.txt", "a").write("run\\n")
np.savez(os.environ["LANE_RUN_DIR"] + "/out.npz", sum=np.load(os.environ["AUDIO"]).sum(dtype=float))
"""
TABLE = {
    "command": ["{python}", "lane.py"],
    "checkpoint": "{run_dir}/out.npz",
    "audio": {"path": "a.npy", "env": "AUDIO"},
}


@pytest.fixture
def further(tmp_path: Path) -> Callable[[int | None], FurtherRuns]:
    """Gives the further runs of a lane that has been run once."""
    (tmp_path / "lane.py").write_text(SCRIPT)
    np.save(tmp_path / "a.npy", np.arange(100))
    lane = parse_lane("mine", TABLE, tmp_path)
    first = LaneRun(lane, tmp_path / "first").wait()
    silent = contextlib.nullcontext(lambda line: None)
    return lambda most: FurtherRuns(lane, first.run_dir, tmp_path / "store", None, lambda: silent, most)


def count(tmp_path: Path) -> int:
    return len((tmp_path / "runs.txt").read_text().split())


@pytest.mark.parametrize(("most", "runs"), [(1, 1), (2, 2), (3, 3), (4, 4), (None, 4)])
def test_what_needs_more_runs_is_not_applicable(
    most: int | None, runs: int, further: Callable[[int | None], FurtherRuns], tmp_path: Path
) -> None:
    again = further(most)
    refused = 0
    for ask in (again.repeated, again.repeated, again.other_audio, again.same_audio):
        try:
            assert ask().failure() is None
        except NotApplicable as error:
            refused += 1
            assert "--lane-runs" in str(error)
    assert count(tmp_path) == runs and refused == {1: 4, 2: 2, 3: 1}.get(runs, 0)
    assert again.again().failure() is None, "a verdict's own second run is not for the gates to spare"
    assert count(tmp_path) == max(runs, 2)


def test_a_lane_that_fails_again_says_so(further: Callable[[int | None], FurtherRuns], tmp_path: Path) -> None:
    runs = further(None)
    (tmp_path / "lane.py").unlink()
    failure = runs.again().failure()
    assert failure is not None and "exited with 2" in failure
    with pytest.raises(EvidenceError):
        _ = runs.again().checkpoint


@pytest.mark.parametrize(("own", "same"), [({}, False), ({"PYTHONHASHSEED": "0"}, True)], ids=["callers", "own"])
def test_a_seed_of_hashes_that_the_caller_sets_hides_nothing(
    own: dict[str, str], same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run gets another one, unless the table sets it."""
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    code = "import os, numpy as np\nnp.savez(os.environ['LANE_RUN_DIR'] + '/out.npz', seed=abs(hash('voice')) % 1000)\n"
    (tmp_path / "lane.py").write_text(code)
    table = {"command": ["{python}", "lane.py"], "checkpoint": "{run_dir}/out.npz", "env": own}
    lane = parse_lane("mine", table, tmp_path)
    first = LaneRun(lane, tmp_path / "first").wait()
    silent = contextlib.nullcontext(lambda line: None)
    again = FurtherRuns(lane, first.run_dir, tmp_path / "store", None, lambda: silent).again()
    digests = {load_run(first.run_dir).checkpoint.tensor_digest, again.checkpoint.tensor_digest}
    assert (len(digests) == 1) == same

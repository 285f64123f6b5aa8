"""Where two watched runs part: the step, the phase and the tensors, and what that usually comes from."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from harness.baselines.explain import Explanation, explain_runs
from harness.runs.run import LaneRun
from harness.runs.table import parse_lane

VARIANTS = ["plain", "again", "init", "decay", "data", "loss", "backward", "schedule", "update"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run directory for each variant. They are made in one run, which is quicker, and taken apart."""
    root = tmp_path_factory.mktemp("project")
    shutil.copy(Path(__file__).parent / "variants.py", root)
    table = {"command": ["{python}", "variants.py", *VARIANTS], "checkpoint": "plain.pt", "trace": "watch"}
    run = LaneRun(parse_lane("toy", table, root), root / "run", python=(sys.executable,)).wait()
    assert run.exit_code == 0, (root / "run" / "lane.log").read_text()
    found = {}
    for number, name in enumerate(VARIANTS, 1):
        found[name] = root / name
        (found[name] / "watch").mkdir(parents=True)
        shutil.copy(root / "run" / "run.json", found[name])
        shutil.copy(root / f"{name}.pt", found[name] / "checkpoint.pt")
        trace = "0.jsonl" if number == 1 else f"0-{number}.jsonl"
        shutil.copy(root / "run" / "watch" / trace, found[name] / "watch" / "0.jsonl")
    return found


def parted(runs: dict[str, Path], variant: str) -> Explanation:
    return explain_runs(runs[variant], runs["plain"])


def test_the_same_training_is_the_same(runs: dict[str, Path]) -> None:
    assert not parted(runs, "again").differ


@pytest.mark.parametrize(
    ("variant", "step", "phase", "words"),
    [
        ("init", 0, "start", "initial"),
        ("decay", 0, "start", "weight_decay"),
        ("data", 4, "data", "batch"),
        ("loss", 3, "forward", "loss"),
        ("backward", 6, "backward", "gradient"),
        ("schedule", 6, "optimizer", "learning rate"),
        ("update", 9, "forward", "loss"),
    ],
)
def test_the_place_is_where_the_variant_acts(
    variant: str, step: int, phase: str, words: str, runs: dict[str, Path]
) -> None:
    found = parted(runs, variant)
    assert found.differ and found.where is not None
    assert (found.where.step, found.where.phase) == (step, phase), found.text()
    assert words in found.where.item.what or words in found.cause, found.text()
    assert "codebook" not in found.text() and "adapter" not in found.text(), found.text()


def test_the_tensors_are_named(runs: dict[str, Path]) -> None:
    """Of a gradient that is wrong from the second layer down, the first layer's."""
    where = parted(runs, "backward").where
    assert where is not None and set(where.tensors) == {"0.weight", "0.bias"} and where.tensors_known == 4

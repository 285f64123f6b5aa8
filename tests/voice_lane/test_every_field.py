"""Each field of each file of evidence, edited by itself: some gate is red that needs no recording.

What no gate can hold stands in UNHELD with its reason. That list may only become shorter.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fields import Edit, Gates, copied, edits

from harness.evidence import RunEvidence

SMOKE = Path(__file__).resolve().parents[1] / "smoke"
MODULES = ("test_own_lane", "test_said", "test_meaning", "test_recipe", "test_whole_recipe")
RUNS_AGAIN = {"baseline", "lane_again", "lane_other_audio", "lane_same_audio"}  # what those gates need is not here
SLOW = {"truth", "reference"}
UNHELD = {
    "train_report.txt: audiocraft_import": "how the set-up made audiocraft importable: it was done before the run, and "
    "no file and no process of the run knows it otherwise",
}


def smoke(name: str) -> ModuleType:
    """A module of the gates, which are tests and no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SMOKE / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def gates(pytestconfig: pytest.Config) -> Gates:
    from reference_run import Reference
    from truth import Truth, load_model

    from harness.gates import black_box, training

    modules = [training, black_box, *map(smoke, MODULES)]
    found = [f for module in modules for name, f in vars(module).items() if name.startswith("test_")]
    needs = {f: set(inspect.signature(f).parameters) for f in found}
    quick = [f for f in found if not needs[f] & (RUNS_AGAIN | SLOW)]
    slow = [f for f in found if needs[f] & SLOW]
    assert len(quick) > 25 and len(slow) > 12
    model = load_model()

    def given(run: RunEvidence) -> dict[str, Callable[[], Any]]:
        truth = functools.cache(lambda: Truth(model, run))
        return {
            "lane_run": lambda: run,
            "truth": truth,
            "reference": functools.cache(lambda: Reference(model, run, truth().conditions_of)),
            "measured": lambda: lambda text: None,
            "pytestconfig": lambda: pytestconfig,
        }

    return Gates([*quick, *slow], given)


FILES = ("train_report.txt", "train_status.json", "environment.json", "knowledge_audio", "checkpoints", "trace.jsonl")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", FILES)
def test_an_edited_field_is_noticed(file: str, lane_run: RunEvidence, gates: Gates, tmp_path: Path) -> None:
    run_dir = copied(lane_run.run_dir, tmp_path / "run")
    assert not gates.red(run_dir), "the run itself is not green"
    chosen = [edit for edit in edits(run_dir) if edit.file.startswith(file)]
    assert len(chosen) >= 7, "there are more fields than that"
    unnoticed = [edit.name for edit in chosen if not red(gates, run_dir, edit)]
    unheld = {name for name in UNHELD if name.startswith(file)}
    assert set(unnoticed) == unheld, (
        f"no gate notices {set(unnoticed) - unheld}; noticed now: {unheld - set(unnoticed)}"
    )


def red(gates: Gates, run_dir: Path, edit: Edit) -> str:
    """The gate that is red where one field says something else."""
    path = run_dir / edit.file
    kept = path.read_bytes()
    assert edit.text.encode() != kept, f"{edit.name}: the edit changes nothing"
    path.write_text(edit.text)
    try:
        return gates.red(run_dir)
    finally:
        path.write_bytes(kept)

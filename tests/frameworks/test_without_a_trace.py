"""Programs without torch: their checkpoints are compared, and the verdict says that nothing tells where. What is a
pickle is refused, with what it is, and not executed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from frameworks.programs_here import UNTRACED, Program, write_table
from frameworks.project import Project, record, set_up
from smoke_session import smoke

from harness.baselines.differences import NO_TRACE
from harness.baselines.verdict import Verdict
from harness.evidence import load_run

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(600)]
ROWS: dict[str, dict[str, str]] = {}
MOVED = """
import numpy

inner = numpy.random.RandomState


class RandomState(inner):
    def uniform(self, *args, **kwargs):
        return super().uniform(*args, **kwargs) * 1.5


numpy.random.RandomState = RandomState
numpy.random.mtrand.RandomState = RandomState
"""


@pytest.fixture(scope="module", params=UNTRACED, ids=lambda program: program.name)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    program: Program = request.param
    program.need()
    project = record(program, tmp_path_factory.mktemp(program.name), "")
    ROWS[program.name] = {"unseen": "all but the checkpoint: no torch, no trace"}
    yield project
    if os.environ.get("FRAMEWORKS_TABLE"):
        write_table(ROWS)


def place(verdict: Verdict) -> str:
    """Of no trace: none, and that is said."""
    text = verdict.text()
    assert NO_TRACE in text, text
    assert "every step agrees" not in text and "float32 rounding" not in text, text
    return "no trace: cannot say where"


def test_green_in_a_second_session(recorded: Project) -> None:
    assert "verdict: match" in recorded.session()
    count = len(load_run(recorded.folder / "artifacts" / "watched").checkpoint.tensors)
    ROWS[recorded.program.name] |= {"seen": f"checkpoint: {count} tensors", "sound": "match"}


def test_a_change_of_the_code(recorded: Project) -> None:
    old, new = recorded.program.broken
    verdict = recorded.changed("code", f"{recorded.program.name}.py", old.encode(), new.encode())
    assert verdict.kind == "regression" and "the code moved it" in str(verdict.notes), verdict.text()
    ROWS[recorded.program.name]["code"] = f"`{old}` → `{new}`: {verdict.kind}, {place(verdict)}"


def test_a_change_of_the_data(recorded: Project) -> None:
    verdict = recorded.changed("data", "data.txt", b"t", b"T")
    assert verdict.kind == "regression", verdict.text()
    assert "a file in git moved it, though none of the lane's code" in str(verdict.notes), verdict.text()
    ROWS[recorded.program.name]["data"] = f"{verdict.kind}, {place(verdict)}"


def test_a_change_of_the_environment(recorded: Project) -> None:
    """Of scikit-learn, another generator in NumPy as it is installed; of JAX, a variable that it reads."""
    changes = {"JAX_DEFAULT_PRNG_IMPL": "rbg"}
    if recorded.program.name == "scikit":
        library = recorded.base / "library"
        library.mkdir()
        (library / "sitecustomize.py").write_text(MOVED)
        changes = {"PYTHONPATH": str(library)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setenv(name, value)
        verdict = recorded.verdict("environment")
    assert verdict.kind == "environment-moved", verdict.text()
    ROWS[recorded.program.name]["environment"] = f"{verdict.kind}, {place(verdict)}"


@pytest.mark.parametrize(("saved", "what"), [("pickle", "a bare pickle"), ("joblib", "joblib's pickle")])
def test_a_pickle_is_refused_with_what_it_is(saved: str, what: str, tmp_path: Path) -> None:
    (scikit,) = (program for program in UNTRACED if program.name == "scikit")
    scikit.need()
    suffix = {"pickle": "pkl"}.get(saved, saved)
    program = dataclasses.replace(scikit, arguments=(saved,), table=f'checkpoint = "out/model.{suffix}"')
    code, text = smoke(set_up(program, tmp_path, "").folder, "-B", "--lane", "watched", "--lane-runs=1")
    assert code == 1, text
    assert f"{what}, which is not read, because that could execute code" in text, text

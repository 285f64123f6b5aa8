"""Each program as a lane: recorded, green in a second session, and broken by its code and by its data. What came of it
is the table of docs/frameworks.md, which FRAMEWORKS_TABLE=1 writes anew."""

from __future__ import annotations

import os
from typing import Any

import pytest
from frameworks.programs_here import ALL, Program, write_table
from frameworks.project import Project, record

from harness.evidence import load_run

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(1200)]
ROWS: dict[str, dict[str, str]] = {}


@pytest.fixture(scope="module", params=ALL, ids=lambda program: program.name)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    program: Program = request.param
    program.need()
    project = record(program, tmp_path_factory.mktemp(program.name), 'trace = "watch"\n')
    ROWS[program.name] = {}
    yield project
    if os.environ.get("FRAMEWORKS_TABLE"):
        write_table(ROWS)


def test_green_in_a_second_session(recorded: Project) -> None:
    assert "verdict: match" in recorded.session()
    traces = load_run(recorded.folder / "artifacts" / "watched").watched
    steps, names = len(traces[0].steps), len(traces[0].tensors[-1].tensors)
    ranks = f" on each of {len(traces)} ranks" if len(traces) > 1 else ""
    unseen = "; ".join(dict.fromkeys(line for trace in traces for line in trace.unseen))
    checkpoint = load_run(recorded.folder / "artifacts" / "watched").checkpoint
    ROWS[recorded.program.name] |= {
        "seen": f"{steps} steps{ranks}, {names} parameters; checkpoint: {len(checkpoint.tensors)} tensors",
        "unseen": unseen or "nothing",
        "sound": "match",
    }


def test_a_change_of_the_code(recorded: Project) -> None:
    program = recorded.program
    old, new = program.broken
    verdict = recorded.changed("code", f"{program.name}.py", old.encode(), new.encode())
    where = verdict.where.text() if verdict.where else ""
    text = "\n".join(map(str, verdict.notes))
    assert verdict.kind == "regression" and "the code moved it" in text, (verdict.headline, text)
    assert where.startswith(program.place), where
    if "RATE" in old:
        assert "learning rate" in verdict.cause, verdict.cause
    ROWS[program.name]["code"] = f"`{old}` → `{new}`: {verdict.kind}, {where}"


def test_a_change_of_the_data(recorded: Project) -> None:
    """Of data that are in git, and no code: a file in git moved it."""
    verdict = recorded.changed("data", "data.txt", b"t", b"T")
    where = verdict.where.text() if verdict.where else ""
    assert verdict.kind == "regression" and where.startswith("step "), (verdict.headline, where)
    assert "phase data" in where and "digest of the batch" in where, where
    assert any("a file in git moved it, though none of the lane's code" in str(note) for note in verdict.notes)
    if recorded.program.ranks > 1:
        assert "of rank" in where
    ROWS[recorded.program.name]["data"] = f"{verdict.kind}, {where}"


def test_a_change_of_the_environment(recorded: Project) -> None:
    """A library that has other defaults where it is installed: here, by a `sitecustomize` outside the project."""
    library = recorded.base / "library"
    library.mkdir()
    (library / "sitecustomize.py").write_text(recorded.program.patched(PATCHED))
    os.environ["PYTHONPATH"] = str(library)
    try:
        verdict = recorded.verdict("environment")
    finally:
        del os.environ["PYTHONPATH"]
    where = verdict.where.text() if verdict.where else ""
    assert verdict.kind == "environment-moved", (verdict.headline, where, verdict.notes)
    assert where.startswith("before the first step, phase start (setting of optimizer 0 "), where
    assert recorded.program.setting in where, where
    assert not any("the code moved it" in str(note) for note in verdict.notes), verdict.notes
    ROWS[recorded.program.name]["environment"] = f"{verdict.kind}, {where}"


PATCHED = """
import importlib.machinery, sys

class Late:
    def find_spec(name, path, target=None):
        if name != "torch.optim.MODULE":
            return None
        sys.meta_path.remove(Late)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def patched(module):
            execute(module)
            inner = module.CLASS.__init__

            def init(self, *args, **kwargs):
                inner(self, *args, **kwargs)
                for group in self.param_groups:
                    group.update(CHANGE)

            module.CLASS.__init__ = init

        spec.loader.exec_module = patched
        return spec

sys.meta_path.insert(0, Late)
"""

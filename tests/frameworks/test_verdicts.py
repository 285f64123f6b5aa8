"""Each program as a lane: recorded, green in a second session, and broken by its code and by its data. What came of it
is the table of docs/frameworks.md, which FRAMEWORKS_TABLE=1 writes anew."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from frameworks.programs_here import ALL, PROGRAMS, Program, write_table
from smoke_session import smoke

from harness.baselines.compare import judge
from harness.baselines.second_leg import code_of
from harness.baselines.store import Store
from harness.baselines.verdict import Verdict
from harness.evidence import load_run
from harness.runs.footprint import Footprint
from harness.runs.further import FurtherRuns
from harness.runs.run import LaneRun
from harness.runs.table import find_lane

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(1200)]
ROWS: dict[str, dict[str, str]] = {}


@dataclass
class Project:
    """A project in git whose lane is a program, with its result recorded."""

    program: Program
    folder: Path
    base: Path

    def git(self, *arguments: str) -> None:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(self.folder), *identity, *arguments]
        subprocess.run(command, check=True, capture_output=True, text=True)

    def session(self, *arguments: str) -> str:
        code, text = smoke(self.folder, "-B", "--lane", "watched", "--lane-runs=2", "-p", "no:xdist", *arguments)
        assert code == 0, text
        return text

    def verdict(self, name: str) -> Verdict:
        """As the gates find it, without a session of pytest."""
        lane = find_lane(self.folder, "watched")
        (baseline,) = (self.folder / "baselines" / "watched").glob("*.json")
        numeric_class = json.loads(baseline.read_text())["key"]["numeric_class"]
        footprint = Footprint(self.folder, self.base / name / "run", self.base / name / "further")
        footprint.begin()
        process = LaneRun(lane, self.base / name / "run", numeric_class=lambda: numeric_class).wait()
        run = load_run(self.base / name / "run", run_id=process.run_id)
        runs = FurtherRuns(lane, run.run_dir, self.base / name / "further", footprint, _silent)
        return judge(run, Store(self.folder / "baselines"), runs.again, runs.second_leg,
                     code_of(self.folder, lane.code_paths, ""))  # fmt: skip

    def changed(self, name: str, path: str, old: bytes, new: bytes) -> Verdict:
        """The verdict on a change of one file, which is then undone."""
        file = self.folder / path
        before = file.read_bytes()
        assert before.count(old) >= 1
        file.write_bytes(before.replace(old, new))
        try:
            return self.verdict(name)
        finally:
            file.write_bytes(before)


class _silent:
    def __enter__(self) -> Callable[[str], None]:
        return lambda line: None

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module", params=ALL, ids=lambda program: program.name)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    program: Program = request.param
    program.need()
    base = tmp_path_factory.mktemp(program.name)
    folder = base / "project"
    folder.mkdir()
    for path in PROGRAMS.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    command = json.dumps(["{python}", *program.command])
    (folder / "pyproject.toml").write_text(
        f'[tool.harness.lanes.watched]\ncommand = {command}\ntrace = "watch"\n{program.table}\n'
        f'code = ["{program.name}.py", "words.py"]\nenv = {{OMP_NUM_THREADS = "1"}}\n'
    )
    (folder / ".gitignore").write_text("artifacts/\n__pycache__/\nout/\n")
    project = Project(program, folder, base)
    project.git("init", "-q")
    project.git("add", "-A")
    project.git("commit", "-qm", "the program")
    project.session("--snapshot-update", "--baseline-reason", "a first result")
    project.git("add", "-A")
    project.git("commit", "-qm", "its result")
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
    (library / "sitecustomize.py").write_text(PATCHED)
    os.environ["PYTHONPATH"] = str(library)
    try:
        verdict = recorded.verdict("environment")
    finally:
        del os.environ["PYTHONPATH"]
    where = verdict.where.text() if verdict.where else ""
    assert verdict.kind == "environment-moved", (verdict.headline, where, verdict.notes)
    ROWS[recorded.program.name]["environment"] = f"{verdict.kind}, {where}"


PATCHED = """
import importlib.machinery, sys

class Late:
    def find_spec(name, path, target=None):
        if name != "torch.optim.adam":
            return None
        sys.meta_path.remove(Late)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def patched(module):
            execute(module)
            inner = module.Adam.__init__

            def init(self, *args, **kwargs):
                inner(self, *args, **kwargs)
                for group in self.param_groups:
                    group["eps"] = 1e-7

            module.Adam.__init__ = init

        spec.loader.exec_module = patched
        return spec

sys.meta_path.insert(0, Late)
"""

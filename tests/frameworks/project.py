"""A program of this folder as a lane of a project in git, recorded, and the verdict when it is broken."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from frameworks.programs_here import PROGRAMS, Program
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


def set_up(program: Program, base: Path, lines: str) -> Project:
    """Not recorded yet; ``lines``: more of the lane's table."""
    folder = base / "project"
    folder.mkdir()
    for path in PROGRAMS.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    command = json.dumps(["{python}", *program.command])
    (folder / "pyproject.toml").write_text(
        f"[tool.harness.lanes.watched]\ncommand = {command}\n{lines}{program.table}\n"
        f'code = ["{program.name}.py", "words.py"]\nenv = {{OMP_NUM_THREADS = "1"}}\n'
    )
    (folder / ".gitignore").write_text("artifacts/\n__pycache__/\nout/\n")
    project = Project(program, folder, base)
    project.git("init", "-q")
    project.git("add", "-A")
    project.git("commit", "-qm", "the program")
    return project


def record(program: Program, base: Path, lines: str) -> Project:
    project = set_up(program, base, lines)
    project.session("--snapshot-update", "--baseline-reason", "a first result")
    project.git("add", "-A")
    project.git("commit", "-qm", "its result")
    return project

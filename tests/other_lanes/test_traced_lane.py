"""An external lane that writes a trace, in a folder of a git repository: recorded, then moved by its code, by a library
and by its data, and judged in two processes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from smoke_session import smoke

from harness.baselines.compare import judge
from harness.baselines.explain import main as explain
from harness.baselines.second_leg import code_of
from harness.baselines.store import Store
from harness.baselines.verdict import Verdict
from harness.evidence import load_run
from harness.runs.footprint import Footprint
from harness.runs.further import FurtherRuns
from harness.runs.run import LaneRun
from harness.runs.table import find_lane

HERE = Path(__file__).parent
TABLE = """
[tool.harness.lanes.traced]
command = ["{python}", "plain_trace.py", "{audio}"]
cwd = "lane"
env = {PYTHONPATH = "LIBRARY", RUNS = "RUNS_FILE"}
status = "{run_dir}/status.json"
checkpoint = "{run_dir}/voice.npz"
trace = "{run_dir}/trace.jsonl"
audio = "../data"
vocabulary = 16
code = ["plain_trace.py", "rates.json"]
"""
RATES = [20.0] * 10


@dataclass
class Project:
    """A project that is a folder in git, its library beside it, and how its sessions went."""

    folder: Path
    library: Path
    runs: Path
    text: str = ""

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(self.folder), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self) -> str:
        self.git("add", "-A")
        self.git("commit", "-qm", "a change")
        return self.git("rev-parse", "HEAD")

    def session(self, *arguments: str) -> int:
        """One of pytest's; `text` is what it says."""
        self.runs.write_text("")
        code, self.text = smoke(self.folder, "-B", "--lane", "traced", *arguments)
        return code

    def ran(self) -> Counter[str]:
        return Counter(self.runs.read_text().split())

    def outcomes(self) -> dict[str, str]:
        gates = json.loads((self.folder / "artifacts" / "traced" / "gates.json").read_text())["gates"]
        return {gate["nodeid"]: gate["outcome"] for gate in gates}

    @property
    def baseline(self) -> Path:
        (file,) = (self.folder / "baselines" / "traced").glob("*.json")
        return file

    def verdict(self, folder: Path) -> Verdict:
        """As the gates find it, without a session of pytest."""
        lane = find_lane(self.folder, "traced")
        numeric_class = json.loads(self.baseline.read_text())["key"]["numeric_class"]
        footprint = Footprint(self.folder, folder / "run", folder / "further")
        footprint.begin()
        process = LaneRun(lane, folder / "run", numeric_class=lambda: numeric_class).wait()
        run = load_run(folder / "run", run_id=process.run_id)
        runs = FurtherRuns(lane, run.run_dir, folder / "further", footprint, _silent)
        code = code_of(self.folder, lane.code_paths, "")
        return judge(run, Store(self.folder / "baselines"), runs.again, runs.second_leg, code)


class _silent:
    def __enter__(self) -> Callable[[str], None]:
        return lambda line: None

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project with its result recorded and committed."""
    base = tmp_path_factory.mktemp("traced")
    project = Project(base / "repository" / "voice", base / "library", base / "runs.txt")
    (project.folder / "lane").mkdir(parents=True)
    project.library.mkdir()
    shutil.copy(HERE / "plain_trace.py", project.folder / "lane")
    shutil.copy(HERE / "sounds.py", project.library)
    sys.path.insert(0, str(HERE))
    try:
        from sounds import write_sound
    finally:
        sys.path.remove(str(HERE))
    write_sound(project.folder / "data" / "a.wav", 220)
    write_sound(project.folder / "data" / "b.wav", 330)
    (project.folder / "lane" / "rates.json").write_text(json.dumps(RATES))
    table = TABLE.replace("LIBRARY", str(project.library)).replace("RUNS_FILE", str(project.runs))
    (project.folder / "pyproject.toml").write_text(table)
    (project.folder / ".gitignore").write_text("artifacts/\n__pycache__/\n")
    project.git("init", "-q", "..")
    project.commit()
    code = project.session("-p", "no:xdist", "--snapshot-update", "--baseline-reason", "a first result")
    assert code == 0 and "recorded " in project.text, project.text
    project.commit()
    return project


@pytest.fixture(scope="module")
def slower(recorded: Project) -> Project:
    """The same after a commit that changes the learning rate from step 4 on, judged in one process."""
    changed = [rate if step < 4 else 19.0 for step, rate in enumerate(RATES, 1)]
    (recorded.folder / "lane" / "rates.json").write_text(json.dumps(changed))
    recorded.commit()
    assert recorded.session("-p", "no:xdist") == 1, recorded.text
    return recorded


ONCE = Counter({"traced": 1, "again": 1, "other-audio": 1, "same-audio": 1, "second-leg": 1})


def test_the_second_leg_says_that_the_code_moved_it(slower: Project) -> None:
    commit = slower.git("log", "--format=%H", "--reverse").split()[0]
    assert "regression: not the recorded result: loss, checkpoint" in slower.text
    assert f"the lane as of {commit[:12]}, run here, still gives the recorded result: the code moved it" in slower.text
    assert slower.ran() == ONCE
    assert len(slower.git("worktree", "list").splitlines()) == 1


def test_a_change_in_a_later_step_is_found_there(slower: Project, capsys: pytest.CaptureFixture[str]) -> None:
    where = "step 4 of 10, phase optimizer"
    assert f"where     {where}" in slower.text
    assert explain([str(slower.folder / "artifacts" / "traced"), str(slower.baseline)]) == 1
    told = capsys.readouterr().out
    assert f"where     {where}" in told and "the gradients agree and the parameters do not" in told


def test_in_two_processes_each_run_takes_place_once_and_each_gate_ends_alike(slower: Project) -> None:
    alone, lines = slower.outcomes(), _not_applicable(slower.text)
    assert slower.session("-n", "2") == 1, slower.text
    assert slower.ran() == ONCE
    assert slower.outcomes() == alone and Counter(alone.values())["failed"] == 2
    assert _not_applicable(slower.text) == lines
    assert lines and "the lane traced gives no report" in slower.text
    assert slower.text.count("verdict: regression") == 1


def _not_applicable(text: str) -> dict[str, set[str]]:
    """By reason, the gates that were not applicable."""
    lines = re.split(r"not applicable: \d", text)[1].split("verdict: ")[0].splitlines()[1:]
    return {reason: set(names.split(", ")) for reason, _, names in (line.rpartition(": ") for line in lines)}


def test_a_library_that_changed_is_the_environment(slower: Project, tmp_path: Path) -> None:
    """The code has changed too, but not in what it computes."""
    library, script = slower.library / "sounds.py", slower.folder / "lane" / "plain_trace.py"
    kept = library.read_text()
    (slower.folder / "lane" / "rates.json").write_text(json.dumps(RATES))
    with script.open("a") as file:
        file.write("# changed\n")
    slower.commit()
    library.write_text(kept.replace("return sorted(found, key=", "return sorted(found, reverse=True, key="))
    try:
        verdict = slower.verdict(tmp_path)
    finally:
        library.write_text(kept)
    assert verdict.kind == "environment-moved", verdict.text()
    assert "run here, fails in the same way" in verdict.text() and "a second run" in verdict.text()


def test_data_that_changed_are_said_to_be_other_data(slower: Project, tmp_path: Path) -> None:
    file = slower.folder / "data" / "a.wav"
    kept = file.read_bytes()
    file.write_bytes(kept[:-2] + b"\x01\x00")
    try:
        verdict = slower.verdict(tmp_path)
    finally:
        file.write_bytes(kept)
    assert verdict.kind == "incomparable", verdict.text()
    assert verdict.headline == "no recording has this run's data" and "undo the change of data" in verdict.text()

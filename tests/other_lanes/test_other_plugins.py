"""The gates beside other people's pytest plugins: one run, one verdict, and every gate counted once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from smoke_session import smoke

from harness.present.collect import GateCollector, result_of
from harness.present.gates import GateResult, counts, read_gates

LANE = """
import json, os
import numpy as np
with open(os.environ["RUNS"], "a") as runs:
    runs.write(os.environ["LANE_RUN_ID"] + "\\n")
json.dump({"status": "completed", "loss": 0.5}, open("status.json", "w"))
np.savez("voice.npz", weight=np.arange(4.0) * 1.0, large=np.full(3, 1e200))
"""
TABLE = """
[tool.harness.lanes.mine]
command = ["{python}", "train.py"]
checkpoint = "voice.npz"
status = "status.json"
code = ["train.py"]
"""
APPLICABLE = (
    7  # of 52: completes, of this run, not empty, second run, finite loss, and the recorded loss and checkpoint
)
ALL = ("-p", "randomly", "--count", "2", "--reruns", "1", "--cov=harness.gates", "--cov-report=")
STRICT = {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"}
REASON = ("--snapshot-update", "--baseline-reason", "a first result")


class Project:
    """A project of somebody's, with a lane of its own that notes the id of each run."""

    def __init__(self, root: Path) -> None:
        self.root, self.text = root, ""
        self.log = root.with_name(f"{root.name}-runs.txt")  # beside it: what a further run writes within is put back
        (root / "pyproject.toml").write_text(TABLE)
        (root / "train.py").write_text(LANE.replace("1e200", "2.0"))
        git = ("git", "-C", str(root), "-c", "user.name=me", "-c", "user.email=me@example.com")
        for words in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "a lane")):
            subprocess.run([*git, *words], check=True)

    def session(self, *arguments: str, cwd: str = ".", **settings: str) -> int:
        """`pytest -m smoke --lane mine`; its exit code."""
        self.log.unlink(missing_ok=True)
        settings = {"RUNS": str(self.log), **settings}
        code, self.text = smoke(self.root, "-B", "--lane", "mine", *arguments, cwd=self.root / cwd, **settings)
        return code

    def runs(self) -> int:
        """How many runs the session made; each has an id of its own."""
        ids = self.log.read_text().split()
        assert len(set(ids)) == len(ids)
        return len(ids)

    def gates(self) -> Sequence[GateResult]:
        return read_gates(self.root / "artifacts" / "mine").gates

    def verdicts(self) -> list[str]:
        """What the terminal says of the verdict, and what gates.json says."""
        lines = [line.split(": ")[1] for line in self.text.splitlines() if line.startswith("verdict: ")]
        return [*lines, str((read_gates(self.root / "artifacts" / "mine").verdict or {})["verdict"])]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """With a baseline."""
    project = Project(tmp_path_factory.mktemp("project"))
    assert project.session("-n", "0", "-W", "error", *REASON, **STRICT) == 0, project.text
    assert "Warning" not in project.text and project.runs() == 2 and project.verdicts() == ["match", "match"], (
        project.text
    )
    assert sum(line.startswith("recorded ") for line in project.text.splitlines()) == 1, project.text
    return project


@pytest.mark.parametrize(
    ("arguments", "cwd", "times"),
    [
        ([*ALL, "--randomly-seed=2", "-n", "2", "--dist", "load"], "tests", 2),
        (["-n", "2", "--dist", "each", "--reruns", "1"], "tests/deep", 1),
        (["-p", "randomly", "--reruns", "1", "-n", "2", "--dist", "loadfile"], ".", 1),
    ],
    ids=["load, from a subfolder", "each, from an empty subfolder", "loadfile, from the root"],
)
def test_sound_lane_stays_green(recorded: Project, arguments: list[str], cwd: str, times: int) -> None:
    (recorded.root / "tests" / "deep").mkdir(exist_ok=True)
    where = [str(recorded.root / "tests")] if cwd == "tests/deep" else []
    assert recorded.session(*arguments, *where, cwd=cwd) == 0, recorded.text
    assert recorded.runs() == 2 and recorded.verdicts() == ["match", "match"], recorded.text
    ended = [gate.outcome for gate in recorded.gates()]
    assert (len(ended), ended.count("passed")) == (52 * times, APPLICABLE * times), recorded.text
    assert f"not applicable: {(52 - APPLICABLE) * times} gates" in recorded.text


def test_one_gate_by_its_node_id_in_one_process(recorded: Project) -> None:
    gate = "test_lane.py::test_checkpoint_digest_is_the_recorded_one"
    assert recorded.session(*ALL, gate, cwd="tests") == 0, recorded.text
    assert recorded.runs() == 1 and recorded.verdicts() == ["match", "match"]
    assert [gate.outcome for gate in recorded.gates()] == ["passed"] * 2


def test_two_workers_find_one_verdict_on_a_changed_lane_under_strict_warnings(recorded: Project) -> None:
    script = recorded.root / "train.py"
    before = script.read_text()
    script.write_text(LANE)  # the norm is beyond what a double holds, of which NumPy warns
    try:
        assert recorded.session("-n", "2", "--reruns", "1", "-W", "error", **STRICT) == 1, recorded.text
        assert "Warning" not in recorded.text, recorded.text
        assert recorded.runs() == 3  # of the session, again, and the recorded code
        assert recorded.verdicts() == ["regression", "regression"], recorded.text
        notes = (read_gates(recorded.root / "artifacts" / "mine").verdict or {})["notes"]
        assert len(notes) == 3 and "no trace" in notes[0] and "the code moved it" in notes[2], notes
        red = [gate for gate in recorded.gates() if gate.outcome not in ("passed", "not applicable")]
        assert [(gate.outcome, gate.reruns) for gate in red] == [("failed", 1)], red
        assert red[0].reason.startswith("regression: ") and red[0].name.endswith("(run 2 times)")
        assert counts(recorded.gates()).endswith("; 1 of them run more than once")
        # A refusal ends neither the workers nor the session, and runs nothing.
        assert recorded.session("-n", "2", "--snapshot-update") == 1
        assert not recorded.log.exists() and "INTERNALERROR" not in recorded.text, recorded.text
        assert "nothing was run, and nothing recorded: a baseline needs a reason" in recorded.text
        # No worker knows how the others' gates ended, and a recording rests on all of them.
        assert recorded.session("-n", "2", *REASON) == 1
        assert "add -n 0" in recorded.text, recorded.text
    finally:
        script.write_text(before)


def test_a_recording_rests_on_the_gates_that_need_none(tmp_path: Path) -> None:
    """One that is red refuses it, also where it comes last in its file; those that held are named in the recording."""
    project = Project(tmp_path)
    own = tmp_path / "tests" / "test_zz_own.py"
    own.parent.mkdir(exist_ok=True)
    mark = "smoke"
    own.write_text(f"import pytest\n@pytest.mark.{mark}\ndef test_it_is_right(lane_run):\n    assert 1 == 2\n")
    assert project.session("-n", "0", *REASON) == 1
    assert "nothing was recorded" in project.text and "it is right" in project.text, project.text
    assert not list(tmp_path.rglob("baselines/*/*.json"))
    own.write_text(own.read_text().replace("1 == 2", "1 == 1"))
    assert project.session("-n", "0", *REASON) == 0, project.text
    (path,) = tmp_path.rglob("baselines/*/*.json")
    held = json.loads(path.read_text())["provenance"]["held"].split()
    assert "it_is_right" in held and "checkpoint_digest_is_the_recorded_one" not in held and len(held) > 3, held


def test_gates_are_refused_where_each_test_has_a_process_of_its_own(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--forked', action='count')")
    assert project.session("--forked") == 4 and "ERROR: --forked" in project.text, project.text
    assert not project.log.exists()


class SubReport(pytest.TestReport):
    """As pytest's subtests give one: a call of its own, of the same test."""


def report(outcome: Any, when: Any = "call", says: str = "", kind: Any = pytest.TestReport, **more: Any) -> Any:
    names = more.pop("keywords", {"smoke": 1})
    return kind("t.py::test_a", ("t.py", 3, "test_a"), names, outcome, says or None, when, **more)


SETUP, END = report("passed", "setup"), report("passed", "teardown")


@pytest.mark.parametrize(
    ("reports", "outcome", "reruns", "says"),
    [
        ([SETUP, report("passed"), END], "passed", 0, ""),
        ([SETUP, report("rerun", says="no"), SETUP, report("passed"), END], "passed", 1, ""),
        ([SETUP, report("rerun", says="no")] * 2 + [SETUP, report("failed", says="no"), END], "failed", 2, "no"),
        ([report("rerun", "setup", "no"), SETUP, report("passed"), END], "passed", 1, ""),
        # Of pytest-retry: without another set-up.
        ([SETUP, report("retried", says="no"), report("passed"), END], "passed", 1, ""),
        ([SETUP, report("retried", says="no")], "error", 0, "its outcome is 'retried', which is not known here: no"),
        ([SETUP, report("flaky"), END], "error", 0, "its outcome is 'flaky', which is not known here: no reason given"),
        ([report("failed", "setup", "no"), END], "error", 0, "no"),
        ([SETUP, report("passed"), report("failed", "teardown", "no")], "error", 0, "no"),
        # Of pytest's subtests: several calls.
        (
            [SETUP, report("rerun", kind=SubReport), report("rerun"), SETUP, report("passed"), END],
            *("passed", 1, ""),
        ),
        ([SETUP, report("failed", says="sub"), report("failed", says="1 sub"), END], "failed", 0, "sub"),
        ([SETUP, report("passed"), report("failed", says="no"), END], "failed", 0, "no"),
        ([SETUP, report("skipped", wasxfail="known"), END], "xfailed", 0, "expected to fail: known"),
        ([SETUP, report("passed", wasxfail="known"), END], "xpassed", 0, "expected to fail: known"),
        ([SETUP], "error", 0, "it did not run to its end"),
    ],
)
def test_a_gate_ends_as_its_last_run_did(reports: list[Any], outcome: str, reruns: int, says: str) -> None:
    found = result_of(reports)
    assert found is not None and (found.outcome, found.reruns, found.reason) == (outcome, reruns, says)


def test_a_gate_that_was_set_up_only_is_none() -> None:
    assert result_of([SETUP, END]) is None


def test_a_gate_is_counted_once_and_a_crash_among_gates_too(pytestconfig: pytest.Config) -> None:
    collector = GateCollector(pytestconfig, lambda: None)
    for node, outcome in (("one", "passed"), ("other", "failed")):
        for said in (SETUP, report(outcome, says="no"), END):
            said.node = node
            collector.pytest_runtest_logreport(said)
    assert [(gate.outcome, gate.reason) for gate in collector.gates] == [("failed", "no")]
    for name in ("t.py::test_b", "other.py::test_c"):
        crash = report("failed", "???", "worker 'gw0' crashed", keywords={})
        crash.nodeid, crash.node = name, "one"
        collector.pytest_runtest_logreport(crash)
    assert [(gate.name, gate.outcome) for gate in collector.gates] == [("a", "failed"), ("b", "error")]
    assert collector.gates[1].reason == "worker 'gw0' crashed"

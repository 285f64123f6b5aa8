"""The lane that runs is the one of the checkout that is tested, though its environment links another checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from bare_machine import ROOT, clean_environ
from voice import run_lane

SAYS = "this is the lane of the other folder"
PROBE = f"""
import pytest, harness.pytest_plugin
from voice import run_lane

@getattr(pytest.mark, "smoke")
def test_whose(tmp_path, pytestconfig):
    assert harness.pytest_plugin.__file__.startswith(str(pytestconfig.rootpath))
    assert {SAYS!r} in run_lane(tmp_path).report
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second checkout, whose lane says so and ends; this environment links the first."""
    where = tmp_path_factory.mktemp("second") / "checkout"
    shutil.copytree(ROOT / "harness", where / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "conftest.py"):
        shutil.copy(ROOT / name, where)
    (where / "harness" / "lane" / "__main__.py").write_text(f"import sys\nsys.exit({SAYS!r})\n")
    (where / "tests" / "smoke").mkdir(parents=True)
    (where / "tests" / "support").mkdir()
    shutil.copy(ROOT / "tests" / "support" / "voice.py", where / "tests" / "support")
    (where / "tests" / "smoke" / "test_probe.py").write_text(PROBE)
    return where


# A program that starts pytest and has imported the first checkout, which the environment links.
PYTEST = ["-c", "import sys, harness, pytest; sys.exit(pytest.main(sys.argv[1:]))", "-p", "no:randomly"]
LINKED = [*PYTEST, "-m", "smoke", "-p", "no:cacheprovider"]


def start(cwd: Path, words: Sequence[str] = (), **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *LINKED, *words],
        cwd=cwd,
        env=clean_environ(**environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_wherever_pytest_is_started(checkout: Path) -> None:
    """From below its root, from within the first checkout, with two workers."""
    sessions = {
        "below": start(checkout / "tests" / "smoke", PYTHONSAFEPATH="1"),
        "first": start(ROOT, [str(checkout / "tests" / "smoke")]),
        "workers": start(checkout / "tests", ["-n", "2"]),
    }
    said = {name: process.communicate(timeout=200)[0] for name, process in sessions.items()}
    for name, process in sessions.items():
        assert process.returncode == 0 and "1 passed" in said[name], f"{name}: {said[name][-3000:]}"


def test_the_lane_of_an_earlier_commit_is_that_commits(tmp_path: Path) -> None:
    """The second leg's process imports from its own folder, whatever this one's PYTHONPATH and folder hold."""
    lane = tmp_path / "earlier" / "harness" / "lane"
    lane.mkdir(parents=True)
    (lane / "__main__.py").write_text(f"import sys\nsys.exit({SAYS!r})\n")
    (lane.parent / "__init__.py").touch()
    ended = run_lane(tmp_path / "run", {"PYTHONPATH": str(ROOT)}, root=tmp_path / "earlier")
    assert ended.exit_code == 1 and SAYS in ended.report


@pytest.mark.parametrize("safe", ["", "1"])
def test_the_commands_are_those_of_the_checkout_in_which_one_stands(checkout: Path, safe: str, tmp_path: Path) -> None:
    """`harness run` too: this Python would import the first checkout's where it may not look into the folder."""
    environ = clean_environ(RUN_GIT_SYNC="maybe", PYTHONSAFEPATH=safe)
    words = [sys.executable, "-m", "harness", "run"]
    done = subprocess.run(words, cwd=checkout / "tests", env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 11 and "root_cause: RUN_GIT_SYNC='maybe'" in done.stdout, done
    assert (checkout / "artifacts" / "train_report.txt").exists()
    shutil.rmtree(checkout / "artifacts")


def test_no_other_code_is_tested_where_python_looks_nowhere(checkout: Path) -> None:
    """-I leaves out PYTHONPATH: then it is refused, and does not begin again for ever."""
    words = [sys.executable, "-I", *LINKED]
    done = subprocess.run(words, cwd=checkout, env=clean_environ(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 4 and str(checkout) in done.stderr and "Traceback" not in done.stderr

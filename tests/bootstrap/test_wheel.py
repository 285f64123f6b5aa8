"""The built wheel in a fresh virtual environment and an empty project: plugin, options, fixtures and gates are there.

Nothing is downloaded: a `.pth` file lends the new environment this one's packages (torch and so on). Python follows a
`.pth` file no further than to the folder that it names, so that an editable installation of this checkout does not
come along: what is tested is the wheel.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from bare_machine import clean_environ, harness

from harness.bootstrap.command_line import COMMANDS

pytestmark = pytest.mark.bootstrap

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "tests" / "other_lanes"


def call(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LANE_", "CI"))}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-6000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files behind
    shutil.copytree(ROOT / "harness", source / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    call(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    interpreter = folder / "venv" / "bin" / "python"
    call(sys.executable, "-m", "pip", "--python", interpreter, "install", "--no-deps", wheel, cwd=folder)
    site = Path(call(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def test_three_lines_in_an_empty_project(python: Path, tmp_path: Path) -> None:
    found = call(python, "-c", "import harness; print(harness.__file__)", cwd=tmp_path)
    assert found.startswith(str(python.parents[1])), "the checkout is imported, and not the wheel"
    for name in ("sounds.py", "plain_numpy.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    (tmp_path / "out").mkdir()
    make = "from pathlib import Path; from sounds import write_sound; write_sound(Path('a.wav'), 220)"
    call(python, "-c", f"import sys; sys.path.insert(0, '.'); {make}", cwd=tmp_path)
    # The three lines.
    (tmp_path / "pyproject.toml").write_text(
        "[tool.harness.lanes]\n"
        'mine = {command = ["{python}", "plain_numpy.py", "a.wav", "out"], checkpoint = "out/voice.npz"}\n'
    )
    (tmp_path / "test_lane.py").write_text("from harness.gates import *\n")
    reason = "the first result"
    text = call(
        python, "-m", "pytest", "-m", "smoke", "--lane", "mine", "--snapshot-update", "--baseline-reason", reason,
        cwd=tmp_path,
    )  # fmt: skip
    assert "5 passed" in text and "recorded " in text and "the table of lane mine names no audio" in text
    text = call(python, "-O", "-m", "pytest", "-m", "smoke", "--lane", "mine", cwd=tmp_path)
    assert "verdict: match" in text
    # The gates are rewritten by pytest in the wheel too: they say what they found, and judge under -O.
    script = (tmp_path / "plain_numpy.py").read_text()
    (tmp_path / "plain_numpy.py").write_text(script.replace("default_rng(0)", "default_rng()"))
    with pytest.raises(AssertionError, match="nondeterministic: a second run, at once, gave another checkpoint"):
        call(python, "-O", "-m", "pytest", "-m", "smoke", "--lane", "mine", cwd=tmp_path)


def test_every_command_works_without_a_checkout_and_writes_beside_no_package(python: Path, tmp_path: Path) -> None:
    """With an example lane of the project, in a folder below it, and none of them changes the environment."""
    for name in ("sounds.py", "plain_numpy.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        "[tool.harness.lanes]\n"
        'mine = {command = ["{python}", "plain_numpy.py", "a.wav", "out"], checkpoint = "out/voice.npz"}\n'
    )
    (tmp_path / "test_lane.py").write_text("from harness.gates import *\n")
    (tmp_path / "out").mkdir()
    make = "from pathlib import Path; from sounds import write_sound; write_sound(Path('a.wav'), 220)"
    call(python, "-c", f"import sys; sys.path.insert(0, '.'); {make}", cwd=tmp_path)
    words = ("--lane", "mine", "--snapshot-update", "--baseline-reason", "the first result")
    call(python, "-m", "pytest", "-m", "smoke", *words, cwd=tmp_path)
    (recorded,) = (tmp_path / "baselines" / "mine").glob("*.json")
    below = tmp_path / "below"
    below.mkdir()
    before = files(python)
    run = "../artifacts/mine"
    expected = {
        ("baseline", "list"): (0, recorded.name),
        ("baseline", "show"): (0, "mine lane"),
        ("explain", run, str(recorded)): (0, "the recorded result"),
        ("explain", run, run): (0, "no difference"),
        ("summary", run): (0, "match"),
        ("doctor",): (0, "mine: runs"),
        ("listen", run): (1, "report.html"),  # there is nothing to hear of this lane
        ("changed", "--base", "HEAD"): (0, "lane changed: yes"),
        ("generate", "--checkpoint", "gone.pt", "--out", "voice.wav"): (1, "gone.pt: found no such file"),
        ("promotion-check", "."): (1, "bundle_missing"),
        ("run",): (11, "pytest -m smoke"),
        ("test",): (11, "pytest -m smoke"),
        ("bootstrap",): (11, "pytest -m smoke"),
    }
    for command, (code, says) in expected.items():
        done = harness(below, *command, python=[str(python)], environ=clean_environ())
        said = done.stdout + done.stderr
        assert done.returncode == code and says in said and "Traceback" not in said, f"{command}: {said}"
    assert {command[0] for command in expected} == set(COMMANDS), "a command is missing here"
    assert files(python) == before and not list(below.iterdir())


def files(python: Path) -> set[Path]:
    """What lies in the interpreter's environment, but what Python compiles for itself."""
    return {path for path in python.parents[1].rglob("*") if path.suffix != ".pyc" and path.name != "__pycache__"}


def test_the_promotion_check_knows_the_recordings_and_writes_nothing(python: Path, tmp_path: Path) -> None:
    before = files(python)
    check = [python, "-m", "harness", "promotion-check", tmp_path, "--json"]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    found = json.loads(done.stdout)
    assert {refusal["code"] for refusal in found["refusals"]} == {"status_missing", "dataset_missing", "bundle_missing"}
    assert done.returncode == 1 and files(python) == before and not list(tmp_path.iterdir())

"""The whole set-up in throw-away environments: it installs torch and audiocraft, several hundred MB each time.

Not in the default suite; ``pytest -m bootstrap`` runs it, in some minutes, and needs a package index.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bare_machine import BARE_PYTHON, clean_environ, copy_checkout, harness, no_index

from harness.bootstrap.installed import ask_interpreter, installed_versions

pytestmark = [pytest.mark.bootstrap, pytest.mark.timeout(1500)]

if sys.version_info[:2] != (3, 11):
    pytest.skip("torch from the index brings several GB of CUDA packages on this Python", allow_module_level=True)

# Imports audiocraft as the lane does, and says where from and how it was told to.
WHERE_FROM = """
import os
from harness.lane.audiocraft_import import prepare_audiocraft
prepare_audiocraft(transformers=False)
from audiocraft.models import musicgen
print(os.environ.get("AUDIOCRAFT_IMPORT"), musicgen.__file__)
"""

# Starts that in the interpreter and with the environment a command gets.
AS_A_COMMAND_DOES = """
import os, subprocess
from pathlib import Path
from harness.bootstrap.commands import prepare
setup = prepare(dict(os.environ), Path.cwd())
subprocess.run([setup.python, "-c", {code!r}], env=setup.child_environ(dict(os.environ)), check=True)
"""


def environ(**changes: str) -> dict[str, str]:
    """As the person who runs the tests has set up pip, and nothing else of theirs."""
    own = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    return clean_environ(**own, **changes)


def packages(python: Path) -> dict[str, str]:
    return installed_versions(ask_interpreter(python).folders)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout that was set up once, on a bare machine; some minutes."""
    checkout = copy_checkout(tmp_path_factory.mktemp("bare"))
    started = time.monotonic()
    done = harness(checkout, "bootstrap", environ=environ(), timeout=1200)
    print(f"\n{done.stdout}\nfirst set-up: {time.monotonic() - started:.1f} s")
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout


@pytest.fixture
def active(ready: Path, tmp_path: Path) -> Path:
    """Somebody's environment with a torch of its own and nothing of the project, made of the one above."""
    where = tmp_path / "active"
    subprocess.run([BARE_PYTHON[0], "-m", "venv", where], check=True)
    target = next(where.glob("lib/python3.*/site-packages"))
    source = next((ready / ".venv").glob("lib/python3.*/site-packages"))
    shutil.rmtree(target)
    # Hard links: the copy costs no space. pip replaces files and never writes into them.
    shutil.copytree(source, target, copy_function=lambda a, b: Path(b).hardlink_to(a), symlinks=True)
    python = where / "bin" / "python"
    gone = ["voice-lane-harness", "audiocraft", "syrupy", "einops", "flashy"]
    subprocess.run([python, "-m", "pip", "uninstall", "-y", "-q", *gone], check=True, capture_output=True)
    return python


def test_the_bare_machine_is_set_up(ready: Path) -> None:
    have = packages(ready / ".venv" / "bin" / "python")
    assert have["torch"].startswith("2.13.0") and have["audiocraft"] == "1.3.0"
    assert not {"xformers", "spacy", "transformers", "ruff", "mypy", "pytest-xdist", "pytest-cov"} & set(have)
    assert not (ready / "artifacts").exists(), "a set-up that worked leaves no logs"
    state = json.loads((ready / ".venv" / "voice-lane-setup.json").read_text())
    assert state["audiocraft"] == {"import": "installed", "source": None}


def test_a_second_call_changes_nothing_and_says_nothing_of_it(ready: Path) -> None:
    state = ready / ".venv" / "voice-lane-setup.json"
    before = state.stat().st_mtime_ns
    done = harness(ready, "bootstrap", environ=no_index())
    assert done.returncode == 0 and done.stdout.startswith("Ready: ") and state.stat().st_mtime_ns == before


def test_what_is_gone_comes_back(ready: Path) -> None:
    python = ready / ".venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "uninstall", "-y", "-q", "treetable"], check=True, capture_output=True)
    done = harness(ready, "bootstrap", environ=environ(), timeout=600)
    assert done.returncode == 0 and "will install 1 packages: treetable==" in done.stdout
    assert "treetable" in packages(python)


def test_what_is_declared_otherwise_is_linked_again(ready: Path) -> None:
    text = (ready / "pyproject.toml").read_text()
    (ready / "pyproject.toml").write_text(text.replace('version = "0.1.0"', 'version = "0.1.1"', 1))
    done = harness(ready, "bootstrap", environ=environ(), timeout=600)
    assert done.returncode == 0 and "link this checkout" in done.stdout
    assert packages(ready / ".venv" / "bin" / "python")["voice-lane-harness"] == "0.1.1"


def test_an_active_environment_is_added_to_and_nothing_in_it_changes(ready: Path, active: Path) -> None:
    before = packages(active)
    done = harness(ready, "bootstrap", environ=environ(), python=[str(active)], timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    after = packages(active)
    assert {name: after.get(name) for name in before} == before
    assert {"voice-lane-harness", "audiocraft", "syrupy", "einops", "flashy"} <= set(after) - set(before)
    assert f"stays as it is: torch {before['torch']}, numpy {before['numpy']}" in done.stdout
    assert "torch==" not in done.stdout


def test_colab_is_used_as_it_is(active: Path, tmp_path: Path) -> None:
    """Colab's interpreter is no virtual environment, and has packages: a copy of this machine's, with those of
    ``active``."""
    checkout, base = copy_checkout(tmp_path), tmp_path / "usr"
    shutil.copytree(
        sys.base_prefix,
        base,
        symlinks=True,
        ignore=shutil.ignore_patterns("site-packages", "test", "__pycache__", "*.a"),
        copy_function=lambda a, b: Path(b).hardlink_to(a) if Path(a).suffix else shutil.copy2(a, b),
    )
    packages_folder = next(active.parents[1].glob("lib/python3.*/site-packages"))
    shutil.move(packages_folder, base / packages_folder.relative_to(active.parents[1]))
    python = base / "bin" / "python3"
    before = packages(python)
    assert ask_interpreter(python).prefix == base
    done = harness(
        checkout, "bootstrap", environ=environ(COLAB_RELEASE_TAG="release-colab"), python=[str(python)], timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Set-up: Colab: its Python ({base})" in done.stdout and (base / "voice-lane-setup.json").exists()
    after = packages(python)
    assert {name: after.get(name) for name in before} == before and after["audiocraft"] == "1.3.0"
    again = harness(checkout, "bootstrap", environ=no_index(COLAB_RELEASE_TAG="release-colab"), python=[str(python)])
    assert again.returncode == 0 and again.stdout.startswith("Ready: ")


def test_a_package_of_somebody_that_is_too_old_blocks_and_stays(ready: Path, active: Path) -> None:
    subprocess.run(
        [active, "-m", "pip", "install", "-q", "--no-deps", "pytest==7.4.4"],
        env=environ(),
        check=True,
        capture_output=True,
    )
    before = packages(active)
    done = harness(ready, "run", environ=environ(), python=[str(active)])
    assert done.returncode == 11 and "pytest==7.4.4" in done.stdout and "pytest>=8.4" in done.stdout
    assert packages(active) == before


@pytest.fixture
def source(ready: Path, tmp_path: Path) -> Path:
    """A checkout of audiocraft: the installed package's files with a setup.py."""
    where = tmp_path / "audiocraft-checkout"
    installed = next((ready / ".venv").glob("lib/python3.*/site-packages/audiocraft"))
    shutil.copytree(installed, where / "audiocraft", ignore=shutil.ignore_patterns("__pycache__"))
    (where / "setup.py").write_text(
        "from setuptools import find_packages, setup\n"
        "setup(name='audiocraft', version='1.4.0a2', packages=find_packages())\n"
    )
    return where


@pytest.mark.parametrize(
    ("editable", "broken", "way"),
    [
        ("1", False, "editable"),
        ("auto", False, "editable"),
        ("auto", True, "pythonpath"),
        ("0", False, "pythonpath"),
    ],
)
def test_audiocraft_from_a_checkout(
    ready: Path, active: Path, source: Path, editable: str, broken: bool, way: str
) -> None:
    if broken:
        (source / "setup.py").write_text("raise RuntimeError('this checkout does not build')\n")
    asked = environ(AUDIOCRAFT_SOURCE=str(source), INSTALL_AUDIOCRAFT_EDITABLE=editable)
    done = harness(ready, "bootstrap", environ=asked, python=[str(active)], timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"(audiocraft: {way})" in done.stdout
    state = json.loads((active.parents[1] / "voice-lane-setup.json").read_text())
    assert state["audiocraft"]["import"] == way and state["audiocraft"]["source"] == str(source)
    # What a command's child sees, on a second call as well.
    code = AS_A_COMMAND_DOES.format(code=WHERE_FROM)
    seen = subprocess.run([active, "-c", code], cwd=ready, env=asked, capture_output=True, text=True)
    assert seen.stdout.split() == [way, str(source / "audiocraft" / "models" / "musicgen.py")], seen.stderr


def test_an_editable_install_that_must_work_and_does_not_is_a_failed_step(
    ready: Path, active: Path, source: Path
) -> None:
    (source / "setup.py").write_text("raise RuntimeError('this checkout does not build')\n")
    asked = environ(AUDIOCRAFT_SOURCE=str(source), INSTALL_AUDIOCRAFT_EDITABLE="1", LANE_RUN_DIR=str(source / "run"))
    done = harness(ready, "run", environ=asked, python=[str(active)])
    assert done.returncode == 10
    assert "first_failed_step: audiocraft\n" in done.stdout and "--no-build-isolation --editable" in done.stdout
    log = (source / "run" / "colab_bootstrap_stderr.log").read_text()
    assert "this checkout does not build" in log + (source / "run" / "colab_bootstrap_stdout.log").read_text()


def test_back_from_a_checkout_to_the_package(ready: Path, active: Path, source: Path) -> None:
    asked = environ(AUDIOCRAFT_SOURCE=str(source), INSTALL_AUDIOCRAFT_EDITABLE="1")
    assert harness(ready, "bootstrap", environ=asked, python=[str(active)], timeout=600).returncode == 0
    done = harness(ready, "bootstrap", environ=environ(), python=[str(active)], timeout=600)
    assert "will replace audiocraft 1.4.0a2 by 1.3.0" in done.stdout and done.returncode == 0
    assert packages(active)["audiocraft"] == "1.3.0"


@pytest.mark.parametrize("scheme", ["silent", "unroutable"])
def test_an_index_that_never_answers_is_given_up(ready: Path, active: Path, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        index = f"http://127.0.0.1:{port}/simple" if scheme == "silent" else "https://10.255.255.1/simple"
        asked = no_index(LANE_RUN_DIR=str(active.parents[1] / "run"))
        environ = {**asked, "PIP_INDEX_URL": index}
        done = harness(ready, "run", environ=environ, python=[str(active)], timeout=60)  # without a limit: minutes
    assert done.returncode == 11 and "root_cause: no network: pip could not reach the package index for" in done.stdout

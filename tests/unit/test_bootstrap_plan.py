"""What the set-up decides to install: pip is asked for real, in an environment of empty packages, without an index."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pip
import pytest
from bare_machine import BARE_PYTHON, ROOT, no_index

from harness.bootstrap import plan as module
from harness.bootstrap.errors import SetupError
from harness.bootstrap.installed import ask_interpreter, installed_versions
from harness.bootstrap.plan import Plan, kept, lacking, make_plan, requirements
from harness.bootstrap.steps import Finished, SetupLog
from harness.bootstrap.target import MINIMUM_TORCH

PROJECT = """
[project]
dependencies = ["torch>=2.6", "numpy>=2.0", "pytest>=8.4"]
optional-dependencies.test = ["ruff>=0.9"]
"""
COMPLETE = {"torch": "2.9.1+cu126", "numpy": "2.0.2", "pytest": "8.4.2", "jax": "0.7.2"}


def metadata(name: str, version: str, needs: Sequence[str] = ()) -> str:
    return "".join(
        [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", *(f"Requires-Dist: {n}\n" for n in needs)]
    )


class Machine:
    """A project, an environment, and a folder of packages in place of an index."""

    def __init__(self, where: Path) -> None:
        self.root, self.index = where / "project", where / "index"
        self.root.mkdir()
        self.index.mkdir()
        (self.root / "pyproject.toml").write_text(PROJECT)
        subprocess.run([BARE_PYTHON[0], "-m", "venv", "--without-pip", where / "env"], check=True)
        self.python = where / "env" / "bin" / "python"
        (self.site,) = ask_interpreter(self.python).folders
        (self.site / "pip").symlink_to(Path(pip.__file__).parent)
        offered = {"torch": "2.13.0", "numpy": "2.4.6", "pytest": "9.2.0", "ruff": "0.15.0", "setuptools": "84.2.1"}
        for name, version in offered.items():
            with zipfile.ZipFile(self.index / f"{name}-{version}-py3-none-any.whl", "w") as file:
                needs = ["setuptools>=77"] if name == "torch" else []
                file.writestr(f"{name}-{version}.dist-info/METADATA", metadata(name, version, needs))
                file.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
                file.writestr(f"{name}-{version}.dist-info/RECORD", "")

    def hold(self, versions: dict[str, str]) -> None:
        """Have these installed, and nothing else."""
        for folder in self.site.glob("*.dist-info"):
            shutil.rmtree(folder)
        for name, version in versions.items():
            folder = self.site / f"{name}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(metadata(name, version))
            (folder / "RECORD").touch()

    def plan(self, *, is_own: bool, tests: bool = False, **environ: str) -> Plan:
        have = installed_versions([self.site])
        asked = no_index(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(self.index)) | environ
        return make_plan(self.python, self.root, have, is_own=is_own, tests=tests, log=SetupLog(), environ=asked)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("plan"))


def test_a_bare_environment_gets_torch_by_its_exact_version_and_all_else(machine: Machine) -> None:
    machine.hold({"setuptools": "65.5.0"})
    plan = machine.plan(is_own=True)
    assert set(plan.packages) == {"torch==2.13.0", "numpy==2.4.6", "pytest==9.2.0", "setuptools==84.2.1"}
    assert plan.replaced == {"setuptools": ("65.5.0", "84.2.1")} and machine.plan(is_own=False) == plan
    assert set(machine.plan(is_own=True, tests=True).packages) - set(plan.packages) == {"ruff==0.15.0"}


def test_nothing_to_do_takes_no_index(machine: Machine) -> None:
    machine.hold(COMPLETE)
    for is_own in (True, False):
        assert machine.plan(is_own=is_own, PIP_FIND_LINKS="") == Plan((), {})
    assert lacking(machine.python, requirements(machine.root, tests=False), machine.root) == ""
    assert lacking(machine.python, requirements(machine.root, tests=True), machine.root) == "ruff>=0.9"


@pytest.mark.parametrize("torch", ["2.5.1", "2.6.0a0+df5bbc09d1.nv24.11", "1.13"])
@pytest.mark.parametrize("is_own", [True, False])
def test_an_older_torch_blocks_and_is_not_replaced(machine: Machine, torch: str, is_own: bool) -> None:
    machine.hold({**COMPLETE, "torch": torch})
    with pytest.raises(SetupError) as caught:
        machine.plan(is_own=is_own)
    assert caught.value.blocked and "torch>=2.6" in caught.value.cause and f"torch=={torch}" in caught.value.cause


def test_a_package_of_somebody_is_not_replaced_and_named(machine: Machine) -> None:
    machine.hold({**COMPLETE, "pytest": "7.4.0"})
    with pytest.raises(SetupError) as caught:
        machine.plan(is_own=False)
    assert caught.value.blocked and "pytest>=8.4" in caught.value.cause and "pytest==7.4.0" in caught.value.cause
    plan = machine.plan(is_own=True)
    assert plan == Plan(("pytest==9.2.0",), {"pytest": ("7.4.0", "9.2.0")})


def test_no_plan_of_pips_replaces_what_is_kept(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever pip makes of the constraints: of a version, for instance, that it does not understand."""

    def resolved(python: Path, words: Sequence[str | Path], log: SetupLog, **_: object) -> Finished:
        report = Path(words[words.index("--report") + 1])
        report.write_text(json.dumps({"install": [{"metadata": {"name": "Jax", "version": "0.8"}}]}))
        return Finished("pip", 0, [], [])

    monkeypatch.setattr(module, "run_pip", resolved)
    machine.hold({**COMPLETE, "jax": "dev"})
    with pytest.raises(SetupError, match=r"jax dev by 0\.8"):
        machine.plan(is_own=False)
    assert machine.plan(is_own=True).packages == ("jax==0.8",)


def test_what_is_kept() -> None:
    have = {"torch": "2.9", "numpy": "2.0", "audiocraft": "1.2", "voice-lane-harness": "0.0", "setuptools": "65"}
    assert kept(have, is_own=True) == {"torch": "2.9"}
    assert set(kept(have, is_own=False)) == {"torch", "numpy", "setuptools"}
    del have["torch"]
    assert set(kept(have, is_own=False)) == {"numpy"} and kept(have, is_own=True) == {}


def test_the_torch_that_is_looked_for_is_the_one_that_is_declared() -> None:
    (line,) = [line for line in requirements(ROOT, tests=False) if re.match(r"torch\b", line)]
    assert line == "torch>={}.{}".format(*MINIMUM_TORCH)
    tools = {"mypy", "ruff", "pytest-xdist", "pytest-cov", "check-jsonschema"}
    names = {re.split(r"\W", line.replace("-", "_"))[0] for line in requirements(ROOT, tests=False)}
    assert not {tool.replace("-", "_") for tool in tools} & names, f"{sys.executable}: a run does not need these"

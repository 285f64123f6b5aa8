"""What a set-up installs: pip finds it out (``--dry-run``), and here it is held against what may be changed."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.bootstrap.errors import SetupError
from harness.bootstrap.installed import normalise
from harness.bootstrap.pip import OWN_ENVIRONMENT, pip_environment, pip_failure, run_pip
from harness.bootstrap.ready import PROJECT
from harness.bootstrap.steps import SetupLog, run_command

AUDIOCRAFT_VERSION = "1.3.0"
TORCH_VERSION = "2.13.0"


@dataclass(frozen=True)
class Plan:
    """Packages to install, ``name==version`` each; and what of it replaces another version, name -> (old, new)."""

    packages: tuple[str, ...]
    replaced: Mapping[str, tuple[str, str]]


def requirements(root: Path, *, tests: bool) -> list[str]:
    """What pyproject.toml asks for; with ``tests`` also what the suite needs beyond a run."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(project["optional-dependencies"]["test"] if tests else [])]


def needed(root: Path, installed: Mapping[str, str], *, tests: bool) -> list[str]:
    """What pip is asked for. Where no torch is there it is one version of it, and the first thing that is looked up."""
    torch = [] if "torch" in installed else [f"torch=={TORCH_VERSION}"]
    return [*torch, *requirements(root, tests=tests)]


def kept(installed: Mapping[str, str], *, is_own: bool) -> dict[str, str]:
    """What no set-up replaces, name -> version: torch, and in an environment that is somebody's all that is there.

    Where torch has to be installed setuptools may change too: torch does not install beside the one that a fresh
    virtual environment of Python 3.11 comes with.
    """
    changeable = {PROJECT, "audiocraft"} | (set() if "torch" in installed else {"setuptools"})
    names = {"torch"} & set(installed) if is_own else set(installed) - changeable
    return {name: installed[name] for name in sorted(names)}


def make_plan(
    python: Path, root: Path, installed: Mapping[str, str], *, is_own: bool, tests: bool, log: SetupLog,
    environ: dict[str, str],
) -> Plan:  # fmt: skip
    """Have pip resolve what is needed beside what is kept; nothing is installed. Raises SetupError."""
    stays = kept(installed, is_own=is_own)
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder) / "constraints.txt", Path(folder) / "report.json"
        # What pip does not take for a version it cannot be held to; that it replaces it is seen below.
        lines = [f"{name}=={version}\n" for name, version in stays.items() if version[:1].isdigit()]
        constraints.write_text("".join(lines), encoding="utf-8")
        words: list[str | Path] = ["install", "--dry-run", "--report", report, "--constraint", constraints]
        done = run_pip(python, [*words, *needed(root, installed, tests=tests)], log, root=root, environ=environ)
        if done.code != 0 or done.gave_up:
            raise pip_failure(done, "packages", "what the project needs")
        found = [entry["metadata"] for entry in json.loads(report.read_text(encoding="utf-8"))["install"]]
    versions = {normalise(package["name"]): package["version"] for package in found}
    replaced = {name: (installed[name], version) for name, version in versions.items() if name in installed}
    if lost := ", ".join(f"{name} {installed[name]} by {replaced[name][1]}" for name in replaced if name in stays):
        raise SetupError(
            "packages",
            f"it would replace {lost}; what is there is never replaced",
            f"use an environment of its own, with a torch of its own: {OWN_ENVIRONMENT}",
            blocked=True,
        )
    return Plan(tuple(f"{name}=={version}" for name, version in versions.items()), replaced)


def lacking(python: Path, needs: Sequence[str], folder: Path) -> str:
    """The first of ``needs`` that an interpreter lacks, or has in another version; "" where it has them all. pip is
    asked without an index: nothing is fetched, and nothing changed."""
    words: list[str | Path] = [python, "-m", "pip", "install", "--dry-run", "--no-index", "--quiet", *needs]
    done = run_command(words, SetupLog(), cwd=folder, environ=pip_environment(dict(os.environ)))
    if done.code == 0:
        return ""
    said = re.search(r"No matching distribution found for (.+)", "".join(done.stderr))
    return said[1].strip() if said else pip_failure(done, "packages", "what is needed").cause

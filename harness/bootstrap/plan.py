"""Decides what a set-up has to change. Looks at what is installed and touches nothing."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.bootstrap.errors import SetupError
from harness.bootstrap.versions import Requirement, normalise, parse_requirement

PROJECT = "voice-lane-harness"
AUDIOCRAFT_VERSION = "1.3.0"
TORCH_VERSION = "2.13.0"
EXTRA = "test"
OWN_ENVIRONMENT = "python3 -m venv .venv && .venv/bin/python -m harness run"
# torch 2.13.0 asks for it; a fresh virtual environment of Python 3.11 comes with 65.5.
SETUPTOOLS_FOR_TORCH = parse_requirement("setuptools>=77.0.3")


@dataclass(frozen=True)
class Action:
    """One change: ``words`` are printed before it happens, ``step`` names it in the report when it fails."""

    step: str
    words: str
    package: str


@dataclass(frozen=True)
class Plan:
    """The changes in order, and what somebody might fear for and is left alone."""

    actions: tuple[Action, ...]
    left_alone: tuple[str, ...]


def read_requirements(pyproject: Path) -> list[Requirement]:
    """The project's dependencies with those of the extra that the set-up installs."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"][EXTRA]]
    return [parse_requirement(line) for line in lines]


def make_plan(
    requirements: list[Requirement],
    installed: Mapping[str, str],
    *,
    is_own: bool,
    project_is_linked: bool,
    vanished: tuple[str, ...] = (),
    audiocraft: str = "package",
    audiocraft_source: Path | None = None,
) -> Plan:
    """Compare what is needed with what is ``installed``.

    ``is_own``: the environment was made by the set-up. In any other one, a package outside its range is not replaced:
    that raises SetupError, which names all of them. torch is never replaced, not even in an own environment.
    ``project_is_linked``: the project is installed, editable, from this checkout.
    ``vanished``: packages that an earlier set-up left behind and that are gone.
    ``audiocraft``: "package" (1.3.0 from the index), "editable" or "pythonpath" (from ``audiocraft_source``).
    """
    missing = [need for need in requirements if need.name not in installed]
    outside = [need for need in requirements if need.name in installed and not need.accepts(installed[need.name])]
    torch = next(need for need in requirements if need.name == "torch")
    if torch in outside:
        raise SetupError(
            "torch",
            f"torch {installed['torch']} is installed, and this project needs {torch.text}; a torch that is there is"
            " never replaced",
            f"upgrade it yourself (pip install torch=={TORCH_VERSION}), or use another environment: {OWN_ENVIRONMENT}",
            blocked=True,
        )
    if outside and not is_own:
        names = ", ".join(f"{need.name} {installed[need.name]} (needed: {need.text})" for need in outside)
        upgrades = " ".join(f"'{need.text}'" for need in outside)
        raise SetupError(
            "environment",
            f"this environment has {names}; what is there is never replaced",
            f"upgrade yourself (pip install {upgrades}), or have an environment of its own, with a torch of its own:"
            f" {OWN_ENVIRONMENT}",
            blocked=True,
        )

    actions = []
    if torch in missing:
        words = f"install torch=={TORCH_VERSION} (none is there; the largest download)"
        if (have := installed.get("setuptools")) and not SETUPTOOLS_FOR_TORCH.accepts(have):
            words += f", and for it replace setuptools {have} by {SETUPTOOLS_FOR_TORCH.text}"
        actions.append(Action("torch", words, f"torch=={TORCH_VERSION}"))
    others = [need.text for need in missing if need.name != "torch"]
    if others or outside or vanished or not project_is_linked:
        parts = [f"link this checkout as {PROJECT}"] if not project_is_linked else []
        if others:
            parts.append("install " + ", ".join(others) + " and what they need")
        parts += [f"replace {need.name} {installed[need.name]} by {need.text}" for need in outside]
        if vanished:
            parts.append("install again what is gone: " + ", ".join(vanished))
        actions.append(Action("project", "; ".join(parts), PROJECT))

    have = installed.get("audiocraft")
    if audiocraft == "package" and have != AUDIOCRAFT_VERSION:
        words = f"install audiocraft=={AUDIOCRAFT_VERSION} without its dependencies"
        if have:
            words += f", in place of audiocraft {have}"
        actions.append(Action("audiocraft", words, f"audiocraft=={AUDIOCRAFT_VERSION}"))
    elif audiocraft == "editable":
        words = f"install audiocraft from {audiocraft_source}, editable, without its dependencies"
        if have:
            words += f", in place of audiocraft {have}"
        actions.append(Action("audiocraft", words, "audiocraft"))

    kept = [name for name in ("torch", "numpy", "transformers") if name in installed]
    kept = [name for name in kept if name not in {need.name for need in outside}]
    return Plan(tuple(actions), tuple(f"{name} {installed[name]}" for name in kept))


def constraints(installed: Mapping[str, str], *, is_own: bool) -> str:
    """The text of a constraints file for pip that keeps packages as they are.

    In an own environment that is torch; in any other one everything but this project and audiocraft. Where torch has
    to be installed, setuptools may change too: torch does not install beside the one of a fresh environment.
    """
    changeable = {normalise(PROJECT), "audiocraft"}
    if "torch" not in installed:
        changeable.add("setuptools")
    keep = {"torch"} if is_own else set(installed) - changeable
    return "".join(f"{name}=={installed[name]}\n" for name in sorted(keep) if name in installed)

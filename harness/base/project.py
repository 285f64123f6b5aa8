"""Where one stands: the project that a command is about, and this project's checkout, if it is one. Standard library
only."""

from __future__ import annotations

import os
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]  # the folder that this package was imported from; nothing is written there


def project_folder() -> Path:
    """The nearest folder with a pyproject.toml, from the current one upwards; the current one where there is none."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "pyproject.toml").is_file()), here)


def is_checkout(folder: Path) -> bool:
    """Whether a folder is a checkout of this project: an installed package has no pyproject.toml beside it."""
    return (folder / "pyproject.toml").is_file() and (folder / "harness" / "bootstrap" / "command_line.py").is_file()


def checkout_here() -> Path | None:
    """The checkout of this project in which one stands."""
    folder = project_folder().resolve()
    return folder if is_checkout(folder) else None


def as_typed(path: Path) -> Path:
    """A path as one types it here: relative, where it lies below the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def default_run_dir() -> Path:
    """The run directory of a command line that names none: LANE_RUN_DIR, else the project's artifacts."""
    named = os.environ.get("LANE_RUN_DIR")
    return Path(named) if named else as_typed(project_folder() / "artifacts")


def default_baselines() -> Path:
    """The folder of baselines of a command line that names none: the project's."""
    return as_typed(project_folder() / "baselines")


def first_on_path(folder: Path, environ: dict[str, str]) -> dict[str, str]:
    """``environ`` for a Python that is to import this package, and what else lies there, from ``folder``."""
    others = [part for part in environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != str(folder)]
    return {**environ, "PYTHONPATH": os.pathsep.join([str(folder), *others])}

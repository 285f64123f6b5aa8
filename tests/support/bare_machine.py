"""A machine that has Python, a copy of the set-up's own files, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Python without site-packages, without PYTHONPATH and without a virtual environment: what a bare machine runs.
BARE_PYTHON = [str(Path(sys.base_prefix) / "bin" / "python3"), "-S", "-E", "-s"]
ASKED_FOR = (
    "PIP_",
    "VIRTUAL_ENV",
    "CONDA_",
    "COLAB_",
    "PYTHON",
    "RUN_",
    "LANE_",
    "AUDIOCRAFT",
    "INSTALL_",
    "EXPECTED_",
)


def clean_environ(**changes: str) -> dict[str, str]:
    """This process's environment without what would steer the set-up, pip or the interpreter."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ASKED_FOR)}
    return {**environ, "NO_COLOR": "1", **changes}


def no_index(**changes: str) -> dict[str, str]:
    """An environment in which pip knows one index, and nobody listens there."""
    return clean_environ(PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL="http://127.0.0.1:9/simple", **changes)


def copy_checkout(where: Path) -> Path:
    """The files that the set-up consists of and works on, in a checkout of their own."""
    checkout = where / "checkout"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "harness", checkout / "harness", ignore=ignore)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy2(ROOT / name, checkout / name)
    return checkout


def harness(
    checkout: Path, *words: str, environ: dict[str, str], python: list[str] | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """``python3 -m harness WORDS`` in ``checkout``."""
    return subprocess.run(
        [*(python or BARE_PYTHON), "-m", "harness", *words],
        cwd=checkout,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )

"""Which interpreter is set up: the one that is active, Colab's own, or the checkout's ``.venv``."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

MINIMUM_PYTHON = (3, 11)


@dataclass(frozen=True)
class Target:
    """``kind`` is "active", "colab" or "own". Only an "own" environment is created, and only there is a package
    replaced by another version; the two others belong to somebody, and are only added to."""

    kind: str
    prefix: Path

    @property
    def python(self) -> Path:
        if self.prefix == Path(sys.prefix):
            return Path(sys.executable)
        return self.prefix / "bin" / "python"

    @property
    def is_own(self) -> bool:
        return self.kind == "own"


def is_colab(environ: dict[str, str]) -> bool:
    """Colab sets these in every process of a notebook."""
    return bool(environ.get("COLAB_RELEASE_TAG") or environ.get("COLAB_BACKEND_VERSION"))


def choose_target(environ: dict[str, str], root: Path) -> Target:
    """An active environment comes first, then Colab's interpreter, then ``.venv`` in the checkout.

    Active is: this process runs in a virtual environment, or VIRTUAL_ENV names one, or this is a conda environment
    other than "base".
    """
    own = root / ".venv"
    prefix = Path(sys.prefix)
    in_environment = sys.prefix != sys.base_prefix
    if not in_environment and (named := environ.get("VIRTUAL_ENV")) and os.access(f"{named}/bin/python", os.X_OK):
        prefix, in_environment = Path(named), True
    if environ.get("CONDA_PREFIX") == sys.prefix and environ.get("CONDA_DEFAULT_ENV", "base") != "base":
        in_environment = True
    if in_environment:
        # The checkout's own environment stays its own when it is active.
        return Target("own" if prefix.resolve() == own.resolve() else "active", prefix)
    if is_colab(environ):
        return Target("colab", prefix)
    return Target("own", own)

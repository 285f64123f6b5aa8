"""Which interpreter is set up: the one that is active, one that came with its torch, or the checkout's ``.venv``."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from harness.bootstrap.installed import installed_versions

MINIMUM_PYTHON = (3, 11)
MINIMUM_TORCH = (2, 6)  # as pyproject.toml says
# A service that lends its interpreter says so by one of these, in every process of a notebook.
SERVICES = {
    "COLAB_RELEASE_TAG": "Colab",
    "COLAB_BACKEND_VERSION": "Colab",
    "KAGGLE_KERNEL_RUN_TYPE": "Kaggle",
    "DATABRICKS_RUNTIME_VERSION": "Databricks",
    "SAGEMAKER_INTERNAL_IMAGE_URI": "SageMaker",
    "DEEPNOTE_PROJECT_ID": "Deepnote",
    "JUPYTERHUB_USER": "JupyterHub",
}


@dataclass(frozen=True)
class Target:
    """``kind`` is "active", "lent" or "own". Only an "own" environment is created, and only there is a package
    replaced by another version; the two others belong to somebody, and are only added to. ``owner``: who lends it."""

    kind: str
    prefix: Path
    owner: str = ""

    @property
    def python(self) -> Path:
        if self.prefix == Path(sys.prefix):
            return Path(sys.executable)
        return self.prefix / "bin" / "python"

    @property
    def is_own(self) -> bool:
        return self.kind == "own"


def lender(environ: dict[str, str]) -> str:
    """Who lends this interpreter to be installed into; empty if nobody does.

    That is a service, a container image, or conda's "base", if it comes with a torch that the lane can use: there is
    nothing else to gain. One that cannot be written is not lent, nor one that its distribution manages (PEP 668),
    unless by a service, whose own pip installs into it all the same.
    """
    service = next((name for variable, name in SERVICES.items() if environ.get(variable)), "")
    is_base = environ.get("CONDA_PREFIX") == sys.prefix
    owner = service or ("conda's base" if is_base else "the container image" if in_container() else "")
    managed = not service and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists()
    if not owner or managed or not os.access(sysconfig.get_path("purelib"), os.W_OK):
        return ""
    return owner if _has_usable_torch() else ""


def in_container() -> bool:
    """Whether this system is a container: Docker, Podman and Kubernetes say so."""
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    return any(mark.exists() for mark in marks) or "KUBERNETES_SERVICE_HOST" in os.environ


def _has_usable_torch() -> bool:
    found = re.match(r"(\d+)\.(\d+)", installed_versions(map(Path, sys.path)).get("torch", ""))
    return found is not None and (int(found[1]), int(found[2])) >= MINIMUM_TORCH


def choose_target(environ: dict[str, str], root: Path) -> Target:
    """An active environment comes first, then ``.venv`` in the checkout if it is there, then an interpreter that is
    lent, then a ``.venv`` that is made.

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
    if not (own / "bin" / "python").exists() and (owner := lender(environ)):
        return Target("lent", prefix, owner)
    return Target("own", own)

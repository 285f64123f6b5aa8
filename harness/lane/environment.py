"""What the run was computed with: for provenance, and for the words that explain a difference."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import resource
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.base.git import GitFailed, git
from harness.lane.settings import REPOSITORY, Settings
from harness.numerics.digest import blob_name, code_digest
from harness.numerics.modes import PIN_NAMES

PACKAGES = ("torch", "numpy", "audiocraft", "soundfile", "julius", "flashy", "einops", "omegaconf", "transformers")


def let_warnings_be_warnings() -> None:
    """Show, and do not raise, what other packages warn of here, whatever PYTHONWARNINGS, -W or pytest's
    `filterwarnings` make of warnings: a newer torch that deprecates something is no failure of the lane."""
    if any(action == "error" for action, *_ in warnings.filters):
        warnings.simplefilter("default")


@functools.cache
def head_commit() -> str:
    """The git commit of the checkout, with ``-dirty`` where tracked files differ from it; ``unknown`` outside git.

    Without git's optional locks: a run that is killed here would leave ``index.lock`` in the user's repository. (The
    one of ``git describe --dirty`` is not optional.)
    """
    try:
        status = git(REPOSITORY, "status", "--porcelain=v2", "--branch", "--untracked-files=no", timeout_s=10.0)
    except (GitFailed, MemoryError):
        return "unknown"
    lines = status.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    dirty = any(not line.startswith("# ") for line in lines)
    return "unknown" if commit == "(initial)" else commit + "-dirty" * dirty


def own_code_digest() -> str:
    """The digest of the files that compute here, the lane's and those of the numerics, as they are on the disk."""
    package = Path(__file__).resolve().parents[1]
    files = [path for folder in ("lane", "numerics") for path in (package / folder).rglob("*.py")]
    return code_digest((path.relative_to(package.parent).as_posix(), blob_name(path.read_bytes())) for path in files)


def package_versions() -> dict[str, str]:
    """Versions of the packages that compute; ``absent`` where one is not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def peak_gpu_memory_bytes() -> int | None:
    """The most that torch has held of the GPU's memory; None where it computed on a CPU."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_allocated())


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far. (``ru_maxrss`` may be the size of the process that started
    this one.)"""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe_environment(settings: Settings, numeric_class: str) -> dict[str, Any]:
    """What ``environment.json`` says. Names of machines and users are left out."""
    import torch

    return {
        "schema": "environment/1",
        "run_id": settings.run_id,
        "lane": "experimental",
        "promotable": False,
        "head_commit": head_commit(),
        "code_digest": own_code_digest(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": package_versions(),
        "numeric_mode": settings.numerics,
        "numeric_class": numeric_class,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "pins": {name: os.environ.get(name) for name in PIN_NAMES},
        "device": torch.cuda.get_device_name() if settings.device == "cuda" else "cpu",
        "attention_backend": settings.attention_backend,
    }

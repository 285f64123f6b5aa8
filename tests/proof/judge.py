"""The lane of a changed checkout, and the gates held against its run: the real ones, in processes forked for them.

What costs seconds and is the same for every checkout (torch, audiocraft, pytest) is imported once, before the fork.
What could differ (everything of this project) is imported afresh, from the changed checkout.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from proof.copies import ROOT, Edit, changed_copy

from harness.numerics.modes import environment_pins

ONE_THREAD = {"LANE_THREADS": "1"}  # what is preloaded was loaded for one, and trials run side by side
CHECKOUT = ("conftest.py", "pyproject.toml", "tests/smoke", "tests/support")


def preload() -> None:
    """Import what every run and judgement needs. Call it once, in a process that has no other threads."""
    os.environ.update(environment_pins("universal", 1))  # before torch is loaded; native mode's are the same on a CPU
    import numpy
    import pytest
    import soundfile
    import torch

    from harness.lane.audiocraft_import import prepare_audiocraft

    torch.set_num_threads(1)
    prepare_audiocraft(transformers=False)
    for name in ("audiocraft.models.musicgen", "syrupy", "julius", "_pytest.assertion.rewrite"):
        importlib.import_module(name)
    assert numpy and pytest and soundfile


def changed_checkout(folder: Path, edits: Sequence[Edit]) -> Path:
    """Like changed_copy, with the gates beside the package."""
    changed_copy(folder, edits)
    for name in CHECKOUT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def forked(
    function: Callable[[], None],
    checkout: Path,
    settings: Mapping[str, str],
    log: Path,
    kill_at: Path | None = None,
) -> None:
    """Call ``function`` in a forked process whose ``harness`` is the checkout's, with its output in ``log``; it is
    killed as soon as there is a file at ``kill_at``."""
    child = os.fork()
    if child:
        while kill_at and os.waitpid(child, os.WNOHANG) == (0, 0):
            if kill_at.exists():
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return
            time.sleep(0.002)
        if not kill_at:
            os.waitpid(child, 0)
        return
    with contextlib.suppress(BaseException):
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(checkout)
        os.environ.update(settings, PYTHONPATH=str(checkout))
        for name in [name for name in sys.modules if name == "harness" or name.startswith("harness.")]:
            del sys.modules[name]
        sys.path.insert(0, str(checkout))
        try:
            function()
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def run_lane(checkout: Path, run_dir: Path, settings: Mapping[str, str], kill_at: str = "") -> None:
    """One run of the checkout's lane. Unlike the launcher's, its process has torch already, with the same pins.
    ``kill_at``: killed as soon as this file is in the run directory."""
    run_dir.mkdir(parents=True, exist_ok=True)

    def lane() -> None:
        # What the lane starts again, where it finds other pins than its own, is the lane, and not what was forked.
        sys.orig_argv[:] = [sys.executable, "-m", "harness.lane"]
        importlib.import_module("harness.lane.__main__").main([])

    pins = environment_pins(settings.get("LANE_NUMERICS", "universal"), 1)
    own = {**ONE_THREAD, **settings, **pins, "LANE_RUN_DIR": str(run_dir)}
    forked(lane, checkout, own, run_dir.with_name("lane-output.txt"), run_dir / kill_at if kill_at else None)


class _Collector:
    """A pytest plugin that keeps each gate's outcome."""

    def __init__(self) -> None:
        self.messages: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.rpartition("::test_")[2]
        if report.when == "call" or report.failed:
            self.messages[name] = (report.longreprtext or "failed without a word") if report.failed else ""


def gates(
    checkout: Path, run_dir: Path, baselines: Path, settings: Mapping[str, str], *, train: bool = False
) -> dict[str, str]:
    """Each gate's message, by its name without ``test_``: empty where it passed.

    ``settings``: environment variables of the session. ``train``: the session runs the lane, into ``run_dir``; else it
    judges the run that lies there. Raises RuntimeError when pytest itself could not do its work.
    """
    collector = _Collector()
    where = f"--lane-run-dir={run_dir}" if train else f"--lane-evidence={run_dir}"
    options = [
        "-q",
        "-m",
        "smoke or whole_recipe",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--tb=short",
        "-c",
        "pyproject.toml",
    ]
    options += [f"--rootdir={checkout}", where, f"--baselines={baselines}", "tests/smoke"]
    with tempfile.TemporaryDirectory(prefix="gates-") as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log"

        def hold() -> None:
            import pytest

            code = pytest.main(options, plugins=[collector])
            if code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and collector.messages:
                answer.write_text(json.dumps(collector.messages))

        forked(hold, checkout, {**ONE_THREAD, **settings}, log)
        if not answer.exists():
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else "no output"
            raise RuntimeError(f"pytest gave no answer for {checkout}:\n{tail}")
        found: dict[str, str] = json.loads(answer.read_text())
        return found

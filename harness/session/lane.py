"""The lane of a test session: which it is, its code, its run directory, and what to type to run its gates again."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from harness.base.lock import Hold
from harness.baselines.baseline import Code
from harness.baselines.second_leg import code_of
from harness.baselines.verdict import GATES_COMMAND
from harness.bootstrap.report import REPORT_SHOWN
from harness.evidence import EvidenceError
from harness.present.facts import load_here
from harness.runs.footprint import Footprint
from harness.runs.table import PAGE, Lane, LaneTableError, default_lane, find_lane, read_lanes

LANE = pytest.StashKey[Lane | None]()
HOLD = pytest.StashKey[Hold]()
CODE = pytest.StashKey[Code]()


def session_lane(config: pytest.Config) -> Lane | None:
    """The lane that this session runs: `--lane`'s, else the default one of the project; with `--lane-evidence` the one
    whose run that is. None where there is none. Raises LaneTableError."""
    if LANE not in config.stash:
        if name := config.getoption("--lane"):
            config.stash[LANE] = find_lane(config.rootpath, name)
        elif config.getoption("--lane-evidence"):
            config.stash[LANE] = read_lanes(config.rootpath).get(load_here(run_directory(config)).name)
        else:
            config.stash[LANE] = default_lane(config.rootpath)
    return config.stash[LANE]


def lane_to_run(config: pytest.Config) -> Lane:
    """The same, where there must be one. Raises LaneTableError."""
    if (lane := session_lane(config)) is not None:
        return lane
    where = config.rootpath / "pyproject.toml"
    if known := ", ".join(read_lanes(config.rootpath)):
        expected = f"default = true in one of {known}, or --lane=NAME"
        raise LaneTableError(f"{where}: found no lane that is marked as default, expected {expected}")
    raise LaneTableError(f"{where}: found no lane, expected a table [tool.harness.lanes.NAME]; see {PAGE}")


def promises(config: pytest.Config, what: str) -> bool:
    """Whether the session's run leaves this in the format of docs/evidence.md, and is held to it."""
    if config.getoption("--lane-evidence"):
        try:
            return load_here(run_directory(config)).promises(what)
        except EvidenceError:
            return False
    lane = session_lane(config)
    return lane is not None and what in lane.formats


def lane_code(config: pytest.Config) -> Code:
    """The code of the session's lane as it was when the run began; its digest is empty where the table names none."""
    if CODE not in config.stash:
        lane = session_lane(config)
        if lane is None or not lane.table.code:
            config.stash[CODE] = dataclasses.replace(code_of(config.rootpath, (), ""), digest="")
        else:
            config.stash[CODE] = code_of(config.rootpath, lane.code_paths, lane.table.code_suffix)
    return config.stash[CODE]


def run_directory(config: pytest.Config) -> Path:
    """The session's run directory: by option, else as the lane's table says."""
    if chosen := config.getoption("--lane-evidence") or config.getoption("--lane-run-dir"):
        return config.invocation_params.dir / str(chosen)
    lane = session_lane(config)
    return config.rootpath / "artifacts" if lane is None else lane.run_directory()


def hold_until_end(config: pytest.Config, run_dir: Path, *, shared: bool = False) -> Hold:
    """Own the run directory until the session has written all that it has to say. With pytest-xdist the workers share
    it once the lane has ended, and the controller takes it over from them. Raises Busy and OSError."""
    config.stash[HOLD] = hold = Hold(run_dir, shared=shared)
    config.add_cleanup(hold.release)
    return hold


def shared_place(config: pytest.Config, tmp_path_factory: pytest.TempPathFactory, what: str) -> Path | None:
    """With pytest-xdist: a place that is the same for every worker of the session, and for no other session's."""
    worker = getattr(config, "workerinput", None)
    return worker and tmp_path_factory.getbasetemp().parent / f"lane-{what}-{worker['testrunuid']}"


def store_of(config: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where further runs go; the same for every worker of the session."""
    return shared_place(config, tmp_path_factory, "runs") or tmp_path_factory.getbasetemp() / "lane-runs"


def footprint_of(config: pytest.Config, lane: Lane, store: Path) -> Footprint | None:
    """What the lane writes into the project; None for one that writes into its run directory alone."""
    return None if lane.table.in_place else Footprint(config.rootpath, run_directory(config), store)


def most_runs(config: pytest.Config, lane: Lane) -> int | None:
    """How many times the gates may run the lane; None for as many as they need."""
    chosen: int | None = config.getoption("--lane-runs")
    return lane.table.runs if chosen is None else chosen


def gates_command(config: pytest.Config) -> str:
    """What to type, from where this session was started, to run its gates with its settings: `pytest -m smoke`, with
    what it takes here."""
    lane = session_lane(config)
    settings = {} if lane is None else lane.variables_set()
    words = [f"{name}={shlex.quote(value)}" for name, value in settings.items() if name != "LANE_RUN_ID"]
    by_itself = GATES_COMMAND if shutil.which("pytest") else f"{shlex.quote(sys.executable)} -m {GATES_COMMAND}"
    words.append("python3 -m harness run" if REPORT_SHOWN in os.environ else by_itself)
    if (store := config.getoption("--baselines")) != "baselines":
        words.append(f"--baselines={shlex.quote(store)}")
    named = config.args_source is config.ArgsSource.ARGS and config.invocation_params.dir != config.rootpath
    if named and not hasattr(config, "workerinput"):
        words += map(shlex.quote, config.args)
    return " ".join(words)

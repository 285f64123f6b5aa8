"""``LANE_RANKS=N``: the processes that train together, started by torch's own launcher, in this process."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys

from harness.base.lock import HELD_BY
from harness.lane.console import say
from harness.lane.errors import LaneError
from harness.lane.outputs import remove_places
from harness.lane.run import Run
from harness.lane.settings import Settings
from harness.lane.signals import Stopped, listen
from harness.numerics.modes import environment_pins

GRACE_S = "10"  # in which a rank ends that was asked to: more than it takes to hear how the others ended


def launch(settings: Settings, run: Run) -> int:
    """Start this command once for each rank, wait until all have ended, and return the exit code. Where no rank said
    how the run ended, this raises it: Stopped, or LaneError."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What it tells of a rank that failed is in the report.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.update(environment_pins(settings.numerics, settings.threads), LANE_RUN_ID=settings.run_id)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", GRACE_S)
    os.environ[HELD_BY] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=settings.ranks,
        run_id=settings.run_id,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a port that is free
        local_addr="localhost",
        max_restarts=0,
    )
    say(f"RANKS {settings.ranks}")
    failure: LaneError | None = None
    signum = 0
    try:
        elastic_launch(config, sys.executable)(*sys.orig_argv[1:])
    except ChildFailedError as error:
        rank, failed = error.get_first_failure()
        how = f"ended with exit code {failed.exitcode}"
        if failed.exitcode < 0:
            how = f"was ended by {signal.Signals(-failed.exitcode).name}"
        cause = f"rank {rank} of {settings.ranks} {how} before it could say why"
        failure = LaneError("ranks", "rank_lost", cause, "look at lane.log", status="failed", exit_code=1)
    except SignalException as error:
        signum = int(error.sigval)
    finally:
        listen(True)  # torch's launcher has put handlers of its own in their place
        remove_places(settings.run_dir)
    status = _status(settings)
    run.began = status is not None
    if status is not None and not str(status.get("root_cause")).startswith("run_not_ended"):
        if status.get("status") != "interrupted" or failure is None:
            return _exit_code(status, signum)
        # The others were asked to end because of that one, which had not said yet that it was there.
        failure.step = str(status.get("first_failed_step"))
    if signum:
        raise Stopped(signum)
    raise failure or LaneError("ranks", "no_status", "no rank said how the run ended", "look at lane.log")


def _status(settings: Settings) -> dict[str, object] | None:
    """What the ranks wrote of this run."""
    with contextlib.suppress(OSError, ValueError):
        status = json.loads(settings.status_path.read_bytes())
        if isinstance(status, dict) and status.get("run_id") == settings.run_id:
            return status
    return None


def _exit_code(status: dict[str, object], signum: int) -> int:
    """The exit code of a rank with this status (see EXIT_CODES)."""
    code = str(status.get("root_cause")).partition(":")[0]
    if status.get("status") == "completed" or code == "training_not_asked_for":
        return 0
    if status.get("status") == "interrupted":
        return 128 + (signum or signal.SIGTERM)
    return {"blocked": 3}.get(str(status.get("status"))) or {"non_finite": 2, "time_limit": 4}.get(code, 1)

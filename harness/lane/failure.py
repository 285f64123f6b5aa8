"""Any way in which a run can end early, as one error with step, cause and next action."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

from harness.base.files import NotOurs, show
from harness.lane.errors import LaneError, shortage
from harness.lane.outputs import not_ours
from harness.lane.run import Run
from harness.lane.signals import Stopped


def failure_of(error: BaseException, run: Run) -> LaneError:
    """Any way in which a run can end early, as a LaneError with step, cause and next action."""
    if isinstance(error, LaneError):
        return error
    saved = run.states.saved_step if run.states else 0
    again = f"LANE_RESUME=1 goes on after step {saved}" if saved else "run it again"
    if isinstance(error, Stopped) and error.signum != signal.SIGALRM:
        cause = f"the run got {error} in step {run.step}"
        return LaneError(run.step, "interrupted", cause, again, status="interrupted", exit_code=128 + error.signum)
    if isinstance(error, Stopped):
        limit = run.settings.timeout_s if run.settings else 0
        cause = f"the time limit of {limit:g} s was reached in step {run.step}"
        action = "set LANE_TIMEOUT_S higher, or LANE_STEPS lower" + (f"; {again}" if saved else "")
        return LaneError(run.step, "time_limit", cause, action, status="failed", exit_code=4)
    text = " ".join(str(error).split())[:300]
    if isinstance(error, NotOurs) and run.settings:
        return not_ours(error, run.settings)
    number = error.errno if isinstance(error, OSError) else None
    where = f"{show(Path(os.fsdecode(error.filename)))}: " if isinstance(error, OSError) and error.filename else ""
    short = shortage(error)
    if short == "out_of_memory":
        code, action = short, "set LANE_BATCH or LANE_CHUNK_SECONDS lower, or free memory"
        cause = f"out of memory in step {run.step} ({text or 'no more could be had'})"
    elif short == "too_many_open_files":
        code, action = short, "raise the limit (ulimit -n), and run it again"
        cause = f"{where}no more files can be opened in step {run.step} ({text})"
    elif short == "too_many_threads":
        code, action = short, "raise the limit (ulimit -u), and run it again"
        cause = f"no more threads can be started in step {run.step} ({text})"
    elif number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        code, action = "disk_full", "free space, or set LANE_RUN_DIR"
        where = where or (f"{show(run.settings.run_dir)}: " if run.settings else "")
        cause = f"{where}no room to write ({os.strerror(number or 0)}) in step {run.step}"
    elif isinstance(error, ImportError):
        code, action = "package_missing", "python3 -m harness bootstrap"
        cause = f"{text or type(error).__name__} in step {run.step}"
    elif isinstance(error, OSError):
        code, action = "system_error", "look at lane.log"
        cause = f"{where}{error.strerror or text} in step {run.step}"
    else:
        code, action = "internal_error", "look at lane.log; it has the traceback"
        cause = f"{type(error).__name__} in step {run.step}: {text}"
    return LaneError(run.step, code, cause, action, status="failed", exit_code=1)

"""Starts the lane as a child process, shows what it says as it says it, and bounds how long it may take.

The lane and everything that judges it meet only on disk; this is the one place that knows both sides exist. Standard
library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.base.files import atomic_write, show, write_json
from harness.base.lock import INHERITED, Busy, Hold, owned
from harness.base.project import HOME, first_on_path, is_checkout
from harness.base.report import HEADER, one_line, render_report
from harness.lane.settings import DEFAULT_THREADS, default_timeout_s
from harness.numerics.modes import environment_pins
from harness.runs.process import Ended, Process

GRACE_S = 10.0  # after its own time limit, a lane that does not end is stopped; after as long again, killed


@dataclass(frozen=True)
class LaneExit:
    """How a lane process ended. ``exit_code`` is negative for a signal that killed it. ``report``: what it told of its
    run, or was told for it; also where it could be written nowhere."""

    exit_code: int
    run_dir: Path
    run_id: str
    seconds: float
    report: str = ""


class LaneProcess:
    """One run of the lane in a child process.

    ``run_dir``: its run directory. ``settings``: further settings, as environment variables; they win over this
    process's environment. ``code``: a folder to import the lane from instead of this installation. ``interpreter``:
    the command that starts Python, where it is not this one (another environment, an emulator). ``hold``: of the run
    directory, where this process owns it. ``on_line``: called in a thread with each line of the lane's output.
    """

    def __init__(
        self,
        run_dir: Path,
        settings: Mapping[str, str] | None = None,
        *,
        code: Path | None = None,
        interpreter: Sequence[str] = (),
        hold: Hold | None = None,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.run_dir = run_dir = run_dir.absolute()
        environment = {**os.environ, **(settings or {}), "LANE_RUN_DIR": str(run_dir)}
        self.run_id = environment.setdefault("LANE_RUN_ID", uuid.uuid4().hex)
        if (settings or {}).get("LANE_RUN_ID") is None and "LANE_RUN_ID" in os.environ:
            self.run_id = environment["LANE_RUN_ID"] = uuid.uuid4().hex
        # Where a value is not understood the lane says so itself; here any will do.
        threads = int(_number(environment.get("LANE_THREADS"), DEFAULT_THREADS))
        environment |= environment_pins(environment.get("LANE_NUMERICS", "universal"), threads)
        # The lane of this very checkout, whatever the current folder holds and the environment links.
        if (home := code or (HOME if is_checkout(HOME) else None)) is not None:
            environment = first_on_path(home, environment)
        limit = default_timeout_s(environment.get("LANE_MODEL", ""))
        self._limit_s = _number(environment.get("LANE_TIMEOUT_S"), limit)
        status = environment.get("TRAIN_STATUS_PATH") or str(run_dir / "train_status.json")
        self._status_path = (code or Path.cwd()) / status
        self._printed: list[str] = []  # the report that it printed
        self._started_at = _now()
        flags = ["-O"] * sys.flags.optimize
        command = [*(interpreter or (sys.executable,)), *flags, "-P", "-m", "harness.lane"]
        self._on_line, self._hold = on_line, hold
        fds: tuple[int, ...] = ()
        if hold is not None:
            fds, environment[INHERITED] = (hold.descriptor,), str(hold.descriptor)
        self._process = Process(
            command, environment, code or Path.cwd(), limit_s=self._limit_s + GRACE_S, pass_fds=fds, on_line=self._hear
        )

    def _hear(self, line: str) -> None:
        if line.rstrip() == HEADER:
            self._printed = [HEADER]
        elif self._printed and ": " in line:
            self._printed.append(line)
        self._on_line(line)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, signum: int) -> None:
        """Send a signal to the lane."""
        self._process.send(signum)

    def wait(self) -> LaneExit:
        """Wait until the lane has ended; stop it if it outlives its own limit by GRACE_S. Always leaves a report
        behind.

        An exception here (KeyboardInterrupt) stops the lane before it goes on.
        """
        return self._leave_word(self._process.wait())

    def stop(self) -> None:
        """End a lane that is still running: asked first, then killed. Safe to call at any time."""
        self._process.stop()

    def _leave_word(self, ended: Ended) -> LaneExit:
        """Write the exit code, and status and report for a lane that could not. A run directory that another run owns
        is not touched. Returns how the lane ended, with its report."""
        spoke = self._status_is_ours()
        printed = "".join(f"{line}\n" for line in self._printed)
        told = LaneExit(ended.exit_code, self.run_dir, self.run_id, ended.seconds, printed)
        if not spoke and ended.exit_code == 3:
            return told  # the run directory was not this run's to use; the lane said so
        is_dead = ended.exit_code < 0 or not spoke
        if is_dead:
            status, text = self._word_for_the_dead(ended)
            told = replace(told, report=text)
        try:
            with contextlib.nullcontext() if self._hold else owned(self.run_dir):
                if is_dead:
                    write_json(self._status_path, status)
                    atomic_write(self.run_dir / "train_report.txt", text.encode())
                atomic_write(self.run_dir / "exit_code.txt", f"{ended.exit_code}\n".encode())
        except (OSError, Busy) as error:
            reason = getattr(error, "strerror", None) or f"in use by {error}"
            self._on_line(f"FAILED {self.run_dir}: nothing could be written for the lane that ended ({reason})")
        return told

    def _status_is_ours(self) -> bool:
        """Whether the lane itself wrote how it ended."""
        status = self._status()
        cause = status.get("root_cause")
        return status.get("run_id") == self.run_id and isinstance(cause, str) and not cause.startswith("run_not_ended")

    def _status(self) -> dict[str, object]:
        """What lies where the lane's status belongs; nothing where that cannot be read."""
        try:
            with self._status_path.open("rb") as file:
                status = json.loads(file.read(1 << 20))
        except (OSError, ValueError, RecursionError):
            return {}
        return status if isinstance(status, dict) else {}

    def _word_for_the_dead(self, ended: Ended) -> tuple[dict[str, object], str]:
        """Status and report for a process that was killed, or could write neither: its parent's, so that they are never
        missing. What the process itself gave as the reason stays the reason."""
        if ended.exit_code >= 0:
            code, hint = "lane_died", f"its last line: {ended.last_line or 'none'}"
            if ended.exit_code == 0 and (other := self._status().get("run_id")):
                code, hint = "status_of_another_run", f"its status is that of run {other}, and not of {self.run_id}"
        else:
            code = "lane_killed"
            hint = "often: out of memory" if ended.exit_code == -signal.SIGKILL else "see lane.log for the stacks"
            if ended.timed_out:
                code, hint = "time_limit", f"it did not stop at its time limit of {self._limit_s:g} s"
        outcome = {
            "first_failed_step": "lane_process",
            "root_cause": one_line(f"{code}: the lane's process {ended.how} after {ended.seconds:.0f} s ({hint})"),
            "next_unblock_action": one_line(f"look at {self.run_dir / 'lane.log'}, then run it again"),
        }
        if ended.exit_code > 0:
            printed = dict(line.split(": ", 1) for line in self._printed[1:])
            outcome |= {key: printed[key] for key in outcome if key in printed}
        boundary = {"lane": "experimental", "promotable": False, "run_id": self.run_id}
        unknown = {"loss": None, "loss_first": None, "steps_done": 0, "steps_total": 0, "sanitized_logits": 0}
        nothing = dict.fromkeys(("checkpoint_path", "checkpoint_sha256", "checkpoint_tensor_digest"))
        times = {"started_at": self._started_at, "finished_at": _now(), "settings": {}}
        schema = {"schema": "train_status/1", **boundary, "status": "failed"}
        status = {**schema, **outcome, **unknown, **nothing, **times}
        paths = {"training_status_path": show(self._status_path), "training_status_json": json.dumps(status)}
        return status, render_report({"objective_status": "failed", **outcome, **paths, **boundary})


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _number(text: str | None, otherwise: float) -> float:
    """A setting's value as a positive, finite number, or ``otherwise``."""
    try:
        value = float(text or "")
    except ValueError:
        return otherwise
    return value if 0 < value < 1e9 else otherwise


def run_lane(
    run_dir: Path,
    settings: Mapping[str, str] | None = None,
    *,
    code: Path | None = None,
    interpreter: Sequence[str] = (),
    on_line: Callable[[str], None] = lambda line: None,
) -> LaneExit:
    """Run the lane once in a child process and wait for it; see LaneProcess."""
    return LaneProcess(run_dir, settings, code=code, interpreter=interpreter, on_line=on_line).wait()

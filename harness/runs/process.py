"""A lane's command, run once: a process group of its own, live output, a time limit, and an end that leaves nothing."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.runs import guard

GRACE_S = 10.0  # for a lane that was asked to end; then it is killed
LOG_LIMIT = 64 << 20  # bytes of output that are kept; a lane that prints in a loop must not fill the disk


@dataclass(frozen=True)
class Ended:
    """How a lane's process ended. `exit_code` is negative for a signal that killed it; `timed_out`: at its limit."""

    exit_code: int
    seconds: float
    timed_out: bool
    last_line: str

    @property
    def how(self) -> str:
        """In words: `ended with exit code 3`, `was ended by SIGKILL`."""
        if self.exit_code >= 0:
            return f"ended with exit code {self.exit_code}"
        names = {number.value: number.name for number in signal.Signals}
        return f"was ended by {names.get(-self.exit_code, f'signal {-self.exit_code}')}"


class Process:
    """A command, started at once; it does not outlive this process, whatever ends that.

    `log`: a new file for its output, besides `on_line`, which is called in a thread with each line. `limit_s`: seconds
    after which it is asked to end. `pass_fds`: descriptors that it inherits. The environment carries LANE_RUN_ID, by
    which everything that the command starts is found again. Raises OSError for a command that does not start.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path,
        *,
        limit_s: float,
        log: Path | None = None,
        pass_fds: Sequence[int] = (),
        on_line: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._run_id = environment["LANE_RUN_ID"]
        self._limit_s, self._on_line, self._last_line = limit_s, on_line, ""
        self._started = time.monotonic()
        new = os.O_CREAT | os.O_EXCL if log else 0
        self._log = os.open(log or os.devnull, os.O_WRONLY | os.O_CLOEXEC | new)
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="backslashreplace",
                start_new_session=True,
                pass_fds=pass_fds,
            )
        except BaseException:
            os.close(self._log)
            raise
        # The guard reads from a pipe of which only this process holds the other end. It is started after the lane, so
        # that the lane does not inherit that end.
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, self._run_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="lane-output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, signum: int) -> None:
        """Send a signal to the command itself."""
        self._process.send_signal(signum)

    def _read(self) -> None:
        assert self._process.stdout is not None
        room = LOG_LIMIT
        with self._process.stdout as output:
            for line in output:
                self._last_line = line.strip() or self._last_line
                data = line.encode("utf-8", "backslashreplace")[:room]
                room -= len(data)
                with contextlib.suppress(OSError):  # a full disk; the run goes on
                    os.write(self._log, data)
                self._on_line(line.rstrip("\n"))

    def wait(self) -> Ended:
        """Wait for the command's end, and for that of all it started; end them at the time limit.

        An exception here (KeyboardInterrupt) ends them before it goes on.
        """
        try:
            timed_out = not self._ends_within(self._limit_s - (time.monotonic() - self._started))
        finally:
            self.stop()
        return Ended(self._process.returncode, time.monotonic() - self._started, timed_out, self._last_line)

    def stop(self) -> None:
        """End the command and all that it started: asked first, then killed. Safe to call at any time, and again."""
        if self._process.returncode is None:
            if not self._ends_within(0):
                guard.send(signal.SIGTERM, self._run_id, self.pid)
                self._ends_within(GRACE_S)
            # The leader is not reaped yet: the group's number is still its own.
            guard.end(self._run_id, self.pid, 1.0)
            self._process.wait()
            self._reader.join(timeout=GRACE_S)
            if not self._reader.is_alive():  # else somebody who cannot be found holds the lane's output open
                os.close(self._log)
        if self._guard.returncode is None:
            with contextlib.suppress(OSError):
                self._guard.communicate(b".", timeout=GRACE_S)

    def _ends_within(self, seconds: float) -> bool:
        """Whether the command ends in time. It is not reaped: until then nobody else can get its number."""
        deadline = time.monotonic() + max(0.0, seconds)
        with contextlib.ExitStack() as held:
            waiting = _poll(self.pid, held)
            while True:
                left = max(0.0, deadline - time.monotonic())
                if waiting is not None:
                    waiting.poll(min(left, 3600.0) * 1000)
                if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                    return True
                if not left:
                    return False
                if waiting is None:
                    time.sleep(min(left, 0.02))


def _poll(pid: int, held: contextlib.ExitStack) -> select.poll | None:
    """What waits for the end of a process; None on a system that has no such thing."""
    try:
        process = os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
    held.callback(os.close, process)
    waiting = select.poll()  # select() knows no descriptor above 1,023
    waiting.register(process, select.POLLIN)
    return waiting

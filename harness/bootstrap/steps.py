"""Runs the commands of the set-up: everything they say goes to the log, what a person wants to see to the terminal."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from harness.base.files import TITLE, atomic_write, remove
from harness.bootstrap.errors import SetupError

STDOUT_LOG = "colab_bootstrap_stdout.log"
STDERR_LOG = "colab_bootstrap_stderr.log"
LAST_LINES = 12


@dataclass
class SetupLog:
    """What the steps said so far. Kept in memory, and written to the run directory only when the set-up failed."""

    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    # Of a defect of the set-up itself: for the log, never for the terminal.
    traceback: str = ""

    def write(self, directory: Path) -> None:
        for name, lines in ((STDOUT_LOG, self.stdout), (STDERR_LOG, [*self.stderr, self.traceback])):
            atomic_write(directory / name, "".join([TITLE, *lines]).encode("utf-8", "replace"))

    def last_lines(self) -> list[str]:
        """The end of what the last command said: on stderr, or on stdout if it said nothing there.

        A traceback is left to the log; its last line, which says what went wrong, is kept.
        """
        for stream in (self.stderr, self.stdout):
            start = max((n for n, line in enumerate(stream, start=1) if line.startswith("$ ")), default=0)
            said, in_traceback = [], False
            for line in (line.rstrip() for line in stream[start:]):
                if line.startswith("Traceback (most recent call last)"):
                    in_traceback = True
                elif not (in_traceback and line.startswith(" ")):
                    in_traceback = False
                    said.append(line)
            if said := [line for line in said if line]:
                return said[-LAST_LINES:]
        return []

    @staticmethod
    def remove(directory: Path) -> None:
        """After a set-up that worked, the logs of an earlier failure would mislead."""
        for name in (STDOUT_LOG, STDERR_LOG):
            with contextlib.suppress(OSError):  # a file of the user's of that name is left alone
                remove(directory / name, "setup_log")


@dataclass(frozen=True)
class Finished:
    """How a command ended. ``gave_up`` says why it was stopped, if it was."""

    command: str
    code: int
    stdout: list[str]
    stderr: list[str]
    gave_up: str = ""


# Looks at each line as it comes, and now and then (None) at the time; returns why to stop the command, or "".
Watch = Callable[[str | None], str]


def run_command(
    argv: Sequence[str | Path],
    log: SetupLog,
    *,
    cwd: Path,
    environ: dict[str, str],
    show: Callable[[str], bool] = lambda line: False,
    watch: Watch = lambda line: "",
) -> Finished:
    """Run ``argv`` to its end, without input and without a shell. Lines for which ``show`` holds are printed.

    The command gets a process group of its own, so that what it started ends with it.
    """
    words = [str(word) for word in argv]
    command, stdout, stderr = shlex.join(words), list[str](), list[str]()
    for kept in (log.stdout, log.stderr):
        kept.append(f"$ {command}\n")
    try:
        process = subprocess.Popen(
            words,
            cwd=cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as reason:
        log.stderr.append(f"{reason}\n")
        return Finished(command, 127, [], [f"{reason}\n"])
    gave_up: list[str] = []

    def follow(stream: IO[str], own: list[str], kept: list[str]) -> None:
        for line in stream:
            own.append(line)
            kept.append(line)
            if show(line):
                print(f"    {line.rstrip()}", flush=True)
            gave_up.extend(filter(None, [watch(line)]))

    assert process.stdout is not None and process.stderr is not None
    streams = ((process.stdout, stdout, log.stdout), (process.stderr, stderr, log.stderr))
    readers = [threading.Thread(target=follow, args=each, daemon=True) for each in streams]
    for reader in readers:
        reader.start()
    try:
        while any(reader.is_alive() for reader in readers) and not gave_up:
            readers[0].join(0.1)
            readers[1].join(0.1)
            gave_up.extend(filter(None, [watch(None)]))
        if gave_up:
            _end_group(process)
        return Finished(command, process.wait(), stdout, stderr, "".join(gave_up[:1]))
    except BaseException:
        _end_group(process)
        raise


def _end_group(process: subprocess.Popen[str]) -> None:
    """Ask the command and all it started to end, then end them: what ignores the first does not outlive this."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Silence:
    """A watch that gives up when a command has said nothing for ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last = time.monotonic()

    def __call__(self, line: str | None) -> str:
        now = time.monotonic()
        if line is not None:
            self.last = now
        return f"no sign of life for {self.seconds:.0f} s" if now - self.last > self.seconds else ""


def explain_to_terminal(error: SetupError, log: SetupLog, directory: Path) -> None:
    """What a person at the terminal needs before the report: the step, the cause, the end of the log and its place."""
    print(f"\nSet-up stopped at {error.step}: {error.cause}", file=sys.stderr)
    if error.command != "none":
        print(f"  command: {error.command}", file=sys.stderr)
    if not (log.stdout or log.stderr or log.traceback):
        return
    for line in log.last_lines():
        print(f"  | {line}", file=sys.stderr)
    try:
        log.write(directory)
        print(f"  logs: {directory / STDOUT_LOG} and {directory / STDERR_LOG}", file=sys.stderr)
    except OSError as reason:
        print(f"  the logs could not be written to {directory}: {reason}", file=sys.stderr)

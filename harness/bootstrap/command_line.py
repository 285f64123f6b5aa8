"""python3 -m harness COMMAND: one door to everything. Standard library only until the set-up is done."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NamedTuple

from harness.base.text import VisibleStream


class Command(NamedTuple):
    """``where`` is "module:function"; the function takes the arguments after the command's name and returns the exit
    code. With ``needs_setup`` it is called in the interpreter that was set up, which happens first if needed."""

    where: str
    help: str
    needs_setup: bool


# A new command is one line here and a function somewhere.
COMMANDS: dict[str, Command] = {
    "run": Command(
        "harness.bootstrap.commands:run", "set up if needed, train, check the gates, print the report", False
    ),
    "test": Command("harness.bootstrap.commands:test", "set up if needed, then ruff, mypy and the whole suite", False),
    "bootstrap": Command("harness.bootstrap.commands:bootstrap", "only set up", False),
    "doctor": Command("harness.bootstrap.doctor:doctor", "what a run depends on, what is off, and what to do", False),
    "explain": Command("harness.baselines.explain:main", "where two runs, checkpoints, or a baseline part", True),
    "baseline": Command("harness.baselines.cli:main", "show or list what is recorded", True),
    "changed": Command(
        "harness.present.changed:changed", "whether the lane changed against a base, and by what", False
    ),
    "summary": Command("harness.present.summary:summary", "a run in Markdown, as a CI job's summary shows it", False),
    "promotion-check": Command("harness.promotion:main", "whether a directory may go to production; why not", False),
    "listen": Command("harness.present.listen:listen", "clips of a run to listen to, and its page with them", True),
}

_OWN_HELP = {
    "run": """\
usage: python3 -m harness run [PYTEST ARGUMENTS]

Sets up if needed, runs `pytest -m smoke` with your arguments added, and ends with the report.""",
    "test": """\
usage: python3 -m harness test [PYTEST ARGUMENTS]

Sets up if needed, runs ruff and mypy, then `pytest -n 2 --dist loadfile` (the tests in two processes) with your
arguments added. All of them run; any of them can fail the whole. `-n 0` is one process, with the lane's progress.""",
    "bootstrap": """\
usage: python3 -m harness bootstrap

Sets up and does nothing else. Into the active virtual environment if there is one, else into the interpreter of a
notebook service or container image that came with a torch, else into .venv in the checkout. A torch that is installed
is never replaced. A second call finds nothing to do.""",
    "doctor": """\
usage: python3 -m harness doctor

One line about each thing a run depends on, with what to do where something is off. Changes nothing. Exit code 1 if
something is off.""",
}

SWITCHES = """\
environment (set-up; an empty value counts as unset, relative paths are relative to the checkout):
  RUN_GIT_SYNC=0|1                  fetch, check out and pull --rebase the default branch first (0)
  EXPECTED_HEAD=HASH                stop unless HEAD starts with these digits, at least 7
  AUDIOCRAFT_SOURCE=DIR             use this checkout of audiocraft in place of the package
  INSTALL_AUDIOCRAFT_EDITABLE=auto|1|0
                                    install it editable; 0: import it over PYTHONPATH; auto: the first that works (auto)
  PIP_BOOTSTRAP_URL=URL             where get-pip.py is, should pip be missing and ensurepip not work
  LANE_RUN_DIR=DIR                  where a run leaves its files (artifacts)"""

EXIT_CODES = """\
exit codes:
  0        everything passed
  1        a test, a gate or a check failed
  2 to 5   as pytest says: interrupted, internal error, wrong usage, no tests found
  10, 11   the set-up failed; is blocked by something you have to decide or provide
  64       this command line is not understood
  128+N    ended by signal N"""


def usage() -> str:
    """The text of ``--help``."""
    width = max(len(name) for name in COMMANDS)
    lines = ["usage: python3 -m harness COMMAND [ARGUMENTS]", "", "commands (each has --help):"]
    lines += [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", SWITCHES, "", EXIT_CODES])


def main(argv: list[str]) -> int:
    """Find the command in the table and call it."""
    if argv and argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if not argv or argv[0] not in COMMANDS:
        found = f"unknown command {argv[0]!r}" if argv else "no command given"
        print(f"{found}; there are: {', '.join(COMMANDS)}. More: python3 -m harness --help", file=sys.stderr)
        return 64
    name, arguments = argv[0], argv[1:]
    if name in _OWN_HELP and arguments and arguments[0] in ("-h", "--help"):
        print(f"{_OWN_HELP[name]}\n\n{SWITCHES}\n\n{EXIT_CODES}")
        return 0
    if name == "bootstrap" and arguments:
        print(f"bootstrap takes no arguments, found: {' '.join(arguments)}", file=sys.stderr)
        return 64
    command = COMMANDS[name]

    def call() -> int:
        module, _, function = command.where.partition(":")
        return int(getattr(importlib.import_module(module), function)(arguments))

    # Help costs no set-up.
    if command.needs_setup and not {"-h", "--help"} & set(arguments):
        from harness.bootstrap.commands import call_in_setup

        return call_in_setup(name, arguments, call)
    return call()


def run() -> int:
    """`main` with this process's command line. Also where whoever read the output has gone (`| head`)."""
    sys.stdout, sys.stderr = VisibleStream(sys.stdout), VisibleStream(sys.stderr)
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Nothing more can be said, at the interpreter's end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141

"""python3 -m harness COMMAND: one door to everything. Standard library only until the set-up is done."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from harness.base.project import HOME, checkout_here, first_on_path, is_checkout
from harness.base.text import VisibleStream

EXIT_BLOCKED, EXIT_USAGE = 11, 64


class Command(NamedTuple):
    """``where`` is "module:function"; the function takes the arguments after the command's name and returns the exit
    code. Those that are ``of_checkout`` alone set up, and nothing else changes an environment."""

    where: str
    help: str
    of_checkout: bool = False


# A new command is one line here and a function somewhere.
COMMANDS: dict[str, Command] = {
    "run": Command(
        "harness.bootstrap.commands:run", "set up if needed, train, check the gates, print the report", True
    ),
    "test": Command("harness.bootstrap.commands:test", "set up if needed, then ruff, mypy and the whole suite", True),
    "bootstrap": Command("harness.bootstrap.commands:bootstrap", "only set up", True),
    "doctor": Command("harness.bootstrap.doctor:doctor", "what a run depends on, what is off, and what to do"),
    "explain": Command("harness.baselines.explain:main", "where two runs, checkpoints, or a baseline part"),
    "baseline": Command("harness.baselines.cli:main", "show or list what is recorded"),
    "changed": Command("harness.present.changed:changed", "whether the lane changed against a base, and by what"),
    "summary": Command("harness.present.summary:summary", "a run in Markdown, as a CI job's summary shows it"),
    "promotion-check": Command("harness.promotion:main", "whether a directory may go to production; why not"),
    "init": Command("harness.runs.propose:main", "look at a project and propose the table of its lane"),
    "watch": Command("harness.runs.watch:main", "run any PyTorch program and record what it computes in each step"),
    "generate": Command("harness.lane.generate:generate", "audio from a model, with a trained adapter or without it"),
    "listen": Command("harness.present.listen:listen", "clips of a run to listen to, and its page with them"),
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
  2        explain: the two cannot be compared
  2, 3, 5  run, test: as pytest says: interrupted, internal error, no tests found
  10, 11   the set-up failed; is blocked by something you have to decide or provide
  64       wrong usage: this command line is not understood (pytest's 4 too)
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
        return EXIT_USAGE
    name, arguments = argv[0], argv[1:]
    if name in _OWN_HELP and arguments and arguments[0] in ("-h", "--help"):
        print(f"{_OWN_HELP[name]}\n\n{SWITCHES}\n\n{EXIT_CODES}")
        return 0
    if name == "bootstrap" and arguments:
        print(f"bootstrap takes no arguments, found: {' '.join(arguments)}", file=sys.stderr)
        return EXIT_USAGE
    command, checkout = COMMANDS[name], checkout_here()
    if checkout is not None and checkout != HOME:
        return _start_again(checkout)
    if command.of_checkout and checkout is None:
        said = f"{name} is for a checkout of this project, and {Path.cwd()} lies in none"
        there = f"cd {shlex.quote(str(HOME))} && python3 -m harness {name}"
        own = "python3 -m pytest -m smoke --lane=NAME runs a lane of your own project"
        print(f"{said}; next: {there if is_checkout(HOME) else own}", file=sys.stderr)
        return EXIT_BLOCKED
    module, _, function = command.where.partition(":")
    try:
        return int(getattr(importlib.import_module(module), function)(arguments))
    except SystemExit as end:  # of argparse, which has said why; or with what is to be said
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return EXIT_USAGE if end.code else 0
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == "harness":
            raise
        from harness.bootstrap.commands import call_where_it_is

        return call_where_it_is(package, name, arguments)


def _start_again(checkout: Path) -> int:
    """One stands in another checkout than the one that this code is of (its environment links that one, and Python was
    not to look into the current folder): go on with the code that is there."""
    if os.environ.get("PYTHONPATH", "").split(os.pathsep)[0] == str(checkout):
        said = f"{checkout} is where this was started, and Python imports harness from {HOME}"
        print(f"{said}; next: leave out Python's options -I and -E", file=sys.stderr)
        return EXIT_BLOCKED
    words = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, words, first_on_path(checkout, dict(os.environ)))


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

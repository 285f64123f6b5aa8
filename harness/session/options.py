"""The plugin's options, and a command line on which pytest finds the same root directory with and without them."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Generator, Sequence

import pytest

ASTRAY = pytest.StashKey[bool]()
OPTIONS = ("--lane", "--lane-run-dir", "--lane-evidence", "--lane-runs", "--baselines", "--baseline-reason")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lane", "the training lane and its gates")
    group.addoption(
        "--lane",
        metavar="NAME",
        help="run the lane of [tool.harness.lanes.NAME] in pyproject.toml in place of the default one",
    )
    group.addoption(
        "--lane-run-dir",
        metavar="DIR",
        help="the session's run directory; default: what the lane's table says, else artifacts/NAME",
    )
    group.addoption(
        "--lane-evidence",
        metavar="DIR",
        help="do not train: hold the gates against the run that lies in DIR",
    )
    group.addoption(
        "--lane-runs",
        metavar="N",
        type=_count,
        help="how many times the gates may run the lane, the first included; those that need more are not applicable; "
        "default: what the lane's table says, else as many as they need (4)",
    )
    group.addoption(
        "--baselines",
        metavar="DIR",
        default="baselines",
        help="where the recorded baselines lie, relative to the root directory; default: baselines",
    )
    group.addoption(
        "--no-baseline",
        action="store_true",
        help="hold the run to every gate but the recording: for audio of your own, of which nothing is recorded",
    )
    group.addoption(
        "--baseline-reason",
        metavar="TEXT",
        help="why the result is right; with --snapshot-update, which records the run as the new baseline",
    )


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 99:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from 1 to 99")
    return int(text)


def joined(words: Sequence[str]) -> list[str]:
    """A command line on which a value of ours follows its option after `=`, and not as a word of its own."""
    known: list[str] = []
    for index, word in enumerate(words):
        before = known[-1] if known else ""
        if before in OPTIONS and not word.startswith("-"):
            known[-1] = f"{before}={word}"
        elif word == "--":
            return [*known, *words[index:]]
        else:
            known.append(word)
    return known


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> Generator[None, None, None]:
    """pytest finds its root directory before it knows these options, and takes the DIR of `--lane-evidence DIR` for one
    of the paths that say where that is. Nothing of such a pass is used: pytest_cmdline_main makes another."""
    words = list(early_config.invocation_params.args)
    added = shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
    if joined(added) != added:
        os.environ["PYTEST_ADDOPTS"] = shlex.join(joined(added))
    if joined(added) != added or joined(words) != words:
        early_config.stash[ASTRAY] = True
        early_config.known_args_namespace.noconftest = True
        args.clear()
    yield


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Begin again, with a command line that leads pytest to the same root directory with and without our options."""
    if not config.stash.get(ASTRAY, False):
        if config.getoption("--no-baseline") and config.getoption("--snapshot-update", default=False):
            raise pytest.UsageError("--no-baseline compares with no recording, --snapshot-update makes one: choose one")
        return None
    return pytest.main(joined(config.invocation_params.args), plugins=config.invocation_params.plugins)

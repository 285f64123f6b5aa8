"""``python3 -m harness.lane``: one run of the lane (recipe.py), or what would stop it."""

from __future__ import annotations

import argparse
import json
import logging
import os

from harness.base.report import one_line
from harness.lane.check import check
from harness.lane.console import prepare_streams, say
from harness.lane.environment import let_warnings_be_warnings
from harness.lane.errors import EXIT_CODES
from harness.lane.recipe import run_once
from harness.lane.settings import VARIABLES, settings_table
from harness.lane.signals import requests


def main(arguments: list[str] | None = None) -> int:
    """Run the lane with the settings of this process's environment; returns the exit code."""
    let_warnings_be_warnings()
    variables = "\n".join(f"  {name:28} {one.shown_default():32} {one.meaning}" for name, one in VARIABLES.items())
    codes = "\n".join(f"  {code:3}  {meaning}" for code, meaning in EXIT_CODES.items())
    parser = argparse.ArgumentParser(
        prog="python3 -m harness.lane",
        description="Train the voice adapter once, from audio to checkpoint. Settings are environment variables.",
        epilog=f"settings (name, default, meaning):\n{variables}\n\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--settings-table", action="store_true", help="print the settings as Markdown, and do not run")
    parser.add_argument(
        "--check", action="store_true", help="say what would stop a run before it trains: one JSON line"
    )
    asked = parser.parse_args(arguments)
    if asked.settings_table:
        print(settings_table(), flush=True)
        return 0
    logging.getLogger().addHandler(logging.NullHandler())  # else an error before there is a log goes to the terminal
    prepare_streams()
    requests.clear()
    if asked.check:
        failure = check(os.environ)
        keys = ("step", "code", "cause", "action") if failure else ()
        say(json.dumps({key: one_line(getattr(failure, key)) for key in keys}))
        return failure.exit_code if failure else 0
    return run_once()


if __name__ == "__main__":
    code = main()
    # All is written and said. What Python would do now is take apart all that torch made: 0.13 s (measured). Who wants
    # to see what it does at exit (a profiler's file) calls main().
    os._exit(code)

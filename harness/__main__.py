"""python3 -m harness COMMAND. This file and what it imports first are read by Pythons as old as 2.7."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    from harness.bootstrap.too_old import refuse

    sys.exit(refuse())

if __name__ == "__main__":
    from harness.bootstrap.command_line import run

    sys.exit(run())

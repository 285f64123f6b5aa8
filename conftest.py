"""What `pytest` does here beyond pytest: `lane_run`, the one training run of the session, and the options that shape
it.

Both live in harness/pytest_plugin.py, so that another project can use the same ones. In ten lines:

* the first test that asks for `lane_run` starts the lane as a child process (harness/runs), which trains for real;
* its progress is shown as it comes; meanwhile this process imports what the gates need;
* each gate (tests/smoke, marker `smoke`) then reads the files that the run left, through harness/evidence;
* a lane that failed makes every gate fail with the lane's own reason, in one line, and never with a fixture's error;
* the report is printed at the end, whatever happened.
"""

import os
import sys
from pathlib import Path

import pytest

import harness

pytest_plugins = ("harness.pytest_plugin",)


def begin_again_with_this_checkout(config):  # type: ignore[no-untyped-def]
    """The tests of a checkout are of its own lane. pytest puts this folder first on Python's path; where another
    checkout's code was imported before (by the program that starts pytest), it begins again with this one's first."""
    here, loaded = Path(__file__).resolve().parent, Path(harness.__file__).resolve().parents[1]
    if here == loaded:
        return
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if others[0] == str(here) or hasattr(config, "workerinput"):
        raise pytest.UsageError(
            f"these tests are of {here}, and Python imports harness from {loaded}: leave out -I, -E"
        )
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), *filter(None, others)])
    # -P: or the current folder, which may be another checkout, would come before it.
    os.execv(sys.executable, [sys.executable, "-P", *sys.orig_argv[1:]])


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):  # type: ignore[no-untyped-def]
    """`pytest -m smoke` collects the smoke gates alone, from whatever folder; reading all other tests takes as long as
    importing torch."""
    begin_again_with_this_checkout(config)
    if config.getoption("-m") == "smoke" and config.args_source is not config.ArgsSource.ARGS:
        config.args = [str(config.rootpath / "tests" / "smoke")]

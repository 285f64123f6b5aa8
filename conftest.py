"""What `pytest` does here beyond pytest: `lane_run`, the one training run of the session, and the options that shape
it.

Both live in harness/pytest_plugin.py, so that another project can use the same ones. In ten lines:

* the first test that asks for `lane_run` starts the lane as a child process (harness/launch.py), which trains for real;
* its progress is shown as it comes; meanwhile this process imports what the gates need;
* each gate (tests/smoke, marker `smoke`) then reads the files that the run left, through harness/evidence;
* a lane that failed makes every gate fail with the lane's own reason, in one line, and never with a fixture's error;
* the report is printed at the end, whatever happened.
"""

pytest_plugins = ("harness.pytest_plugin",)


def pytest_configure(config):  # type: ignore[no-untyped-def]
    """`pytest -m smoke` collects the smoke gates alone, from whatever folder; reading all other tests takes as long as
    importing torch."""
    if config.getoption("-m") == "smoke" and config.args_source is not config.ArgsSource.ARGS:
        config.args = [str(config.rootpath / "tests" / "smoke")]

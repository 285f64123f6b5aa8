"""The gates for lanes of other projects: those of the package (harness/gates/black_box.py). Only with `--lane NAME`."""

from harness.gates.black_box import *  # noqa: F403

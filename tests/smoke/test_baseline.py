"""The gates that hold the run against what was recorded: those of the package (harness/gates/baseline.py)."""

from harness.gates.baseline import *  # noqa: F403

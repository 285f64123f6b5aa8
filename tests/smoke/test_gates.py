"""The gates on what the lane writes: those of the package, which other projects use too (harness/gates/training.py)."""

from harness.gates.training import *  # noqa: F403

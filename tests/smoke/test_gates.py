"""The gates on what the lane writes: those of the package, which other projects use too (harness/gates/lane.py)."""

from harness.gates.lane import *  # noqa: F403

"""The gates on a program that is watched: those of the package (harness/gates/invariants.py). This lane is not."""

from harness.gates.invariants import *  # noqa: F403

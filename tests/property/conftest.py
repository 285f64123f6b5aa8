"""Hypothesis profiles. Under CI the examples are fixed, so that a red build is red again when it is run again."""

import os

from hypothesis import settings

# A deadline would measure the machine: the first example of a test pays for imports and caches.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

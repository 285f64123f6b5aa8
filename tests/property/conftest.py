"""Hypothesis profiles: the examples are fixed, so that what is red is red again when it is run again.

`pytest tests/property --hypothesis-profile=explore` draws new ones each time.
"""

from hypothesis import settings

# A deadline would measure the machine: the first example of a test pays for imports and caches.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
if settings.get_current_profile_name() != "explore":
    settings.load_profile("fixed")

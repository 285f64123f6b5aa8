"""A pytest-native regression harness for a training lane.

PYTEST_DONT_REWRITE: nothing is asserted here, and pytest would warn where it meets this module a second time.
"""

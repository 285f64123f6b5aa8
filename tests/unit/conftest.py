"""Notes what collecting the tests has loaded; test_walls.py looks at it."""

import sys

import pytest
from imports import LOADED


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[LOADED] = frozenset(sys.modules)

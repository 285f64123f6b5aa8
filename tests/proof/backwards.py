"""A pytest plugin (`-p proof.backwards`): tests in the opposite order."""

from __future__ import annotations

from typing import Any


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Turn the order around."""
    items.reverse()

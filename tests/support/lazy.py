"""A module that is imported when it is first used: collecting the tests imports no torch."""

from __future__ import annotations

import importlib
from typing import Any


class Lazy:
    """Stands for a module; any attribute is the module's."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        # pytest looks at everything in a test module for its own marks, when it collects.
        if attribute.startswith(("_", "pytest")):
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)

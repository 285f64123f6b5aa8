"""Waits for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(what: Callable[[], Any], seconds: float = 120) -> Any:
    """What ``what`` returns, as soon as it is true. Raises TimeoutError when it never is."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come")
        time.sleep(0.02)
    return found

"""The terminal of a session, for a lane that is still running."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

import pytest

from harness.base.text import visible


class Terminal:
    """Gives a function that writes a line to the terminal, also while pytest captures the output, from any thread."""

    def __init__(self, config: pytest.Config) -> None:
        self._capture = config.pluginmanager.getplugin("capturemanager")
        self._quiet = hasattr(config, "workerinput") or config.get_verbosity() < -1

    def __enter__(self) -> Callable[[str], None]:
        if self._quiet:
            self._descriptor = os.open(os.devnull, os.O_WRONLY)
        elif self._capture is None:
            self._descriptor = os.dup(1)
        else:
            with self._capture.global_and_fixture_disabled():
                sys.stdout.flush()
                self._descriptor = os.dup(1)
        os.write(self._descriptor, b"\n")
        return self._say

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # whoever was watching is gone; the run goes on
            os.write(self._descriptor, f"{visible(line)}\n".encode("utf-8", "backslashreplace"))

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

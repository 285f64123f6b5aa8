"""What is known of the run so far; status and report are written from it."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from harness.lane.console import say
from harness.lane.settings import Settings
from harness.lane.signals import raise_if_stopped

if TYPE_CHECKING:
    from harness.lane.ranks import Ranks
    from harness.lane.state import StateFile

log = logging.getLogger("harness.lane")


class Run:
    """What is known of the run so far; the status file and the report are written from it."""

    def __init__(self, settings: Settings | None) -> None:
        self.settings = settings
        self.step = "settings"
        self.started_at = now()
        self.owns_run_dir = False
        self.began = False  # and with that removed what an earlier run had left
        self.is_check = False  # it ends before it trains, and leaves nothing
        self.settings_refused = False  # settings are then the defaults, in the folder that the run was to use
        # Let go of at the end, so that a run out of memory, or out of file descriptors, can say so.
        self.reserve: bytes | None = bytes(4_000_000)
        self.spare_descriptor: int | None = None
        self.values: dict[str, Any] = {"lane": "experimental", "promotable": False}
        self.loss: float | None = None
        self.loss_first: float | None = None
        self.learned: dict[str, float | int | None] = {}  # once trained: smoothed and held-out losses, the best step
        self.steps_done = 0
        self.sanitized = 0
        self.checkpoint: dict[str, Any] | None = None
        self.states: StateFile | None = None
        self.ranks: Ranks | None = None
        self.common: Settings | None = None  # the settings with the run's own places, where this rank has others

    def own(self) -> None:
        """The run directory is this run's: from here on there is a last word to write."""
        self.owns_run_dir = True
        with contextlib.suppress(OSError):
            self.spare_descriptor = os.open(os.devnull, os.O_RDONLY)

    def let_go(self) -> None:
        """Give back what was kept for the end."""
        self.reserve = None
        if self.spare_descriptor is not None:
            os.close(self.spare_descriptor)
            self.spare_descriptor = None

    def where(self) -> str:
        """How far it has come, in words."""
        steps = self.settings.steps if self.settings else 0
        return f"in step {self.step}, after {self.steps_done} of {steps} training steps"

    def enter(self, step: str) -> None:
        """Note and show which step of the lane begins."""
        raise_if_stopped()
        self.step = step
        log.info("step %s", step)
        say(f"STEP {step}")


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

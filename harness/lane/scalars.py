"""TensorBoard scalars, for who watches a run in a notebook: through torch's own writer, where tensorboard is installed.

They are for people. No gate reads them, and whatever goes wrong with them, such as a full disk, ends them and not the
training. (Where tensorflow is installed it writes them, with exceptions of its own.)
"""

from __future__ import annotations

import importlib
import shlex
import sys
from typing import TYPE_CHECKING, Any

from harness.lane.console import say
from harness.lane.errors import LaneError
from harness.lane.settings import Settings

if TYPE_CHECKING:
    from harness.lane.trainer import Progress

INSTALL = f"{shlex.quote(sys.executable)} -m pip install tensorboard"  # the extra `tensorboard` of this package


def check_tensorboard(settings: Settings) -> None:
    """Raises LaneError (step ``preflight``) where scalars are asked for and tensorboard cannot be imported."""
    if not settings.tensorboard:
        return
    try:
        importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        cause = f"LANE_TENSORBOARD=1, and tensorboard cannot be imported here: {' '.join(str(error).split())}"
        raise LaneError("preflight", "tensorboard_missing", cause, f"{INSTALL}, or unset LANE_TENSORBOARD") from None


class Scalars:
    """Losses (nats) and the learning rate by step, in a folder of this run's own: `tensorboard --logdir` over the
    folder above shows runs side by side."""

    def __init__(self, settings: Settings) -> None:
        self._writer: Any = None
        self._has_begun = False
        if settings.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            try:
                self._writer = SummaryWriter(str(settings.tensorboard_dir / settings.run_id))
            except Exception as error:
                say(f"TENSORBOARD cannot begin: {error}")

    def add(self, now: Progress) -> None:
        """The values of one step. Never raises."""
        if self._writer is None:
            return
        values = {
            "loss/train": now.loss,
            "loss/train_smoothed": now.smoothed,
            "learning_rate": now.learning_rate,
            **({"loss/held_out": now.held_out[1]} if now.held_out else {}),
        }
        try:
            if now.held_out and not self._has_begun:
                self._writer.add_scalar("loss/held_out", now.held_out[0], 0)
                self._has_begun = True
            for name, value in values.items():
                self._writer.add_scalar(name, value, now.step)
            self._writer.flush()
        except Exception as error:
            say(f"TENSORBOARD ends here: {error}")
            self._writer = None

    def close(self) -> None:
        """Write what is left. Never raises."""
        if self._writer is not None:
            try:
                self._writer.close()
            except Exception as error:
                say(f"TENSORBOARD: {error}")

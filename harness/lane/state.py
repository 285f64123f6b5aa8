"""The state of a training that is under way: saved now and then, so that an interrupted run can go on.

What a step needs is the adapters, the optimizer's moments and the number of the step: the order of chunks and every
other draw is counted, not remembered (draws.py). A state is of one settings, model, data set, tokens and code; with
any other it is refused.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.base.files import atomic_write, remove, show
from harness.lane.environment import own_code_digest
from harness.lane.errors import LaneError, shortage
from harness.lane.held_out import HeldOutLoss
from harness.lane.ranks import Ranks
from harness.lane.settings import Settings

SCHEMA = "train_state/3"
SHARE = 0.02  # of the training's time, that saving may take where LANE_SAVE_EVERY is auto
QUIET_S = 10.0  # and then nothing is saved in a training's first seconds: what a first save costs is not known yet


@dataclass(frozen=True)
class State:
    """What is known after ``step`` steps. ``trace``: the lines of the trace from ``start`` on, as text; ``last_step``:
    what there was before the last update, where that is done."""

    step: int
    loss: float
    loss_first: float
    smoothed: float
    sanitized: int
    before: HeldOutLoss | None
    best: HeldOutLoss | None
    trace: str
    adapters: dict[str, Any]
    best_adapters: dict[str, Any]
    optimizer: dict[str, Any]
    last_step: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """Dictionaries, numbers and tensors alone: what ``weights_only`` reads back."""
        return {**vars(self), "before": self.before and vars(self.before), "best": self.best and vars(self.best)}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> State:
        losses = {name: plain[name] and HeldOutLoss(**plain[name]) for name in ("before", "best")}
        return cls(**{**plain, **losses})


def of_first(state: State | None, ranks: Ranks) -> State | None:
    """Rank 0's state, from which every rank goes on."""
    if ranks.world == 1:
        return state
    buffer = io.BytesIO()
    if state is not None:
        torch.save(state.plain(), buffer)
    data = ranks.share(buffer.getvalue() if state is not None else None)
    return None if data is None else State.of(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))


def identity_of(settings: Settings, digests: Mapping[str, str]) -> dict[str, str]:
    """What a state must have been saved with. ``digests``: model_digest, dataset_digest, tokens_digest, numeric_class.

    Universal mode gives the same result in every numeric class, so there a run may go on on another machine.
    """
    identity = {
        "settings_digest": settings.digest(),
        **{name: digests[name] for name in ("model_digest", "dataset_digest", "tokens_digest")},
        "code_digest": own_code_digest(),  # another program does not go on where this one stopped
        "numeric_mode": settings.numerics,
        "device": settings.device,
    }
    if settings.numerics != "universal":
        identity["numeric_class"] = digests["numeric_class"]
    return identity


class StateFile:
    """The state's file in the run directory, of the run that ``identity`` describes."""

    def __init__(self, settings: Settings, identity: Mapping[str, str]) -> None:
        self.path: Path = settings.state_path
        self._every = settings.save_every
        self._identity = dict(identity)
        self._saved_at = time.monotonic()
        self._cost = QUIET_S * SHARE
        self.saved_step = 0

    def load(self) -> State | None:
        """The saved state; None where nothing was saved. Raises LaneError for a state of another run, or of none."""
        try:
            value = torch.load(self.path, map_location="cpu", weights_only=True)
            if value["schema"] != SCHEMA:
                raise ValueError(f"its schema is {value['schema']!r}")
            found, state = dict(value["identity"]), State.of(value["state"])
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever a damaged file makes the reader raise
            if shortage(error):
                raise
            told = " ".join(str(error).split())[:120]
            cause = f"{show(self.path)}: cannot be read as a saved state ({type(error).__name__}: {told})"
            raise self._refuse("state_unreadable", cause) from None
        for name, expected in self._identity.items():
            if found.get(name) != expected:
                cause = f"{show(self.path)}: saved with {name} {found.get(name)}, and this run's is {expected}"
                raise self._refuse("state_of_another_run", cause)
        self.saved_step = state.step
        return state

    @staticmethod
    def _refuse(code: str, cause: str) -> LaneError:
        action = "set LANE_RESUME=0 to begin anew (the saved state is then removed), or restore what it was saved with"
        return LaneError("train", code, cause, action)

    def due(self, step: int) -> bool:
        """Whether the state after ``step`` is to be saved."""
        if self._every is not None:
            return self._every > 0 and step % self._every == 0
        return time.monotonic() - self._saved_at >= self._cost / SHARE

    def save(self, state: State) -> None:
        """Write the state over the one before, atomically. Raises OSError."""
        started = time.monotonic()
        buffer = io.BytesIO()
        boundary = {"lane": "experimental", "promotable": False}
        torch.save({"schema": SCHEMA, **boundary, "identity": self._identity, "state": state.plain()}, buffer)
        atomic_write(self.path, buffer.getvalue())
        self._saved_at = time.monotonic()
        self._cost = max(QUIET_S * SHARE, self._saved_at - started)
        self.saved_step = state.step

    def remove(self) -> None:
        """Of a run that has completed there is nothing to go on with."""
        remove(self.path, "state")

"""What is recorded: a result, when and why, and what may differ from it. Its file is document.py's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from harness.baselines.result import Result
from harness.evidence.strict import HexFloat


class BaselineError(Exception):
    """A baseline file that is not one. The message is one line, names the file, and ends in ``mend``, the command that
    mends it, where there is one."""

    def __init__(self, found: str, mend: str = "") -> None:
        super().__init__(f"{found}; next: {mend or 'record again, in place of it'}")
        self.found, self.mend = found, mend


@dataclass(frozen=True)
class Tolerance:
    """What may differ between machines, beside what was measured to differ.

    In universal mode it is part of the exact comparison. In the float32 modes it serves results of another numeric
    class, and no others. `loss`: relative. `tensor`: L2 distance over the L2 norm of the tensor's change in training.
    """

    loss: HexFloat
    tensor: HexFloat
    measured_loss: HexFloat
    measured_tensor: HexFloat


# Measured with the shipped lane between numeric classes and thread counts; docs/baselines.md has the table.
UNIVERSAL_TOLERANCE = Tolerance(loss=1e-11, tensor=1e-9, measured_loss=4.4e-16, measured_tensor=7.1e-14)
FLOAT32_TOLERANCE = Tolerance(loss=2e-6, tensor=2e-4, measured_loss=2.3e-7, measured_tensor=3.9e-5)


@dataclass(frozen=True)
class Code:
    """Which code computed a result: the commit checked out, whether files differ from it, and a digest of them."""

    commit: str
    dirty: bool
    digest: str


@dataclass(frozen=True)
class Provenance:
    """When, why and from what a baseline was recorded, and what showed that it is right."""

    recorded_at: str
    reason: str
    code: Code
    held: tuple[str, ...] | None = ()  # the gates without a recording that held; None: of an earlier form


@dataclass(frozen=True)
class Baseline:
    """A recorded result, and where it lies."""

    path: Path
    provenance: Provenance
    result: Result
    tolerance: Tolerance
    guard: float | None  # width; None in the float32 modes
    drift: float | None  # the drift that was measured when the guard was chosen

    @property
    def recorded(self) -> str:
        """One line: when, from which commit, why."""
        code = self.provenance.code
        changed = ", changed" if code.dirty else ""
        return f"recorded {self.provenance.recorded_at[:10]} at {code.commit[:12]}{changed}: {self.provenance.reason}"


def relative_path(result: Result) -> Path:
    """Where a result's baseline lies under `baselines/`: readable, and unique by the key's digest."""
    key = result.key
    class8 = f"-{key.numeric_class[:8]}" if key.numeric_class else ""
    name = f"{result.model}-{key.mode}{class8}-{key.digest()[:12]}.json"
    return Path(re.sub(r"[^\w.-]", "_", key.lane)) / re.sub(r"[^\w.-]", "_", name)

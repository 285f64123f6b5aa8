"""``gates.json`` in a run directory: how the gates judged a run. Written when pytest ends, read by page and summary.

    {"schema": "gates/1", "run_id", "lane", "promotable", "gates": [{"nodeid", "outcome", "reason", "details", "path",
     "line", "seconds"}, …], "verdict": {…} or null, "metrics": {name: text}, "losses": [[step, hex, hex or null], …],
     "baseline": {"path", "recorded"} or null}

`losses` has a row for each step: obtained, and recorded where the baseline has that step. Standard library only, so
that a summary can be made where nothing is installed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.lane.files import write_json

GATES = "gates.json"
SCHEMA = "gates/1"
SIZE_LIMIT = 16 << 20
_DETAILED = 100
PASSED = "passed"
NOT_APPLICABLE = "not applicable"  # an external lane does not give what the gate judges
OUTCOMES = (PASSED, "failed", "error", "skipped", NOT_APPLICABLE)


class GatesError(Exception):
    """A gates.json that is missing or is not one. The message is one line: file, found, expected, next command."""


@dataclass(frozen=True)
class GateResult:
    """How one gate ended. ``reason`` is one line; ``details`` what pytest shows; ``line`` counts from 1."""

    nodeid: str
    outcome: str
    reason: str = ""
    details: str = ""
    path: str = ""
    line: int = 1
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The test's name in words: `loss is finite`."""
        return self.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")


@dataclass(frozen=True)
class GatesFile:
    """What gates.json holds. ``verdict`` is ``Verdict.to_json()``."""

    run_id: str
    gates: Sequence[GateResult]
    verdict: dict[str, Any] | None = None
    metrics: dict[str, str] = field(default_factory=dict)
    losses: Sequence[tuple[int, float, float | None]] = ()
    baseline: dict[str, str] | None = None

    def write(self, run_dir: Path) -> Path:
        """Write gates.json, atomically; of many gates that failed, the details of the first alone. Raises OSError."""
        told = [gate for gate in self.gates if gate.details][:_DETAILED]
        listed = [asdict(gate) if gate in told else {**asdict(gate), "details": ""} for gate in self.gates]
        value = {
            "schema": SCHEMA,
            "run_id": self.run_id,
            "lane": "experimental",
            "promotable": False,
            "gates": listed,
            "verdict": self.verdict,
            "metrics": self.metrics,
            "losses": [[step, _text(a), None if b is None else _text(b)] for step, a, b in self.losses],
            "baseline": self.baseline,
        }
        path = run_dir / GATES
        write_json(path, value)
        return path


def read_gates(run_dir: Path) -> GatesFile:
    """The gates.json of a run directory. Raises GatesError."""
    path = run_dir / GATES
    command = f"pytest -m smoke --lane-evidence={run_dir}"
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise GatesError(f"{path}: {error.strerror or error}; expected how the gates ended; next: {command}") from None
    try:
        if len(data) > SIZE_LIMIT:
            raise ValueError(f"more than {SIZE_LIMIT:,} bytes")
        value = json.loads(data.decode(), parse_constant=_no_constant)
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']!r}, expected {SCHEMA!r}")
        gates = [GateResult(**gate) for gate in value["gates"]]
        for gate in gates:
            texts = (gate.nodeid, gate.outcome, gate.reason, gate.details, gate.path)
            if not all(isinstance(text, str) for text in texts) or gate.outcome not in OUTCOMES:
                raise ValueError(f"a gate that is none: {str(gate)[:100]}")
            if type(gate.line) is not int or not isinstance(gate.seconds, int | float):
                raise ValueError(f"a gate that is none: {str(gate)[:100]}")
        verdict, baseline = value["verdict"], value["baseline"]
        if verdict is not None and not isinstance(verdict["verdict"], str):
            raise ValueError("a verdict without a name")
        return GatesFile(
            run_id=_str(value["run_id"]),
            gates=gates,
            verdict=verdict,
            metrics={_str(name): _str(text) for name, text in value["metrics"].items()},
            losses=[(int(step), _float(a), None if b is None else _float(b)) for step, a, b in value["losses"]],
            baseline=None if baseline is None else {_str(name): _str(text) for name, text in baseline.items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise GatesError(f"{path}: {reason}; expected what the gates wrote; next: {command}") from None


def counts(gates: Sequence[GateResult]) -> str:
    """How many passed, failed and so on: one line. No gate is never a pass."""
    if not gates:
        return "no gate ran"
    numbers = {outcome: sum(gate.outcome == outcome for gate in gates) for outcome in OUTCOMES}
    listed = ", ".join(f"{number} {outcome}" for outcome, number in numbers.items() if number)
    return f"{len(gates)} gate{'' if len(gates) == 1 else 's'}: {listed}"


def by_reason(gates: Sequence[GateResult]) -> list[list[GateResult]]:
    """Gates that did not pass, those with one outcome and reason together: a lane that failed fails them all."""
    groups: dict[tuple[str, str], list[GateResult]] = {}
    for gate in gates:
        if gate.outcome != PASSED:
            groups.setdefault((gate.outcome, gate.reason), []).append(gate)
    order = {"failed": 0, "error": 0, "skipped": 1, NOT_APPLICABLE: 2}
    return sorted(groups.values(), key=lambda group: order.get(group[0].outcome, 0))


def all_passed(gates: Sequence[GateResult]) -> bool:
    """Whether there are gates, and all of them passed: a skipped one did not. One that is not applicable judged
    nothing, so that there must be others."""
    judged = [gate for gate in gates if gate.outcome != NOT_APPLICABLE]
    return bool(judged) and all(gate.outcome == PASSED for gate in judged)


def _text(value: float) -> str:
    return value.hex() if math.isfinite(value) else str(value)


def _float(text: Any) -> float:
    return float(text) if text in ("nan", "inf", "-inf") else float.fromhex(_str(text))


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {type(value).__name__}")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")

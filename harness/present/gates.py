"""``gates.json`` in a run directory: how the gates judged a run. Written when pytest ends, read by page and summary.

    {"schema": "gates/1", "run_id", "lane", "promotable", "gates": [{"nodeid", "outcome", "reason", "details", "path",
     "line", "seconds", "reruns", "wants", "measured"}, …], "verdict": {…} or null, "metrics": {name: text},
     "losses": [[step, hex, hex or null], …], "baseline": {"path", "recorded"} or null}

`losses` has a row for each step: obtained, and recorded where the baseline has that step. Standard library only, so
that a summary can be made where nothing is installed.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.base.files import EMPTY, kind_of, write_json
from harness.base.project import HOME, checkout_here, default_run_dir, is_checkout, project_folder

GATES = "gates.json"
SCHEMA = "gates/1"
SIZE_LIMIT = 16 << 20
_RECORD = "run.json"  # in the run directory of a lane with a table
_DETAILED = 100
PASSED = "passed"
NOT_APPLICABLE = "not applicable"  # the lane does not give what the gate judges
NOT_RUN = "not run"  # deselected (-k, a shard of a CI job), or the session ended before it
XFAILED, XPASSED = "xfailed", "xpassed"  # of a gate that somebody marked as expected to fail
IDLE = (NOT_RUN, NOT_APPLICABLE)  # it judged nothing
OUTCOMES = (PASSED, "failed", "error", XPASSED, XFAILED, "skipped", NOT_RUN, NOT_APPLICABLE)


class GatesError(Exception):
    """A gates.json that is missing or is not one. The message is one line: file, found, expected, next command."""


@dataclass(frozen=True)
class GateResult:
    """How one gate ended. ``reason`` is one line; ``details`` what pytest shows; ``line`` counts from 1;
    ``reruns`` is how often it was run again (by another plugin) before the run that counts; ``wants`` is the first
    paragraph of its docstring; ``measured`` what it says that it found; ``seconds`` are of itself."""

    nodeid: str
    outcome: str
    reason: str = ""
    details: str = ""
    path: str = ""
    line: int = 1
    seconds: float = 0.0
    reruns: int = 0
    wants: str = ""
    measured: str = ""

    @property
    def name(self) -> str:
        """The test's name in words: `loss is finite`, and how often it was run for this."""
        name = self.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
        return f"{name} (run {self.reruns + 1} times)" if self.reruns else name


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
        """Write gates.json, atomically, over no file of another's; of many gates that failed, the details of the first
        alone. Raises OSError."""
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
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        what = f"{path}: {error.strerror or error}; expected how the gates ended"
        raise GatesError(f"{what}; next: {judging(run_dir)}") from None
    try:
        if len(data) > SIZE_LIMIT:
            raise ValueError(f"more than {SIZE_LIMIT:,} bytes")
        value = json.loads(data.decode(), parse_constant=_no_constant)
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']!r}, expected {SCHEMA!r}")
        gates = [GateResult(**gate) for gate in value["gates"]]
        for gate in gates:
            texts = (gate.nodeid, gate.outcome, gate.reason, gate.details, gate.path, gate.wants, gate.measured)
            if not all(isinstance(text, str) for text in texts) or gate.outcome not in OUTCOMES:
                raise ValueError(f"a gate that is none: {str(gate)[:100]}")
            if {type(gate.line), type(gate.reruns)} != {int} or not isinstance(gate.seconds, int | float):
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
        # Over a file of another's none is written.
        away = (
            "" if kind_of(data) in (SCHEMA, EMPTY) else f"mv {shlex.quote(str(path))} {shlex.quote(f'{path}.away')} && "
        )
        command = away + judging(run_dir)
        raise GatesError(f"{path}: {reason}; expected what the gates wrote; next: {command}") from None


def judging(run_dir: Path) -> str:
    """The command that leads to a gates.json in `run_dir`, as it is typed here: it judges the run that lies there, or
    makes one. In a checkout of this project it is one that needs nothing set up."""
    where, external = shlex.quote(str(run_dir)), not _is_of_default_lane(run_dir)
    elsewhere = is_checkout(HOME) and not (project_folder() / "pyproject.toml").is_file()
    checkout = checkout_here() or (HOME if elsewhere else None)
    pytest = "pytest -m smoke"
    if not external and checkout is not None:
        pytest = "python3 -m harness run"
        if Path.cwd() != checkout:  # it runs in the checkout, and from within
            where = shlex.quote(str(run_dir.absolute()))
            pytest = pytest if checkout_here() else f"cd {shlex.quote(str(checkout))} && {pytest}"
    if holds_run(run_dir):
        return f"{pytest} --lane-evidence={where}"
    if found := sorted(run_dir.glob(f"*/{_RECORD}")):  # a lane of another project has a folder of its own
        return f"python3 -m harness summary {shlex.quote(str(found[0].parent))}"
    return pytest if run_dir == default_run_dir() else f"{pytest} --lane-run-dir={where}"


def _is_of_default_lane(run_dir: Path) -> bool:
    """Whether no `--lane` is needed to run the lane of the run that lies in a folder, or none does."""
    try:
        return bool(json.loads((run_dir / _RECORD).read_bytes())["default"])
    except FileNotFoundError:
        return True
    except (OSError, ValueError, TypeError, KeyError):
        return False


def holds_run(run_dir: Path) -> bool:
    """Whether a run lies in a folder, however it ended: one that holds none is not written into."""
    return any((run_dir / name).exists() for name in ("train_status.json", "trace.jsonl", _RECORD))


def counts(gates: Sequence[GateResult]) -> str:
    """How many passed, failed and so on: one line. No gate is never a pass."""
    if not gates:
        return "no gate ran"
    numbers = {outcome: sum(gate.outcome == outcome for gate in gates) for outcome in OUTCOMES}
    listed = ", ".join(f"{number} {outcome}" for outcome, number in numbers.items() if number)
    again = sum(gate.reruns > 0 for gate in gates)
    rerun = f"; {again} of them run more than once" if again else ""
    return f"{len(gates)} gate{'' if len(gates) == 1 else 's'}: {listed}{rerun}"


def by_reason(gates: Sequence[GateResult]) -> list[list[GateResult]]:
    """Gates that did not pass, those with one outcome and reason together: a lane that failed fails them all."""
    groups: dict[tuple[str, str], list[GateResult]] = {}
    for gate in gates:
        if gate.outcome != PASSED:
            groups.setdefault((gate.outcome, gate.reason), []).append(gate)
    order = {"failed": 0, "error": 0, XPASSED: 1, XFAILED: 1, "skipped": 1, NOT_RUN: 1, NOT_APPLICABLE: 2}
    return sorted(groups.values(), key=lambda group: order.get(group[0].outcome, 0))


def all_passed(gates: Sequence[GateResult]) -> bool:
    """Whether gates judged something, and all of those passed: a skipped one did not."""
    judged = [gate for gate in gates if gate.outcome not in IDLE]
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

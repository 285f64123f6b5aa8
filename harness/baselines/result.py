"""What is compared: one result of the lane, reduced to what a baseline keeps of it.

A `Result` comes from a run directory (`result_of_run`) or from a baseline file (`baseline.py`), so that one comparison
serves run against baseline and run against run. Of a run everything is known; a baseline keeps the norms and sketches
of single tensors only at a few steps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from harness.evidence import EvidenceError, NotApplicable, RunEvidence, Trace, rounding_agrees
from harness.evidence.trace import Step
from harness.numerics.digest import dtype_name, tensor_digest
from harness.numerics.sketch import Sketch, sketch

UNIVERSAL = "universal"
EXTERNAL = "external"  # of a lane that is not this project's: to the bit in one numeric class, without a guard
PARTS = ("dataset", "tokens", "loss", "checkpoint")  # one gate each, in the order in which data flows


@dataclass(frozen=True)
class Key:
    """What was computed, and in the float32 modes how: results are compared only where every field is equal."""

    lane: str
    mode: str
    model_digest: str
    dataset_digest: str
    settings_digest: str
    numeric_class: str  # empty in universal mode, whose results do not depend on it

    def digest(self) -> str:
        """SHA-256 (hex) of the key's fields as canonical JSON."""
        return hashlib.sha256(json.dumps(self.__dict__, sort_keys=True).encode()).hexdigest()

    def differing(self, other: Key) -> list[str]:
        """The names of the fields in which two keys differ."""
        return [name for name, value in self.__dict__.items() if value != other.__dict__[name]]


@dataclass(frozen=True)
class StepResult:
    """One optimizer step. `grad`, `param` and `sketch` hold single tensors where they are known, else nothing."""

    step: int
    chunks: str  # digest of the ids of the batch's chunks, in order: 16 hex digits
    batch: str  # digest of the batch's tokens: 16 hex digits
    loss: float
    by_codebook: tuple[float, ...]
    valid: tuple[int, ...]  # positions that count, by codebook
    sanitized: int
    grad_total: float  # L2 norm over all tensors
    param_total: float
    grad: Mapping[str, float] = field(default_factory=dict)
    param: Mapping[str, float] = field(default_factory=dict)
    sketch: Mapping[str, Sketch] = field(default_factory=dict)
    # Of a watched program: the learning rates of its parameter groups, and digests of all bits where they are known.
    rates: tuple[float, ...] = ()
    grad_bits: str = ""
    param_bits: str = ""
    forward: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorResult:
    """One tensor of the checkpoint, before rounding where the mode rounds."""

    kind: str  # `float32 128x64`
    norm: float
    sketch: Sketch


@dataclass(frozen=True)
class Result:
    """One result of the lane. `unreadable` says, for a part, why the files of the run do not show it."""

    source: str  # the run directory or the baseline file
    key: Key
    model: str
    numeric_class: str
    environment: Mapping[str, str]
    settings: Mapping[str, str]
    dataset_digest: str
    tokens_digest: str
    base_digest: str
    start_losses: Mapping[str, float]
    start_param: Mapping[str, float]
    steps: tuple[StepResult, ...]
    end_losses: Mapping[str, float]
    tensor_digest: str  # guarded where `guarded` has positions
    tensors: Mapping[str, TensorResult]
    guarded: Mapping[str, Sequence[int]] = field(default_factory=dict)
    values: Mapping[str, npt.NDArray[Any]] | None = None  # float32, of a run
    values64: Mapping[str, npt.NDArray[np.float64]] | None = None  # of a run in universal mode
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that there are: all of them, but for an external lane, which need not give them."""
        if self.key.mode != EXTERNAL:
            return PARTS
        there = {"dataset": self.dataset_digest, "tokens": self.tokens_digest, "loss": self.steps}
        return tuple(part for part in PARTS if there.get(part, True))

    @property
    def is_traced(self) -> bool:
        """Whether the way to the result is known, and not its last loss and its checkpoint alone."""
        return bool(self.end_losses) or any(step.valid or step.batch != "none" for step in self.steps)

    def digest_as(self, other: Result) -> str:
        """This result's tensor digest, leaving out what `other`'s leaves out. "" where the tensors do not fit."""
        if self.guarded == other.guarded or self.values is None:
            return self.tensor_digest
        try:
            return tensor_digest(self.values, other.guarded)
        except ValueError:
            return ""  # another set of tensors or another shape, which is said by itself


def result_of_run(evidence: RunEvidence, *, partial: bool = False) -> Result:
    """The result in a run directory, every digest and sketch computed from the files.

    Raises EvidenceError when the trace cannot be read: without it there is nothing to compare and no key to compare by.
    What else cannot be read, or contradicts itself, is in `unreadable`. `partial` takes the trace of a run that ended
    early as far as it goes; what is not there is then empty. Of one `evidence` there is one result.
    """
    trace = evidence.trace if evidence.gives("trace") and not partial else evidence.outline
    if evidence not in _RESULTS:
        _RESULTS[evidence] = _result(evidence, trace)
    return _RESULTS[evidence]


_RESULTS: WeakKeyDictionary[RunEvidence, Result] = WeakKeyDictionary()


def key_of(evidence: RunEvidence, trace: Trace) -> Key:
    """What a run computed, as it says itself. Raises EvidenceError."""
    if evidence.numerics == "bits":
        record = evidence.record
        try:
            model = evidence.initial_checkpoint.tensor_digest
        except NotApplicable:
            model = "none"
        data = record.data.digest or ""
        return Key(record.name, EXTERNAL, model, data, record.settings_digest, record.numeric_class)
    header = trace.header
    return Key(
        lane=header.lane,
        mode=header.mode,
        model_digest=header.model_digest,
        dataset_digest=header.dataset_digest,
        settings_digest=header.settings_digest,
        numeric_class="" if header.mode == UNIVERSAL else header.numeric_class or "none",
    )


def _result(evidence: RunEvidence, trace: Trace) -> Result:
    key = key_of(evidence, trace)
    unreadable: dict[str, str] = {}
    tokens_digest = trace.tokens.tokens_digest if trace.has("tokens") else ""
    start = trace.start if trace.has("start") else None

    def read(part: str, digest: Any, claimed: str) -> str:
        try:
            found: str = digest()
        except NotApplicable:
            return claimed
        except EvidenceError as error:
            unreadable[part] = str(error)
            return claimed
        if found != claimed:
            unreadable[part] = f"the trace says {claimed[:12]}, the files hold {found[:12]}"
        return found

    dataset = read("dataset", evidence.dataset_digest, key.dataset_digest)
    tokens = read("tokens", evidence.tokens_digest, tokens_digest)
    values: dict[str, npt.NDArray[Any]] = {}
    values64: dict[str, npt.NDArray[np.float64]] | None = None
    try:
        values = dict(evidence.checkpoint.tensors)
        before = evidence.checkpoint_float64
        if key.mode == UNIVERSAL and before is not None:
            rounding_agrees(evidence.checkpoint, before)
            values64 = dict(before.tensors)
    except NotApplicable:
        pass
    except EvidenceError as error:
        unreadable["checkpoint"] = str(error)
    unrounded: Mapping[str, npt.NDArray[Any]] = values if values64 is None else values64
    return Result(
        source=shown(evidence.run_dir),
        key=replace(key, dataset_digest=dataset),
        model=_model_name(evidence),
        numeric_class=key.numeric_class or trace.header.numeric_class or "none",
        environment=_flat(evidence, "environment"),
        settings=_flat(evidence, "settings") | trace.optimizers,
        dataset_digest=dataset,
        tokens_digest=tokens,
        base_digest="" if start is None else start.base_digest,
        start_losses={}
        if start is None
        else {
            "loss_without_adapters": start.loss_without_adapters,
            "loss": start.loss,
            **({"held-out loss before the training": start.held_out.loss} if start.held_out else {}),
        },
        start_param=trace.initial if start is None else start.param,
        steps=tuple(map(_step, trace.steps)),
        end_losses=_end_losses(trace),
        tensor_digest=tensor_digest(values) if values else "",
        tensors={
            name: TensorResult(kind_of(values[name]) if name in values else "missing", norm_of(array), sketch(array))
            for name, array in sorted(unrounded.items())
        },
        values=values,
        values64=values64,
        unreadable=unreadable,
    )


def total(norms: Iterable[float]) -> float:
    """The L2 norm over all tensors from the norms of each; the same double on every machine."""
    squares = [norm * norm for norm in norms]
    return math.sqrt(math.fsum(squares)) if all(map(math.isfinite, squares)) else math.nan


def norm_of(array: npt.NDArray[Any]) -> float:
    """The L2 norm of an array of any shape, in float64."""
    flat = array.reshape(-1).astype(np.float64, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.dot(flat, flat)))


def kind_of(array: npt.NDArray[Any]) -> str:
    """Dtype and shape: `float32 128x64`."""
    return f"{dtype_name(array.dtype)} {'x'.join(map(str, array.shape))}"


def shown(path: Path) -> str:
    """A path as a person would type it here: relative, where it lies below the current directory."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def _step(line: Step) -> StepResult:
    return StepResult(
        step=line.step,
        chunks=hashlib.sha256("\n".join(map(str, line.chunks)).encode()).hexdigest()[:16],
        batch=line.batch_digest,
        loss=line.loss,
        by_codebook=tuple(line.loss_by_codebook),
        valid=tuple(line.valid),
        sanitized=line.sanitized,
        grad_total=total(line.grad.values()),
        param_total=total(line.param.values()),
        grad=line.grad,
        param=line.param,
        sketch={name: np.array(row) for name, row in line.sketch.items()},
        rates=tuple(line.learning_rates),
        grad_bits=_together(line.grad_bits),
        param_bits=_together(line.param_bits),
        forward={name: norm for name, (norm, _) in line.forward.items()},
    )


def _together(bits: Mapping[str, str]) -> str:
    """16 hex digits for the bits of all tensors; "" where they are not known."""
    text = "".join(f"{name} {found}\n" for name, found in sorted(bits.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16] if bits else ""


def _end_losses(trace: Trace) -> dict[str, float]:
    if not trace.complete:
        return {}
    by_codebook = enumerate(trace.end.eval_loss_by_codebook)
    losses = {f"evaluation loss, codebook {index}": loss for index, loss in by_codebook}
    held_out = {f"held-out loss after step {s.step}": s.held_out.loss for s in trace.steps if s.held_out}
    best = {"step of the written checkpoint": float(trace.end.best_step)} if held_out else {}
    return {"evaluation loss": trace.end.eval_loss, **losses, **held_out, **best}


def _model_name(evidence: RunEvidence) -> str:
    if evidence.numerics == "bits":
        return evidence.name
    try:
        return evidence.report["model_id"].rstrip("/").rpartition("/")[2].replace("-", "_").replace(".", "_")
    except (EvidenceError, KeyError):
        return "unknown"


# Different in every run, or said elsewhere.
_NO_ENVIRONMENT = {
    "schema",
    "run_id",
    "lane",
    "promotable",
    "numeric_class",
    "numeric_mode",
    "head_commit",
    "code_digest",
}


def _flat(evidence: RunEvidence, which: str) -> dict[str, str]:
    """The environment's or the settings' scalars by dotted name, as text; none where the file cannot be read.

    Absolute paths are left out: they belong to a machine, not to a result.
    """
    try:
        document = evidence.environment if which == "environment" else evidence.status.settings or {}
    except (EvidenceError, KeyError):
        return {}
    found: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else name, inner)
        elif isinstance(value, list):
            walk(prefix, " ".join(map(str, value)))
        elif not (isinstance(value, str) and value.startswith(("/", "~"))):
            found[prefix] = "unset" if value is None else str(value)

    walk("", {name: value for name, value in document.items() if name not in _NO_ENVIRONMENT})
    return found

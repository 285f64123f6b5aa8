"""The baseline file: one small, strict JSON file for each key.

A file is rejected, with one line that says why and a command that mends it, if anything in it is not exactly what
`dump` writes: an unknown or missing field, a float that is not in canonical hexadecimal form, a number that is not
finite, a key whose digest is another, a name that does not belong to the key, a digest that is not the file's own.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct, structs

from harness.base.git import GitFailed, git
from harness.baselines.baseline import Baseline, BaselineError, Code, Provenance, Tolerance
from harness.baselines.guard import decode_positions, encode_positions
from harness.baselines.kept import curve, is_watched, kept_steps
from harness.baselines.result import EXTERNAL, UNIVERSAL, Key, Result, StepResult, TensorResult, shown
from harness.evidence import EvidenceError, parse_json
from harness.evidence.strict import HexFloat, Sha256, as_struct
from harness.numerics.sketch import Sketch

SCHEMA = "lane_baseline/2"
EARLIER = "lane_baseline/1"  # without a digest of its own, and without the gates that held
SIZE_LIMIT = 20_000  # bytes
EXTERNAL_SIZE_LIMIT = 1_000_000  # an external lane may have hundreds of tensors, of 0.3 KB each
READ_LIMIT = 1 << 20
LOOKED_BACK = 50  # commits that are searched for a whole recording


def dump(baseline: Baseline) -> str:
    """The text of a baseline file. Raises ValueError for one above SIZE_LIMIT, and for a number that is not finite."""
    result = baseline.result
    code = baseline.provenance.code
    guard: dict[str, Any] | None = None
    if baseline.guard is not None and baseline.drift is not None:
        positions = {name: encode_positions(places) for name, places in result.guarded.items() if len(places)}
        guard = {"width": _hex(baseline.guard), "measured_drift": _hex(baseline.drift), "positions": positions}
    tolerance = {name: _hex(value) for name, value in baseline.tolerance.__dict__.items()}
    provenance = baseline.provenance
    earlier = provenance.held is None
    document = {
        "schema": EARLIER if earlier else SCHEMA,
        "key": {**result.key.__dict__, "digest": result.key.digest()},
        "provenance": {
            "recorded_at": provenance.recorded_at,
            "reason": provenance.reason,
            **({} if provenance.held is None else {"held": " ".join(provenance.held)}),
            "commit": code.commit,
            "dirty": code.dirty,
            "code_digest": code.digest,
            "model": result.model,
            "numeric_class": result.numeric_class,
            "environment": dict(result.environment),
            "settings": dict(result.settings),
        },
        "exact": {
            "tensor_digest": result.tensor_digest,
            "guard": guard,
            "tokens_digest": result.tokens_digest,
            "dataset_digest": result.dataset_digest,
            "base_digest": result.base_digest,
            "start": _hexes(result.start_losses),
            "curve": {
                "columns": WATCHED_COLUMNS if is_watched(result.steps) else CURVE_COLUMNS,
                "rows": [_curve_row(step) for step in curve(result.steps)],
            },
            "end": _hexes(result.end_losses),
        },
        "shape": {
            "start": _hexes(result.start_param),
            "steps": {
                str(step.step): {
                    name: f"{_hex(step.grad[name])} {_hex(step.param[name])} {_words(step.sketch.get(name), '>f4')}"
                    for name in step.grad
                }
                for step in kept_steps(result.steps)
            },
            "end": {
                name: f"{tensor.kind} {_hex(tensor.norm)} {_words(tensor.sketch, '>f8')}"
                for name, tensor in result.tensors.items()
            },
        },
        "tolerance": tolerance,
    }
    if not earlier:
        document["digest"] = own_digest(document)
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    limit = EXTERNAL_SIZE_LIMIT if result.key.mode == EXTERNAL else SIZE_LIMIT
    if len(text.encode()) > limit:
        raise ValueError(f"the baseline would have {len(text.encode()):,} bytes, more than {limit:,}")
    return text


def own_digest(document: Mapping[str, Any]) -> str:
    """SHA-256 over all of a recording's document but its own digest, as JSON in canonical form."""
    rest = {name: value for name, value in document.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def load(path: Path) -> Baseline:
    """The baseline in a file. Raises BaselineError, with what mends it; FileNotFoundError when there is none."""
    try:
        with path.open("rb") as file:
            data = file.read(READ_LIMIT + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BaselineError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        return parse(data, path)
    except ValueError as error:
        raise BaselineError(f"{path}: {error}", _restore(path)) from None


def parse(data: bytes, path: Path) -> Baseline:
    """The baseline in the bytes of a file; ``path`` is for the messages. Raises ValueError, with one line that says
    what is wrong, and BaselineError where it is known what mends that."""
    if not data.strip():
        raise ValueError("an empty file, no baseline")
    if any(line.startswith((b"<<<<<<< ", b">>>>>>> ")) for line in data.splitlines()):
        raise ValueError("no valid baseline: it holds the marks of a merge that was not finished")
    where = "no valid baseline"
    try:
        document = parse_json(data, where)
        file = as_struct(document, _File, where)
        if file.schema == SCHEMA and (found := own_digest(document)) != file.digest:
            told = f"its content has digest {found[:12]}, and it says {file.digest[:12]}"
            raise ValueError(f"it was changed after it was recorded, by hand or by a merge ({told})")
        baseline = _read(file, path)
        written = dump(baseline).encode()
    except EvidenceError as error:
        raise ValueError(str(error)) from None
    except (ValueError, KeyError, OverflowError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
        raise ValueError(f"no valid baseline: {reason}") from None
    if written != data and written.splitlines() == data.splitlines():
        found = f"{path}: has other line endings than it was written with ({_line_endings(data)}; expected LF after"
        raise BaselineError(f"{found} each line), and is the same otherwise", _mend_line_endings(path))
    if written != data:
        raise ValueError("no valid baseline: not in the form in which it is written (edited by hand?)")
    return baseline


def _restore(path: Path) -> str:
    """The command that brings back the last whole recording of this name from git; empty where there is none."""
    folder = path.absolute().parent
    try:
        commits = git(folder, "log", f"-n{LOOKED_BACK}", "--format=%H", "--", path.name).split()
        for commit in commits:
            try:
                parse(git(folder, "show", f"{commit}:./{path.name}").encode("utf-8", "surrogateescape"), path)
            except (ValueError, BaselineError, GitFailed):
                continue
            return f"git -C {shlex.quote(str(folder))} checkout {commit[:12]} -- {shlex.quote(path.name)}"
    except GitFailed:
        pass
    return ""


def _line_endings(data: bytes) -> str:
    """Which line endings are in a file, and how often."""
    crlf = data.count(b"\r\n")
    found = {"CRLF": crlf, "CR": data.count(b"\r") - crlf, "LF": data.count(b"\n") - crlf}
    said = [f"{number} {name}" for name, number in found.items() if number]
    return ", ".join(said if data.endswith((b"\r", b"\n")) else [*said, "none after the last line"])


def _mend_line_endings(path: Path) -> str:
    """A command that mends them. Git's own would not: it takes a checkout with other line endings for unchanged."""
    code = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); "
    code += "p.write_bytes(b'\\n'.join(p.read_bytes().splitlines()) + b'\\n')"
    return f'python3 -c "{code}" {shlex.quote(str(path.absolute()))}'


CURVE_COLUMNS = "step chunks batch loss loss_by_codebook valid sanitized grad param"
WATCHED_COLUMNS = f"{CURVE_COLUMNS} rates grad_bits param_bits"


def _curve_row(step: StepResult) -> str:
    by_codebook = "/".join(map(_hex, step.by_codebook))
    valid = "/".join(map(str, step.valid))
    row = (
        f"{step.step} {step.chunks} {step.batch} {_hex(step.loss)} {by_codebook} {valid} {step.sanitized} "
        f"{_hex(step.grad_total)} {_hex(step.param_total)}"
    )
    if step.rates:
        row += f" {'/'.join(map(_hex, step.rates))} {step.grad_bits or '-'} {step.param_bits or '-'}"
    return row


# Of a lane with a table it may be empty: the lane need not give what it is of.
Digest = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]
Hexes = dict[str, HexFloat]


class _Key(Struct, forbid_unknown_fields=True):
    lane: str
    mode: str
    model_digest: str
    dataset_digest: str
    settings_digest: str
    numeric_class: str
    digest: str


class _Provenance(Struct, forbid_unknown_fields=True):
    recorded_at: str
    reason: str
    commit: str
    dirty: bool
    code_digest: str
    model: str
    numeric_class: str
    environment: dict[str, str]
    settings: dict[str, str]
    held: str | None = None


class _Guard(Struct, forbid_unknown_fields=True):
    width: HexFloat
    measured_drift: HexFloat
    positions: dict[str, str]


class _Curve(Struct, forbid_unknown_fields=True):
    columns: Literal[
        "step chunks batch loss loss_by_codebook valid sanitized grad param",
        "step chunks batch loss loss_by_codebook valid sanitized grad param rates grad_bits param_bits",
    ]
    rows: list[str]


class _Exact(Struct, forbid_unknown_fields=True):
    tensor_digest: Sha256
    guard: _Guard | None
    tokens_digest: Digest
    dataset_digest: Digest
    base_digest: str
    start: Hexes
    curve: _Curve
    end: Hexes


class _Shape(Struct, forbid_unknown_fields=True):
    start: Hexes
    steps: dict[str, dict[str, str]]
    end: dict[str, str]


class _File(Struct, forbid_unknown_fields=True):
    schema: Literal["lane_baseline/1", "lane_baseline/2"]
    key: _Key
    provenance: _Provenance
    exact: _Exact
    shape: _Shape
    tolerance: Tolerance
    digest: str = ""


def _read(file: _File, path: Path) -> Baseline:
    """The baseline that a file holds. Raises ValueError and KeyError for one that is not like what `dump` writes."""
    exact, shape, provenance = file.exact, file.shape, file.provenance
    if (file.schema == EARLIER) != (provenance.held is None and not file.digest):
        raise ValueError(f"{SCHEMA} has provenance.held and digest, and {EARLIER} has neither")
    key = Key(**{name: value for name, value in structs.asdict(file.key).items() if name != "digest"})
    if key.digest() != file.key.digest:
        raise ValueError("the key's digest is not that of its fields")
    datetime.datetime.fromisoformat(provenance.recorded_at)
    tensors = {name: _tensor(text) for name, text in shape.end.items()}
    sizes = {name: math.prod(map(int, filter(None, t.kind.split(" ")[1].split("x")))) for name, t in tensors.items()}
    kept = {int(step): rows for step, rows in shape.steps.items()}
    columns = exact.curve.columns.split(" ")
    steps = tuple(_step(row, columns, kept) for row in exact.curve.rows)
    if key.mode != EXTERNAL and "" in (exact.dataset_digest, exact.tokens_digest):
        raise ValueError("exact: a digest is empty, expected 64 lower-case hex digits")
    if not (steps or key.mode == EXTERNAL) or not tensors:
        raise ValueError("no step or no tensor: there is nothing to compare with")
    if not set(kept) <= {step.step for step in steps}:
        raise ValueError("sketches of a step that is not in the curve")
    if (exact.guard is not None) != (key.mode == UNIVERSAL):
        raise ValueError("a guard belongs to universal mode, and to no other")
    positions = exact.guard.positions if exact.guard is not None else {}
    result = Result(
        source=shown(path),
        key=key,
        model=provenance.model,
        numeric_class=provenance.numeric_class,
        environment=provenance.environment,
        settings=provenance.settings,
        dataset_digest=exact.dataset_digest,
        tokens_digest=exact.tokens_digest,
        base_digest=exact.base_digest,
        start_losses=exact.start,
        start_param=shape.start,
        steps=steps,
        end_losses=exact.end,
        tensor_digest=exact.tensor_digest,
        tensors=tensors,
        guarded={name: decode_positions(text, size=sizes[name]) for name, text in positions.items()},
    )
    return Baseline(
        path=path,
        provenance=Provenance(
            provenance.recorded_at,
            provenance.reason,
            Code(provenance.commit, provenance.dirty, provenance.code_digest),
            None if provenance.held is None else tuple(provenance.held.split()),
        ),
        result=result,
        tolerance=file.tolerance,
        guard=exact.guard.width if exact.guard is not None else None,
        drift=exact.guard.measured_drift if exact.guard is not None else None,
    )


def _step(row: str, columns: Sequence[str], kept: Mapping[int, Mapping[str, str]]) -> StepResult:
    cells = row.split(" ")
    if len(cells) != len(columns):
        raise ValueError(f"a row of the curve has {len(cells)} columns, and not {len(columns)}")
    step, chunks, batch, loss, by_codebook, valid, sanitized, grad, param, *more = cells
    rates, *bits = more or ["", "-", "-"]
    tensors = {name: text.split(" ") for name, text in kept.get(int(step), {}).items()}
    return StepResult(
        step=int(step),
        chunks=chunks,
        batch=batch,
        loss=_float(loss),
        by_codebook=tuple(map(_float, filter(None, by_codebook.split("/")))),
        valid=tuple(map(int, filter(None, valid.split("/")))),
        sanitized=int(sanitized),
        grad_total=_float(grad),
        param_total=_float(param),
        grad={name: _float(norms[0]) for name, norms in tensors.items()},
        param={name: _float(norms[1]) for name, norms in tensors.items()},
        sketch={name: _from_words(norms[2], ">f4") for name, norms in tensors.items() if norms[2] != "-"},
        rates=tuple(map(_float, filter(None, rates.split("/")))),
        grad_bits=bits[0].removeprefix("-"),
        param_bits=bits[1].removeprefix("-"),
    )


def _tensor(text: str) -> TensorResult:
    dtype, shape, norm, words = text.split(" ")
    return TensorResult(f"{dtype} {shape}", _float(norm), _from_words(words, ">f8"))


def _hex(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError(f"a baseline holds finite numbers; found {value}")
    return float(value).hex()


def _hexes(values: Mapping[str, float]) -> dict[str, str]:
    return {name: _hex(value) for name, value in values.items()}


def _words(values: Sketch | None, dtype: str) -> str:
    """The big-endian IEEE 754 words of `values`, one after the other, in hexadecimal digits; `-` for none."""
    if values is None:
        return "-"
    if not np.isfinite(values).all():
        raise ValueError("a baseline holds finite numbers; a sketch is not finite")
    return values.astype(dtype).tobytes().hex()


def _from_words(text: str, dtype: str) -> Sketch:
    values = np.frombuffer(bytes.fromhex(text), dtype).astype(np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("a sketch is empty or not finite")
    return values


def _float(text: str) -> float:
    value = float.fromhex(text)
    if not math.isfinite(value) or value.hex() != text:
        raise ValueError(f"{text!r} is no finite number in canonical hexadecimal form")
    return value

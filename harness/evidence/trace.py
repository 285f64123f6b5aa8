"""The trace: what happened in each step, one strict JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NoReturn

from msgspec import Meta, Struct

from harness.evidence.errors import mismatch, one_line, show
from harness.evidence.strict import (
    Count,
    Hex16,
    HexFloat,
    Positive,
    Sha256,
    Text,
    as_struct,
    open_regular,
    parse_json,
)

TRACE_LIMIT = 1 << 30
LINE_LIMIT = 8 << 20


class Header(Struct):
    """The first line of a trace: what was run. `ranks`: processes that trained together."""

    schema: Literal["lane_trace/1"]
    run_id: Text
    lane: Literal["experimental"]
    promotable: Literal[False]
    mode: Text
    numeric_class: Text | None
    seed: Count
    steps: Count
    batch: Count
    settings_digest: Text
    model_digest: Text
    dataset_digest: Sha256
    ranks: Positive = 1


class Chunk(Struct):
    """A chunk of the audio: the file's SHA-256, where it starts in samples of the model, the digest of its tokens, and
    what it is for. `neither`: it overlaps held-out audio, and is not held out itself."""

    file: Sha256
    start: Count
    digest: Hex16
    use: Literal["train", "held_out", "neither"] = "train"


class Tokens(Struct):
    """The tokens; `shape` is `[chunks, codebooks, frames]`. `samples`: of a chunk, at the model's rate; 0 where the
    trace does not say it."""

    tokens_digest: Sha256
    shape: Annotated[list[Count], Meta(min_length=3, max_length=3)]
    chunks: list[Chunk]
    samples: Count = 0


class HeldOut(Struct):
    """The loss on the held-out audio, over the chunks that the start names."""

    loss: HexFloat
    loss_by_codebook: list[HexFloat]


class Start(Struct):
    """Before the first step. `param`: the norm of each tensor; `held_out`: before any training."""

    base_digest: Text
    chunks: list[int]
    loss_without_adapters: HexFloat
    loss: HexFloat
    param: Annotated[dict[str, HexFloat], Meta(min_length=1)]
    held_out_chunks: list[int] = []
    held_out: HeldOut | None = None


class Step(Struct):
    """One optimizer step. `valid`: positions that count, by codebook; `learning_rate`: of this update; `sketch` and
    `held_out`: at a few steps, after the update; `param_by_rank`: where several processes trained together, the digest
    of each one's parameters. What follows after that only the trace of a watched program has (watched.py)."""

    step: Count
    chunks: list[int]
    batch_digest: Hex16
    loss: HexFloat
    loss_by_codebook: list[HexFloat]
    valid: list[Count]
    sanitized: Count
    grad: Annotated[dict[str, HexFloat], Meta(min_length=1)]
    param: Annotated[dict[str, HexFloat], Meta(min_length=1)]
    sketch: Annotated[dict[str, list[HexFloat]], Meta(min_length=1)] = {}
    loss_smoothed: HexFloat | None = None
    learning_rate: HexFloat | None = None
    held_out: HeldOut | None = None
    param_by_rank: list[Hex16] = []
    learning_rates: list[HexFloat] = []
    grad_bits: dict[str, Hex16] = {}
    param_bits: dict[str, Hex16] = {}
    forward: dict[str, tuple[HexFloat, Hex16]] = {}
    skipped: bool = False

    @classmethod
    def of_loss(cls, loss: float) -> Step:
        """A step of which nothing but its loss is known."""
        return cls(1, [], "none", HexFloat(loss), [], [], 0, {}, {})


class End(Struct):
    """After the last step. `eval_loss`, `param` and `sketch` are of what was written, the adapters after `best_step`
    (0: where a trace does not say so, after the last step)."""

    steps: Count
    loss: HexFloat
    eval_loss: HexFloat
    eval_loss_by_codebook: list[HexFloat]
    base_digest: Text
    param: Annotated[dict[str, HexFloat], Meta(min_length=1)]
    sketch: Annotated[dict[str, list[HexFloat]], Meta(min_length=1)] = {}
    best_step: Count = 0


PARTS: dict[str, type[Struct]] = {"header": Header, "tokens": Tokens, "start": Start, "step": Step, "end": End}


class Trace:
    """A trace, its numbers parsed: each compared number is a float (NaN where the text was `nan`).

    `steps` are in order, from step 1. A part that the trace of a run that ended early (see `read_trace`) has not
    reached raises EvidenceError when it is asked for; `has` tells.
    """

    header: Header
    tokens: Tokens
    start: Start
    end: End

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: list[Step] = []
        self.is_cut = False  # within its last line
        # Of a watched program: the norms of the tensors before the first step, and the settings of its optimizers.
        self.initial: dict[str, HexFloat] = {}
        self.optimizers: dict[str, str] = {}

    def has(self, part: str) -> bool:
        """Whether the trace has reached a part: header, tokens, start or end."""
        return part in self.__dict__

    def __getattr__(self, name: str) -> NoReturn:
        if name not in PARTS:
            raise AttributeError(name)
        found = f"no {name} after {len(self.steps)} steps"
        raise mismatch(self.path, found, "a whole trace (did the run end early?)")

    @property
    def complete(self) -> bool:
        """Whether the run wrote its last line."""
        return self.has("end")


def read_trace(path: Path, *, partial: bool = False, sketches: bool = True) -> Trace:
    """The trace in a file. `partial` accepts the trace of a run that ended early, its last line cut short or not;
    `sketches=False` one whose end has no sketches, which only this project computes.

    Raises EvidenceError: besides what is no trace, for a trace that is inconsistent in itself. Lines out of order, a
    step left out, other steps than the header announces, a tensor that is in one step and not in another, a list
    without a value for each codebook.
    """
    with open_regular(path, TRACE_LIMIT, "the lane's trace") as file:
        try:
            return parse_trace(file, path, partial=partial, sketches=sketches)
        except OSError as error:
            raise mismatch(path, f"a file that cannot be read ({error})", "the lane's trace") from None


def parse_trace(file: BinaryIO, path: Path, *, partial: bool = False, sketches: bool = True) -> Trace:
    """`read_trace` of an open file; `path` is for the messages."""
    trace = Trace(path)
    reader, number = _Reader(trace, sketches), 0
    while line := file.readline(LINE_LIMIT):
        number += 1
        where = f"{path} line {number}"
        if not line.endswith(b"\n"):
            if len(line) >= LINE_LIMIT:
                raise mismatch(where, f"more than {LINE_LIMIT:,} bytes", "a line of at most that")
            if partial:
                trace.is_cut = True
                break
            raise mismatch(where, "a line without an end", "whole lines (is the trace truncated?)")
        reader.line(parse_json(line, where), where)
    if not trace.complete and not (partial and trace.has("header")):
        raise mismatch(path, f"no {reader.expected()} after line {number}", "a whole trace (did the run end early?)")
    return trace


class _Reader:
    """Takes the lines of a trace in their order, and knows what the next one must be."""

    def __init__(self, trace: Trace, sketches: bool) -> None:
        self.trace, self.sketches = trace, sketches

    def expected(self) -> str:
        """The kind of the next line."""
        trace = self.trace
        missing = [part for part in ("header", "tokens", "start") if not trace.has(part)]
        return missing[0] if missing else "step" if len(trace.steps) < trace.header.steps else "end"

    def line(self, value: Any, where: str) -> None:
        """Take the next line. Raises EvidenceError when it is not what must come here."""
        trace, expected = self.trace, self.expected()
        if trace.complete:
            raise mismatch(where, "a line after the last", "nothing after the line of kind end")
        if not isinstance(value, dict):
            raise mismatch(where, show(value), f"an object of kind {expected}")
        if value.get("kind") != expected:
            announced = f" ({len(trace.steps)} of {trace.header.steps} steps so far)" if trace.has("start") else ""
            raise mismatch(f"{where}: kind", show(value.get("kind")), f"{expected}{announced}")
        found: Any = as_struct(value, PARTS[expected], where)
        if expected != "header":
            getattr(self, f"_check_{expected}")(found, where)
        if expected == "step":
            trace.steps.append(found)
        else:
            setattr(trace, expected, found)

    def _check_tokens(self, found: Tokens, where: str) -> None:
        if len(found.chunks) != found.shape[0]:
            raise mismatch(f"{where}: chunks", str(len(found.chunks)), f"{found.shape[0]}, as shape says")

    def _check_start(self, found: Start, where: str) -> None:
        self._check_chunks(found.chunks, where)
        self._check_chunks(found.held_out_chunks, where, "held_out_chunks")
        self._check_held_out(found.held_out, where)

    def _check_step(self, found: Step, where: str) -> None:
        if found.step != len(self.trace.steps) + 1:
            raise mismatch(f"{where}: step", str(found.step), str(len(self.trace.steps) + 1))
        if len(found.chunks) != self.trace.header.batch:
            raise mismatch(f"{where}: chunks", str(len(found.chunks)), f"{self.trace.header.batch}, a whole batch")
        self._check_chunks(found.chunks, where)
        self._check_codebooks(where, loss_by_codebook=found.loss_by_codebook, valid=found.valid)
        self._check_tensors(where, grad=found.grad, param=found.param, sketch=found.sketch)
        self._check_held_out(found.held_out, where)

    def _check_end(self, found: End, where: str) -> None:
        if found.steps != len(self.trace.steps):
            raise mismatch(f"{where}: steps", str(found.steps), f"{len(self.trace.steps)}, as there are")
        if found.best_step > found.steps:
            raise mismatch(f"{where}: best_step", str(found.best_step), f"at most {found.steps}")
        if self.sketches and not found.sketch:
            raise mismatch(f"{where}: sketch", "no such key", "an object that is not empty")
        self._check_codebooks(where, eval_loss_by_codebook=found.eval_loss_by_codebook)
        self._check_tensors(where, param=found.param, sketch=found.sketch)

    def _check_held_out(self, found: HeldOut | None, where: str) -> None:
        if found is not None:
            self._check_codebooks(f"{where}: held_out", loss_by_codebook=found.loss_by_codebook)

    def _check_chunks(self, found: list[int], where: str, field: str = "chunks") -> None:
        """Raises EvidenceError for a chunk that is not there."""
        last = self.trace.tokens.shape[0] - 1
        for index, chunk in enumerate(found):
            if not 0 <= chunk <= last:
                raise mismatch(f"{where}: {field}[{index}]", str(chunk), f"a chunk from 0 to {last}")

    def _check_codebooks(self, where: str, **lists: Sequence[Any]) -> None:
        """Raises EvidenceError for a list without a value for each codebook."""
        codebooks = self.trace.tokens.shape[1]
        for name, found in lists.items():
            if len(found) != codebooks:
                raise mismatch(f"{where}: {name}", f"a list of {len(found)}", f"a list of {codebooks} items")

    def _check_tensors(self, where: str, **fields: Mapping[str, Any]) -> None:
        """Raises EvidenceError unless every field is about the tensors that training started with."""
        names = self.trace.start.param.keys()
        for name, found in fields.items():
            if found and (different := found.keys() ^ names):
                tensor = min(different)
                state = "no such tensor" if tensor in names else "a tensor that was not there at the start"
                raise mismatch(f"{where}: {name}.{one_line(tensor, 80)}", state, "the tensors of the start")

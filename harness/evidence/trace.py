"""The trace: what happened in each step, one strict JSON object a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from harness.evidence.errors import mismatch, one_line, show
from harness.evidence.strict import (
    COUNT,
    HEX16,
    HEX_FLOAT,
    NULL,
    SHA256,
    TEXT,
    Kind,
    constant,
    dict_of,
    either,
    kind,
    list_of,
    open_regular,
    parse_json,
    read_as,
    record,
)

TRACE_LIMIT = 1 << 30
LINE_LIMIT = 8 << 20
SCHEMA = "lane_trace/1"

_HEADER = record(
    {
        "schema": constant(SCHEMA),
        "run_id": TEXT,
        "lane": constant("experimental"),
        "promotable": constant(False),
        "mode": TEXT,
        "numeric_class": either(TEXT, NULL),
        "seed": COUNT,
        "steps": COUNT,
        "batch": COUNT,
        "settings_digest": TEXT,
        "model_digest": TEXT,
        "dataset_digest": SHA256,
    }
)
_TOKENS = record(
    {
        "tokens_digest": SHA256,
        "shape": list_of(COUNT, 3),
        "chunks": list_of(record({"file": SHA256, "start": COUNT, "digest": HEX16})),
    }
)


@dataclass(frozen=True)
class Trace:
    """A trace, its numbers parsed: each compared number is a float (NaN where the text was `nan`).

    The parts are dictionaries with the keys of docs/evidence.md. `steps` are in order, from step 1. In a trace that is
    not `complete` (see `read_trace`) the parts that were not reached are empty.
    """

    path: Path
    header: dict[str, Any]
    tokens: dict[str, Any]
    start: dict[str, Any]
    steps: list[dict[str, Any]]
    end: dict[str, Any]

    @property
    def complete(self) -> bool:
        """Whether the run wrote its last line."""
        return bool(self.end)


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
    trace = Trace(path, {}, {}, {}, [], {})
    reader, number = _Reader(trace, sketches), 0
    while line := file.readline(LINE_LIMIT):
        number += 1
        where = f"{path} line {number}"
        if not line.endswith(b"\n"):
            if len(line) >= LINE_LIMIT:
                raise mismatch(where, f"more than {LINE_LIMIT:,} bytes", "a line of at most that")
            if partial:
                break
            raise mismatch(where, "a line without an end", "whole lines (is the trace truncated?)")
        reader.line(parse_json(line, where), where)
    if not trace.complete and not (partial and trace.header):
        raise mismatch(path, f"no {reader.expected()} after line {number}", "a whole trace (did the run end early?)")
    return trace


class _Reader:
    """Takes the lines of a trace in their order, and knows what the next one must be."""

    def __init__(self, trace: Trace, sketches: bool) -> None:
        self.trace, self.sketches = trace, sketches
        self.kinds = {"header": _HEADER, "tokens": _TOKENS}

    def expected(self) -> str:
        """The kind of the next line."""
        trace = self.trace
        for part in ("header", "tokens", "start"):
            if not getattr(trace, part):
                return part
        return "step" if len(trace.steps) < trace.header["steps"] else "end"

    def line(self, value: Any, where: str) -> None:
        """Take the next line. Raises EvidenceError when it is not what must come here."""
        trace, expected = self.trace, self.expected()
        if trace.complete:
            raise mismatch(where, "a line after the last", "nothing after the line of kind end")
        if not isinstance(value, dict):
            raise mismatch(where, show(value), f"an object of kind {expected}")
        if value.get("kind") != expected:
            announced = f" ({len(trace.steps)} of {trace.header['steps']} steps so far)" if trace.start else ""
            raise mismatch(f"{where}: kind", show(value.get("kind")), f"{expected}{announced}")
        found = read_as(self.kinds[expected], value, where)
        if expected == "step":
            if found["step"] != len(trace.steps) + 1:
                raise mismatch(f"{where}: step", str(found["step"]), str(len(trace.steps) + 1))
            if len(found["chunks"]) != trace.header["batch"]:
                raise mismatch(f"{where}: chunks", str(len(found["chunks"])), f"{trace.header['batch']}, a whole batch")
            self._check_tensors(found, where)
            trace.steps.append(found)
            return
        if expected == "tokens":
            chunks, codebooks = found["shape"][:2]
            if len(found["chunks"]) != chunks:
                raise mismatch(f"{where}: chunks", str(len(found["chunks"])), f"{chunks}, as shape says")
            self.kinds |= _kinds(chunks, codebooks, self.sketches)
        elif expected == "end":
            if found["steps"] != len(trace.steps):
                raise mismatch(f"{where}: steps", str(found["steps"]), f"{len(trace.steps)}, as there are")
            self._check_tensors(found, where)
        getattr(trace, expected).update(found)

    def _check_tensors(self, found: dict[str, Any], where: str) -> None:
        """Raises EvidenceError unless every field is about the tensors that training started with."""
        names = self.trace.start["param"].keys()
        for field in {"grad", "param", "sketch"} & found.keys():
            if different := found[field].keys() ^ names:
                name = min(different)
                state = "no such tensor" if name in names else "a tensor that was not there at the start"
                raise mismatch(f"{where}: {field}.{one_line(name, 80)}", state, "the tensors of the start")


def _kinds(chunks: int, codebooks: int, sketched: bool) -> dict[str, Kind]:
    """The kinds of the lines that depend on how many chunks and codebooks there are."""
    ids = list_of(kind(f"a chunk from 0 to {chunks - 1}", lambda index: type(index) is int and 0 <= index < chunks))
    by_codebook = list_of(HEX_FLOAT, codebooks)
    norms, sketches = dict_of(HEX_FLOAT), dict_of(list_of(HEX_FLOAT))
    start = {
        "base_digest": TEXT,
        "chunks": ids,
        "loss_without_adapters": HEX_FLOAT,
        "loss": HEX_FLOAT,
        "param": norms,
    }
    step = {
        "step": COUNT,
        "chunks": ids,
        "batch_digest": HEX16,
        "loss": HEX_FLOAT,
        "loss_by_codebook": by_codebook,
        "valid": list_of(COUNT, codebooks),
        "sanitized": COUNT,
        "grad": norms,
        "param": norms,
    }
    end = {
        "steps": COUNT,
        "loss": HEX_FLOAT,
        "eval_loss": HEX_FLOAT,
        "eval_loss_by_codebook": by_codebook,
        "base_digest": TEXT,
        "param": norms,
    }
    optional = {"sketch": sketches}
    last = record({**end, **optional}) if sketched else record(end, optional)
    return {"start": record(start), "step": record(step, optional), "end": last}

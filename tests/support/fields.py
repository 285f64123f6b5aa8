"""Every field of every file of evidence, edited one at a time: what a gate must notice, or a list says why not."""

from __future__ import annotations

import copy
import inspect
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.evidence import EvidenceError, RunEvidence, load_run

REPORT, STATUS, TRACE = "train_report.txt", "train_status.json", "trace.jsonl"
JSON_FILES = (STATUS, "environment.json", "knowledge_audio/voice_dataset_manifest.json")
MIDDLE = 12  # of the trace's steps, one that is neither first, last, nor sketched


@dataclass(frozen=True)
class Edit:
    """One field of one file, and the file's text with another value in it."""

    file: str
    field: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.file}: {self.field}"


def edits(run_dir: Path) -> Iterator[Edit]:
    """One edit for each field of the run's files; of a list and of the tensors the first, of the trace's steps one of
    each kind."""
    yield from _report(run_dir / REPORT)
    sidecar = next(path.relative_to(run_dir) for path in (run_dir / "checkpoints").glob("*.json"))
    for file in (*JSON_FILES, str(sidecar)):
        document = json.loads((run_dir / file).read_text())
        for field, changed in changes(document):
            yield Edit(file, field, json.dumps(changed, indent=1) + "\n")
    yield from _trace(run_dir / TRACE)


def _report(path: Path) -> Iterator[Edit]:
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        key, colon, value = line.partition(": ")
        if colon:
            other = "\n".join([*lines[:number], f"{key}: {another_text(value)}", *lines[number + 1 :]]) + "\n"
            yield Edit(REPORT, key, other)


def _trace(path: Path) -> Iterator[Edit]:
    lines = path.read_text().splitlines()
    kinds: dict[str, int] = {}
    for number, line in enumerate(lines):
        document = json.loads(line)
        kind = document["kind"]
        if kind == "step":
            if document["step"] not in (1, MIDDLE, len(lines) - 4) and "held_out" not in document:
                continue
            kind = f"step {document['step']}" if document["step"] in (1, MIDDLE) else "a late step"
        if kinds.setdefault(kind, number) != number:
            continue
        for field, changed in changes(document):
            text = "\n".join([*lines[:number], json.dumps(changed), *lines[number + 1 :]]) + "\n"
            yield Edit(TRACE, f"{kind}.{field}", text)


def changes(document: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(Name of a field, the document with another value there) for each; of a list its first item."""
    whole = copy.deepcopy(document)

    def inner(value: Any, put: Callable[[Any], None], name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            # Of a tensor's values, one tensor's.
            for key in list(value)[: 1 if name in ("param", "grad", "sketch", "tensors") else None]:

                def put_key(new: Any, key: str = key, value: dict[str, Any] = value) -> None:
                    value[key] = new

                yield from inner(value[key], put_key, f"{name}.{key}" if name else key)
        elif isinstance(value, list) and value:

            def put_first(new: Any, value: list[Any] = value) -> None:
                value[0] = new

            yield from inner(value[0], put_first, f"{name}[0]")
        else:
            put(another(value))
            yield name, copy.deepcopy(whole)
            put(value)

    yield from inner(whole, lambda new: None, where)


def another(value: Any) -> Any:
    """Another value of the same type, as plausible."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.001 + 1e-6
    if isinstance(value, list):
        return ["something"]
    return "something" if value is None else another_text(value)


def another_text(value: str) -> str:
    if value in ("true", "false"):
        return "false" if value == "true" else "true"
    if value.startswith("{"):
        return value.replace('"steps_done": ', '"steps_done": 1', 1)
    if re.fullmatch(r"-?0x[0-9a-f]\.[0-9a-f]+p[+-]\d+", value):
        return float(float.fromhex(value) * 1.001 or 0.001).hex()
    if re.fullmatch(r"-?\d+", value):
        return str(int(value) + 1)
    if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", value):
        return repr(float(value) * 1.001)
    if re.fullmatch(r"[0-9a-f]{8,}(-dirty)?", value):
        return ("0" if value[0] != "0" else "1") + value[1:]
    return f"{value}x"


class Gates:
    """The gates that need no recording, called one after the other on evidence, the quick ones first."""

    def __init__(
        self, functions: Sequence[Callable[..., None]], given: Callable[[RunEvidence], dict[str, Callable[[], Any]]]
    ) -> None:
        self._functions = functions
        self._given = given

    def red(self, run_dir: Path) -> str:
        """The first gate that is red on the run in ``run_dir``, with its message; empty where none is."""
        run = load_run(run_dir)
        if reason := run.failure():
            return f"the run failed: {reason}"
        given = self._given(run)
        for function in self._functions:
            try:
                function(**{name: given[name]() for name in inspect.signature(function).parameters})
            except pytest.skip.Exception:
                continue
            except EvidenceError as error:
                if type(error).__name__ != "NotApplicable":
                    return f"{function.__name__}: {error}"
            except (AssertionError, ValueError, KeyError, TypeError, IndexError, pytest.fail.Exception) as error:
                return f"{function.__name__}: {error}"
        return ""


def copied(run_dir: Path, folder: Path) -> Path:
    """A copy of a run's evidence; what is large is linked."""
    shutil.copytree(
        run_dir, folder, ignore=shutil.ignore_patterns("listen", "report.html", "history.json", "tensorboard")
    )
    return folder

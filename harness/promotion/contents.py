"""What one file of a directory to be promoted holds: real audio, weights with values, or text; and whether it is, or
comes from, a result of the experimental lane. For the command in `__init__.py`; docs/promotion.md has the codes.

What cannot be examined is refused: a check that believes what it cannot read keeps nothing out. Nothing is executed.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.baselines.store import Store
from harness.evidence import Checkpoint, EvidenceError, parse_json, read_checkpoint
from harness.evidence.errors import one_line
from harness.evidence.strict import read_bytes
from harness.lane.audio import SUFFIXES, inspect_audio
from harness.lane.containers import kind_of
from harness.lane.errors import LaneError
from harness.numerics.digest import file_sha256, tensor_digest
from harness.numerics.sketch import Sketch, sketch, sketch_distance

TEXT_LIMIT = 16 << 20
MARKS = frozenset({("lane", "experimental"), ("promotable", "false")})
MARK = re.compile(r"""\b(lane["']?\s*[:=]\s*["']?experimental|promotable["']?\s*[:=]\s*["']?false)\b""", re.IGNORECASE)
# A name that ends so promises weights: the file must hold some, whatever else it would pass for.
WEIGHTS = frozenset({".pt", ".pth", ".ckpt", ".npz", ".safetensors", ".nemo", ".bin"})
# A tensor of at least this many values whose sketch is this near to a recorded one's is that tensor: a cast to bfloat16
# moves it by 0.2 % of its norm, and unrelated tensors lie farther apart than their norm.
SAME_TENSOR = 0.01
ENOUGH_VALUES = 1000


@dataclass(frozen=True)
class Finding:
    """A stable code, and one line that names the thing and says what was found."""

    code: str
    what: str


@dataclass
class Findings:
    """What stands against a promotion, and what it would rest on that nobody here can look into."""

    directory: Path  # paths in it are named as they are in there
    refusals: list[Finding] = field(default_factory=list)
    trusted: list[Finding] = field(default_factory=list)

    def refuse(self, code: str, what: str) -> None:
        self.refusals.append(Finding(code, what.replace(f"{self.directory}/", "")))

    def trust(self, code: str, what: str) -> None:
        self.trusted.append(Finding(code, what.replace(f"{self.directory}/", "")))


@dataclass
class Known:
    """What is known of the experimental lane's results."""

    digests: dict[str, str] = field(default_factory=dict)  # digest of a file, of tensors or of a model: whose it is
    adapters: dict[frozenset[str], str] = field(default_factory=dict)  # names of an adapter's tensors: whose they are
    guarded: list[tuple[Mapping[str, Sequence[int]], str, str]] = field(default_factory=list)  # left out, digest, whose
    sketches: list[tuple[int, float, Sketch, str]] = field(default_factory=list)  # values, norm, sketch, whose


def known_results(baselines: Sequence[Path], runs: Sequence[Path], findings: Findings) -> Known:
    """What the recordings in some folders, and some run directories, say of the experimental lane's results."""
    known = Known()
    for folder in baselines:
        _recordings(folder, known, findings)
    for run in runs:
        found = sorted((run / "checkpoints").glob("*.pt"))
        if not found:
            what = f"{run}: found no checkpoint in it, expected a run of the experimental lane"
            findings.refuse("known_results_missing", what)
        for path in found:
            _run(path, known, findings)
    return known


def _recordings(folder: Path, known: Known, findings: Findings) -> None:
    recorded, broken = Store(folder).all(former=True)
    for line in broken:
        findings.refuse("known_results_missing", line)
    if not recorded:
        what = f"{folder}: found no recording, so known experimental results cannot be told apart"
        findings.refuse("known_results_missing", what)
    for baseline in recorded:
        result, whose = baseline.result, f"the baseline {baseline.path.name}"
        known.digests[result.key.model_digest] = f"the model of {whose}"
        known.guarded.append((result.guarded, result.tensor_digest, whose))
        known.adapters[frozenset(result.tensors)] = whose
        for name, tensor in result.tensors.items():
            shape = tensor.kind.partition(" ")[2]
            size = math.prod(int(length) for length in shape.split("x") if length)
            known.sketches.append((size, tensor.norm, tensor.sketch, f"{name} of {whose}"))
    for path in sorted((folder / "reference").glob("*.json")):
        try:
            sha256 = str(parse_json(read_bytes(path, TEXT_LIMIT, "a reference"), path)["result"]["checkpoint_sha256"])
        except (EvidenceError, KeyError, TypeError) as error:
            findings.refuse("known_results_missing", f"{path}: {error}")
            continue
        known.digests[sha256] = f"the published reference {path.name}"


def _run(path: Path, known: Known, findings: Findings) -> None:
    try:
        checkpoint = read_checkpoint(path)
    except EvidenceError as error:
        findings.refuse("known_results_missing", str(error))
        return
    known.digests[checkpoint.sha256] = known.digests[checkpoint.tensor_digest] = str(path)
    for name, array in checkpoint.tensors.items():
        norm = float(np.linalg.norm(array.astype(np.float64).reshape(-1)))
        known.sketches.append((array.size, norm, sketch(array), f"{name} of {path}"))


def examine(path: Path, known: Known, findings: Findings, *, recording: bool = False) -> int:
    """Looks into a file, by its name and by what it begins with. Returns how many tensors with values it holds.

    `recording`: the data set names it, so that it must be audio.
    """
    try:
        sha256 = file_sha256(path)
        with path.open("rb") as file:
            is_archive = file.read(2) == b"PK"
        is_audio = path.suffix.lower() in SUFFIXES or kind_of(path) != ""
    except OSError as error:
        findings.refuse("unexamined", f"{path}: {error.strerror or error}")
        return 0
    if sha256 in known.digests:
        findings.refuse("experimental_digest", f"{path}: its SHA-256 is that of {known.digests[sha256]}")
    if recording:
        hear(path, "dataset_audio", findings)
    elif path.suffix.lower() in WEIGHTS or is_archive:
        return _weights(path, known, findings)
    elif is_audio:
        hear(path, "audio_invalid", findings)
    else:
        _text(path, findings)
    return 0


def hear(path: Path, code: str, findings: Findings) -> None:
    """Decodes a whole file as audio, and refuses with `code` what is none, is damaged, or is silent."""
    try:
        inspect_audio(path)
    except LaneError as error:
        findings.refuse(code, error.cause)
    except (OSError, MemoryError) as error:
        findings.refuse("unexamined", f"{path}: {error}")


def _weights(path: Path, known: Known, findings: Findings) -> int:
    try:
        checkpoint = read_checkpoint(path)
    except EvidenceError as error:
        findings.refuse("unexamined", str(error))
        return 0
    if _says_experimental(checkpoint.meta):
        findings.refuse("experimental_marked", f"{path}: its metadata say lane experimental")
    objects = [name for name, value in checkpoint.meta.items() if re.fullmatch(r"<[\w.]+>", str(value))]
    if objects:  # which were named and not made: what they are is not known
        what = f"{path}: {one_line(objects[0], 80)} is an object ({checkpoint.meta[objects[0]]}), expected tensors"
        findings.refuse("unexamined", what)
    full = [name for name, array in checkpoint.tensors.items() if array.size]
    if not full:
        findings.refuse("unexamined", f"{path}: found only empty tensors, expected values")
    for name in full:
        # Infinity is left alone: the mask of an attention holds it on purpose.
        if np.isnan(checkpoint.tensors[name]).any():
            findings.refuse("weights_not_finite", f"{path}: {one_line(name, 80)} holds NaN, expected numbers")
            break
    _names_and_digests(path, checkpoint, known, findings)
    _values(path, checkpoint, known, findings)
    return len(full)


def _names_and_digests(path: Path, checkpoint: Checkpoint, known: Known, findings: Findings) -> None:
    for adapter, whose in known.adapters.items():
        # It may lie deeper in a larger model, after a dot.
        if all(any(name == own or name.endswith(f".{own}") for name in checkpoint.tensors) for own in adapter):
            what = f"{path}: its tensors have the names of the experimental adapter's ({min(adapter)}, …), as {whose}"
            findings.refuse("experimental_adapter", what)
            break
    with np.errstate(over="ignore"):  # a value too large for float32 is infinite in it
        rounded = {n: a.astype(np.float32) for n, a in checkpoint.tensors.items() if a.dtype.kind == "f"}
    same = [known.digests.get(digest) for digest in {checkpoint.tensor_digest, tensor_digest(rounded)}]
    for guarded, digest, whose in known.guarded:
        with contextlib.suppress(ValueError):  # other tensors, or of other shapes
            same.append(whose if tensor_digest(rounded, guarded) == digest else None)
    for owner in sorted({owner for owner in same if owner}):
        findings.refuse("experimental_digest", f"{path}: its tensor digest is that of {owner}")


def _values(path: Path, checkpoint: Checkpoint, known: Known, findings: Findings) -> None:
    """Each large tensor, by its sketch: under another name, in another shape, cast or slightly changed."""
    for name, array in sorted(checkpoint.tensors.items()):
        near = [it for it in known.sketches if it[0] == array.size and it[1] > 0]
        if array.size < ENOUGH_VALUES or array.dtype.kind not in "fiu" or not near:
            continue
        own = sketch(array)
        for _, norm, recorded, whose in near:
            if sketch_distance(own, recorded) <= SAME_TENSOR * norm:
                findings.refuse("experimental_tensor", f"{path}: {one_line(name, 80)} has the values of {whose}")
                break


def _text(path: Path, findings: Findings) -> None:
    """A text, which may say of itself that it is experimental."""
    try:
        data = read_bytes(path, TEXT_LIMIT, "a text")
        text = data.decode("utf-8")
        if "\0" in text:
            raise ValueError
    except (EvidenceError, ValueError) as error:
        reason = str(error) if isinstance(error, EvidenceError) else f"{path}: no text, weights or audio that is known"
        findings.refuse("unexamined", reason)
        return
    if _is_marked(data, text, path):
        findings.refuse("experimental_marked", f"{path}: says lane experimental or promotable false")


def _is_marked(data: bytes, text: str, path: Path) -> bool:
    try:
        return _says_experimental(parse_json(data, path))
    except EvidenceError:  # a report, a configuration, prose
        return MARK.search(text) is not None


def _says_experimental(value: Any) -> bool:
    """Whether a value of JSON or of a checkpoint says, at any depth, `lane: experimental` or `promotable: false`."""
    if isinstance(value, Mapping):
        said = {(str(k).rpartition(".")[2], str(v).lower()) for k, v in value.items() if isinstance(v, bool | str)}
        return bool(said & MARKS) or any(map(_says_experimental, value.values()))
    return isinstance(value, list) and any(map(_says_experimental, value))

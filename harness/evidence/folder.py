"""A folder of files as one checkpoint: shards, a model beside its optimizer, a file for each rank."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from harness.evidence.checkpoint import CHECKPOINT_LIMIT, Array, Checkpoint, NoCheckpoint, read_checkpoint
from harness.evidence.errors import mismatch, one_line
from harness.numerics.digest import dtype_name, raw_bits, tensor_digest

SUFFIXES = (".bin", ".ckpt", ".npz", ".pt", ".pth", ".safetensors")
FILES_LIMIT = 2000


def checkpoint_files(folder: Path) -> list[str]:
    """The files in a folder, and in those in it, that are read as one checkpoint; relative, in order of name. Raises
    EvidenceError for too many."""
    found: list[str] = []
    for here, folders, names in os.walk(folder):
        folders.sort()
        found += [str((Path(here) / name).relative_to(folder)) for name in names if name.endswith(SUFFIXES)]
        if len(found) > FILES_LIMIT:
            raise mismatch(folder, f"more than {FILES_LIMIT:,} files", "a checkpoint's")
    return sorted(found)


def read_checkpoints(path: Path) -> Checkpoint:
    """A checkpoint that is a file or a folder. Of a folder every file with tensors counts; the tensors of files in
    which a name is twice have the file's name before their own. Its `sha256` is over names and digests of the files.
    Raises EvidenceError."""
    if not path.is_dir():
        return read_checkpoint(path)
    read: dict[str, Checkpoint] = {}
    others: dict[str, Any] = {}
    for name in checkpoint_files(path):
        try:
            read[name] = read_checkpoint(path / name)
        except NoCheckpoint as error:
            others[name] = f"<{str(error).partition(': found ')[2].partition(', expected')[0]}>"
        if sum(one.bytes for one in read.values()) > CHECKPOINT_LIMIT:
            raise mismatch(path, f"more than {CHECKPOINT_LIMIT:,} bytes", "a checkpoint of at most that")
    if not read:
        raise mismatch(path, "a folder with no file that holds tensors", f"one of {', '.join(SUFFIXES)}, at least")
    count = Counter(tensor for one in read.values() for tensor in one.tensors)
    begin = {
        file: f"{file.rpartition('.')[0]}." if any(count[tensor] > 1 for tensor in one.tensors) else ""
        for file, one in read.items()
    }
    tensors = {f"{begin[file]}{name}": array for file, one in read.items() for name, array in one.tensors.items()}
    if len(tensors) != sum(count.values()):
        name = next(name for name, number in count.items() if number > 1)
        raise mismatch(path, f"two tensors of the name {one_line(name, 80)!r}", "each name once")
    dtypes = {f"{begin[file]}{name}": kind for file, one in read.items() for name, kind in one.dtypes.items()}
    listed = "".join(f"{one.sha256} {file}\n" for file, one in read.items())
    return Checkpoint(
        path,
        sum(one.bytes for one in read.values()),
        hashlib.sha256(listed.encode("utf-8", "backslashreplace")).hexdigest(),
        dict(sorted(tensors.items())),
        dict(sorted(dtypes.items())),
        _digest(tensors, dtypes),
        {f"{begin[file]}{name}": value for file, one in read.items() for name, value in one.meta.items()} | others,
    )


def selected(
    checkpoint: Checkpoint, include: Sequence[str], exclude: Sequence[str], *, must_fit: bool = True
) -> Checkpoint:
    """The tensors whose names fit a pattern of `include` (all, if there is none) and none of `exclude`. Raises
    EvidenceError where none is left, and with `must_fit` for a pattern that fits none."""
    if not include and not exclude:
        return checkpoint
    for key, patterns in (("include", include), ("exclude", exclude)) if must_fit else ():
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in checkpoint.tensors):
                first = one_line(min(checkpoint.tensors), 80)
                raise mismatch(checkpoint.path, f"no tensor for {pattern!r} of tensors.{key}", f"one, as {first}")
    tensors = {
        name: array
        for name, array in checkpoint.tensors.items()
        if any(fnmatchcase(name, pattern) for pattern in include or ["*"])
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not tensors:
        raise mismatch(checkpoint.path, f"all of its {len(checkpoint.tensors)} tensors left out", "some to compare")
    dtypes = {name: checkpoint.dtypes[name] for name in tensors}
    return replace(checkpoint, tensors=tensors, dtypes=dtypes, tensor_digest=_digest(tensors, dtypes))


def _digest(tensors: Mapping[str, Array], dtypes: Mapping[str, str]) -> str:
    """Over the bits as they are stored."""
    return tensor_digest({name: _stored(array, dtypes[name]) for name, array in tensors.items()})


def _stored(values: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        return raw_bits(dtype, (values.view(np.uint32) >> 16).astype(np.uint16))
    return values if dtype_name(values.dtype) == dtype else raw_bits(dtype, values)

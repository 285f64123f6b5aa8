"""Digests of arrays, files and data sets: what a result *is*, in 64 hexadecimal digits.

Every digest here is SHA-256 over a canonical form (docs/evidence.md) in which no two different inputs share one
sequence of bytes: each tensor begins with its name, dtype and shape, which say exactly how many bytes of values follow.
Values are hashed as bits, so 0.0 and -0.0 differ, and so do two NaNs with different payloads.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

_KINDS = {"i": "int", "u": "uint", "f": "float", "c": "complex"}
_HEX64 = re.compile(r"[0-9a-f]{64}")
_BLOCK = 1 << 20


def dtype_name(dtype: np.dtype[np.generic]) -> str:
    """The canonical name of `dtype`, the same for every byte order and C type: `float32`, `int16`, `bool`, ...

    A structured dtype with one unsigned field stands for a type that NumPy lacks and carries its bits; the field's
    name is the type's: `np.dtype([("bfloat16", "<u2")])` is `bfloat16` (see `raw_bits`).
    Raises ValueError for a dtype without a portable form (objects, text, dates, long double).
    """
    if dtype.kind == "b":
        return "bool"
    if dtype.kind in _KINDS and dtype.itemsize <= (16 if dtype.kind == "c" else 8):
        return f"{_KINDS[dtype.kind]}{8 * dtype.itemsize}"
    if dtype.fields is not None and len(dtype.fields) == 1:
        ((name, field),) = dtype.fields.items()
        if field[0].kind == "u" and field[0].itemsize == dtype.itemsize and re.fullmatch(r"\w+", name):
            return name
    raise ValueError(f"dtype {dtype} has no portable digest")


def raw_bits(name: str, bits: Array) -> Array:
    """`bits` (any shape, unsigned) as values of the type called `name`, which NumPy lacks; a view, same shape.

    Raises ValueError when `bits` is not an unsigned array.
    """
    if bits.dtype.kind != "u":
        raise ValueError(f"the bits of {name} must be unsigned, found {bits.dtype}")
    return np.ascontiguousarray(bits).view(np.dtype([(name, bits.dtype)])).reshape(bits.shape)


def tensor_digest(tensors: Mapping[str, Array], skip: Mapping[str, Sequence[int]] | None = None) -> str:
    """SHA-256 (hex) over `tensors` in name order: for each, name, NUL, dtype, NUL, shape (`128x64`), NUL, values.

    The values are little-endian bytes in C order. `skip` gives, for a tensor, flat indices (strictly increasing) whose
    values are left out; the indices are hashed instead, after the shape (`128x64-3,17`), so a digest that skips can
    neither equal one that does not, nor one that skips elsewhere. An empty list skips nothing.

    Raises ValueError for a name with a NUL, a dtype without a portable form, and positions that are out of range,
    unsorted, repeated, not integers, or of a tensor that is not there.
    """
    skip = {} if skip is None else skip
    unknown = sorted(set(skip) - set(tensors))
    if unknown:
        raise ValueError(f"positions to skip in {unknown[0]!r}, which is not among the {len(tensors)} tensors")
    sha = hashlib.sha256()
    for name in sorted(tensors):
        if "\0" in name:
            raise ValueError(f"a tensor's name must not hold NUL: {name!r}")
        array = np.asarray(tensors[name])
        shape = "x".join(str(length) for length in array.shape)
        kind = dtype_name(array.dtype)
        flat = np.ascontiguousarray(array).reshape(-1)
        positions = _checked_positions(name, skip.get(name, ()), flat.size)
        if positions.size:
            shape += "-" + ",".join(map(str, positions.tolist()))
            flat = np.delete(flat, positions)
        sha.update(f"{name}\0{kind}\0{shape}\0".encode())
        sha.update(flat.astype(flat.dtype.newbyteorder("<"), copy=False).view(np.uint8).data)
    return sha.hexdigest()


def array_digest(name: str, array: Array) -> str:
    """`tensor_digest` of one array (any shape) called `name`."""
    return tensor_digest({name: array})


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in blocks. Raises OSError when it cannot be read."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()


def dataset_digest(sha256s: Iterable[str]) -> str:
    """SHA-256 (hex) over the SHA-256 values of a data set's files, sorted, each followed by a newline.

    It depends on what the files hold and how often, not on their names, times or folders.
    Raises ValueError for a value that is not 64 lower-case hexadecimal digits.
    """
    values = sorted(sha256s)
    for value in values:
        if not _HEX64.fullmatch(value):
            raise ValueError(f"not a SHA-256 in lower-case hexadecimal digits: {value!r}")
    return hashlib.sha256("".join(f"{value}\n" for value in values).encode()).hexdigest()


def _checked_positions(name: str, positions: Sequence[int], size: int) -> npt.NDArray[np.int64]:
    """`positions` as int64 `[n]`; raises ValueError unless they are strictly increasing integers in [0, size)."""
    found = np.asarray(positions)
    if found.size == 0:
        return np.zeros(0, np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(f"positions to skip in {name!r} must be a list of integers")
    if int(found[0]) < 0 or int(found[-1]) >= size or np.any(found[1:] <= found[:-1]):
        raise ValueError(f"positions to skip in {name!r} must be strictly increasing and in [0, {size})")
    return found.astype(np.int64)


def blob_name(data: bytes) -> str:
    """Git's own name for the content of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def code_digest(blobs: Iterable[tuple[str, str]]) -> str:
    """SHA-256 (hex) over code: (path, git's name for its content) of each file, so that git can say which commit has
    it."""
    return hashlib.sha256("".join(f"{blob} {path}\n" for path, blob in sorted(blobs)).encode()).hexdigest()

"""Two checkpoints, tensor by tensor: how many values differ, by how much, and where. Block by block, without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.evidence import read_checkpoints
from harness.numerics.digest import dtype_name

Array = npt.NDArray[Any]
BLOCK = 1 << 18  # elements


@dataclass(frozen=True)
class Stored:
    """A tensor: an array in memory or mapped from its file. Values come in blocks, in C order."""

    array: Array
    parts_of: str = ""  # the kind of the complex tensor whose real and imaginary parts these are

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def kind(self) -> str:
        """`float32 128x64`."""
        return self.parts_of or f"{dtype_name(self.dtype)} {'x'.join(map(str, self.shape))}"

    @property
    def size(self) -> int:
        """How many values."""
        return self.array.size

    def blocks(self) -> Iterator[Array]:
        """The values, flat, at most BLOCK at a time."""
        flat = np.ascontiguousarray(self.array).reshape(-1)
        for start in range(0, flat.size, BLOCK):
            yield flat[start : start + BLOCK]


@dataclass(frozen=True)
class TensorDifference:
    """How two tensors of one name differ. `a` and `b` are the values at the largest difference."""

    name: str
    kind_a: str
    kind_b: str
    differing: int
    size: int
    ulps: int | None  # largest; None where it has no meaning: other types, whole numbers, NaN
    absolute: float  # largest
    flat: int  # index of the largest difference
    index: tuple[int, ...]
    a: float
    b: float
    relative: float  # |a - b| / |b|, L2 over the whole tensor

    def to_json(self) -> dict[str, Any]:
        """Strict JSON values; what is not finite is text."""
        return {n: str(v) if isinstance(v, float) and not math.isfinite(v) else v for n, v in self.__dict__.items()}


def open_checkpoint(path: Path) -> dict[str, Stored]:
    """The tensors of a checkpoint, a file or a folder, by name, in name order. Raises EvidenceError for none."""
    return in_memory(read_checkpoints(path).tensors)


def in_memory(tensors: Mapping[str, Array]) -> dict[str, Stored]:
    """Arrays, as `compare_tensors` takes them; a complex one as its parts, `[..., 2]`: real and imaginary."""
    return {name: _stored(array) for name, array in sorted(tensors.items())}


def _stored(array: Array) -> Stored:
    # In this machine's byte order, so that equal values have equal bits.
    native: Array = np.asarray(array, array.dtype.newbyteorder("="))
    found = Stored(native)
    if native.dtype.kind != "c":
        return found
    parts = np.stack([native.real, native.imag], axis=-1)
    return Stored(parts, parts_of=found.kind)


def compare_tensors(a: Mapping[str, Stored], b: Mapping[str, Stored]) -> list[TensorDifference]:
    """The tensors that differ, in name order; a tensor that one side lacks, or has in another type or shape, is one."""
    found = (_compare(name, a.get(name), b.get(name)) for name in sorted(set(a) | set(b)))
    return [difference for difference in found if difference is not None]


def _compare(name: str, a: Stored | None, b: Stored | None) -> TensorDifference | None:
    if a is None or b is None or a.kind != b.kind:
        kinds = a.kind if a else "missing", b.kind if b else "missing"
        size = max(s.size for s in (a, b) if s)
        return TensorDifference(name, *kinds, size, size, None, math.nan, 0, (), math.nan, math.nan, math.nan)
    differing, start, ulps, apart, largest, norm = 0, 0, 0, 0.0, (-1.0, 0, 0.0, 0.0), 0.0
    floating = a.dtype.kind == "f"
    countable = True
    for x, y in zip(a.blocks(), b.blocks(), strict=True):
        unsigned = f"u{x.dtype.itemsize}"
        different = x.view(unsigned) != y.view(unsigned)
        if floating:
            different |= np.isnan(x)  # NaN equals nothing
        count = int(np.count_nonzero(different))
        y64 = y.astype(np.float64)
        with np.errstate(over="ignore"):
            norm += float(np.dot(y64, y64))
        if count:
            differing += count
            places = np.flatnonzero(different)
            p, q = x[places], y[places]
            with np.errstate(invalid="ignore", over="ignore"):
                distance = np.abs(p.astype(np.float64) - q.astype(np.float64))
                apart += float(np.dot(distance, distance))
            if floating and np.isfinite(p).all() and np.isfinite(q).all():
                ulps = max(ulps, _largest_ulps(p, q))
            else:
                countable = False
            worst = int(np.argmax(np.where(np.isnan(distance), np.inf, distance)))
            far = math.inf if math.isnan(distance[worst]) else float(distance[worst])
            if far > largest[0]:
                largest = (far, start + int(places[worst]), float(p[worst]), float(q[worst]))
        start += x.size
    if not differing:
        return None
    absolute, flat, value_a, value_b = largest
    index = tuple(int(i) for i in np.unravel_index(flat, a.shape)) if a.shape else ()
    relative = math.sqrt(apart / norm) if norm > 0.0 and math.isfinite(apart) and math.isfinite(norm) else math.inf
    if math.isnan(value_a) or math.isnan(value_b):
        absolute = math.nan
    return TensorDifference(
        name, a.kind, b.kind, differing, a.size, ulps if countable else None, absolute, flat, index, value_a, value_b,
        relative,
    )  # fmt: skip


def _largest_ulps(p: Array, q: Array) -> int:
    """How many values of the type lie between those of `p` and `q` (finite), one counted, at most; 0.0 to -0.0: 1."""
    m, n = _ordered(p), _ordered(q)
    return int((np.maximum(m, n) - np.minimum(m, n)).max())


def _ordered(values: Array) -> npt.NDArray[np.uint64]:
    """Whole numbers in the order of the values, adjacent for adjacent values."""
    bits = values.view(f"u{values.dtype.itemsize}")
    sign = bits.dtype.type(1 << (8 * values.dtype.itemsize - 1))
    return np.where(bits & sign, ~bits, bits | sign).astype(np.uint64)

"""Two checkpoints, tensor by tensor: how many values differ, by how much, and where. Block by block, without torch.

Importing torch takes longer than comparing 50 MB. So a torch checkpoint of plain tensors is read here as what it is: a
zip archive of uncompressed storages and a pickle that says which storage is which tensor. The pickle is read by an
unpickler that knows five names, all of them functions of this file, and refuses any other. What is not such a
checkpoint (compressed, strided, of a type that NumPy lacks, an `.npz`) is left to `harness.evidence.read_checkpoint`.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from harness.evidence import read_checkpoint
from harness.numerics.digest import dtype_name

Array = npt.NDArray[Any]
BLOCK = 1 << 18  # elements
_PICKLE_LIMIT = 1 << 26
_LOCAL_HEADER = 30
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
}


@dataclass(frozen=True)
class Stored:
    """A tensor: an array in memory, or the place of its values in a file. Values come in blocks, in C order."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    array: Array | None = None
    path: Path | None = None
    offset: int = 0
    parts_of: str = ""  # the kind of the complex tensor whose real and imaginary parts these are

    @property
    def kind(self) -> str:
        """`float32 128x64`."""
        return self.parts_of or f"{dtype_name(self.dtype)} {'x'.join(map(str, self.shape))}"

    @property
    def size(self) -> int:
        """How many values."""
        return math.prod(self.shape)

    def blocks(self) -> Iterator[Array]:
        """The values, flat, at most BLOCK at a time. Raises OSError, ValueError when the file has become shorter."""
        if self.array is not None:
            flat = np.ascontiguousarray(self.array).reshape(-1)
            for start in range(0, flat.size, BLOCK):
                yield flat[start : start + BLOCK]
            return
        assert self.path is not None
        with self.path.open("rb") as file:
            file.seek(self.offset)
            left = self.size
            while left:
                count = min(left, BLOCK)
                yield np.frombuffer(file.read(count * self.dtype.itemsize), self.dtype, count)
                left -= count


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
    """The tensors of a checkpoint by name, in name order. Raises EvidenceError for a file that is none."""
    try:
        found = _read_plain(path)
    except Exception:  # of damaged files zipfile and pickle raise nearly anything; the other reader says what it is
        found = {}
    if found:
        return dict(sorted(found.items()))
    return in_memory(read_checkpoint(path).tensors)


def in_memory(tensors: Mapping[str, Array]) -> dict[str, Stored]:
    """Arrays, as `compare_tensors` takes them; a complex one as its parts, `[..., 2]`: real and imaginary."""
    return {name: _stored(array) for name, array in sorted(tensors.items())}


def _stored(array: Array) -> Stored:
    # In this machine's byte order, so that equal values have equal bits.
    native: Array = np.asarray(array, array.dtype.newbyteorder("="))
    found = Stored(native.dtype, native.shape, native)
    if native.dtype.kind != "c":
        return found
    parts = np.stack([native.real, native.imag], axis=-1)
    return Stored(parts.dtype, parts.shape, parts, parts_of=found.kind)


def compare_tensors(a: Mapping[str, Stored], b: Mapping[str, Stored]) -> list[TensorDifference]:
    """The tensors that differ, in name order; a tensor that one side lacks, or has in another type or shape, is one.

    Raises OSError, ValueError when a file cannot be read to its end.
    """
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


class _NotPlain(Exception):
    """Not a checkpoint of plain tensors: for the other reader."""


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    key: str
    elements: int
    offset: int
    shape: tuple[int, ...]


def _rebuild_tensor(storage: tuple[str, str, int], offset: int, shape: Any, stride: Any, *_: Any) -> _Tensor:
    expected, step = [], 1
    for length in reversed(shape):
        expected.append(step)
        step *= length
    real = [(s, e) for s, e, n in zip(stride, reversed(expected), shape, strict=True) if n != 1]
    if any(s != e for s, e in real):
        raise _NotPlain
    dtype, key, elements = storage
    if not 0 <= offset <= elements - step or min(shape, default=0) < 0:
        raise _NotPlain
    return _Tensor(dtype, key, elements, offset, tuple(shape))


class _Unpickler(pickle.Unpickler):
    """Knows tensors, their storages and ordered dictionaries; nothing else can be named, so nothing else is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise _NotPlain

    def persistent_load(self, pid: Any) -> tuple[str, str, int]:
        tag, dtype, key, _device, elements = pid
        if tag != "storage" or dtype not in _STORAGES.values() or not isinstance(key, str):
            raise _NotPlain
        return dtype, key, int(elements)


def _read_plain(path: Path) -> dict[str, Stored]:
    """The tensors of a torch checkpoint; raises nearly anything for what is none, or not plain."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        (pickled,) = (name for name in members if name.endswith("/data.pkl"))
        if len(members) != len(archive.infolist()) or members[pickled].file_size > _PICKLE_LIMIT:
            raise _NotPlain
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise _NotPlain
        with archive.open(pickled) as stream:
            loaded = _Unpickler(stream).load()
        found: dict[str, Stored] = {}
        for name, leaf in _flatten(loaded):
            if isinstance(leaf, _Tensor):
                info = members[f"{root}data/{leaf.key}"]
                dtype = np.dtype(leaf.dtype)
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != leaf.elements * dtype.itemsize:
                    raise _NotPlain
                offset = _data_offset(file, info) + leaf.offset * dtype.itemsize
                if name in found:
                    raise _NotPlain
                found[name] = Stored(dtype, leaf.shape, None, path, offset)
        return found


def _flatten(loaded: Any) -> Iterator[tuple[str, Any]]:
    """(name, leaf) of nested dictionaries and lists, named as `read_checkpoint` does."""
    stack: list[tuple[str, Any]] = [("", loaded)]
    if isinstance(loaded, dict) and "adapter" in loaded and loaded.keys() <= {"adapter", "meta"}:
        stack = [("", loaded.get("meta", {})), ("", loaded["adapter"])]
    for _ in range(1_000_000):
        if not stack:
            return
        name, value = stack.pop()
        if isinstance(value, dict | list | tuple):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            stack += [(f"{name}.{key}" if name else str(key), item) for key, item in items]
        else:
            yield name, value
    raise _NotPlain


def _data_offset(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after its local header, whose lengths may differ from the directory's."""
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER)
    if header[:4] != b"PK\x03\x04":
        raise _NotPlain
    return (
        info.header_offset
        + _LOCAL_HEADER
        + int.from_bytes(header[26:28], "little")
        + int.from_bytes(header[28:30], "little")
    )

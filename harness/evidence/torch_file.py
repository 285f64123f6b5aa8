"""The zip format of `torch.save`, read as what it is: storages, and a pickle that says which storage is which tensor.

No torch, and nothing of the file is executed (pickled.py). Every tensor is held against the storage that it is a view
of.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.evidence.errors import EvidenceError, mismatch, one_line
from harness.evidence.pickled import STORAGES, Global, Named, Opaque, Storage, Tensor, Unpickler, flatten
from harness.numerics.digest import raw_bits

Array = npt.NDArray[Any]
DIMENSIONS_LIMIT = 32  # as many as any NumPy takes
# A smaller checkpoint is read into memory: mapped pages of a file that somebody truncates meanwhile kill the process.
MAP_ABOVE = 512 << 20
PICKLE_LIMIT = 64 << 20
SHARING_LIMIT = 8  # tensors may share storage, but not without end
_LOCAL_HEADER = 30
_NUMBERS = {*STORAGES.values(), "uint16", "uint32", "uint64"} - {"bfloat16"}
_BITS = {"bfloat16": "<u2", "float8_e4m3fn": "u1", "float8_e4m3fnuz": "u1", "float8_e5m2": "u1",
         "float8_e5m2fnuz": "u1", "float8_e8m0fnu": "u1"}  # fmt: skip


class _Reader:
    """Makes arrays of the tensors that a pickle describes. `members`: by name."""

    def __init__(self, file: BufferedReader, members: Sequence[zipfile.ZipInfo], path: Path, size: int) -> None:
        self._file, self._path, self._size = file, path, size
        self._members = {member.filename: member for member in members}
        pickled = [name for name in self._members if name.lower().endswith("data.pkl")]
        # torch finds a member under any spelling: two of one would be two readings of one file.
        if len(pickled) != 1 or len({name.lower() for name in self._members}) != len(members):
            raise mismatch(path, "two members of one name", "a checkpoint as torch.save writes it")
        self._root = pickled[0].removesuffix("data.pkl")
        self._storages: dict[str, Array] = {}
        order = self._members.get(f"{self._root}byteorder")
        self._big = order is not None and bytes(self._bytes(order)) == b"big"

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """(name, leaf) of everything in the file. Raises EvidenceError, and anything for what is damaged."""
        loaded = Unpickler(io.BytesIO(bytes(self._bytes(self._members[f"{self._root}data.pkl"]))), self._path).load()
        total = 0
        for name, leaf in flatten(loaded, self._path):
            read = self._leaf(leaf, f"{self._path}: {one_line(name, 80)}")
            total += read.nbytes if isinstance(read, np.ndarray) else 0
            if total > SHARING_LIMIT * self._size:
                found = f"tensors of more than {SHARING_LIMIT} times the file's size"
                raise mismatch(self._path, found, "tensors of their own")
            yield name, read

    def _leaf(self, leaf: Any, where: str) -> Any:
        """A tensor as an array of its stored bits, a plain value as it is, the name of anything else."""
        if isinstance(leaf, Tensor):
            return self._array(leaf, where)
        if isinstance(leaf, Named):
            if leaf.name.startswith("_rebuild_"):
                raise mismatch(where, f"a tensor of another kind ({one_line(leaf.name, 80)})", "a dense tensor")
            return f"<{leaf.name}>"
        if isinstance(leaf, Opaque | Global):
            return f"<{leaf.name}>"
        plain = leaf is None or isinstance(leaf, str | float) or (isinstance(leaf, int) and leaf.bit_length() <= 64)
        return leaf if plain else f"<{type(leaf).__name__}>"

    def _array(self, tensor: Tensor, where: str) -> Array:
        if tensor.dtype not in _NUMBERS and tensor.dtype not in _BITS:
            raise mismatch(where, f"a tensor of {one_line(tensor.dtype, 80)}", "a dense tensor of numbers")
        dtype = np.dtype(_BITS.get(tensor.dtype, tensor.dtype)).newbyteorder(">" if self._big else "<")
        if not all(type(side) is int and side.bit_length() < 64 for side in tensor.shape):
            raise mismatch(where, "a shape that is none", "whole numbers of 64 bits")
        if bytes_of(tensor.shape, dtype, where) > self._size:
            found = f"{math.prod(tensor.shape):,} elements"
            raise mismatch(where, found, f"no more than the file's {self._size:,} bytes hold")
        strides = [step * dtype.itemsize for step in tensor.stride]
        storage = self._storage(tensor.storage, where)
        try:  # NumPy holds the view against the storage
            view: Array = np.ndarray(tensor.shape, dtype, storage.data, tensor.offset * dtype.itemsize, strides)
        except (TypeError, ValueError, OverflowError) as error:
            found = f"a view that does not fit ({one_line(str(error), 100)})"
            raise mismatch(where, found, "one of its storage") from None
        array = np.ascontiguousarray(view).reshape(tensor.shape)
        array = np.conj(array) if tensor.bits.get("conj") else array
        array = np.negative(array) if tensor.bits.get("neg") else array
        return raw_bits(tensor.dtype, array) if tensor.dtype in _BITS else array

    def _storage(self, storage: Storage, where: str) -> Array:
        if storage.key not in self._storages:
            member = self._members.get(f"{self._root}data/{storage.key}")
            if member is None:
                raise mismatch(where, f"no member data/{one_line(storage.key, 30)}", "one with the tensor's values")
            self._storages[storage.key] = self._bytes(member)
        found = self._storages[storage.key]
        item = np.dtype(_BITS.get(storage.dtype, storage.dtype)).itemsize
        if not 0 <= storage.count * item <= found.nbytes:
            claim = f"a storage of {one_line(str(storage.count), 30)} times {item} bytes"
            raise mismatch(where, f"{claim} in a member of {found.nbytes:,}", "no more than the member holds")
        return found[: storage.count * item]

    def _bytes(self, member: zipfile.ZipInfo) -> Array:
        """A member's bytes, which begin after its local header, whose lengths may differ from the directory's."""
        self._file.seek(member.header_offset)
        header = self._file.read(_LOCAL_HEADER)
        if header[:4] != b"PK\x03\x04":
            raise ValueError("no member where the archive says")
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        begin = member.header_offset + _LOCAL_HEADER + lengths
        if begin + member.file_size > self._size:
            raise ValueError("a member that ends behind the file")
        if self._size > MAP_ABOVE and member.file_size:
            return np.memmap(self._path, np.uint8, "r", begin, (member.file_size,))
        self._file.seek(begin)
        return np.frombuffer(self._file.read(member.file_size), np.uint8)


def torch_leaves(
    file: BufferedReader, members: Sequence[zipfile.ZipInfo], path: Path, size: int
) -> list[tuple[str, Any]]:
    """The leaves of a torch checkpoint, by name; tensors as arrays of their stored bits. Raises EvidenceError."""
    for member in members:
        name = one_line(member.filename, 80)
        # torch stores without compression: a compressed member is not from torch, and may be a bomb.
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise mismatch(path, f"the compressed member {name!r}", "a checkpoint as torch.save writes it")
        if member.filename.endswith(".pkl") and member.file_size > PICKLE_LIMIT:
            raise mismatch(path, f"{name!r} of {member.file_size:,} bytes", f"at most {PICKLE_LIMIT:,}")
    try:
        return list(_Reader(file, members, path, size).leaves())
    except EvidenceError:
        raise
    except Exception as error:  # a damaged archive or pickle makes its reader raise anything
        found = f"a damaged checkpoint ({type(error).__name__}: {one_line(str(error), 120)})"
        raise mismatch(path, found, "a whole one") from None


def bytes_of(shape: Sequence[int], dtype: np.dtype[Any], where: object) -> int:
    """How many bytes an array takes. Raises EvidenceError for a shape that no array has: before it is multiplied out,
    and with 0 in it too, where the bytes say nothing of the rest."""
    length = math.prod(max(1, side) for side in shape) if len(shape) <= DIMENSIONS_LIMIT else 0
    if len(shape) > DIMENSIONS_LIMIT or min(shape, default=0) < 0 or length * dtype.itemsize >= 1 << 63:
        found = f"a shape of {len(shape):,} dimensions, {one_line(str(list(shape[:40])), 80)}"
        raise mismatch(where, found, f"at most {DIMENSIONS_LIMIT}, and no more values than memory has addresses")
    return math.prod(shape) * dtype.itemsize

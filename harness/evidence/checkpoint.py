"""Reading checkpoints and arrays without trusting them: nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from harness.evidence.errors import EvidenceError, mismatch, one_line, show
from harness.evidence.pickled import NAME_LIMIT
from harness.evidence.sniff import HEAD, kind_of_file, kind_of_members
from harness.evidence.strict import Count, Text, as_struct, open_regular, parse_json
from harness.evidence.torch_file import bytes_of, torch_leaves
from harness.numerics.digest import dtype_name, raw_bits, tensor_digest

CHECKPOINT_LIMIT = 16 << 30
ARRAY_LIMIT = 2 << 30
HEADER_LIMIT = 16 << 20
NPY_HEADER_LIMIT = 10_000  # as NumPy itself
GENERATORS = (5056, 16, 44)  # bytes of the state of torch's generator on a CPU, of CUDA, of a Mac

Array = npt.NDArray[Any]
DEFLATE_LIMIT = 1032  # times smaller than what it holds: no deflated data is


class _SafeTensor(Struct):
    """What the header of a safetensors file says of a tensor."""

    dtype: Text
    shape: list[Count]
    data_offsets: Annotated[list[Count], Meta(min_length=2, max_length=2)]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    `tensors`: by name, in name order, read-only. bfloat16 values come as float32, which holds them exactly; `dtypes`
    has every tensor's dtype as it was stored, and `tensor_digest` is over the stored bits. `meta`: all that is no
    tensor, by name. The lane's own layout, `{"adapter": tensors, "meta": values}` (`meta` may be missing), is taken
    apart; the names of any other nesting are joined with dots.
    """

    path: Path
    bytes: int
    sha256: str
    tensors: Mapping[str, Array]
    dtypes: Mapping[str, str]
    tensor_digest: str
    meta: Mapping[str, Any]


class NoCheckpoint(EvidenceError):
    """A whole file in one of these formats that holds no tensor, or the state of random number generators alone."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a torch checkpoint (zip format; objects in it are not made), an `.npz` file (no objects) or safetensors.

    Raises EvidenceError for a file that is missing, truncated or no such archive; for one that says it is larger than
    it is; for one with objects that would run something; and, as NoCheckpoint, for one without a tensor.
    """
    with open_regular(path, CHECKPOINT_LIMIT, "a checkpoint") as file:
        try:
            size, sha256 = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise mismatch(path, f"a file that cannot be read ({error})", "a checkpoint") from None
        file.seek(0)
        if path.suffix == ".safetensors" and file.read(2) != b"PK":
            return _checkpoint(path, size, sha256, _safetensors_leaves(file, path, size))
        members = _members(file, path, size)
        known = kind_of_members([member.filename for member in members])
        if not known and any(member.filename.endswith("data.pkl") for member in members):
            leaves = torch_leaves(file, members, path, size)
        elif not known and all(member.filename.endswith(".npy") for member in members):
            leaves = _npz_leaves(file, members, path)
        else:
            found = f"{known}: " if known else ""
            found += f"an archive with {one_line(members[0].filename, 80)!r}"
            raise mismatch(path, found, "a torch checkpoint or an .npz file")
    return _checkpoint(path, size, sha256, leaves)


def _checkpoint(path: Path, size: int, sha256: str, leaves: Sequence[tuple[str, Any]]) -> Checkpoint:
    """A file's leaves as a checkpoint. Raises EvidenceError when no tensor is among them."""
    stored = {name: leaf for name, leaf in leaves if isinstance(leaf, np.ndarray)}
    if not stored:
        made = next((leaf for name, leaf in leaves if not name and isinstance(leaf, str) and leaf.startswith("<")), "")
        found = f"no tensor{f', but an object {made}' if made else ''}"
        raise NoCheckpoint(f"{path}: found {found}, expected a checkpoint with at least one")
    if all(array.dtype == np.uint8 and array.ndim == 1 and array.size in GENERATORS for array in stored.values()):
        raise NoCheckpoint(f"{path}: found the state of random number generators, expected a checkpoint's parameters")
    stored = dict(sorted(stored.items()))
    try:
        digest = tensor_digest(stored)
    except ValueError as error:
        raise mismatch(path, f"a tensor without a digest ({error})", "named tensors of numbers") from None
    return Checkpoint(
        path=path,
        bytes=size,
        sha256=sha256,
        tensors={name: _values(array) for name, array in stored.items()},
        dtypes={name: dtype_name(array.dtype) for name, array in stored.items()},
        tensor_digest=digest,
        meta={name: leaf for name, leaf in leaves if not isinstance(leaf, np.ndarray)},
    )


def read_array(path: Path) -> Array:
    """The array in an `.npy` file (numbers only). Raises EvidenceError."""
    with open_regular(path, ARRAY_LIMIT, "an .npy file") as file:
        return _read_npy(file, os.fstat(file.fileno()).st_size, path)


def _members(file: BufferedReader, path: Path, size: int) -> list[zipfile.ZipInfo]:
    """The members of a zip archive, at least one. Raises EvidenceError unless it can be what it says it is."""
    if (directory := _directory_size(file, size)) > HEADER_LIMIT:
        raise mismatch(path, f"a list of members of {directory:,} bytes", f"at most {HEADER_LIMIT:,}")
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    # zipfile raises half a dozen types for damaged archives, and promises none.
    except Exception as error:
        file.seek(0)
        if known := kind_of_file(head := file.read(HEAD)):
            expected = "a checkpoint: what torch.save writes, .npz or .safetensors"
            raise mismatch(path, f"no readable archive, but {known}", expected) from None
        truncated = " (is it truncated?)" if head.startswith(b"PK") else ""
        reason = one_line(str(error), 120)
        raise mismatch(path, f"no readable archive ({reason})", f"a checkpoint in zip format{truncated}") from None
    if len({member.filename for member in members}) != len(members) or not members:
        raise mismatch(path, "two members of one name" if members else "no member", "a checkpoint")
    if sum(member.compress_size for member in members) > size:
        raise mismatch(path, f"members larger than the file's {size:,} bytes", "a whole archive (is it truncated?)")
    return members


def _directory_size(file: BufferedReader, size: int) -> int:
    """How many bytes the list of an archive's members takes, by its own account (the file's, where it says nothing)."""
    file.seek(max(0, size - (1 << 16) - 22))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    claimed = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
    if claimed == 0xFFFFFFFF and tail.rfind(b"PK\6\6", 0, at) >= 0:  # more than 4 GiB, or written as if it were
        large = tail.rfind(b"PK\6\6", 0, at)
        claimed = int.from_bytes(tail[large + 40 : large + 48], "little")
    return claimed


def _values(stored: Array) -> Array:
    """The values of stored bits, read-only: bfloat16 as float32; another type that NumPy lacks stays as its bits."""
    values = stored
    if stored.dtype.names == ("bfloat16",):
        values = (stored["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    elif stored.dtype.names is not None:
        values = stored[stored.dtype.names[0]]
    values = values.view()
    values.flags.writeable = False
    return values


def _npz_leaves(file: BufferedReader, members: list[zipfile.ZipInfo], path: Path) -> list[tuple[str, Array]]:
    """The arrays of an `.npz` file, by name. Raises EvidenceError."""
    if sum(member.file_size for member in members) > ARRAY_LIMIT:
        raise mismatch(path, "arrays of more bytes than are read", f"at most {ARRAY_LIMIT:,}")
    for member in members:
        most = member.compress_size * (DEFLATE_LIMIT if member.compress_type == zipfile.ZIP_DEFLATED else 1)
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.file_size > most:
            found = f"{one_line(member.filename, 80)!r} of {member.file_size:,} bytes in {member.compress_size:,}"
            raise mismatch(path, found, "members that are stored or deflated, and can hold what they say")
    leaves: list[tuple[str, Array]] = []
    with zipfile.ZipFile(file) as archive:
        for member in members:
            name = member.filename.removesuffix(".npy")
            where = f"{path}: {one_line(name, 80)}"
            try:
                with archive.open(member) as stream:
                    leaves.append((name, _read_npy(stream, member.file_size, where)))
            except EvidenceError:
                raise
            except Exception as error:  # zipfile again: bad checksums, encryption, unknown compression, ...
                raise mismatch(where, f"a damaged member ({one_line(str(error), 120)})", "an array") from None
    return leaves


_SAFETENSORS = {"BOOL": "?", "U8": "u1", "I8": "i1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4",
                "I64": "<i8", "U64": "<u8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}  # fmt: skip


def _safetensors_leaves(file: BufferedReader, path: Path, size: int) -> list[tuple[str, Any]]:
    """The tensors of a safetensors file, and the texts of its metadata. Raises EvidenceError.

    The format: the length of the header in eight bytes, the header in JSON, then the tensors' bytes without a gap.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(HEADER_LIMIT, size - 8):
        raise mismatch(path, f"a header of {length:,} bytes in a file of {size:,}", "a whole safetensors file")
    header = as_struct(parse_json(file.read(length), path), dict[str, dict[str, Any]], path)
    leaves: list[tuple[str, Any]] = list(header.pop("__metadata__", {}).items())
    if any(len(name) > NAME_LIMIT for name in header):
        raise mismatch(path, "a tensor's name without end", f"at most {NAME_LIMIT:,} characters")
    described = as_struct(header, dict[str, _SafeTensor], path)
    end = 0
    for name, tensor in sorted(described.items(), key=lambda item: item[1].data_offsets):
        where, (first, last) = f"{path}: {one_line(name, 80)}", tensor.data_offsets
        if tensor.dtype not in _SAFETENSORS:
            raise mismatch(where, f"dtype {show(tensor.dtype)}", f"one of {', '.join(_SAFETENSORS)}")
        dtype = np.dtype(_SAFETENSORS[tensor.dtype])
        if first != end or last - first != bytes_of(tensor.shape, dtype, where):
            raise mismatch(where, f"bytes {first} to {last}", f"the bytes of its shape, from {end} on")
        if 8 + length + last > size:
            raise mismatch(path, f"{size:,} bytes", "as many as its header says (is it truncated?)")
        end = last
        data = file.read(last - first)
        array: Array = (np.frombuffer(data, dtype) if data else np.empty(0, dtype)).reshape(tensor.shape)
        leaves.append((name, raw_bits("bfloat16", array) if tensor.dtype == "BF16" else array))
    if 8 + length + end != size:
        raise mismatch(path, f"{size - 8 - length:,} bytes of tensors", f"{end:,}, as the header says")
    return leaves


def _npy_header(file: Any, where: object) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and dtype of an open `.npy` file. Raises EvidenceError."""
    try:
        version = np.lib.format.read_magic(file)
        digits = {(1, 0): 2, (2, 0): 4}[version]
        prefix = file.read(digits)
        if (length := int.from_bytes(prefix, "little")) > NPY_HEADER_LIMIT:
            raise ValueError(f"it says that it is {length:,} bytes long; at most {NPY_HEADER_LIMIT:,} are read")
        header = io.BytesIO(prefix + file.read(length))
        readers = {2: np.lib.format.read_array_header_1_0, 4: np.lib.format.read_array_header_2_0}
        return readers[digits](header)
    # The header is a Python literal, and evaluating a damaged one raises whatever Python's compiler does.
    except Exception as error:
        found = f"no .npy header ({type(error).__name__}: {one_line(str(error), 80)})"
        raise mismatch(where, found, "an .npy file") from None


def _read_npy(file: Any, size: int, where: object) -> Array:
    """The array in an open `.npy` file of `size` bytes. Raises EvidenceError."""
    shape, fortran, dtype = _npy_header(file, where)
    if dtype.kind not in "biufc":
        raise mismatch(where, f"an array of {one_line(str(dtype), 80)}", "an array of numbers")
    expected = bytes_of(shape, dtype, where)
    if expected > size:
        found = f"a header for shape {one_line(str(shape), 80)} in {size:,} bytes"
        raise mismatch(where, found, "a whole array (is it truncated?)")
    data = file.read(expected + 1)
    if len(data) != expected:
        found = f"{'more' if len(data) > expected else 'less'} than the header's {expected:,} bytes"
        raise mismatch(where, found, "as many as the header says")
    array: Array = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
    return array.reshape(shape, order="F" if fortran else "C")

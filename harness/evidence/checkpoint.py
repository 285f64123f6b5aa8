"""Reading checkpoints and arrays without trusting them: nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from harness.evidence.errors import EvidenceError, mismatch, one_line, show
from harness.evidence.strict import COUNT, OBJECT, TEXT, list_of, open_regular, parse_json, read_as, record
from harness.numerics.digest import dtype_name, raw_bits, tensor_digest

CHECKPOINT_LIMIT = 16 << 30
ARRAY_LIMIT = 2 << 30
# A smaller checkpoint is read into memory: mapped pages of a file that somebody truncates meanwhile kill the process.
MAP_ABOVE = 512 << 20
PICKLE_LIMIT = 64 << 20
HEADER_LIMIT = 16 << 20
NPY_HEADER_LIMIT = 10_000  # as NumPy itself
NODES_LIMIT = 1_000_000
NAME_LIMIT = 4096
SHARING_LIMIT = 8  # tensors may share storage, but not without end

Array = npt.NDArray[Any]
DIMENSIONS_LIMIT = 32  # as many as any NumPy takes
DEFLATE_LIMIT = 1032  # times smaller than what it holds: no deflated data is
_SAFETENSOR = record({"dtype": TEXT, "shape": list_of(COUNT), "data_offsets": list_of(COUNT, 2)})


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


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a torch checkpoint (zip format, tensors and plain values only), an `.npz` file (no objects) or safetensors.

    Raises EvidenceError for a file that is missing, truncated or no such archive; for one that says it is larger than
    it is; for one that holds other objects (which are not loaded); and for one without a tensor.
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
        if any(member.filename.endswith("data.pkl") for member in members):
            leaves = _torch_leaves(file, members, path, size)
        elif all(member.filename.endswith(".npy") for member in members):
            leaves = _npz_leaves(file, members, path)
        else:
            found = one_line(members[0].filename, 80)
            raise mismatch(path, f"an archive with {found!r}", "a torch checkpoint or an .npz file")
    return _checkpoint(path, size, sha256, leaves)


def _checkpoint(path: Path, size: int, sha256: str, leaves: Sequence[tuple[str, Any]]) -> Checkpoint:
    """A file's leaves as a checkpoint. Raises EvidenceError when no tensor is among them."""
    stored = {name: leaf for name, leaf in leaves if isinstance(leaf, np.ndarray)}
    if not stored:
        raise mismatch(path, "no tensor", "a checkpoint with at least one")
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
        reason = one_line(str(error), 120)
        raise mismatch(
            path, f"no readable archive ({reason})", "a checkpoint in zip format (is it truncated?)"
        ) from None
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


def _torch_leaves(file: BufferedReader, members: list[zipfile.ZipInfo], path: Path, size: int) -> list[tuple[str, Any]]:
    """The leaves of a torch checkpoint, by name; tensors as arrays of their stored bits. Raises EvidenceError."""
    import torch

    for member in members:
        name = one_line(member.filename, 80)
        # torch stores without compression: a compressed member is not from torch, and may be a bomb.
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise mismatch(path, f"the compressed member {name!r}", "a checkpoint as torch.save writes it")
        if member.filename.endswith(".pkl") and member.file_size > PICKLE_LIMIT:
            raise mismatch(path, f"{name!r} of {member.file_size:,} bytes", f"at most {PICKLE_LIMIT:,}")
    _check_storages(file, members, path)
    try:
        # By its path only to be mapped: torch takes whatever is named .safetensors for that.
        file.seek(0)
        mapped = size > MAP_ABOVE
        loaded = torch.load(path if mapped else file, weights_only=True, map_location="cpu", mmap=mapped)
    except pickle.UnpicklingError as error:
        # torch wraps what it refused in advice, such as to load the file without this check.
        reason = re.split(r"WeightsUnpickler error:|trusted source\.", str(error))[-1]
        reason = re.split("Please use|Check the documentation", reason)[0]
        found = f"objects that are not loaded, because that could execute code ({one_line(reason.strip(), 160)})"
        raise mismatch(path, f"{found}; refused unread", "tensors and plain values only") from None
    # A damaged archive makes torch raise almost anything.
    except Exception as error:
        found = f"a damaged checkpoint ({type(error).__name__}: {one_line(str(error), 120)})"
        raise mismatch(path, found, "a whole one") from None
    leaves: list[tuple[str, Any]] = []
    total = 0
    for name, leaf in _flatten(loaded, path):
        leaves.append((name, _from_torch(leaf, f"{path}: {one_line(name, 80)}", size)))
        total += leaves[-1][1].nbytes if isinstance(leaves[-1][1], np.ndarray) else 0
        if total > SHARING_LIMIT * size:
            raise mismatch(path, f"tensors of more than {SHARING_LIMIT} times the file's size", "tensors of their own")
    return leaves


# Bytes of an element, by the storage that a torch pickle names; all others have one.
_ITEM_BYTES = {"BFloat16Storage": 2, "HalfStorage": 2, "ShortStorage": 2, "FloatStorage": 4, "IntStorage": 4,
               "QInt32Storage": 4, "DoubleStorage": 8, "LongStorage": 8, "ComplexFloatStorage": 8,
               "ComplexDoubleStorage": 16}  # fmt: skip


class _Anything:
    """Stands for every class and function that a pickle names, so that none is imported or called."""

    def __init__(self, *_: Any) -> None: ...

    __setstate__ = __setitem__ = append = extend = add = __init__


def _check_storages(file: BufferedReader, members: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Holds each storage that the pickle of a torch checkpoint claims against the member that has its bytes.

    Where a file is mapped torch believes the claim, and takes what lies behind them. Raises EvidenceError; of what is
    no pickle torch itself says so.
    """
    sizes = {member.filename.lower(): member.file_size for member in members}  # torch finds them in any case
    pickled = [member for member in members if member.filename.lower().endswith("data.pkl")]
    if len(pickled) != 1 or len(sizes) != len(members):
        raise mismatch(path, "two members of one name", "a checkpoint")
    folder = pickled[0].filename.lower().removesuffix("data.pkl")

    class Claims(pickle._Unpickler):  # the one that is written in Python asks for memory by what is there
        dispatch: ClassVar = {**pickle._Unpickler.dispatch}
        del dispatch[pickle.BYTEARRAY8[0]]  # but for this, which torch does not write

        def find_class(self, module: str, name: str) -> Any:
            if name == "bytearray":  # which makes as many bytes as it is told to
                raise mismatch(path, f"objects that are not loaded ({module}.{name})", "tensors and plain values only")
            return type(name, (_Anything,), {})

        def persistent_load(self, pid: Any) -> Any:
            _, storage, key, _, count = pid
            item = _ITEM_BYTES.get(storage.__name__, 1)
            there = sizes.get(f"{folder}data/{key}".lower())
            if there is not None and not 0 <= count * item <= there:
                found = f"a storage of {one_line(str(count), 30)} times {item} bytes in a member of {there:,}"
                raise mismatch(path, found, "no more than the member holds")
            return _Anything()

    try:
        with zipfile.ZipFile(file) as archive:
            data = archive.read(pickled[0])
        Claims(io.BytesIO(data)).load()
    except EvidenceError:
        raise
    except Exception:  # a damaged pickle makes the reader raise anything
        return


def _flatten(loaded: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """(name, leaf) of nested dictionaries, lists and tuples. Raises EvidenceError for cycles and for name clashes."""
    stack = [("", loaded)]
    if isinstance(loaded, dict) and "adapter" in loaded and loaded.keys() <= {"adapter", "meta"}:
        stack = [("", loaded.get("meta", {})), ("", loaded["adapter"])]
    names: set[str] = set()
    nodes = 0
    while stack:
        name, value = stack.pop()
        nodes += 1
        if nodes > NODES_LIMIT or len(name) > NAME_LIMIT:
            raise mismatch(path, "values nested without end", f"at most {NODES_LIMIT:,} values with names of their own")
        if isinstance(value, dict | list | tuple):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                if not isinstance(key, str | int) or (isinstance(key, int) and key.bit_length() > 64):
                    raise mismatch(path, f"a key of type {type(key).__name__}", "names, and whole numbers of 64 bits")
                stack.append((f"{name}.{key}" if name else str(key), item))
        elif name in names:
            raise mismatch(path, f"two values of the name {one_line(name, 80)!r}", "each name once")
        else:
            names.add(name)
            yield name, value


def _from_torch(leaf: Any, where: str, size: int) -> Any:
    """A leaf of a torch checkpoint: a tensor as an array of its stored bits, a plain value as it is."""
    import torch

    if not isinstance(leaf, torch.Tensor):
        plain = leaf is None or isinstance(leaf, str | float) or (isinstance(leaf, int) and leaf.bit_length() <= 64)
        return leaf if plain else f"<{type(leaf).__name__}>"
    try:
        if leaf.layout != torch.strided or leaf.is_nested or leaf.is_quantized or leaf.device.type != "cpu":
            raise mismatch(where, f"a tensor of {leaf.dtype}, {leaf.layout}, on {leaf.device}", "a dense tensor")
        if leaf.numel() * leaf.element_size() > size:
            raise mismatch(where, f"{leaf.numel():,} elements", f"no more than the file's {size:,} bytes hold")
        dense = leaf.detach().resolve_conj().resolve_neg().contiguous()
        if leaf.dtype == torch.bfloat16 or (leaf.dtype.is_floating_point and leaf.element_size() == 1):
            unsigned = torch.uint16 if leaf.element_size() == 2 else torch.uint8
            return raw_bits(str(leaf.dtype).removeprefix("torch."), dense.view(unsigned).numpy())
        array: Array = dense.numpy()
        return array
    except (TypeError, RuntimeError, ValueError, MemoryError) as error:
        found = f"a tensor of {leaf.dtype} ({one_line(str(error), 100)})"
        raise mismatch(where, found, "a tensor of numbers") from None


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
    header = read_as(OBJECT, parse_json(file.read(length), path), path)
    leaves: list[tuple[str, Any]] = list(read_as(OBJECT, header.pop("__metadata__", {}), path).items())
    if any(len(name) > NAME_LIMIT for name in header):
        raise mismatch(path, "a tensor's name without end", f"at most {NAME_LIMIT:,} characters")
    described = {name: read_as(_SAFETENSOR, value, f"{path}: {one_line(name, 80)}") for name, value in header.items()}
    end = 0
    for name, tensor in sorted(described.items(), key=lambda item: item[1]["data_offsets"]):
        where, (first, last) = f"{path}: {one_line(name, 80)}", tensor["data_offsets"]
        if tensor["dtype"] not in _SAFETENSORS:
            raise mismatch(where, f"dtype {show(tensor['dtype'])}", f"one of {', '.join(_SAFETENSORS)}")
        dtype = np.dtype(_SAFETENSORS[tensor["dtype"]])
        if first != end or last - first != _bytes_of(tensor["shape"], dtype, where):
            raise mismatch(where, f"bytes {first} to {last}", f"the bytes of its shape, from {end} on")
        if 8 + length + last > size:
            raise mismatch(path, f"{size:,} bytes", "as many as its header says (is it truncated?)")
        end = last
        data = file.read(last - first)
        array: Array = (np.frombuffer(data, dtype) if data else np.empty(0, dtype)).reshape(tensor["shape"])
        leaves.append((name, raw_bits("bfloat16", array) if tensor["dtype"] == "BF16" else array))
    if 8 + length + end != size:
        raise mismatch(path, f"{size - 8 - length:,} bytes of tensors", f"{end:,}, as the header says")
    return leaves


def _bytes_of(shape: Sequence[int], dtype: np.dtype[Any], where: object) -> int:
    """How many bytes an array takes. Raises EvidenceError for a shape that no array has: before it is multiplied out,
    and with 0 in it too, where the bytes say nothing of the rest."""
    length = math.prod(max(1, side) for side in shape) if len(shape) <= DIMENSIONS_LIMIT else 0
    if len(shape) > DIMENSIONS_LIMIT or min(shape, default=0) < 0 or length * dtype.itemsize >= 1 << 63:
        found = f"a shape of {len(shape):,} dimensions, {one_line(str(list(shape[:40])), 80)}"
        raise mismatch(where, found, f"at most {DIMENSIONS_LIMIT}, and no more values than memory has addresses")
    return math.prod(shape) * dtype.itemsize


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
    expected = _bytes_of(shape, dtype, where)
    if expected > size:
        found = f"a header for shape {one_line(str(shape), 80)} in {size:,} bytes"
        raise mismatch(where, found, "a whole array (is it truncated?)")
    data = file.read(expected + 1)
    if len(data) != expected:
        found = f"{'more' if len(data) > expected else 'less'} than the header's {expected:,} bytes"
        raise mismatch(where, found, "as many as the header says")
    array: Array = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
    return array.reshape(shape, order="F" if fortran else "C")

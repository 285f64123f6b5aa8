"""Reading checkpoints and arrays without trusting them: nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

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
NODES_LIMIT = 1_000_000
NAME_LIMIT = 4096
SHARING_LIMIT = 8  # tensors may share storage, but not without end

Array = npt.NDArray[Any]
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


def _torch_leaves(file: BufferedReader, members: list[zipfile.ZipInfo], path: Path, size: int) -> list[tuple[str, Any]]:
    """The leaves of a torch checkpoint, by name; tensors as arrays of their stored bits. Raises EvidenceError."""
    import pickle

    import torch

    for member in members:
        name = one_line(member.filename, 80)
        # torch stores without compression: a compressed member is not from torch, and may be a bomb.
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise mismatch(path, f"the compressed member {name!r}", "a checkpoint as torch.save writes it")
        if member.filename.endswith(".pkl") and member.file_size > PICKLE_LIMIT:
            raise mismatch(path, f"{name!r} of {member.file_size:,} bytes", f"at most {PICKLE_LIMIT:,}")
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
                if not isinstance(key, str | int):
                    raise mismatch(path, f"a key of type {type(key).__name__}", "names")
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
    described = {name: read_as(_SAFETENSOR, value, f"{path}: {one_line(name, 80)}") for name, value in header.items()}
    end = 0
    for name, tensor in sorted(described.items(), key=lambda item: item[1]["data_offsets"]):
        where, (first, last) = f"{path}: {one_line(name, 80)}", tensor["data_offsets"]
        if tensor["dtype"] not in _SAFETENSORS:
            raise mismatch(where, f"dtype {show(tensor['dtype'])}", f"one of {', '.join(_SAFETENSORS)}")
        dtype = np.dtype(_SAFETENSORS[tensor["dtype"]])
        if first != end or last - first != math.prod(tensor["shape"]) * dtype.itemsize:
            raise mismatch(where, f"bytes {first} to {last}", f"the bytes of its shape, from {end} on")
        end = last
        data = file.read(last - first)
        if len(data) != last - first:
            raise mismatch(path, f"{size:,} bytes", "as many as its header says (is it truncated?)")
        array: Array = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
        array = array.reshape(tensor["shape"])
        leaves.append((name, raw_bits("bfloat16", array) if tensor["dtype"] == "BF16" else array))
    if 8 + length + end != size:
        raise mismatch(path, f"{size - 8 - length:,} bytes of tensors", f"{end:,}, as the header says")
    return leaves


def _read_npy(file: Any, size: int, where: object) -> Array:
    """The array in an open `.npy` file of `size` bytes. Raises EvidenceError."""
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = readers[version](file)
    # The header is a Python literal, and evaluating a damaged one raises whatever Python's compiler does.
    except Exception as error:
        found = f"no .npy header ({type(error).__name__}: {one_line(str(error), 80)})"
        raise mismatch(where, found, "an .npy file") from None
    if dtype.kind not in "biufc":
        raise mismatch(where, f"an array of {one_line(str(dtype), 80)}", "an array of numbers")
    expected = math.prod(shape) * dtype.itemsize
    if expected > size or any(length < 0 for length in shape):
        found = f"a header for shape {one_line(str(shape), 80)} in {size:,} bytes"
        raise mismatch(where, found, "a whole array (is it truncated?)")
    data = file.read(expected + 1)
    if len(data) != expected:
        found = f"{'more' if len(data) > expected else 'less'} than the header's {expected:,} bytes"
        raise mismatch(where, found, "as many as the header says")
    try:
        array: Array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    except (ValueError, OverflowError) as error:
        raise mismatch(where, f"an array that cannot be ({one_line(str(error), 80)})", "an array of numbers") from None
    return array

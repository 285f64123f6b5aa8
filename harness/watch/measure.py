"""What the recorder measures of tensors and inputs: bits, norms, digests."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .names import Part

BLOCK = 1 << 14  # values whose bits are added up at a time
NORMED = 25_000_000  # values of all tensors together up to which norms are taken at every step
DIGESTED = 1 << 22  # values of one input that enter the batch's digest
DEEP = 6  # levels of an input that are looked into
MASK = (1 << 64) - 1
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_full(step: int) -> bool:
    """Whether a step is one at which bits, sketches and the program's state are recorded: 1, 2, 4, 8, 16, …"""
    return step & (step - 1) == 0


def every_for(values: int) -> int:
    """At every how many steps the norms of so many values are taken, where nobody says it: norms of 10 million values
    cost a few milliseconds, which is 1 % of a step on a CPU; those of more are taken at fewer steps."""
    return max(1, values // NORMED)


def bits(tensor: torch.Tensor, first: int | Part = 0) -> int:
    """The sum over all values of (bits as a signed integer) · (2 · index + 1), modulo 2⁶⁴. ``first``: where they begin.

    Integers add exactly in any order: the sum is the same on every device and however the tensor lies in memory, and
    those of a tensor's parts add up to that of the whole. On a CPU in blocks that one core computes in its cache: four
    times as fast as whole, and no wait for other threads."""
    if isinstance(first, Part):
        return _bits_of_part(tensor, first) if first.counts else 0
    flat = tensor.detach()
    flat = (torch.view_as_real(flat) if flat.is_complex() else flat).reshape(-1)
    flat = flat.view(torch.uint8) if flat.dtype == torch.bool else flat.view(INTEGERS[flat.element_size()])
    weights, work = _block(flat.device)
    found, size = 0, len(work)
    for start in range(0, flat.numel(), size):
        part = work[: min(size, flat.numel() - start)]
        part.copy_(flat[start : start + size])
        found += int((part * weights[: len(part)]).sum() if part.is_cuda else torch.dot(part, weights[: len(part)]))
        found += 2 * (first + start) * int(part.sum()) if first + start else 0
    return found & MASK


def _bits_of_part(tensor: torch.Tensor, part: Part) -> int:
    """The same sum. An index is a sum over the dimensions, so one dimension after the other is added up."""
    values = tensor.detach()
    values = (torch.view_as_real(values) if values.is_complex() else values).contiguous()
    shape, offset = [*part.shape, 2][: values.dim()], [*part.offset, 0][: values.dim()]
    values = values.view(torch.uint8) if values.dtype == torch.bool else values.view(INTEGERS[values.element_size()])
    found, stride = int(values.sum(dtype=torch.int64)), 1
    for dimension in reversed(range(values.dim())):
        others = [other for other in range(values.dim()) if other != dimension]
        sums = values.sum(others, dtype=torch.int64) if others else values.to(torch.int64)
        places = torch.arange(len(sums), dtype=torch.int64, device=sums.device) + int(offset[dimension])
        found += 2 * stride * int((sums * places).sum())
        stride *= int(shape[dimension])
    return found & MASK


@functools.lru_cache(maxsize=16)
def _block(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(The weights of a block, room for its values), int64."""
    size = BLOCK if device.type == "cpu" else BLOCK << 7
    weights = 2 * torch.arange(size, dtype=torch.int64, device=device) + 1
    return weights, torch.empty_like(weights)


def norms(tensors: list[torch.Tensor]) -> list[float]:
    """The L2 norm of each, computed in float32 or wider where it lies."""
    if not tensors:
        return []
    found: list[torch.Tensor] = []
    if len({(t.dtype, t.device) for t in tensors}) == 1 and tensors[0].dtype in (torch.float32, torch.float64):
        found = list(torch._foreach_norm(tensors))
    else:
        wide = (torch.float64, torch.complex64, torch.complex128)
        found = [torch.linalg.vector_norm(t, dtype=None if t.dtype in wide else torch.float32) for t in tensors]
    if len({n.device for n in found}) == 1:  # one wait for the device, and not one for each
        return [float(value) for value in torch.stack([n.double() for n in found]).tolist()]
    return [float(n) for n in found]


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """What of a tensor lies here and is dense."""
    local = getattr(tensor, "to_local", None)  # a DTensor
    tensor = local() if callable(local) else tensor
    tensor = tensor.detach()
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def text(value: float) -> str:
    return float(value).hex()


def is_compiling() -> bool:
    """Whether torch.compile traces this very call: then there is nothing to see, and nothing that may be done."""
    return torch.compiler.is_compiling()


def digest(value: Any) -> str:
    """16 hex digits for an input: its tensors' dtypes, shapes, bits, and what else is plain in it, in order; "" where
    there is no tensor in it.

    Of a tensor the first 4 million values count. What a model computed (it has a graph behind it) is no input."""
    found, is_empty = hashlib.blake2b(digest_size=8), True
    for part in _parts(value, 0):
        if isinstance(part, torch.Tensor):
            tensor, is_empty = plain(part), False
            found.update(f"{tensor.dtype} {list(tensor.shape)} {bits(tensor.reshape(-1)[:DIGESTED]):x}".encode())
        else:
            found.update(repr(part).encode("utf-8", "backslashreplace"))
    return "" if is_empty else found.hexdigest()


def together(digests: list[str]) -> str:
    """16 hex digits for several digests in order; `none` for none."""
    text = " ".join(filter(None, digests))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest() if text else "none"


def _parts(value: Any, depth: int) -> Iterator[Any]:
    if isinstance(value, torch.Tensor):
        if value.grad_fn is None:
            yield value
    elif value is None or isinstance(value, bool | int | float | str):
        yield value
    elif type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
        yield torch.frombuffer(bytearray(value.tobytes() or b"\0"), dtype=torch.uint8)
    elif depth < DEEP and isinstance(value, Mapping):
        for key in value:
            yield str(key)
            yield from _parts(value[key], depth + 1)
    elif depth < DEEP and isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item, depth + 1)


def flat(value: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    """The tensors of a module's output."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth < DEEP and isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from flat(item, depth + 1)


def rate(group: Mapping[str, Any]) -> float:
    """The learning rate of a parameter group; NaN where it has none, or the optimizer finds its own."""
    found = group.get("lr")
    return float("nan") if found is None else float(found)


def settings(group: Mapping[str, Any]) -> dict[str, str]:
    """The numbers of a parameter group that are not the learning rate: weight decay, betas, momentum, …"""
    return {
        name: str(value)
        for name, value in sorted(group.items())
        if isinstance(value, bool | int | float | str | tuple | None)
        and name not in ("lr", "initial_lr", "params", "param_names")
    }


def rank() -> tuple[int, int]:
    """(Rank, number of ranks) of this process."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    try:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 0, 1


@functools.lru_cache(maxsize=1)
def sketch_function() -> Callable[..., Any] | None:
    """numerics/sketch.py's function, from its file; None where there is no NumPy."""
    try:
        place = Path(__file__).resolve().parents[1] / "numerics" / "sketch.py"
        spec = importlib.util.spec_from_file_location("_harness_watch_sketch", place)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except ImportError:
        return None
    found: Callable[..., Any] = module.sketch
    return found


def hexes(value: int) -> str:
    return f"{value:016x}"

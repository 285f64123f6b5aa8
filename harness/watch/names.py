"""Names of modules and parameters as the program knows them, whatever they are wrapped in; and what is a part only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

# A class that wraps a module, and what it calls it.
WRAPPERS = {
    "DataParallel": "module",
    "DeepSpeedEngine": "module",
    "DistributedDataParallel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "OptimizedModule": "_orig_mod",
}


def named_modules(root: Any) -> Iterator[tuple[str, Any]]:
    """The modules of one, itself included, each by its name without those of its wrappers; once each."""
    shown = {"": ""}
    wrapped: dict[str, str] = {}  # by name of a wrapper, that of what it wraps
    for path, module in root.named_modules():
        for kind in type(module).__mro__:
            if kind.__name__ in WRAPPERS:
                wrapped[path] = f"{path}.{WRAPPERS[kind.__name__]}".lstrip(".")
        if path:
            above, _, own = path.rpartition(".")
            shown[path] = shown[above] if wrapped.get(above) == path else f"{shown[above]}.{own}".lstrip(".")
        yield shown[path], module


def named_parameters(root: Any) -> Iterator[tuple[str, Any]]:
    """The parameters likewise. Where two would have one name, they have their own."""
    known: dict[str, str] = {}
    for (path, _), (name, _) in zip(root.named_modules(), named_modules(root), strict=True):
        known[path] = name
    pairs = []
    for path, parameter in root.named_parameters():
        above, _, own = path.rpartition(".")
        pairs.append((path, f"{known.get(above, above)}.{own}".lstrip("."), parameter))
    count = Counter(name for _, name, _ in pairs)
    for path, name, parameter in pairs:
        yield path if count[name] > 1 else name, parameter


def class_name(root: Any) -> str:
    """The name of a module's class, without its wrappers and as it was before `fully_shard` changed it."""
    inner = next((module for name, module in named_modules(root) if not name and not _is_wrapper(module)), root)
    return next(kind.__name__ for kind in type(inner).__mro__ if not kind.__name__.startswith("FSDP"))


def _is_wrapper(module: Any) -> bool:
    return any(kind.__name__ in WRAPPERS for kind in type(module).__mro__)


class Part(NamedTuple):
    """Where a part of a tensor lies whose values are not one run of the whole tensor's: what is split is not its first
    dimension, or not that alone. `counts`: false for a copy of what another process has."""

    shape: Sequence[int]  # of the whole
    offset: Sequence[int]
    counts: bool = True


def is_part(tensor: Any) -> bool:
    """Whether what lies here of a parameter is a part of it: of a DTensor that is sharded, or with FSDP."""
    placements = getattr(tensor, "placements", ())
    return any(p.is_shard() for p in placements) or bool(getattr(tensor, "_fsdp_flattened", False))


def first_here(tensor: Any) -> int | Part:
    """How many values of the whole tensor come before the part that lies here; where that is no one run of them, or
    another process has it too (a mesh that shards and replicates), its place."""
    placements = getattr(tensor, "placements", ())
    if not any(p.is_shard() for p in placements):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset as place

    shape, offset = place(tensor.shape, tensor.device_mesh, tensor.placements)
    where = tensor.device_mesh.get_coordinate() or ()
    counts = not any(p.is_replicate() and at for p, at in zip(placements, where, strict=False))
    if list(shape[1:]) != list(tensor.shape[1:]) or not counts:
        return Part(tuple(tensor.shape), tuple(offset), counts)
    values = int(offset[0])
    for side in shape[1:]:
        values *= int(side)
    return values

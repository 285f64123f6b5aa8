"""Memory that the allocator keeps in holes, given back in the middle of a long forward pass."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

SHARES = (0, 12, 22)  # of 24 layers: the holes before the last matter most, for the peak comes after them
LONG = 2 << 20  # bytes of one layer's input, from which on the holes are worth a look


def find_trim() -> Callable[[int], Any] | None:
    """glibc's ``malloc_trim``; None with another C library."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back_on_the_way(transformer: Any, trim: Callable[[int], Any] | None) -> list[Any]:
    """Have ``trim`` called before some of ``transformer.layers``, and before the last of these also on the way back;
    returns the hooks' handles.

    Only where a layer's input ``[batch, time, dim]`` is LONG. torch asks for aligned blocks, and glibc (seen with 2.36)
    does not give a freed one to the next request of its size, so that a forward pass leaves holes between what it keeps
    for the backward pass, and a backward pass grows while it frees: of 3.9 GB at musicgen-small's size and 750 tokens,
    0.5 GB are given back so. Each call takes 0.5 to 1 % of such a step, and more of a short one (measured).
    """
    if trim is None:
        return []
    layers = transformer.layers
    places = sorted({len(layers) * share // 24 for share in SHARES})

    def before(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0]
        if x.device.type == "cpu" and x.numel() * x.element_size() >= LONG:
            trim(0)
            if x.requires_grad and layer is layers[places[-1]]:
                x.register_hook(back)

    def back(gradient: Tensor) -> None:
        trim(0)

    return [layers[at].register_forward_pre_hook(before) for at in places]

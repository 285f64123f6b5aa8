"""The voice adapter: low-rank changes (LoRA, Hu et al. 2021) of the transformer's feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.lane.draws import Draws

RANK = 8
LINEARS = ("linear1", "linear2")  # of each layer of audiocraft's transformer: its feed-forward block


class LowRank(nn.Module):
    """``x @ down.T @ up.T``: what is added to a frozen linear layer's output. ``x``: ``[…, inputs]``; the result:
    ``[…, outputs]``, in the parameters' dtype. Zero at the start, for ``up`` (``[outputs, RANK]``) is; ``down``
    (``[RANK, inputs]``) is uniform within ``inputs ** -0.5``. It looks at one position at a time: it cannot see the
    future, and is the same in a stream as over a whole sequence."""

    def __init__(self, inputs: int, outputs: int, draws: Draws) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.from_numpy(draws.uniform((RANK, inputs), inputs**-0.5)))
        self.up = nn.Parameter(torch.zeros(outputs, RANK, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.down.dtype) @ self.down.T @ self.up.T


def make_adapters(lm: Any, seed: int, *, dtype: torch.dtype, device: str) -> nn.ModuleList:
    """The lane's adapters for audiocraft's ``lm``, one ModuleDict for each layer, freshly initialised from ``seed``:
    drawn in float64, layer by layer, then rounded to ``dtype``."""
    draws = Draws(seed, "adapter")
    layers = [
        nn.ModuleDict({name: LowRank(*_sizes(getattr(layer, name)), draws) for name in LINEARS})
        for layer in lm.transformer.layers
    ]
    return nn.ModuleList(layers).to(device=device, dtype=dtype)


def _sizes(linear: nn.Linear) -> tuple[int, int]:
    return linear.in_features, linear.out_features


@dataclass(frozen=True)
class Attached:
    """Hooks on a model."""

    hooks: list[Any]

    def remove(self) -> None:
        """Take them off: the model computes what it did before, to the bit."""
        for hook in self.hooks:
            hook.remove()


def attach(
    lm: Any, adapters: nn.ModuleList, watch: Callable[[str, Tensor], None] = lambda place, value: None
) -> Attached:
    """Add the adapters' outputs to those of ``lm``'s feed-forward layers, by forward hooks.

    ``watch(place, value)`` is called with what goes into the transformer and what comes out, for the search for
    non-finite values. A model that computes in another dtype (float16 on a GPU) gets the sum in its own.
    """

    def add(adapter: nn.Module) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(linear: nn.Module, given: Any, output: Tensor) -> Tensor:
            added: Tensor = adapter(given[0])
            return output + added.to(output.dtype)

        return hook

    hooks = [
        getattr(layer, name).register_forward_hook(add(adapter))
        for layer, of_layer in zip(lm.transformer.layers, adapters, strict=True)
        for name, adapter in of_layer.named_children()
    ]
    hooks.append(lm.transformer.register_forward_pre_hook(lambda _, given: watch("the tokens' embedding", given[0])))
    hooks.append(lm.transformer.register_forward_hook(lambda _, given, out: watch("the transformer's output", out)))
    return Attached(hooks)

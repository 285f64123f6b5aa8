"""The voice adapter: residual blocks with a causal spectral filter, at the transformer's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.lane.draws import Draws

BLOCKS = 2
TAPS = 64  # length of the filter, in tokens (1.28 s at 50 frames a second)
SLOWEST_DECAY = -4.0  # initial decay of channel 0: softplus(-4) is 0.018 a token, a memory of about a second


class SpectralAdapter(nn.Module):
    """``x + gate(x) * out(filter(norm(x)))`` over ``[batch, time, dim]``, the identity at the start (``out`` is zero).

    The filter is one-sided (position t sees t, t-1, … t-63) and its FFT is padded by the filter's length, so that
    nothing wraps around: a plain rfft/irfft over the sequence is circular and shows the model the future. Channel c's
    taps decay by
    ``exp(-softplus(decay[c]))`` a token. All parameters and the computation are in the dtype of the parameters.
    """

    def __init__(self, dim: int, draws: Draws) -> None:
        super().__init__()

        def drawn(*shape: int, bound: float) -> nn.Parameter:
            return nn.Parameter(torch.from_numpy(draws.uniform(shape, bound)))

        self.taps = drawn(dim, TAPS, bound=0.5)
        # Only exact arithmetic, so that the start is the same to the bit everywhere.
        self.decay = nn.Parameter(torch.from_numpy(SLOWEST_DECAY * (1.0 - np.arange(dim) / dim)))
        self.gate = nn.Linear(dim, dim)
        self.gate.weight = drawn(dim, dim, bound=dim**-0.5)
        self.gate.bias = nn.Parameter(torch.zeros(dim, dtype=torch.float64))
        self.out = nn.Linear(dim, dim)
        self.out.weight = nn.Parameter(torch.zeros(dim, dim, dtype=torch.float64))
        self.out.bias = nn.Parameter(torch.zeros(dim, dtype=torch.float64))

    def filter(self, x: Tensor) -> Tensor:
        """Causal convolution of each channel with its decaying taps. ``x`` and result: ``[batch, time, dim]``."""
        time = x.shape[1]
        steps = torch.arange(TAPS, dtype=x.dtype, device=x.device)
        kernel = self.taps * torch.exp(-F.softplus(self.decay)[:, None] * steps)  # [dim, taps]
        size = time + TAPS
        spectrum = torch.fft.rfft(x, n=size, dim=1) * torch.fft.rfft(kernel, n=size, dim=1).T
        filtered: Tensor = torch.fft.irfft(spectrum, n=size, dim=1)[:, :time]
        return filtered

    def forward(self, x: Tensor) -> Tensor:
        """``x``: ``[batch, time, dim]`` in the parameters' dtype; the result has its shape and dtype."""
        normed = F.layer_norm(x, x.shape[-1:])
        branch: Tensor = self.out(self.filter(normed))
        gate: Tensor = torch.sigmoid(self.gate(normed))
        return x + gate * branch


def make_adapters(dim: int, seed: int, *, dtype: torch.dtype, device: str) -> nn.ModuleList:
    """The lane's adapters, freshly initialised from ``seed``: drawn in float64, then rounded to ``dtype``."""
    draws = Draws(seed, "adapter")
    return nn.ModuleList([SpectralAdapter(dim, draws) for _ in range(BLOCKS)]).to(device=device, dtype=dtype)


def attach(lm: Any, adapters: nn.ModuleList, watch: Callable[[str, Tensor], None] = lambda place, value: None) -> Any:
    """Put the adapters before audiocraft's ``lm.transformer`` by a hook; returns its handle (``.remove()`` takes them
    off).

    ``watch(place, value)`` is called with what comes in and what goes out, for the search for non-finite values. A
    model that computes in another dtype (float16 on a GPU) has its input converted for the adapters, and back. In
    audiocraft's streaming mode, where the transformer is given a few positions at a time, what each adapter was given
    before is kept in the transformer's own streaming state, which audiocraft clears at the end of each generation.
    """

    def before(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        embedded: Tensor = arguments[0]
        watch("the tokens' embedding", embedded)
        x = embedded.to(next(adapters.parameters()).dtype)
        in_parts = getattr(module, "_is_streaming", False)
        for index, adapter in enumerate(adapters):
            x = _streamed(adapter, x, module, f"adapter_{id(adapters)}_{index}") if in_parts else adapter(x)
        watch("the adapters' output", x)
        return (x.to(embedded.dtype), *arguments[1:])

    return lm.transformer.register_forward_pre_hook(before)


def _streamed(adapter: nn.Module, x: Tensor, module: Any, key: str) -> Tensor:
    """The adapter's output for the new positions ``x`` ``[batch, time, dim]`` of a stream: it sees as many positions
    before them as its filter is long."""
    state: dict[str, Tensor] = module._streaming_state
    given = torch.cat([state[key], x], dim=1) if key in state else x
    state[key] = given[:, -(TAPS - 1) :]
    result: Tensor = adapter(given)[:, -x.shape[1] :]
    return result

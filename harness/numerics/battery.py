"""The kernel battery: a fixed set of computations whose output bits name how this process computes.

Two processes of one *numeric class* gave the same bits for every kernel here: matrix products, convolution,
normalisation, attention, losses, FFT, reductions and the optimizer, forward and backward where training uses both. The
class depends on processor, library, release, pins and threads without naming any of them.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.adamw import adamw

VERSION = "1"


def _inputs(dtype: torch.dtype) -> dict[str, Tensor]:
    bits = np.random.Philox(key=np.array([2026, 1], dtype=np.uint64))

    def drawn(*shape: int) -> Tensor:
        raw = bits.random_raw(int(np.prod(shape))) >> np.uint64(11)
        values = raw.astype(np.float64) * 2.0**-52 - 1.0
        return torch.from_numpy(values).reshape(shape).to(dtype)

    return {
        "a": drawn(131, 200),
        "b": drawn(200, 129),
        "wave": drawn(2, 8, 1000),
        "kernel": drawn(16, 8, 7),
        "sequence": drawn(4, 131, 128),
        "weight": drawn(384, 128),
        "logits": drawn(524, 256),
    }


def _outputs(dtype: torch.dtype) -> list[Tensor]:
    """Every kernel's results, in a fixed order."""
    x = {name: value.requires_grad_(True) for name, value in _inputs(dtype).items()}
    product = x["a"] @ x["b"]
    convolved = F.conv1d(x["wave"], x["kernel"], stride=4)
    normed = F.layer_norm(x["sequence"], (128,))
    projected = F.linear(normed, x["weight"])
    query, key, value = (t.view(4, 131, 4, 32).transpose(1, 2) for t in projected.chunk(3, dim=-1))
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    activated = F.gelu(normed)
    mixed = torch.softmax(projected, dim=-1)
    spectrum = torch.fft.irfft(torch.fft.rfft(normed, n=195, dim=1) * 0.5, n=195, dim=1)
    targets = torch.arange(524) % 256
    losses = F.cross_entropy(x["logits"] * 4, targets)
    results = [product, convolved, normed, projected, attended, activated, mixed, spectrum, losses]
    results += [x["logits"].sum(), x["logits"].mean(), x["sequence"].std(), torch.linalg.vector_norm(x["sequence"])]
    results += [torch.sigmoid(x["a"]), torch.exp(x["a"]), F.softplus(x["a"]), torch.sqrt(x["a"].abs())]
    total = sum((result.square().mean() for result in results), start=torch.zeros((), dtype=dtype))
    gradients = torch.autograd.grad(total, list(x.values()))
    return [*results, *gradients, *_optimizer(dtype, x["weight"].detach(), gradients[5])]


def _optimizer(dtype: torch.dtype, start: Tensor, gradient: Tensor) -> list[Tensor]:
    """Two steps of fused AdamW, by torch's function: its class would import torch's compiler (1.3 s)."""
    weight = start.clone()
    first, second, count = torch.zeros_like(weight), torch.zeros_like(weight), torch.zeros(())
    options: dict[str, Any] = {"amsgrad": False, "maximize": False, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    for scale in (1.0, -0.5):
        gradients = [gradient * scale]
        adamw([weight], gradients, [first], [second], [], [count], fused=True, lr=1e-2, weight_decay=0.01, **options)
    return [weight]


def numeric_class() -> str:
    """The numeric class of this process: 16 hex digits. Call it after the pins and the mode are set. About 30 ms."""
    digest = hashlib.sha256(VERSION.encode())
    for dtype in (torch.float32, torch.float64):
        for result in _outputs(dtype):
            digest.update(result.detach().contiguous().numpy().tobytes())
    if torch.cuda.is_available():
        # On a GPU the class names the device and the libraries; its kernels were not verified to be the same elsewhere.
        digest.update(f"{torch.cuda.get_device_name()} {torch.version.cuda} {torch.backends.cudnn.version()}".encode())  # type: ignore[no-untyped-call]
    return digest.hexdigest()[:16]

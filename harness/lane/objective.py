"""The loss: masked cross-entropy on aligned logits, behind a sanitizer that counts what it hides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

INFINITY_BOUND = 1e4
CPU_CLAMP = 30.0


class Sanitized(NamedTuple):
    """``logits``: finite everywhere, zero where the mask is false. ``replaced``: non-finite values at valid
    positions."""

    logits: Tensor
    replaced: Tensor


def sanitize(logits: Tensor, mask: Tensor) -> Sanitized:
    """Make logits finite without looking at, or counting, the positions that the model marks as invalid.

    ``logits`` ``[..., card]`` of any float dtype; ``mask`` bool, of the same shape less the last axis. audiocraft fills
    invalid positions with NaN on purpose; they come back as zero, and no gradient reaches them. At valid positions NaN
    becomes 0 and ±Inf ±1e4, and on a CPU the result is clamped to ±30. A finite value within the clamp is returned bit
    for bit with its plain gradient; a replaced one has gradient zero. The input is not changed. ``replaced`` is an
    int64 scalar.
    """
    valid = mask[..., None]
    on_cpu = logits.device.type == "cpu"
    bound = CPU_CLAMP if on_cpu else INFINITY_BOUND
    with torch.no_grad():
        bounded = torch.nan_to_num(logits, nan=0.0, posinf=bound, neginf=-bound)
        if on_cpu:
            bounded.clamp_(-bound, bound)
        bounded.masked_fill_(~valid, 0.0)
        kept = valid & (bounded == logits)
        replaced = (valid & ~torch.isfinite(logits)).sum()
    # One tensor with a gradient, and a mask to know where: nothing else is kept for the backward pass.
    return Sanitized(torch.where(kept, logits, bounded), replaced)


@dataclass(frozen=True)
class Loss:
    """``total``: scalar with gradient, the mean over the codebooks of ``by_codebook`` ``[K]``; ``valid`` ``[K]``
    positions."""

    total: Tensor
    by_codebook: Tensor
    valid: Tensor
    replaced: Tensor


def masked_cross_entropy(logits: Tensor, codes: Tensor, mask: Tensor) -> Loss:
    """Cross-entropy in nats, over valid positions only.

    ``logits`` ``[B, K, T, card]`` as ``LMModel.compute_predictions`` gives them: already aligned with ``codes`` ``[B,
    K, T]`` (no shift), NaN where ``mask`` ``[B, K, T]`` is false. Each codebook's loss is the mean over its own valid
    positions, and the total the mean over codebooks, as in MusicGen (Copet et al. 2023). Computed in float32 at least.
    """
    clean, replaced = sanitize(logits, mask)
    if clean.dtype in (torch.float16, torch.bfloat16):
        clean = clean.float()
    codebooks = codes.shape[1]
    targets = torch.where(mask, codes, -100)
    losses = F.cross_entropy(clean.flatten(0, 2), targets.flatten(), ignore_index=-100, reduction="none")
    valid = mask.sum(dim=(0, 2))
    by_codebook = losses.view(codes.shape).transpose(0, 1).reshape(codebooks, -1).sum(dim=1) / valid
    return Loss(by_codebook.mean(), by_codebook, valid, replaced)

"""The loss: masked cross-entropy on aligned logits, behind a sanitizer that counts what it hides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.lane.ranks import Ranks

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
    positions. ``sums`` ``[K]``, with gradient: of the losses at these positions."""

    total: Tensor
    by_codebook: Tensor
    valid: Tensor
    replaced: Tensor
    sums: Tensor
    of_all: Tensor | None = None  # the loss of all ranks, where ``total`` is this one's share

    @property
    def value(self) -> float:
        """The loss as a number."""
        return float((self.total if self.of_all is None else self.of_all).item())


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
    sums = losses.view(codes.shape).transpose(0, 1).reshape(codebooks, -1).sum(dim=1)
    by_codebook = sums / valid
    return Loss(by_codebook.mean(), by_codebook, valid, replaced, sums)


def over_all_ranks(own: Loss | None, codes: Tensor, ranks: Ranks) -> Loss:
    """The loss over the positions of all ranks, from that over this rank's ``codes`` (None where it has none): the sums
    of the losses, divided once by the counts of all. ``total`` is this rank's share of it, and has its gradient."""
    if ranks.world == 1 and own is not None:
        return own
    count = codes.shape[1]
    added = torch.zeros(2 * count + 1, dtype=torch.float64, device=codes.device)
    if own is not None:
        added = torch.cat([own.sums.detach(), own.valid, own.replaced[None]]).double()
    ranks.sum_(added)
    sums, valid, replaced = added[:count], added[count:-1], added[-1]
    share = added.new_zeros(()) if own is None else (own.sums / valid.to(own.sums.dtype)).mean()
    means = sums / valid
    return Loss(share, means, valid.long(), replaced.long(), sums, means.mean())

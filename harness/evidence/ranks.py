"""The traces of a run's processes as one: of data-parallel ranks, whose steps belong together, each is in it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from harness.evidence.strict import Hex16, HexFloat
from harness.evidence.trace import Step, Trace
from harness.evidence.watched import Watched

T = TypeVar("T")
NAMED = 8  # ranks up to which each has its own batch and loss in a step


def together(traces: Sequence[Watched]) -> Trace:
    """What a comparison takes of a run. Of ranks that trained beside each other every rank counts: the batches and
    losses of all, what they hold of a tensor put together where each has a part of it, and under a name with its rank
    what a rank has otherwise than rank 0. Of any other processes the first counts."""
    ranks = {trace.header.rank: trace for trace in reversed(traces) if trace.header.ranks > 1}
    outline = traces[0].outline()
    if len(ranks) < 2:
        return outline
    parts = {name for trace in ranks.values() for known in trace.tensors for name, t in known.tensors.items() if t.part}
    outlines = {rank: ranks[rank].outline() for rank in sorted(ranks)}
    outline.initial = _norms({rank: known.initial for rank, known in outlines.items()}, parts)
    outline.steps = [
        _step({rank: known.steps[index] for rank, known in outlines.items() if index < len(known.steps)}, parts)
        for index in range(max(len(known.steps) for known in outlines.values()))
    ]
    return outline


def _step(ranks: Mapping[int, Step], parts: set[str]) -> Step:
    first = next(iter(ranks.values()))
    losses = [step.loss for step in ranks.values()]
    batches = [step.batch_digest for step in ranks.values()]
    is_named = len(ranks) <= NAMED
    if not is_named:
        batches = [hashlib.blake2b(" ".join(batches).encode(), digest_size=8).hexdigest()]
    return Step(
        first.step,
        first.chunks,
        "none" if set(batches) == {"none"} else "/".join(batches),
        HexFloat(math.fsum(losses) / len(losses)),
        [HexFloat(loss) for loss in losses] if is_named else [],
        first.valid,
        first.sanitized,
        _norms({rank: step.grad for rank, step in ranks.items()}, parts),
        _norms({rank: step.param for rank, step in ranks.items()}, parts),
        {name: sketch for name, sketch in first.sketch.items() if name not in parts},
        learning_rates=first.learning_rates,
        grad_bits=_bits({rank: step.grad_bits for rank, step in ranks.items()}, parts),
        param_bits=_bits({rank: step.param_bits for rank, step in ranks.items()}, parts),
        forward=first.forward,
        skipped=first.skipped,
    )


def _norms(ranks: Mapping[int, Mapping[str, HexFloat]], parts: set[str]) -> dict[str, HexFloat]:
    found = _not_alike({rank: {n: v for n, v in norms.items() if n not in parts} for rank, norms in ranks.items()})
    for name in sorted(parts & {name for norms in ranks.values() for name in norms}):
        squares = [norms[name] ** 2 for norms in ranks.values() if name in norms]
        found[name] = HexFloat(math.sqrt(math.fsum(squares)) if all(map(math.isfinite, squares)) else math.nan)
    return found


def _bits(ranks: Mapping[int, Mapping[str, Hex16]], parts: set[str]) -> dict[str, Hex16]:
    """The digests of a tensor's parts add up to that of the whole (harness/watch/measure.py)."""
    found = _not_alike({rank: {n: v for n, v in bits.items() if n not in parts} for rank, bits in ranks.items()})
    for name in sorted(parts & {name for bits in ranks.values() for name in bits}):
        whole = sum(int(bits[name], 16) for bits in ranks.values() if name in bits) & ((1 << 64) - 1)
        found[name] = f"{whole:016x}"
    return found


def _not_alike(ranks: Mapping[int, Mapping[str, T]]) -> dict[str, T]:
    """What the first rank has, and under a name with its rank what another has otherwise."""
    first = next(iter(ranks.values()))
    found = dict(first)
    for rank, values in ranks.items():
        found |= {f"{name} of rank {rank}": value for name, value in values.items() if first.get(name) != value}
    return found

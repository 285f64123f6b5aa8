"""The recipe of docs/lane.md, computed a second time: plain torch in float64, from the page and not from the lane.

Nothing here is imported from the lane. It starts from the settings, the tokens and audiocraft's frozen model, and says
what the lane must have done: which chunks each step takes, the adapters' first values, the loss, its gradients, the
learning rate, AdamW's update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

RANK = 8
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-6
CLAMP = 30.0  # of the logits, on a CPU
MOST_MEASURED = 16  # held-out chunks
Chunks = Sequence[tuple[str, int]]  # of each chunk: the file's SHA-256, the first sample
Tensors = Mapping[str, Tensor]


def draws(seed: int, purpose: int) -> np.random.Philox:
    """The stream of raw 64-bit draws of a seed: purpose 1 is the adapters, 2 the order."""
    return np.random.Philox(key=np.array([seed, purpose], dtype=np.uint64))


# Which chunks


def chunks_of(files: Sequence[tuple[str, int, int]], rate: int, frame: int, seconds: float, stride: float) -> Chunks:
    """The chunks of a data set, of which ``files`` gives each one's SHA-256, samples and sample rate; the model's
    ``rate``, and its samples in a ``frame``. In the order of the digests; the last of a file ends where the file does.
    """
    length, step = frame * max(1, round(seconds * rate / frame)), max(1, round(stride * rate))
    found = []
    for name, samples, own in sorted(files):
        total = samples * rate // own
        found += [(name, start) for start in range(0, total - length + 1, step)]
        if found[-1][1] + length < total:
            found.append((name, total - length))
    return found


def held_out(chunks: Chunks, share: float) -> list[int]:
    """The chunks that are held out: whole files by their digest while they fit into the share; where that gives less
    than half of it, or there is one file, the last chunks of the longest."""
    if not share:
        return []
    files = sorted({file for file, _ in chunks})
    of_file = {file: [i for i, (name, _) in enumerate(chunks) if name == file] for file in files}
    wanted = max(1, round(share * len(chunks)))
    out: list[int] = []
    for file in files:
        if len(files) > 1 and len(out) + len(of_file[file]) <= wanted:
            out.extend(of_file[file])
    if len(out) < wanted / 2:
        longest = min(files, key=lambda file: (-len(of_file[file]), file))
        starts = sorted({chunks[i][1] for i in of_file[longest]})
        each = len(of_file[longest]) // len(starts)  # of a file that is there twice, each chunk is too
        late = set(starts[-max(1, wanted // each) :])
        out = [i for i in of_file[longest] if chunks[i][1] in late]
    return sorted(out)


def trained_on(chunks: Chunks, out: Sequence[int], length: int) -> list[int]:
    """The chunks without a sample of held-out audio. ``length``: samples in a chunk."""
    begins = {file: min(chunks[i][1] for i in out if chunks[i][0] == file) for file in {chunks[i][0] for i in out}}
    return [i for i, (file, start) in enumerate(chunks) if start + length <= begins.get(file, math.inf)]


def measured(out: Sequence[int]) -> list[int]:
    """The held-out chunks that the loss is measured on: all, or 16 of them in the middles of equal parts."""
    count = len(out)
    if count <= MOST_MEASURED:
        return list(out)
    return [out[math.floor((i + 0.5) * count / MOST_MEASURED)] for i in range(MOST_MEASURED)]


def batches(train: Sequence[int], seed: int, batch: int, steps: int) -> list[list[int]]:
    """The chunks of each step: permutations one after the other, cut into batches."""
    stream, order = draws(seed, 2), []
    while len(order) < batch * steps:
        order.extend(train[i] for i in np.argsort(stream.random_raw(len(train)), kind="stable"))
    return [order[batch * step : batch * (step + 1)] for step in range(steps)]


# What is trained


def first_values(lm: Any, seed: int) -> dict[str, Tensor]:
    """The adapters before the training, by name: ``down`` ``[8, inputs]`` uniform, ``up`` ``[outputs, 8]`` zero."""
    stream, values = draws(seed, 1), {}
    for i, layer in enumerate(lm.transformer.layers):
        for name in ("linear1", "linear2"):
            outputs, inputs = getattr(layer, name).weight.shape
            unit = (stream.random_raw(RANK * inputs) >> np.uint64(11)).astype(np.float64) / 2.0**53
            down = (unit * 2 - 1) / math.sqrt(inputs)
            values[f"{i}.{name}.down"] = torch.from_numpy(down.reshape(RANK, inputs))
            values[f"{i}.{name}.up"] = torch.zeros(outputs, RANK, dtype=torch.float64)
    return values


@contextmanager
def added(lm: Any, adapters: Tensors) -> Iterator[None]:
    """While the block runs, ``x · downᵀ · upᵀ`` is added to what each feed-forward layer gives."""
    hooks = []
    for i, layer in enumerate(lm.transformer.layers):
        for name in ("linear1", "linear2"):
            down, up = adapters[f"{i}.{name}.down"], adapters[f"{i}.{name}.up"]

            def add(_: Any, given: Any, output: Tensor, down: Tensor = down, up: Tensor = up) -> Tensor:
                return output + torch.einsum("...i,ri,or->...o", given[0], down, up)

            hooks.append(getattr(layer, name).register_forward_hook(add))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def losses(lm: Any, codes: Tensor, conditions: Any, clamp: float) -> tuple[Tensor, list[int]]:
    """(The loss of each codebook, its valid positions): minus the log-probability of the codes, its mean over them.
    Logits count up to ``clamp``."""
    output = lm.compute_predictions(codes, [], conditions)
    by_codebook, counts = [], []
    for k in range(codes.shape[1]):
        valid = output.mask[:, k]
        logits, targets = output.logits[:, k][valid].clamp(-clamp, clamp), codes[:, k][valid]
        chosen = logits.gather(1, targets[:, None])[:, 0]
        by_codebook.append((torch.logsumexp(logits, dim=1) - chosen).mean())
        counts.append(int(valid.sum()))
    return torch.stack(by_codebook), counts


def gradients(
    lm: Any, adapters: Tensors, codes: Tensor, conditions: Any, clamp: float
) -> tuple[Tensor, list[int], dict[str, Tensor]]:
    """(``losses``, the gradient of their mean for each tensor of ``adapters``)."""
    leaves = {name: value.clone().requires_grad_(True) for name, value in adapters.items()}
    with added(lm, leaves):
        by_codebook, counts = losses(lm, codes, conditions, clamp)
        found = torch.autograd.grad(by_codebook.mean(), list(leaves.values()))
    return by_codebook.detach(), counts, dict(zip(leaves, found, strict=True))


# How it moves


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Of a step, from 1: a third and two thirds of the peak, then in a straight line to a tenth at the last step."""
    if step <= 2:
        return peak * step / 3
    return peak * (1 - 0.9 * (step - 2) / max(1, steps - 2))


def adamw(
    value: Tensor, gradient: Tensor, first: Tensor, second: Tensor, *, step: int, rate: float, decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(Value, first moment, second moment) after ``step`` (from 1), by the formulas of Loshchilov and Hutter (2019)."""
    first = BETA1 * first + (1 - BETA1) * gradient
    second = BETA2 * second + (1 - BETA2) * gradient**2
    direction = (first / (1 - BETA1**step)) / (torch.sqrt(second / (1 - BETA2**step)) + EPSILON)
    return value - rate * decay * value - rate * direction, first, second

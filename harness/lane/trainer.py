"""Step ``train``: the recipe, top to bottom."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.lane.adapter import attach
from harness.lane.draws import Draws
from harness.lane.errors import LaneError
from harness.lane.memory import find_trim, give_back_on_the_way
from harness.lane.model import condition_tensors
from harness.lane.objective import Loss, masked_cross_entropy
from harness.lane.optimizer import AdamW
from harness.lane.settings import Settings
from harness.lane.state import State, StateFile
from harness.lane.tokens import TokenSet
from harness.lane.trace import Trace, hex_float, hex_norms, norms, sketches
from harness.numerics.digest import array_digest

BETAS = (0.9, 0.999)
# Not 1e-8: where a gradient is nearly zero, the update is its rounding error over this. Measured between processors'
# kernels, the largest drift of a parameter is 1.3e-13 with 1e-8 and 1.3e-14 with 1e-6; the loss falls as far.
EPSILON = 1e-6
WARMUP_STEPS = 2
FLOOR = 0.1  # of the learning rate, at the last step


@dataclass(frozen=True)
class TrainResult:
    """``loss`` of the first and the last step (nats, before their updates), and logits replaced over the whole run."""

    loss_first: float
    loss: float
    sanitized: int


class NonFiniteError(LaneError):
    """A value that must be finite was not: the hard fail, exit code 2."""

    def __init__(self, place: str, step: int, value: str, loss: float | None = None, sanitized: int = 0) -> None:
        super().__init__(
            "train",
            "non_finite",
            f"{place} is {value} at step {step}",
            "look at trace.jsonl up to that step; a smaller LANE_LEARNING_RATE is the usual mend",
            status="failed",
            exit_code=2,
        )
        self.loss = loss
        self.sanitized = sanitized


def chunk_order(settings: Settings, chunks: int) -> Iterator[list[int]]:
    """The chunk ids of each step: permutation after permutation of all chunks, cut into batches; no chunk is left
    out."""
    draws = Draws(settings.seed, "order")
    waiting: list[int] = []
    while True:
        while len(waiting) < settings.batch:
            waiting += draws.permutation(chunks)
        yield waiting[: settings.batch]
        waiting = waiting[settings.batch :]


def learning_rate(settings: Settings, step: int) -> float:
    """The learning rate of ``step`` (from 1): two steps of warm-up, then straight down to a tenth at the last step."""
    if step <= WARMUP_STEPS:
        return settings.learning_rate * step / (WARMUP_STEPS + 1)
    progress = (step - WARMUP_STEPS) / max(1, settings.steps - WARMUP_STEPS)
    return settings.learning_rate * (1 - (1 - FLOOR) * progress)


def train(
    settings: Settings,
    model: Any,
    adapters: nn.ModuleList,
    tokens: TokenSet,
    trace: Trace,
    progress: Callable[[int, int, float], None],
    saved: State | None = None,
    states: StateFile | None = None,
) -> TrainResult:
    """Train ``adapters`` on ``tokens`` with everything else frozen.

    ``model``: audiocraft's MusicGen, frozen, its LM in the dtype of the mode. ``progress(done, total, loss)`` is
    called after each step. ``saved``: the state to go on from; ``states``: where states are saved. Raises
    NonFiniteError (exit code 2) at the first value that must be finite and is not.
    """
    step, sanitized, first_loss, loss_value = 0, 0, math.nan, math.nan
    device = settings.device

    def watch(place: str, value: Tensor) -> None:
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteError(place, step, _first_non_finite(value), sanitized=sanitized)

    def finite_norms(what: str, tensors: dict[str, Tensor]) -> dict[str, float]:
        """The norm of each tensor; it is finite only if every element is."""
        values = norms(tensors)
        for name, value in values.items():
            if not math.isfinite(value):
                whole = bool(torch.isfinite(tensors[name]).all())
                found = f"{value} (its norm; every element is finite)" if whole else _first_non_finite(tensors[name])
                raise NonFiniteError(f"{what} {name}", step, found, loss_value, sanitized)
        return values

    def loss_of(codes: Tensor, what: str = "") -> Loss:
        """The loss of one batch. Every replaced logit counts, also where nothing is trained: a finite loss over
        replaced logits is no result."""
        nonlocal sanitized
        output = model.lm.compute_predictions(codes, [], conditions)
        loss = masked_cross_entropy(output.logits, codes, output.mask)
        value = loss.total.item()
        sanitized += int(loss.replaced)
        if sanitized > settings.max_sanitized:
            found = _first_non_finite(output.logits, output.mask[..., None])
            found += f", one of {int(loss.replaced)} in {int(loss.valid.sum()) * model.lm.card} valid values,"
            raise NonFiniteError(f"logits{what}", step, found, value, sanitized)
        if not math.isfinite(value):
            raise NonFiniteError(f"loss{what}", step, str(value), value, sanitized)
        return loss

    conditions = condition_tensors(model, settings.description, settings.batch)
    order = chunk_order(settings, len(tokens.codes))
    parameters = dict(sorted(adapters.named_parameters()))
    optimizer = AdamW(
        parameters.values(),
        lr=settings.learning_rate,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=settings.weight_decay,
    )
    sketched_steps = {settings.steps // 2}
    base_digest = frozen_digest(model)

    # The same batch is measured without adapters, at the first step, and again when training is done.
    chunks = next(order)
    first_codes = tokens.codes[chunks].to(device)
    done = saved.step if saved else 0
    if saved is None:
        with torch.no_grad():
            without = loss_of(first_codes, " without adapters").total.item()
    else:
        adapters.load_state_dict(saved.adapters)
        optimizer.load_state_dict(saved.optimizer)
        trace.resume(saved.trace)
        sanitized, first_loss, loss_value = saved.sanitized, saved.loss_first, saved.loss
        for _ in range(done):
            chunks = next(order)
    hooks = [attach(model.lm, adapters, watch), *give_back_on_the_way(model.lm.transformer, find_trim())]
    for step in range(done + 1, settings.steps + 1):
        codes = tokens.codes[chunks].to(device)

        loss = loss_of(codes)
        loss_value = loss.total.item()
        if step == 1:
            first_loss = loss_value
            trace.write(
                "start",
                base_digest=base_digest,
                chunks=chunks,
                loss_without_adapters=hex_float(without),
                loss=hex_float(first_loss),
                param=hex_norms(norms(parameters)),
            )

        optimizer.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        gradients = finite_norms("gradient of", {name: _gradient(name, p) for name, p in parameters.items()})

        optimizer.lr = learning_rate(settings, step)
        optimizer.step()
        values = finite_norms("parameter", {name: p.detach() for name, p in parameters.items()})

        sketched = {"sketch": sketches(adapters)} if step in sketched_steps else {}
        trace.write(
            "step",
            step=step,
            chunks=chunks,
            batch_digest=array_digest("batch", tokens.array()[chunks])[:16],
            loss=hex_float(loss_value),
            loss_by_codebook=[hex_float(v) for v in loss.by_codebook.tolist()],
            valid=loss.valid.tolist(),
            sanitized=int(loss.replaced),
            grad=hex_norms(gradients),
            param=hex_norms(values),
            **sketched,
        )
        if states is not None and states.due(step):
            moments = optimizer.state_dict()
            now = (loss_value, first_loss, sanitized, trace.so_far(), adapters.state_dict(), moments)
            states.save(State(step, *now))
        progress(step, settings.steps, loss_value)
        chunks = next(order)

    with torch.no_grad():
        trained = loss_of(first_codes, " of the trained adapters")
    for hook in hooks:
        hook.remove()
    trace.write(
        "end",
        steps=settings.steps,
        loss=hex_float(loss_value),
        eval_loss=hex_float(trained.total.item()),
        eval_loss_by_codebook=[hex_float(v) for v in trained.by_codebook.tolist()],
        base_digest=frozen_digest(model),
        param=hex_norms(norms(parameters)),
        sketch=sketches(adapters),
    )
    return TrainResult(first_loss, loss_value, sanitized)


def frozen_digest(model: Any) -> str:
    """SHA-256 over every tensor of the frozen LM, adapters excluded: it must be the same before and after."""
    digest = hashlib.sha256()
    for name, tensor in model.lm.state_dict().items():
        digest.update(name.encode() + b"\0")
        digest.update(memoryview(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().reshape(-1)))
    return digest.hexdigest()


def _gradient(name: str, parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise LaneError(
            "train",
            "no_gradient",
            f"{name} has no gradient: it is not part of what the loss is computed from",
            "attach the adapters to the model that is trained",
            status="failed",
            exit_code=1,
        )
    return parameter.grad


def _first_non_finite(value: Tensor, among: Tensor | None = None) -> str:
    """The first value that is not finite, and where it is; ``among`` (bool) says where to look."""
    bad = ~torch.isfinite(value.detach())
    index = torch.nonzero(bad if among is None else bad & among)[0]
    return f"{value[tuple(index)].item()} (at {index.tolist()} of {list(value.shape)})"

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
from harness.lane.model import condition_tensors
from harness.lane.objective import Loss, masked_cross_entropy
from harness.lane.settings import Settings
from harness.lane.tokens import TokenSet
from harness.lane.trace import Trace, hex_float, hex_norms, norms, sketches
from harness.numerics.digest import array_digest

BETAS = (0.9, 0.999)
EPSILON = 1e-8
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

    def __init__(self, place: str, step: int, value: str, loss: float | None = None) -> None:
        super().__init__(
            "train",
            "non_finite",
            f"{place} is {value} at step {step}",
            "look at trace.jsonl up to that step; a smaller LANE_LEARNING_RATE is the usual mend",
            status="failed",
            exit_code=2,
        )
        self.loss = loss


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
) -> TrainResult:
    """Train ``adapters`` on ``tokens`` with everything else frozen.

    ``model``: audiocraft's MusicGen, frozen, its LM in the dtype of the mode. ``progress(done, total, loss)`` is
    called after each step. Raises NonFiniteError (exit code 2) at the first value that must be finite and is not.
    """
    step = 0
    device = settings.device

    def watch(place: str, value: Tensor) -> None:
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteError(place, step, _first_non_finite(value))

    def loss_of(codes: Tensor) -> Loss:
        output = model.lm.compute_predictions(codes, [], conditions)
        return masked_cross_entropy(output.logits, codes, output.mask)

    conditions = condition_tensors(model, settings.description, settings.batch)
    order = chunk_order(settings, len(tokens.codes))
    parameters = dict(sorted(adapters.named_parameters()))
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=settings.learning_rate,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    sketched_steps = {settings.steps // 2}
    base_digest = frozen_digest(model)

    # The same batch is measured without adapters, at the first step, and again when training is done.
    chunks = next(order)
    first_codes = tokens.codes[chunks].to(device)
    with torch.no_grad():
        without = loss_of(first_codes).total.item()
    hook = attach(model.lm, adapters, watch)
    sanitized, first_loss, loss_value = 0, math.nan, math.nan
    for step in range(1, settings.steps + 1):
        codes = tokens.codes[chunks].to(device)

        loss = loss_of(codes)
        loss_value = loss.total.item()
        replaced = int(loss.replaced)
        sanitized += replaced
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
        if sanitized > settings.max_sanitized:
            found = f"non-finite in {replaced} of the {int(loss.valid.sum()) * model.lm.card} valid values"
            raise NonFiniteError("logits", step, found, loss_value)
        if not math.isfinite(loss_value):
            raise NonFiniteError("loss", step, str(loss_value), loss_value)

        optimizer.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        gradients = norms({name: _gradient(name, parameter) for name, parameter in parameters.items()})
        _check_norms("gradient of", gradients, step, loss_value)

        optimizer.param_groups[0]["lr"] = learning_rate(settings, step)
        optimizer.step()
        values = norms({name: parameter.detach() for name, parameter in parameters.items()})
        _check_norms("parameter", values, step, loss_value)

        sketched = {"sketch": sketches(adapters)} if step in sketched_steps else {}
        trace.write(
            "step",
            step=step,
            chunks=chunks,
            batch_digest=array_digest("batch", tokens.array()[chunks])[:16],
            loss=hex_float(loss_value),
            loss_by_codebook=[hex_float(v) for v in loss.by_codebook.tolist()],
            valid=loss.valid.tolist(),
            sanitized=replaced,
            grad=hex_norms(gradients),
            param=hex_norms(values),
            **sketched,
        )
        progress(step, settings.steps, loss_value)
        chunks = next(order)

    with torch.no_grad():
        trained = loss_of(first_codes)
    hook.remove()
    if not math.isfinite(trained.total.item()):
        raise NonFiniteError("loss of the trained adapters", step, str(trained.total.item()), loss_value)
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


def _check_norms(what: str, values: dict[str, float], step: int, loss: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteError(f"{what} {name}", step, str(value), loss)


def _first_non_finite(value: Tensor) -> str:
    flat = value.detach().flatten()
    index = int(torch.nonzero(~torch.isfinite(flat))[0])
    return f"{flat[index].item()} (element {index} of {list(value.shape)})"

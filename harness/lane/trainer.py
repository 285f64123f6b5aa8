"""Step ``train``: the recipe, top to bottom."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.lane.adapter import attach
from harness.lane.draws import Draws
from harness.lane.errors import LaneError
from harness.lane.held_out import HeldOutLoss, Split
from harness.lane.memory import find_trim, give_back_on_the_way
from harness.lane.model import condition_tensors
from harness.lane.objective import Loss, masked_cross_entropy, over_all_ranks
from harness.lane.optimizer import AdamW
from harness.lane.ranks import ALONE, Ranks
from harness.lane.settings import Settings
from harness.lane.state import State, StateFile
from harness.lane.tokens import TokenSet
from harness.lane.trace import Trace, hex_float, hex_norms, norms, sketches
from harness.numerics.digest import array_digest, tensor_digest

BETAS = (0.9, 0.999)
# Not 1e-8: where a gradient is nearly zero, the update is its rounding error over this. Measured between processors'
# kernels, the largest drift of a parameter is 1.3e-13 with 1e-8 and 1.3e-14 with 1e-6; the loss falls as far.
EPSILON = 1e-6
WARMUP_STEPS = 2
FLOOR = 0.1  # of the learning rate, at the last step
# What the loss is multiplied by on the way back through a float16 model, and its gradients divided by, exactly: a
# logit's gradient is about its probability over the number of positions, 5e-7, and float16's grid there is 6e-8 wide.
HALF_SCALE = 4096.0
SMOOTHING = 0.9  # what each step keeps of the smoothed training loss


@dataclass(frozen=True)
class TrainResult:
    """``loss``: of the last step's batch, before its update; ``sanitized``: logits replaced over the whole run;
    ``best_step``: the step whose adapters are in ``adapters`` now, and are written; ``last_step``: values and moments
    ``before`` and ``after`` the last update. All losses in nats."""

    loss_first: float
    loss: float
    sanitized: int
    loss_smoothed: float
    held_out_first: float | None
    held_out: float | None
    best_step: int
    last_step: dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """What is known after a step, for people. ``held_out``: before the training and now, where it was measured."""

    step: int
    loss: float
    smoothed: float
    learning_rate: float
    held_out: tuple[float, float] | None


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


def chunk_order(settings: Settings, chunks: Sequence[int]) -> Iterator[list[int]]:
    """The chunk ids of each step: permutation after permutation of ``chunks``, cut into batches; none is left out."""
    draws = Draws(settings.seed, "order")
    waiting: list[int] = []
    while True:
        while len(waiting) < settings.batch:
            waiting += [chunks[index] for index in draws.permutation(len(chunks))]
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
    split: Split,
    trace: Trace,
    progress: Callable[[Progress], None],
    saved: State | None = None,
    states: StateFile | None = None,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Train ``adapters`` on the chunks ``split.train`` of ``tokens`` with everything else frozen; leaves the values in
    them that had the lowest held-out loss.

    ``model``: audiocraft's MusicGen, frozen, its LM in the dtype of the mode. ``progress`` is called after each step.
    ``saved``: the state to go on from; ``states``: where states are saved. ``ranks``: every one has a part of each
    batch, and makes the same update. Raises NonFiniteError (exit code 2) at the first value that must be finite and is
    not.
    """
    step, sanitized, first_loss, loss_value, smoothed = 0, 0, math.nan, math.nan, 0.0
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
        codes, own = ranks.mine(codes), None
        if len(codes):
            output = model.lm.compute_predictions(codes, [], conditions(len(codes)))
            own = masked_cross_entropy(output.logits, codes, output.mask)
            if own.replaced and sanitized + int(own.replaced) > settings.max_sanitized:
                sanitized += int(own.replaced)
                found = _first_non_finite(output.logits, output.mask[..., None])
                found += f", one of {int(own.replaced)} in {int(own.valid.sum()) * model.lm.card} valid values,"
                raise NonFiniteError(f"logits{what}", step, found, own.total.item(), sanitized)
        loss = over_all_ranks(own, codes, ranks)
        value = loss.value
        sanitized += int(loss.replaced)
        if sanitized > settings.max_sanitized:
            found = f"not finite in {int(loss.replaced)} of its values"
            raise NonFiniteError(f"logits{what}", step, found, value, sanitized)
        if not math.isfinite(value):
            raise NonFiniteError(f"loss{what}", step, str(value), value, sanitized)
        return loss

    def held_out_loss() -> HeldOutLoss:
        """Over all measured chunks: for each codebook the sum over its valid positions, divided once."""
        sums, counts = torch.zeros(()), torch.zeros(())
        with torch.no_grad():
            for first in range(0, len(split.measured), settings.batch):
                loss = loss_of(tokens.codes[split.measured[first : first + settings.batch]].to(device), " held out")
                sums, counts = sums + (loss.by_codebook.double() * loss.valid).cpu(), counts + loss.valid.cpu()
        by_codebook = sums / counts
        return HeldOutLoss(step, by_codebook.mean().item(), by_codebook.tolist())

    conditions = functools.cache(lambda batch: condition_tensors(model, settings.description, batch))
    order = chunk_order(settings, split.train)
    parameters = dict(sorted(adapters.named_parameters()))
    optimizer = AdamW(
        parameters.values(),
        lr=settings.learning_rate,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=settings.weight_decay,
    )
    scale = HALF_SCALE if next(model.lm.parameters()).dtype == torch.float16 else 1.0
    sketched_steps = {settings.steps // 2}
    base_digest = frozen_digest(model)

    # The same batch is measured without adapters, at the first step, and again when training is done.
    chunks = next(order)
    first_codes = tokens.codes[chunks].to(device)
    done = saved.step if saved else 0
    best: HeldOutLoss | None = None
    best_adapters: dict[str, Tensor] = {}
    last_step: dict[str, Any] = {}
    if saved is None:
        with torch.no_grad():
            without = loss_of(first_codes, " without adapters").value
        before = held_out_loss() if split.held_out else None
    else:
        adapters.load_state_dict(saved.adapters)
        optimizer.load_state_dict(saved.optimizer)
        trace.resume(saved.trace)
        sanitized, first_loss, loss_value, smoothed = saved.sanitized, saved.loss_first, saved.loss, saved.smoothed
        before, best, best_adapters, last_step = saved.before, saved.best, saved.best_adapters, saved.last_step
        for _ in range(done):
            chunks = next(order)
    hooks = [attach(model.lm, adapters, watch), *give_back_on_the_way(model.lm.transformer, find_trim())]
    for step in range(done + 1, settings.steps + 1):
        codes = tokens.codes[chunks].to(device)

        loss = loss_of(codes)
        loss_value = loss.value
        if step == 1:
            first_loss = loss_value
            trace.write(
                "start",
                base_digest=base_digest,
                chunks=chunks,
                loss_without_adapters=hex_float(without),
                loss=hex_float(first_loss),
                **({"held_out_chunks": split.measured, "held_out": _traced(before)} if before else {}),
                param=hex_norms(norms(parameters)),
            )

        optimizer.zero_grad()
        (loss.total * scale).backward()  # type: ignore[no-untyped-call]
        for name, parameter in parameters.items():
            _gradient(name, parameter).div_(scale)
        ranks.sum_(*(_gradient(name, parameter) for name, parameter in parameters.items()))
        gradients = finite_norms("gradient of", {name: _gradient(name, p) for name, p in parameters.items()})

        optimizer.lr = learning_rate(settings, step)
        if step == settings.steps:
            last_step["before"] = optimizer.snapshot(parameters)
        optimizer.step()
        values = finite_norms("parameter", {name: p.detach() for name, p in parameters.items()})
        smoothed = SMOOTHING * smoothed + (1 - SMOOTHING) * loss_value

        is_measured = step % settings.eval_every == 0 or step == settings.steps
        now = held_out_loss() if before and is_measured else None
        if now is not None and (best is None or now.loss < best.loss):
            best, best_adapters = now, {name: value.clone() for name, value in adapters.state_dict().items()}

        sketched = {"sketch": sketches(adapters)} if step in sketched_steps else {}
        trace.write(
            "step",
            step=step,
            chunks=chunks,
            batch_digest=array_digest("batch", tokens.array()[chunks])[:16],
            learning_rate=hex_float(optimizer.lr),
            loss=hex_float(loss_value),
            loss_by_codebook=[hex_float(v) for v in loss.by_codebook.tolist()],
            valid=loss.valid.tolist(),
            sanitized=int(loss.replaced),
            loss_smoothed=hex_float(smoothed_loss(smoothed, step)),
            **({"held_out": _traced(now)} if now else {}),
            grad=hex_norms(gradients),
            param=hex_norms(values),
            **sketched,
            **({"param_by_rank": ranks.digests(parameters_digest(parameters))} if ranks.world > 1 else {}),
        )
        if states is not None and states.due(step):
            so_far = (loss_value, first_loss, smoothed, sanitized, before, best, trace.so_far())
            tensors = (adapters.state_dict(), best_adapters, optimizer.state_dict(), last_step)
            states.save(State(step, *so_far, *tensors))
        measured = (before.loss, now.loss) if before and now else None
        progress(Progress(step, loss_value, smoothed_loss(smoothed, step), optimizer.lr, measured))
        chunks = next(order)

    last_step["after"] = optimizer.snapshot(parameters)
    if best is not None:
        adapters.load_state_dict(best_adapters)
    with torch.no_grad():
        trained = loss_of(first_codes, " of the trained adapters")
    for hook in hooks:
        hook.remove()
    trace.write(
        "end",
        steps=settings.steps,
        best_step=best.step if best else settings.steps,
        loss=hex_float(loss_value),
        eval_loss=hex_float(trained.value),
        eval_loss_by_codebook=[hex_float(v) for v in trained.by_codebook.tolist()],
        base_digest=frozen_digest(model),
        param=hex_norms(norms(parameters)),
        sketch=sketches(adapters),
    )
    return TrainResult(
        loss_first=first_loss,
        loss=loss_value,
        sanitized=sanitized,
        loss_smoothed=smoothed_loss(smoothed, settings.steps),
        held_out_first=before.loss if before else None,
        held_out=best.loss if best else None,
        best_step=best.step if best else settings.steps,
        last_step=last_step,
    )


def smoothed_loss(total: float, step: int) -> float:
    """The exponential moving average of the losses up to ``step``, from the sum that starts at zero (as Adam corrects
    its moments; Kingma and Ba 2015)."""
    return float(total / (1 - SMOOTHING**step))


def parameters_digest(parameters: dict[str, nn.Parameter]) -> str:
    """16 hex digits of the parameters' values, as every rank has them after a step."""
    return tensor_digest({name: p.detach().cpu().numpy() for name, p in parameters.items()})[:16]


def _traced(measured: HeldOutLoss) -> dict[str, Any]:
    return {"loss": hex_float(measured.loss), "loss_by_codebook": [hex_float(v) for v in measured.by_codebook]}


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

"""Training loops of many kinds, as people write them. Nothing here knows that it may be watched.

usage: loops.py NAME …    Each loop runs in a process of its own and prints a line: its name, the sum of its parameters.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

COUNT, ROWS = 8, 6
LOOPS: dict[str, Callable[[], Any]] = {}


def loop(function: Callable[[], Any]) -> Callable[[], Any]:
    LOOPS[function.__name__] = function
    return function


def data() -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    return torch.randn(COUNT, ROWS, 8, generator=made), torch.randint(4, (COUNT, ROWS), generator=made)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 4))


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, run: Any = None) -> None:
    for x, y in zip(*data(), strict=True):
        optimizer.zero_grad()
        F.cross_entropy((run or model)(x), y).backward()
        optimizer.step()


@loop
def plain() -> Any:
    model = net()
    fit(model, torch.optim.AdamW(model.parameters()))
    return model


@loop
def accumulated() -> Any:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for number, (x, y) in enumerate(zip(*data(), strict=True), 1):
        (F.cross_entropy(model(x), y) / 2).backward()
        if number % 2 == 0:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    return model


@loop
def two_optimizers() -> Any:
    maker, judge = net(), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    making, judging = torch.optim.Adam(maker.parameters()), torch.optim.Adam(judge.parameters())
    for x, _ in zip(*data(), strict=True):
        made = maker(x)
        judging.zero_grad()
        (judge(made.detach()).mean() - judge(x[:, :4]).mean()).backward()
        judging.step()
        making.zero_grad()
        (-judge(made).mean()).backward()
        making.step()
    return nn.ModuleList([maker, judge])


@loop
def cycled() -> Any:
    """A schedule that moves the momentum too; and the model cannot be found among the objects of `gc`."""
    import gc

    model = net()
    gc.freeze()
    optimizer = torch.optim.AdamW(model.parameters())
    gc.unfreeze()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=COUNT + 1)
    for x, y in zip(*data(), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
    return model


@loop
def closure() -> Any:
    model = net().eval()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    for x, y in zip(*data(), strict=True):

        def evaluate(x: Any = x, y: Any = y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(evaluate)
    return model


@loop
def scaled() -> Any:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for number, (x, y) in enumerate(zip(*data(), strict=True), 1):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) * (float("inf") if number == 4 else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    return model


@loop
def checkpointed() -> Any:
    from torch.utils.checkpoint import checkpoint

    model = nn.ModuleList([net(), nn.Linear(4, 4)])
    optimizer = torch.optim.AdamW(model.parameters())
    for number, (x, y) in enumerate(zip(*data(), strict=True)):
        optimizer.zero_grad()
        hidden = checkpoint(model[0], x.requires_grad_(), use_reentrant=number % 2 == 0)
        F.cross_entropy(model[1](hidden), y).backward()
        optimizer.step()
    return model


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Embedding(4, 8), nn.Linear(8, 4, bias=False)
        self.outside.weight = self.inside.weight
        self.frozen = nn.Linear(8, 8).requires_grad_(False)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.outside(self.frozen(self.inside(codes)))
        return found


@loop
def tied() -> Any:
    model = Tied()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for y in data()[1]:
        optimizer.zero_grad()
        F.cross_entropy(model(y), y).backward()
        optimizer.step()
    return model


@loop
def groups() -> Any:
    model = net()
    optimizer = torch.optim.AdamW(
        [{"params": model[0].parameters(), "weight_decay": 0.1}, {"params": model[3].parameters()}]  # type: ignore[index]
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [1e-2, 1e-1], total_steps=COUNT)
    for x, y in zip(*data(), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
        model.eval()
        with torch.no_grad():
            model(x)
        model.train()
    return model


@loop
def loaded() -> Any:
    """Batches from a DataLoader's worker processes; labels that no module meets."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    rows = torch.utils.data.TensorDataset(*(part.flatten(0, 1) for part in data()))
    for x, y in torch.utils.data.DataLoader(rows, 6, shuffle=True, num_workers=2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@loop
def bare() -> Any:
    """No module at all."""
    weight = torch.randn(8, 4, requires_grad=True)
    optimizer = torch.optim.SGD([weight], 0.1)
    for x, y in zip(*data(), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(x @ weight, y).backward()
        optimizer.step()
    return nn.ParameterList([weight])


@loop
def half() -> Any:
    model = net().bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    for x, y in zip(*data(), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x.bfloat16()).float(), y).backward()
        optimizer.step()
    return model


@loop
def sparse() -> Any:
    model = nn.Embedding(4, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(model.parameters())
    for y in data()[1]:
        optimizer.zero_grad()
        F.cross_entropy(model(y), y).backward()
        optimizer.step()
    return model


@loop
def forked() -> Any:
    """A process that has trained forks one that trains another model: ids of parameters are used again."""
    plain()
    if os.fork() == 0:
        return tied()
    os.wait()
    return plain()


def child(number: int) -> None:
    torch.manual_seed(number)
    plain()


@loop
def spawned() -> Any:
    torch.multiprocessing.spawn(child, nprocs=2)
    return nn.ParameterList()


@loop
def compiled() -> Any:
    model = net()
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    fit(model, torch.optim.AdamW(run.parameters()), run)  # type: ignore[attr-defined]
    return model


@loop
def compiled_late() -> Any:
    """As nanoGPT has it: the optimizer is made before."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    fit(model, optimizer, torch.compile(model, backend="aot_eager", fullgraph=True))
    return model


@loop
def compiled_in_place() -> Any:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    model.compile(backend="aot_eager")
    fit(model, optimizer)
    return model


@loop
def compiled_function() -> Any:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    fit(model, optimizer, torch.compile(lambda x: model(x) * 2, backend="aot_eager", fullgraph=True))
    return model


def main() -> None:
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # the first optimizer imports it: once, and not in each process
    for name in sys.argv[1:]:
        sys.stdout.flush()
        if os.fork() != 0:
            os.wait()
            continue
        torch.manual_seed(0)
        model = LOOPS[name]()
        print(name, sum((p.double().sum().item() for p in model.parameters()), 0.0).hex(), flush=True)
        return


if __name__ == "__main__":
    main()

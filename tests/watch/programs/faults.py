"""Programs with one fault each."""

import torch
from sound import STEPS, X, Y, batch, dropping, in_two, loss_of, model
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()


def no_gradient() -> None:
    """The first layer's output is detached."""

    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x).detach())

    net = Detached()
    train(net, torch.optim.SGD(net.parameters(), lr=1e-2))


def not_moved() -> None:
    """In bfloat16, the updates are smaller than its precision."""
    net = model().bfloat16()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        cross_entropy(net(x.bfloat16()), y).backward()
        optimizer.step()


def dead() -> None:
    """A layer whose activation is dead: its gradients are 0."""
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    nn.init.constant_(net[0].bias, -1e4)
    train(net, torch.optim.SGD(net.parameters(), lr=1e-2))


def kept_gradient() -> None:
    """No zero_grad()."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    for step in range(STEPS):
        loss_of(net, step).backward()
        optimizer.step()


def in_no_optimizer() -> None:
    """A layer is added when the optimizer is there already."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    net.append(nn.Linear(3, 3))
    for step in range(STEPS):
        net.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()


def replaced() -> None:
    """The head is replaced by another one, and the optimizer has the old one."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    net[2] = nn.Linear(16, 3)
    train(net, optimizer)


def zero_rate() -> None:
    """A group's rate is divided away in whole numbers."""
    net = model()
    groups = [{"params": net[0].parameters(), "lr": STEPS // 100}, {"params": net[2].parameters(), "lr": 1e-2}]
    train(net, torch.optim.SGD(groups))


def constant_rate() -> None:
    """The scheduler is made, and not stepped."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    plan = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)],
        [4],
    )
    train(net, optimizer)
    assert plan.get_last_lr()


def same_batch() -> None:
    """The loader begins anew in each step."""
    loader = DataLoader(TensorDataset(X, Y), batch_size=8)
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    for _ in range(STEPS):
        x, y = next(iter(loader))
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()


def detached_loss() -> None:
    """The gradients are cleared between backward() and step()."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    for step in range(STEPS):
        loss_of(net, step).backward()
        optimizer.zero_grad()
        optimizer.step()


def detached_later() -> None:
    """From the fifth step on the loss is of a constant factor 0."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        (loss_of(net, step) * (step < 4) + 1).backward()
        optimizer.step()


def unlike_replicas() -> None:
    """The gradients are not averaged."""
    in_two(lambda rank: _alone(rank))


def _alone(rank: int) -> None:
    torch.manual_seed(0)
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(net, 2 * step + rank).backward()
        optimizer.step()


def not_finite() -> None:
    """The logarithm of 0, in the fifth step."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        (loss_of(net, step) + torch.log(net[2].bias.square().sum() * (step != 4))).backward()
        optimizer.step()


def evaluation_in_train_mode() -> None:
    """No eval() before the evaluations."""
    net = dropping()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()
        if step % 4 == 3 and step < STEPS - 1:
            with torch.no_grad():
                net(X)


def evaluation_at_the_end() -> None:
    net = dropping()
    train(net, torch.optim.SGD(net.parameters(), lr=1e-2))
    with torch.no_grad():
        net(X)


def training_in_evaluation_mode() -> None:
    """No train() after the first evaluation."""
    net = dropping()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()
        if step == 3:
            net.eval()
            with torch.no_grad():
                net(X)

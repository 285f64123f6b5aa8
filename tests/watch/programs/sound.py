"""Programs in which nothing is wrong."""

import copy
import os
import tempfile
import warnings

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

X, Y = torch.randn(64, 8), torch.randint(0, 3, (64,))
STEPS = 12


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def batch(step: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    at = step * size % len(X)
    return X[at : at + size], Y[at : at + size]


def loss_of(net: nn.Module, step: int) -> torch.Tensor:
    x, y = batch(step)
    return cross_entropy(net(x), y)


def plain() -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()


def accumulation() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9)
    for step in range(4 * STEPS):
        (loss_of(net, step) / 4).backward()
        if step % 4 == 3:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)


def gan() -> None:
    """As in PyTorch's example: two optimizers, the fake batch used by both, one generator without gradients beside."""
    maker = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
    judge = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(16, 1))
    makes = torch.optim.Adam(maker.parameters(), lr=1e-3)
    judges = torch.optim.Adam(judge.parameters(), lr=1e-3)
    target = nn.BCEWithLogitsLoss()
    for step in range(STEPS):
        real, _ = batch(step)
        judge.zero_grad()
        target(judge(real), torch.ones(8, 1)).backward()
        fake = maker(torch.randn(8, 4))
        target(judge(fake.detach()), torch.zeros(8, 1)).backward()
        judges.step()
        maker.zero_grad()
        target(judge(fake), torch.ones(8, 1)).backward()
        makes.step()


def critic() -> None:
    """Several steps of one optimizer to one of the other, and a generator that is called without gradients for them."""
    maker = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
    judge = nn.Linear(8, 1)
    makes = torch.optim.RMSprop(maker.parameters(), lr=1e-3)
    judges = torch.optim.RMSprop(judge.parameters(), lr=1e-3)
    for step in range(STEPS):
        with torch.no_grad():
            fake = maker(torch.randn(8, 4))
        judges.zero_grad()
        (judge(fake).mean() - judge(batch(step)[0]).mean()).backward()
        judges.step()
        if step % 3 == 2:
            makes.zero_grad()
            (-judge(maker(torch.randn(8, 4))).mean()).backward()
            makes.step()


def scaler() -> None:
    """Its first steps are left out, because the scale is too large."""
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    scaling = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-60)
    for step in range(STEPS):
        optimizer.zero_grad()
        scaling.scale(1e4 * loss_of(net, step)).backward()
        scaling.step(optimizer)
        scaling.update()


def lbfgs() -> None:
    net = model()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=4)
    for step in range(STEPS):
        x, y = batch(step, 32)
        x = x + 0.01 * torch.randn(x.shape)

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(net(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.frozen = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).requires_grad_(False).eval()
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(self.embed(tokens)))


def tied() -> None:
    """Tied weights, and a frozen part that is in evaluation mode and, in the optimizer, without gradients."""
    net = Tied()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(STEPS):
        tokens = torch.randint(0, 11, (9,))
        optimizer.zero_grad()
        cross_entropy(net(tokens[:-1]), tokens[1:]).backward()
        optimizer.step()


def dropping() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def evaluation() -> None:
    """Batch normalization (with a bias before it, that cannot matter), dropout, evaluations in between and after."""
    net = dropping()
    net(X)  # tries whether it runs
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    for step in range(STEPS):
        net.train()
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()
        if step % 4 == 3:
            net.eval()
            with torch.no_grad():
                net(X)
    net.eval()
    with torch.inference_mode():
        net(X)


def scheduler() -> None:
    """A warm-up from 0, then a cosine, of the two groups' own rates; another model's rate waits for its plateau."""
    net, other = model(), model()
    groups = [{"params": net[0].parameters(), "lr": 1e-3}, {"params": net[2].parameters(), "lr": 1e-2}]
    optimizer, second = torch.optim.AdamW(groups), torch.optim.SGD(other.parameters(), lr=1e-2)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    plan = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [4])
    later = torch.optim.lr_scheduler.StepLR(second, 1000)
    for step in range(STEPS):
        for net_, optimizer_, plan_ in ((net, optimizer, plan), (other, second, later)):
            optimizer_.zero_grad()
            loss_of(net_, step).backward()
            optimizer_.step()
            plan_.step()


def workers() -> None:
    net = model()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(2):
        for x, y in DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True, num_workers=2):
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()


def teacher() -> None:
    """A copy that follows the model and learns nothing itself, within the same module."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = dropping()
            self.teacher = copy.deepcopy(self.student)

    both = Both()
    optimizer = torch.optim.SGD(both.student.parameters(), lr=1e-2)
    for step in range(STEPS):
        x, _ = batch(step)
        with torch.no_grad():
            wanted = both.teacher(x)
        optimizer.zero_grad()
        mse_loss(both.student(x + 0.1 * torch.randn(x.shape)), wanted + 1).backward()
        optimizer.step()
        with torch.no_grad():
            for own, its in zip(both.teacher.parameters(), both.student.parameters(), strict=True):
                own.lerp_(its, 0.01)


def in_two(function: "Callable[[int], None]") -> None:  # type: ignore[name-defined]  # noqa: F821
    """Run a program as two ranks."""
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(2):
            if child := os.fork():
                children.append(child)
                continue
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
            with warnings.catch_warnings(action="ignore"):
                torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
                function(rank)
                torch.distributed.destroy_process_group()
            raise SystemExit
        assert not any(os.waitpid(child, 0)[1] for child in children)


def parallel() -> None:
    in_two(_parallel)


def _parallel(rank: int) -> None:
    """As the manual says it, with gradients that are views: the same tensors in each step."""
    torch.manual_seed(rank)
    net = nn.parallel.DistributedDataParallel(model(), gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(net, 2 * step + rank).backward()
        optimizer.step()

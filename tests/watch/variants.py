"""One training and its variants, each in a process of its own, one after the other: usage variants.py NAME …"""

from __future__ import annotations

import importlib
import os
import sys

import torch
import torch.nn.functional as F
from torch import nn


class Scaled(torch.autograd.Function):
    """Nothing forward, and a tenth more backward."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * 1.1


def train(variant: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(10, 6, 8), torch.randint(4, (10, 6))
    if variant == "init":
        torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    decay = 0.02 if variant == "decay" else 0.01
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=decay)
    milestone = 5 if variant == "schedule" else 7
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [milestone])
    for step in range(1, 11):
        rows = x[step - 1].flip(0) if variant == "data" and step == 4 else x[step - 1]
        hidden = model[1](model[0](rows)) if variant == "backward" and step == 6 else None
        logits = model(rows) if hidden is None else model[2](Scaled.apply(hidden))
        loss = F.cross_entropy(logits, y[step - 1], label_smoothing=0.1 if variant == "loss" and step == 3 else 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if variant == "update" and step == 8:
            with torch.no_grad():
                model[0].weight[3, 2] += 1e-3  # behind the optimizer's back: seen at the step after
    torch.save(model.state_dict(), f"{variant}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")
    for name in sys.argv[1:]:
        if os.fork() == 0:
            train(name)
            break
        os.wait()

"""In which mode, training or evaluation, a program's modules are, where that matters."""

from __future__ import annotations

from typing import Any

import torch

from .names import named_modules


def mode_matters(module: Any) -> bool:
    """Whether a module itself does something else in training than in evaluation: dropout, or statistics of batches."""
    if isinstance(module, torch.nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, torch.nn.modules.batchnorm._NormBase):
        return module.running_mean is not None
    found = getattr(module, "dropout", 0.0)  # attention, recurrent layers, many a program's own
    return isinstance(found, float) and found > 0


def random_part(module: Any) -> str:
    """The name of the first module in it, itself included, that is in training mode, where that matters; empty where
    there is none."""
    found = ((name, m) for name, m in named_modules(module) if m.training and mode_matters(m))
    name, inner = next(found, ("", None))
    return "" if inner is None else f"{name or 'itself'} ({type(inner).__name__})"


def in_evaluation_mode(root: Any, trained: set[int]) -> list[str]:
    """The modules in evaluation mode, where that matters, that have one of the parameters, or have none of their own
    and lie beside one."""
    around: set[str] = set()
    for path, p in root.named_parameters(remove_duplicate=False):
        if id(p) in trained:
            parts = path.split(".")
            around.update(".".join(parts[:end]) for end in range(len(parts)))
    return [
        name or type(module).__name__
        for (path, module), (name, _) in zip(root.named_modules(), named_modules(root), strict=True)
        if not module.training
        and mode_matters(module)
        and (path if next(module.parameters(), None) is not None else path.rpartition(".")[0]) in around
    ]

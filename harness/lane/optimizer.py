"""AdamW by torch's own function, without the class around it.

The first call of any ``torch.optim.Optimizer`` imports torch's compiler, and sympy with it: 1.3 s, as long as torch
itself takes (measured with torch 2.13.0). The function does the same work, to the bit, without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


class AdamW:
    """AdamW (Loshchilov and Hutter 2019) over ``parameters``, with the bits of ``torch.optim.AdamW(fused=True)``.

    ``lr`` may be set between steps. A parameter without a gradient is left as it is, as torch does. The moments have
    shape and dtype of their parameters; the count of steps is float32, as the fused kernel asks.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.parameters = list(parameters)
        self.first = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.second = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.steps = [torch.zeros((), dtype=torch.float32, device=p.device) for p in self.parameters]

    def zero_grad(self) -> None:
        """Forget the gradients of the step before."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        columns = zip(self.parameters, self.first, self.second, self.steps, strict=True)
        rows = [(p, p.grad, *moments) for p, *moments in columns if p.grad is not None]
        if not rows:
            return
        parameters, gradients, first, second, steps = (list(column) for column in zip(*rows, strict=True))
        adamw(
            parameters,
            gradients,
            first,
            second,
            [],
            steps,
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.lr,
            weight_decay=self.weight_decay,
            eps=self.eps,
        )

    def snapshot(self, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
        """Copies, on the CPU, of each parameter's value and moments, by the parameters' names in their order."""
        columns = zip(self.parameters, self.first, self.second, strict=True)
        kinds = ("value", "first", "second")
        return {
            name: {kind: tensor.detach().cpu().clone() for kind, tensor in zip(kinds, column, strict=True)}
            for name, column in zip(names, columns, strict=True)
        }

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The moments and the counts of steps, in the order of the parameters."""
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave. Raises ValueError where the tensors are not those of the parameters."""
        for mine, saved in ((self.first, state["first"]), (self.second, state["second"]), (self.steps, state["steps"])):
            for target, source in zip(mine, saved, strict=True):
                if target.shape != source.shape or target.dtype != source.dtype:
                    found, expected = (f"{t.dtype} {list(t.shape)}" for t in (source, target))
                    raise ValueError(f"a moment is {found}, and not {expected}")
                target.copy_(source)

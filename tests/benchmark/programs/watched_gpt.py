"""A language model of so many parameters, trained on noise; prints the seconds of its steps and those in the recorder.

usage: watched_gpt.py WIDTH LAYERS BATCH LENGTH STEPS
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import nn

VOCABULARY = 4096


class Model(nn.Module):
    def __init__(self, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.mask = nn.Transformer.generate_square_subsequent_mask(length)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        found = self.blocks(self.tokens(codes) + self.places.weight, mask=self.mask, is_causal=True)
        return found @ self.tokens.weight.T


def main() -> None:
    width, layers, batch, length, steps = map(int, sys.argv[1:])
    torch.manual_seed(0)
    torch.set_num_threads(2)
    model = Model(width, layers, length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    spent = 0.0
    hooks: Any = sys.modules.get("_harness_watch.hooks")
    if hooks is not None:
        inner = hooks.guarded

        def timed(*given: Any) -> None:
            nonlocal spent
            started = time.perf_counter()
            inner(*given)
            spent += time.perf_counter() - started

        hooks.guarded = timed
    seconds, within = [], []
    for _ in range(steps):
        started, before = time.perf_counter(), spent
        codes = torch.randint(VOCABULARY, (batch, length + 1))
        logits = model(codes[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), codes[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
        within.append(spent - before)
    total = sum(p.numel() for p in model.parameters())
    print(json.dumps({"parameters": total, "seconds": seconds, "within": within}))


if __name__ == "__main__":
    main()

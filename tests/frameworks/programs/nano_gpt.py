"""As nanoGPT's train.py: a config object in the checkpoint, beside model and optimizer."""

import dataclasses
import pathlib

import torch
from words import windows

RATE = 1e-2


@dataclasses.dataclass
class GPTConfig:
    width: int = 32
    heads: int = 2
    layers: int = 2


class Block(torch.nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(config.width, config.heads, dropout=0.1, batch_first=True)
        self.mlp = torch.nn.Sequential(torch.nn.LayerNorm(config.width), torch.nn.Linear(config.width, config.width))

    def forward(self, x):
        mask = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        x = x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(x)


class GPT(torch.nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(64, config.width)
        self.blocks = torch.nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.head = torch.nn.Linear(config.width, 64, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x, targets=None):
        x = self.words(x)
        for block in self.blocks:
            x = block(x)
        logits = self.head(x)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


torch.manual_seed(1)
config = GPTConfig()
model = GPT(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95))
rows = windows()
for step in range(6):
    for group in optimizer.param_groups:
        group["lr"] = RATE * (step + 1) / 6
    for _ in range(2):
        batch = rows[torch.randint(len(rows), (4,))]
        (model(batch[:, :-1], batch[:, 1:])[1] / 2).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
pathlib.Path("out").mkdir(exist_ok=True)
state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "config": config, "iter_num": step}
torch.save(state, "out/ckpt.pt")

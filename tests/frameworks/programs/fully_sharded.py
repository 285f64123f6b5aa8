"""fully_shard (FSDP 2) under torchrun: each rank saves its own part."""

import os
import pathlib

import torch
from torch.distributed.fsdp import fully_shard
from words import windows

RATE = 1e-2

torch.distributed.init_process_group("gloo")
rank = int(os.environ["RANK"])
torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Embedding(64, 32), torch.nn.Flatten(), torch.nn.Linear(512, 64))
mesh = torch.distributed.init_device_mesh("cpu", (2,))
for layer in (model[0], model[2]):
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
rows = windows()
for step in range(6):
    batch = rows[4 * step + 2 * rank : 4 * step + 2 * rank + 2]
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(batch[:, :-1]), batch[:, -1]).backward()
    optimizer.step()
pathlib.Path("out").mkdir(exist_ok=True)
torch.save({name: value.to_local() for name, value in model.state_dict().items()}, f"out/rank{rank}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()

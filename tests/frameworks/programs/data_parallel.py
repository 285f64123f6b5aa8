"""DistributedDataParallel under torchrun: each rank has its own part of the data."""

import os
import pathlib

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from words import windows

RATE = 1e-2

torch.distributed.init_process_group("gloo")
torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Embedding(64, 32), torch.nn.Flatten(), torch.nn.Linear(512, 64))
model = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
rows = windows()
data = TensorDataset(rows[:, :-1], rows[:, -1])
loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, seed=1))
for step, (inputs, target) in enumerate(loader):
    if step == 6:
        break
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(inputs), target).backward()
    optimizer.step()
if os.environ["RANK"] == "0":
    pathlib.Path("out").mkdir(exist_ok=True)
    torch.save(model.state_dict(), "out/model.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()

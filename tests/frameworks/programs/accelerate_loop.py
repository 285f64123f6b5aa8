"""A loop with Accelerate: accumulation, clipping, a schedule, and its whole state saved as a folder."""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset
from words import windows

RATE = 1e-2

set_seed(1)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = torch.nn.Sequential(
    torch.nn.Embedding(64, 32), torch.nn.Flatten(), torch.nn.Dropout(0.1), torch.nn.Linear(512, 64)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
rows = windows()
loader = DataLoader(TensorDataset(rows[:, :-1], rows[:, -1]), batch_size=4, shuffle=True)
schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
for number, (inputs, target) in enumerate(loader):
    if number == 12:
        break
    with accelerator.accumulate(model):
        loss = torch.nn.functional.cross_entropy(model(inputs), target)
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
accelerator.save_state("out")

"""A diffusion loop in plain torch: noise and times drawn in the loop, autocast, an average of the weights."""

import argparse
import pathlib

import torch
from words import windows

RATE = 1e-2

options = argparse.Namespace(times=10, width=8, decay=0.9, out=str(pathlib.Path("out").resolve()))
torch.manual_seed(1)
net = torch.nn.Sequential(
    torch.nn.Conv2d(2, options.width, 3, padding=1),
    torch.nn.GroupNorm(2, options.width),
    torch.nn.SiLU(),
    torch.nn.Conv2d(options.width, 1, 3, padding=1),
)
average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
images = windows()[:48, :16].float().view(-1, 1, 4, 4).div(32).sub(1)
for _ in range(6):
    clean = images[torch.randperm(len(images))[:8]]
    noise, time = torch.randn_like(clean), torch.rand(8, 1, 1, 1)
    mixed = (1 - time) * clean + time * noise
    with torch.autocast("cpu", torch.bfloat16):
        guess = net(torch.cat([mixed, time.expand_as(clean)], 1))
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(guess.float(), noise).backward()
    optimizer.step()
    average.update_parameters(net)
pathlib.Path("out").mkdir(exist_ok=True)
torch.save({"options": options, "net": net.state_dict(), "average": average.state_dict()}, "out/net.pth")

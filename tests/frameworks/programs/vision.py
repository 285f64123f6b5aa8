"""A small network of torchvision's, with its transforms: batch normalization, momentum, a cosine."""

import pathlib

import torch
from torch.utils.data import DataLoader, TensorDataset
from words import windows

try:
    import torchvision
except RuntimeError:  # the registry's is built for CUDA: beside a torch for CPUs it lacks its operators (none is used)
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
from torchvision.transforms import v2

RATE = 1e-2

torch.manual_seed(1)
model = torchvision.models.resnet18(num_classes=8)
optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
augment = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(16, padding=2), v2.Normalize([0.5] * 3, [0.5] * 3)])
rows = windows()[:48]
images = (
    rows[:, :16].float().div(64).view(-1, 1, 4, 4).expand(-1, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
)
loader = DataLoader(TensorDataset(images, rows[:, -1] % 8), batch_size=8, shuffle=True)
for inputs, target in loader:
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(augment(inputs)), target).backward()
    optimizer.step()
    schedule.step()
pathlib.Path("out").mkdir(exist_ok=True)
torch.save(model.state_dict(), "out/resnet.pth")

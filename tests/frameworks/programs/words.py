"""The data of these programs: a text file beside them, as windows of byte values below 64."""

from pathlib import Path

import torch

LENGTH = 16


def windows() -> torch.Tensor:
    """int64 [windows, LENGTH + 1]."""
    values = torch.tensor([byte % 64 for byte in Path("data.txt").read_bytes()])
    return values[: len(values) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)

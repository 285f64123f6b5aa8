"""A lane in plain PyTorch: a small network that predicts the next level. It writes `out/voice.pt`, `out/status.json`
and a manifest, and prints a report of its own kind. The audio is at AUDIO_PATH, the initial checkpoint at initial.pt.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from sounds import LEVELS, files_in, tokens_of
from torch import nn

audio = Path(os.environ["AUDIO_PATH"])
out = Path("out")
out.mkdir(exist_ok=True)
torch.set_num_threads(1)
torch.manual_seed(1)

model = nn.Sequential(nn.Embedding(LEVELS, 8), nn.Linear(8, LEVELS))
model.load_state_dict(torch.load("initial.pt", weights_only=True))
tokens = [torch.from_numpy(tokens_of(file)) for file in files_in(audio)]
before, after = torch.cat([t[:-1] for t in tokens]), torch.cat([t[1:] for t in tokens])
for step in range(1, 41):
    chosen = torch.randint(len(before), (256,))
    loss = nn.functional.cross_entropy(model(before[chosen]), after[chosen])
    # Not torch.optim: its first step imports torch's compiler, which takes longer than all the rest.
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= 0.5 * gradient
    if step % 10 == 0:
        print(f"step {step} loss {loss.item():.4f}", flush=True)

torch.save(model.state_dict(), out / "voice.pt")
entries = [
    {"path": os.path.relpath(file, out), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    for file in files_in(audio)
]
(out / "manifest.json").write_text(json.dumps({"entries": entries}))
(out / "status.json").write_text(json.dumps({"status": "completed", "loss": loss.item()}))
sha256 = hashlib.sha256((out / "voice.pt").read_bytes()).hexdigest()
print(f"## trained ##\ncheckpoint_sha256: {sha256}\nloss: {loss.item()!r}\nmanifest_entry_count: {len(entries)}")

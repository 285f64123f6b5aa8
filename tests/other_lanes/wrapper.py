"""A lane in the style of the upstream wrapper: a report of twenty keys on stdout, status, manifest, and a `.pt`.

usage: wrapper.py [DEFECT]. Without a defect it is a good lane. The defects are what such wrappers really do:

* unseeded: nothing sets a seed
* random-targets: the codes are drawn instead of taken from the audio, and the loss is above ln(V)
* unseeded-blind: both, so that the checkpoint differs whatever the audio is
* blind: the audio is staged and listed, and a fixed tensor is trained on
* stale: the checkpoint of an earlier run is there, so training is left out, and everything says completed
* disagree: the status holds another loss and another SHA-256 than the report and the file
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from pathlib import Path

import torch
from sounds import LEVELS, files_in, tokens_of
from torch import nn

DEFECT = sys.argv[1] if len(sys.argv) > 1 else "none"
AUDIO = Path(os.environ.get("AUDIO_PATH", "data/narration.wav"))
ARTIFACTS = Path("artifacts_tts")
CHECKPOINT = ARTIFACTS / "checkpoints" / "tts_voice_train_toy.pt"
STATUS = ARTIFACTS / "train_status.json"
MANIFEST = ARTIFACTS / "knowledge_audio" / "voice_dataset_manifest.json"


def prepare() -> list[dict[str, object]]:
    """Stage the audio and list it."""
    MANIFEST.parent.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, object]] = []
    for index, source in enumerate(files_in(AUDIO)):
        target = MANIFEST.parent / f"{index:03d}.wav"
        shutil.copyfile(source, target)
        sha256 = hashlib.sha256(target.read_bytes()).hexdigest()
        entries.append({"target": target.name, "bytes": target.stat().st_size, "sha256": sha256})
    MANIFEST.write_text(json.dumps({"entries": entries}))
    return entries


def train() -> float:
    """Train, write the checkpoint, and return the last loss."""
    if DEFECT == "stale" and CHECKPOINT.exists():
        return 1.2345
    torch.set_num_threads(1)
    if not DEFECT.startswith("unseeded"):
        torch.manual_seed(7)
    tokens = torch.cat([torch.from_numpy(tokens_of(file)) for file in files_in(MANIFEST.parent)])
    if DEFECT.endswith("blind"):
        tokens = (torch.arange(2000) * 3) % LEVELS
    before, after = tokens[:-1], tokens[1:]
    if DEFECT == "random-targets":
        after = torch.randint(LEVELS, after.shape)
    model = nn.Sequential(nn.Embedding(LEVELS, 8), nn.Linear(8, LEVELS))
    rate = 0.5 if DEFECT != "random-targets" else 0.01
    loss = torch.zeros(())
    for step in range(40):
        chosen = torch.randint(len(before), (256,))
        loss = nn.functional.cross_entropy(model(before[chosen]), after[chosen])
        # Not torch.optim: its first step imports torch's compiler, which takes longer than all the rest.
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= rate * gradient
        if step % 10 == 9:
            print(f"[train] step={step + 1} loss={loss.item():.4f}", flush=True)
    CHECKPOINT.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"adapter_state": model.state_dict(), "config": {"levels": LEVELS}}, CHECKPOINT)
    return loss.item()


def main() -> None:
    entries = prepare()
    loss = train()
    sha256 = hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    status = {"status": "completed", "loss": loss, "checkpoint_sha256": sha256}
    STATUS.write_text(
        json.dumps({**status, "loss": 0.5, "checkpoint_sha256": "0" * 64} if DEFECT == "disagree" else status)
    )
    report = {
        "objective_status": "completed",
        "first_failed_step": "none",
        "root_cause": "none",
        "head_commit": "unknown",
        "python_version": platform.python_version(),
        "gpu_available": "false",
        "audio_path": AUDIO,
        "audio_exists": "true",
        "audio_size_bytes": sum(file.stat().st_size for file in files_in(AUDIO)),
        "audio_is_lfs_pointer": "false",
        "manifest_path": MANIFEST,
        "manifest_exists": "true",
        "manifest_entry_count": len(entries),
        "training_status_path": STATUS,
        "training_status_json": json.dumps(status),
        "checkpoint_path": CHECKPOINT,
        "checkpoint_exists": "true",
        "checkpoint_size_bytes": CHECKPOINT.stat().st_size,
        "checkpoint_sha256": sha256,
        "next_unblock_action": "none",
    }
    print("=== COLAB TRAIN REPORT ===")
    for key, value in report.items():
        print(f"{key}: {value}")


main()

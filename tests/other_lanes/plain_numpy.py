"""A lane without torch: a bigram model in NumPy. It writes `voice.npz` and `status.json`, and nothing else.

usage: plain_numpy.py AUDIO FOLDER [--initial]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from sounds import LEVELS, files_in, tokens_of


def initial() -> dict[str, np.ndarray]:
    draws = np.random.default_rng(0)
    return {"table": 0.1 * draws.standard_normal((LEVELS, LEVELS)), "bias": np.zeros(LEVELS)}


def train(audio: Path, folder: Path) -> None:
    tokens = [tokens_of(file) for file in files_in(audio)]
    before, after = (np.concatenate(parts) for parts in zip(*((t[:-1], t[1:]) for t in tokens), strict=True))
    counts = np.zeros((LEVELS, LEVELS))
    np.add.at(counts, (before, after), 1.0)
    counts /= counts.sum()
    model = initial()
    loss = float("nan")
    for step in range(60):
        logits = model["table"] + model["bias"]
        logits = logits - logits.max(axis=1, keepdims=True)
        chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        loss = float(-(counts * np.log(chance)).sum())
        gradient = counts.sum(axis=1, keepdims=True) * chance - counts
        model["table"] -= 20.0 * gradient
        model["bias"] -= 2.0 * gradient.sum(axis=0)
        if step % 20 == 19:
            print(f"step {step + 1} loss {loss:.4f}", flush=True)
    np.savez(folder / "voice.npz", **model)
    status = {"job": {"state": "succeeded"}, "metrics": {"loss": loss}}
    (folder / "status.json").write_text(json.dumps(status))


if __name__ == "__main__":
    if sys.argv[3:] == ["--initial"]:
        np.savez(Path(sys.argv[2]) / "initial.npz", **initial())
    else:
        train(Path(sys.argv[1]), Path(sys.argv[2]))

"""A lane that writes a trace, in the format of docs/evidence.md: a bigram table in NumPy, which knows nothing of this
project. It reads `rates.json`, the learning rate of each step, and writes `trace.jsonl`, `voice.npz` and `status.json`
into LANE_RUN_DIR. Each run adds a line to the file RUNS.

usage: plain_trace.py AUDIO
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
from sounds import LEVELS, files_in, tokens_of

FRAMES, BATCH = 480, 2
RATES = json.loads(Path("rates.json").read_text())
STEPS = len(RATES)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def loss_of(table: np.ndarray, batch: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean loss over the positions of a batch, and its gradient."""
    counts = np.zeros((LEVELS, LEVELS))
    np.add.at(counts, (batch[:, :-1].ravel(), batch[:, 1:].ravel()), 1.0)
    counts /= counts.sum()
    chance = np.exp(table) / np.exp(table).sum(axis=1, keepdims=True)
    return float(-(counts * np.log(chance)).sum()), counts.sum(axis=1, keepdims=True) * chance - counts


def train(audio: Path, folder: Path) -> None:
    files = files_in(audio)
    names = [sha256(file.read_bytes()) for file in files]
    parts = [tokens_of(file) for file in files]
    places = [(i, start) for i, part in enumerate(parts) for start in range(0, len(part) - FRAMES + 1, FRAMES)]
    chunks = np.array([parts[i][start : start + FRAMES] for i, start in places])
    draws = np.random.default_rng(0)
    order = np.concatenate([draws.permutation(len(chunks)) for _ in range(STEPS * BATCH // len(chunks) + 1)])
    batches = order[: STEPS * BATCH].reshape(STEPS, BATCH)
    table = np.zeros((LEVELS, LEVELS))

    def norm(value: np.ndarray) -> dict[str, str]:
        return {"table": float(np.linalg.norm(value)).hex()}

    lines: list[dict[str, object]] = []
    first, _ = loss_of(table, chunks[batches[0]])
    loss = first
    for step, batch in enumerate(batches, 1):
        loss, gradient = loss_of(table, chunks[batch])
        table = table - RATES[step - 1] * gradient
        lines.append({"kind": "step", "step": step, "chunks": batch.tolist(),
                      "batch_digest": sha256(chunks[batch].tobytes())[:16], "loss": loss.hex(),
                      "loss_by_codebook": [loss.hex()], "valid": [BATCH * (FRAMES - 1)], "sanitized": 0,
                      "grad": norm(gradient), "param": norm(table)})  # fmt: skip
    last, _ = loss_of(table, chunks[batches[0]])
    header = {"kind": "header", "schema": "lane_trace/1", "run_id": os.environ["LANE_RUN_ID"], "lane": "experimental",
              "promotable": False, "mode": "float64", "numeric_class": None, "seed": 0, "steps": STEPS, "batch": BATCH,
              "settings_digest": "none", "model_digest": "none",
              "dataset_digest": sha256("".join(f"{name}\n" for name in sorted(names)).encode())}  # fmt: skip
    described = [{"file": names[i], "start": start, "digest": sha256(chunk.tobytes())[:16]}
                 for (i, start), chunk in zip(places, chunks, strict=True)]  # fmt: skip
    tokens = {"kind": "tokens", "tokens_digest": sha256(chunks.tobytes()), "shape": [len(chunks), 1, FRAMES],
              "chunks": described}  # fmt: skip
    start = {"kind": "start", "base_digest": "none", "chunks": batches[0].tolist(), "loss": first.hex(),
             "loss_without_adapters": first.hex(), "param": norm(np.zeros(1))}  # fmt: skip
    end = {"kind": "end", "steps": STEPS, "loss": loss.hex(), "eval_loss": last.hex(),
           "eval_loss_by_codebook": [last.hex()], "base_digest": "none", "param": norm(table)}  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in (header, tokens, start, *lines, end))
    (folder / "trace.jsonl").write_text(text)
    np.savez(folder / "voice.npz", table=table)
    (folder / "status.json").write_text(json.dumps({"status": "completed", "loss": loss, "steps_done": STEPS,
                                                    "steps_total": STEPS, "sanitized_logits": 0}))  # fmt: skip


if __name__ == "__main__":
    with Path(os.environ["RUNS"]).open("a") as runs:
        runs.write(Path(os.environ["LANE_RUN_DIR"]).parent.name + "\n")
    train(Path(sys.argv[1]), Path(os.environ["LANE_RUN_DIR"]))

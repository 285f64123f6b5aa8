"""A lane in a page of NumPy: it trains a small network for real, and leaves a run directory like the real one's.

For tests of what compares runs: everything that can move a result can be moved here, in milliseconds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from run_directory import BATCH, CHUNKS, CODEBOOKS, FRAMES, edit_json, edit_trace, write_run, write_trace
from run_directory import _write_checkpoint as write_checkpoint

from harness.evidence import RunEvidence, load_run
from harness.numerics.digest import array_digest, tensor_digest
from harness.numerics.sketch import sketch

_RUN_IDS = itertools.count(1)
WIDTH = 16


@dataclass(frozen=True)
class Toy:
    """What a run computes, and how. `lane` values are code, `settings` are in the settings digest."""

    mode: str = "universal"
    numeric_class: str = "aaaaaaaaaaaaaaaa"
    data: int = 0
    model: str = "model"
    seed: int = 0
    steps: int = 6
    learning_rate: float = 3e-3
    # What the code does:
    rate_factor: float = 1.0
    epsilon: float = 1e-8
    swap_step: int = 0  # at this step two chunks change places
    noise: float = 0.0  # on every gradient, relative; what other kernels do
    noise_seed: int = 0
    drift: float = 0.0  # on every parameter at the end, absolute
    environment: Mapping[str, Any] = field(default_factory=lambda: {"packages": {"torch": "2.13.0"}, "threads": 1})

    def with_(self, **changes: Any) -> Toy:
        """Another one."""
        return replace(self, **changes)

    def run(self, run_dir: Path) -> RunEvidence:
        """Train, and leave the run directory `run_dir`, which must not exist."""
        run_id = f"{next(_RUN_IDS):032x}"
        write_run(run_dir, run_id=run_id, steps=self.steps, seed=self.data, checkpoint=False)
        lines: list[dict[str, Any]] = [json.loads(line) for line in (run_dir / "trace.jsonl").read_text().splitlines()]
        settings = {"seed": self.seed, "steps": self.steps, "learning_rate": self.learning_rate}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        header, tokens_line = lines[0], lines[1]
        header |= {"mode": self.mode, "numeric_class": self.numeric_class, "seed": self.seed, "settings_digest": digest}
        header["model_digest"] = hashlib.sha256(self.model.encode()).hexdigest()
        body, before = self._train(np.load(run_dir / "tokens.npy"))
        write_trace(run_dir / "trace.jsonl", [header, tokens_line, *body])

        universal = self.mode == "universal"
        tensors = {name: value.astype(np.float32) for name, value in before.items()}
        path = run_dir / "checkpoints" / "tts_voice_train_toy.pt"
        every = {"run_id": run_id, "lane": "experimental", "promotable": False}
        sha256 = write_checkpoint(path, every, tensors, before, tensor_digest(tensors))
        if not universal:
            path.with_suffix(".float64.pt").unlink()
        edit_json(
            run_dir / "train_status.json",
            lambda status: status.update(
                settings=settings, checkpoint_sha256=sha256, loss=float.fromhex(body[-1]["loss"])
            ),
        )
        edit_json(run_dir / "environment.json", lambda environment: environment.update(self.environment))
        report = run_dir / "train_report.txt"
        report.write_text(report.read_text().replace("model_id: none", "model_id: toy"))
        return load_run(run_dir)

    def _train(self, tokens: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The trace's lines from `start` on, and the trained parameters in the mode's dtype."""
        dtype = np.float64 if self.mode == "universal" else np.float32
        random = np.random.default_rng(self.seed)
        noise = np.random.default_rng([self.noise_seed, *self.numeric_class.encode()])
        parameters = {
            "0.taps": random.standard_normal((CODEBOOKS * FRAMES, WIDTH)).astype(dtype) / 2,
            "0.bias": np.zeros(WIDTH, dtype),
            "0.out": random.standard_normal((WIDTH, CODEBOOKS)).astype(dtype) / 4,
        }
        moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in parameters.items()}
        inputs = (tokens.reshape(CHUNKS, -1) / 64).astype(dtype)
        targets = (tokens.mean(axis=2) / 64).astype(dtype)
        base = hashlib.sha256(b"base").hexdigest()

        def forward(chunks: list[int]) -> tuple[Any, Any, Any]:
            hidden = np.tanh(inputs[chunks] @ parameters["0.taps"] + parameters["0.bias"])
            error = hidden @ parameters["0.out"] - targets[chunks]
            return hidden, error, (error**2).mean(axis=0)

        lines: list[dict[str, Any]] = []
        for step in range(1, self.steps + 1):
            chunks = [int(c) for c in random.permutation(CHUNKS)[:BATCH]]
            if step == self.swap_step:
                chunks.reverse()
            hidden, error, by_codebook = forward(chunks)
            if step == 1:
                start = {"base_digest": base, "chunks": chunks, "loss_without_adapters": _hex(targets.mean())}
                lines.append({"kind": "start", **start, "loss": _hex(by_codebook.mean()), "param": _norms(parameters)})
            d_error = 2 * error / dtype(BATCH * CODEBOOKS)
            d_hidden = (d_error @ parameters["0.out"].T) * (1 - hidden**2)
            gradients = {
                "0.taps": inputs[chunks].T @ d_hidden,
                "0.bias": d_hidden.sum(axis=0),
                "0.out": hidden.T @ d_error,
            }
            rate = dtype(self.learning_rate * self.rate_factor)
            for name, gradient in gradients.items():
                if self.noise:
                    gradient *= 1 + dtype(self.noise) * noise.standard_normal(gradient.shape).astype(dtype)
                first, second = moments[name]
                first += dtype(0.1) * (gradient - first)
                second += dtype(0.001) * (gradient**2 - second)
                scale = np.sqrt(second / dtype(1 - 0.999**step)) + dtype(self.epsilon)
                parameters[name] -= rate * (first / dtype(1 - 0.9**step)) / scale
            lines.append(
                {
                    "kind": "step",
                    "step": step,
                    "chunks": chunks,
                    "batch_digest": array_digest("batch", tokens[chunks])[:16],
                    "loss": _hex(by_codebook.mean()),
                    "loss_by_codebook": [_hex(loss) for loss in by_codebook],
                    "valid": [8, 6],
                    "sanitized": 0,
                    "grad": _norms(gradients),
                    "param": _norms(parameters),
                    **({"sketch": _sketches(parameters)} if step == max(1, self.steps // 2) else {}),
                }
            )
        evaluated = forward([0, 1])[2]
        if self.drift:
            for name, p in parameters.items():
                parameters[name] = p + dtype(self.drift) * noise.uniform(-1, 1, p.shape).astype(dtype)
        lines.append(
            {
                "kind": "end",
                "steps": self.steps,
                "loss": lines[-1]["loss"],
                "eval_loss": _hex(evaluated.mean()),
                "eval_loss_by_codebook": [_hex(loss) for loss in evaluated],
                "base_digest": base,
                "param": _norms(parameters),
                "sketch": _sketches(parameters),
            }
        )
        return lines, parameters


def edit_steps(run_dir: Path, edit: Any) -> None:
    """Change the lines of a run's trace: `edit` gets the list of all lines."""
    edit_trace(run_dir / "trace.jsonl", edit)


def _hex(value: Any) -> str:
    return float(value).hex()


def _norms(tensors: Mapping[str, Any]) -> dict[str, str]:
    return {name: _hex(np.sqrt((value.astype(np.float64) ** 2).sum())) for name, value in tensors.items()}


def _sketches(tensors: Mapping[str, Any]) -> dict[str, list[str]]:
    return {name: [_hex(p) for p in sketch(value)] for name, value in tensors.items()}

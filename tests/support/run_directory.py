"""Writes a small run directory in the formats of docs/evidence.md, every digest true, without training anything.

For tests of what reads run directories. It shares with the readers only the definition of digests and sketches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.base.files import TOKENS_MARK
from harness.evidence.formats import FORMATS, PLACES
from harness.evidence.report import REPORT_TITLE
from harness.numerics.digest import array_digest, dataset_digest, file_sha256, tensor_digest
from harness.numerics.sketch import sketch

RUN_ID = "0123456789abcdef0123456789abcdef"
REPORT_KEYS = (
    "objective_status first_failed_step root_cause head_commit python_version gpu_available audio_path audio_exists "
    "audio_size_bytes audio_is_lfs_pointer manifest_path manifest_exists manifest_entry_count training_status_path "
    "training_status_json checkpoint_path checkpoint_exists checkpoint_size_bytes checkpoint_sha256 "
    "next_unblock_action lane promotable run_id model_id model_digest dataset_digest tokens_digest settings_digest "
    "numeric_mode numeric_class seed steps ranks loss loss_first loss_smoothed held_out_loss_first "
    "held_out_loss best_step sanitized_logits checkpoint_tensor_digest audiocraft_import log_path"
).split()
CHUNKS, CODEBOOKS, FRAMES, BATCH = 3, 2, 5, 2


def write_run(run_dir: Path, *, run_id: str = RUN_ID, steps: int = 3, seed: int = 0, checkpoint: bool = True) -> Path:
    """Write the run directory of a completed run in universal mode; returns `run_dir`, which need not exist.

    Equal arguments give equal bytes. `checkpoint=False` leaves out the files that need torch, and what names them.
    """
    random = np.random.default_rng(seed)
    every = {"run_id": run_id, "lane": "experimental", "promotable": False}
    audio = run_dir / "knowledge_audio"
    audio.mkdir(parents=True)
    entries = []
    for name in ("one.flac", "two.flac"):
        (audio / name).write_bytes(random.bytes(100))
        entries.append(
            {
                "source": f"data/{name}",
                "target": name,
                "bytes": 100,
                "sha256": file_sha256(audio / name),
                "sample_rate": 32000,
                "channels": 1,
                "frames": 81920,
                "duration_seconds": 2.56,
            }
        )
    dataset = dataset_digest(entry["sha256"] for entry in entries)
    manifest = {"schema": "voice_dataset/1", **every, "dataset_digest": dataset, "entries": entries}
    write_json(audio / "voice_dataset_manifest.json", manifest)

    tokens = random.integers(0, 64, (CHUNKS, CODEBOOKS, FRAMES), dtype=np.int16)
    np.save(run_dir / "tokens.npy", tokens)
    blanks = b" " * len(TOKENS_MARK) + b"\n"
    path = run_dir / "tokens.npy"
    path.write_bytes(path.read_bytes().replace(blanks, TOKENS_MARK + b"\n", 1))
    tensors64 = {"0.gate": random.standard_normal(4), "0.taps": random.standard_normal((8, 3))}
    tensors = {name: value.astype(np.float32) for name, value in tensors64.items()}
    digest = tensor_digest(tensors)

    losses = random.uniform(1.0, 4.0, steps).tolist()
    norms = {name: float(np.linalg.norm(value)).hex() for name, value in tensors64.items()}
    sketches = {name: [float(p).hex() for p in sketch(value)] for name, value in tensors64.items()}
    by_codebook = [(2.0).hex()] * CODEBOOKS
    lines: list[dict[str, Any]] = [
        {
            "kind": "header",
            "schema": "lane_trace/1",
            **every,
            "mode": "universal",
            "numeric_class": "0123456789abcdef",
            "seed": seed,
            "steps": steps,
            "batch": BATCH,
            "settings_digest": hashlib.sha256(b"settings").hexdigest(),
            "model_digest": hashlib.sha256(b"model").hexdigest(),
            "dataset_digest": dataset,
        },
        {
            "kind": "tokens",
            "tokens_digest": array_digest("tokens", tokens),
            "shape": list(tokens.shape),
            "chunks": [
                {"file": entries[0]["sha256"], "start": 81920 * n, "digest": array_digest("chunk", chunk)[:16]}
                for n, chunk in enumerate(tokens)
            ],
        },
        {
            "kind": "start",
            "base_digest": hashlib.sha256(b"base").hexdigest(),
            "chunks": [0, 1],
            "loss_without_adapters": (4.0).hex(),
            "loss": losses[0].hex(),
            "param": norms,
        },
    ]
    for step, loss in enumerate(losses, start=1):
        chunks = [step % CHUNKS, (step + 1) % CHUNKS]
        lines.append(
            {
                "kind": "step",
                "step": step,
                "chunks": chunks,
                "batch_digest": array_digest("batch", tokens[chunks])[:16],
                "loss": loss.hex(),
                "loss_by_codebook": by_codebook,
                "valid": [8, 6],
                "sanitized": 0,
                "grad": norms,
                "param": norms,
                **({"sketch": sketches} if step == 1 else {}),
            }
        )
    lines.append(
        {
            "kind": "end",
            "steps": steps,
            "loss": losses[-1].hex(),
            "eval_loss": (1.5).hex(),
            "eval_loss_by_codebook": by_codebook,
            "base_digest": hashlib.sha256(b"base").hexdigest(),
            "param": norms,
            "sketch": sketches,
        }
    )
    write_trace(run_dir / "trace.jsonl", lines)
    write_json(run_dir / "environment.json", {"schema": "environment/1", **every, "numeric_mode": "universal"})

    path, sha256 = run_dir / "checkpoints" / "tts_voice_train_musicgen_nano.pt", None
    if checkpoint:
        sha256 = _write_checkpoint(path, every, tensors, tensors64, digest)
    status = {
        "schema": "train_status/1",
        **every,
        "status": "completed",
        "first_failed_step": "none",
        "root_cause": "none",
        "next_unblock_action": "none",
        "loss": losses[-1],
        "loss_first": losses[0],
        "steps_done": steps,
        "steps_total": steps,
        "sanitized_logits": 0,
        "checkpoint_path": str(path) if checkpoint else None,
        "checkpoint_sha256": sha256,
        "checkpoint_tensor_digest": digest if checkpoint else None,
        "started_at": "2026-01-01T00:00:00Z",
        "finished_at": "2026-01-01T00:00:01Z",
        "settings": {"seed": seed, "steps": steps},
    }
    write_json(run_dir / "train_status.json", status)
    report = dict.fromkeys(REPORT_KEYS, "none")
    report |= {"objective_status": "completed", "lane": "experimental", "promotable": "false", "run_id": run_id}
    report |= {"training_status_json": json.dumps(status), "dataset_digest": dataset, "loss": str(losses[-1])}
    report |= {
        "checkpoint_sha256": str(sha256),
        "checkpoint_tensor_digest": digest,
        "seed": str(seed),
        "steps": str(steps),
        "ranks": "1",
    }
    write_report(run_dir / "train_report.txt", report)
    (run_dir / "lane.log").write_text("2026-01-01 00:00:00,000 INFO harness.lane: nothing to say\n")
    return run_dir


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, as it is: what strict JSON forbids is not stopped."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the object in a JSON file: `edit` alters it in place."""
    value = json.loads(path.read_text())
    edit(value)
    write_json(path, value)


def write_trace(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write the lines of a trace."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit_trace(path: Path, edit: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the lines of a trace: `edit` alters the list in place. Lines: header, tokens, start, steps, end."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    edit(lines)
    write_trace(path, lines)


def write_report(path: Path, report: dict[str, str]) -> None:
    """Write a report."""
    path.write_text("=== COLAB TRAIN REPORT ===\n" + "".join(f"{key}: {value}\n" for key, value in report.items()))


def _write_checkpoint(path: Path, every: dict[str, Any], tensors: Any, tensors64: Any, digest: str) -> str:
    """The checkpoint, the one before rounding, and the `.json` beside it; returns the SHA-256."""
    import torch

    path.parent.mkdir()
    meta = {"lane": "experimental", "model_id": "musicgen_nano", "seed": 0, "promotable": False}
    held = {name: torch.from_numpy(value) for name, value in tensors.items()}
    torch.save({"adapter": held, "meta": meta}, path)
    before = {name: torch.from_numpy(value) for name, value in tensors64.items()}
    torch.save({"adapter": before, "meta": meta}, path.with_suffix(".float64.pt"))
    sha256 = file_sha256(path)
    sidecar = {
        "schema": "checkpoint/1",
        **every,
        "file": path.name,
        "sha256": sha256,
        "bytes": path.stat().st_size,
        "tensor_digest": digest,
    }
    sidecar["tensors"] = {name: {"dtype": "float32", "shape": list(value.shape)} for name, value in tensors.items()}
    write_json(path.with_suffix(".json"), sidecar)
    return sha256


def write_record(run_dir: Path, exit_code: int, **more: Any) -> None:
    """What whoever started the run of ``write_run`` wrote down of it: how its process ended."""
    status = json.loads((run_dir / "train_status.json").read_text())
    outputs = {
        what: {"path": str(run_dir / place), "copy": place, "written": True, "found": "a file"}
        for what, place in PLACES.items()
    }
    record = {
        "schema": "lane_run/1", "lane": "experimental", "promotable": False, "name": "experimental", "default": True,
        "run_id": status["run_id"], "started_at": "2026-01-01T00:00:00Z", "formats": FORMATS,
        "fields": {"state": "status", "completed": "completed", "loss": "loss"}, "report_begin": REPORT_TITLE,
        "vocabulary": None, "numerics": "traced", "state": "ended", "outputs": outputs, "exit_code": exit_code,
        "ended": f"exited with {exit_code}", "seconds": 1.0, "numeric_class": "none", "settings_digest": "0" * 64,
        "data": {"digest": None, "files": 0, "problems": [], "source": "none"}, "settings": {}, "environment": {},
    }  # fmt: skip
    write_json(run_dir / "run.json", record | more)

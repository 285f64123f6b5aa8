"""The files of a run in the formats of docs/evidence.md, as they are read: what each must have, and of which kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from harness.evidence.strict import LATER, Count, NotFinite, Number, Positive, Sha256, Text, Told

# Where the files of a run lie that nobody recorded from outside (harness/evidence/record.py): all in these formats.
PLACES = {
    "report": "train_report.txt",
    "status": "train_status.json",
    "manifest": "knowledge_audio/voice_dataset_manifest.json",
    "tokens": "tokens.npy",
    "trace": "trace.jsonl",
    "environment": "environment.json",
    "checkpoint": "checkpoints",
}
FORMATS = {
    "report": "train_report/1",
    "status": "train_status/1",
    "manifest": "voice_dataset/1",
    "tokens": "tokens/1",
    "trace": "lane_trace/1",
    "environment": "environment/1",
    "checkpoint": "checkpoint/1",
}
HISTORY = "history.json"  # outlives the run that it was written with


class Status(Told, kw_only=True):
    """the lane's status: how the run ended, as far as it says so."""

    status: str
    run_id: str
    first_failed_step: str = "none"
    root_cause: str = "none"
    next_unblock_action: str = "none"
    loss: Any = LATER
    loss_first: Any = LATER
    loss_smoothed: Any = LATER
    held_out_loss_first: Any = LATER
    held_out_loss: Any = LATER
    best_step: Any = LATER
    steps_done: Any = LATER
    steps_total: Any = LATER
    sanitized_logits: Any = LATER
    ranks: Any = LATER
    checkpoint_sha256: Any = LATER
    checkpoint_tensor_digest: Any = LATER
    started_at: Any = LATER
    finished_at: Any = LATER
    settings: dict[str, Any] | None = None


class TrainStatus(Status, kw_only=True):
    """the lane's status: `train_status/1`. A loss is a number, text (`nan`, `inf`, `-inf`) or None."""

    schema: Literal["train_status/1"]
    lane: Literal["experimental"]
    promotable: Literal[False]
    run_id: Text
    status: Literal["completed", "failed", "blocked", "interrupted"]
    first_failed_step: Text
    root_cause: Text
    next_unblock_action: Text
    loss: Number | NotFinite | None
    loss_first: Number | NotFinite | None
    loss_smoothed: Number | None = None
    held_out_loss_first: Number | None = None
    held_out_loss: Number | None = None
    best_step: Count | None = None
    steps_done: Count
    steps_total: Count | None
    sanitized_logits: Count | None
    ranks: Positive | None = None
    checkpoint_path: Text | None
    checkpoint_sha256: Text | None
    checkpoint_tensor_digest: Text | None
    started_at: Text | None
    finished_at: Text | None
    settings: dict[str, Any] | None


class OfOurs(Struct, kw_only=True):
    """What every file of this project's formats says."""

    run_id: Text
    lane: Literal["experimental"]
    promotable: Literal[False]


class Entry(Struct):
    """One file of the data set. ``decoded_from``: the digest of the recording, where a WAV of it was staged."""

    source: Text
    target: Text
    bytes: Count
    sha256: Sha256
    sample_rate: Positive
    channels: Positive
    frames: Count
    duration_seconds: Number
    decoded_from: Sha256 | None = None


class Manifest(OfOurs, kw_only=True):
    """`voice_dataset/1`."""

    schema: Literal["voice_dataset/1"]
    dataset_digest: Sha256
    entries: list[Entry]
    skipped: list[str] = []
    left_out: list[str] = []


class Environment(OfOurs, kw_only=True):
    """`environment/1`, of which no more is promised."""

    schema: Literal["environment/1"]


class Tensor(Struct):
    """A tensor of the checkpoint, described."""

    dtype: Text
    shape: list[Count]


class Sidecar(OfOurs, kw_only=True):
    """`checkpoint/1`: what the checkpoint says of itself."""

    schema: Literal["checkpoint/1"]
    sha256: Sha256
    file: Text
    bytes: Count
    tensor_digest: Sha256
    tensors: Annotated[dict[str, Tensor], Meta(min_length=1)]

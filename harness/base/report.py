"""The report: printed last, on every path out, and written to ``train_report.txt``. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping

from harness.base.text import printable

HEADER = "=== COLAB TRAIN REPORT ==="
# Existing readers know these twenty, in this order.
CONTRACT_KEYS = (
    "objective_status",
    "first_failed_step",
    "root_cause",
    "head_commit",
    "python_version",
    "gpu_available",
    "audio_path",
    "audio_exists",
    "audio_size_bytes",
    "audio_is_lfs_pointer",
    "manifest_path",
    "manifest_exists",
    "manifest_entry_count",
    "training_status_path",
    "training_status_json",
    "checkpoint_path",
    "checkpoint_exists",
    "checkpoint_size_bytes",
    "checkpoint_sha256",
    "next_unblock_action",
)
OWN_KEYS = (
    "lane",
    "promotable",
    "run_id",
    "model_id",
    "model_digest",
    "dataset_digest",
    "tokens_digest",
    "settings_digest",
    "numeric_mode",
    "numeric_class",
    "seed",
    "steps",
    "ranks",
    "loss",
    "loss_first",
    "loss_smoothed",
    "held_out_loss_first",
    "held_out_loss",
    "best_step",
    "sanitized_logits",
    "checkpoint_tensor_digest",
    "audiocraft_import",
    "log_path",
)


def one_line(value: object) -> str:
    """Any value as one line of printable text; None and the empty string are ``none``, booleans ``true`` and
    ``false``."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return printable(str(value).encode("utf-8", "backslashreplace").decode())


def render_report(values: Mapping[str, object]) -> str:
    """The report's text: the header line, then every key with its value or ``none``. Raises KeyError for an unknown
    key."""
    unknown = set(values) - set(CONTRACT_KEYS) - set(OWN_KEYS)
    if unknown:
        raise KeyError(f"not a key of the report: {sorted(unknown)}")
    lines = [HEADER, *(f"{key}: {one_line(values.get(key))}" for key in (*CONTRACT_KEYS, *OWN_KEYS))]
    return "\n".join(lines) + "\n"

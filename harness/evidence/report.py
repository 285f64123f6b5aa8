"""The report: `key: value` lines that people and other programs read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from harness.evidence.errors import mismatch, one_line, show
from harness.evidence.strict import decode

REPORT_LIMIT = 1 << 20
REPORT_TITLE = "=== COLAB TRAIN REPORT ==="
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
REPORT_KEYS = (*CONTRACT_KEYS, *OWN_KEYS)


def parse_report(data: bytes, where: object, *, title: str = REPORT_TITLE) -> dict[str, str]:
    """The report in `data`: its title, then `key: value` lines, each ended. Keys are returned in the report's order.

    Raises EvidenceError for anything else: a missing title or last line end (a truncated report), a line without a
    value, a repeated key, a character that does not print. Which keys there are is for `check_report_keys` to say.
    """
    text = decode(data, where)
    first, *lines = text.split("\n")
    if first != title:
        raise mismatch(where, show(first) if data else "an empty file", f"the line {title!r} first")
    if not lines or lines.pop() != "":
        raise mismatch(where, "a last line without an end", "whole lines (is the report truncated?)")
    report: dict[str, str] = {}
    for number, line in enumerate(lines, start=2):
        key, separator, value = line.partition(": ")
        if not (separator and value and value.isprintable() and re.fullmatch("[a-z][a-z0-9_]*", key)):
            raise mismatch(f"{where} line {number}", show(line), "'key: value', printable")
        if key in report:
            raise mismatch(f"{where} line {number}", f"the key {one_line(key, 80)} again", "each key once")
        report[key] = value
    return report


def check_report_keys(
    report: Mapping[str, str], where: object = "train_report.txt", keys: Sequence[str] = REPORT_KEYS
) -> None:
    """Raises EvidenceError unless the report has the contract's keys and then ours, all of them, in this order.

    With `keys`, which the report of another lane begins with, more may follow.
    """
    found = list(report)
    for index, key in enumerate(keys):
        if index >= len(found):
            raise mismatch(where, f"only {len(found)} keys", f"{len(keys)}, the next one being {key}")
        if found[index] != key:
            late = "which comes later" if key in report else "which is missing"
            raise mismatch(where, f"the key {one_line(found[index], 80)} as number {index + 1}", f"{key}, {late}")
    if keys is REPORT_KEYS and len(found) > len(REPORT_KEYS):
        raise mismatch(
            where, f"the key {one_line(found[len(REPORT_KEYS)], 80)} after the last", f"{REPORT_KEYS[-1]} last"
        )

"""Each gate on the session's own run, spoiled in one way: it must fail, and say what is wrong."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.evidence import EvidenceError, RunEvidence, load_run

SMOKE = Path(__file__).resolve().parents[1] / "smoke"


def gate(name: str) -> Callable[[RunEvidence], None]:
    """A gate as a plain function, from whichever file it stands in."""
    for path in (SMOKE / "test_gates.py", SMOKE / "test_own_lane.py"):
        spec = importlib.util.spec_from_file_location(f"smoke_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if found := getattr(module, name, None):
            takes = found.__code__.co_varnames[: found.__code__.co_argcount]
            return functools.partial(found, **{"measured": str} if "measured" in takes else {})
    raise AssertionError(f"there is no gate {name}")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_status(run: Path, **changes: Any) -> None:
    edit_json(run / "train_status.json", **changes)


def edit_report(run: Path, old: str, new: str) -> None:
    text = (run / "train_report.txt").read_text()
    assert old in text
    (run / "train_report.txt").write_text(text.replace(old, new))


def edit_trace(run: Path, kind: str, change: Callable[[dict[str, Any]], None], which: int = 0) -> None:
    lines = [json.loads(line) for line in (run / "trace.jsonl").read_text().splitlines()]
    change([line for line in lines if line["kind"] == kind][which])
    (run / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit_checkpoint(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    import torch

    path = checkpoint_of(run)
    value = torch.load(path, weights_only=True)
    change(value["adapter"])
    torch.save(value, path)


def checkpoint_of(run: Path) -> Path:
    return next(path for path in (run / "checkpoints").glob("*.pt") if ".float64" not in path.name)


def put(**values: Any) -> Callable[[dict[str, Any]], None]:
    """A change of a dictionary: these keys get these values."""
    return lambda line: line.update(values)


def make_nan(tensors: dict[str, Any]) -> None:
    next(iter(tensors.values())).view(-1)[3] = float("nan")


def move_by_one_ulp(tensors: dict[str, Any]) -> None:
    values = tensors["0.linear1.up"].numpy().reshape(-1)
    values[5] = np.nextafter(values[5], np.float32(9), dtype=np.float32)


def stage_other_bytes(run: Path) -> None:
    staged = next((run / "knowledge_audio").glob("*.flac"))
    data = bytearray(staged.read_bytes())
    data[-1000] ^= 1
    staged.unlink()  # it is a hard link to the source
    staged.write_bytes(data)


def edit_manifest(run: Path, **changes: Any) -> None:
    edit_json(run / "knowledge_audio" / "voice_dataset_manifest.json", **changes)


def forget_a_recording(run: Path) -> None:
    entry = json.loads((run / "knowledge_audio" / "voice_dataset_manifest.json").read_text())["entries"][0]
    edit_manifest(run, entries=[{**entry, "sha256": "0" * 64}])


def note_the_time(run: Path) -> None:
    import torch

    path = checkpoint_of(run)
    value = torch.load(path, weights_only=True)
    torch.save({**value, "meta": {**value["meta"], "saved_at": "now"}}, path)


def change_one_token(run: Path) -> None:
    tokens = np.load(run / "tokens.npy")
    tokens[0, 0, 0] ^= 1
    np.save(run / "tokens.npy", tokens)


SPOILED: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("a key is missing", "test_report_has_the_twenty_keys_in_order",
     lambda r: edit_report(r, "gpu_available: false\n", ""), "gpu_available"),
    ("keys in another order", "test_report_has_the_twenty_keys_in_order",
     lambda r: edit_report(r, "first_failed_step: none\nroot_cause: none", "root_cause: none\nfirst_failed_step: none"),
     "first_failed_step"),
    ("report says failed", "test_objective_status_is_completed",
     lambda r: edit_report(r, "objective_status: completed", "objective_status: failed"), "failed"),
    ("report names a failed step", "test_first_failed_step_is_none",
     lambda r: edit_report(r, "first_failed_step: none", "first_failed_step: train"), "train"),
    ("report names a cause", "test_root_cause_is_none",
     lambda r: edit_report(r, "root_cause: none", "root_cause: disk_full: no room"), "no room"),
    ("status says failed", "test_status_file_is_valid_and_completed",
     lambda r: edit_status(r, status="failed"), "failed"),
    ("status has done fewer steps", "test_status_file_is_valid_and_completed",
     lambda r: edit_status(r, steps_done=23), "23"),
    ("loss is missing", "test_loss_is_finite", lambda r: edit_status(r, loss=None), "loss"),
    ("loss is the text nan", "test_loss_is_finite", lambda r: edit_status(r, loss="nan"), "nan"),
    ("loss is true", "test_loss_is_finite", lambda r: edit_status(r, loss=True), "loss"),
    ("a step's loss is nan", "test_loss_is_finite",
     lambda r: edit_trace(r, "step", put(loss="nan"), 7), "step 8"),
    ("status and report differ", "test_loss_is_the_same_in_status_report_and_trace",
     lambda r: edit_status(r, loss=4.0), "4.0"),
    ("loss of another step", "test_loss_is_the_same_in_status_report_and_trace",
     lambda r: edit_trace(r, "end", put(loss=(4.0).hex())), "4.0"),
    ("a NaN in the checkpoint", "test_checkpoint_is_not_empty_and_finite",
     lambda r: edit_checkpoint(r, make_nan), "finite"),
    ("an empty checkpoint file", "test_checkpoint_is_not_empty_and_finite",
     lambda r: checkpoint_of(r).write_bytes(b""), "empty"),
    ("one ULP in the checkpoint", "test_checkpoint_sha_is_that_of_the_file",
     lambda r: edit_checkpoint(r, move_by_one_ulp), "SHA-256"),
    ("one ULP, beside the values before rounding", "test_checkpoint_is_what_training_ended_with",
     lambda r: edit_checkpoint(r, move_by_one_ulp), "rounded"),
    ("a tensor is left out", "test_checkpoint_is_what_training_ended_with",
     lambda r: edit_checkpoint(r, lambda t: t.pop("2.linear2.up")), "2.linear2.up"),
    ("staged audio differs", "test_manifest_lists_what_is_on_disk", stage_other_bytes, "SHA-256"),
    ("a recording is left out", "test_every_recording_is_in_the_data_set", forget_a_recording, "not in the manifest"),
    ("a recording is skipped", "test_every_recording_is_in_the_data_set",
     lambda r: edit_manifest(r, skipped=["a.flac: cut short"]), "LANE_SKIP_BAD_FILES"),
    ("a time in the checkpoint", "test_checkpoint_holds_nothing_that_changes", note_the_time, "saved_at"),
    ("a checkpoint of other steps", "test_checkpoint_holds_nothing_that_changes",
     lambda r: edit_trace(r, "header", put(seed=1)), "other settings"),
    ("one token differs", "test_tokens_are_those_of_the_trace", change_one_token, "chunk 0"),
    ("a stale status", "test_all_files_are_of_this_run", lambda r: edit_status(r, run_id="0" * 32), "stale"),
    ("logits were replaced", "test_sanitizer_replaced_nothing",
     lambda r: edit_trace(r, "step", put(sanitized=2), 3), "step 4"),
    ("a chunk twice in an epoch", "test_every_chunk_is_trained_on_and_in_whole_batches",
     lambda r: edit_trace(r, "step", lambda s: put(chunks=[s["chunks"][0]] * 4)(s)), "repeated"),
    ("a smaller last batch", "test_every_chunk_is_trained_on_and_in_whole_batches",
     lambda r: edit_trace(r, "step", lambda s: put(chunks=s["chunks"][:2])(s), 16), "batch"),
    ("adapter changes the first loss", "test_adapter_starts_as_the_identity",
     lambda r: edit_trace(r, "start", put(loss_without_adapters=(3.6901602278126).hex())), "without adapters"),
    ("base model changes", "test_base_model_is_unchanged",
     lambda r: edit_trace(r, "end", put(base_digest="0" * 64)), "frozen"),
    ("loss does not fall", "test_loss_falls",
     lambda r: edit_trace(r, "end", put(eval_loss=(3.69).hex())), "fell by"),
    ("no better than a guess", "test_first_loss_is_below_that_of_a_model_that_knows_nothing",
     lambda r: edit_trace(r, "start", put(loss=(5.56).hex())), "uniform"),
    ("a held-out chunk is trained on", "test_held_out_audio_is_never_trained_on",
     lambda r: edit_trace(r, "step", lambda s: put(chunks=[67, *s["chunks"][1:]])(s)), "overlaps held-out audio"),
    ("less is held out than was asked for", "test_held_out_audio_is_never_trained_on",
     lambda r: edit_trace(r, "tokens", lambda t: [put(use="train")(c) for c in t["chunks"][:65]]), "not held out"),
    ("the held-out loss does not fall", "test_held_out_loss_falls",
     lambda r: edit_trace(r, "start", lambda s: s["held_out"].update(loss=(3.97).hex())), "fell by"),
    ("no held-out loss", "test_held_out_loss_falls",
     lambda r: edit_trace(r, "start", lambda s: s.pop("held_out")), "LANE_HOLDOUT"),
    ("another step is written", "test_checkpoint_is_the_best_by_held_out_loss",
     lambda r: edit_trace(r, "end", put(best_step=16)), "written is step 16"),
    ("an earlier step was better", "test_checkpoint_is_the_best_by_held_out_loss",
     lambda r: edit_trace(r, "step", lambda s: s.update(held_out={**s["held_out"], "loss": (3.9).hex()}), 7), "best"),
    ("the status says another held-out loss", "test_checkpoint_is_the_best_by_held_out_loss",
     lambda r: edit_json(r / "train_status.json", held_out_loss=3.5), "the status says held_out_loss 3.5"),
    ("the smoothed loss is not", "test_smoothed_loss_is_that_of_the_steps",
     lambda r: edit_trace(r, "step", put(loss_smoothed=(3.9).hex()), 5), "the smoothed loss is"),
    ("says production", "test_lane_says_that_it_is_experimental",
     lambda r: edit_report(r, "lane: experimental", "lane: production"), "experimental"),
    ("says promotable", "test_lane_says_that_it_is_experimental",
     lambda r: edit_json(r / "environment.json", promotable=True), "promotable"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spoil", "says"), [s[1:] for s in SPOILED], ids=[s[0] for s in SPOILED])
def test_gate_goes_red(
    name: str, spoil: Callable[[Path], None], says: str, lane_run: RunEvidence, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(lane_run.run_dir, run, copy_function=os.link)
    for path in run.rglob("*"):  # edits must not reach the session's own files through the links
        if path.is_file():
            data = path.read_bytes()
            path.unlink()
            path.write_bytes(data)
    gate(name)(load_run(run))
    spoil(run)
    with pytest.raises((AssertionError, EvidenceError)) as failure:
        gate(name)(load_run(run))
    assert says in str(failure.value)

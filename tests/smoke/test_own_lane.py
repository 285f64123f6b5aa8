"""The gates on what the built-in lane promises beyond its files: that nothing is left out, and nothing is added."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.base.git import GitFailed, git
from harness.evidence import NotApplicable, RunEvidence
from harness.gates.training import Measured
from harness.numerics.digest import file_sha256
from harness.session.lane import lane_code

pytestmark = pytest.mark.smoke

SHIPPED_SOURCE = Path(__file__).resolve().parents[2] / "data" / "knowledge_audio_source"
SUFFIXES = (".wav", ".mp3", ".flac", ".ogg")
MORE_SUFFIXES = (".opus", ".oga", ".aif", ".aiff", ".w64", ".caf", ".au", ".mp2", ".m4a", ".mp4", ".mov", ".aac")
CHECKPOINT_META = set("lane promotable model_id model_fingerprint adapter rank seed steps best_step".split())


def test_every_recording_is_in_the_data_set(lane_run: RunEvidence, measured: Measured) -> None:
    """Every recording in the folder that was to be used is in the manifest."""
    # What is left out is not in the manifest's digest, so that no other gate sees it.
    manifest = lane_run.manifest
    skipped, left_out = " ".join(manifest.skipped), " ".join(manifest.left_out)
    allowed = os.environ.get("LANE_SKIP_BAD_FILES", "").strip().lower() in ("1", "true", "yes", "on")
    assert allowed or not skipped, f"left out, and LANE_SKIP_BAD_FILES is not set: {skipped}"
    staged = {entry.decoded_from or entry.sha256 for entry in manifest.entries}
    measured(f"recordings: {len(staged)}")
    for path in recordings(lane_run):
        named = path.name in (skipped if allowed else "") or (
            path.suffix.lower() in MORE_SUFFIXES and path.name in left_out
        )
        assert named or file_sha256(path) in staged, f"{path} is not in the manifest"


def recordings(lane_run: RunEvidence) -> list[Path]:
    """The audio files that the run was to use, by the settings; none where the run was made with others."""
    narration = Path(lane_run.report["audio_path"])
    folder = os.environ.get("KNOWLEDGE_SOURCE_DIR", "")
    if os.environ.get("AUDIO_PATH") and not folder:
        return [narration] if narration == Path.cwd() / os.environ["AUDIO_PATH"] else []
    root = (Path.cwd() / folder) if folder else SHIPPED_SOURCE
    if not narration.resolve().is_relative_to(root.resolve()):
        return []  # evidence of another machine, or of other settings
    manifest = lane_run.path_of("manifest").name
    own = [path.parent for path in root.rglob(manifest)]  # a staging folder below the source folder is no source
    found = [
        p
        for p in sorted(root.rglob("*"))
        if p.suffix.lower() in (*SUFFIXES, *MORE_SUFFIXES) and not p.name.startswith(".")
    ]
    return [path for path in found if path.is_file() and not any(path.is_relative_to(folder) for folder in own)]


def test_the_lane_that_ran_is_this_checkouts(
    lane_run: RunEvidence, pytestconfig: pytest.Config, measured: Measured
) -> None:
    """The code that ran is this checkout's, file by file: header, report and verdict speak of the same code."""
    if pytestconfig.getoption("--lane-evidence"):
        raise NotApplicable("--lane-evidence runs nothing: the evidence may be of other code")
    code, ran = lane_code(pytestconfig), lane_run.environment["code_digest"]
    measured(f"code {ran[:12]}")
    assert ran == code.digest, "the lane's process ran other code than this checkout's"
    told = lane_run.report["head_commit"]
    if told == "unknown":
        return
    try:
        changed = git(pytestconfig.rootpath, "status", "--porcelain", "--untracked-files=no")
    except GitFailed as error:
        raise NotApplicable(f"the report says {told}, and git does not answer here: {error}") from None
    due = code.commit + "-dirty" * bool(changed)
    assert told == due, f"the report says {told}, and the checkout is at {due}"


def test_checkpoint_holds_nothing_that_changes(lane_run: RunEvidence, measured: Measured) -> None:
    """Equal runs give equal bytes: beside the tensors there is only what the settings determine."""
    meta, header = lane_run.checkpoint.meta, lane_run.trace.header
    measured(f"{len(meta)} values beside the tensors")
    assert set(meta) == CHECKPOINT_META, (
        f"other keys than the checkpoint's: {', '.join(sorted(set(meta) ^ CHECKPOINT_META))}"
    )
    best = lane_run.trace.end.best_step
    said = {"seed": header.seed, "steps": header.steps, "best_step": best, "model_id": lane_run.report["model_id"]}
    assert {name: meta[name] for name in said} == said, "the checkpoint is of other settings"
    ranks = {tensor.shape[0] for name, tensor in lane_run.checkpoint.tensors.items() if name.endswith(".down")}
    assert ranks == {meta["rank"]}, f"the checkpoint says rank {meta['rank']}, and its tensors have {sorted(ranks)}"

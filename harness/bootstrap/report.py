"""What a set-up that failed leaves behind: the lane's report and status, saying why no run took place."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from harness.base.files import atomic_write, holds_run, write_json

# The format is the lane's; these two modules of it are standard library only as well.
from harness.base.git import GitFailed, git
from harness.base.report import render_report
from harness.bootstrap.errors import SetupError

# Names a file that pytest makes when it has shown the report of a run: `harness run` then has nothing to add.
REPORT_SHOWN = "HARNESS_REPORT_SHOWN"
DEFAULT_RUN_DIR = "artifacts"
DEFAULT_AUDIO_PATH = "data/knowledge_audio_source/auntie_dottie.flac"
LFS_POINTER_START = b"version https://git-lfs.github.com/spec/"


def run_directory(root: Path, environ: dict[str, str]) -> Path:
    """Where this run's files belong; a relative LANE_RUN_DIR is relative to the checkout."""
    return root / (environ.get("LANE_RUN_DIR") or DEFAULT_RUN_DIR)


def is_kept(root: Path, environ: dict[str, str]) -> bool:
    """Whether the run directory holds a run, so that a set-up that failed leaves nothing there."""
    return holds_run(_status_path(root, environ), run_directory(root, environ) / "train_report.txt")


def head_commit(root: Path) -> str:
    """The full hash of HEAD, or "none" outside of git."""
    try:
        return git(root, "rev-parse", "--verify", "HEAD", timeout_s=10.0).strip()
    except GitFailed:
        return "none"


def root_cause(error: SetupError) -> str:
    """The cause in one line, with the command that was running."""
    return error.cause if error.command == "none" else f"{error.cause} (command: {error.command})"


def failure_report(error: SetupError, root: Path, environ: dict[str, str]) -> str:
    """The report's text. No run took place, so nothing of an earlier run is reported, even where its files remain."""
    audio = root / (environ.get("AUDIO_PATH") or DEFAULT_AUDIO_PATH)
    size, is_pointer = 0, False
    with contextlib.suppress(OSError):
        size = audio.stat().st_size
        with audio.open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER_START)) == LFS_POINTER_START
    return render_report(
        {
            "objective_status": _status(error),
            "first_failed_step": error.step,
            "root_cause": root_cause(error),
            "head_commit": head_commit(root),
            "python_version": ".".join(str(part) for part in sys.version_info[:3]),
            "gpu_available": False,
            "audio_path": audio,
            "audio_exists": audio.is_file(),
            "audio_size_bytes": size,
            "audio_is_lfs_pointer": is_pointer,
            "manifest_exists": False,
            "manifest_entry_count": 0,
            "training_status_path": _status_path(root, environ),
            "checkpoint_exists": False,
            "checkpoint_size_bytes": 0,
            "next_unblock_action": error.action,
            "lane": "experimental",
            "promotable": False,
        }
    )


def _status(error: SetupError) -> str:
    return "blocked" if error.blocked else "failed"


def _status_path(root: Path, environ: dict[str, str]) -> Path:
    named = environ.get("TRAIN_STATUS_PATH")
    return root / named if named else run_directory(root, environ) / "train_status.json"


def _write_status(error: SetupError, root: Path, environ: dict[str, str]) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(
        _status_path(root, environ),
        {
            "schema": "train_status/1",
            "lane": "experimental",
            "promotable": False,
            "run_id": "none",
            "status": _status(error),
            "first_failed_step": error.step,
            "root_cause": root_cause(error),
            "next_unblock_action": error.action,
            "loss": None,
            "loss_first": None,
            "steps_done": 0,
            "steps_total": 0,
            "sanitized_logits": 0,
            "checkpoint_path": None,
            "checkpoint_sha256": None,
            "checkpoint_tensor_digest": None,
            "started_at": stamp,
            "finished_at": stamp,
            "settings": {},
        },
    )


def publish_failure(error: SetupError, root: Path, environ: dict[str, str]) -> None:
    """Print the report as the last thing on the terminal, and leave it and the status in the run directory, unless that
    holds a run: no run is lost to a set-up that fails, or to a mistyped option.

    A run directory that cannot be written is mentioned, and does not keep the report from being printed.
    """
    text = failure_report(error, root, environ)
    directory = run_directory(root, environ)
    try:
        if is_kept(root, environ):
            print(f"What {directory} holds stays as it is; the report below is printed only", file=sys.stderr)
        else:
            _write_status(error, root, environ)
            atomic_write(directory / "train_report.txt", text.encode())
    except OSError as reason:
        print(f"The report could not be written: {reason}", file=sys.stderr)
    sys.stderr.flush()
    print(text, end="", flush=True)

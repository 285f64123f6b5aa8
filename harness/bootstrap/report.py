"""The report of a set-up that failed, in the format of the lane's own.

It runs on Pythons too old for the project as well: the report that says so has to come out too.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from harness.bootstrap.errors import SetupError

TITLE = "=== COLAB TRAIN REPORT ==="
KEYS = (
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
DEFAULT_RUN_DIR = "artifacts"
DEFAULT_AUDIO_PATH = "data/knowledge_audio_source/auntie_dottie.flac"
LFS_POINTER_START = b"version https://git-lfs.github.com/spec/"


def run_directory(root: Path, environ: dict[str, str]) -> Path:
    """Where this run's files belong; a relative LANE_RUN_DIR is relative to the checkout."""
    return root / (environ.get("LANE_RUN_DIR") or DEFAULT_RUN_DIR)


def head_commit(root: Path) -> str:
    """The full hash of HEAD, or "none" outside of git."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return done.stdout.strip() if done.returncode == 0 else "none"


def failure_report(error: SetupError, root: Path, environ: dict[str, str]) -> str:
    """The report's text. No run took place, so nothing of an earlier run is reported, even where its files remain."""
    audio = environ.get("AUDIO_PATH") or DEFAULT_AUDIO_PATH
    size, is_pointer = 0, False
    with contextlib.suppress(OSError):
        size = (root / audio).stat().st_size
        with (root / audio).open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER_START)) == LFS_POINTER_START
    values = {
        "objective_status": "blocked" if error.blocked else "failed",
        "first_failed_step": error.step,
        "root_cause": error.cause,
        "head_commit": head_commit(root),
        "python_version": ".".join(str(part) for part in sys.version_info[:3]),
        "gpu_available": "false",
        "audio_path": audio,
        "audio_exists": "true" if (root / audio).is_file() else "false",
        "audio_size_bytes": str(size),
        "audio_is_lfs_pointer": "true" if is_pointer else "false",
        "manifest_path": "none",
        "manifest_exists": "false",
        "manifest_entry_count": "0",
        "training_status_path": "none",
        "training_status_json": "none",
        "checkpoint_path": "none",
        "checkpoint_exists": "false",
        "checkpoint_size_bytes": "0",
        "checkpoint_sha256": "none",
        "next_unblock_action": error.action,
        "lane": "experimental",
        "failed_command": error.command,
    }
    lines = [TITLE]
    lines += [f"{key}: {values[key]}" for key in KEYS]
    lines += [f"{key}: {value}" for key, value in values.items() if key not in KEYS]
    return "\n".join(lines) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Write beside ``path`` and rename: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def publish_failure(error: SetupError, root: Path, environ: dict[str, str]) -> None:
    """Print the report as the last thing on the terminal, and leave it in the run directory.

    A run directory that cannot be written is mentioned, and does not keep the report from being printed.
    """
    text = failure_report(error, root, environ)
    path = run_directory(root, environ) / "train_report.txt"
    try:
        write_atomically(path, text)
    except OSError as reason:
        print(f"The report could not be written to {path}: {reason}", file=sys.stderr)
    sys.stderr.flush()
    print(text, end="", flush=True)

"""Asking git, in one way: of the repository that is named, whatever variables a hook set, and without its optional
locks. Standard library only."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


class GitFailed(Exception):
    """git is not there, took too long, or said no. The message is one line: the command, and git's last words."""


def git(folder: Path, *words: str, timeout_s: float = 120.0) -> str:
    """git's output in ``folder`` (bytes that are no UTF-8 come as surrogates). Raises GitFailed.

    A hook, or another git command, sets GIT_DIR, GIT_INDEX_FILE and others, which name another checkout. A process that
    is killed while git works for it must not leave ``index.lock`` behind.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            env={**environment, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GitFailed(f"git cannot be run: {error}") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        command = next((word for word in words if word[0] != "-" and "=" not in word), "")
        raise GitFailed(f"git {command} failed: {said[-1][:200]}")
    return done.stdout.decode("utf-8", "surrogateescape")

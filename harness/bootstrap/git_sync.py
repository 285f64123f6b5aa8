"""RUN_GIT_SYNC and EXPECTED_HEAD: bring the checkout to the default branch's state, and check which commit it is at."""

from __future__ import annotations

from pathlib import Path

from harness.bootstrap.errors import SetupError
from harness.bootstrap.report import head_commit
from harness.bootstrap.steps import Finished, SetupLog, Silence, run_command

STEP = "git_sync"
SILENCE_S = 25.0


def check_expected_head(root: Path, expected: str) -> None:
    """Raise SetupError unless HEAD starts with ``expected`` (lower case, at least 7 digits)."""
    head = head_commit(root)
    if head == "none":
        raise SetupError(
            "expected_head",
            f"EXPECTED_HEAD={expected} cannot be checked: {root} has no git commit",
            "run from a clone of the repository, or unset EXPECTED_HEAD",
            blocked=True,
        )
    if not head.startswith(expected):
        raise SetupError(
            "expected_head",
            f"HEAD is {head}, and EXPECTED_HEAD={expected} was asked for",
            f"check it out (git checkout {expected}), or set EXPECTED_HEAD to what you want to run",
            blocked=True,
        )


def sync(root: Path, environ: dict[str, str], log: SetupLog) -> bool:
    """Fetch, check out the default branch of origin, and rebase onto it. Returns whether HEAD moved.

    Refuses over uncommitted changes and over an unfinished merge or rebase. If it fails, the checkout is left on the
    branch and commit where it was.
    """
    # Never ask for a password, never wait for a machine that does not answer.
    child = {"GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=10", **environ, "GIT_TERMINAL_PROMPT": "0"}
    child["LC_ALL"] = "C"

    def git(*words: str) -> Finished:
        # A background gc would keep the pipes open after git has ended.
        return run_command(
            ["git", "-c", "gc.auto=0", "-c", "maintenance.auto=false", *words],
            log,
            cwd=root,
            environ=child,
            watch=Silence(SILENCE_S),
        )

    def must(action: str, *words: str) -> Finished:
        done = git(*words)
        if done.code != 0 or done.gave_up:
            raise _failure(done, action)
        return done

    before = head_commit(root)
    _refuse_unfinished(root, must("run from a clone of the repository, or unset RUN_GIT_SYNC", "status", "--porcelain"))
    print("Syncing the checkout with origin's default branch", flush=True)
    must("check the remote (git remote -v) and the network, or unset RUN_GIT_SYNC", "fetch", "--progress", "origin")
    answer = must("check the remote (git remote -v)", "ls-remote", "--symref", "origin", "HEAD")
    branch = next(
        (
            line.split()[1].removeprefix("refs/heads/")
            for line in answer.stdout
            if line.startswith("ref: refs/heads/") and line.split()[-1] == "HEAD"
        ),
        "",
    )
    if not branch:
        raise SetupError(
            STEP,
            "origin names no default branch",
            "check out the branch you want yourself, and unset RUN_GIT_SYNC",
            command=answer.command,
        )
    # Detached, there is no branch to come back to, only a commit.
    where = "".join(git("symbolic-ref", "--quiet", "--short", "HEAD").stdout).strip() or before
    try:
        must("move the files git names out of the way", "checkout", branch, "--")
        must("rebase your own commits by hand (git pull --rebase)", "pull", "--rebase", "--progress", "origin", branch)
    except SetupError:
        git("rebase", "--abort")
        git("checkout", where, "--")
        raise
    after = head_commit(root)
    print(f"  {branch} is at {after[:12]}" + ("" if after != before else ", as before"), flush=True)
    return after != before


def _refuse_unfinished(root: Path, status: Finished) -> None:
    changed = [line[3:].strip() for line in status.stdout if not line.startswith("??")]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise SetupError(
            STEP,
            f"there are uncommitted changes, which RUN_GIT_SYNC=1 does not touch: {', '.join(changed[:3])}{more}",
            "commit or stash them (git stash), or unset RUN_GIT_SYNC",
            blocked=True,
        )
    for name in ("rebase-merge", "rebase-apply", "MERGE_HEAD", "CHERRY_PICK_HEAD"):
        if (root / ".git" / name).exists():
            raise SetupError(
                STEP,
                f"a merge or rebase is unfinished here (.git/{name})",
                "finish or abort it, or unset RUN_GIT_SYNC",
                blocked=True,
            )


def _failure(done: Finished, action: str) -> SetupError:
    said = [line.strip() for line in done.stderr if line.strip()]
    telling = [line for line in said if line.startswith(("fatal:", "error:", "CONFLICT"))] or said[-1:]
    cause = done.gave_up or (telling[0] if telling else f"exit code {done.code}")
    return SetupError(STEP, f"git failed: {cause}", action, command=done.command)

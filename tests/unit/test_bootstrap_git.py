"""RUN_GIT_SYNC and EXPECTED_HEAD, in real repositories."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from bare_machine import clean_environ, copy_checkout, harness

from harness.bootstrap import git_sync
from harness.bootstrap.errors import SetupError
from harness.bootstrap.git_sync import check_expected_head, sync
from harness.bootstrap.report import head_commit
from harness.bootstrap.steps import SetupLog

ENVIRON = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    **{f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


def git(where: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=where, env=ENVIRON, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(where: Path, name: str, text: str) -> str:
    (where / name).write_text(text)
    git(where, "add", name)
    git(where, "commit", "-m", f"{name}: {text}")
    return git(where, "rev-parse", "HEAD")


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    path = tmp_path / "origin"
    path.mkdir()
    git(path, "init", "-b", "trunk")
    commit(path, "a.txt", "one")
    return path


@pytest.fixture
def clone(tmp_path: Path, origin: Path) -> Path:
    git(tmp_path, "clone", str(origin), "clone")
    return tmp_path / "clone"


def test_sync_brings_the_default_branch_whatever_its_name(origin: Path, clone: Path) -> None:
    newest = commit(origin, "a.txt", "two")
    git(clone, "checkout", "-b", "mine")
    assert sync(clone, ENVIRON, SetupLog()) is True
    assert head_commit(clone) == newest
    assert git(clone, "branch", "--show-current") == "trunk"
    assert sync(clone, ENVIRON, SetupLog()) is False


def test_sync_puts_own_commits_on_top(origin: Path, clone: Path) -> None:
    commit(clone, "b.txt", "mine")
    theirs = commit(origin, "a.txt", "two")
    assert sync(clone, ENVIRON, SetupLog()) is True
    assert git(clone, "rev-parse", "HEAD~1") == theirs
    assert (clone / "b.txt").read_text() == "mine"


@pytest.mark.parametrize("staged", [True, False])
def test_sync_refuses_over_uncommitted_changes(origin: Path, clone: Path, staged: bool) -> None:
    commit(origin, "a.txt", "two")
    (clone / "a.txt").write_text("edited")
    if staged:
        git(clone, "add", "a.txt")
    before = head_commit(clone)
    with pytest.raises(SetupError, match=r"uncommitted changes.*a\.txt") as caught:
        sync(clone, ENVIRON, SetupLog())
    assert caught.value.blocked
    assert head_commit(clone) == before and (clone / "a.txt").read_text() == "edited"


def test_files_git_does_not_know_are_no_obstacle_and_stay(origin: Path, clone: Path) -> None:
    commit(origin, "a.txt", "two")
    (clone / "notes.txt").write_text("keep")
    assert sync(clone, ENVIRON, SetupLog()) is True
    assert (clone / "notes.txt").read_text() == "keep"


def test_a_conflict_leaves_the_checkout_where_it_was(origin: Path, clone: Path) -> None:
    git(clone, "checkout", "-b", "mine")
    git(clone, "checkout", "trunk")
    commit(clone, "a.txt", "other")
    git(clone, "checkout", "mine")
    before = head_commit(clone)
    commit(origin, "a.txt", "two")
    with pytest.raises(SetupError, match=r"git failed: .*a\.txt") as caught:
        sync(clone, ENVIRON, SetupLog())
    assert "pull --rebase" in caught.value.command
    assert git(clone, "branch", "--show-current") == "mine" and head_commit(clone) == before
    assert git(clone, "status", "--porcelain") == ""
    assert not (clone / ".git" / "rebase-merge").exists()


def test_an_unfinished_merge_is_not_walked_over(clone: Path) -> None:
    (clone / ".git" / "MERGE_HEAD").write_text(head_commit(clone) + "\n")
    with pytest.raises(SetupError, match="unfinished"):
        sync(clone, ENVIRON, SetupLog())


def test_a_remote_that_is_gone_is_named(origin: Path, clone: Path) -> None:
    origin.rename(origin.with_name("moved"))
    log = SetupLog()
    with pytest.raises(SetupError, match=r"git failed: fatal: .*origin.* does not") as caught:
        sync(clone, ENVIRON, log)
    assert "git -c gc.auto=0" in caught.value.command and "fetch" in caught.value.command
    assert any("does not appear to be a git repository" in line for line in log.stderr)


def test_outside_of_git(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="not a git repository"):
        sync(tmp_path, {**ENVIRON, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}, SetupLog())


def test_a_remote_that_never_answers_is_given_up(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_sync, "SILENCE_S", 1.5)
    git(clone, "remote", "set-url", "origin", "ssh://nobody@example.org/x")
    with pytest.raises(SetupError, match="no sign of life"):
        sync(clone, {**ENVIRON, "GIT_SSH_COMMAND": "sleep 60; true"}, SetupLog())


@pytest.mark.parametrize("digits", [7, 8, 12, 40])
def test_expected_head_may_have_any_length_from_seven(clone: Path, digits: int) -> None:
    check_expected_head(clone, head_commit(clone)[:digits])


@pytest.mark.parametrize("digits", [7, 8, 40])
def test_another_head_is_refused_and_both_are_named(clone: Path, digits: int) -> None:
    head = head_commit(clone)
    last = "0" if head[digits - 1] != "0" else "1"
    other = head[: digits - 1] + last
    with pytest.raises(SetupError) as caught:
        check_expected_head(clone, other)
    assert head in caught.value.cause and other in caught.value.cause
    assert caught.value.step == "expected_head" and caught.value.blocked


def test_expected_head_longer_than_a_hash_does_not_match(clone: Path) -> None:
    with pytest.raises(SetupError):
        check_expected_head(clone, head_commit(clone) + "0")


def test_expected_head_without_git_cannot_be_confirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(SetupError, match="cannot be checked"):
        check_expected_head(tmp_path, "abcdef1")


def test_after_the_sync_it_goes_on_with_the_code_that_came(tmp_path: Path) -> None:
    """The command itself: what is checked after the sync is checked by the new code, and at the new commit."""
    theirs = copy_checkout(tmp_path)
    (theirs / ".gitignore").write_text("__pycache__/\nartifacts/\n")
    git(theirs, "init", "-b", "main")
    git(theirs, "add", ".")
    git(theirs, "commit", "-m", "as it is")
    old = git(theirs, "rev-parse", "HEAD")
    git(tmp_path, "clone", str(theirs), "mine")
    module = theirs / "harness" / "bootstrap" / "git_sync.py"
    new = commit(
        theirs, "harness/bootstrap/git_sync.py", module.read_text().replace("HEAD is", "The new code says: HEAD is")
    )
    environ = {**ENVIRON, **clean_environ(RUN_GIT_SYNC="1", EXPECTED_HEAD=old[:8])}
    done = harness(tmp_path / "mine", "bootstrap", environ=environ)
    assert done.returncode == 11, done.stderr
    assert f"root_cause: The new code says: HEAD is {new}, and EXPECTED_HEAD={old[:8]} was asked for" in done.stdout
    assert f"head_commit: {new}" in done.stdout
    assert done.stdout.index("starting again with its own code") < done.stdout.index("=== COLAB TRAIN REPORT ===")


def test_a_refused_sync_is_reported_with_its_step(origin: Path, clone: Path, tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path)
    (checkout / "harness" / "new.py").touch()
    git(checkout, "init")
    git(checkout, "add", ".")
    done = harness(checkout, "run", environ={**ENVIRON, **clean_environ(RUN_GIT_SYNC="1")})
    assert done.returncode == 11
    assert "objective_status: blocked\nfirst_failed_step: git_sync\nroot_cause: there are uncommitted" in done.stdout
    assert (checkout / "artifacts" / "colab_bootstrap_stderr.log").exists()

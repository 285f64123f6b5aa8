"""Which code computed a result, and where it is found again: in small repositories, with git itself as the judge."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.baselines import second_leg
from harness.baselines.baseline import UNIVERSAL_TOLERANCE, Baseline, Code, Provenance
from harness.baselines.second_leg import (
    SecondLegUnavailable,
    code_of,
    commit_of,
    remove_dead_worktrees,
    run_second_leg,
    worktree,
)

CODE = Path("harness/lane/code.py")
NOWHERE = "0123456789abcdef0123456789abcdef01234567"  # a commit that is in no repository here


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with code of a lane, at its first commit."""
    folder = tmp_path / "repository"
    for name in ("lane", "numerics"):
        (folder / "harness" / name).mkdir(parents=True)
    (folder / "harness" / "numerics" / "norms.py").write_text("NORM = 2\n")
    git(folder, "init", "-q", "-b", "main", ".")
    commit(folder, "one")
    return folder


def commit(folder: Path, text: str) -> str:
    """Commit all files, the code with this text; returns the commit."""
    (folder / CODE).write_text(f"VALUE = '{text}'\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", text)
    return git(folder, "rev-parse", "HEAD")


def recorded(code: Code) -> Baseline:
    """A baseline recorded with that code; of its result nothing is asked here."""
    provenance = Provenance("2026-01-01T00:00:00+00:00", "for a test", code)
    nothing: Any = None
    return Baseline(Path("baseline.json"), provenance, nothing, UNIVERSAL_TOLERANCE, None, None)


def of_everything(repository: Path) -> Code:
    return code_of(repository, ("harness",), "")


# The code of a checkout.


def test_the_code_is_the_commit_and_what_differs_from_it(repository: Path) -> None:
    code = code_of(repository)
    assert (code.commit, code.dirty) == (git(repository, "rev-parse", "HEAD"), False)
    (repository / "README.md").write_text("not code\n")
    (repository / "harness" / "lane" / "notes.txt").write_text("not code either\n")
    assert code_of(repository).digest == code.digest
    (repository / CODE).write_text("VALUE = 'changed'\n")
    changed = code_of(repository)
    assert (changed.commit, changed.dirty) == (code.commit, True) and changed.digest != code.digest
    commit(repository, "one")
    assert code_of(repository).digest == code.digest, "the same text is the same code, at whichever commit"


def test_a_new_file_and_another_name_are_other_code(repository: Path) -> None:
    digests = [code_of(repository).digest]
    for change in (
        lambda: (repository / "harness" / "lane" / "more.py").write_text(""),
        lambda: (repository / "harness" / "lane" / "more.py").rename(repository / "harness" / "lane" / "other.py"),
        lambda: (repository / "harness" / "lane" / "other.py").rename(repository / "harness" / "numerics" / "other.py"),
    ):
        change()
        digests.append(code_of(repository).digest)
    assert len(set(digests)) == 4


@pytest.mark.parametrize("suffix", [".py", ""])
def test_of_code_that_is_not_there_no_digest_is_known(repository: Path, suffix: str) -> None:
    assert len(code_of(repository, ("harness/lane", "harness/numerics"), suffix).digest) == 64
    for paths in (("harness/lane", "harness/none"), ("harness/none",), ("harness/none", "harness/lane")):
        assert code_of(repository, paths, suffix).digest == ""
    (repository / CODE).unlink()
    (repository / "harness" / "lane" / "folder.py").mkdir()
    assert code_of(repository, ("harness/lane",), suffix).digest == ""


def test_a_path_may_be_a_file(repository: Path) -> None:
    whole = code_of(repository, ("harness",))
    assert code_of(repository, ("harness/lane/code.py", "harness/numerics")).digest == whole.digest
    one = code_of(repository, ("harness/lane/code.py",)).digest
    assert one and one != whole.digest
    assert commit_of(recorded(Code(NOWHERE, True, one)), repository, ("harness/lane/code.py",)) == whole.commit


def test_outside_of_git_the_code_still_has_a_digest(repository: Path) -> None:
    inside = code_of(repository), of_everything(repository)
    shutil.rmtree(repository / ".git")
    for code, before in zip((code_of(repository), of_everything(repository)), inside, strict=True):
        assert (code.commit, code.dirty, code.digest) == ("unknown", True, before.digest)


def test_the_digest_of_a_checkout_is_that_of_its_commit_whatever_the_files_are(repository: Path) -> None:
    """Links, also to nowhere, names beyond ASCII, files without an end of line, another repository inside."""
    folder = repository / "harness" / "lane"
    (folder / "link.py").symlink_to("code.py")
    (folder / "nowhere.py").symlink_to("gone/away.py")
    (folder / "grün mit Leerzeichen.py").write_bytes(b"x = 1")
    (folder / "empty.py").write_bytes(b"")
    (folder / "bytes.bin").write_bytes(bytes(range(256)))
    (folder / "run.py").write_text("#!/usr/bin/env python3\n")
    (folder / "run.py").chmod(0o755)
    (repository / ".gitignore").write_text("*.log\n")
    inner = folder / "inner"
    inner.mkdir()
    git(inner, "init", "-q", "-b", "main", ".")
    git(inner, "commit", "-q", "--allow-empty", "-m", "another repository")
    at = commit(repository, "two")
    assert "160000" in git(repository, "ls-tree", "-r", "HEAD")
    (folder / "lane.log").write_text("ignored\n")
    commit(repository, "three")
    git(repository, "reset", "-q", "--hard", at)
    for paths, suffix in ((("harness/lane", "harness/numerics"), ".py"), (("harness",), "")):
        code = code_of(repository, paths, suffix)
        assert (code.commit, code.dirty) == (at, False)
        # As if recorded before its commit: it is found by its digest alone.
        assert commit_of(recorded(Code(NOWHERE, True, code.digest)), repository, paths, suffix) == at


def test_a_file_that_git_would_add_counts_and_a_deleted_one_does_not(repository: Path) -> None:
    (repository / "harness" / "new.txt").write_text("new\n")
    (repository / "harness" / "numerics" / "norms.py").unlink()
    code = of_everything(repository)
    assert code.dirty
    at = commit(repository, "one")
    assert of_everything(repository).digest == code.digest
    assert commit_of(recorded(code), repository, ("harness",), "") == at


def test_git_variables_of_a_hook_do_not_lead_elsewhere(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    assert len(code_of(repository).commit) == 40


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no git"), subprocess.TimeoutExpired("git", 120)])
def test_a_git_that_cannot_be_run_or_hangs_is_said(
    repository: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    baseline = recorded(code_of(repository))

    def fails(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("harness.base.git.subprocess.run", fails)
    code = code_of(repository)
    assert (code.commit, code.dirty, code.digest) == ("unknown", True, baseline.provenance.code.digest)
    with pytest.raises(SecondLegUnavailable, match="git cannot be run"):
        commit_of(baseline, repository)


# The commit of a baseline.


def test_a_clean_recording_is_of_its_commit(repository: Path) -> None:
    code, everything = code_of(repository), of_everything(repository)
    commit(repository, "two")
    assert commit_of(recorded(code), repository) == code.commit
    assert commit_of(recorded(everything), repository, ("harness",), "") == code.commit
    assert commit_of(recorded(Code(code.commit, False, "")), repository) == code.commit, "no digest to hold against it"
    # Whichever files an external lane names today, what it ran was the commit.
    assert commit_of(recorded(everything), repository, ("harness/numerics",), "") == code.commit


def test_a_recording_before_its_commit_is_found_by_its_code(repository: Path) -> None:
    (repository / CODE).write_text("VALUE = 'two'\n")
    codes = code_of(repository), of_everything(repository)
    asked: list[tuple[Sequence[str], str]] = [(second_leg.CODE_PATHS, ".py"), (("harness",), "")]
    for code, which in zip(codes, asked, strict=True):
        assert code.dirty
        with pytest.raises(SecondLegUnavailable, match="never committed as they were"):
            commit_of(recorded(code), repository, *which)
    second = commit(repository, "two")
    commit(repository, "three")
    for code, which in zip(codes, asked, strict=True):
        assert commit_of(recorded(code), repository, *which) == second


@pytest.mark.parametrize("gone", [NOWHERE, "unknown", "abcdef", "1"])
def test_a_recording_whose_commit_is_gone_is_found_by_its_code(repository: Path, gone: str) -> None:
    digest = code_of(repository).digest
    first = git(repository, "rev-parse", "HEAD")
    commit(repository, "two")
    assert commit_of(recorded(Code(gone, False, digest)), repository) == first
    for unknown in ("0" * 64, ""):
        with pytest.raises(SecondLegUnavailable, match="is not in this repository, and no commit has its code"):
            commit_of(recorded(Code(gone, False, unknown)), repository)


def test_of_two_commits_with_the_code_the_newest_counts_on_any_branch(repository: Path) -> None:
    code = code_of(repository)
    commit(repository, "two")
    git(repository, "checkout", "-q", "-b", "side")
    (repository / "README.md").write_text("beside\n")
    again = commit(repository, "one")
    git(repository, "checkout", "-q", "main")
    assert commit_of(recorded(Code(NOWHERE, False, code.digest)), repository) == again


def test_a_commit_without_the_recorded_code_is_not_taken_for_it(repository: Path) -> None:
    code = code_of(repository)
    second = commit(repository, "two")
    assert commit_of(recorded(Code(second, False, code.digest)), repository) == code.commit
    with pytest.raises(SecondLegUnavailable, match=r"neither commit .* nor another one has the recorded code"):
        commit_of(recorded(Code(second, False, "0" * 64)), repository)


def test_a_commit_has_a_name_in_digits_of_seven_or_more(repository: Path) -> None:
    """A branch moves, and six digits may soon be those of two commits."""
    head = git(repository, "rev-parse", "HEAD")
    assert commit_of(recorded(Code(head[:7], False, "")), repository) == head[:7]
    for name in (head[:6], "main", "a-long-name"):
        git(repository, "branch", "-f", "a-long-name")
        with pytest.raises(SecondLegUnavailable, match="is not in this repository"):
            commit_of(recorded(Code(name, False, "")), repository)


def test_a_commit_that_a_shallow_clone_lacks_is_said(repository: Path, tmp_path: Path) -> None:
    baseline = recorded(code_of(repository))
    commit(repository, "two")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{repository}", str(shallow))
    with pytest.raises(SecondLegUnavailable, match="shallow clone; git fetch --unshallow brings it"):
        commit_of(baseline, shallow)


def test_what_git_says_is_passed_on(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(SecondLegUnavailable, match=r"git log failed: fatal: not a git repository"):
        commit_of(recorded(code_of(repository)), tmp_path)
    with (
        pytest.raises(SecondLegUnavailable, match=r"failed: fatal: .*0123456789abcdef"),
        worktree(repository, NOWHERE),
    ):
        pytest.fail("there is no such commit")


# The checkout of it.


def state(folder: Path) -> tuple[str, ...]:
    return (
        git(folder, "status", "--porcelain"),
        git(folder, "rev-parse", "HEAD"),
        git(folder, "worktree", "list"),
        git(folder, "branch", "--list"),
        (folder / CODE).read_text(),
        str((folder / ".git" / "index").read_bytes()),
    )


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_second_leg_runs_the_recorded_code_and_leaves_no_trace(repository: Path, temporary: Path) -> None:
    baseline = recorded(code_of(repository))
    commit(repository, "two")
    (repository / CODE).write_text("VALUE = 'three, uncommitted'\n")
    git(repository, "status")
    before = state(repository)
    seen: list[str] = []
    evidence: Any = object()

    def leg(folder: Path) -> Any:
        assert folder.is_relative_to(temporary)
        seen.append((folder / CODE).read_text())
        return evidence

    assert run_second_leg(baseline, repository, leg) is evidence
    assert seen == ["VALUE = 'one'\n"] and list(temporary.iterdir()) == []
    assert state(repository) == before


def test_a_project_may_be_a_folder_of_a_repository(repository: Path) -> None:
    project = repository / "harness"
    everything = ("lane", "numerics")
    for suffix in (".py", ""):
        code = code_of(project, everything, suffix)
        assert len(code.digest) == 64 and not code.dirty
        seen: list[Path] = []

        def leg(folder: Path, seen: list[Path] = seen) -> Any:
            assert (folder / "lane" / "code.py").read_text() == "VALUE = 'one'\n"
            seen.append(folder)

        run_second_leg(recorded(Code(NOWHERE, True, code.digest)), project, leg, everything, suffix)
        assert len(seen) == 1
    assert code_of(project, everything) != code_of(repository), "their names are relative to the project"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "left over").write_text("something"),
        lambda folder: (folder / ".git").unlink(),
        lambda folder: shutil.rmtree(folder),
        lambda folder: shutil.rmtree(folder.parent),
        lambda folder: git(folder, "worktree", "lock", str(folder)),
    ],
)
def test_the_worktree_is_removed_whatever_is_done_to_it(
    repository: Path, temporary: Path, spoil: Callable[[Path], object]
) -> None:
    head = git(repository, "rev-parse", "HEAD")
    with worktree(repository, head) as folder:
        assert (folder / CODE).exists()
        spoil(folder)
    assert list(temporary.iterdir()) == []


def test_the_worktree_is_removed_after_an_exception_too(repository: Path, temporary: Path) -> None:
    before = state(repository)
    with pytest.raises(KeyboardInterrupt), worktree(repository, before[1]) as folder:
        (folder / "left over").write_text("something")
        raise KeyboardInterrupt
    assert state(repository) == before and list(temporary.iterdir()) == []


def test_what_a_session_that_was_killed_left_is_removed_by_the_next_and_nothing_else(
    repository: Path, temporary: Path
) -> None:
    """The checkout of a living one stays."""
    code = (
        "import os, pathlib, sys, tempfile\n"
        "from harness.baselines.second_leg import worktree\n"
        "tempfile.tempdir = sys.argv[3]\n"
        "with worktree(pathlib.Path(sys.argv[1]), sys.argv[2]):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    head = git(repository, "rev-parse", "HEAD").strip()
    subprocess.run(
        [sys.executable, "-c", code, str(repository), head, str(temporary)], cwd=Path(__file__).parents[2], check=False
    )
    assert len(list(temporary.iterdir())) == 1 and len(git(repository, "worktree", "list").splitlines()) == 2
    with worktree(repository, head) as living:
        remove_dead_worktrees(repository)
        assert list(temporary.iterdir()) == [living.parent]
    remove_dead_worktrees(repository)
    assert list(temporary.iterdir()) == [] and len(git(repository, "worktree", "list").splitlines()) == 1

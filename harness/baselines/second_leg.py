"""Which code computed a result, and the lane as of that code, run here: the second leg of a verdict.

The code's digest is made of git's own names for the files' contents, so that git can say which commit has it: a
baseline that is recorded before its change is committed still leads to the commit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.base.git import GitFailed, git
from harness.baselines.baseline import Baseline, Code
from harness.baselines.verdict import SecondLegUnavailable
from harness.evidence import RunEvidence
from harness.numerics.digest import blob_name, code_digest

CODE_PATHS = ("harness/lane", "harness/numerics")  # what computes a result
_PREFIX = "second-leg-"  # of a temporary checkout's folder; the id of the process that made it follows
_COMMITS = 200  # how far back a commit is looked for by its code


def code_of(repository: Path, paths: Sequence[str] = CODE_PATHS, suffix: str = ".py") -> Code:
    """The code in a checkout: commit, whether files under `paths` differ from it, and their digest.

    `repository`: the folder that `paths` are relative to, in git or in a folder of it. `suffix`: how the names of files
    that count end; "" for every file that git knows or would add. Outside of git the commit is `unknown`, and the code
    counts as changed. The digest is empty where one of `paths` has no file that counts: nothing is known of it.
    """
    try:
        commit = _git(repository, "rev-parse", "HEAD").strip()
        dirty = bool(_git(repository, "status", "--porcelain", "--", *paths).strip())
    except SecondLegUnavailable:
        commit, dirty = "unknown", True
    named = [repository / path for path in paths]
    if suffix:
        files = sorted(
            {file for path in named for file in ([path] if path.suffix == suffix else path.rglob(f"*{suffix}"))}
        )
    else:
        try:
            listing = _git(repository, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *paths)
            files = sorted({repository / name for name in listing.split("\0") if name})
        except SecondLegUnavailable:
            files = sorted({file for path in named for file in (path, *path.rglob("*"))})
    files = [file for file in files if file.is_symlink() or file.is_file()]
    if any(not any(file.is_relative_to(path) for file in files) for path in named):
        return Code(commit, dirty, "")
    blobs = [(Path(os.path.relpath(file, repository)).as_posix(), _blob(file)) for file in files]
    return Code(commit, dirty, code_digest(blobs))


def run_second_leg(
    baseline: Baseline,
    repository: Path,
    run: Callable[[Path], RunEvidence],
    paths: Sequence[str] = CODE_PATHS,
    suffix: str = ".py",
) -> RunEvidence:
    """Run the lane as of the baseline's code: `run(folder)` gets `repository` in a temporary checkout of it, and must
    not keep it.

    The run directory must lie elsewhere. The user's checkout and index are not touched; the temporary checkout is
    removed, whatever happens. Raises SecondLegUnavailable when no commit with that code is known here, and whatever
    `run` raises.
    """
    commit = commit_of(baseline, repository, paths, suffix)
    below = _git(repository, "rev-parse", "--show-prefix").rstrip("\n")  # the project may be a folder in git
    with worktree(repository, commit) as folder:
        return run(folder / below)


def commit_of(baseline: Baseline, repository: Path, paths: Sequence[str] = CODE_PATHS, suffix: str = ".py") -> str:
    """The commit that has the code a baseline was recorded with. Raises SecondLegUnavailable when none is known here.

    That is the recorded commit; or, where the recording was made from changed files or the commit is gone (a rebase, a
    squash), the newest of the last 200 commits of these files that has exactly the recorded code.
    """
    code = baseline.provenance.code
    commit = code.commit
    exists = _has_commit(repository, commit)
    # Where all files in git count, a clean checkout is its commit, whichever of them were named as the code.
    clean = exists and not code.dirty
    if clean and (not suffix or code.digest in ("", _code_digest_at(repository, commit, paths, suffix))):
        return commit
    log = _git(repository, "log", "--all", f"--max-count={_COMMITS}", "--format=%H", "--", *paths).split()
    for candidate in log:
        if code.digest and _code_digest_at(repository, candidate, paths, suffix) == code.digest:
            return candidate
    if _git(repository, "rev-parse", "--is-shallow-repository").strip() == "true":
        raise SecondLegUnavailable(
            f"commit {commit[:12]} is not in this shallow clone; git fetch --unshallow brings it"
        )
    if code.dirty:
        raise SecondLegUnavailable(
            "the baseline was recorded from files that were changed and never committed as they were"
        )
    if exists:
        raise SecondLegUnavailable(f"neither commit {commit[:12]} nor another one has the recorded code, file by file")
    raise SecondLegUnavailable(f"commit {commit[:12]} is not in this repository, and no commit has its code")


@contextmanager
def worktree(repository: Path, commit: str) -> Iterator[Path]:
    """A temporary checkout of `commit`, removed at the end. Raises SecondLegUnavailable when git cannot make one."""
    parent = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    folder = parent / commit[:12]
    try:
        # What was recorded ran from the bytes that git keeps, and not from what this user's git makes of line endings.
        bytes_as_kept = ("-c", "core.autocrlf=false", "-c", "core.hooksPath=/dev/null")
        _git(repository, *bytes_as_kept, "worktree", "add", "--detach", str(folder), commit)
        try:
            yield folder
        finally:
            with contextlib.suppress(SecondLegUnavailable):
                _git(repository, "worktree", "remove", "--force", "--force", str(folder))
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def remove_dead_worktrees(repository: Path) -> None:
    """Remove the temporary checkouts of sessions that were killed in their second leg. Never raises."""
    for parent in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = parent.name.removeprefix(_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError, SecondLegUnavailable):
            if pid.isdigit() and parent.stat().st_uid == os.getuid() and not _is_alive(int(pid)):
                shutil.rmtree(parent)
                _git(repository, "worktree", "prune")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _has_commit(repository: Path, commit: str) -> bool:
    if len(commit) < 7 or not all(c in "0123456789abcdef" for c in commit):
        return False
    try:
        _git(repository, "cat-file", "-e", f"{commit}^{{commit}}")
    except SecondLegUnavailable:
        return False
    return True


def _code_digest_at(repository: Path, commit: str, paths: Sequence[str], suffix: str) -> str:
    listing = _git(repository, "ls-tree", "-r", "-z", commit, "--", *paths)
    blobs: list[tuple[str, str]] = []
    for line in filter(None, listing.split("\0")):
        about, _, path = line.partition("\t")
        _, what, name = about.split(" ")
        if what == "blob" and path.endswith(suffix):
            blobs.append((path, name))
    return code_digest(blobs)


def _blob(file: Path) -> str:
    """Git's name for a file's content; that of a link is where it leads."""
    return blob_name(str(file.readlink()).encode() if file.is_symlink() else file.read_bytes())


def _git(repository: Path, *words: str) -> str:
    """git's output, with paths taken as they are. Raises SecondLegUnavailable."""
    try:
        return git(repository, "--literal-pathspecs", *words)
    except GitFailed as error:
        raise SecondLegUnavailable(str(error)) from None

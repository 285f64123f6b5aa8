"""How the lane writes: every file appears whole under its name or not at all, and replaces nothing but a file of its
own kind that the lane wrote before. What it wrote is known by what the file holds, and not by its name."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.base.text import printable

TEMPORARY_PREFIX = ".lane-tmp-"
LFS_MAGIC = b"version https://git-lfs"
TITLE = "=== voice lane: the set-up's log ===\n"  # of the logs that have no form of their own
CLIP = "voice lane: a clip of a run"  # in a clip's FLAC comment
TOKENS_MARK = b"# voice lane: tokens"  # a comment in the .npy header, which NumPy reads as Python
PAGE_MARK = '<meta name="generator" content="voice lane">'
EMPTY = "empty"

_HEAD = 1 << 16
_JSON = re.compile(rb'\{\s*(?:"kind": "header",\s*)?"schema":\s*"([a-z_]+/\d+)"')
# How each other kind begins, and what its first bytes hold besides. A page of an earlier version is known by its style.
_KINDS = {
    "report": (rb"=== COLAB TRAIN REPORT ===\n", ()),
    "log": (rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ harness\.lane: ", ()),
    "lock": (rb"pid \d+ since \S+\n\Z", ()),
    "exit_code": (rb"-?\d{1,3}\n\Z", ()),
    "tokens": (rb"\x93NUMPY(?s:....)[^\n]*" + TOKENS_MARK + rb"\n", ()),
    "state": (rb"PK\x03\x04", (b"train_state/", b"experimental", b"promotable")),
    "last_step": (rb"PK\x03\x04", (b"last_step/", b"experimental", b"promotable")),
    "checkpoint": (rb"PK\x03\x04", (b"adapter", b"model_id", b"experimental", b"promotable")),
    "page": (rb"<!DOCTYPE html>\n(?s:.)*(?:" + PAGE_MARK.encode() + rb"|--recorded: #e09a2b; --band: )", ()),
    "clip": (rb"fLaC", (CLIP.encode(),)),
    "setup_log": (re.escape(TITLE.encode()), ()),
}
_unfinished: set[Path] = set()  # temporary files that this process has made and not yet given their names


class NotOurs(OSError):
    """Something that the lane did not write lies where it is to write; ``strerror`` says what, ``filename`` where."""


def show(path: Path) -> str:
    """A path as one line of plain text, whatever bytes it holds."""
    return printable(os.fsencode(path).decode("utf-8", "backslashreplace"))


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file is a git-LFS pointer: a few lines of text that stand for the real file."""
    with path.open("rb") as file:
        return file.read(len(LFS_MAGIC)) == LFS_MAGIC


def kind_of(head: bytes) -> str | None:
    """The kind of file of ours that begins with ``head``: a JSON file's schema, or a name; None for any other file."""
    document = _JSON.match(head)
    if document:
        schema = document[1].decode()
        return schema if schema == "voice_lane_setup/1" or b'"lane": "experimental"' in head else None
    for kind, (begins, holds) in _KINDS.items():
        if re.match(begins, head) and all(mark in head for mark in holds):
            return kind
    return None if head else EMPTY


def kind_at(path: Path) -> str | None:
    """The kind of the file of ours at ``path``; ``empty`` for an empty one, None where nothing lies.

    Raises NotOurs for a link, a folder, a device, a file of another kind or one that cannot be read; OSError.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        what = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise NotOurs(
            errno.EEXIST, f"is {what.get(stat.S_IFMT(mode), 'a device')}, and no file of the lane's", str(path)
        )
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            kind = kind_of(file.read(_HEAD)) or _listed(path)
    except PermissionError:
        raise NotOurs(
            errno.EEXIST, "is a file that cannot be read, and so not known to be the lane's", str(path)
        ) from None
    if kind is None:
        raise NotOurs(errno.EEXIST, "is a file that is not known to be the lane's", str(path))
    return kind


def _listed(path: Path) -> str | None:
    """The kind of a file without a mark, as earlier versions wrote clips and tokens: known by its digest in a file of
    ours beside it."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        if path.suffix == ".flac" and kind_at(path.parent / "listen.json") == "listen/1":
            clips = json.loads((path.parent / "listen.json").read_bytes())["clips"]
            return "clip" if clips[path.stem]["sha256"] == file_sha256(path) else None
        if path.suffix == ".npy" and kind_at(path.parent / "trace.jsonl") == "lane_trace/1":
            return "tokens" if _tokens_digest(path).encode() in (path.parent / "trace.jsonl").read_bytes() else None
    return None


def _tokens_digest(path: Path) -> str:
    """The digest of int16 tokens in a .npy file (docs/evidence.md)."""
    with path.open("rb") as file:
        header = file.read(128)
        shape = re.search(rb"'descr': '<i2', 'fortran_order': False, 'shape': \((\d+), (\d+), (\d+)\), }", header)
        if not shape:
            raise ValueError("no tokens")
        digest = hashlib.sha256(b"tokens\0int16\0" + b"x".join(shape.groups()) + b"\0")
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def check_place(path: Path, kind: str | None) -> bool:
    """Whether a file lies at ``path``. Raises NotOurs unless it is empty, or of this kind and the lane's; OSError."""
    found = kind_at(path)
    if found not in (None, EMPTY, kind):
        raise NotOurs(errno.EEXIST, f"is the lane's, but of the kind {found}, and not {kind}", str(path))
    return found is not None


def remove(path: Path, kind: str) -> None:
    """Remove a file that the lane wrote, where there is one. Raises NotOurs for anything else there; OSError."""
    if check_place(path, kind):
        path.unlink(missing_ok=True)


def remove_leftover(path: Path) -> None:
    """Remove a temporary file of a run that was killed: one whose beginning is the lane's, or that is empty."""
    with contextlib.suppress(OSError):
        if kind_at(path) is not None:
            path.unlink()


def reserve(path: Path) -> Path:
    """The name beside ``path`` under which it is written until it is whole; nothing lies there.

    Then ``settle`` or ``drop``. Raises OSError, also where something lies there that no run of the lane left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}"
    remove_leftover(temporary)
    if os.path.lexists(temporary):
        raise NotOurs(errno.EEXIST, "lies where the lane writes a temporary file", str(temporary))
    _unfinished.add(temporary)
    return temporary


def settle(temporary: Path, path: Path, kind: str | None) -> None:
    """Give a file that is whole its name, in one step. Raises NotOurs as ``check_place`` does, with nothing changed."""
    there = check_place(path, kind)
    if not there:
        try:
            os.link(temporary, path)  # which, other than a rename, fails where somebody was faster
            temporary.unlink()
        except FileExistsError:
            there = check_place(path, kind)
        except OSError:  # a file system without hard links
            there = True
    if there:
        temporary.replace(path)
    _unfinished.discard(temporary)


def drop(temporary: Path) -> None:
    """Remove an unfinished file. Never raises."""
    with contextlib.suppress(OSError):
        temporary.unlink()
    _unfinished.discard(temporary)


def drop_unfinished() -> None:
    """Remove what this process began to write when something, such as a signal, came before its owner could."""
    for temporary in list(_unfinished):
        drop(temporary)


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` under ``path``: a temporary file beside it, flushed to the disk, then given its name.

    A reader, or a kill at any instant, sees the old file or the new one. Only a file of the same kind (``kind_of``) is
    replaced. Raises NotOurs for anything else there; OSError (disk full, read-only).
    """
    temporary = reserve(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        settle(temporary, path, kind_of(data[:_HEAD]))
    except BaseException:
        drop(temporary)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write strict JSON (a NaN is a ValueError, never a bare token), atomically."""
    atomic_write(path, (json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode())


def holds_run(status_path: Path, report_path: Path) -> bool:
    """Whether a run left these, or something else lies there: all but the word of a run that did not begin, because
    the set-up failed, a setting was refused or the preflight failed. Such a word replaces nothing but its like."""
    try:
        status = json.loads(status_path.read_bytes())
        return bool(status["run_id"] != "none" and status["first_failed_step"] not in ("settings", "preflight"))
    except FileNotFoundError:
        return report_path.exists()
    except NotADirectoryError:
        return False
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return True


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes as hex digits, read as a stream."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

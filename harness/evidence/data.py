"""The data that a run was trained on, looked at on the disk: its digest, and what its manifest says wrongly of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.evidence.errors import EvidenceError, mismatch, show
from harness.evidence.strict import JSON_LIMIT, parse_json, read_bytes
from harness.numerics.digest import dataset_digest, file_sha256


def data_digest(
    manifest: tuple[Path, Path | None] | None, audio: Path | None, cwd: Path, data: Mapping[Path, bool]
) -> dict[str, Any]:
    """The digest of the data, from the files: of what the manifest lists, else of the audio that was given; and of
    `data`, files and folders of any kind, in which names count too unless it says that they do not.

    `manifest`: where it lies, and the file to read it from (None where it was not left); None for a lane that gives
    none. Paths in it are relative to its folder or to `cwd`. Never raises: what is wrong is in `problems`.
    """
    problems: list[str] = []
    digests: list[str] = []
    source = "none"
    if manifest is not None and manifest[1] is not None:
        source = str(manifest[0])
        try:
            digests = _manifest_digests(manifest[0], manifest[1], cwd, problems)
        except EvidenceError as error:
            problems.append(str(error))
    elif manifest is None and audio is not None:
        source = str(audio)
        digests = [file_sha256(path) for path in audio_files(audio)]
        if not digests:
            problems.append(f"{audio}: found no file, expected the audio that the lane trains on")
    for path, is_nameless in data.items():
        source = str(path) if source == "none" else f"{source}, {path}"
        found = audio_files(path)
        digests += [file_sha256(file) if is_nameless else _named_digest(file, path) for file in found]
        if not found:
            problems.append(f"{path}: found no file, expected data that the lane trains on")
    digest = dataset_digest(digests) if digests and not problems else None
    return {"digest": digest, "files": len(digests), "problems": problems, "source": source}


def audio_files(path: Path) -> list[Path]:
    """The audio: a file, or every file below a folder."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    return [path] if path.is_file() else []


def _named_digest(file: Path, path: Path) -> str:
    """SHA-256 over a file's content and its name in the folder that was given: it may be a label, say."""
    name = file.relative_to(path).as_posix() if file != path else ""
    return hashlib.sha256(f"{file_sha256(file)} {name}".encode("utf-8", "backslashreplace")).hexdigest()


def _manifest_digests(path: Path, copy: Path, cwd: Path, problems: list[str]) -> list[str]:
    """The SHA-256 of each file that a manifest lists; what is wrong goes to `problems`. Raises EvidenceError."""
    value = parse_json(read_bytes(copy, JSON_LIMIT, "the data set's manifest"), path)
    document = value if isinstance(value, dict) else {"entries": value}
    entries = document.get("entries")
    if not isinstance(entries, list) or not entries:
        raise mismatch(f"{path}: entries", show(entries), "a list with at least one file")
    digests: list[str] = []
    for index, entry in enumerate(entries):
        try:
            digests.append(_entry_digest(entry, f"{path}: entries[{index}]", (path.parent, cwd), problems))
        except EvidenceError as error:
            problems.append(str(error))
    claimed = document.get("dataset_digest")
    if claimed is not None and not problems and claimed != dataset_digest(digests):
        expected = f"{dataset_digest(digests)}, of its files"
        problems.append(str(mismatch(f"{path}: dataset_digest", show(claimed), expected)))
    return digests


def _entry_digest(entry: Any, where: str, folders: tuple[Path, ...], problems: list[str]) -> str:
    """The SHA-256 of the file of one entry. Raises EvidenceError where there is none."""
    said = entry if isinstance(entry, dict) else {"path": entry}
    named = said.get("target") or said.get("path")
    if not isinstance(named, str) or not named:
        raise mismatch(where, show(named), "the file's path, as target or path")
    file = next((path for folder in folders if (path := folder / named).is_file()), None)
    if file is None:
        raise mismatch(where, f"{named}: no such file", "a file that is there")
    digest, size = file_sha256(file), file.stat().st_size
    if said.get("sha256", digest) != digest:
        problems.append(str(mismatch(f"{where}: {named}", f"SHA-256 {digest}", f"{said['sha256']}, as it says")))
    if said.get("bytes", size) != size:
        problems.append(str(mismatch(f"{where}: {named}", f"{size:,} bytes", f"{said['bytes']}")))
    return digest

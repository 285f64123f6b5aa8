"""What a production lane left: its status, its data set's manifest, its voice bundle. Whether each is complete and is
what the others say. For the command in `__init__.py`.

docs/promotion.md has the fields. Where production lanes and their tools differ in a key, each is read.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from msgspec import Struct

from harness.evidence import EvidenceError
from harness.evidence.errors import one_line, show
from harness.evidence.strict import JSON_LIMIT, Count, Number, Sha256, Text, as_struct, parse_json, read_bytes
from harness.numerics.digest import dataset_digest, file_sha256
from harness.promotion.contents import Findings
from harness.promotion.licences import check_licences

JOB_TYPE = "tts_prod_train"
# The production lane's own name first, then the one that this project knew before.
STATUS = (f"train_status.{JOB_TYPE}.json", "train_status.json")
DATASET = (f"dataset_manifest.{JOB_TYPE}.json", "voice_dataset_manifest.json")
BUNDLE = "voice_bundle"

NOT_FINITE = ("nan", "inf", "infinity")
AUDIO_KEYS = ("target", "path", "audio_filepath", "audio_path", "audio", "filepath", "file")


class Ties(Struct):
    """What an entry may state of its file."""

    sha256: Sha256 = ""
    bytes: Count = 0


class Listed(Ties, kw_only=True):
    """An entry that names its file by `path`."""

    path: Text


class Progress(Struct):
    """How far a job is."""

    current: Number
    total: Number


class Status(Struct):
    """The job's status. What names a file is an object, or its path alone."""

    job_type: Text
    state: Text
    progress: Number | Progress
    stats: dict[str, Any]
    artifacts: list[Text | Ties]


class Dataset(Struct):
    """The data set's manifest."""

    entries: list[Text | Ties]
    dataset_digest: Sha256 = ""


class Manifest(Struct):
    """The bundle's manifest."""

    bundle_version: Text
    voice_profile_id: Text
    display_name: Text
    created_at: Text
    files: list[Listed]


class Production:
    """A production lane's directory, resolved, with the files below it. `check` fills `findings`, and finds `bundle`
    (the folder), its `manifest` and the data set's `recordings`."""

    def __init__(self, directory: Path, files: Sequence[Path], audio: Sequence[Path], findings: Findings) -> None:
        self.directory, self.files, self.audio = directory, dict.fromkeys(files), audio
        self.findings, self.refuse, self.trust = findings, findings.refuse, findings.trust
        self.bundle: Path | None = None
        self.manifest: dict[str, Any] | None = None
        self.recordings: set[Path] = set()
        self.dataset_digest: str | None = None  # of the recordings, where all of them are there

    def check(self) -> None:
        """Status, data set and bundle, each with what it says of the files, then the licences."""
        status_path, status = self._document(STATUS, Status, "status")
        dataset_path, dataset = self._document(DATASET, Dataset, "dataset")
        if status is not None:
            self._status(status_path, status)
        if dataset is not None:
            self._dataset(dataset_path, dataset)
        self._bundle()
        if status is not None:
            self._ties(status_path, _named(status["artifacts"]), dataset_path)
        if self.bundle is not None and self.manifest is not None:
            check_licences(self.manifest, self.bundle / "manifest.json", self.findings)

    def _document(self, names: Sequence[str], fields: type[Struct], what: str) -> tuple[Path, dict[str, Any] | None]:
        """The JSON file with the first of the names that there is; what is in it is None where that is not valid."""
        found = next((same for name in names if (same := [path for path in self.files if path.name == name])), [])
        path = self._nearest(found, f"{what}_missing", " or ".join(names))
        return (path, self._read(path, fields, f"{what}_invalid")) if path else (self.directory / names[0], None)

    def _nearest(self, paths: Sequence[Path], missing: str, wanted: str) -> Path | None:
        """The path that lies least deep. Refused where there is none, or two."""
        depths = [len(path.parts) for path in paths]
        if not paths:
            self.refuse(missing, f"{self.directory}: found none, expected {wanted}")
        elif depths.count(min(depths)) == 1:
            return paths[depths.index(min(depths))]
        else:
            self.refuse("ambiguous", f"found {' and '.join(map(str, paths[:3]))}, expected one of them")
        return None

    def _read(self, path: Path, fields: type[Struct], invalid: str) -> dict[str, Any] | None:
        try:
            found = parse_json(read_bytes(path, JSON_LIMIT, "what docs/promotion.md says"), path)
            as_struct(found, fields, path)
        except EvidenceError as error:
            self.refuse(invalid, str(error))
            return None
        known: dict[str, Any] = found  # with what a lane says beyond the fields
        return known

    def _status(self, path: Path, status: Mapping[str, Any]) -> None:
        if status["job_type"] != JOB_TYPE:
            self.refuse("status_job_type", f"{path}: found job_type {show(status['job_type'])}, expected {JOB_TYPE}")
        for key in ("state", "status"):
            if status.get(key, "completed") != "completed":
                self.refuse("status_state", f"{path}: found {key} {show(status[key])}, expected completed")
        progress, stats = status["progress"], status["stats"]
        current, total = (progress["current"], progress["total"]) if isinstance(progress, dict) else (progress, 1)
        if current != total or total <= 0:
            self.refuse("status_progress", f"{path}: found progress {current!r} of {total!r}, expected all of it")
        if not any(_is_number(value) for value in stats.values()):
            self.refuse("status_stats", f"{path}: found no number in stats, expected the job's")
        for name, value in sorted(stats.items()):
            if expected := _stat_expected(name, value):
                where = f"{path}: stats.{one_line(name, 80)}"
                self.refuse("status_stats", f"{where}: found {show(value)}, expected {expected}")
        self.trust("origin", f"{path}: says that a {JOB_TYPE} job wrote these files; there is no signature")

    def _dataset(self, path: Path, dataset: Mapping[str, Any]) -> None:
        kinds = {"schema": "voice_dataset/1", "mode": "voice_dataset"}
        stated = {key: dataset[key] for key in kinds if key in dataset}
        if not stated or any(value != kinds[key] for key, value in stated.items()):
            wanted = "mode voice_dataset or schema voice_dataset/1"
            self.refuse("dataset_invalid", f"{path}: found {stated or 'neither'}, expected {wanted}")
        entries, digest = _named(dataset["entries"]), dataset.get("dataset_digest")
        if not entries:
            self.refuse("dataset_invalid", f"{path}: found no entries, expected at least one")
        bases = [path.parent, self.directory, *self.audio]
        found = [self._file(f"{path}: entries[{n}]", entry, bases, AUDIO_KEYS) for n, entry in enumerate(entries)]
        self.recordings = {recording for recording, _ in found if recording is not None}
        if entries and all(sha256 for _, sha256 in found):
            given = self.dataset_digest = dataset_digest(sha256 for _, sha256 in found)
            if digest not in (None, given):
                self.refuse("dataset_invalid", f"{path}: found dataset_digest {digest}, its recordings give {given}")
        if loose := sum("sha256" not in entry for entry in entries if digest is None):
            self.trust("recording_digest", f"{path}: recordings that it names without a SHA-256: {loose}")

    def _bundle(self) -> None:
        below = len(self.directory.parts)
        inside = [path for path in self.files if BUNDLE in path.parent.parts[below:]]
        folders = sorted({Path(*path.parts[: path.parts.index(BUNDLE, below) + 1]) for path in inside})
        bundle = self.bundle = self._nearest(folders, "bundle_missing", f"a folder {BUNDLE} with files in it")
        if bundle is None:
            return
        where = bundle / "manifest.json"
        self.manifest = manifest = self._read(where, Manifest, "bundle_manifest_invalid")
        if manifest is None:
            return
        version, created, profile = (manifest[key] for key in ("bundle_version", "created_at", "voice_profile_id"))
        if version != "voice_bundle/1":
            self.refuse("bundle_version", f"{where}: found {show(version)}, expected voice_bundle/1")
        if not _has_zone(created):
            found = f"created_at {show(created)}, expected a time with its zone (ISO 8601)"
            self.refuse("bundle_manifest_invalid", f"{where}: found {found}")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", profile):
            found = f"voice_profile_id {show(profile)}, expected letters, digits, '.', '_', '-'"
            self.refuse("bundle_manifest_invalid", f"{where}: found {found}")
        listed = self._listed(where, manifest["files"])
        for path in inside:
            if path.is_relative_to(bundle) and path not in listed:
                self.refuse("bundle_file_extra", f"{path}: found a file that the manifest does not list")

    def _listed(self, where: Path, entries: Sequence[Mapping[str, Any]]) -> set[Path]:
        """The bundle's manifest and the files that it lists, each of which is held against the file."""
        listed = {where}
        for index, entry in enumerate(entries):
            at, name = f"{where}: files[{index}]", entry["path"]
            path, parts = where.parent / name, PurePosixPath(name).parts
            plain = name == "/".join(parts) and ".." not in parts and "\\" not in name and name.isprintable()
            if not plain or path in listed:
                expected = "each file of the bundle but this once, by its path inside"
                self.refuse("bundle_path", f"{at}: found {show(name)}, expected {expected}")
            elif path not in self.files:
                self.refuse("bundle_file_missing", f"{at}: found no plain file {path}, expected one")
            else:
                self._compare(path, entry, at, "bundle_file_size", "bundle_file_digest")
            listed.add(path)
        return listed

    def _ties(self, where: Path, artifacts: Sequence[Any], dataset_path: Path) -> None:
        """What ties the three together: the job names the bundle's manifest and the data set's, and every file that
        neither of these names."""
        named: dict[Path, str] = {}
        loose = 0
        for index, entry in enumerate(artifacts):
            path, _ = self._file(
                f"{where}: artifacts[{index}]", entry, [self.directory, where.parent], ("path",), named
            )
            if path is not None:
                named[path] = entry["path"]
                loose += "sha256" not in entry
        if loose:
            self.trust("artifact_digest", f"{where}: artifacts that it names without a SHA-256: {loose}")
        free = {where, *self.recordings, *([dataset_path] if self._is_of(dataset_path) else [])}
        if self.bundle is not None:
            manifest = self.bundle / "manifest.json"
            free |= {path for path in self.files if path != manifest and path.is_relative_to(self.bundle)}
            self._one_voice(where, [named.get(manifest, ""), str(manifest)])
        for path in self.files:
            if path not in named and path not in free:
                what = f"artifacts do not name {path.relative_to(self.directory)}, expected every file of the job"
                self.refuse("artifact_mismatch", f"{where}: {what}")

    def _one_voice(self, where: Path, manifests: Sequence[str]) -> None:
        """The paths by which the bundle is named are those of the voice that its manifest is of."""
        voice = (self.manifest or {}).get("voice_profile_id")
        for named in manifests:
            match = re.search(rf"(?:^|/)bundles/([^/]+)/{BUNDLE}/", named)
            if match and voice and match[1] != voice:
                found = f"{show(named)}, expected the bundle of {show(voice)}, as its manifest says"
                self.refuse("artifact_mismatch", f"{where}: found {found}")

    def _is_of(self, dataset_path: Path) -> bool:
        """Whether the bundle says that it was made from this very data set. Refused where it names another one."""
        provenance = (self.manifest or {}).get("provenance")
        stated = provenance.get("source_dataset_sha256") if isinstance(provenance, dict) else None
        if stated is None or dataset_path not in self.files:
            return False
        digest = self._compare(dataset_path, {}, "", "", "")
        if stated in (digest, self.dataset_digest):
            return True
        found = f"provenance.source_dataset_sha256 {show(stated)}, expected {digest} of {dataset_path}"
        what = f"{found}, or {self.dataset_digest} of its recordings" if self.dataset_digest else found
        self.refuse("artifact_mismatch", f"{self.bundle}/manifest.json: found {what}")
        return False

    def _file(
        self,
        at: str,
        entry: Mapping[str, Any],
        bases: Sequence[Path],
        keys: Sequence[str],
        named: Mapping[Path, str] | None = None,
    ) -> tuple[Path | None, str]:
        """The one file that an entry names by a text under one of the keys, and its SHA-256.

        An artifact, where `named` has the ones before it, lies in the directory. A recording may lie elsewhere.
        """
        code = "dataset_audio" if named is None else "artifact_mismatch"
        names = sorted({entry[key] for key in keys if isinstance(entry.get(key), str)})
        paths = self._meant(names[0], bases, anywhere=named is None) if len(names) == 1 else []
        if len(names) != 1:
            self.refuse(code, f"{at}: found {len(names)} names of a file, expected one, as {' or '.join(keys)}")
        elif not paths:
            self.refuse(code, f"{at}: found no file {show(names[0])}, expected one from {', '.join(map(str, bases))}")
        elif len(paths) > 1:
            self.refuse("ambiguous", f"{at}: {show(names[0])}: found {paths[0]} and {paths[1]}, expected one of them")
        elif paths[0] in (named or ()):
            self.refuse(code, f"{at}: found {show(names[0])} again, expected each file once")
        else:
            return paths[0], self._compare(paths[0], entry, at, code, code)
        return None, ""

    def _meant(self, name: str, bases: Sequence[Path], anywhere: bool) -> list[Path]:
        """The files that `name` means from the folders. A lane may have run elsewhere, and name where that was: where
        there is no such file here, the one of the directory with whose whole path the name ends."""
        found: set[Path] = set()
        for base in bases:
            try:
                path = (base / name).resolve()
                found |= {path} if path in self.files or (anywhere and path.is_file()) else set()
            except (OSError, RuntimeError, ValueError):  # no path: too long, a loop of links, a NUL
                continue
        if found:
            return sorted(found)
        parts, below = PurePosixPath(name).parts, len(self.directory.parts)
        ends = [path for path in self.files if parts[below - len(path.parts) :] == path.parts[below:]]
        return sorted(ends, key=lambda path: -len(path.parts))[:1]

    def _compare(self, path: Path, entry: Mapping[str, Any], at: str, size_code: str, digest_code: str) -> str:
        """Holds a file against `bytes` and `sha256`, where an entry states them. Returns the file's SHA-256."""
        try:
            size, digest = path.stat().st_size, file_sha256(path)
        except OSError as error:
            self.refuse("unexamined", f"{path}: {error.strerror or error}")
            return ""
        if entry.get("bytes", size) != size:
            self.refuse(size_code, f"{at}: {path}: found {size:,} bytes, expected {entry['bytes']:,}")
        elif entry.get("sha256", digest) != digest:
            self.refuse(digest_code, f"{at}: {path}: found SHA-256 {digest}, expected {entry['sha256']}")
        return digest


def _named(entries: Sequence[str | dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"path": entry} if isinstance(entry, str) else entry for entry in entries]


def _has_zone(text: str) -> bool:
    try:
        return datetime.datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _stat_expected(name: str, value: Any) -> str | None:
    """What a value among the job's numbers should have been; None where nothing is wrong with it.

    The file is strict JSON, in which every number is finite; one that was not can only stand there as a text.
    """
    if _is_number(value):
        return None
    if "loss" in name or not isinstance(value, bool | str) or str(value).lower().lstrip("+-") in NOT_FINITE:
        return "a finite number"
    return "true" if value is False and name.endswith("valid") else None

"""Step ``prepare``: stage the audio into the run's own folder and write the manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from harness.base.files import (
    TEMPORARY_PREFIX,
    check_place,
    drop,
    file_sha256,
    remove,
    reserve,
    settle,
    show,
    write_json,
)
from harness.lane.audio import MAXIMUM_FRAMES, AudioFacts, AudioStream, bad_audio, check_regular_file, inspect_audio
from harness.lane.containers import NEED_AV, kind_of
from harness.lane.errors import LaneError
from harness.lane.settings import MORE_SUFFIXES, SUFFIXES, WITH_AV_SUFFIXES, Settings

SCHEMA = "voice_dataset/1"
NOT_READ = ("audio_undecodable", "audio_unsupported", "audio_empty")
# What names say that it is audio. Of these, a file that is none stops the run if the lane reads its kind (SUFFIXES).
NAMED_AUDIO = (
    *SUFFIXES,
    *MORE_SUFFIXES,
    *WITH_AV_SUFFIXES,
    *(".bwf .snd .spx .mp2 .mpga .3gp .amr .gsm .vox .raw .pcm .wma .ac3 .ape .wv .tta .mpc .voc".split()),
)
WAV_HEADER = 44  # bytes before the samples of a WAV that says no more than their format
MAC_NOTES = "._"  # a Mac's notes on the file whose name follows: no recording
LARGEST_MANIFEST = 100_000_000  # bytes; a longer one is cut, and then no JSON


def prepare_dataset(settings: Settings, narration: AudioFacts) -> dict[str, Any]:
    """Stage every audio file, write ``voice_dataset_manifest.json`` and return what it says: for each file what it was
    (``source``), and of what was staged the name, size, digest and length.

    ``narration``: what preflight found of AUDIO_PATH, so that it is not decoded again. Files are staged as hard links
    where the file system allows, else as copies, under ``<12 digits of the content's SHA-256>-<name>``: two files of
    one name do not meet. The entries are ordered by content, so that no name, folder or directory order can change
    what is trained on. Raises LaneError (step ``prepare``) for a bad file, or when no file is left.
    """
    sources = find_audio(settings)
    staging, root = settings.audio_dir.resolve(), settings.source_dir and settings.source_dir.resolve()
    for source in sources:
        # What an earlier run staged is removed below: it must not be the recording itself.
        if _real(source).is_relative_to(staging):
            found = f"lies in {show(settings.audio_dir)}, where the lane stages its copies and removes them"
            raise bad_audio(
                source,
                "audio_in_staging",
                found,
                "move it out, or set KNOWLEDGE_AUDIO_DIR to another folder",
                "prepare",
            )
    remove_staged(settings)
    settings.audio_dir.mkdir(parents=True, exist_ok=True)
    staged: dict[str, tuple[Path, dict[str, Any]]] = {}  # by the name in the staging folder
    skipped: list[str] = []
    left_out: list[str] = []
    narration_path = settings.audio_path.resolve()
    for source in sources:
        is_narration = _real(source) == narration_path
        try:
            if root and source.is_symlink():
                _check_link(source, root)
            facts = narration if is_narration else inspect_audio(source, "prepare")
            if facts.seconds < settings.chunk_seconds:
                found = f"lasts {facts.seconds:.3g} s; one chunk is {settings.chunk_seconds:g} s"
                raise bad_audio(
                    source, "audio_too_short", found, "remove it, or set a smaller LANE_CHUNK_SECONDS", "prepare"
                )
        except LaneError as error:
            if error.code in NOT_READ and source.suffix.lower() not in SUFFIXES and not is_narration:
                left_out.append(f"{error.cause}; {error.action}")
                continue
            error.step = "prepare"
            if is_narration:
                raise
            if not settings.skip_bad_files:
                error.action += "; or set LANE_SKIP_BAD_FILES=1 to leave such files out"
                raise
            skipped.append(error.cause)
            continue
        # What libsndfile does not read is staged as WAV: gates, pages and whoever looks read the staged files.
        needs_av = kind_of(source) in NEED_AV
        content = _decoded_to_wav(source, settings.audio_dir) if needs_av else source.resolve()
        name, entry = _entry(settings, source, content, facts, staged)
        staged[name] = (content, entry)
    if not staged:
        where = settings.source_dir or settings.audio_path
        raise LaneError(
            "prepare",
            "dataset_empty",
            f"{show(where)}: no usable recording in it" + (f" ({len(skipped)} bad)" if skipped else ""),
            "put at least one recording there, or set KNOWLEDGE_SOURCE_DIR",
        )
    entries = [entry for _, entry in staged.values()]
    entries.sort(key=lambda entry: (entry["sha256"], entry["target"]))
    manifest = {
        "schema": SCHEMA,
        "run_id": settings.run_id,
        "lane": "experimental",
        "promotable": False,
        "dataset_digest": dataset_digest([entry["sha256"] for entry in entries]),
        "entries": entries,
        "skipped": skipped,
        "left_out": left_out,
    }
    # First the manifest, then what it lists: what a run that is killed has staged is known by it, and removed.
    write_json(settings.manifest_path, manifest)
    for content, entry in staged.values():
        _stage(settings, content, entry)
    return manifest


def dataset_digest(digests: list[str]) -> str:
    """SHA-256 over the sorted content digests, one a line: names, times and folders do not enter."""
    return hashlib.sha256("".join(f"{digest}\n" for digest in sorted(digests)).encode()).hexdigest()


def same_content(manifest: dict[str, Any]) -> list[str]:
    """One line for each content that several entries of a manifest have, naming them."""
    sources: dict[str, list[str]] = {}
    for entry in manifest["entries"]:
        sources.setdefault(entry["sha256"], []).append(entry["source"])
    return [
        f"{' and '.join(sorted(names))}: the same content; each is trained on"
        for names in sources.values()
        if len(names) > 1
    ]


def find_audio(settings: Settings) -> list[Path]:
    """Every file of the source folder that is audio by its content or its name, and every link to a folder.

    The staging folder and git's own are left out. Raises LaneError for a source folder that is missing or unreadable,
    and for an AUDIO_PATH that would not be among the files.
    """
    if settings.source_dir is None:
        return [settings.audio_path]
    root = settings.source_dir
    if not root.is_dir():
        raise LaneError(
            "prepare",
            "source_missing",
            f"{show(root)}: there is no such folder",
            "create it, or set KNOWLEDGE_SOURCE_DIR",
        )
    staging, run_dir = settings.audio_dir.resolve(), settings.run_dir.resolve()

    def unreadable(error: OSError) -> None:
        raise bad_audio(
            Path(error.filename), "source_unreadable", "the folder cannot be read", "make it readable", "prepare"
        )

    found: list[Path] = []
    for folder, names, files in os.walk(root, onerror=unreadable):
        here = Path(folder)
        names[:] = [name for name in names if name != ".git" and _real(here / name) not in (staging, run_dir)]
        if settings.manifest_path.name in files and here != root:
            names.clear()  # where another run staged its copies: each recording would count twice
            continue
        found += [here / name for name in names if (here / name).is_symlink()]
        found += [here / name for name in files if not name.startswith(TEMPORARY_PREFIX) and _is_audio(here / name)]
    if settings.audio_path.exists() and settings.audio_path.resolve() not in {_real(path) for path in found}:
        raise LaneError(
            "prepare",
            "narration_outside_source",
            f"{show(settings.audio_path)} (AUDIO_PATH) is not among the audio files under"
            f" {show(root)} (KNOWLEDGE_SOURCE_DIR)",
            "unset KNOWLEDGE_SOURCE_DIR to train on AUDIO_PATH alone, or move the recording into the folder",
        )
    return sorted(found, key=os.fsencode)


def _real(path: Path) -> Path:
    """Where ``path`` leads; a loop of links leads nowhere, without an exception."""
    return Path(os.path.realpath(path))


def _is_audio(path: Path) -> bool:
    """Whether a file is audio by its name, or by its content where that can be read."""
    if path.suffix.lower() in NAMED_AUDIO and not path.name.startswith(MAC_NOTES):
        return True
    try:
        return stat.S_ISREG(path.stat().st_mode) and kind_of(path) != ""
    except OSError:
        return False


def _check_link(path: Path, root: Path) -> None:
    try:
        target = path.resolve(strict=True)
    except FileNotFoundError:
        raise bad_audio(
            path, "audio_dangling_link", "a link to a file that does not exist", "repair it", "prepare"
        ) from None
    except (OSError, RuntimeError):
        raise bad_audio(
            path, "audio_link_loop", "a loop of links", "replace it with the file itself", "prepare"
        ) from None
    if target.is_dir():
        raise bad_audio(
            path, "audio_link_to_folder", "a link to a folder; these are not followed", "copy the files in", "prepare"
        )
    if not target.is_relative_to(root):
        found = f"a link out of the source folder, to {show(target)}"
        raise bad_audio(
            path, "audio_link_outside", found, "copy the file in, or set KNOWLEDGE_SOURCE_DIR to its folder", "prepare"
        )


def remove_staged(settings: Settings) -> None:
    """Remove what an earlier run staged: of what its manifest lists, the files with the listed name and content.

    Raises NotOurs for a manifest that the lane did not write.
    """
    check_place(settings.manifest_path, SCHEMA)
    entries: list[Any] = []
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        entries = list(json.loads(settings.manifest_path.read_bytes())["entries"])
    for entry in entries:
        with contextlib.suppress(OSError, TypeError, KeyError):
            path = settings.audio_dir / entry["target"]
            is_file = _is_staged_name(entry["target"]) and stat.S_ISREG(path.lstat().st_mode)
            if is_file and file_sha256(path) == entry["sha256"]:
                path.unlink()
    remove(settings.manifest_path, SCHEMA)


def _is_staged_name(name: object) -> bool:
    """Whether ``name`` is one that `_stage` gives: a file in the staging folder itself, and nowhere else."""
    return isinstance(name, str) and re.fullmatch(r"[0-9a-f]{12}-[A-Za-z0-9._-]+", name) is not None


def _entry(
    settings: Settings, source: Path, content: Path, facts: AudioFacts, taken: Container[str]
) -> tuple[str, dict[str, Any]]:
    """(Name in the staging folder, entry in the manifest) of one recording; the name is neither taken nor there."""
    size, digest = check_regular_file(content), file_sha256(content)
    safe = re.sub(r"[^a-z0-9._-]", "_", source.stem.lower())[:80] or "audio"  # some disks tell no a from an A
    suffix = kind_of(content).lower()  # some readers go by the name
    name = f"{digest[:12]}-{safe}.{suffix}"
    count = 1
    while name in taken or os.path.lexists(settings.audio_dir / name):
        count += 1
        name = f"{digest[:12]}-{safe}-{count}.{suffix}"
    return name, {
        "source": show(source),
        "target": name,
        "bytes": size,
        "sha256": digest,
        "sample_rate": facts.sample_rate,
        "channels": facts.channels,
        "frames": facts.frames,
        "duration_seconds": round(facts.seconds, 6),
        **({} if content == source.resolve() else {"decoded_from": file_sha256(source)}),
    }


def _decoded_to_wav(source: Path, folder: Path) -> Path:
    """A recording as WAV of 24 bits, under a temporary name in ``folder``. Its bytes depend on its samples alone."""
    import soundfile

    mark = file_sha256(source)[:12]
    temporary = reserve(folder / f"{mark}.wav")
    try:
        with AudioStream(source, "prepare") as stream:
            facts = (stream.sample_rate, stream.channels, "PCM_24", None, "WAV")
            try:
                with soundfile.SoundFile(temporary, "x", *facts) as wav:
                    for block in stream.blocks():
                        wav.write(block)
            except soundfile.SoundFileError:  # "System error", which may be a full disk: the system says which
                with temporary.open("ab") as file:
                    file.write(bytes(1 << 20))
                raise
    except BaseException:
        drop(temporary)
        raise
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*-{mark}.wav"):
        if leftover != temporary and _begins_like(leftover, temporary, behind=WAV_HEADER):
            leftover.unlink()
    return temporary


def _stage(settings: Settings, real: Path, entry: Mapping[str, Any]) -> None:
    """Bring one file into the staging folder; what was decoded for it lies there already, under a temporary name."""
    digest = entry["sha256"][:12]
    if real.parent == settings.audio_dir:
        settle(real, settings.audio_dir / entry["target"], None)
        return
    for leftover in settings.audio_dir.glob(f"{TEMPORARY_PREFIX}*-{digest}"):
        if _begins_like(leftover, real):
            leftover.unlink()
    temporary = reserve(settings.audio_dir / digest)
    try:
        try:
            temporary.hardlink_to(real)
        except OSError:  # another file system, or one without hard links
            with real.open("rb") as recording, temporary.open("xb") as copy:
                shutil.copyfileobj(recording, copy, 1 << 20)
        settle(temporary, settings.audio_dir / entry["target"], None)
    except BaseException:
        drop(temporary)
        raise


def _begins_like(leftover: Path, recording: Path, behind: int = 0) -> bool:
    """Whether a file is a copy of the recording, or the beginning of one, as a run that was killed leaves it. The first
    ``behind`` bytes, which are written last, do not count."""
    if not stat.S_ISREG(leftover.lstat().st_mode):
        return False
    with leftover.open("rb") as copy, recording.open("rb") as whole:
        copy.seek(behind)
        whole.seek(behind)
        while block := copy.read(1 << 20):
            if block != whole.read(len(block)):
                return False
    return True


def read_manifest(settings: Settings) -> dict[str, Any]:
    """The manifest of an earlier ``prepare`` (RUN_PREPARE=0), its files checked. Raises LaneError (step
    ``prepare``)."""
    again = "run once with RUN_PREPARE=1 and CLEAR_PREVIOUS_ARTIFACTS=0"

    def refuse(code: str, cause: str) -> LaneError:
        return LaneError("prepare", code, cause, again)

    try:
        with settings.manifest_path.open("rb") as file:
            found = json.loads(file.read(LARGEST_MANIFEST))
        if found["schema"] != SCHEMA or not found["entries"]:
            raise ValueError("not a manifest of this schema with at least one entry")
        entries = [_checked_entry(entry) for entry in found["entries"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
        raise refuse("manifest_unusable", f"{show(settings.manifest_path)}: cannot be used ({reason})") from None
    for entry in entries:
        path = settings.audio_dir / entry["target"]
        if path.is_symlink():
            raise refuse("manifest_stale", f"{show(path)}: is a link, and the lane stages files")
        facts = inspect_audio(path, "prepare")
        decoded = {"sample_rate": facts.sample_rate, "channels": facts.channels, "frames": facts.frames}
        for key, value in {"bytes": path.stat().st_size, "sha256": file_sha256(path), **decoded}.items():
            if entry[key] != value:
                raise refuse("manifest_stale", f"{show(path)}: its {key} is {value}, the manifest says {entry[key]}")
    manifest = {
        "schema": SCHEMA,
        "run_id": settings.run_id,
        "lane": "experimental",
        "promotable": False,
        "dataset_digest": dataset_digest([entry["sha256"] for entry in entries]),
        "entries": entries,
        "skipped": [],
        "left_out": [],
    }
    write_json(settings.manifest_path, manifest)
    return manifest


def _checked_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """One entry of a manifest that was read back, with its own keys only. Raises ValueError, KeyError, TypeError."""
    if not _is_staged_name(entry["target"]):
        raise ValueError(f"{entry['target']!r} is no name of a staged file")
    for key, low, high in (("sample_rate", 1, 1 << 32), ("channels", 1, 1024), ("frames", 1, MAXIMUM_FRAMES)):
        if type(entry[key]) is not int or not low <= entry[key] <= high:
            raise ValueError(f"{key} of {entry['target']} is {entry[key]!r}")
    if not all(isinstance(entry.get(key, ""), str) for key in ("source", "sha256", "decoded_from")):
        raise ValueError(f"source, sha256 or decoded_from of {entry['target']} is no text")
    checked = {key: entry[key] for key in ("source", "target", "bytes", "sha256", "sample_rate", "channels", "frames")}
    if "decoded_from" in entry:
        checked["decoded_from"] = entry["decoded_from"]
    return {**checked, "duration_seconds": round(entry["frames"] / entry["sample_rate"], 6)}

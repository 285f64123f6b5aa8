"""Reads audio files as a stream, and refuses a file that does not hold what it says it holds.

Decoders are forgiving: libsndfile returns what it could decode of a truncated FLAC, and shortens a WAV whose header
says more than the file has, without a word. A voice trained on a third of its recording is not that voice, so what was
decoded is held against what the container itself promises (`promised_frames`, the FLAC's MD5 of its samples).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from harness.lane.errors import LaneError

SUFFIXES = (".wav", ".mp3", ".flac", ".ogg")
MINIMUM_BYTES = 5_000_000  # AUDIO_PATH must be larger
BLOCK_FRAMES = 1 << 16
MAXIMUM_FRAMES = 1 << 33  # 74 hours at 32 kHz: past it, the header is taken to be wrong
SILENCE_PEAK = 1e-3  # -60 dBFS: below it there is no voice to learn from
LFS_MAGIC = b"version https://git-lfs"


@dataclass(frozen=True)
class AudioFacts:
    """What a whole pass over a file found. ``frames`` at ``sample_rate`` Hz; ``peak`` is absolute, full scale 1."""

    frames: int
    sample_rate: int
    channels: int
    peak: float

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def show(path: Path) -> str:
    """A path as one line of plain text, whatever bytes it holds."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def bad_audio(path: Path, code: str, found: str, action: str, step: str = "preflight") -> LaneError:
    """The refusal of one audio file: ``code`` is stable, ``found`` says what is wrong with it."""
    return LaneError(step, code, f"{show(path)}: {found}", action)


def check_regular_file(path: Path) -> int:
    """Size in bytes of the regular, readable, non-empty file that ``path`` leads to; LaneError with the reason
    otherwise."""
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise bad_audio(
                path,
                "audio_dangling_link",
                f"a link to {show(path.readlink())}, which does not exist",
                "repair the link",
            ) from None
        raise bad_audio(
            path, "audio_missing", "there is no such file", "put the recording there, or set AUDIO_PATH"
        ) from None
    except NotADirectoryError:
        raise bad_audio(path, "audio_missing", "a part of the path is a file, not a folder", "set AUDIO_PATH") from None
    except PermissionError:
        raise bad_audio(path, "audio_unreadable", "permission denied", "make it readable for this user") from None
    except (OSError, ValueError) as error:
        reason = "a loop of links" if isinstance(error, OSError) and error.errno == 40 else str(error)
        raise bad_audio(path, "audio_unreadable", reason, "replace it with the recording itself") from None
    if stat.S_ISDIR(status.st_mode):
        raise bad_audio(path, "audio_is_directory", "is a folder, not a file", "set AUDIO_PATH to the recording in it")
    if not stat.S_ISREG(status.st_mode):
        raise bad_audio(path, "audio_not_a_file", "is no regular file", "set AUDIO_PATH to the recording")
    if not os.access(path, os.R_OK):
        raise bad_audio(path, "audio_unreadable", "permission denied", "make it readable for this user")
    if status.st_size == 0:
        raise bad_audio(path, "audio_empty", "is empty (0 bytes)", "put the recording there again")
    return status.st_size


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file is a git-LFS pointer: a few lines of text that stand for the real file."""
    with path.open("rb") as file:
        return file.read(len(LFS_MAGIC)) == LFS_MAGIC


@dataclass(frozen=True)
class _Promise:
    """What the container says of itself: frames (None: it does not say), MD5 of the samples, and any defect found."""

    frames: int | None = None
    md5: bytes | None = None
    bits: int = 0
    defect: str | None = None


def _read_promise(path: Path, size: int) -> _Promise:
    """Read the container's own account of its length: FLAC STREAMINFO, RIFF chunk sizes, the last Ogg page, MP3's
    Xing."""
    with path.open("rb") as file:
        head = file.read(4096)
        if head[:4] == b"fLaC" and len(head) >= 42:
            packed = int.from_bytes(head[18:26], "big")
            frames = packed & ((1 << 36) - 1)
            md5 = head[26:42]
            return _Promise(frames or None, md5 if any(md5) else None, ((packed >> 36) & 31) + 1)
        if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
            return _read_wav_promise(file, size)
        if head[:4] == b"OggS":
            return _read_ogg_promise(file, size)
        return _read_mp3_promise(head)


def _read_wav_promise(file: Any, size: int) -> _Promise:
    """Frames from the sizes of a WAV's ``fmt `` and ``data`` chunks (RIFF; sizes are 32 bit, little-endian)."""
    position, block_align = 12, 0
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"fmt " and length >= 16:
            block_align = struct.unpack("<H", file.read(16)[12:14])[0]
        if name == b"data":
            if position + 8 + length > size:
                return _Promise(
                    defect=f"its data chunk should be {length:,} bytes long, and only {size - position - 8:,} are there"
                )
            return _Promise(length // block_align if block_align else None)
        position += 8 + length + (length & 1)
    return _Promise(defect="it has no data chunk")


def _read_ogg_promise(file: Any, size: int) -> _Promise:
    """An Ogg stream that was not cut ends in a whole page with the end-of-stream flag (RFC 3533, section 6)."""
    file.seek(max(0, size - 131072))
    tail = file.read(131072)
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + 27:
        return _Promise(defect="its last page is missing: the file was cut")
    segments = tail[start + 26]
    table = tail[start + 27 : start + 27 + segments]
    if len(table) < segments or len(tail) < start + 27 + segments + sum(table) or not tail[start + 5] & 4:
        return _Promise(defect="it does not end in an end-of-stream page: the file was cut")
    return _Promise()


def _read_mp3_promise(head: bytes) -> _Promise:
    """An MP3's frame count from its Xing or Info header, where it has one; without one, it cannot say how long it
    is."""
    for magic in (b"Xing", b"Info"):
        at = head.find(magic)
        if at >= 0 and len(head) >= at + 12 and head[at + 7] & 1:
            version1 = bool(head[1] & 8) if head[0] == 0xFF else True
            return _Promise(int.from_bytes(head[at + 8 : at + 12], "big") * (1152 if version1 else 576))
    return _Promise()


class AudioStream:
    """One decoding of one file, in blocks; what was decoded is checked against the container when it ends.

    ``blocks()`` yields float64 ``[frames, channels]``, full scale 1. It raises LaneError, naming the file, for a
    non-finite sample at once, and at the end for a file that is shorter than it says, or whose samples are not those
    its MD5 was made of. Memory: one block.
    """

    def __init__(self, path: Path, step: str = "preflight") -> None:
        self.path = path
        self._step = step
        size = check_regular_file(path)
        if is_lfs_pointer(path):
            raise self._bad(
                "audio_is_lfs_pointer", f"is a git-LFS pointer of {size} bytes, not the audio", "git lfs pull"
            )
        try:
            self._promise = _read_promise(path, size)
            self._file = soundfile.SoundFile(os.fsencode(path))
        except (soundfile.SoundFileError, OSError, struct.error, UnicodeError) as error:
            reason = " ".join(str(getattr(error, "error_string", error)).split())
            raise self._bad(
                "audio_undecodable",
                f"cannot be decoded as audio ({reason.rstrip('.')})",
                "export it again as FLAC or WAV, 16 bit, mono",
            ) from None
        self.sample_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        self.facts: AudioFacts | None = None
        frames = self._promise.frames
        if self._promise.defect or (frames or 0) > MAXIMUM_FRAMES or self._file.frames > MAXIMUM_FRAMES:
            defect = (
                self._promise.defect or f"its header promises {frames or self._file.frames:,} samples, which cannot be"
            )
            self.close()
            raise self._bad("audio_cut_short", defect, "copy or export the recording again")

    def _bad(self, code: str, found: str, action: str) -> LaneError:
        return bad_audio(self.path, code, found, action, self._step)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._file.close()

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def blocks(self) -> Iterator[NDArray[np.float64]]:
        """All samples in order, once."""
        total, peak = 0, 0.0
        integer = self._promise.md5 is not None
        digest = hashlib.md5(usedforsecurity=False)
        while True:
            try:
                block = self._file.read(BLOCK_FRAMES, dtype="int32" if integer else "float64", always_2d=True)
            except (soundfile.SoundFileError, OSError) as error:
                reason = " ".join(str(getattr(error, "error_string", error)).split())
                raise self._bad(
                    "audio_damaged",
                    f"stops decoding after {total:,} samples ({reason.rstrip('.')})",
                    "copy or export the recording again",
                ) from None
            if not len(block):
                break
            if integer:
                digest.update(_flac_bytes(block, self._promise.bits))
                block = block / 2.0**31
            elif not np.isfinite(block).all():
                row = int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
                raise self._bad(
                    "audio_not_finite",
                    f"sample {total + row:,} is {block[row][~np.isfinite(block[row])][0]}",
                    "export it again; a recording has no NaN or infinite samples",
                )
            total += len(block)
            with contextlib.suppress(ValueError):
                peak = max(peak, float(np.abs(block).max()))
            yield block
        self._check_end(total, digest.digest())
        self.facts = AudioFacts(total, self.sample_rate, self.channels, peak)

    def _check_end(self, total: int, md5: bytes) -> None:
        promised = self._promise.frames if self._promise.frames is not None else self._file.frames
        if total == 0:
            raise self._bad("audio_no_samples", "holds no samples", "put the recording there again")
        # An MP3's count includes the encoder's padding, which decoders cut off: up to three MPEG frames.
        slack = 3 * 1152 if self._file.format == "MP3" else 0
        if abs(total - promised) > slack and not (slack and promised == 0):
            raise self._bad(
                "audio_cut_short",
                f"its header promises {promised:,} samples, and {total:,} can be decoded",
                "copy or export the recording again",
            )
        if self._promise.md5 is not None and md5 != self._promise.md5:
            raise self._bad(
                "audio_damaged",
                f"its samples have MD5 {md5.hex()}, and its header says {self._promise.md5.hex()}",
                "copy it again; if the samples are right and the header is wrong, re-encode it: flac -d, then flac",
            )


def _flac_bytes(block: NDArray[np.int32], bits: int) -> bytes:
    """Samples as FLAC's MD5 sees them: interleaved, little-endian, in the fewest whole bytes (RFC 9639, section
    8.2)."""
    width = (bits + 7) // 8
    samples = np.ascontiguousarray(block >> (32 - bits), dtype="<i4")
    if width == 4:
        return samples.tobytes()
    if width == 2:
        return samples.astype("<i2").tobytes()
    return samples.view(np.uint8).reshape(-1, 4)[:, :width].tobytes()


def inspect_audio(path: Path, step: str = "preflight") -> AudioFacts:
    """Decode a whole file once, as a stream, with all of AudioStream's checks; LaneError for silence too."""
    with AudioStream(path, step) as stream:
        for _ in stream.blocks():
            pass
    facts = stream.facts
    assert facts is not None  # blocks() ran to its end
    if facts.peak < SILENCE_PEAK:
        found = "is all silence" if facts.peak == 0 else f"is near silence (peak {facts.peak:.1e} of full scale)"
        raise bad_audio(path, "audio_silent", found, "record it again, louder", step)
    return facts

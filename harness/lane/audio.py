"""Reads audio files as a stream, and refuses a file that does not hold what it says it holds.

A voice trained on a third of its recording is not that voice, so what was decoded is held against what the container
itself promises (containers/): its length, and the FLAC's MD5 of its samples.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from harness.base.files import is_lfs_pointer, show
from harness.lane import pyav
from harness.lane.containers import MANY_CODINGS, NEED_AV, DefectError, kind_of, read_promise
from harness.lane.errors import LaneError, shortage
from harness.lane.settings import SUFFIXES as SUFFIXES

MINIMUM_BYTES = 5_000_000  # AUDIO_PATH must be larger
BLOCK_SAMPLES = 1 << 16  # of all channels together
MAXIMUM_FRAMES = 1 << 33  # 74 hours at 32 kHz: past it, the header is taken to be wrong
SAMPLE_RATES = (8_000, 192_000)  # Hz; what resampling costs grows without bound outside
SILENCE = 1e-3  # -60 dBFS: a swing below it holds no voice to learn from
AGAIN = "copy or export the recording again; FLAC or WAV, 16 bit, mono is best"
NOT_DECODED = (soundfile.SoundFileError, OSError, ValueError)  # soundfile's, the system's, PyAV's
LOUDEST = 16.0  # +24 dB: float samples beyond it are on another scale, often that of 16-bit integers


@dataclass(frozen=True)
class AudioFacts:
    """What a whole pass over a file found. ``frames`` at ``sample_rate`` Hz; the mean of the channels lies from
    ``lowest`` to ``highest``, full scale 1."""

    frames: int
    sample_rate: int
    channels: int
    lowest: float
    highest: float

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


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
        reason = (error.strerror or "?") if isinstance(error, OSError) else str(error)
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            reason = "a loop of links"
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


class _From(io.FileIO):
    """The bytes of a file from ``start`` to ``end`` (0: its end), without its name: libsndfile goes by the content."""

    def __init__(self, path: Path, start: int, end: int = 0) -> None:
        super().__init__(path)
        self.name = ""
        self._start, self._end = start, end or super().seek(0, os.SEEK_END)
        self.seek(0)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: self._start, os.SEEK_CUR: super().tell(), os.SEEK_END: self._end}[whence]
        # To where a header leads libsndfile, be it nowhere: then nothing moves, as with a file of the system's.
        if self._start <= base + offset <= self._end:
            super().seek(base + offset)
        return self.tell()

    def tell(self) -> int:
        return super().tell() - self._start

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        return super().readinto(view[: max(0, self._end - super().tell())])


class AudioStream:
    """One decoding of one file, in blocks; what was decoded is checked against the container when it ends.

    ``promised``: samples a channel, by the file's own account. ``blocks()`` yields float64 ``[frames, channels]``, full
    scale 1. It raises LaneError, naming the file, for a non-finite sample at once, and at the end for a file that is
    shorter than it says, or whose samples are not those its MD5 was made of. Memory: one block.
    """

    def __init__(self, path: Path, step: str = "preflight") -> None:
        self.path = path
        self._step = step
        size = check_regular_file(path)
        if is_lfs_pointer(path):
            raise self._bad(
                "audio_is_lfs_pointer", f"is a git-LFS pointer of {size} bytes, not the audio", "git lfs pull"
            )
        kind = kind_of(path)
        through_av = kind in NEED_AV and pyav.is_installed()
        try:
            self._promise = read_promise(path, size, through_av)
            self._raw = _From(path, self._promise.start, self._promise.end)
        except DefectError as defect:
            raise self._bad(defect.code, str(defect), _mend(path, defect.code, defect.at)) from None
        self._file: Any
        try:
            self._file = pyav.AVFile(path, self._promise.packets) if through_av else soundfile.SoundFile(self._raw)
        except NOT_DECODED as error:
            self._raw.close()
            if shortage(error):
                raise
            reason = _reason(error)
            if kind in MANY_CODINGS:
                found = f"is a whole {kind}, and libsndfile does not read what is in it ({reason})"
                raise self._bad("audio_unsupported", found, _mend(path, "audio_unsupported")) from None
            raise self._bad("audio_undecodable", f"cannot be decoded as audio ({reason})", AGAIN) from None
        self.sample_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        self.facts: AudioFacts | None = None
        self.promised = self._file.frames if self._promise.frames is None else self._promise.frames
        self._slack = self._file.slack if through_av else self._promise.slack
        low, high = SAMPLE_RATES
        if max(self.promised, 0 if self._slack else self._file.frames) > MAXIMUM_FRAMES:
            self.close()
            raise self._bad("audio_cut_short", f"its header promises {self.promised:,} samples, which cannot be", AGAIN)
        if not low <= self.sample_rate <= high:
            self.close()
            found = f"has a sample rate of {self.sample_rate:,} Hz; accepted: {low:,} to {high:,} Hz"
            raise self._bad("audio_sample_rate", found, "export it again at 32,000 Hz")

    def _bad(self, code: str, found: str, action: str) -> LaneError:
        return bad_audio(self.path, code, found, action, self._step)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._file.close()
        self._raw.close()

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def blocks(self) -> Iterator[NDArray[np.float64]]:
        """All samples in order, once."""
        total, lowest, highest = 0, math.inf, -math.inf
        md5 = hashlib.md5(usedforsecurity=False) if self._promise.md5 else None
        frames = max(1, BLOCK_SAMPLES // self.channels)
        while True:
            try:
                block = self._file.read(frames, dtype="int32" if md5 else "float64", always_2d=True)
            except NOT_DECODED as error:
                if shortage(error):
                    raise
                reason = _reason(error)
                raise self._bad("audio_damaged", f"stops decoding after {total:,} samples ({reason})", AGAIN) from None
            if not len(block):
                break
            if md5:
                md5.update(_flac_bytes(block, self._promise.bits))
                block = block / 2.0**31
            elif not np.isfinite(block).all():
                row = int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
                raise self._bad(
                    "audio_not_finite",
                    f"sample {total + row:,} is {block[row][~np.isfinite(block[row])][0]}",
                    "export it again; a recording has no NaN or infinite samples",
                )
            total += len(block)
            mixed = block.mean(axis=1)  # what is trained on: two channels of opposite sign are silence
            lowest, highest = min(lowest, float(mixed.min())), max(highest, float(mixed.max()))
            yield block
        if total == 0 and self.promised:
            found = f"says that it holds no samples, and {self.promised:,} follow: it was written to a pipe or cut off"
            raise self._bad("audio_no_samples", found, _mend(self.path, "audio_unverifiable"))
        if total == 0:
            raise self._bad("audio_no_samples", "holds no samples", "put the recording there again")
        if abs(total - self.promised) > self._slack:
            found = f"should hold {self.promised:,} samples by its own account, and {total:,} can be decoded"
            raise self._bad("audio_cut_short", found, AGAIN)
        if md5 and md5.digest() != self._promise.md5:
            raise self._bad(
                "audio_damaged",
                f"its samples have MD5 {md5.hexdigest()}, and its header says {(self._promise.md5 or b'').hex()}",
                "copy it again; if the samples are right and the header is wrong, re-encode it: flac -d, then flac",
            )
        if rest := self._promise.rest:
            raise self._bad(rest.code, str(rest), _mend(self.path, rest.code, rest.at))
        self.facts = AudioFacts(total, self.sample_rate, self.channels, lowest, highest)


def _reason(error: BaseException) -> str:
    """What a decoder says of a file, in one line, without the name that the message has already."""
    return " ".join(str(getattr(error, "error_string", getattr(error, "strerror", None) or error)).split()).rstrip(".")


def _mend(path: Path, code: str, at: int = 0) -> str:
    """The next command for a file that may be whole, and that the lane cannot read whole. ``at``: where something
    else begins, of which a decoder may see nothing."""
    if at:
        first, second = (shlex.quote(f"{show(path)}.{part}{show(Path(path.suffix))}") for part in (1, 2))
        whole = shlex.quote(show(path))
        return f"cut it there: head -c {at} {whole} > {first}; tail -c +{at + 1} {whole} > {second}"
    words = {
        "audio_unsupported": "convert it: ",
        "audio_unverifiable": "encode it again: ",
        "audio_more_than_promised": "make one recording of what is in it, and hear whether it is all there: ",
    }
    name = show(path)
    if code not in words:
        return AGAIN
    command = f"{words[code]}ffmpeg -i {shlex.quote(name)} -vn {shlex.quote(name + '.flac')}"
    can_av = code == "audio_unsupported" and kind_of(path) in NEED_AV and not pyav.is_installed()
    return f"{command}; or install PyAV, which reads it: {pyav.INSTALL}" if can_av else command


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
    peak = max(-facts.lowest, facts.highest)
    if peak > LOUDEST:
        found = f"has samples of {peak:.3g} times full scale; float samples lie from -1 to 1"
        raise bad_audio(path, "audio_off_scale", found, "export it again as 16 bit, or normalised float", step)
    # A recording that is only an offset (all samples the same) is as silent as zeros.
    if facts.highest - facts.lowest < 2 * SILENCE and (peak < SILENCE or facts.frames > 1):
        found = "is all silence" if peak == 0 else f"is near silence (from {facts.lowest:.1e} to {facts.highest:.1e})"
        raise bad_audio(path, "audio_silent", found, "record it again, louder", step)
    return facts

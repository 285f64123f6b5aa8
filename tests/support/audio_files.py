"""Makes audio files, whole and broken: real encodings by libsndfile, whose bytes are then changed here."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 32_000


def voice(seconds: float, rate: int = RATE, channels: int = 1, seed: int = 0) -> NDArray[np.float64]:
    """Noise in the rhythm of syllables, peak below 0.9: ``[frames, channels]``. Noise, so that a FLAC of it is big."""
    random = np.random.default_rng(seed)
    frames = int(seconds * rate)
    loudness = 0.3 + 0.6 * np.abs(np.sin(np.arange(frames) * (2 * np.pi * 2.1 / rate)))
    return random.uniform(-1, 1, (frames, channels)) * loudness[:, None]


def write(path: Path, samples: NDArray[np.float64], rate: int = RATE, **options: Any) -> Path:
    """Write an audio file; the format follows the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options.setdefault("format", {"mp3": "MP3", "flac": "FLAC", "ogg": "OGG"}.get(path.suffix[1:], "WAV"))
    with path.open("wb") as file, soundfile.SoundFile(file, "w", rate, samples.shape[1], **options) as sound:
        for start in range(0, len(samples), rate):  # libsndfile's Vorbis encoder crashes on a minute at once
            sound.write(samples[start : start + rate])
    return path


def changed(source: Path, target: Path, at: int, new: bytes) -> Path:
    """A copy with the bytes from ``at`` on replaced (``at`` below 0: from the end)."""
    data = bytearray(source.read_bytes())
    at %= len(data)
    data[at : at + len(new)] = new
    target.write_bytes(data)
    return target


def damaged(source: Path, target: Path, at: float, count: int = 64) -> Path:
    """A copy with ``count`` bytes inverted, from the fraction ``at`` of the file on."""
    data = source.read_bytes()
    start = int(len(data) * at)
    return changed(source, target, start, bytes(byte ^ 0xFF for byte in data[start : start + count]))


def cut(source: Path, target: Path, keep: float) -> Path:
    """The first part of a file."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * keep)])
    return target


def gap(source: Path, target: Path, at: float, count: int = 5000) -> Path:
    """A copy with ``count`` bytes left out."""
    data = source.read_bytes()
    start = int(len(data) * at)
    target.write_bytes(data[:start] + data[start + count :])
    return target


def without_page(source: Path, target: Path, number: int) -> Path:
    """An Ogg file without one whole page; all others are sound."""
    data, pages, position = source.read_bytes(), [], 0
    while position < len(data):
        segments = data[position + 26]
        length = 27 + segments + sum(data[position + 27 : position + 27 + segments])
        pages.append(data[position : position + length])
        position += length
    target.write_bytes(b"".join(pages[:number] + pages[number + 1 :]))
    return target


def flac_promising(source: Path, target: Path, frames: int) -> Path:
    """A FLAC whose STREAMINFO says that it has ``frames`` samples."""
    packed = int.from_bytes(source.read_bytes()[18:26], "big") >> 36 << 36 | frames
    return changed(source, target, 18, packed.to_bytes(8, "big"))


def flac_with_md5(source: Path, target: Path, md5: bytes) -> Path:
    return changed(source, target, 26, md5)


def wav(
    path: Path,
    samples: NDArray[Any],
    rate: int = RATE,
    *,
    junk: int = 0,
    says: int | None = None,
    format_tag: int | None = None,
) -> Path:
    """A WAV by hand: int16 or float32 ``[frames, channels]``; ``junk``: bytes of another chunk before the samples;
    ``says``: the length that its data chunk claims."""
    tag = format_tag or (3 if samples.dtype.kind == "f" else 1)
    width, channels = samples.dtype.itemsize, samples.shape[1]
    body = struct.pack("<HHIIHH", tag, channels, rate, rate * width * channels, width * channels, 8 * width)
    data = samples.tobytes()
    chunks = b"fmt " + struct.pack("<I", len(body)) + body
    if junk:
        chunks += b"JUNK" + struct.pack("<I", junk) + bytes(junk)
    chunks += b"data" + struct.pack("<I", len(data) if says is None else says) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", min(4 + len(chunks), 0xFFFFFFFF)) + b"WAVE" + chunks)
    return path


def without_xing(source: Path, target: Path) -> Path:
    """An MP3 without its first frame, which is the one that says how long the file is."""
    data = source.read_bytes()
    start = data.index(data[:2], 4)
    while data[start + 1] != data[1]:
        start = data.index(data[:2], start + 1)
    assert b"Xing" in data[:start] or b"Info" in data[:start]
    target.write_bytes(data[start:])
    return target

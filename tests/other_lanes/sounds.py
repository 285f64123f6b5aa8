"""What the example lanes share: 16-bit mono WAV files read with the standard library, as tokens of 16 levels."""

from __future__ import annotations

import hashlib
import wave
from pathlib import Path

import numpy as np

LEVELS = 16


def files_in(path: Path) -> list[Path]:
    """The WAV files, in an order that depends on what they hold alone."""
    found = sorted(path.rglob("*.wav")) if path.is_dir() else [path]
    return sorted(found, key=lambda file: hashlib.sha256(file.read_bytes()).hexdigest())


def tokens_of(path: Path) -> np.ndarray:
    """The samples, int64 in [0, LEVELS)."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int64)
    return (samples + 32768) * LEVELS // 65536


def write_sound(path: Path, frequency: float, seconds: float = 0.3) -> Path:
    """A tone that dies away, and its WAV file."""
    time = np.arange(round(8000 * seconds)) / 8000
    samples = np.round(30000 * np.sin(2 * np.pi * frequency * time) * np.exp(-4 * time)).astype("<i2")
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())
    return path

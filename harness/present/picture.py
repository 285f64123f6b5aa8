"""Spectrograms as PNG: an FFT, a colour map and zlib, so that a page needs no plotting library."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Wave = npt.NDArray[np.floating[Any]]

WIDTH, HEIGHT = 512, 160  # pixels: time, frequency
TOP_HZ = 8000
RANGE_DB = 70
_LEVELS = 64  # more cannot be told apart, and fewer compress better
_WINDOW = 1024
# Dark to bright, monotone in lightness, so that it reads in grey and with any colour vision.
_ANCHORS = np.array([[13, 12, 34], [62, 28, 109], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]])


def spectrogram_png(wave: Wave, rate: int) -> bytes:
    """The PNG of one channel's spectrogram: time to the right, 0 to TOP_HZ upwards, RANGE_DB below the loudest spot."""
    power = _power(np.nan_to_num(np.asarray(wave, dtype=np.float64)), rate)
    loudest = float(np.max(power))
    db = 10 * np.log10(np.maximum(power, loudest * 1e-12) + 1e-30)
    level = np.clip((db - float(np.max(db))) / RANGE_DB + 1, 0, 1)
    if loudest <= 0:
        level[:] = 0
    return png((level[::-1] * (_LEVELS - 1)).round().astype(np.uint8), _palette())


def png(pixels: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]) -> bytes:
    """An indexed PNG: `pixels[row, column]` are rows of `palette[index, 3]`."""
    height, width = pixels.shape
    rows = np.zeros((height, width + 1), np.uint8)  # column 0: the row's filter, none
    rows[:, 1:] = pixels
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        (b"PLTE", palette.tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _power(wave: npt.NDArray[np.float64], rate: int) -> npt.NDArray[np.float64]:
    """`[HEIGHT, WIDTH]`: the mean power in each frequency band (from 0 up) around each instant."""
    padded = np.concatenate([np.zeros(_WINDOW // 2), wave, np.zeros(_WINDOW)])
    starts = np.linspace(0, len(wave), WIDTH, endpoint=False).astype(int)
    frames = padded[starts[:, None] + np.arange(_WINDOW)] * np.hanning(_WINDOW)
    spectrum = np.abs(np.fft.rfft(frames, axis=1)) ** 2  # [WIDTH, bins]
    centres = np.linspace(0, min(TOP_HZ, rate / 2), HEIGHT, endpoint=False) * _WINDOW / rate
    low = np.floor(centres).astype(int)
    part = centres - low
    bands = spectrum[:, low] * (1 - part) + spectrum[:, np.minimum(low + 1, spectrum.shape[1] - 1)] * part
    result: npt.NDArray[np.float64] = bands.T
    return result


def _palette() -> npt.NDArray[np.uint8]:
    places = np.linspace(0, len(_ANCHORS) - 1, _LEVELS)
    columns = [np.interp(places, np.arange(len(_ANCHORS)), _ANCHORS[:, c]) for c in range(3)]
    return np.stack(columns, axis=1).round().astype(np.uint8)

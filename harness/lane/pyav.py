"""PyAV, where it is installed, decodes what libsndfile does not: AAC and ALAC, in .m4a, .mp4, .mov and .aac.

AAC has no checksum. What can be held against the file: each packet that its tables promise is there, and each is
decoded without an error. A flipped bit within a packet can decode to another sound without a word.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

INSTALL = f"{shlex.quote(sys.executable)} -m pip install av"  # the extra `av` of this package
BLOCK_PACKETS = 64
DECODER_BYTES = 1 << 26  # more than a decoder of a recording needs


def is_installed() -> bool:
    """Whether PyAV itself, and no placeholder for it, can be imported."""
    try:
        import av
    except ImportError:
        return False
    return hasattr(av, "__version__")


class AVFile:
    """The one audio stream of a file, read once from its beginning, as soundfile.SoundFile reads one.

    ``packets``: how many the container promises (0: as many as its own table says). ``frames``: samples a channel, to
    within ``slack``, since encoders add some at both ends. Raises ValueError, saying what was found, for a file
    that is cut off, damaged, or has not exactly one audio stream; MemoryError where the machine has none left.
    """

    def __init__(self, path: Path, packets: int = 0) -> None:
        import av

        form = "aac" if packets else "mov"  # else FFmpeg guesses, from all it knows
        self._container: Any = _asked(av.open, str(path.resolve()), format=form, metadata_errors="replace")
        try:
            streams = self._container.streams.audio
            if len(streams) != 1:
                raise ValueError(f"it has {len(streams)} audio streams, and one is expected")
            self._stream = streams[0]
            if self._stream.codec_context is None:
                raise ValueError("PyAV has no decoder for what is in it")
            self._stream.codec_context.options = {"err_detect": "explode"}
            is_pcm = self._stream.codec_context.name.startswith("pcm_")  # whose table counts samples
            self._promised = packets or (0 if is_pcm else int(self._stream.frames))
            duration, unit = self._stream.duration, self._stream.time_base
            if not packets and not (self._stream.frames and duration and unit):
                raise ValueError("it does not say how much it holds: it was written as a live stream")
            self._seconds = 0.0 if packets or not duration or not unit else float(duration * unit)
            self._blocks = self._decoded()
            self._first = self._next()
            if self._first is None:
                raise ValueError("nothing in it can be decoded")
        except BaseException:
            self._container.close()
            raise

    def _decoded(self) -> Iterator[NDArray[np.float64]]:
        """Blocks of ``[frames, channels]``, full scale 1. Sets what the first frame says: rate, channels, lengths."""
        count = 0
        block: list[NDArray[np.float64]] = []
        for packet in self._container.demux(self._stream):
            count += packet.size > 0
            if packet.size and packet.is_corrupt:
                raise ValueError(f"its packet {count} is damaged")
            for frame in packet.decode():
                samples = _samples(frame)
                if not hasattr(self, "samplerate"):
                    self.samplerate, self.channels = int(frame.sample_rate), samples.shape[1]
                    promised = self._seconds * self.samplerate or self._promised * len(samples)
                    self.frames, self.slack = round(promised), 4 * len(samples) if self._promised else 0
                if (frame.sample_rate, samples.shape[1]) != (self.samplerate, self.channels):
                    raise ValueError(f"its sample rate or channels change at its packet {count}")
                block.append(samples)
            if len(block) >= BLOCK_PACKETS:
                yield np.concatenate(block)
                block = []
        if self._promised and count != self._promised:
            raise ValueError(f"it promises {self._promised:,} packets, and {count:,} are there")
        if block:
            yield np.concatenate(block)

    def _next(self) -> NDArray[np.float64] | None:
        """The next block; None at the end."""
        block: NDArray[np.float64] | None = _asked(next, self._blocks, None)
        return block

    def read(self, _frames: int, dtype: str = "float64", always_2d: bool = True) -> NDArray[np.float64]:
        """The next block, ``[frames, channels]`` of float64, of the decoder's own length; empty at the end."""
        first, self._first = self._first, None
        block = first if first is not None else self._next()
        return np.zeros((0, self.channels)) if block is None else block

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._container.close()


def _asked(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What ``function``, which asks PyAV, returns. Whatever it raises becomes a ValueError that says the same, a
    MemoryError only where it is the file that asks for too much."""
    try:
        return function(*arguments, **options)
    except Exception as error:  # FFmpeg has some fifty, and PyAV raises Python's own beside them
        if type(error) is ValueError:
            raise
        said = error
    if isinstance(said, MemoryError):
        bytes(DECODER_BYTES)  # a MemoryError where the machine has no more
        raise ValueError("it asks for more memory than a recording needs")
    raise ValueError(getattr(said, "strerror", None) or f"{type(said).__name__}: {said}") from said


def _samples(frame: Any) -> NDArray[np.float64]:
    """``[samples, channels]`` of a decoded frame, full scale 1."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    scale = 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max) + 1
    result: NDArray[np.float64] = values.T.astype(np.float64) / scale
    return result

"""Step ``tokenise``: real EnCodec tokens of the staged audio, each file decoded once, as a stream."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.base.files import TOKENS_MARK, atomic_write
from harness.lane.audio import AudioStream
from harness.lane.errors import LaneError
from harness.lane.memory import find_trim
from harness.lane.ranks import ALONE, Ranks
from harness.lane.resample import Resampler
from harness.lane.settings import Settings
from harness.numerics.digest import array_digest, tensor_digest

# Chunks encoded at once, each by threads of its own: two threads that share a chunk take 1.25 times as long, and four
# chunks at once, which leave the cache, 1.3 times (measured, as is that the tokens are the same).
AT_ONCE = 2
# Seconds of audio after which free memory is given back. glibc (seen with 2.36) may not reuse what an encoding frees:
# from some chunk on, which one is chance, the process grew by 3 MB a chunk, to 2.5 GB on the way through three hours.
TRIM_SECONDS = 180


class _NotFinite(Exception):
    """The codec's encoder gave a value that is not finite."""


@dataclass(frozen=True)
class TokenSet:
    """The tokens of all chunks: ``codes`` int64 ``[chunks, codebooks, frames]``, and where each chunk came from.

    ``sources``: for each chunk the SHA-256 of its file and its first sample at the model's sample rate; ``samples``:
    how many a chunk has.
    """

    codes: torch.Tensor
    sources: list[tuple[str, int]]
    samples: int

    def array(self) -> NDArray[np.int16]:
        """The codes as they are written and digested; a codebook has at most 2048 entries."""
        return self.codes.numpy().astype(np.int16)

    def digest(self) -> str:
        """SHA-256 of ``array()`` as one tensor named ``tokens``."""
        return tensor_digest({"tokens": self.array()})

    def chunk_digests(self) -> list[str]:
        """16 hex digits for each chunk's tokens: names the chunk in which two runs part."""
        return [array_digest("chunk", chunk)[:16] for chunk in self.array()]


def chunk_starts(total: int, chunk: int, stride: int) -> list[int]:
    """First samples of the chunks of a signal of ``total`` samples (at least ``chunk``); the last chunk ends at its
    end."""
    starts = list(range(0, total - chunk + 1, stride))
    if starts[-1] + chunk < total:
        starts.append(total - chunk)
    return starts


def read_chunks(
    path: Path, sample_rate: int, chunk: int, stride: int, frames: int
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """(first sample, ``[chunk]`` float64 mono samples) of each chunk of a file, at ``sample_rate``.

    ``frames``: the file's length at its own rate, from the manifest. Channels are averaged. Memory: one chunk, what the
    resampler needs around it, and one block. Raises LaneError if the file is not as long as that.
    """
    with AudioStream(path, "tokenise") as stream:
        resampler = Resampler(stream.sample_rate, sample_rate)
        starts = iter(chunk_starts(resampler.output_length(frames), chunk, stride))
        buffer, first, start = np.empty(0), 0, next(starts, None)
        for block in stream.blocks():
            buffer = np.concatenate([buffer, block.mean(axis=1)])
            while start is not None:
                low, high = resampler.source_range(start, chunk)
                if min(high, frames) > first + len(buffer):
                    break
                piece = np.pad(buffer[max(low - first, 0) : high - first], (max(-low, 0), 0), mode="edge")
                piece = np.pad(piece, (0, high - low - len(piece)), mode="edge")
                yield start, resampler.resample(piece, low, start, chunk)
                start = next(starts, None)
            # What no later chunk needs is let go. (With no chunk left, all is.)
            keep = len(buffer) if start is None else max(0, resampler.source_range(start, 1)[0] - first)
            buffer, first = buffer[min(keep, len(buffer)) :], first + min(keep, len(buffer))
        if stream.facts is None or stream.facts.frames != frames:
            found = f"{stream.facts.frames:,}" if stream.facts else "other"
            cause = f"{path.name}: the manifest says {frames:,} samples, and {found} were decoded"
            raise LaneError("tokenise", "audio_changed", cause, "run again with RUN_PREPARE=1")


def tokenise(
    settings: Settings,
    manifest: dict[str, Any],
    codec: Any,
    report: Callable[[int, int], None] = lambda done, total: None,
    ranks: Ranks = ALONE,
) -> TokenSet:
    """Encode every chunk of every staged file with the model's own codec.

    ``codec``: audiocraft's CompressionModel, in the dtype in which it shall compute: float64 gives the same tokens in
    every numeric class, float32 flips up to 0.2 % of them at near-ties (measured; DESIGN in the first commit's issue).
    ``report(done, total)`` is called as chunks are done. Of several ``ranks`` each encodes a part, and has all of them
    in the end. Raises LaneError (step ``tokenise``).
    """
    rate = int(codec.sample_rate)
    hop = round(rate / codec.frame_rate)
    # Whole frames, so that every chunk has the same number of tokens and no frame sees padding that another does not.
    chunk = max(1, round(settings.chunk_seconds * codec.frame_rate)) * hop
    stride = max(1, round(settings.stride_seconds * rate))
    parameter = next(codec.parameters())
    lengths = [Resampler(entry["sample_rate"], rate).output_length(entry["frames"]) for entry in manifest["entries"]]
    for entry, length in zip(manifest["entries"], lengths, strict=True):
        if length < chunk:
            cause = f"{entry['target']}: {length:,} samples at {rate} Hz; one chunk is {chunk:,}"
            raise LaneError(
                "tokenise", "audio_too_short", cause, "remove the file, or set a smaller LANE_CHUNK_SECONDS"
            )
    total = sum(len(chunk_starts(length, chunk, stride)) for length in lengths)
    mine = set(ranks.mine(range(total)))

    def all_chunks() -> Iterator[tuple[str, int, NDArray[np.float64]]]:
        for entry in manifest["entries"]:
            path = settings.audio_dir / entry["target"]
            for start, samples in read_chunks(path, rate, chunk, stride, entry["frames"]):
                yield entry["sha256"], start, samples

    def check_latent(module: Any, arguments: Any, latent: torch.Tensor) -> None:
        # The nearest codebook entry of a NaN is some entry: without this, the tokens would look like any others.
        if not bool(torch.isfinite(latent).all()):
            raise _NotFinite

    def encode(source: tuple[str, int], samples: NDArray[np.float64]) -> torch.Tensor:
        wave = torch.from_numpy(samples)[None, None].to(parameter.device, parameter.dtype)
        try:
            with torch.no_grad():
                codes: torch.Tensor = codec.encode(wave.expand(-1, codec.channels, -1))[0]
        except _NotFinite:
            near = f"{source[0][:12]} from sample {source[1]:,} on"
            raise LaneError(
                "tokenise",
                "non_finite",
                f"the codec's encoder gave a value that is not finite, in audio {near}",
                "look for damage in the model's compression_state_dict.bin",
                status="failed",
                exit_code=2,
            ) from None
        return codes.cpu()

    watch = (codec.encoder if hasattr(codec, "encoder") else codec.model.encoder).register_forward_hook(check_latent)
    codes: list[torch.Tensor] = []
    sources: list[tuple[str, int]] = []
    encoding: deque[Future[torch.Tensor]] = deque()
    threads = torch.get_num_threads()
    at_once = min(threads, AT_ONCE)
    trim, trim_every = find_trim(), max(1, round(TRIM_SECONDS * rate / chunk))
    workers = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(threads // at_once,))
    try:
        for digest, start, samples in all_chunks():
            sources.append((digest, start))
            if len(sources) - 1 not in mine:
                continue
            encoding.append(workers.submit(encode, sources[-1], samples))
            while len(encoding) > (at_once if len(codes) + len(encoding) < len(mine) else 0):
                codes.append(encoding.popleft().result())
                if trim is not None and len(codes) % trim_every == 0:
                    trim(0)
                report(len(codes), len(mine))
    finally:
        # A run that ends early does not wait for chunks that are being encoded.
        workers.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(threads)
        watch.remove()
    if ranks.world == 1:
        return TokenSet(torch.cat(codes), sources, chunk)
    whole = torch.zeros(total, codec.num_codebooks, chunk // hop, dtype=torch.int64)
    if codes:
        ranks.mine(whole).copy_(torch.cat(codes))
    ranks.sum_(whole)
    return TokenSet(whole, sources, chunk)


def write_tokens(path: Path, tokens: TokenSet) -> None:
    """Write ``tokens.npy``: int16 ``[chunks, codebooks, frames]``, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, tokens.array(), allow_pickle=False)
    blanks = b" " * len(TOKENS_MARK) + b"\n"  # that fill the header up
    atomic_write(path, buffer.getvalue().replace(blanks, TOKENS_MARK + b"\n", 1))

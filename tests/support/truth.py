"""The first batch worked out without the lane: audiocraft's model in float64, and its own tokens of the audio on the
disk."""

from __future__ import annotations

import math
import os
import warnings
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from harness.evidence import RunEvidence
from harness.lane.environment import let_warnings_be_warnings

Array = NDArray[np.float64]
ZEROS, ROLLOFF = 24, 0.945  # of julius' filter: zero crossings to each side, and the part of the band that is kept
AT_ONCE = 1 << 14  # samples that are worked out at once
# Seconds decoded before what is wanted: after a seek an MP3 or Opus decoder needs the frames before to be itself again.
RUN_IN = 1.0
RESAMPLED = 8  # chunks of each sample rate that is not the model's, whose tokens are worked out
SHIPPED_MODEL = Path(__file__).resolve().parents[2] / "data" / "musicgen_nano"


def load_model() -> Any:
    """The MusicGen that the run was asked to use, as audiocraft loads it, in float64 on the CPU."""
    import torch

    from harness.lane.audiocraft_import import prepare_audiocraft
    from harness.lane.model import identify_model

    torch.set_num_threads(1)
    name = os.environ.get("LANE_MODEL") or str(SHIPPED_MODEL)
    own = Path(name)
    prepare_audiocraft(transformers=own != SHIPPED_MODEL and identify_model(str(own))[1])
    from audiocraft.models.musicgen import MusicGen
    from audiocraft.modules.transformer import set_efficient_attention_backend

    set_efficient_attention_backend("torch")
    with warnings.catch_warnings():  # a user's -W error is not for what audiocraft and torch warn of
        let_warnings_be_warnings()
        model = MusicGen.get_pretrained(name, device="cpu")
    model.lm.double()
    model.compression_model.double()
    return model


def resampled(path: Path, rate: int, start: int, count: int) -> Array:
    """Samples [start, start + count) of a recording at ``rate`` Hz, the mean of its channels: float64 ``[count]``.

    Each is a sum over the source around its time, and is the same whatever else is asked for.
    """
    own = soundfile.info(path).samplerate
    if own == rate:
        return stretch(path, start, start + count)
    kernels = filters(own, rate)
    width = kernels.shape[1] // 2
    # The source's sample before each, and how far behind it, in as many parts as there are kernels.
    places, phases = np.divmod(np.arange(start, start + count) * (own // math.gcd(own, rate)), len(kernels))
    source = stretch(path, int(places[0]) - width, int(places[-1]) + width + 1)
    windows = np.lib.stride_tricks.sliding_window_view(source, 2 * width + 1)
    rows = np.array_split(np.arange(count), count // AT_ONCE + 1)
    return np.concatenate([(windows[places[i] - places[0]] * kernels[phases[i]]).sum(axis=1) for i in rows])


@cache
def filters(own: int, rate: int) -> Array:
    """julius' filter from ``own`` to ``rate`` Hz: ``[parts of a source sample, 2 * width + 1]``, each row of sum 1.

    julius itself makes each kernel for whole periods of the two rates: 11 GB from 44,101 Hz, and here 20 MB.
    """
    cutoff = ROLLOFF * min(1.0, rate / own)  # zero crossings of the sinc in a source sample
    width = math.ceil(ZEROS / cutoff)
    parts = rate // math.gcd(own, rate)
    t = (np.arange(-width, width + 1) - np.arange(parts)[:, None] / parts) * cutoff
    np.clip(t, -ZEROS, ZEROS, out=t)
    kernels = np.sinc(t) * np.cos(np.pi * t / ZEROS / 2) ** 2
    return np.asarray(kernels / kernels.sum(axis=1, keepdims=True))


def stretch(path: Path, first: int, last: int) -> Array:
    """Samples [first, last) of a recording at its own rate, the mean of its channels: float64 ``[last - first]``.
    Outside the recording, its first or last sample."""
    with soundfile.SoundFile(path) as file:
        low = max(first, 0)
        run_in = min(low, round(RUN_IN * file.samplerate))
        file.seek(low - run_in)
        wave = file.read(run_in + last - low, always_2d=True)[run_in:].mean(axis=1)
    return np.pad(wave, (low - first, last - low - len(wave)), mode="edge")


class Truth:
    """What chunks of the audio must be: of the first batch, and of what is held out. Everything is computed when it is
    first asked for, so that an error is a test's own."""

    def __init__(self, model: Any, run: RunEvidence) -> None:
        self.model = model
        self.run = run

    def places(self, ids: list[int]) -> list[tuple[Path, int]]:
        """Of each of these chunks the file, and the first sample at the model's rate."""
        trace, manifest = self.run.trace, self.run.manifest
        folder = self.run.path_of("manifest").parent
        files = {entry.sha256: folder / entry.target for entry in manifest.entries}
        return [(files[trace.tokens.chunks[i].file], trace.tokens.chunks[i].start) for i in ids]

    @cached_property
    def chunks(self) -> list[tuple[Path, int]]:
        """The first batch's chunks."""
        return self.places(self.run.trace.steps[0].chunks)

    def is_exact(self, ids: list[int]) -> bool:
        """Whether the audio of these chunks is decoded alike from wherever one begins. After a seek an MP3's samples
        differ by up to 2e-7, and an Opus file's may too."""
        return not any(soundfile.info(path).subtype.startswith(("MPEG", "OPUS")) for path, _ in self.places(ids))

    def resampled_chunks(self) -> dict[int, list[int]]:
        """For each sample rate that is not the model's, up to RESAMPLED chunks of its recordings, spread evenly."""
        found: dict[int, list[int]] = {}
        rates = {entry.sha256: entry.sample_rate for entry in self.run.manifest.entries}
        for index, chunk in enumerate(self.run.trace.tokens.chunks):
            if rates[chunk.file] != self.model.sample_rate:
                found.setdefault(rates[chunk.file], []).append(index)
        return {rate: ids[:: -(-len(ids) // RESAMPLED)] for rate, ids in found.items()}

    @cached_property
    def waves(self) -> Array:
        """The first batch's audio, mono at the model's rate: float64 ``[batch, samples]``. Reads no more than that."""
        return self.waves_of(self.chunks)

    def waves_of(self, places: list[tuple[Path, int]]) -> Array:
        """The audio of chunks at these places, as ``waves``."""
        samples = self.run.trace.tokens.shape[2] * round(self.model.sample_rate / self.model.frame_rate)
        return np.stack([resampled(path, self.model.sample_rate, start, samples) for path, start in places])

    @cached_property
    def codes(self) -> Any:
        """The codec's tokens of ``waves``: int64 ``[batch, codebooks, frames]``."""
        return self.encoded(self.waves)

    @cached_property
    def held_out_codes(self) -> Any:
        """The codec's tokens of the chunks that the held-out loss is measured on."""
        return self.encoded(self.waves_of(self.places(self.run.trace.start.held_out_chunks)))

    def encoded(self, waves: Array) -> Any:
        """The codec's tokens of audio ``[batch, samples]``."""
        import torch

        with torch.no_grad():
            return torch.cat([self.model.compression_model.encode(w[None, None])[0] for w in torch.from_numpy(waves)])

    @property
    def conditions(self) -> Any:
        """The text condition of the first batch."""
        return self.conditions_of(len(self.run.trace.steps[0].chunks))

    def conditions_of(self, batch: int) -> Any:
        """The text condition of so many chunks."""
        import torch
        from audiocraft.modules.conditioners import ConditioningAttributes

        provider = self.model.lm.condition_provider
        text = {"description": self.run.status.settings["description"]}
        with torch.no_grad():
            return provider(provider.tokenize([ConditioningAttributes(text=dict(text)) for _ in range(batch)]))

    def losses(self, codes: Any) -> Any:
        """Cross-entropy by codebook on the valid positions, float64 ``[codebooks]``."""
        import torch

        with torch.no_grad():
            output = self.model.lm.compute_predictions(codes, [], self.conditions_of(len(codes)))
        by_codebook = []
        for k in range(codes.shape[1]):
            valid = output.mask[:, k]
            by_codebook.append(torch.nn.functional.cross_entropy(output.logits[:, k][valid], codes[:, k][valid]))
        return torch.stack(by_codebook)

    def fresh_adapters(self) -> Any:
        """The adapters as the lane makes them from the run's seed, float64."""
        import torch

        from harness.lane.adapter import make_adapters

        return make_adapters(self.model.lm, self.run.trace.header.seed, dtype=torch.float64, device="cpu")

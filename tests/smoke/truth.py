"""The first batch worked out without the lane: audiocraft's model in float64, and its own tokens of the audio on the
disk."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from harness.evidence import RunEvidence

SHIPPED_MODEL = Path(__file__).resolve().parents[2] / "data" / "musicgen_nano"


def load_model() -> Any:
    """The MusicGen that the run was asked to use, as audiocraft loads it, in float64 on the CPU."""
    import torch

    from harness.lane.audiocraft_import import prepare_audiocraft
    from harness.lane.model import check_model_directory

    torch.set_num_threads(1)
    name = os.environ.get("LANE_MODEL") or str(SHIPPED_MODEL)
    own = Path(name)
    prepare_audiocraft(transformers=own != SHIPPED_MODEL and (not own.is_dir() or check_model_directory(own)[1]))
    from audiocraft.models.musicgen import MusicGen
    from audiocraft.modules.transformer import set_efficient_attention_backend

    set_efficient_attention_backend("torch")
    model = MusicGen.get_pretrained(name, device="cpu")
    model.lm.double()
    model.compression_model.double()
    return model


class Truth:
    """What the first batch must be. Everything is computed when it is first asked for, so that an error is a test's
    own."""

    def __init__(self, model: Any, run: RunEvidence) -> None:
        self.model = model
        self.run = run

    @cached_property
    def waves(self) -> Any:
        """The first batch's audio, mono at the model's rate: float64 ``[batch, samples]``."""
        trace, manifest = self.run.trace, self.run.manifest
        files = {entry["sha256"]: self.run.manifest_path.parent / entry["target"] for entry in manifest["entries"]}
        samples = trace.tokens["shape"][2] * round(self.model.sample_rate / self.model.frame_rate)
        waves = []
        for chunk in (trace.tokens["chunks"][i] for i in trace.steps[0]["chunks"]):
            path, start = files[chunk["file"]], chunk["start"]
            if soundfile.info(path).samplerate == self.model.sample_rate:
                wave = soundfile.read(path, start=start, frames=samples, always_2d=True)[0].mean(axis=1)
            else:
                wave = self._resampled(path)[start : start + samples]
            waves.append(wave)
        return np.stack(waves)

    def _resampled(self, path: Path) -> Any:
        import julius
        import torch

        wave, rate = soundfile.read(path, always_2d=True)
        return julius.resample_frac(torch.from_numpy(wave.mean(axis=1)), rate, self.model.sample_rate).numpy()

    @cached_property
    def codes(self) -> Any:
        """The codec's tokens of ``waves``: int64 ``[batch, codebooks, frames]``."""
        import torch

        with torch.no_grad():
            return torch.cat(
                [self.model.compression_model.encode(w[None, None])[0] for w in torch.from_numpy(self.waves)]
            )

    @cached_property
    def conditions(self) -> Any:
        """The text condition of the batch."""
        import torch
        from audiocraft.modules.conditioners import ConditioningAttributes

        provider = self.model.lm.condition_provider
        text = {"description": self.run.status["settings"]["description"]}
        batch = len(self.run.trace.steps[0]["chunks"])
        with torch.no_grad():
            return provider(provider.tokenize([ConditioningAttributes(text=dict(text)) for _ in range(batch)]))

    def losses(self, codes: Any) -> Any:
        """Cross-entropy by codebook on the valid positions, float64 ``[codebooks]``."""
        import torch

        with torch.no_grad():
            output = self.model.lm.compute_predictions(codes, [], self.conditions)
        by_codebook = []
        for k in range(codes.shape[1]):
            valid = output.mask[:, k]
            by_codebook.append(torch.nn.functional.cross_entropy(output.logits[:, k][valid], codes[:, k][valid]))
        return torch.stack(by_codebook)

    def fresh_adapters(self) -> Any:
        """The adapters as the lane makes them from the run's seed, float64."""
        import torch

        from harness.lane.adapter import make_adapters

        return make_adapters(self.model.lm.dim, self.run.trace.header["seed"], dtype=torch.float64, device="cpu")

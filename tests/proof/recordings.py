"""Data sets on which a fault can show that the shipped narration hides, made from the shipped narration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from proof.copies import ROOT

SHIPPED = ROOT / "data" / "knowledge_audio_source" / "auntie_dottie.flac"
SHIPPED_MODEL = ROOT / "data" / "musicgen_nano"
DATA_SETS = {
    "shipped": "the shipped narration: one file, mono, at the model's rate; 68 chunks, in whole batches",
    "mixed": "five files: stereo at 44.1 kHz, mono at 22.05, 48 (bright) and 32 kHz; 31 chunks, not in whole batches; "
    "and the shipped model with a dropout of 0.1 in its configuration",
    "older": "mixed, with other recordings of the same lengths",
    "broken": "mixed, with one more file, which was cut short",
}
Wave = NDArray[np.float64]


def make(folder: Path) -> dict[str, dict[str, str]]:
    """Make every data set under ``folder``; returns, for each, the settings with which the lane uses it."""
    wave, rate = soundfile.read(SHIPPED)
    model = _model_with_dropout(folder / "model")
    settings: dict[str, dict[str, str]] = {"shipped": {}}
    for name in ("mixed", "older", "broken"):
        source = folder / name
        _write_mixed(source, wave[::-1] if name == "older" else wave, rate)
        if name == "broken":
            whole = (source / "more" / "page.flac").read_bytes()
            (source / "more" / "cut.flac").write_bytes(whole[: len(whole) // 2])
        settings[name] = {
            "AUDIO_PATH": str(source / "narration" / "auntie_dottie.wav"),
            "KNOWLEDGE_SOURCE_DIR": str(source),
            "LANE_MODEL": str(model),
            "LANE_NUMERICS": "universal",
        }
    return settings


def _write_mixed(folder: Path, wave: Wave, rate: int) -> None:
    def cut(start: float, seconds: float, new_rate: int) -> Wave:
        """A stretch of the narration at another rate, by straight lines: it need not sound well."""
        times = (start + np.arange(round(seconds * new_rate)) / new_rate) * rate
        return np.asarray(np.interp(times, np.arange(len(wave)), wave), dtype=np.float64)

    write: Callable[[str, Any, int], None] = lambda name, samples, at: soundfile.write(folder / name, samples, at)  # noqa: E731
    for name in ("narration", "takes", "more"):
        (folder / name).mkdir(parents=True)
    write("narration/auntie_dottie.wav", np.stack([cut(0, 31, 44_100), 0.7 * cut(60, 31, 44_100)], axis=1), 44_100)
    write("takes/take-1.flac", cut(100, 6, 22_050), 22_050)
    write("takes/take-2.flac", cut(110, 6, 22_050), 22_050)
    write("more/page.flac", cut(120, 5, 32_000), 32_000)
    write("more/room.wav", _bright(cut(130, 25, 48_000)), 48_000)


def _bright(wave: Wave) -> Wave:
    """With noise in it up to the highest frequencies, as loud as the voice is: what a resampler must take off shows."""
    noise = np.diff(np.random.default_rng(0).normal(size=len(wave) + 1))
    loudness = np.convolve(np.abs(wave), np.ones(2000) / 2000, "same")
    return np.clip(wave + 2.0 * loudness * noise, -0.99, 0.99)


def _model_with_dropout(folder: Path) -> Path:
    """The shipped model with dropout in its configuration: the same function, as long as it is in eval mode."""
    import torch

    folder.mkdir(parents=True)
    package = torch.load(SHIPPED_MODEL / "state_dict.bin", map_location="cpu", weights_only=True)
    old = "  dropout: 0.0"
    if package["xp.cfg"].count(old) != 1:
        raise ValueError(f"the shipped model's configuration holds {old!r} not once: mend recordings.py")
    package["xp.cfg"] = package["xp.cfg"].replace(old, "  dropout: 0.1")
    torch.save(package, folder / "state_dict.bin")
    (folder / "compression_state_dict.bin").symlink_to(SHIPPED_MODEL / "compression_state_dict.bin")
    return folder

"""What the gates read of a recording: just what a chunk needs, and the same as if they had read all of it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import audio_files
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from truth import RUN_IN, Truth, filters, resampled, stretch

from harness.present.audio import Excerpt, source_clip

MODEL_RATE = 32_000
SECONDS = 2.5
# (sample rate, channels, name, options of the encoder, by how much a part may differ from the whole)
RECORDINGS: list[tuple[int, int, str, dict[str, Any], float]] = [
    (32_000, 1, "a.flac", {}, 0.0),
    (48_000, 2, "b.flac", {}, 0.0),
    (44_100, 2, "c.wav", {}, 0.0),
    (8_000, 1, "d.wav", {"subtype": "FLOAT"}, 0.0),
    (44_101, 1, "e.flac", {}, 0.0),  # without a common divisor
    (96_000, 3, "f.flac", {"subtype": "PCM_24"}, 0.0),
    (44_100, 2, "g.ogg", {}, 0.0),
    (48_000, 1, "h.ogg", {"subtype": "OPUS"}, 0.0),
    (44_100, 2, "i.mp3", {}, 1e-6),
    (32_000, 1, "j.mp3", {"compression_level": 0.99, "bitrate_mode": "CONSTANT"}, 1e-6),  # frames lean on eight before
    (22_050, 1, "k.mp3", {"compression_level": 0.9, "bitrate_mode": "VARIABLE"}, 1e-6),
]
NAMES = [name for _, _, name, _, _ in RECORDINGS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("recordings")
    for seed, (rate, channels, name, options, _) in enumerate(RECORDINGS):
        audio_files.write(made / name, audio_files.voice(SECONDS, rate, channels, seed) / 2, rate, **options)
    return made


@cache
def whole(path: Path) -> tuple[Any, Any]:
    """All of a recording, decoded in one go, and all of it at the model's rate."""
    decoded, rate = soundfile.read(path, always_2d=True)
    return decoded.mean(axis=1), resampled(path, MODEL_RATE, 0, len(decoded) * MODEL_RATE // rate)


@pytest.mark.parametrize("recording", RECORDINGS, ids=NAMES)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_part_is_that_part_of_the_whole(folder: Path, recording: Any, seed: int) -> None:
    _, _, name, _, allowed = recording
    decoded, expected = whole(folder / name)
    random = np.random.default_rng(seed)  # Hypothesis' own integers lie near 0, where there is nothing to seek
    first = int(random.integers(-100, len(decoded) if seed % 2 else 100))
    last = max(first, 0) + int(random.integers(1, len(decoded) - max(first, 0) + 100))
    there = decoded[np.clip(np.arange(first, last), 0, len(decoded) - 1)]
    assert np.abs(stretch(folder / name, first, last) - there).max() <= allowed

    start = int(random.integers(len(expected)))
    part = resampled(folder / name, MODEL_RATE, start, int(random.integers(1, min(len(expected) - start, 3000) + 1)))
    assert np.abs(part - expected[start : start + len(part)]).max() <= allowed


@pytest.mark.parametrize("rate", [22_050, 44_100, 96_000])
def test_the_resampling_is_julius(tmp_path: Path, rate: int) -> None:
    """To the rounding of julius' kernels, which it makes in float32: up to 2e-5 of noise."""
    import julius
    import torch

    path = audio_files.write(tmp_path / "a.wav", audio_files.voice(1.0, rate) / 2, rate, subtype="DOUBLE")
    wave = torch.from_numpy(soundfile.read(path)[0])
    expected = julius.resample_frac(wave, rate, MODEL_RATE).numpy()
    assert np.abs(resampled(path, MODEL_RATE, 0, len(expected)) - expected).max() < 1e-4


@pytest.mark.parametrize("rate", [32_000, 44_100, 48_000])
def test_what_is_read_does_not_grow_with_the_recording(
    tmp_path: Path, rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, original = [0], soundfile.SoundFile.read

    def counting(*arguments: Any, **options: Any) -> Any:
        block = original(*arguments, **options)
        read[0] += len(block)
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    starts = [0, 150_000, 100_000, 50_000]
    found = []
    for seconds in (8, 24):
        path = audio_files.write(tmp_path / f"{seconds}.flac", audio_files.voice(seconds, rate, 2), rate)
        for reader in (lambda path=path: first_batch(path, starts), lambda path=path: clip(path)):
            read[0] = 0
            reader()
            found.append(read[0])
    assert found[:2] == found[2:], "of the longer recording more is read"
    margin = 2 * (filters(rate, MODEL_RATE).shape[1] // 2) + RUN_IN * rate + 2
    assert 0 < found[0] <= len(starts) * (2.56 * rate + margin)


def first_batch(path: Path, starts: list[int]) -> None:
    model = SimpleNamespace(sample_rate=MODEL_RATE, frame_rate=50)
    chunks = [SimpleNamespace(file="digest", start=start) for start in starts]
    trace = SimpleNamespace(
        tokens=SimpleNamespace(shape=[len(starts), 4, 128], chunks=chunks),
        steps=[SimpleNamespace(chunks=list(range(len(starts))))],
    )
    manifest = SimpleNamespace(entries=[SimpleNamespace(sha256="digest", target=path.name)])
    run: Any = SimpleNamespace(trace=trace, manifest=manifest, path_of=lambda what: path.parent / f"{what}.json")
    assert Truth(model, run).waves.shape == (len(starts), 81_920)


def clip(path: Path) -> None:
    assert source_clip(Excerpt(path, 50_000, (0, 1), 5.12)).data

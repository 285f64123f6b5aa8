"""The files under ``data/`` are the ones that their digests, READMEs and measurements speak of."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
NARRATION = DATA / "knowledge_audio_source" / "auntie_dottie.flac"
MODEL_DIR = DATA / "musicgen_nano"
MODEL_FILES = ("compression_state_dict.bin", "state_dict.bin")
README_OF = {
    "knowledge_audio_source/auntie_dottie.flac": NARRATION.parent / "README.md",
    "musicgen_nano/compression_state_dict.bin": MODEL_DIR / "README.md",
    "musicgen_nano/state_dict.bin": MODEL_DIR / "README.md",
}
CODEBOOKS, ENTRIES = 4, 256


@pytest.fixture(scope="module")
def measurements() -> dict[str, Any]:
    """What the build measured on held-out speech."""
    loaded: dict[str, Any] = json.loads((MODEL_DIR / "measurements.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def checkpoints() -> dict[str, dict[str, Any]]:
    """Both model files, read with nothing but tensors and plain containers allowed."""
    import torch

    return {name: torch.load(MODEL_DIR / name, map_location="cpu", weights_only=True) for name in MODEL_FILES}


def test_digests_cover_exactly_the_shipped_files() -> None:
    digests = json.loads((DATA / "DIGESTS.json").read_text(encoding="utf-8"))
    assert sorted(digests) == sorted(README_OF)


@pytest.mark.parametrize("name", sorted(README_OF))
def test_file_is_the_one_its_digest_and_readme_name(name: str) -> None:
    content = (DATA / name).read_bytes()
    recorded = json.loads((DATA / "DIGESTS.json").read_text(encoding="utf-8"))[name]
    size, sha256 = len(content), hashlib.sha256(content).hexdigest()
    assert recorded == {"bytes": size, "sha256": sha256}, f"data/{name} is not the file that its script made"
    readme = README_OF[name].read_text(encoding="utf-8")
    assert sha256 in readme, f"{README_OF[name].name} beside data/{name} names another digest"
    assert str(size) in readme


def test_narration_format() -> None:
    import soundfile

    about = soundfile.info(NARRATION)
    assert (about.format, about.subtype, about.channels, about.samplerate) == ("FLAC", "PCM_16", 1, 32_000)
    assert about.frames / about.samplerate >= 150.0
    assert NARRATION.stat().st_size > 5_000_000


def test_narration_is_sound_that_does_not_clip() -> None:
    import numpy as np
    import soundfile

    samples, _ = soundfile.read(NARRATION, dtype="int16")
    assert 0.5 < np.abs(samples.astype(np.int32)).max() / 32768.0 < 0.99
    # No second of it is digital silence: every piece that the lane cuts has something in it.
    seconds = samples[: len(samples) // 32_000 * 32_000].reshape(-1, 32_000)
    assert (seconds.std(axis=1) > 1.0).all()


def test_model_files_have_the_layout_that_audiocraft_reads(checkpoints: dict[str, dict[str, Any]]) -> None:
    for name, package in checkpoints.items():
        assert set(package) == {"xp.cfg", "best_state"}, name
        assert isinstance(package["xp.cfg"], str), name
        for tensor_name, tensor in package["best_state"].items():
            assert str(tensor.dtype) == "torch.float32", f"{name}: {tensor_name} is {tensor.dtype}"
            assert bool(tensor.isfinite().all()), f"{name}: {tensor_name} holds a value that is not finite"


def test_codec_has_no_lstm_and_four_filled_codebooks(checkpoints: dict[str, dict[str, Any]]) -> None:
    state = checkpoints["compression_state_dict.bin"]["best_state"]
    assert not [name for name in state if "lstm" in name.lower()], "an LSTM computes other bits on other processors"
    embeddings = [state[f"quantizer.vq.layers.{book}._codebook.embed"] for book in range(CODEBOOKS)]
    assert not [name for name in state if name.startswith(f"quantizer.vq.layers.{CODEBOOKS}.")]
    for embedding in embeddings:
        assert embedding.shape[0] == ENTRIES
        assert float(embedding.abs().sum()) > 0.0


def test_measurements_are_of_these_files(measurements: dict[str, Any]) -> None:
    for name in MODEL_FILES:
        content = (MODEL_DIR / name).read_bytes()
        assert measurements["files"][name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_model_is_small_enough_for_a_repository() -> None:
    assert sum((MODEL_DIR / name).stat().st_size for name in MODEL_FILES) <= 10_000_000


def test_codec_meets_its_bars_on_held_out_speech(measurements: dict[str, Any]) -> None:
    trained, untrained = measurements["codec"]["trained"], measurements["codec"]["untrained"]
    assert trained["si_sdr_db"] > untrained["si_sdr_db"]
    assert trained["log_spectral_distance_db"] < untrained["log_spectral_distance_db"]
    assert len(trained["entries_used"]) == CODEBOOKS
    assert min(trained["entries_used"]) >= ENTRIES // 4


def test_language_model_beats_the_unigram_in_every_codebook(measurements: dict[str, Any]) -> None:
    numbers = measurements["language_model"]
    pairs = list(zip(numbers["cross_entropy_nats"], numbers["unigram_entropy_nats"], strict=True))
    assert len(pairs) == CODEBOOKS
    for book, (cross_entropy, unigram_entropy) in enumerate(pairs):
        assert cross_entropy < unigram_entropy, f"codebook {book}"


def test_a_checkout_that_converts_line_endings_has_the_recorded_bytes(tmp_path: Path) -> None:
    """Code, data and recordings: each file of a clone with core.autocrlf has the bytes that git keeps of it."""
    if not (DATA.parent / ".git").exists():
        pytest.skip("not a git checkout")
    clone = tmp_path / "clone"

    def git(*words: str, given: str | None = None) -> str:
        done = subprocess.run(["git", *words], input=given, capture_output=True, text=True, check=True)
        return done.stdout

    git("-c", "core.autocrlf=true", "clone", "-q", "--config", "core.autocrlf=true", str(DATA.parent), str(clone))
    entries = [line.split(maxsplit=3) for line in git("-C", str(clone), "ls-files", "-s").splitlines()]
    entries = [entry for entry in entries if entry[0] != "120000"]  # a link holds no lines
    names = "\n".join(str(clone / name) for _, _, _, name in entries)
    found = git("-C", str(clone), "hash-object", "--no-filters", "--stdin-paths", given=names).split()
    assert len(entries) > 100
    assert not [name for (_, blob, _, name), here in zip(entries, found, strict=True) if blob != here]

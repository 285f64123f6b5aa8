"""Every broken recording is refused with a line that names it and says what to do; every good one is tokenised.

The refused ones run as real processes, under a limit of memory that a read of the whole file, or of what its header
claims, would break.
"""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import audio_files as audio
import lane_child
import numpy as np
import pytest
import soundfile
from lazy import Lazy
from run_directory import write_run

from harness.lane.audio import inspect_audio
from harness.lane.errors import LaneError
from harness.lane.resample import Resampler
from harness.numerics.processor import ATEN

if TYPE_CHECKING:
    from harness.lane import tokens as lane_tokens
else:
    lane_tokens = Lazy("harness.lane.tokens")

pytestmark = pytest.mark.fault

MEMORY = 400 << 20  # bytes of address space; the lane's own imports up to this point take under 150 MB
SECONDS = 10  # of processor time, which is the same on a busy machine; a lane that uses more is killed
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "safety.md"
Good = Callable[[str], Path]


@dataclass(frozen=True)
class Case:
    """One broken narration: what it is, how it is made, the code it is refused with, and a word of the reason."""

    what: str
    make: Callable[[Path, Good], object]  # makes the file at the path that AUDIO_PATH will name
    code: str
    says: str
    beside: bool = False  # lies beside a good narration in the source folder: it need not have 5,000,000 bytes


def _noise(path: Path, good: Good) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(6_000_000))


def _sparse(path: Path, good: Good) -> None:
    """A float WAV of 3 GB whose first sample is NaN; nearly all of it is a hole in the file."""
    body = struct.pack("<HHIIHH", 3, 1, audio.RATE, audio.RATE * 4, 4, 32)
    length = 3_000_000_000
    with path.open("wb") as file:
        file.write(b"RIFF" + struct.pack("<I", length + 36) + b"WAVEfmt " + struct.pack("<I", len(body)) + body)
        file.write(b"data" + struct.pack("<I", length) + struct.pack("<f", float("nan")))
        file.truncate(44 + length)


def _float_wav(path: Path, value: float) -> None:
    samples = audio.voice(45).astype(np.float32)
    samples[700_000] = value
    audio.wav(path, samples)


def _scaled(path: Path, factor: float, *, subtype: str = "FLOAT") -> None:
    audio.wav(path, (audio.voice(45) * factor).astype(np.float32))


def _opposite(path: Path, good: Good) -> None:
    left = (audio.voice(45) * 32_000).astype(np.int16)
    audio.wav(path, np.concatenate([left, -left], axis=1))


def _second_stream(path: Path, good: Good) -> None:
    """Two Ogg files in one, each with a serial number of its own."""
    other = audio.write(path.parent.parent / "other" / "other.ogg", audio.voice(3, seed=1))
    path.write_bytes(good("ogg").read_bytes() + other.read_bytes())


def _whole_frames(path: Path, good: Good) -> None:
    """The first hundred frames of an MP3 of constant bit rate, in which each has the same length and header."""
    whole = audio.write(
        path.parent.parent / "whole.mp3", audio.voice(10), bitrate_mode="CONSTANT", compression_level=0.5
    )
    data = whole.read_bytes()
    path.write_bytes(data[: 100 * data.index(data[:4], 4)])


CASES = [
    Case("no such file", lambda p, good: None, "audio_missing", "no such file"),
    Case("a folder", lambda p, good: p.mkdir(), "audio_is_directory", "folder"),
    Case("a path through a file", lambda p, good: None, "audio_missing", "a part of the path is a file"),
    Case("empty", lambda p, good: p.touch(), "audio_empty", "0 bytes"),
    Case(
        "a git-LFS pointer",
        lambda p, good: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5645473\n"),
        "audio_is_lfs_pointer",
        "pointer",
    ),
    Case("exactly 5,000,000 bytes", lambda p, good: p.write_bytes(bytes(5_000_000)), "audio_too_small", "5,000,000"),
    Case("text", lambda p, good: p.write_text("Once upon a time.\n" * 300_000), "audio_undecodable", "is not audio"),
    Case("random bytes", _noise, "audio_undecodable", "audio"),
    Case("a FIFO", lambda p, good: os.mkfifo(p), "audio_not_a_file", "no regular file"),
    Case("a link to nothing", lambda p, good: p.symlink_to("nowhere.flac"), "audio_dangling_link", "nowhere.flac"),
    Case("a loop of links", lambda p, good: p.symlink_to(p.name), "audio_unreadable", "loop"),
    Case("FLAC, cut after 95 %", lambda p, good: audio.cut(good("flac"), p, 0.95), "audio_damaged", "stops decoding"),
    Case("FLAC, cut by 100 bytes", lambda p, good: audio.cut(good("flac"), p, 0.99998), "audio_damaged", "decod"),
    Case("FLAC, 64 bytes changed", lambda p, good: audio.damaged(good("flac"), p, 0.5), "audio_damaged", "decod"),
    Case("FLAC, a hole of 5,000 bytes", lambda p, good: audio.gap(good("flac"), p, 0.5), "audio_damaged", "decod"),
    Case(
        "FLAC that promises 2^36-1 samples",
        lambda p, good: audio.flac_promising(good("flac"), p, (1 << 36) - 1),
        "audio_cut_short",
        "68,719,476,735",
    ),
    Case(
        "FLAC that promises more samples",
        lambda p, good: audio.flac_promising(good("flac"), p, 5_000_000_000),
        "audio_damaged",
        "stops decoding",
    ),
    Case(
        "FLAC that promises fewer samples",
        lambda p, good: audio.flac_promising(good("flac"), p, 1_000_000),
        "audio_damaged",
        "MD5",
    ),
    Case(
        "FLAC of unknown length",
        lambda p, good: audio.flac_promising(good("flac"), p, 0),
        "audio_unverifiable",
        "how many samples",
    ),
    Case(
        "FLAC with a wrong MD5",
        lambda p, good: audio.flac_with_md5(good("flac"), p, b"\x11" * 16),
        "audio_damaged",
        "11111111111111111111111111111111",
    ),
    Case(
        "FLAC without an MD5",
        lambda p, good: audio.flac_with_md5(good("flac"), p, bytes(16)),
        "audio_unverifiable",
        "MD5",
    ),
    Case("WAV, cut after 99 %", lambda p, good: audio.cut(good("wav"), p, 0.99), "audio_cut_short", "data chunk"),
    Case(
        "WAV that promises 0 samples",
        lambda p, good: audio.wav(p, np.zeros((2_600_000, 1), np.int16), says=0),
        "audio_no_samples",
        "no samples",
    ),
    Case(
        "WAV of 700,000 empty chunks",
        lambda p, good: p.write_bytes(b"RIFF\0\0\0\1WAVE" + b"JUNK\0\0\0\0" * 700_000),
        "audio_undecodable",
        "chunks",
    ),
    Case("WAV with a NaN", lambda p, good: _float_wav(p, np.nan), "audio_not_finite", "sample 700,000 is nan"),
    Case("WAV with an Inf", lambda p, good: _float_wav(p, -np.inf), "audio_not_finite", "sample 700,000 is -inf"),
    Case("WAV of 3 GB, NaN at its start", _sparse, "audio_not_finite", "sample 0 is nan"),
    Case("float WAV on the scale of 16 bit", lambda p, good: _scaled(p, 30_000), "audio_off_scale", "full scale"),
    Case("silence", lambda p, good: audio.wav(p, np.zeros((2_600_000, 1), np.int16)), "audio_silent", "is all silence"),
    Case("near silence (-64 dB)", lambda p, good: _scaled(p, 7e-4), "audio_silent", "near silence"),
    Case(
        "a constant offset",
        lambda p, good: audio.wav(p, np.full((2_600_000, 1), 9000, np.int16)),
        "audio_silent",
        "near silence",
    ),
    Case("stereo that cancels out", _opposite, "audio_silent", "silence"),
    Case(
        "one sample",
        lambda p, good: audio.wav(p, np.full((1, 1), 9000, np.int16), junk=5_100_000),
        "audio_too_short",
        "3.13e-05 s",
    ),
    Case(
        "zero samples",
        lambda p, good: audio.wav(p, np.zeros((0, 1), np.int16), junk=5_100_000),
        "audio_no_samples",
        "no samples",
    ),
    Case(
        "a sample rate of 2^31-1 Hz",
        lambda p, good: audio.wav(p, np.full((2_600_000, 1), 9000, np.int16), rate=(1 << 31) - 1),
        "audio_sample_rate",
        "2,147,483,647",
    ),
    Case(
        "1000 channels, cut",
        lambda p, good: audio.wav(p, np.zeros((2600, 1000), np.int16), says=90_000_000),
        "audio_cut_short",
        "data chunk",
    ),
    Case("Ogg, cut after 70 %", lambda p, good: audio.cut(good("ogg"), p, 0.7), "audio_cut_short", "page", True),
    Case("Ogg, 64 bytes changed", lambda p, good: audio.damaged(good("ogg"), p, 0.5), "audio_damaged", "page", True),
    Case("Ogg, two streams in one", _second_stream, "audio_more_than_promised", "Ogg", True),
    Case("Opus, 64 bytes changed", lambda p, good: audio.damaged(good("opus"), p, 0.5), "audio_damaged", "page", True),
    Case(
        "Opus, one page left out",
        lambda p, good: audio.without_page(good("opus"), p, 20),
        "audio_damaged",
        "page 20 is missing",
        True,
    ),
    Case("MP3, cut after half", lambda p, good: audio.cut(good("mp3"), p, 0.5), "audio_cut_short", "MP3", True),
    Case("MP3 with Xing header, cut between two frames", _whole_frames, "audio_cut_short", "promises", True),
    Case("MP3, 1,500 bytes overwritten", lambda p, good: _garbled(p, good), "audio_damaged", "MP3 frame", True),
    Case(
        "MP3 of varying bit rate without Xing header",  # libsndfile guesses its length, and stops there
        lambda p, good: audio.without_xing(good("mp3"), p),
        "audio_cut_short",
        "can be decoded",
        True,
    ),
    Case(
        "MP3 without Xing header, cut within a frame",
        lambda p, good: audio.cut(audio.without_xing(good("mp3"), p), p, 0.5),
        "audio_cut_short",
        "ends within its MP3 frame",
        True,
    ),
]


def _garbled(path: Path, good: Good) -> None:
    """Zeros over a stretch that holds a frame's header: decoders skip on to the next one without a word."""
    data = good("mp3").read_bytes()
    audio.changed(good("mp3"), path, len(data) // 2, bytes(1500))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_refused(case: Case, tmp_path: Path, good: Good) -> None:
    source = tmp_path / "source"
    source.mkdir()
    path = source / "broken.flac"
    case.make(path, good)
    if "through a file" in case.what:
        path.touch()
        path = path / "inside.flac"
    settings = {"AUDIO_PATH": str(path)}
    if case.beside:
        (source / "good.flac").hardlink_to(good("flac"))
        settings = {"AUDIO_PATH": str(source / "good.flac"), "KNOWLEDGE_SOURCE_DIR": str(source)}
    limits = {resource.RLIMIT_AS: MEMORY, resource.RLIMIT_CPU: SECONDS}
    ended = lane_child.run(tmp_path / "run", settings, limits=limits, timeout=60)
    lane_child.assert_refused(ended, case.code, path.name, case.says)
    assert ended.status["first_failed_step"] == ("prepare" if case.beside else "preflight")
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_unreadable_is_refused(tmp_path: Path, good: Good) -> None:
    path = tmp_path / "secret.flac"
    shutil.copyfile(good("flac"), path)
    path.chmod(0)
    ended = lane_child.run(tmp_path / "run", {"AUDIO_PATH": str(path)}, unprivileged=True)
    lane_child.assert_refused(ended, "audio_unreadable", "secret.flac", "permission denied")


def test_document_lists_what_each_input_gives() -> None:
    """The table in docs/safety.md is this file's list."""
    found = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    table = "\n".join(["| input | refused as |", "|---|---|", *(f"| {c.what} | `{c.code}` |" for c in CASES)])
    missing = [line for line in table.splitlines() if line not in found]
    assert table in found, f"{DOCUMENT} should hold this table; not in it: {missing}\n\n{table}"


# What is wrong with the folder, and not with the narration in it.


def _outside_link(source: Path, good: Good) -> None:
    (source.parent / "elsewhere.flac").hardlink_to(good("flac"))
    (source / "link.flac").symlink_to("../elsewhere.flac")


FOLDERS: dict[str, tuple[Callable[[Path, Good], object], str, str]] = {
    "one bad file among good ones": (lambda s, good: (s / "bad.wav").write_text("no"), "audio_undecodable", "bad.wav"),
    "an empty file among good ones": (lambda s, good: (s / "bad.ogg").touch(), "audio_empty", "bad.ogg"),
    "a file shorter than a chunk": (
        lambda s, good: audio.write(s / "short.wav", audio.voice(1)),
        "audio_too_short",
        "short.wav",
    ),
    "a file of one sample": (lambda s, good: audio.write(s / "1.wav", audio.voice(1)[:1]), "audio_too_short", "1.wav"),
    "a link out of the folder": (_outside_link, "audio_link_outside", "link.flac"),
    "a link to nothing": (lambda s, good: (s / "gone.mp3").symlink_to("nowhere"), "audio_dangling_link", "gone.mp3"),
    "a loop of links": (lambda s, good: (s / "loop.mp3").symlink_to("loop.mp3"), "audio_link_loop", "loop.mp3"),
    "a link to a folder": (lambda s, good: (s / "up").symlink_to(".."), "audio_link_to_folder", "up"),
    "a FIFO": (lambda s, good: os.mkfifo(s / "pipe.wav"), "audio_not_a_file", "pipe.wav"),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_folder_refused(what: str, tmp_path: Path, good: Good) -> None:
    make, code, names = FOLDERS[what]
    source = tmp_path / "source"
    source.mkdir()
    (source / "good.flac").hardlink_to(good("flac"))
    make(source, good)
    settings = {"AUDIO_PATH": str(source / "good.flac"), "KNOWLEDGE_SOURCE_DIR": str(source)}
    ended = lane_child.run(tmp_path / "run", settings, limits={resource.RLIMIT_AS: MEMORY})
    lane_child.assert_refused(ended, code, names)
    assert ended.status["first_failed_step"] == "prepare"
    assert "LANE_SKIP_BAD_FILES" in ended.status["next_unblock_action"]


def test_staged_copy_is_no_recording(tmp_path: Path, good: Good) -> None:
    """AUDIO_PATH in the staging folder: the lane would remove the recording as an earlier run's copy."""
    run_dir = tmp_path / "run"
    prepared = {"RUN_TRAIN": "0", "AUDIO_PATH": str(good("flac"))}
    assert lane_child.run(run_dir, prepared).exit_code == 0
    (staged,) = (run_dir / "knowledge_audio").glob("*.flac")
    ended = lane_child.run(run_dir, {"RUN_TRAIN": "0", "AUDIO_PATH": str(staged)})
    lane_child.assert_refused(ended, "audio_in_staging", staged.name)
    assert staged.exists(), "the lane removed the recording that AUDIO_PATH named"


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a target outside": (lambda m: m["entries"][0].update(target="../../etc/passwd"), "no name of a staged file"),
    "an absolute target": (lambda m: m["entries"][0].update(target="/etc/passwd"), "no name of a staged file"),
    "its own folder": (lambda m: m["entries"][0].update(target=".."), "no name of a staged file"),
    "frames as text": (lambda m: m["entries"][0].update(frames="all"), "frames"),
    "a rate of 0": (lambda m: m["entries"][0].update(sample_rate=0), "sample_rate"),
    "another rate": (lambda m: m["entries"][0].update(sample_rate=16_000), "its sample_rate is 32000"),
    "fewer frames": (lambda m: m["entries"][0].update(frames=100_000), "its frames is"),
    "another digest": (lambda m: m["entries"][0].update(sha256="0" * 64), "its sha256 is"),
    "no entries": (lambda m: m.update(entries=[]), "at least one entry"),
    "entries of another type": (lambda m: m.update(entries=[7]), "cannot be used"),
    "another schema": (lambda m: m.update(schema="voice_dataset/2"), "schema"),
}


def test_hostile_manifest_is_refused(tmp_path: Path, good: Good) -> None:
    """RUN_PREPARE=0 reads a manifest back; in one process, as what is refused here does not reach torch."""
    from harness.lane.dataset import prepare_dataset, read_manifest
    from harness.lane.settings import read_settings

    settings = read_settings({"LANE_RUN_DIR": str(tmp_path / "run"), "AUDIO_PATH": str(good("flac"))})
    prepare_dataset(settings, inspect_audio(good("flac")))
    whole = lane_child.strict_json(settings.manifest_path)
    assert read_manifest(settings)["entries"] == whole["entries"]
    import copy
    import json

    for what, (change, reason) in MANIFESTS.items():
        manifest = copy.deepcopy(whole)
        change(manifest)
        settings.manifest_path.write_text(json.dumps(manifest))
        with pytest.raises(LaneError, match=reason) as caught:
            read_manifest(settings)
        assert caught.value.code in ("manifest_unusable", "manifest_stale"), what
    for text in ("", "{", "[]", "null", '{"schema": NaN}', "[" * 100_000, "\udcff"):
        settings.manifest_path.write_bytes(os.fsencode(text))
        with pytest.raises(LaneError, match="cannot be used"):
            read_manifest(settings)
    settings.manifest_path.write_text(json.dumps(whole))
    staged = settings.audio_dir / whole["entries"][0]["target"]
    staged.unlink()
    staged.symlink_to(good("flac"))
    with pytest.raises(LaneError, match="is a link"):
        read_manifest(settings)


# What is accepted.


ACCEPTED: dict[str, dict[str, Any]] = {
    "8 kHz.wav": {"rate": 8_000, "subtype": "PCM_16"},
    "11025 Hz.wav": {"rate": 11_025, "subtype": "PCM_16"},
    "44.1 kHz.flac": {"rate": 44_100, "subtype": "PCM_16"},
    "192 kHz.flac": {"rate": 192_000, "subtype": "PCM_24"},
    "odd rate.wav": {"rate": 31_999, "subtype": "PCM_16"},
    "stereo.flac": {"channels": 2, "subtype": "PCM_16"},
    "5.1.wav": {"channels": 6, "subtype": "PCM_24"},
    "8 bit.wav": {"subtype": "PCM_U8"},
    "8 bit.flac": {"subtype": "PCM_S8"},
    "24 bit.flac": {"subtype": "PCM_24"},
    "32 bit.wav": {"subtype": "PCM_32"},
    "float.wav": {"subtype": "FLOAT"},
    "double.wav": {"subtype": "DOUBLE"},
    "a-law.wav": {"subtype": "ALAW"},
    "ima adpcm.wav": {"subtype": "IMA_ADPCM"},
    "extensible.wav": {"subtype": "PCM_24", "format": "WAVEX"},
    "rf64.wav": {"subtype": "PCM_16", "format": "RF64"},
    "vorbis.ogg": {},
    "opus.ogg": {"rate": 48_000, "subtype": "OPUS"},
    "cbr.mp3": {"bitrate_mode": "CONSTANT", "compression_level": 0.5},
    "vbr.mp3": {"bitrate_mode": "VARIABLE"},
    "mpeg2.mp3": {"rate": 16_000},
}


def _make_accepted(folder: Path, name: str, seconds: float = 3.0) -> Path:
    options = dict(ACCEPTED[name])
    rate, channels = options.pop("rate", audio.RATE), options.pop("channels", 1)
    return audio.write(folder / name, audio.voice(seconds, rate, channels), rate, **options)


@pytest.mark.parametrize("name", ACCEPTED)
def test_chunks_are_those_of_the_whole_file(name: str, tmp_path: Path) -> None:
    """Piece by piece, the stream gives what resampling the whole file gives, to 1e-12 of full scale (MP3: 1e-6)."""
    path = _make_accepted(tmp_path, name)
    facts = inspect_audio(path)
    samples, rate = soundfile.read(path, always_2d=True, dtype="float64")
    assert (facts.frames, facts.channels, facts.sample_rate) == (*samples.shape, rate)
    resampler = Resampler(rate, 32_000)
    length = resampler.output_length(len(samples))
    mono = np.pad(samples.mean(axis=1), resampler.width + 1, mode="edge")
    expected = resampler.resample(mono, -resampler.width - 1, 0, length)
    chunk, stride = 81_920, 30_000
    chunks = list(lane_tokens.read_chunks(path, 32_000, chunk, stride, facts.frames))
    assert [start for start, _ in chunks] == lane_tokens.chunk_starts(length, chunk, stride)
    for start, found in chunks:
        # mpg123 itself gives other last bits of a float32 when it is asked for other amounts at a time.
        limit = 1e-6 if name.endswith("mp3") else 1e-12
        assert np.abs(found - expected[start : start + chunk]).max() <= limit, f"the chunk at {start}"


def test_resampler_agrees_with_another(tmp_path: Path) -> None:
    """julius, which audiocraft uses, in float32 and away from the ends: the same signal to 1e-4 of full scale."""
    import julius
    import torch

    samples = audio.voice(1.0, 44_100)[:, 0]
    resampler = Resampler(44_100, 32_000)
    length = resampler.output_length(len(samples))
    padded = np.pad(samples, resampler.width + 1, mode="edge")
    found = resampler.resample(padded, -resampler.width - 1, 0, length)
    expected = julius.resample_frac(torch.from_numpy(samples), 44_100, 32_000).numpy()[:length]
    assert np.abs(found - expected).max() < 1e-4


def test_mp3_without_xing_header_is_accepted_and_a_cut_between_frames_is_not_seen(tmp_path: Path, good: Good) -> None:
    """What docs/safety.md says of such files: all that can be verified is that every frame is there and whole."""
    whole = audio.write(tmp_path / "whole.mp3", audio.voice(10), bitrate_mode="CONSTANT", compression_level=0.5)
    path = audio.without_xing(whole, tmp_path / "plain.mp3")
    facts = inspect_audio(path)
    assert facts.frames >= 10 * audio.RATE
    data = path.read_bytes()
    starts = [i for i in range(len(data) // 2, len(data) // 2 + 3000) if data[i : i + 2] == data[:2]]
    for start in starts:
        (tmp_path / "half.mp3").write_bytes(data[:start])
        try:
            assert inspect_audio(tmp_path / "half.mp3").frames < facts.frames
            break
        except LaneError:
            continue
    else:
        raise AssertionError("no cut between two frames was found to be accepted")


ODD_NAMES = [
    b"with space.wav",
    b"quote'double\"back`tick.wav",
    b"new\nline.wav",
    b"$(touch pwned).wav",
    b"-rf.wav",
    "tantchen_Dörte_☎.wav".encode(),
    b"not-utf8-\xff\xfe.wav",
    b"a/same.wav",
    b"b/same.wav",
    b"UPPER.WAV",
    b"..wav.wav",
    b"%s%n;&|.wav",
    ("l" * 240 + ".wav").encode(),
]


def test_all_that_is_accepted_trains(tmp_path: Path, good: Good) -> None:
    """One real run over every format and every odd name at once; the output folder lies inside the source folder."""
    source = tmp_path / "source $(x) ; ü"
    for name in ACCEPTED:
        _make_accepted(source, name, seconds=1.0)
    for number, name in enumerate(ODD_NAMES):
        path = Path(os.fsdecode(os.fsencode(source) + b"/" + name))
        audio.write(path, audio.voice(1.0, seed=100 + number // 3), format="WAV")  # some have equal content
    narration = Path(os.fsdecode(os.fsencode(source) + b"/-the \xff \"voice\" of 'D\xc3\xb6rte'\n$(id).flac"))
    narration.hardlink_to(good("flac"))
    (source / "deeper").mkdir()
    (source / "deeper" / "inner link.flac").symlink_to(narration)
    (source / "deeper" / "upper.wav").hardlink_to(source / "UPPER.WAV")
    (source / "notes.txt").write_text("not audio, not looked at")
    run_dir = source / "artifacts"
    # In the staging folder, named as a staged file is, and no manifest lists it: no recording, and somebody's.
    orphan = audio.write(run_dir / "knowledge_audio" / "0123456789ab-orphan.wav", audio.voice(1.0, seed=7))
    settings: dict[str, str | bytes] = {
        "AUDIO_PATH": os.fsencode(narration),
        "KNOWLEDGE_SOURCE_DIR": os.fsencode(source),
        "LANE_STEPS": "2",
        "LANE_STRIDE_SECONDS": "20",
        "LANE_CHUNK_SECONDS": "0.5",
    }
    first = lane_child.run(run_dir, settings)
    assert first.exit_code == 0, first.stderr
    assert first.stderr == ""
    manifest = lane_child.strict_json(run_dir / "knowledge_audio" / "voice_dataset_manifest.json")
    count = len(ACCEPTED) + len(ODD_NAMES) + 3
    assert len(manifest["entries"]) == count
    assert orphan.exists()
    assert len({entry["target"].lower() for entry in manifest["entries"]}) == count  # some disks tell no a from an A
    for entry in manifest["entries"]:
        staged = run_dir / "knowledge_audio" / entry["target"]
        assert hashlib.sha256(staged.read_bytes()).hexdigest() == entry["sha256"]
        assert entry["source"].isprintable()
    tokens = np.load(run_dir / "tokens.npy")
    assert len(tokens) == 2 * (count - 2) + 2 * len(lane_tokens.chunk_starts(90 * 32_000, 16_000, 640_000))
    assert first.printed_report["objective_status"] == "completed"
    assert not (Path.cwd() / "pwned").exists()
    # Again, with what the first run left inside the source folder, and a second output folder in it.
    second = lane_child.run(source / "other", {**settings, "RUN_TRAIN": "0"})
    assert second.exit_code == 0
    assert second.printed_report["manifest_entry_count"] == str(count)
    assert second.printed_report["dataset_digest"] == manifest["dataset_digest"]


def test_bad_files_are_left_out_only_when_asked_for(tmp_path: Path, good: Good) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "good.flac").hardlink_to(good("flac"))
    (source / "bad\n\x1b[31m.wav").write_text("no audio")
    settings = {"AUDIO_PATH": str(source / "good.flac"), "KNOWLEDGE_SOURCE_DIR": str(source), "RUN_TRAIN": "0"}
    ended = lane_child.run(tmp_path / "run", {**settings, "LANE_SKIP_BAD_FILES": "1"})
    assert ended.exit_code == 0
    (skipped,) = (line for line in ended.stdout.splitlines() if line.startswith("SKIPPED"))
    assert "bad\\n\\x1b[31m.wav" in skipped
    assert ended.report["manifest_entry_count"] == "1"


# Settings and the model.


SETTINGS = {
    "LANE_STEPS": "many",
    "LANE_LEARNING_RATE": "nan",
    "LANE_BATCH": "²",
    "LANE_DESCRIPTION": b"\xff\xfe",
    "LANE_STEP": "3",
    "RUN_TRAIN": "perhaps",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_setting_not_understood_is_refused_on_disk_too(name: str, tmp_path: Path) -> None:
    ended = lane_child.run(tmp_path / "run", {name: SETTINGS[name], "LANE_RUN_ID": "mine"})
    code = "setting_unknown" if name == "LANE_STEP" else "setting_not_understood"
    lane_child.assert_refused(ended, code, name)
    assert ended.status["run_id"] == "mine"


MISTYPED = {
    "source_missing": {"KNOWLEDGE_SOURCE_DIR": "no/such/folder"},
    "setting_not_understood": {"LANE_STEPS": "many"},
    "setting_unknown": {"LANE_STEP": "5"},
    "audio_missing": {"AUDIO_PATH": "no/such.wav"},
    "model_missing": {"LANE_MODEL": "no/such/model", "LANE_NUMERICS": "universal"},
    "processor_lacks_kernels": {ATEN: "avx2" if platform.machine() == "aarch64" else "sve"},
}


def test_a_mistyped_setting_costs_no_finished_run(tmp_path: Path) -> None:
    """What an earlier run left stays to the byte; the refusal is on the terminal. Where none has begun yet, the last
    refusal is what the directory tells."""
    write_run(tmp_path / "run")
    before = contents(tmp_path / "run")
    for code, setting in [*MISTYPED.items(), ("model_missing", {"LANE_MODEL": "data"})]:
        ended = lane_child.run(tmp_path / "run", setting)
        assert ended.exit_code == 3 and ended.printed_report["root_cause"].startswith(f"{code}: ")
        assert contents(tmp_path / "run") == before
        lane_child.assert_refused(lane_child.run(tmp_path / "new", setting), code)


def test_a_status_path_that_cannot_be_written_costs_no_finished_run(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    before = contents(tmp_path / "run")
    (tmp_path / "place").symlink_to("nowhere")
    ended = lane_child.run(tmp_path / "run", {"TRAIN_STATUS_PATH": str(tmp_path / "place" / "status.json")})
    assert ended.exit_code == 3 and ended.printed_report["root_cause"].startswith("run_directory_unusable: ")
    assert "TRAIN_STATUS_PATH" in ended.printed_report["next_unblock_action"]
    assert contents(tmp_path / "run") == before


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock, and what it holds."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lane.lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class _Attack:
    """Unpickled, it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "code ran"))


def _model_with(folder: Path, name: str, data: bytes | None) -> Path:
    model = folder / "musicgen_hostile"
    shutil.copytree(lane_child.ROOT / "data" / "musicgen_nano", model)
    (model / name).unlink()
    if data is not None:
        (model / name).write_bytes(data)
    return model


def _saved(value: Any) -> bytes:
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["state_dict.bin", "compression_state_dict.bin"])
@pytest.mark.parametrize("kind", ["zip", "plain"])
def test_pickle_that_runs_code_is_refused_unread(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the variable by which torch would be talked into running what a pickle asks for."""
    import pickle

    import torch

    from harness.lane.model import load_model
    from harness.lane.settings import read_settings

    proof = tmp_path / "proof"
    attack = {"xp.cfg": "a: 1", "best_state": _Attack(proof)}
    data = _saved(attack) if kind == "zip" else pickle.dumps(attack)
    model = _model_with(tmp_path, name, data)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(LaneError) as caught:
        load_model(read_settings({"LANE_MODEL": str(model)}), torch.float32)
    assert caught.value.code == "model_refused"
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ, "audiocraft's own torch.load would run pickles"
    assert name in caught.value.cause
    assert not proof.exists()


def test_model_that_cannot_be_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from harness.lane.model import identify_model
    from harness.lane.preflight import check_model
    from harness.lane.settings import read_settings

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    shipped = lane_child.ROOT / "data" / "musicgen_nano" / "state_dict.bin"
    package = torch.load(shipped, weights_only=True)
    nan = {**package, "best_state": {**package["best_state"]}}
    key = next(iter(nan["best_state"]))
    nan["best_state"][key] = torch.full_like(nan["best_state"][key], float("nan"))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4388149\n"
    evil = tmp_path / "evil"
    evil.write_bytes(b"")
    cases: dict[str, tuple[str, bytes | None, str]] = {
        "missing": ("state_dict.bin", None, "model_missing"),
        "empty": ("state_dict.bin", b"", "model_refused"),
        "text": ("state_dict.bin", b"hello", "model_refused"),
        "cut": ("state_dict.bin", shipped.read_bytes()[:100_000], "model_refused"),
        "a list": ("state_dict.bin", _saved([1, 2]), "model_refused"),
        "LFS": ("state_dict.bin", pointer, "model_is_lfs_pointer"),
        "NaN": ("state_dict.bin", _saved(nan), "model_not_finite"),
        "a codec in a file": ("compression_state_dict.bin", _saved({"pretrained": str(evil)}), "model_refused"),
        "a codec at an address": (
            "compression_state_dict.bin",
            _saved({"pretrained": "https://h/x"}),
            "model_refused",
        ),
    }
    for what, (name, data, code) in cases.items():
        model = _model_with(tmp_path / what, name, data)
        with pytest.raises(LaneError) as caught:
            identify_model(str(model))
        assert caught.value.code == code, f"{what}: {caught.value.cause}"
        assert name in caught.value.cause
    for text in ("https://example.invalid/model.bin", str(evil), str(tmp_path / "nowhere"), "a/b/c"):
        settings = read_settings({"LANE_MODEL": text, "LANE_RUN_DIR": str(tmp_path)})
        with pytest.raises(LaneError) as caught:
            check_model(settings, print)
        assert caught.value.code == "model_missing", f"{text}: {caught.value.cause}"
    if hasattr(os, "mkfifo"):
        model = _model_with(tmp_path / "fifo", "state_dict.bin", None)
        os.mkfifo(model / "state_dict.bin")
        with pytest.raises(LaneError, match="no regular file"):
            identify_model(str(model))


CONFIGURATIONS = {
    "a variable": "sample_rate: ${oc.env:SECRET}",
    "a variable within a text": "conditioners: {description: {model: t5, t5: {name: 't5-${oc.env:SECRET}'}}}",
    "escaped in YAML": 'a: {b: ["\\x24{oc.env:SECRET}"]}',
    "two steps": "a: ${oc.decode:${oc.env:SECRET}}",
    "a name that is made": "x: oc\na: ${${x}.env:SECRET}",
    "with a default": "a: ${oc.env:SECRET,0}",
    "with blanks": "a: ${ oc.env : SECRET }",
    "a resolver of a package": "a: ${now:%Y}",
    "in a list": "a: [1, [2, '${oc.env:SECRET}']]",
    "a multi-line text": "a: |\n  x\n  ${oc.env:SECRET}\n",
    "an alias": "a: &x [1]\nb: [*x, *x]",
    "a bomb of aliases": "a: &a [1]\n"
    + "".join(f"{n}: &{n} [*{p}, *{p}]\n" for n, p in zip("bcdef", "abcde", strict=True)),
    "without end": "a: " + "x" * (1 << 20),
    "nested without end": "[" * 5_000,
}


@pytest.mark.parametrize("what", CONFIGURATIONS)
def test_a_model_s_configuration_reads_nothing_but_itself(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.lane.hub import read_config
    from harness.lane.model import check_model_files

    monkeypatch.setenv("SECRET", "hunter2")
    for name in ("state_dict.bin", "compression_state_dict.bin"):
        path = tmp_path / name
        path.write_bytes(_saved({"xp.cfg": CONFIGURATIONS[what], "best_state": {}}))
        with pytest.raises(LaneError) as caught:
            check_model_files({name: path})
        assert caught.value.code == "model_refused" and "hunter2" not in str(caught.value)
    whole = read_config("channels: 1\nseanet: {channels: '${channels}', causal: '${.channels}'}\n")
    assert whole.seanet.channels == 1, "places of the same file, as audiocraft's own configurations name them"


def test_a_model_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    """Before it is asked for: a terabyte over one value, a pickle that makes bytes, packed members."""
    import io
    import pickle
    import zipfile

    import torch

    from harness.lane.model import check_model_files

    class Bytes:
        def __reduce__(self) -> Any:
            return bytearray, (1 << 42,)

    large = torch.zeros(1).as_strided((1 << 20, 1 << 20), (0, 0))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": "b" * 100_000}))
    sparse = torch.sparse_coo_tensor(
        torch.zeros(2, 0, dtype=torch.int64), [], (1 << 30, 1 << 30), check_invariants=True
    )
    cases = [_saved({"xp.cfg": "", "best_state": {"w": value}}) for value in (large, sparse, "text", [1], Bytes())]
    cases += [packed.getvalue(), _saved({"xp.cfg": {"a": "${oc.env:SECRET}"}, "best_state": {}})]
    for data in cases:
        path = tmp_path / "state_dict.bin"
        path.write_bytes(data)
        with pytest.raises(LaneError) as caught:
            check_model_files({"state_dict.bin": path})
        assert caught.value.code == "model_refused"


if __name__ == "__main__":  # the table of docs/safety.md
    sys.stdout.write("| input | refused as |\n|---|---|\n")
    sys.stdout.writelines(f"| {case.what} | `{case.code}` |\n" for case in CASES)


def test_a_folder_of_clips_counts_as_a_whole(tmp_path: Path) -> None:
    """Each is small; together they are enough. KNOWLEDGE_SOURCE_DIR alone says where they are."""
    import soundfile

    from harness.lane.settings import REPOSITORY

    narration = REPOSITORY / "data" / "knowledge_audio_source" / "auntie_dottie.flac"
    samples, rate = soundfile.read(narration, dtype="int16", frames=96 * 32_000)
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(2):
        soundfile.write(clips / f"{number}.flac", samples[number * 48 * rate : (number + 1) * 48 * rate], rate)
    assert max(path.stat().st_size for path in clips.iterdir()) < 5_000_000
    settings = {"KNOWLEDGE_SOURCE_DIR": str(clips), "RUN_TRAIN": "0"}
    ended = lane_child.run(tmp_path / "run", settings)
    assert ended.exit_code == 0, ended.stderr
    assert ended.report["manifest_entry_count"] == "2" and ended.report["audio_path"].startswith(str(clips))
    (clips / "1.flac").unlink()
    ended = lane_child.run(tmp_path / "run2", settings)
    lane_child.assert_refused(ended, "audio_too_small", "last 48 s", "3,072,000 bytes as 16-bit PCM")

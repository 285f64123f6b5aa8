"""What PyAV decodes and libsndfile does not: .m4a, .mp4 and .aac, whole and broken, with PyAV and without it."""

from __future__ import annotations

import errno
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from harness.base.files import TEMPORARY_PREFIX, file_sha256
from harness.lane import pyav
from harness.lane.audio import AudioStream, inspect_audio
from harness.lane.dataset import prepare_dataset, read_manifest
from harness.lane.errors import LaneError
from harness.lane.preflight import audio_in
from harness.lane.settings import read_settings
from tests.support import audio_files as audio
from tests.support import lane_child

RATE = 32_000
KINDS = {  # how each is made: name, coding, format of the samples, options
    "m4a": ("take.m4a", "aac", "fltp", {}),
    "m4a with its table before the samples": ("take.m4a", "aac", "fltp", {"movflags": "faststart"}),
    "lossless m4a": ("take.m4a", "alac", "s16p", {}),
    "mov of PCM": ("take.mov", "pcm_s16le", "s16", {}),
    "aac": ("take.aac", "aac", "fltp", {}),
}


def encoded(path: Path, samples: NDArray[np.float64], coding: str, form: str, options: dict[str, str]) -> Path:
    """``samples`` (``[frames, channels]``) as ffmpeg's own encoders write them."""
    import av

    wave = samples.T.astype(np.float32)
    if form.startswith("s16"):
        whole = (samples * 32767).astype(np.int16)
        wave = whole.T if form.endswith("p") else whole.reshape(1, -1)
    layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream(coding, rate=RATE, layout=layout)
        stream.format = form
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), format=form, layout=layout)
        frame.rate, frame.pts = RATE, 0
        for given in (frame, None):
            for packet in stream.encode(given):
                container.mux(packet)
    return path


@pytest.fixture
def take(tmp_path: Path) -> Callable[..., Path]:
    def make(kind: str = "m4a", seconds: float = 3, channels: int = 1, folder: str = "source") -> Path:
        pytest.importorskip("av", reason="PyAV is not installed: python3 -m pip install av")
        name, *how = KINDS[kind]
        (tmp_path / folder).mkdir(exist_ok=True)
        samples = audio.voice(seconds, channels=channels) * 0.5
        return encoded(tmp_path / folder / name, samples, *how)  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_whole_recording_is_decoded_to_its_last_sample(kind: str, channels: int, take: Callable[..., Path]) -> None:
    samples = audio.voice(3, channels=channels) * 0.5
    with AudioStream(take(kind, channels=channels)) as stream:
        decoded = np.concatenate(list(stream.blocks()))
    assert (stream.sample_rate, stream.channels) == (RATE, channels)
    before = 1024 if kind == "aac" else 0  # nothing in such a file says how much the encoder put before the sound
    assert before + len(samples) <= len(decoded) <= before + len(samples) + 1024  # and it fills its last packet
    if kind in ("lossless m4a", "mov of PCM"):
        np.testing.assert_array_equal(decoded, (samples * 32767).astype(np.int16) / 32768)
    else:
        shared = decoded[before:][: len(samples)] - samples
        assert np.square(shared).mean() < 0.6 * np.square(samples).mean()  # noise is hard to code, and it is this noise


def broken(data: bytes, how: str) -> bytes:
    half = len(data) // 2
    return {
        "cut": data[:half],
        "a stretch is missing": data[:half] + data[half + 3000 :],
        "zeros in the middle": data[:half] + bytes(4000) + data[half + 4000 :],
        "bits flipped": data[:half] + bytes(byte ^ 0xFF for byte in data[half : half + 400]) + data[half + 400 :],
        "something follows": data + b"this is no audio, and longer than a header",
    }[how]


@pytest.mark.parametrize(
    "how", ["cut", "a stretch is missing", "zeros in the middle", "bits flipped", "something follows"]
)
@pytest.mark.parametrize("kind", ["m4a", "m4a with its table before the samples", "lossless m4a", "aac"])
def test_broken_recording_is_refused(kind: str, how: str, take: Callable[..., Path]) -> None:
    path = take(kind)
    path.write_bytes(broken(path.read_bytes(), how))
    with pytest.raises(LaneError) as caught:
        inspect_audio(path)
    assert caught.value.code in ("audio_cut_short", "audio_damaged", "audio_undecodable"), caught.value.cause
    assert path.name in caught.value.cause
    assert caught.value.action


def mutated(whole: bytes, chance: random.Random) -> bytes:
    """Cut, with bits flipped or with zeros, as often as not in the tables of an MP4."""
    table = max(0, whole.find(b"moov"))
    at = chance.choice([chance.randrange(len(whole)), min(table + chance.randrange(800), len(whole) - 1)])
    stretch = whole[at : at + chance.choice([1, 4, 40, 400])]
    flipped = bytes(byte ^ chance.randrange(256) for byte in stretch)
    middle = chance.choice([None, bytes(len(stretch)), flipped, flipped])
    return whole[:at] if middle is None else whole[:at] + middle + whole[at + len(stretch) :]


@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_are_samples_or_refused(kind: str, take: Callable[..., Path]) -> None:
    """FFmpeg has some fifty errors, and each of them is of the file: none ends the run as an internal error."""
    path = take(kind, seconds=1)
    whole, chance = path.read_bytes(), random.Random(kind)
    refused = 0
    for _ in range(60):
        path.write_bytes(mutated(whole, chance))
        try:
            inspect_audio(path)
        except LaneError as error:
            refused += 1
            assert path.name in error.cause
    assert refused > 20


def test_file_is_read_as_what_it_was_recognised_as(take: Callable[..., Path]) -> None:
    """FFmpeg would take this one for MPEG-TS, and find as many packets there as the AAC around it promises."""
    path = take("aac", seconds=0.03)
    import av

    stream = encoded(path.with_suffix(".ts"), audio.voice(0.03), "aac", "fltp", {}).read_bytes()
    stream += (b"\x47\x1f\xff\x10" + b"\xff" * 184) * 40
    half = len(stream) // 2
    header = bytes([0xFF, 0xF1, 0x54, 0x40 | (half + 7) >> 11, (half + 7) >> 3 & 255, (half + 7 & 7) << 5 | 31, 0xFC])
    path.write_bytes(header + stream[:half] + header + stream[half:])
    with av.open(str(path)) as container:
        assert container.format.name == "mpegts"
    with pytest.raises(LaneError) as caught:
        inspect_audio(path)
    assert caught.value.code == "audio_undecodable"


def test_lack_of_memory_is_the_machines_where_there_is_none_left(
    take: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg says the same of a file whose tables ask for gigabytes: that one is refused as any other is."""
    path = take()
    import av

    def fails(*_: object, **__: object) -> None:
        raise av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(av, "open", fails)
    with pytest.raises(LaneError, match="more memory than"):
        inspect_audio(path)
    monkeypatch.setattr(pyav, "DECODER_BYTES", 1 << 62)
    with pytest.raises(MemoryError):
        inspect_audio(path)


def test_two_mp4_in_one_file_are_refused_with_the_command_that_parts_them(take: Callable[..., Path]) -> None:
    path = take()
    whole = path.read_bytes()
    path.write_bytes(whole + whole)
    with pytest.raises(LaneError) as caught:
        inspect_audio(path)
    assert caught.value.code == "audio_more_than_promised"
    assert f"head -c {len(whole)} " in caught.value.action


def test_without_pyav_both_ways_out_are_named(take: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = take()
    monkeypatch.setattr(pyav, "is_installed", lambda: False)
    with pytest.raises(LaneError) as caught:
        inspect_audio(path)
    assert caught.value.code == "audio_unsupported"
    assert "ffmpeg -i " in caught.value.action
    assert pyav.INSTALL in caught.value.action


def test_placeholder_of_the_lanes_own_is_not_taken_for_pyav() -> None:
    code = "from harness.lane import audiocraft_import, pyav; audiocraft_import._add_placeholders('av', ()); "
    code += "print(pyav.is_installed())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


def test_staged_as_wav_that_any_reader_reads(take: Callable[..., Path], tmp_path: Path) -> None:
    """The same bytes each time; the manifest names the recording's own digest; what a killed run left goes."""
    path = take("m4a", seconds=4)
    settings = read_settings(
        {"LANE_RUN_DIR": str(tmp_path / "run"), "AUDIO_PATH": str(path), "LANE_CHUNK_SECONDS": "0.5"}
    )
    first = prepare_dataset(settings, inspect_audio(path))
    (entry,) = first["entries"]
    wav = settings.audio_dir / entry["target"]
    assert (entry["decoded_from"], entry["sha256"]) == (file_sha256(path), file_sha256(wav))
    with AudioStream(path) as stream:
        decoded = np.concatenate(list(stream.blocks()))
    read, rate = soundfile.read(wav, always_2d=True)
    assert rate == RATE
    assert np.abs(read - decoded).max() <= 2**-23
    killed = settings.audio_dir / f"{TEMPORARY_PREFIX}1-{file_sha256(path)[:12]}.wav"
    killed.write_bytes(bytes(44) + wav.read_bytes()[44:5000])
    somebodys = settings.audio_dir / f"{TEMPORARY_PREFIX}2-{file_sha256(path)[:12]}.wav"
    somebodys.write_bytes(b"notes that somebody keeps under a strange name, and that begin like nothing of ours")
    again = prepare_dataset(settings, inspect_audio(path))
    assert again["entries"] == first["entries"]
    assert set(settings.audio_dir.iterdir()) == {wav, somebodys, settings.manifest_path}
    assert read_manifest(settings)["entries"] == first["entries"]  # as RUN_PREPARE=0 does


def test_no_room_for_the_wav_is_a_full_disk(take: Callable[..., Path], tmp_path: Path) -> None:
    path = take("m4a", seconds=90)
    room = {resource.RLIMIT_FSIZE: 2_000_000}
    ended = lane_child.run(tmp_path / "run", {"AUDIO_PATH": str(path), "LANE_STEPS": "2"}, limits=room)
    lane_child.assert_refused(ended, "disk_full", "prepare", exit_code=1, status="failed")
    assert not lane_child.leftovers(tmp_path)


def test_lengths_are_counted_as_pcm(take: Callable[..., Path]) -> None:
    path = take("m4a", seconds=5)
    seconds, as_pcm = audio_in([path])
    assert 5 <= seconds < 5.1
    assert as_pcm == round(seconds * RATE) * 2
    assert path.stat().st_size < as_pcm / 2


def test_recording_in_a_folder_is_trained_on(take: Callable[..., Path], tmp_path: Path) -> None:
    """From an .m4a beside a FLAC to a checkpoint, in the lane's own process."""
    path = take("m4a", seconds=30)
    audio.write(path.parent / "other.flac", audio.voice(60, seed=1), subtype="PCM_16")
    settings = {"KNOWLEDGE_SOURCE_DIR": str(path.parent), "LANE_STEPS": "2"}
    ended = lane_child.run(tmp_path / "run", settings)
    assert ended.exit_code == 0, ended.stdout
    assert ended.report["manifest_entry_count"] == "2"
    assert ended.report["objective_status"] == "completed"

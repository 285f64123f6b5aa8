"""What lies in a recording's file is decoded to its end, or the file is refused by name: nothing is shortened silently.

In one process: small files, made by libsndfile, whose bytes are then joined, cut and padded here.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import audio_files as audio
import lane_child
import numpy as np
import pytest
import soundfile

from harness.lane import pyav
from harness.lane.audio import AudioStream, inspect_audio
from harness.lane.containers import kind_of
from harness.lane.dataset import prepare_dataset, same_content
from harness.lane.errors import LaneError
from harness.lane.settings import read_settings

pytestmark = pytest.mark.fault

Whole = Callable[..., bytes]
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "safety.md"

ID3V1 = b"TAG" + b" " * 125
ID3V2 = b"ID3\3\0\0\0\0\0\x0aTIT2" + bytes(6)
ITEM = struct.pack("<II", 3, 0) + b"Title\0abc"
APE_FOOT = b"APETAGEX" + struct.pack("<4I", 2000, len(ITEM) + 32, 1, 0x80000000) + bytes(8)
APE = b"APETAGEX" + struct.pack("<4I", 2000, len(ITEM) + 32, 1, 0xA0000000) + bytes(8) + ITEM + APE_FOOT
LYRICS = b"LYRICSBEGININD0000200000011LYRICS200"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """``whole("flac", seed=1, rate=16_000)``: the bytes of a recording of 1 s; made once."""
    made: dict[Any, bytes] = {}
    folder = tmp_path_factory.mktemp("whole")

    def make(kind: str, *, rate: int = audio.RATE, channels: int = 1, seed: int = 0, **options: Any) -> bytes:
        key = (kind, rate, channels, seed, *options.items())
        if key not in made:
            if kind == "opus":
                options |= {"format": "OGG", "subtype": "OPUS"}
            elif kind not in ("flac", "mp3", "ogg", "wav"):
                options |= {"format": kind.upper(), "subtype": options.get("subtype", "PCM_16")}
            path = folder / f"{len(made)}.{kind}"
            made[key] = audio.write(path, audio.voice(1.0, rate, channels, seed), rate, **options).read_bytes()
        return made[key]

    return make


def plain_mp3(whole: Whole, folder: Path, **options: Any) -> bytes:
    """An MP3 of constant bit rate without a Xing header: frames, and nothing that counts them."""
    data = whole("mp3", bitrate_mode="CONSTANT", compression_level=0.5, **options)
    (folder / "with.mp3").write_bytes(data)
    return audio.without_xing(folder / "with.mp3", folder / "without.mp3").read_bytes()


def unfilled(mp3: bytes) -> bytes:
    """An MP3 whose Info header says 0 frames."""
    at = mp3.index(b"Info") + 8
    return mp3[:at] + bytes(4) + mp3[at + 4 :]


def padded(mp3: bytes) -> bytes:
    """An MP3 whose encoder says that of its samples the first and the last 4,095 are padding."""
    at = mp3.index(b"Xing") + 141
    return mp3[:at] + b"\xff" * 3 + mp3[at + 3 :]


def vbri(mp3: bytes, frames: int) -> bytes:
    """An MP3 behind a frame with Fraunhofer's header."""
    header = mp3[:4] + bytes(32) + b"VBRI" + struct.pack(">3H2I", 1, 0, 75, 0, frames)
    return header + bytes(mp3.index(mp3[:3], 4) - len(header)) + mp3


def with_block(flac: bytes, block: bytes) -> bytes:
    """A FLAC with one more block of metadata, an application's, after its first one."""
    return flac[:42] + b"\2" + len(block).to_bytes(3, "big") + block + flac[42:]


def layer2(frames: int) -> bytes:
    """MPEG 1, layer II, 64 kbit/s, 32 kHz, mono: silence, as nothing is allocated to any band."""
    return (b"\xff\xfd\x48\xc0" + bytes(284)) * frames


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)


def says(data: bytes, name: bytes, length: int, form: str = "<I", after: int = 4) -> bytes:
    """A file whose chunk ``name`` claims another length."""
    at = data.index(name) + after
    return data[:at] + struct.pack(form, length) + data[at + struct.calcsize(form) :]


def half(data: bytes, name: bytes, form: str = "<I", after: int = 4) -> bytes:
    at = data.index(name) + after
    (length,) = struct.unpack_from(form, data, at)
    return says(data, name, length // 2, form, after)


W, Bytes = "wav", Callable[[Whole, Path], bytes]
# What has all its samples, whatever else: the file, and the same one as libsndfile needs no help to read it.
READ: dict[str, tuple[Bytes, Bytes]] = {
    "MP3 after an ID3v2 tag and zeros": (
        lambda w, f: ID3V2 + bytes(1024) + plain_mp3(w, f),
        lambda w, f: plain_mp3(w, f),
    ),
    "MP3 after 5,000 zeros": (lambda w, f: bytes(5000) + w("mp3"), lambda w, f: w("mp3")),
    "MP3 behind an APE tag": (lambda w, f: APE + w("mp3"), lambda w, f: w("mp3")),
    "MP3 with APE and ID3v1 tags": (lambda w, f: w("mp3") + APE + ID3V1, lambda w, f: w("mp3")),
    "MP3 with an APE tag that has a footer alone": (lambda w, f: w("mp3") + ITEM + APE_FOOT, lambda w, f: w("mp3")),
    "MP3 with lyrics": (lambda w, f: w("mp3") + LYRICS + ID3V1, lambda w, f: w("mp3")),
    "two MP3 without Xing headers, a tag between": (
        lambda w, f: plain_mp3(w, f) + ID3V1 + plain_mp3(w, f, seed=1),
        lambda w, f: plain_mp3(w, f) + plain_mp3(w, f, seed=1),
    ),
    "MP3 of constant bit rate whose Info header was never filled in": (
        lambda w, f: unfilled(w("mp3", bitrate_mode="CONSTANT", compression_level=0.5)),
        lambda w, f: unfilled(w("mp3", bitrate_mode="CONSTANT", compression_level=0.5)),
    ),
    "MP3 with 8,190 samples of padding": (lambda w, f: padded(w("mp3")), lambda w, f: padded(w("mp3"))),
    "MPEG layer II": (lambda w, f: layer2(40), lambda w, f: layer2(40)),
    "FLAC with an ID3v1 tag": (lambda w, f: w("flac") + ID3V1, lambda w, f: w("flac")),
    "FLAC with zeros and an APE tag": (lambda w, f: w("flac") + bytes(70_000) + APE, lambda w, f: w("flac")),
    "FLAC whose picture holds a FLAC and an MP3": (
        lambda w, f: with_block(w("flac"), w("flac") + w("mp3")),
        lambda w, f: w("flac"),
    ),
    "Ogg with zeros": (lambda w, f: w("ogg") + bytes(512), lambda w, f: w("ogg")),
    "WAV with chunks after the samples": (
        lambda w, f: (
            w(W) + chunk(b"LIST", b"INFOISFT\5\0\0\0Lavf\0") + chunk(b"id3 ", ID3V2) + chunk(b"bext", bytes(602))
        ),
        lambda w, f: w(W),
    ),
    "WAV with a chunk of odd length that is not padded": (
        lambda w, f: w(W) + chunk(b"LIST", b"INFO?")[:-1] + chunk(b"iXML", b"<x/>"),
        lambda w, f: w(W),
    ),
    "WAV with zeros and an ID3v1 tag": (lambda w, f: w(W) + bytes(300) + ID3V1, lambda w, f: w(W)),
    "WAV behind an ID3v2 tag": (lambda w, f: ID3V2 + w(W), lambda w, f: w(W)),
    "WAV from a pipe, length 0xFFFFFFFF": (
        lambda w, f: says(says(w(W), b"RIFF", 0xFFFFFFFF), b"data", 0xFFFFFFFF),
        lambda w, f: w(W),
    ),
    "WAV from a pipe, as sox writes it": (lambda w, f: says(w(W), b"data", 0x7FFFF000), lambda w, f: w(W)),
    "WAV from a pipe, the unknown length less the heads": (
        lambda w, f: says(w(W), b"data", 0xFFFFFFFF - 36),
        lambda w, f: w(W),
    ),
    "WAV of a recorder that was killed": (lambda w, f: says(says(w(W), b"RIFF", 8), b"data", 0), lambda w, f: w(W)),
    "WAV whose RIFF length is wrong": (lambda w, f: says(w(W), b"RIFF", 99), lambda w, f: w(W)),
    "RIFX": (lambda w, f: w(W, endian="BIG"), lambda w, f: w(W)),
    "RF64": (lambda w, f: w("rf64"), lambda w, f: w(W)),
    "AIFF": (lambda w, f: w("aiff"), lambda w, f: w(W)),
    "AIFF from a pipe": (
        lambda w, f: says(says(says(w("aiff"), b"FORM", 0), b"SSND", 0), b"COMM", 0, ">I", 10),
        lambda w, f: w(W),
    ),
    "W64": (lambda w, f: w("w64"), lambda w, f: w(W)),
    "W64 from a pipe": (
        lambda w, f: says(says(w("w64"), b"riff", (1 << 64) - 1, "<Q", 16), b"data", (1 << 63) - 1, "<Q", 16),
        lambda w, f: w(W),
    ),
    "W64 with a chunk after the samples": (
        lambda w, f: w("w64") + b"list" + w("w64")[44:56] + struct.pack("<Q", 88) + b"3" * 64,
        lambda w, f: w(W),
    ),
    "AU": (lambda w, f: w("au"), lambda w, f: w(W)),
    "AU from a pipe": (lambda w, f: says(w("au"), b".snd", 0xFFFFFFFF, ">I", 8), lambda w, f: w(W)),
    "CAF": (lambda w, f: w("caf"), lambda w, f: w(W)),
}


@pytest.mark.parametrize("what", READ)
def test_read_to_its_end(what: str, whole: Whole, tmp_path: Path) -> None:
    """The content decides: the name is one of no format."""
    make, same = READ[what]
    path, simple = tmp_path / "recording.raw", tmp_path / "simple"
    path.write_bytes(make(whole, tmp_path))
    simple.write_bytes(same(whole, tmp_path))
    with AudioStream(path) as stream:
        found = np.concatenate(list(stream.blocks()))
    expected = soundfile.read(str(simple), always_2d=True)[0]
    assert len(expected) > 20_000
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-6  # mpg123's last bits depend on how much it is asked for at a time


MORE = "audio_more_than_promised"
# What the header promises less of, or more, than there is: refused with this code, and with this in the text.
REFUSED: dict[str, tuple[Bytes, str, str]] = {
    "MP3 after MP3": (lambda w, f: w("mp3") + ID3V2 + w("mp3", seed=1), MORE, "MP3 frames"),
    "MP3 after MP3, without Xing headers, at another rate": (
        lambda w, f: plain_mp3(w, f) + plain_mp3(w, f, rate=44_100),
        MORE,
        "44,100 Hz",
    ),
    "MP3 after MP3, without Xing headers, stereo": (
        lambda w, f: plain_mp3(w, f) + plain_mp3(w, f, channels=2),
        MORE,
        "stereo",
    ),
    "FLAC after MP3": (lambda w, f: w("mp3") + w("flac"), MORE, "FLAC"),
    "MP3 and other bytes": (lambda w, f: w("mp3") + b"and so on", MORE, "9 more bytes"),
    "M4A after MP3": (lambda w, f: w("mp3") + b"\0\0\0\x20ftypM4A " + bytes(999), MORE, "M4A"),
    "MP3 with a VBRI header, cut between two frames": (
        lambda w, f: vbri(plain_mp3(w, f), 500),
        "audio_cut_short",
        "500",
    ),
    "MP3 that begins within a frame": (lambda w, f: plain_mp3(w, f)[100:], "audio_damaged", "no MP3 frame"),
    "MP3 after 100,000 zeros": (lambda w, f: ID3V2 + bytes(100_000) + w("mp3"), "audio_damaged", "100,000 zero"),
    "FLAC after FLAC": (lambda w, f: w("flac") + w("flac", seed=1), MORE, "FLAC"),
    "FLAC, the same twice": (lambda w, f: w("flac") * 2, MORE, "FLAC"),
    "MP3 after FLAC": (lambda w, f: w("flac") + ID3V2 + w("mp3"), MORE, "MP3"),
    "FLAC and other bytes": (lambda w, f: w("flac") + b"and so on", MORE, "last frame"),
    "Ogg after Ogg": (lambda w, f: w("ogg") + w("ogg", seed=1), MORE, "Ogg"),
    "Ogg, the same twice": (lambda w, f: w("ogg") * 2, MORE, "Ogg"),
    "Opus after Opus": (lambda w, f: w("opus", rate=48_000) * 2, MORE, "Ogg"),
    "Ogg and other bytes": (lambda w, f: w("ogg") + b"and so on", MORE, "9 more bytes"),
    "WAV after WAV": (lambda w, f: w(W) * 2, MORE, "WAV"),
    "WAV from a pipe, twice": (
        lambda w, f: says(says(w(W), b"RIFF", 0xFFFFFFFF), b"data", 0xFFFFFFFF) * 2,
        MORE,
        "64,044",
    ),
    "AU from a pipe, twice": (lambda w, f: says(w("au"), b".snd", 0xFFFFFFFF, ">I", 8) * 2, MORE, "64,024"),
    "WAV whose data chunk ends too early": (lambda w, f: half(w(W), b"data"), MORE, "32,000 more bytes"),
    "WAV with two data chunks": (lambda w, f: w(W) + chunk(b"data", b"\1\2" * 99), MORE, "second chunk"),
    "WAV with samples behind its last chunk": (
        lambda w, f: w(W) + chunk(b"LIST", b"INFO") + b"\1\2" * 99,
        MORE,
        "198 more bytes",
    ),
    "WAV of length 0 in a whole RIFF": (lambda w, f: says(w(W), b"data", 0), "audio_no_samples", "32,000 follow"),
    "WAV whose data chunk is one sample too long": (
        lambda w, f: says(w(W), b"data", 64_002),
        "audio_cut_short",
        "64,002",
    ),
    "WAV in a coding that libsndfile does not read": (
        lambda w, f: w(W).replace(b"fmt \x10\0\0\0\1\0", b"fmt \x10\0\0\0\0\x20"),
        "audio_unsupported",
        "whole WAV",
    ),
    "WAV that holds MP3": (
        lambda w, f: w(W).replace(b"fmt \x10\0\0\0\1\0", b"fmt \x10\0\0\0\x55\0"),
        "audio_unsupported",
        "MP3 in a WAV",
    ),
    "RIFX whose data chunk ends too early": (lambda w, f: half(w(W, endian="BIG"), b"data", ">I"), MORE, "more bytes"),
    "RF64 of unknown length": (
        lambda w, f: says(w("rf64"), b"ds64", 0, "<Q", 16),
        "audio_unverifiable",
        "how long",
    ),
    "AIFF after AIFF": (lambda w, f: w("aiff") * 2, MORE, "AIFF"),
    "AIFF, cut": (lambda w, f: w("aiff")[:-500], "audio_cut_short", "data chunk"),
    "AIFF that promises more samples": (
        lambda w, f: says(w("aiff"), b"COMM", 64_000, ">I", 10),
        "audio_cut_short",
        "64,000",
    ),
    "AIFF whose samples end too early": (lambda w, f: half(w("aiff"), b"SSND", ">I"), MORE, "more bytes"),
    "W64 after W64": (lambda w, f: w("w64") * 2, MORE, "W64"),
    "W64, cut": (lambda w, f: w("w64")[:-500], "audio_cut_short", "data chunk"),
    "AU after AU": (lambda w, f: w("au") * 2, MORE, "AU"),
    "AU, cut": (lambda w, f: w("au")[:-500], "audio_cut_short", "64,000"),
    "CAF after CAF": (lambda w, f: w("caf") * 2, MORE, "CAF"),
    "CAF, cut": (lambda w, f: w("caf")[:-500], "audio_cut_short", "data chunk"),
    "CAF in a coding that libsndfile does not read": (
        lambda w, f: w("caf").replace(b"lpcm", b"alac"),
        "audio_unsupported",
        "whole CAF",
    ),
    "MP4": (lambda w, f: b"\0\0\0\x20ftypM4A " + bytes(999), "audio_unsupported", "M4A"),
    "AAC": (lambda w, f: b"\xff\xf1\x50\x80" + bytes(999), "audio_unsupported", "AAC"),
    "WebM": (lambda w, f: b"\x1a\x45\xdf\xa3" + bytes(999), "audio_unsupported", "WebM"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_for_what_it_is(what: str, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyav, "is_installed", lambda: False)  # with it: test_pyav.py
    make, code, names = REFUSED[what]
    path = tmp_path / "recording.flac"
    path.write_bytes(make(whole, tmp_path))
    with pytest.raises(LaneError, match=r"recording\.flac: ") as caught:
        inspect_audio(path)
    assert caught.value.code == code, caught.value.cause
    assert names in caught.value.cause
    assert caught.value.action


@pytest.mark.parametrize("kind", ["flac", "ogg", "wav", "aiff", "w64", "caf", "au"])
def test_the_command_that_is_printed_for_two_files_in_one_gives_both(kind: str, whole: Whole, tmp_path: Path) -> None:
    path = tmp_path / f"it's two.{kind}"
    path.write_bytes(whole(kind) + whole(kind, seed=1))
    with pytest.raises(LaneError) as caught:
        inspect_audio(path)
    subprocess.run(["sh", "-c", caught.value.action.removeprefix("cut it there: ")], check=True)
    parts = [Path(f"{path}.{part}.{kind}").read_bytes() for part in (1, 2)]
    assert parts == [whole(kind), whole(kind, seed=1)]


def test_document_lists_both() -> None:
    rows = [*READ.keys(), "", "| input | refused as |", "|---|---|"]
    rows += [f"| {what} | `{code}` |" for what, (_, code, _) in REFUSED.items()]
    table = "\n".join([f"- {what}" for what in READ] + rows[len(READ) :])
    missing = [row for row in table.splitlines() if row not in DOCUMENT.read_text(encoding="utf-8")]
    assert not missing, f"{DOCUMENT} should hold these lines: {missing}\n\n{table}"


@pytest.mark.parametrize(
    "data",
    [
        "hello".encode("utf-16"),
        b"\xff\xfb\x90\0" + bytes(999),
        b"MAC address",
        b"ID3 is a tag",
        bytes(99_999),
        b"\xff" * 99,
    ],
)
def test_what_is_no_audio_is_not_taken_for_it(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "notes").write_bytes(data)
    assert kind_of(tmp_path / "notes") == ""


@pytest.mark.parametrize("kind", ["wav", "aiff", "w64", "caf", "au", "flac", "mp3", "ogg"])
def test_lengths_that_cannot_be_are_no_traceback(kind: str, whole: Whole, tmp_path: Path) -> None:
    """Every stretch of four and eight bytes of the header, set to all ones and to the largest number."""
    data, path = whole(kind), tmp_path / "recording"
    for at in range(0, 120, 3):
        for new in (b"\xff" * 4, b"\x7f" + b"\xff" * 7, b"\xff" * 7 + b"\x7f"):
            path.write_bytes(data[:at] + new + data[at + len(new) :])
            try:
                assert inspect_audio(path).frames
            except LaneError as error:
                assert error.code.startswith("audio_")


# What lies beside the narration.


def test_folder_is_gone_through_by_content(whole: Whole, tmp_path: Path) -> None:
    """Each file of it is in the data set or named as left out; what is no recording is neither."""
    source = tmp_path / "source"
    (source / ".git").mkdir(parents=True)
    recordings = {
        "take.flac": whole("flac"),
        "take (1).flac": whole("flac"),
        "a.opus": whole("opus", rate=48_000),
        "b.aiff": whole("aiff"),
        "c.oga": whole("ogg"),
        "d.W64": whole("w64"),
        "e.raw": whole("wav"),
        "no suffix": whole("mp3"),
        "wrong.wav": whole("caf"),
    }
    others = {
        "f.m4a": b"\0\0\0\x20ftypM4A " + bytes(99),
        "g.gsm": b"\xd0" * 3300,
        "h.aac": b"",
        "i": b"wvpk" + bytes(99),
    }
    neither = {"notes.txt": b"no audio", ".git/object": whole("flac"), "._take.flac": b"\0\5\x16\7" + bytes(99)}
    for name, data in (recordings | others | neither).items():
        (source / name).write_bytes(data)
    settings = read_settings(
        {
            "LANE_RUN_DIR": str(tmp_path / "run"),
            "AUDIO_PATH": str(source / "take.flac"),
            "KNOWLEDGE_SOURCE_DIR": str(source),
            "LANE_CHUNK_SECONDS": "0.5",
        }
    )
    manifest = prepare_dataset(settings, inspect_audio(source / "take.flac"))
    assert {Path(entry["source"]).name for entry in manifest["entries"]} == set(recordings)
    assert [line.split(": ")[0] for line in manifest["left_out"]] == [str(source / name) for name in sorted(others)]
    assert manifest["skipped"] == []
    for entry in manifest["entries"]:  # any reader gets from the staged name what the lane got from the content
        assert soundfile.info(str(settings.audio_dir / entry["target"])).frames == entry["frames"]
    (equal,) = same_content(manifest)
    assert "take (1).flac and " in equal


def test_links_that_lead_nowhere_are_left_out_when_asked_for(whole: Whole, tmp_path: Path) -> None:
    """Named on the terminal, as are files of equal content; the narration itself is never left out."""
    source = tmp_path / "source"
    source.mkdir()
    audio.write(source / "good.flac", audio.voice(90), subtype="PCM_16")
    (source / "good (1).flac").hardlink_to(source / "good.flac")
    (tmp_path / "elsewhere.flac").hardlink_to(source / "good.flac")
    bad = {"gone.mp3": "nowhere", "loop.mp3": "loop.mp3", "up": "..", "outside.flac": "../elsewhere.flac"}
    for name, target in bad.items():
        (source / name).symlink_to(target)
    settings = {"KNOWLEDGE_SOURCE_DIR": str(source), "RUN_TRAIN": "0", "LANE_SKIP_BAD_FILES": "1"}
    ended = lane_child.run(tmp_path / "run", {**settings, "AUDIO_PATH": str(source / "good.flac")})
    assert ended.exit_code == 0, ended.stdout
    skipped = [line for line in ended.stdout.splitlines() if line.startswith("SKIPPED ")]
    assert sorted(Path(line.split(": ")[0]).name for line in skipped) == sorted(bad)
    assert [line for line in ended.stdout.splitlines() if line.startswith("EQUAL ") and "good (1).flac" in line]
    assert ended.report["manifest_entry_count"] == "2"
    ended = lane_child.run(tmp_path / "run", {**settings, "AUDIO_PATH": str(source / "outside.flac")})
    lane_child.assert_refused(ended, "audio_link_outside", "outside.flac")

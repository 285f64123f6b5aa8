"""What all containers share: how files begin, the tags that programs put before and behind the audio, MPEG's frames."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import IO

BLOCK = 1 << 20
LARGEST_PADDING = 1 << 16  # zeros before the first MP3 frame; past it libsndfile gives up
# How files begin: those that READERS reads, and other audio, which is named. (MP3 has no such mark: see _kind.)
STARTS = tuple(
    (kind, re.compile(start, re.DOTALL))
    for kind, start in (
        ("FLAC", rb"fLaC"),
        ("Ogg", rb"OggS.{22}\x01.(\x01vorbis|OpusHead)"),
        ("FLAC in Ogg", rb"OggS.{22}\x01.\x7fFLAC"),
        ("Speex", rb"OggS.{22}\x01.Speex"),
        ("Ogg with neither Vorbis nor Opus first", rb"OggS"),
        ("WAV", rb"(RIF[FX]|RF64)....WAVE"),
        ("W64", rb"riff\x2e\x91\xcf\x11"),
        ("AIFF", rb"FORM....AIF[FC]"),
        ("CAF", rb"caff"),
        ("AU", rb"\.snd|dns\."),
        ("MP4, M4A or QuickTime", rb"....(ftyp|moov|mdat)"),
        ("AVI", rb"RIFF....AVI "),
        ("Flash video", rb"FLV\x01"),
        ("AAC", rb"\xff[\xf0\xf1\xf8\xf9]|ADIF"),
        ("Windows Media", rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
        ("Matroska or WebM", rb"\x1a\x45\xdf\xa3"),
        ("AMR", rb"#!AMR"),
        ("WavPack", rb"wvpk"),
        ("True Audio", rb"TTA[12]"),
        ("Monkey's Audio", rb"MAC .\x0f"),
        ("Musepack", rb"MPCK|MP\+[\x07\x17]"),
        ("AC-3", rb"\x0b\x77"),
        ("DTS", rb"\x7f\xfe\x80\x01"),
        ("DSD", rb"DSD \x1c|FRM8.{8}DSD "),
        ("RealAudio", rb"\.ra\xfd|\.RMF"),
        ("BW64", rb"BW64"),
        ("Creative Voice", rb"Creative Voice File\x1a"),
        ("NIST Sphere", rb"NIST_1A"),
        ("AVR", rb"2BIT"),
        ("IRCAM", rb"\x64\xa3[\x01-\x04]\0|\0[\x01-\x04]\xa3\x64"),
        ("Amiga IFF", rb"FORM....(8SVX|16SV)"),
    )
)


class DefectError(Exception):
    """The container contradicts itself or the file. ``code`` is stable; the text says what was found, and ``at``
    from which byte on something else begins (0: not known)."""

    def __init__(self, code: str, found: str, at: int = 0) -> None:
        super().__init__(found)
        self.code, self.at = code, at


@dataclass(frozen=True)
class Promise:
    """What the container says: ``frames`` (None: libsndfile's own count is all there is), how far the decoder may be
    off it (``slack``), for FLAC the MD5 of the samples at ``bits`` each, and for AAC how many ``packets``
    there are. libsndfile is to see the bytes from
    ``start`` to ``end`` (0: all). ``rest``: what follows the samples, which tells only if they are whole."""

    frames: int | None = None
    slack: int = 0
    md5: bytes | None = None
    bits: int = 0
    packets: int = 0
    start: int = 0
    end: int = 0
    rest: DefectError | None = None


def kind_from(file: IO[bytes], position: int = 0) -> tuple[str, int]:
    """What begins at ``position``, and where its audio does, behind the tags that some programs put before it."""
    start = position
    while tag := _id3(file, start) or _ape(file, start):
        start += tag
    file.seek(start)
    head = file.read(64)
    for kind, pattern in STARTS:
        if pattern.match(head):
            return kind, start
    first = start + zeros_at(file, start, LARGEST_PADDING)
    frame = mpeg_frame(file, first)
    # One header is 11 bits, and text in UTF-16 begins with them: the next frame must follow.
    if frame and (mpeg_frame(file, first + frame[0]) or start > position):
        return "MP3", first
    return ("MP3" if start > position else ""), start


# MPEG audio: layers II and III

LAYER2_KBITS = (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 0)
LAYER3_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
MPEG2_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
MPEG1_RATES = (44100, 48000, 32000, 0)


def mpeg_frame(file: IO[bytes], position: int) -> tuple[int, int, str] | None:
    """(bytes, samples, layer and form) of the MPEG frame at ``position``; None if there is none."""
    file.seek(position)
    head = file.read(4)
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0 or head[1] >> 1 & 3 not in (1, 2):
        return None
    version = head[1] >> 3 & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    layer = 4 - (head[1] >> 1 & 3)
    kbits = (MPEG2_KBITS if version != 3 else LAYER2_KBITS if layer == 2 else LAYER3_KBITS)[head[2] >> 4]
    rate = MPEG1_RATES[head[2] >> 2 & 3] // {3: 1, 2: 2, 0: 4, 1: 1}[version]
    if version == 1 or not kbits or not rate:
        return None
    samples = 1152 if version == 3 or layer == 2 else 576
    form = f"layer {layer}, {rate:,} Hz, {'mono' if head[3] >> 6 == 3 else 'stereo'}"
    return samples // 8 * kbits * 1000 // rate + (head[2] >> 1 & 1), samples, form


def first_frames(file: IO[bytes], start: int, end: int) -> int:
    """Where, between two positions, four MP3 frames follow each other; 0 if nowhere."""
    for base in range(start, end, BLOCK):
        file.seek(base)
        for found in re.finditer(rb"\xff[\xe0-\xff]", file.read(min(BLOCK, end - base) + 1)):
            first = position = base + found.start()
            for _ in range(4):
                frame = mpeg_frame(file, position)
                if frame is None:
                    break
                position += frame[0]
            else:
                return first
    return 0


# What may follow the audio: tags and padding, and no more.


def _id3(file: IO[bytes], position: int) -> int:
    """The length of the ID3v2 tag at ``position``; 0 if there is none."""
    file.seek(position)
    head = file.read(10)
    if head[:3] != b"ID3" or len(head) < 10 or head[3] > 15 or max(head[6:10]) > 127:
        return 0
    length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + length + (10 if head[5] & 0x10 else 0)


def _ape(file: IO[bytes], position: int) -> int:
    """The length of the APE tag with a header at ``position``; 0 if there is none."""
    file.seek(position)
    head = file.read(32)
    has_head = len(head) == 32 and head[:8] == b"APETAGEX" and head[23] & 0x20
    return 32 + int.from_bytes(head[12:16], "little") if has_head else 0


def zeros_at(file: IO[bytes], position: int, most: int) -> int:
    """How many zero bytes lie from ``position`` on, counted up to ``most``."""
    count = 0
    file.seek(position)
    while count < most and (piece := file.read(min(BLOCK, most - count))):
        more = len(piece) - len(piece.lstrip(b"\0"))
        count += more
        if more < len(piece):
            break
    return count


def tag_at(file: IO[bytes], position: int, size: int) -> int:
    """The length of the tag at ``position``, of a kind that players put behind the audio; 0 if there is none."""
    for end in (size, size - 128):  # an APE tag may have a footer alone, before an ID3v1 tag or at the end
        file.seek(max(0, end - 32))
        foot = file.read(32)
        if foot[:8] == b"APETAGEX" and end - int.from_bytes(foot[12:16], "little") == position:
            return end - position
    file.seek(position)
    head = file.read(32)
    if head[:11] == b"LYRICSBEGIN":
        file.seek(position)
        found = re.search(rb"LYRICS(200|END)", file.read(BLOCK))
        return found.end() if found else 0
    for mark, length in ((b"TAG+", 227), (b"TAG", 128), (b"3DI", 10)):
        if head.startswith(mark):
            return length
    return _id3(file, position) or _ape(file, position)


def after_tags(file: IO[bytes], position: int, size: int) -> int:
    """Where the bytes go on behind tags and zeros."""
    while position < size and (more := tag_at(file, position, size) or zeros_at(file, position, size - position)):
        position += more
    return position


def check_end(file: IO[bytes], position: int, size: int) -> None:
    """Raises DefectError if more than tags and padding follow the end of the audio at ``position``."""
    after = after_tags(file, position, size)
    if after < size:
        kind = kind_from(file, after)[0] or kind_from(file, position)[0]
        found = f"{size - after:,} more bytes follow the end of its audio, from byte {after:,} on"
        raise DefectError("audio_more_than_promised", found + (f": {kind}" if kind else ""), position)

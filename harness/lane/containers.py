"""What an audio file says of its own length and content, read without decoding it.

Decoders are forgiving: libsndfile returns what it could decode of a cut MP3 or Ogg file, fills a damaged stretch of
Opus, and shortens a WAV whose header promises more than the file has, without a word. Each container carries some
account of what should be there. It is read here, in one pass over the file and with bounded memory, and is held
against what was decoded (audio.py).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LARGEST_WAV_HEADER = 1000  # chunks before the samples: past it, the file was made to be slow
# WAV formats whose samples have one size each: PCM, float, A-law, mu-law, extensible. Of others (ADPCM) libsndfile
# knows the length.
WAV_PLAIN_FORMATS = (1, 3, 6, 7, 0xFFFE)
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Promise:
    """What the container says: ``frames`` (None: libsndfile's own count is all there is), how far the decoder may be
    off it (``slack``), and for FLAC the MD5 of the samples at ``bits`` each."""

    frames: int | None = None
    slack: int = 0
    md5: bytes | None = None
    bits: int = 0


class DefectError(Exception):
    """The container contradicts itself or the file. ``code`` is stable; the text says what was found."""

    def __init__(self, code: str, found: str) -> None:
        super().__init__(found)
        self.code = code


def read_promise(path: Path, size: int) -> Promise:
    """The promise of the file at ``path`` of ``size`` bytes. Raises DefectError, OSError."""
    with path.open("rb") as file:
        start = _after_id3(file)
        file.seek(start)
        magic = file.read(12)
        if magic[:4] == b"fLaC":
            return _flac(file, start)
        if start == 0 and magic[:4] in (b"RIFF", b"RF64") and magic[8:12] == b"WAVE":
            return _wav(file, size)
        if start == 0 and magic[:4] == b"OggS":
            return _ogg(file, size)
        if start or _mpeg_frame(magic[:4]):
            return _mp3(file, start, size)
    raise DefectError("audio_undecodable", "is not audio: it starts like no FLAC, WAV, Ogg or MP3 file")


def _after_id3(file: IO[bytes]) -> int:
    """Where the audio starts behind the ID3v2 tags that some programs put before MP3 and FLAC."""
    position = 0
    for _ in range(8):
        file.seek(position)
        head = file.read(10)
        if head[:3] != b"ID3" or len(head) < 10 or max(head[6:10]) > 127:
            break
        length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        position += 10 + length + (10 if head[5] & 0x10 else 0)
    return position


def _flac(file: IO[bytes], start: int) -> Promise:
    """STREAMINFO (RFC 9639, section 8.2). Without a length or an MD5 a cut cannot be noticed."""
    file.seek(start)
    head = file.read(42)
    if len(head) < 42:
        raise DefectError("audio_cut_short", f"ends after {len(head)} bytes, within its header")
    packed = int.from_bytes(head[18:26], "big")
    frames, md5 = packed & ((1 << 36) - 1), head[26:42]
    if not frames:
        raise DefectError("audio_unverifiable", "its header does not say how many samples it holds")
    if not any(md5):
        raise DefectError("audio_unverifiable", "its header has no MD5 of the samples")
    return Promise(frames, md5=md5, bits=((packed >> 36) & 31) + 1)


def _wav(file: IO[bytes], size: int) -> Promise:
    """Frames from the sizes of the ``fmt `` and ``data`` chunks (32 bit, little-endian; RF64: 64 bit, in ``ds64``)."""
    position, frame_bytes, long_length = 12, 0, 0
    for _ in range(LARGEST_WAV_HEADER):
        if position + 8 > size:
            raise DefectError("audio_cut_short", "it has no data chunk")
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        body = file.read(28 if name in (b"fmt ", b"ds64") else 0)
        if name == b"fmt " and len(body) >= 16 and struct.unpack("<H", body[:2])[0] in WAV_PLAIN_FORMATS:
            frame_bytes = struct.unpack("<H", body[12:14])[0]
        if name == b"ds64" and len(body) >= 16:
            long_length = struct.unpack("<Q", body[8:16])[0]
        if name == b"data":
            if length == 0xFFFFFFFF and long_length:
                length = long_length
            there = size - position - 8
            if length > there:
                found = f"its data chunk should be {length:,} bytes long, and only {there:,} are there"
                raise DefectError("audio_cut_short", found)
            return Promise(length // frame_bytes if frame_bytes else None)
        position += 8 + length + (length & 1)
    raise DefectError("audio_undecodable", f"has more than {LARGEST_WAV_HEADER} chunks before its samples")


def _ogg(file: IO[bytes], size: int) -> Promise:
    """Every page (RFC 3533, section 6): its checksum, its number, one stream, and the end-of-stream flag on the
    last."""
    position, number, serial, flags = 0, 0, -1, 0
    while position < size:
        file.seek(position)
        head = file.read(27)
        table = file.read(head[26]) if len(head) == 27 else b""
        if head[:4] != b"OggS"[: len(head)]:
            raise DefectError("audio_damaged", f"its page {number} should start at byte {position:,}, and does not")
        body = file.read(sum(table))
        if len(head) < 27 or len(table) < head[26] or len(body) < sum(table):
            raise DefectError("audio_cut_short", f"the file ends within its page {number}")
        flags = head[5]
        found_serial, found_number, checksum = struct.unpack("<III", head[14:26])
        if checksum != _ogg_crc(head[:22] + b"\0\0\0\0" + head[26:] + table + body):
            raise DefectError("audio_damaged", f"the checksum of its page {number}, at byte {position:,}, is wrong")
        if serial not in (-1, found_serial):
            raise DefectError("audio_undecodable", "holds more than one stream, of which decoders read the first")
        if found_number != number:
            raise DefectError("audio_damaged", f"page {number} is missing: the next one says {found_number}")
        serial, number = found_serial, number + 1
        position += 27 + len(table) + len(body)
    if not flags & 4:
        raise DefectError("audio_cut_short", f"its last page, {number - 1}, is not marked as the end: the file was cut")
    return Promise()


def _ogg_crc(data: bytes) -> int:
    """Ogg's CRC-32 by way of zlib's, which is the same polynomial with the bits in the other order, and inverted."""
    raw = zlib.crc32(data.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{raw:032b}"[::-1], 2)


MPEG1_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
MPEG2_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
MPEG1_RATES = (44100, 48000, 32000, 0)
TAGS_AT_THE_END = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3", b"3DI")


def _mpeg_frame(head: bytes) -> tuple[int, int] | None:
    """(bytes, samples) of the MPEG layer III frame with this header of four bytes; None if it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version = head[1] >> 3 & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    kbits = (MPEG1_KBITS if version == 3 else MPEG2_KBITS)[head[2] >> 4]
    rate = MPEG1_RATES[head[2] >> 2 & 3] // {3: 1, 2: 2, 0: 4, 1: 1}[version]
    if version == 1 or not kbits or not rate:
        return None
    samples = 1152 if version == 3 else 576
    return samples // 8 * kbits * 1000 // rate + (head[2] >> 1 & 1), samples


def _mp3(file: IO[bytes], start: int, size: int) -> Promise:
    """Every frame from its header to the next one's, and their number, where a Xing or Info header gives one.

    Without such a header, a cut between two frames cannot be noticed; damage within a frame cannot in any MP3.
    """
    position, count, promised, frame_samples = start, 0, None, 1152
    while position < size:
        file.seek(position)
        head = file.read(4)
        frame = _mpeg_frame(head)
        if frame is None:
            file.seek(position)
            rest = file.read(4096)
            if rest.startswith(TAGS_AT_THE_END) or (count and not any(rest) and size - position <= len(rest)):
                break
            raise DefectError("audio_damaged", f"byte {position:,} should start an MP3 frame, and does not")
        length, frame_samples = frame
        if position + length > size:
            raise DefectError("audio_cut_short", f"the file ends within its MP3 frame {count}")
        if count == 0:
            body = file.read(length - 4)
            at = max(body.find(b"Xing", 0, 64), body.find(b"Info", 0, 64))
            if at >= 0 and len(body) >= at + 12 and body[at + 7] & 1:
                promised = int.from_bytes(body[at + 8 : at + 12], "big")
        position, count = position + length, count + 1
    there = count if promised is None else count - 1  # the header's own frame holds no sound
    if promised is not None and promised not in (there, count):
        raise DefectError("audio_cut_short", f"its header promises {promised:,} MP3 frames, and {there:,} are there")
    # Decoders cut off the encoder's padding at both ends: up to three frames.
    return Promise(there * frame_samples, slack=3 * 1152)

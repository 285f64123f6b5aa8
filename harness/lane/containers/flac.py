"""FLAC: its header's count and MD5, and that it ends with the frame that the header promises."""

from __future__ import annotations

import re
from typing import IO

from harness.lane.containers.common import BLOCK, DefectError, Promise, after_tags, kind_from


def read_flac(file: IO[bytes], start: int, size: int) -> Promise:
    """STREAMINFO (RFC 9639, section 8.2). Without a length or an MD5 a cut cannot be noticed."""
    file.seek(start)
    head = file.read(42)
    if len(head) < 42:
        raise DefectError("audio_cut_short", f"ends after {len(head)} bytes, within its header")
    packed = int.from_bytes(head[18:26], "big")
    frames, md5, bits = packed & ((1 << 36) - 1), head[26:42], ((packed >> 36) & 31) + 1
    if not frames:
        raise DefectError("audio_unverifiable", "its header does not say how many samples it holds")
    if not any(md5):
        raise DefectError("audio_unverifiable", "its header has no MD5 of the samples")
    usual = int.from_bytes(head[10:12], "big")
    return Promise(frames, md5=md5, bits=bits, start=start, rest=_flac_rest(file, start, size, usual, frames))


# The head of a frame: its block size, its number as UTF-8 codes it, and the bytes that those two leave open.
FLAC_FRAME = re.compile(
    rb"\xff[\xf8\xf9][\x10-\xff][\x00-\xaf]"
    rb"(?:[\x00-\x7f]|[\xc0-\xdf].|[\xe0-\xef]..|[\xf0-\xf7].{3}|[\xf8-\xfb].{4}|[\xfc\xfd].{5}|\xfe.{6})",
    re.DOTALL,
)


def _flac_rest(file: IO[bytes], start: int, size: int, usual: int, frames: int) -> DefectError | None:
    """What follows the last frame, or None for nothing but tags. ``usual``: the samples of every frame but the last."""
    last = _flac_last_frame(file, _flac_audio(file, start), usual, frames)
    if last < 0:
        return None  # damaged: the decoder says so
    file.seek(last)
    crc, ends = 0, []
    for index, byte in enumerate(file.read(BLOCK), 1):
        crc = (crc << 8 & 0xFFFF) ^ FLAC_CRC16[crc >> 8 ^ byte]
        if crc == 0:  # as it is at the frame's end, and by chance elsewhere
            ends.append(last + index)
    if not ends or any(after_tags(file, end, size) >= size for end in ends):
        return None
    kinds = [(end, kind) for end in ends if (kind := kind_from(file, after_tags(file, end, size))[0])]
    end, kind = kinds[0] if kinds else (0, "")
    return DefectError(
        "audio_more_than_promised", "more bytes follow its last frame" + (f": {kind}" if kind else ""), end
    )


def _flac_audio(file: IO[bytes], start: int) -> int:
    """Where the frames begin: behind the blocks of metadata, in which a picture or an application may hold anything."""
    position, is_last = start + 4, False
    while not is_last:
        file.seek(position)
        head = file.read(4)
        is_last = len(head) < 4 or head[0] > 127
        position += 4 + int.from_bytes(head[1:], "big")
    return position


def _flac_last_frame(file: IO[bytes], start: int, usual: int, frames: int) -> int:
    """Where the first frame lies that ends with the last of ``frames`` samples; -1 if there is none."""
    position, overlap = start, 16
    while True:
        file.seek(position)
        piece = file.read(BLOCK)
        for found in FLAC_FRAME.finditer(piece):
            samples, length = _flac_samples(piece[found.start() : found.start() + overlap], found.end() - found.start())
            number = _flac_number(found.group()[4:])
            first = number if found.group()[1] & 1 else number * usual
            if first + samples == frames and _crc8(piece[found.start() : found.start() + length]) == 0:
                return position + found.start()
        if len(piece) < BLOCK:
            return -1
        position += BLOCK - overlap


def _flac_number(coded: bytes) -> int:
    """The frame's number from its coding, that of UTF-8 with up to seven bytes."""
    number = coded[0] & (0x7F if len(coded) == 1 else 0x7F >> len(coded))
    for byte in coded[1:]:
        number = number << 6 | byte & 0x3F
    return number


def _flac_samples(head: bytes, at: int) -> tuple[int, int]:
    """(samples, bytes of the head with its CRC-8) of a frame whose head's variable part begins at ``at``."""
    code, rate = head[2] >> 4, head[2] & 15
    more = {6: 1, 7: 2}.get(code, 0)
    length = at + more + {12: 1, 13: 2, 14: 2}.get(rate, 0) + 1
    if more:
        return int.from_bytes(head[at : at + more], "big") + 1, length
    return (192 if code == 1 else 576 << (code - 2) if code < 6 else 256 << (code - 8)), length


def _crc_table(polynomial: int, bits: int) -> list[int]:
    """The table of a CRC that takes the highest bit first."""
    table = []
    for value in range(256):
        crc = value << (bits - 8)
        for _ in range(8):
            crc = crc << 1 ^ (polynomial if crc >> (bits - 1) else 0)
        table.append(crc & ((1 << bits) - 1))
    return table


FLAC_CRC8, FLAC_CRC16 = _crc_table(0x107, 8), _crc_table(0x18005, 16)


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = FLAC_CRC8[crc ^ byte]
    return crc

"""Ogg: pages with checksums and numbers."""

from __future__ import annotations

import struct
import zlib
from typing import IO

from harness.lane.containers.common import DefectError, Promise, check_end

REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def read_ogg(file: IO[bytes], start: int, size: int) -> Promise:
    """Every page (RFC 3533, section 6): its checksum, its number, one stream, and the end-of-stream flag on the
    last."""
    position, number, serial, flags = start, 0, -1, 0
    while position < size:
        file.seek(position)
        head = file.read(27)
        table = file.read(head[26]) if len(head) == 27 else b""
        if flags & 4:
            check_end(file, position, size)
            break
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
            raise DefectError("audio_unsupported", "holds more than one stream, of which decoders read the first")
        if found_number != number:
            raise DefectError("audio_damaged", f"page {number} is missing: the next one says {found_number}")
        serial, number = found_serial, number + 1
        position += 27 + len(table) + len(body)
    if not flags & 4:
        raise DefectError("audio_cut_short", f"its last page, {number - 1}, is not marked as the end: the file was cut")
    return Promise(start=start)


def _ogg_crc(data: bytes) -> int:
    """Ogg's CRC-32 by way of zlib's, which is the same polynomial with the bits in the other order, and inverted."""
    raw = zlib.crc32(data.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{raw:032b}"[::-1], 2)

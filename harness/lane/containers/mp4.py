"""MP4, M4A and QuickTime: a list of boxes, each of which says how long it is (ISO/IEC 14496-12, 4.2)."""

from __future__ import annotations

from typing import IO

from harness.lane.containers.common import DefectError, Promise


def read_mp4(file: IO[bytes], start: int, size: int) -> Promise:
    """The boxes of the first level, which must end where the file does. How many packets there are says a table
    within them, which the decoder reads."""
    position = start
    while position < size:
        file.seek(position)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:  # the length proper follows
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:  # to the end of the file
            length = size - position
        if position > start and kind == b"ftyp":
            raise DefectError("audio_more_than_promised", f"another MP4 begins at byte {position:,}", position)
        is_whole = 8 <= length <= size - position
        if not is_whole and kind in (b"mdat", b"moov", b"moof"):
            found = f"its box {kind.decode()} promises {length:,} bytes, and {size - position:,} are there"
            raise DefectError("audio_cut_short", f"{found}: the file was cut")
        if not is_whole:
            found = f"{size - position:,} bytes from byte {position:,} on are no box of an MP4"
            raise DefectError("audio_damaged", found)
        position += length
    return Promise(start=start)

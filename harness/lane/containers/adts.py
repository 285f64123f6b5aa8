"""AAC as a stream of ADTS frames (ISO/IEC 13818-7, annex 1.2): what a file named .aac holds."""

from __future__ import annotations

from typing import IO

from harness.lane.containers.common import DefectError, Promise, check_end, tag_at


def read_adts(file: IO[bytes], start: int, size: int) -> Promise:
    """Every frame's header; each says how long it is, so that the next one, or the end, must follow."""
    position = start
    packets, mark = 0, b""  # what each of its frames begins with
    while position < size:
        file.seek(position)
        head = file.read(7)
        if packets and head[:2] != mark and tag_at(file, position, size):
            check_end(file, position, size)
            break
        if len(head) < 7 and mark.startswith(head[:2]):
            raise DefectError("audio_cut_short", f"the file ends within its frame {packets}")
        if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
            found = f"its frame {packets} should start at byte {position:,}, and does not"
            raise DefectError("audio_damaged" if packets else "audio_unsupported", found)
        mark = mark or head[:2]
        length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        if length < 7:
            raise DefectError("audio_damaged", f"its AAC frame {packets} says that it has {length} bytes")
        if head[6] & 3:
            raise DefectError("audio_unsupported", f"its AAC frame {packets} holds several blocks, and one is expected")
        if position + length > size:
            raise DefectError("audio_cut_short", f"the file ends within its frame {packets}")
        position, packets = position + length, packets + 1
    return Promise(start=start, packets=packets)

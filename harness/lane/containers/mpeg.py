"""MP3: a frame after a frame, and the count that most encoders leave in the first."""

from __future__ import annotations

import re
from typing import IO

from harness.lane.containers.common import (
    DefectError,
    Promise,
    after_tags,
    check_end,
    first_frames,
    mpeg_frame,
    tag_at,
    zeros_at,
)

# Up to the number of frames: Xing's flags say with their lowest bit that it is there.
COUNTS_FRAMES = re.compile(rb"(?:(?:Xing|Info)...[\1\3\5\7\x09\x0b\r\x0f]|VBRI.{10})(?=.{4})", re.DOTALL)


def _xing(file: IO[bytes], position: int, length: int) -> tuple[int, int] | None:
    """(how many frames follow, how many samples of them a decoder cuts off as padding) by the Xing, Info or VBRI
    header in the frame at ``position``; None if it has none, or one that was never filled in."""
    file.seek(position)
    body = file.read(length)
    if not (found := COUNTS_FRAMES.search(body, 0, 72)):
        return None
    frames, packed = int.from_bytes(body[found.end() : found.end() + 4], "big"), 0
    if found[0].endswith(b"\x0f"):  # then the encoder's name and its figures follow
        packed = int.from_bytes(body[found.end() + 133 : found.end() + 136], "big")
    return (frames, (packed >> 12) + (packed & 4095)) if frames else None


def read_mp3(file: IO[bytes], start: int, size: int) -> Promise:
    """Every frame from its header to the next one's, over tags between them, and their number, where a Xing, Info or
    VBRI header gives one.

    Without such a header, a cut between two frames cannot be noticed; damage within a frame cannot in any MP3.
    """
    position, count, promised, samples, first, goes_on, padding = start, 0, None, 1152, "", 0, 0
    while position < size:
        frame = mpeg_frame(file, position)
        if frame is None:
            position = _mpeg_tags(file, position, size, count)
            continue
        length, samples, form = frame
        first = first or form
        if form != first:
            found = f"from byte {position:,} on it is MPEG {form}, and before that {first}: two recordings in one"
            raise DefectError("audio_more_than_promised", found, position)
        if position + length > size:
            raise DefectError("audio_cut_short", f"the file ends within its MP3 frame {count}")
        if count == 0:
            promised, padding = _xing(file, position, length) or (None, 0)
        elif promised is not None and count == promised + 1:
            goes_on = position
        position, count = position + length, count + 1
    there = count if promised is None else count - 1  # the header's own frame holds no sound
    if promised is not None and promised not in (there, count):
        found = f"its header promises {promised:,} MP3 frames, and {there:,} are there"
        if there < promised:
            raise DefectError("audio_cut_short", found)
        raise DefectError("audio_more_than_promised", f"{found}; what it promises ends at byte {goes_on:,}")
    # Decoders cut off what they themselves add, too: up to three frames.
    return Promise(there * samples - padding, slack=3 * 1152, start=start)


def _mpeg_tags(file: IO[bytes], position: int, size: int, count: int) -> int:
    """Where the frames go on behind the tags at ``position``, which is no frame. ``count``: the frames before it."""
    after = after_tags(file, position, size)
    if after == size or (tag_at(file, position, size) and mpeg_frame(file, after)):
        return after
    if count and not first_frames(file, position, size):
        check_end(file, position, size)
    zeros = zeros_at(file, position, size)
    found = f"{zeros:,} zero bytes lie there" if zeros else "does not"
    raise DefectError("audio_damaged", f"byte {position:,} should start an MP3 frame, and {found}")

"""WAV, RF64, RIFX, W64, AIFF, CAF: chunks. And AU, a header with a length."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import IO

from harness.lane.containers.common import BLOCK, DefectError, Promise, check_end

MOST_CHUNKS = 1000  # in one file: past it, the file was made to be slow


@dataclass(frozen=True)
class Layout:
    """How a container numbers its chunks: the struct of their heads, where the first lies, to what they are aligned,
    whether a length counts the head too, what the chunk of the samples is called, and its bytes before them."""

    head: str
    first: int = 12
    align: int = 2
    counts_head: bool = False
    data: bytes = b"data"
    before: int = 0


LAYOUTS = {
    b"RIFF": Layout("<4sI"),
    b"RF64": Layout("<4sI"),
    b"RIFX": Layout(">4sI"),
    b"FORM": Layout(">4sI", data=b"SSND", before=8),
    b"riff": Layout("<4s12xQ", first=40, align=8, counts_head=True),
    b"caff": Layout(">4sQ", first=8, align=1, before=4),
}
NAMES_NO_LENGTH = (b"RF64", b"caff")  # with an unknown length libsndfile does not read these
# What programs write for a length that they do not know: they write to a pipe, or were killed.
UNKNOWN_LENGTHS = (0, 0x7FFF0000, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)
# WAV formats whose samples have one size each: PCM, float, A-law, mu-law, extensible. Of others (ADPCM) libsndfile
# knows the length.
WAV_PLAIN_FORMATS = (1, 3, 6, 7, 0xFFFE)
WAV_MP3 = 0x55
AIFF_PLAIN = (b"", b"NONE", b"twos", b"sowt", b"raw ", b"in24", b"in32", b"fl32", b"FL32", b"fl64", b"FL64")
AIFF_BYTES = (b"ulaw", b"ULAW", b"alaw", b"ALAW")  # one byte a sample, whatever the chunk says


def read_chunked(file: IO[bytes], start: int, size: int) -> Promise:
    """Frames from the chunk of the format and the length of that of the samples; all chunks up to the end."""
    file.seek(start)
    magic = file.read(4)
    layout, length, end, long_length, form = LAYOUTS[magic], -1, size, 0, b""
    position = start + layout.first
    for _ in range(MOST_CHUNKS):
        chunk = _chunk(file, position, layout)
        if chunk is None:
            break
        name, at, long = chunk
        if at + long > size and (name != layout.data or length >= 0):
            break
        file.seek(at)
        if name == b"ds64":
            long_length = int.from_bytes(file.read(16)[8:], "little")
        elif name in (b"fmt ", b"COMM", b"desc"):
            form = file.read(min(long, 64))
        elif name == layout.data and length >= 0:
            raise DefectError("audio_more_than_promised", f"a second chunk of samples begins at byte {at:,}")
        elif name == layout.data:
            if long == 0xFFFFFFFF and long_length:
                long = long_length
            long = length = _data_length(file, at, long, size, magic)
            end = at + length
        position = _next_chunk(file, at + long, long, layout)
    else:
        raise DefectError("audio_undecodable", f"has more than {MOST_CHUNKS} chunks")
    if length < 0:
        raise DefectError("audio_cut_short", "it has no data chunk")
    check_end(file, position, size)
    frame_bytes, counted = _form(form, layout)
    frames = max(counted, (length - layout.before) // frame_bytes) if frame_bytes else None
    # Of a W64 libsndfile takes all that follows for samples.
    return Promise(frames, start=start, end=end if magic == b"riff" else 0)


def _chunk(file: IO[bytes], position: int, layout: Layout) -> tuple[bytes, int, int] | None:
    """(name, where its content begins, its length) of the chunk at ``position``; None if there is none."""
    count = struct.calcsize(layout.head)
    file.seek(position)
    head = file.read(count)
    if len(head) < count or not head[:4].isascii() or not head[:4].decode().isprintable():
        return None
    name, length = struct.unpack(layout.head, head)
    known = length if not layout.counts_head or length in UNKNOWN_LENGTHS else max(0, length - count)
    return (name, position + count, known) if name not in LAYOUTS else None


def _next_chunk(file: IO[bytes], end: int, length: int, layout: Layout) -> int:
    """Where the chunk behind one of ``length`` bytes begins; some programs leave out the byte that aligns it."""
    aligned = end + -length % layout.align
    return end if _chunk(file, aligned, layout) is None and _chunk(file, end, layout) else aligned


def _data_length(file: IO[bytes], body: int, length: int, size: int, magic: bytes) -> int:
    """The length of the samples' chunk that begins at ``body``: what it says, or up to the end of the file where it
    says that it does not know."""
    there = size - body
    follows = _chunk(file, body, LAYOUTS[magic]) if length == 0 else None
    # Some write the length that they do not know where that of the whole file or of its RIFF stands, and less here.
    unknown = any(length + before in UNKNOWN_LENGTHS for before in (0, body - 8, body))
    if unknown and (length > there or (length == 0 < there and follows is None)):
        _one_head(file, body, size)
        if magic in NAMES_NO_LENGTH:
            raise DefectError(
                "audio_unverifiable", "does not say how long it is: it was written to a pipe, or not to its end"
            )
        return there
    if length > there:
        found = f"its data chunk should be {length:,} bytes long, and only {there:,} are there"
        raise DefectError("audio_cut_short", found)
    return length


def _one_head(file: IO[bytes], body: int, size: int) -> None:
    """Raises DefectError if the file's own beginning comes again in samples whose length is not known: two files in
    one, of which decoders take the second head for sound."""
    file.seek(0)
    head = file.read(16)
    for position in range(body, size, BLOCK):
        file.seek(position)
        at = file.read(BLOCK + len(head)).find(head)
        if at >= 0:
            found = f"a second header lies at byte {position + at:,}"
            raise DefectError("audio_more_than_promised", found, position + at)


def _form(form: bytes, layout: Layout) -> tuple[int, int]:
    """(bytes of a frame, frames) as the chunk of the format says; 0 for what it does not."""
    if len(form) < 16:
        return 0, 0
    if layout.data == b"SSND":
        channels, frames, bits = struct.unpack(">HIH", form[:8])
        width = (bits + 7) // 8 if form[18:22] in AIFF_PLAIN else 1 if form[18:22] in AIFF_BYTES else 0
        return channels * width, frames
    if layout.align == 1:
        per_packet, frames = struct.unpack(">II", form[16:24])
        return per_packet if frames == 1 else 0, 0
    tag, align = struct.unpack(layout.head[0] + "H10xH", form[:14])
    if tag == WAV_MP3:
        raise DefectError("audio_unsupported", "holds MP3 in a WAV")
    return align if tag in WAV_PLAIN_FORMATS else 0, 0


AU_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}  # of a sample, by its encoding; of others unknown


def read_au(file: IO[bytes], start: int, size: int) -> Promise:
    """Frames from the length in the header; 0xFFFFFFFF there means up to the end of the file."""
    file.seek(start)
    head = file.read(24)
    if len(head) < 24:
        raise DefectError("audio_cut_short", f"ends after {len(head)} bytes, within its header")
    order = ">" if head[:1] == b"." else "<"
    offset, length, encoding, _, channels = struct.unpack(f"{order}5I", head[4:])
    there = size - start - offset
    if length == 0xFFFFFFFF:
        _one_head(file, start + offset, size)
        length = there
    if length > there:
        raise DefectError("audio_cut_short", f"should hold {length:,} bytes of samples, and only {there:,} are there")
    check_end(file, start + offset + length, size)
    frame_bytes = channels * AU_BYTES.get(encoding, 0)
    return Promise(length // frame_bytes if frame_bytes else None, start=start)

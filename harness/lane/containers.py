"""What an audio file says of its own length and content, read without decoding it.

Decoders are forgiving: libsndfile returns what it could decode of a cut MP3 or Ogg file, fills a damaged stretch of
Opus, shortens a WAV whose header promises more than the file has, and stops where a header says so, whatever follows,
all without a word. Each container carries some account of what should be there. It is read here, in one pass over the
file and with bounded memory, and is held against the end of the file and against what was decoded (audio.py).
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

BLOCK = 1 << 20
MOST_CHUNKS = 1000  # in one file: past it, the file was made to be slow
LARGEST_PADDING = 1 << 16  # zeros before the first MP3 frame; past it libsndfile gives up
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
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
    off it (``slack``), and for FLAC the MD5 of the samples at ``bits`` each. libsndfile is to see the bytes from
    ``start`` to ``end`` (0: all). ``rest``: what follows the samples, which tells only if they are whole."""

    frames: int | None = None
    slack: int = 0
    md5: bytes | None = None
    bits: int = 0
    start: int = 0
    end: int = 0
    rest: DefectError | None = None


def kind_of(path: Path) -> str:
    """What a regular file holds, by its content: a key of READERS, other audio by its name, or "" for no audio."""
    with path.open("rb") as file:
        return _kind(file)[0]


def read_promise(path: Path, size: int) -> Promise:
    """The promise of the file at ``path`` of ``size`` bytes. Raises DefectError, OSError."""
    with path.open("rb") as file:
        kind, start = _kind(file)
        if kind in READERS:
            return READERS[kind](file, start, size)
        if not kind and (first := _first_frames(file, 1, 4096)):
            found = f"begins with {first:,} bytes that are no MP3 frame; from there on frames follow"
            raise DefectError("audio_damaged", found)
    known = ", ".join(READERS)
    if kind:
        raise DefectError("audio_unsupported", f"holds {kind}; the lane reads {known}")
    raise DefectError(
        "audio_undecodable", f"is not audio, or has no header that says so: it starts like none of {known}"
    )


def _kind(file: IO[bytes], position: int = 0) -> tuple[str, int]:
    """What begins at ``position``, and where its audio does, behind the tags that some programs put before it."""
    start = position
    while tag := _id3(file, start) or _ape(file, start):
        start += tag
    file.seek(start)
    head = file.read(64)
    for kind, pattern in STARTS:
        if pattern.match(head):
            return kind, start
    first = start + _zeros(file, start, LARGEST_PADDING)
    frame = _mpeg_frame(file, first)
    # One header is 11 bits, and text in UTF-16 begins with them: the next frame must follow.
    if frame and (_mpeg_frame(file, first + frame[0]) or start > position):
        return "MP3", first
    return ("MP3" if start > position else ""), start


def _first_frames(file: IO[bytes], start: int, end: int) -> int:
    """Where, between two positions, four MP3 frames follow each other; 0 if nowhere."""
    for base in range(start, end, BLOCK):
        file.seek(base)
        for found in re.finditer(rb"\xff[\xe0-\xff]", file.read(min(BLOCK, end - base) + 1)):
            first = position = base + found.start()
            for _ in range(4):
                frame = _mpeg_frame(file, position)
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


def _zeros(file: IO[bytes], position: int, most: int) -> int:
    """How many zero bytes lie from ``position`` on, counted up to ``most``."""
    count = 0
    file.seek(position)
    while count < most and (piece := file.read(min(BLOCK, most - count))):
        more = len(piece) - len(piece.lstrip(b"\0"))
        count += more
        if more < len(piece):
            break
    return count


def _tag(file: IO[bytes], position: int, size: int) -> int:
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


def _after_tags(file: IO[bytes], position: int, size: int) -> int:
    """Where the bytes go on behind tags and zeros."""
    while position < size and (more := _tag(file, position, size) or _zeros(file, position, size - position)):
        position += more
    return position


def _end(file: IO[bytes], position: int, size: int) -> None:
    """Raises DefectError if more than tags and padding follow the end of the audio at ``position``."""
    after = _after_tags(file, position, size)
    if after < size:
        kind = _kind(file, after)[0] or _kind(file, position)[0]
        found = f"{size - after:,} more bytes follow the end of its audio, from byte {after:,} on"
        raise DefectError("audio_more_than_promised", found + (f": {kind}" if kind else ""), position)


# FLAC


def _flac(file: IO[bytes], start: int, size: int) -> Promise:
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
    if not ends or any(_after_tags(file, end, size) >= size for end in ends):
        return None
    kinds = [(end, kind) for end in ends if (kind := _kind(file, _after_tags(file, end, size))[0])]
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


# WAV, RF64, RIFX, W64, AIFF, CAF: chunks


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


def _chunked(file: IO[bytes], start: int, size: int) -> Promise:
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
    _end(file, position, size)
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


def _au(file: IO[bytes], start: int, size: int) -> Promise:
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
    _end(file, start + offset + length, size)
    frame_bytes = channels * AU_BYTES.get(encoding, 0)
    return Promise(length // frame_bytes if frame_bytes else None, start=start)


# Ogg


def _ogg(file: IO[bytes], start: int, size: int) -> Promise:
    """Every page (RFC 3533, section 6): its checksum, its number, one stream, and the end-of-stream flag on the
    last."""
    position, number, serial, flags = start, 0, -1, 0
    while position < size:
        file.seek(position)
        head = file.read(27)
        table = file.read(head[26]) if len(head) == 27 else b""
        if flags & 4:
            _end(file, position, size)
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


# MPEG audio: layers II and III

LAYER2_KBITS = (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 0)
LAYER3_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
MPEG2_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
MPEG1_RATES = (44100, 48000, 32000, 0)
# Up to the number of frames: Xing's flags say with their lowest bit that it is there.
COUNTS_FRAMES = re.compile(rb"(?:(?:Xing|Info)...[\1\3\5\7\x09\x0b\r\x0f]|VBRI.{10})(?=.{4})", re.DOTALL)


def _mpeg_frame(file: IO[bytes], position: int) -> tuple[int, int, str] | None:
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


def _mp3(file: IO[bytes], start: int, size: int) -> Promise:
    """Every frame from its header to the next one's, over tags between them, and their number, where a Xing, Info or
    VBRI header gives one.

    Without such a header, a cut between two frames cannot be noticed; damage within a frame cannot in any MP3.
    """
    position, count, promised, samples, first, goes_on, padding = start, 0, None, 1152, "", 0, 0
    while position < size:
        frame = _mpeg_frame(file, position)
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
    after = _after_tags(file, position, size)
    if after == size or (_tag(file, position, size) and _mpeg_frame(file, after)):
        return after
    if count and not _first_frames(file, position, size):
        _end(file, position, size)
    zeros = _zeros(file, position, size)
    found = f"{zeros:,} zero bytes lie there" if zeros else "does not"
    raise DefectError("audio_damaged", f"byte {position:,} should start an MP3 frame, and {found}")


READERS = {
    "FLAC": _flac,
    "WAV": _chunked,
    "AIFF": _chunked,
    "W64": _chunked,
    "CAF": _chunked,
    "AU": _au,
    "Ogg": _ogg,
    "MP3": _mp3,
}
MANY_CODINGS = tuple(kind for kind, reader in READERS.items() if reader in (_chunked, _au))  # of the samples in them

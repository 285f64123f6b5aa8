"""What an audio file says of its own length and content, read without decoding it.

Decoders are forgiving: libsndfile returns what it could decode of a cut MP3 or Ogg file, fills a damaged stretch of
Opus, shortens a WAV whose header promises more than the file has, and stops where a header says so, whatever follows,
all without a word. Each container carries some account of what should be there. It is read here, in one pass over the
file and with bounded memory, and is held against the end of the file and against what was decoded (audio.py).
"""

from __future__ import annotations

from pathlib import Path

from harness.lane.containers.adts import read_adts
from harness.lane.containers.chunked import read_au, read_chunked
from harness.lane.containers.common import DefectError, Promise, first_frames, kind_from
from harness.lane.containers.flac import read_flac
from harness.lane.containers.mp4 import read_mp4
from harness.lane.containers.mpeg import read_mp3
from harness.lane.containers.ogg import read_ogg

__all__ = ["MANY_CODINGS", "NEED_AV", "DefectError", "Promise", "kind_of", "read_promise"]

NEED_AV = ("AAC", "MP4, M4A or QuickTime")  # libsndfile does not decode what is in them; PyAV does
READERS = {
    "FLAC": read_flac,
    "WAV": read_chunked,
    "AIFF": read_chunked,
    "W64": read_chunked,
    "CAF": read_chunked,
    "AU": read_au,
    "Ogg": read_ogg,
    "MP3": read_mp3,
    "AAC": read_adts,
    "MP4, M4A or QuickTime": read_mp4,
}
MANY_CODINGS = tuple(
    kind for kind, reader in READERS.items() if reader in (read_chunked, read_au)
)  # of the samples in them


def kind_of(path: Path) -> str:
    """What a regular file holds, by its content: a key of READERS, other audio by its name, or "" for no audio."""
    with path.open("rb") as file:
        return kind_from(file)[0]


def read_promise(path: Path, size: int, with_av: bool = False) -> Promise:
    """The promise of the file at ``path`` of ``size`` bytes. Raises DefectError, OSError; also for what PyAV alone
    reads, unless it is here (``with_av``)."""
    with path.open("rb") as file:
        kind, start = kind_from(file)
        if kind in READERS and (with_av or kind not in NEED_AV):
            return READERS[kind](file, start, size)
        if not kind and (first := first_frames(file, 1, 4096)):
            found = f"begins with {first:,} bytes that are no MP3 frame; from there on frames follow"
            raise DefectError("audio_damaged", found)
    known = ", ".join(name for name in READERS if with_av or name not in NEED_AV)
    if kind:
        raise DefectError("audio_unsupported", f"holds {kind}; the lane reads {known}")
    raise DefectError(
        "audio_undecodable", f"is not audio, or has no header that says so: it starts like none of {known}"
    )

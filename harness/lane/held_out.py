"""What is trained on and what is held out: whole chunks from the end of each recording, or whole files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.lane.errors import LaneError

MEASURED = 16  # held-out chunks at most that the held-out loss is measured on, spread evenly: 41 s of audio


@dataclass(frozen=True)
class Split:
    """Ids of chunks. A chunk that overlaps held-out audio and is not held out itself is in neither list."""

    train: list[int]
    held_out: list[int]

    @property
    def measured(self) -> list[int]:
        """The held-out chunks that the held-out loss is measured on: all, or MEASURED of them."""
        count = len(self.held_out)
        if count <= MEASURED:
            return self.held_out
        return [self.held_out[(2 * i + 1) * count // (2 * MEASURED)] for i in range(MEASURED)]

    def uses(self, chunks: int) -> list[str]:
        """What each of so many chunks is for, as the trace says it: ``train``, ``held_out`` or ``neither``."""
        told = dict.fromkeys(self.train, "train") | dict.fromkeys(self.held_out, "held_out")
        return [told.get(chunk, "neither") for chunk in range(chunks)]


@dataclass(frozen=True)
class HeldOutLoss:
    """The loss on the held-out audio after ``step`` steps, in nats, and by codebook."""

    step: int
    loss: float
    by_codebook: list[float]


def split_chunks(sources: Sequence[tuple[str, int]], length: int, share: float) -> Split:
    """Split the chunks, of which ``sources`` gives the file's SHA-256 and the first sample, into what is trained on and
    about ``share`` of them that is not.

    Of several recordings whole files are held out, in the order of their SHA-256, as long as no more than ``share`` of
    all chunks is; equal files count as one. Where that gives less than half of the share, and of a single recording,
    the last chunks are held out (of several: the longest one's), and no chunk that overlaps them is trained on.
    ``length``: samples in a chunk. Raises LaneError (step ``tokenise``) where nothing would be left to train on.
    """
    if share == 0.0:
        return Split(list(range(len(sources))), [])
    by_file: dict[str, list[int]] = {}
    for chunk, (file, _) in enumerate(sources):
        by_file.setdefault(file, []).append(chunk)
    wanted = max(1, round(share * len(sources)))
    held_out: list[int] = []
    for file in sorted(by_file) if len(by_file) > 1 else []:
        if len(held_out) + len(by_file[file]) <= wanted:
            held_out += by_file[file]
    if 2 * len(held_out) < wanted:
        longest = max(sorted(by_file), key=lambda file: len(by_file[file]))
        starts = sorted({sources[chunk][1] for chunk in by_file[longest]})
        copies = len(by_file[longest]) // len(starts)
        first = starts[max(0, len(starts) - max(1, wanted // copies))]
        held_out = [chunk for chunk in by_file[longest] if sources[chunk][1] >= first]
    held_out.sort()
    begins: dict[str, int] = {}
    for chunk in held_out:
        file, start = sources[chunk]
        begins[file] = min(start, begins.get(file, start))
    train = [i for i, (file, start) in enumerate(sources) if file not in begins or start + length <= begins[file]]
    if not train:
        cause = f"{len(sources)} chunks of audio: none is left to train on when {share:g} of them are held out"
        action = "add audio, set a smaller LANE_CHUNK_SECONDS, or set LANE_HOLDOUT=0 to hold nothing out"
        raise LaneError("tokenise", "nothing_to_train_on", cause, action)
    return Split(train, held_out)

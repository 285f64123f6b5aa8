"""What is trained on and what is held out never share a sample, for any recordings, chunks and stride."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.lane.errors import LaneError
from harness.lane.held_out import MEASURED, Split, split_chunks

LENGTH = 100


def chunks_of(file: str, total: int, stride: int) -> list[tuple[str, int]]:
    """As the lane cuts them: the last chunk ends at the file's end."""
    starts = list(range(0, total - LENGTH + 1, stride))
    return [(file, start) for start in [*starts, *([total - LENGTH] if starts[-1] + LENGTH < total else [])]]


recordings = st.lists(st.integers(LENGTH, 30 * LENGTH), min_size=1, max_size=6)


@given(lengths=recordings, stride=st.integers(7, 150), share=st.floats(0.01, 0.5))
def test_no_sample_is_both_trained_on_and_held_out(lengths: list[int], stride: int, share: float) -> None:
    files = [f"{number:064x}" for number in range(len(lengths))]
    sources = [chunk for file, total in zip(files, lengths, strict=True) for chunk in chunks_of(file, total, stride)]
    try:
        split = split_chunks(sources, LENGTH, share)
    except LaneError as error:
        assert (error.code == "nothing_to_train_on" and len(lengths) == 1) or max(lengths) < 30 * LENGTH
        return
    held_out = [sources[chunk] for chunk in split.held_out]
    assert held_out and split.train and not set(split.train) & set(split.held_out)
    for file, start in (sources[chunk] for chunk in split.train):
        assert all(file != other or abs(start - begin) >= LENGTH for other, begin in held_out)
    # What the gate asks for: no more than the share, and at least half of it, but for one chunk.
    assert share / 2 - 1 / len(sources) <= len(held_out) / len(sources) <= share + 1 / len(sources)
    uses = split.uses(len(sources))
    assert (uses.count("train"), uses.count("held_out")) == (len(split.train), len(split.held_out))


def test_of_one_recording_the_end_is_held_out() -> None:
    split = split_chunks(chunks_of("a" * 64, 68 * LENGTH, LENGTH), LENGTH, 0.15)
    assert split == Split(list(range(58)), list(range(58, 68)))


def test_of_several_recordings_whole_files_are_held_out() -> None:
    sources = [c for name in "abcdefghij" for c in chunks_of(name * 64, 3 * LENGTH, LENGTH)]
    split = split_chunks(sources, LENGTH, 0.2)
    assert [sources[chunk][0][0] for chunk in split.held_out] == ["a"] * 3 + ["b"] * 3
    assert len(split.train) == 24


def test_where_every_file_is_too_large_the_longest_ones_end_is_held_out() -> None:
    sources = [*chunks_of("a" * 64, 10 * LENGTH, LENGTH), *chunks_of("b" * 64, 20 * LENGTH, LENGTH)]
    split = split_chunks(sources, LENGTH, 0.1)
    assert [sources[chunk] for chunk in split.held_out] == [("b" * 64, start * LENGTH) for start in (17, 18, 19)]


def test_equal_files_are_held_out_together() -> None:
    twice = chunks_of("a" * 64, 10 * LENGTH, LENGTH) * 2
    split = split_chunks(twice, LENGTH, 0.2)
    assert len({twice[chunk] for chunk in split.held_out} & {twice[chunk] for chunk in split.train}) == 0
    assert len(split.held_out) == 4 and len(split.train) == 16


def test_one_small_clip_is_not_all_that_is_held_out() -> None:
    """Beside two recordings of half the audio each, a clip of one chunk would tell nothing."""
    sizes = {"a": 1, "b": 33, "c": 33}
    sources = [c for name, size in sizes.items() for c in chunks_of(name * 64, size * LENGTH, LENGTH)]
    split = split_chunks(sources, LENGTH, 0.15)
    assert {sources[chunk][0][0] for chunk in split.held_out} == {"b"} and len(split.held_out) == 10


def test_nothing_left_to_train_on_says_what_to_do() -> None:
    with pytest.raises(LaneError) as caught:
        split_chunks([("a" * 64, 0)], LENGTH, 0.15)
    assert (caught.value.code, caught.value.step) == ("nothing_to_train_on", "tokenise")
    assert "LANE_HOLDOUT=0" in caught.value.action


def test_nothing_is_held_out_where_that_is_asked_for() -> None:
    assert split_chunks([("a" * 64, 0)], LENGTH, 0.0) == Split([0], [])


@pytest.mark.parametrize("count", [1, MEASURED, MEASURED + 1, 100, 1000])
def test_at_most_so_many_are_measured_and_spread_evenly(count: int) -> None:
    measured = Split([], list(range(count))).measured
    assert len(measured) == min(count, MEASURED) and len(set(measured)) == len(measured)
    gaps = [b - a for a, b in itertools.pairwise(measured)]
    assert not gaps or max(gaps) - min(gaps) <= 1

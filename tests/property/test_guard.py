"""The guard lists every position whose float32 rounding a drift may change, checked by brute force."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.baselines.guard import GUARD, MEASURED_DRIFT, decode_positions, encode_positions, guarded_positions
from harness.numerics.digest import tensor_digest

FLOAT32_MAX = float(np.finfo(np.float32).max)
OVERFLOW = FLOAT32_MAX + 2.0**103  # the midpoint from which rounding gives infinity
TINY = 2.0**-149  # the smallest float32 above zero


def bits(value: float) -> int:
    with np.errstate(over="ignore", under="ignore"):
        return int(np.float64(value).astype(np.float32).view(np.uint32))


def reachable(value: float, guard: float) -> set[int]:
    """The float32 bits of sample float64 values x with |x - value| <= guard, boundaries among them."""
    samples = {value, -value if value == 0 else value}
    for fraction in (1.0, 0.999, 0.5, 0.25, 1e-3, 1e-9):
        samples |= {value + fraction * guard, value - fraction * guard}
    # Every float32 rounding boundary near the value, with its neighbours, and both zeros.
    with np.errstate(over="ignore"):
        nearest = np.float32(np.clip(value, -FLOAT32_MAX, FLOAT32_MAX))
    around = [nearest]
    for direction in (np.float32(-np.inf), np.float32(np.inf)):
        step = nearest
        for _ in range(3):
            with np.errstate(over="ignore", under="ignore"):
                step = np.nextafter(step, direction)
            around.append(step)
    finite = sorted(float(x) for x in around if np.isfinite(x))
    middles = [(a + b) / 2 for a, b in itertools.pairwise(finite)] + [OVERFLOW, -OVERFLOW]
    for middle in middles:
        samples |= {middle, math.nextafter(middle, math.inf), math.nextafter(middle, -math.inf)}
    samples |= {0.0, 5e-324, -5e-324}
    near = {x for x in samples if math.isfinite(x) and abs(Fraction(x) - Fraction(value)) <= Fraction(guard)}
    found = {bits(x) for x in near} | {bits(value)}
    if abs(Fraction(value)) <= Fraction(guard):
        found |= {bits(0.0), bits(-0.0)}
    return found


anywhere = st.floats(allow_nan=False, allow_infinity=False, width=64)
on_the_grid = st.floats(allow_nan=False, allow_infinity=False, width=32)
exponents = st.integers(-149, 127)


@st.composite
def near_a_boundary(draw: st.DrawFn) -> float:
    """A float64 at, or a few units in the last place from, the midpoint of two adjacent float32 values."""
    low = np.float32(draw(on_the_grid))
    with np.errstate(over="ignore"):
        high = np.nextafter(low, np.float32(np.inf))
    middle = (float(low) + float(high)) / 2 if np.isfinite(high) else OVERFLOW
    for _ in range(draw(st.integers(0, 3))):
        middle = math.nextafter(middle, draw(st.sampled_from([-math.inf, math.inf])))
    return middle + draw(st.sampled_from([0.0, 1e-12, -1e-12, 9e-13, 1.1e-12]))


@st.composite
def near_a_power_of_two(draw: st.DrawFn) -> float:
    """Where the grid below is half as wide as above."""
    value = math.ldexp(draw(st.sampled_from([1.0, -1.0])), draw(exponents))
    return value + draw(st.sampled_from([-1, 0, 1])) * math.ldexp(1.0, draw(st.integers(-200, 60)))


values = st.one_of(
    anywhere,
    on_the_grid,
    near_a_boundary(),
    near_a_power_of_two(),
    st.sampled_from([0.0, -0.0, TINY, TINY / 2, -TINY / 2, 1e-12, -1e-12, 1e-50, OVERFLOW, FLOAT32_MAX]),
    st.floats(-1e-3, 1e-3),
)
guards = st.sampled_from([1e-12, 1e-13, 1e-300, 1e-9, 5e-324, 2.0**-150, 1e30])


@settings(deadline=None, max_examples=600)
@given(values, guards)
@example(0.0, 1e-12)
@example(-0.0, 5e-324)
@example(1e-50, 1e-50)  # its lower end is exactly zero: minus zero is as near as plus zero
@example(-1e-50, 1e-50)
@example(1.0 + 2.0**-24, 1e-12)  # a tie
@example(1.0 - 2.0**-25, 1e-12)  # a tie just below a power of two, where the grid is half as wide
@example(TINY / 2, 1e-50)
@example(OVERFLOW, 1e-12)
def test_an_unlisted_value_keeps_its_bits_under_every_drift(value: float, guard: float) -> None:
    if guarded_positions(np.array([value]), guard) == []:
        assert reachable(value, guard) == {bits(value)}


@settings(deadline=None, max_examples=300)
@given(st.floats(1e-2, 1.0), st.sampled_from([1e-12, 1e-13]))
def test_a_listed_value_can_really_change(value: float, guard: float) -> None:
    """The guard is tight: what it lists has a drift within it that changes the bits."""
    if guarded_positions(np.array([value]), guard):
        assert len(reachable(value, guard * 1.001)) > 1


def test_a_midpoint_and_its_surroundings_are_listed_and_no_more() -> None:
    guard = 1e-12
    middle = 0.5 + 2.0**-25
    values64 = np.array([middle, middle + 0.99e-12, middle - 0.99e-12, middle + 1.01e-12, middle - 1.01e-12, 0.5])
    assert guarded_positions(values64, guard) == [0, 1, 2]


def test_a_value_that_a_wide_guard_takes_to_zero_is_listed() -> None:
    assert guarded_positions(np.array([0.5, 0.25]), 0.5) == [0, 1]


def test_the_guard_is_wider_than_what_was_measured_and_not_by_much() -> None:
    assert 20 < GUARD / MEASURED_DRIFT < 50 and GUARD < 1e-11


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-12, 1e-10]))
def test_no_drift_within_the_guard_moves_the_guarded_digest(seed: int, guard: float) -> None:
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-9, 1, size=2000)
    recorded = rng.standard_normal(2000) * scale * rng.integers(0, 2, 2000)
    middle = rng.standard_normal(500).astype(np.float32)
    boundary = (middle.astype(np.float64) + np.nextafter(middle, np.float32(np.inf)).astype(np.float64)) / 2
    recorded = np.concatenate([recorded, boundary + rng.uniform(-3, 3, 500) * guard])
    skip = {"w": guarded_positions(recorded, guard)}
    digest = tensor_digest({"w": recorded.astype(np.float32)}, skip)
    for drift in (guard, -guard, rng.uniform(-guard, guard, recorded.size), rng.choice([-guard, guard], recorded.size)):
        later = recorded + drift * 0.999999
        assert tensor_digest({"w": later.astype(np.float32)}, skip) == digest


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.data())
def test_one_ulp_of_an_unguarded_value_changes_the_guarded_digest(seed: int, data: st.DataObject) -> None:
    recorded = np.random.default_rng(seed).standard_normal((8, 32))
    positions = guarded_positions(recorded, 1e-10)
    rounded = recorded.astype(np.float32)
    digest = tensor_digest({"w": rounded}, {"w": positions})
    place = data.draw(st.integers(0, rounded.size - 1).filter(lambda i: i not in positions))
    moved = rounded.copy()
    moved.reshape(-1)[place] = np.nextafter(moved.reshape(-1)[place], np.float32(data.draw(st.sampled_from([-9, 9]))))
    assert tensor_digest({"w": moved}, {"w": positions}) != digest


def test_positions_are_those_of_the_whole_tensor_however_large() -> None:
    values64 = np.ones((3, 200_000))
    values64[2, 199_998] = values64[1, 7] = 1.0 + 2.0**-24
    assert guarded_positions(values64, 1e-12) == [200_007, 599_998]


@pytest.mark.parametrize("guard", [0.0, -1e-12, math.nan, math.inf])
def test_a_guard_is_finite_and_positive(guard: float) -> None:
    with pytest.raises(ValueError, match="finite positive"):
        guarded_positions(np.zeros(3), guard)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_and_named(bad: float) -> None:
    with pytest.raises(ValueError, match="position 2"):
        guarded_positions(np.array([0.0, 1.0, bad]), 1e-12)


def test_values_that_were_already_rounded_are_refused() -> None:
    with pytest.raises(ValueError, match="before rounding"):
        guarded_positions(np.zeros(3, np.float32), 1e-12)


@settings(deadline=None)
@given(st.sets(st.integers(0, 400)))
@example(set(range(100)))
def test_positions_survive_their_text_form(positions: set[int]) -> None:
    text = encode_positions(sorted(positions))
    assert list(decode_positions(text, size=401)) == sorted(positions)


def test_a_run_of_positions_is_short_as_text() -> None:
    assert encode_positions(range(1, 16385)) == "1*16384"
    assert encode_positions([5, 6, 7]) == "5,1*2" and encode_positions([3]) == "3"


def test_an_empty_tensor_has_no_position() -> None:
    assert list(decode_positions("", size=0)) == []
    with pytest.raises(ValueError, match="positions"):
        decode_positions("0", size=0)


@pytest.mark.parametrize("text", ["x", "1,,2", "-1", "1,0", "0*2", "11", "5*3", "1*", "1*x", "1*99999999999999999999"])
def test_bad_positions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="positions"):
        decode_positions(text, size=11)

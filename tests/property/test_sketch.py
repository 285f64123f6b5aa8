"""The sketch: its signs are specified, and its estimate of a distance stays within the stated error."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.numerics.sketch import BLOCK, VERSION, Sketch, sketch, sketch_distance

Values = npt.NDArray[np.float64]
MASK = 2**64 - 1
# So that a property over a few hundred drawn examples fails by chance once in ten million runs.
SURE = 1.0 - 1e-10

CONFIDENCE = 0.9999


def sketch_distance_bounds(a: Sketch, b: Sketch, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval (low, high) that holds the L2 distance of the two tensors with `confidence`, around the estimate.

    At sixteen projections and 99.99 % that is 0.578 to 2.527 times the estimate. Raises ValueError as `sketch_distance`
    does, and unless 0 < confidence < 1.
    """
    estimate = sketch_distance(a, b)
    low, high = distance_factors(a.size, confidence)
    return estimate * low, estimate * high


@functools.lru_cache(maxsize=16)
def distance_factors(projections: int, confidence: float) -> tuple[float, float]:
    """(low, high): with `confidence` the true distance lies between `low` and `high` times the estimate."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"a confidence lies between 0 and 1, found {confidence}")
    tail = (1.0 - confidence) / 2.0
    upper = _chi2_quantile(1.0 - tail, projections)
    lower = _chi2_quantile(tail, projections)
    return math.sqrt(projections / upper), math.sqrt(projections / lower)


def _chi2_quantile(probability: float, degrees: int) -> float:
    """The `probability` quantile of the chi-squared distribution with `degrees` of freedom, by bisection."""
    low, high = 0.0, degrees + 100.0 * math.sqrt(2.0 * degrees)
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _chi2_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2.0


def _chi2_cdf(value: float, degrees: int) -> float:
    """P(chi2(degrees) <= value): the power series of the regularised incomplete gamma function."""
    shape, x = degrees / 2.0, value / 2.0
    if x <= 0.0:
        return 0.0
    term = math.exp(shape * math.log(x) - x - math.lgamma(shape + 1.0))
    total, index = term, 1
    while term > total * 1e-17:
        term *= x / (shape + index)
        total, index = total + term, index + 1
        if index > 10_000:
            break
    return total


def philox(counter: int, key: tuple[int, int]) -> list[int]:
    """Philox4x64-10 as Salmon et al. (2011) define it: the four words for one counter."""
    words, (key0, key1) = [counter & MASK, counter >> 64, 0, 0], key
    for _ in range(10):
        low, high = words[0] * 0xD2E7470EE14C6C93, words[2] * 0xCA5A826395121157
        words = [high >> 64 ^ words[1] ^ key0, high & MASK, low >> 64 ^ words[3] ^ key1, low & MASK]
        key0, key1 = (key0 + 0x9E3779B97F4A7C15) & MASK, (key1 + 0xBB67AE8584CAA73B) & MASK
    return words


def sign(index: int, projection: int) -> int:
    """The sign of an element in a projection, from the specification alone."""
    block, at = divmod(index, BLOCK)
    word, bit = divmod(projection * BLOCK + at, 64)
    # NumPy counts up before it draws, so its first words are those of counter 1.
    return -1 if philox(word // 4 + 1, (VERSION, block))[word % 4] >> bit & 1 else 1


@pytest.mark.parametrize("index", [0, 1, 63, 64, 255, 256, BLOCK - 1, BLOCK, 3 * BLOCK + 77])
def test_the_signs_are_those_of_the_specification(index: int) -> None:
    values = np.zeros(index + 1, np.float32)
    values[index] = 1.0
    assert sketch(values).tolist() == [sign(index, projection) for projection in range(16)]


def test_more_projections_begin_with_the_fewer() -> None:
    values = np.random.default_rng(0).standard_normal(BLOCK + 5)
    assert np.allclose(sketch(values, projections=40)[:16], sketch(values), rtol=0, atol=1e-10)


@given(st.integers(0, 2**32), st.integers(1, 3 * BLOCK))
def test_the_sums_are_exact_to_the_stated_accuracy(seed: int, size: int) -> None:
    values = np.random.default_rng(seed).standard_normal(size) * 10.0
    found = sketch(values, projections=2)
    signs = [sketch_signs(size, projection) for projection in range(2)]
    for projection in range(2):
        exact = math.fsum((values * signs[projection]).tolist())
        assert abs(found[projection] - exact) <= 1e-12 * np.linalg.norm(values)


def sketch_signs(size: int, projection: int) -> Values:
    """The signs of the first elements, by way of NumPy's generator."""
    words = BLOCK // 64
    bits = [
        np.unpackbits(
            np.random.Philox(key=np.array([VERSION, block], np.uint64))
            .random_raw(words * (projection + 1))[-words:]
            .astype("<u8")
            .view(np.uint8),
            bitorder="little",
        )
        for block in range(-(-size // BLOCK))
    ]
    return 1.0 - 2.0 * np.concatenate(bits)[:size].astype(np.float64)


@st.composite
def differences(draw: st.DrawFn) -> Values:
    """A difference of two tensors, spread over some or all of its elements, of any scale."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.integers(32, 3 * BLOCK))
    difference = random.standard_normal(size) * 10.0 ** draw(st.integers(-30, 30))
    touched = draw(st.sampled_from(["all", "few", "a run"]))
    if touched == "few":
        difference[random.permutation(size)[32:]] = 0.0
    elif touched == "a run":
        difference[draw(st.integers(32, size)) :] = 0.0
    return difference


@given(differences(), st.integers(0, 2**32))
def test_the_estimate_stays_within_its_stated_error(difference: Values, seed: int) -> None:
    norm = float(np.linalg.norm(difference))
    base = np.random.default_rng(seed).standard_normal(difference.size) * norm / math.sqrt(difference.size) * 1e3
    one, two = sketch(base), sketch(base + difference)
    # What is measured: the difference that remains when both tensors are float64.
    true = float(np.linalg.norm(base + difference - base))
    low, high = sketch_distance_bounds(one, two, confidence=SURE)
    assert low <= true <= high
    # A relative distance, as a tolerance states it.
    size = float(np.linalg.norm(base))
    assert low / size <= true / size <= high / size


def test_the_interval_is_no_wider_than_it_says() -> None:
    """Over many differences the estimate is unbiased, spreads as stated, and leaves the interval as often as stated."""
    random = np.random.default_rng(1)
    ratios = np.array([sketch_distance(sketch(random.standard_normal(200)), np.zeros(16)) for _ in range(4000)])
    ratios /= math.sqrt(200)
    assert abs((ratios**2).mean() - 1.0) < 0.02
    assert 0.16 < ratios.std() < 0.19
    low, high = distance_factors(16, 0.9)
    inside = ((low * ratios <= 1.0) & (high * ratios >= 1.0)).mean()
    assert 0.87 < inside < 0.93


@pytest.mark.parametrize(
    ("degrees", "confidence", "lower", "upper"), [(16, 0.98, 5.812, 32.000), (5, 0.9, 1.145, 11.070)]
)
def test_the_factors_are_those_of_the_chi_squared_tables(
    degrees: int, confidence: float, lower: float, upper: float
) -> None:
    low, high = distance_factors(degrees, confidence)
    assert low == pytest.approx(math.sqrt(degrees / upper), rel=1e-3)
    assert high == pytest.approx(math.sqrt(degrees / lower), rel=1e-3)


@given(st.integers(0, 5 * BLOCK), st.floats(1e-100, 1e100))
def test_a_difference_in_one_element_is_found_exactly(index: int, value: float) -> None:
    values = np.zeros(index + 1)
    values[index] = value
    assert sketch_distance(sketch(values), sketch(np.zeros(index + 1))) == pytest.approx(value, rel=1e-12)


def test_values_of_other_types_and_layouts() -> None:
    values = np.arange(12).reshape(3, 4)
    for other in (values.astype(np.float32), values.astype(">f8"), np.asfortranarray(values), values.astype(np.uint8)):
        assert sketch(other).tolist() == sketch(values).tolist()
    assert sketch(values.T).tolist() != sketch(values).tolist()
    assert sketch(np.zeros((0, 3))).tolist() == [0.0] * 16
    assert sketch(np.array([True])).tolist() == sketch(np.array(1.0)).tolist()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_distance(bad: float) -> None:
    values = np.array([1.0, bad, 2.0, bad])
    assert math.isnan(sketch_distance(sketch(values), sketch(values)))
    low, high = sketch_distance_bounds(sketch(values), np.zeros(16))
    assert math.isnan(low) and math.isnan(high)


def test_what_makes_no_sense_is_refused() -> None:
    for values in (np.array(["a"]), np.array([1j]), np.array([None])):
        with pytest.raises(ValueError, match="real numbers"):
            sketch(values)
    with pytest.raises(ValueError, match="at least one projection"):
        sketch(np.zeros(3), projections=0)
    for one, two in ((np.zeros(16), np.zeros(8)), (np.zeros(0), np.zeros(0)), (np.zeros((4, 4)), np.zeros((4, 4)))):
        with pytest.raises(ValueError, match="one length"):
            sketch_distance(one, two)
    with pytest.raises(ValueError, match="between 0 and 1"):
        sketch_distance_bounds(np.zeros(16), np.zeros(16), confidence=1.0)

"""The tensor digest moves with every change of what it covers, and with nothing else."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from harness.numerics.digest import (
    Array,
    array_digest,
    dataset_digest,
    dtype_name,
    file_sha256,
    raw_bits,
    tensor_digest,
)

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
dtypes = st.sampled_from(["float32", "float64", "float16", "int16", "int64", "uint8", "bool"])
arrays = npst.arrays(dtypes, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
tensors = st.dictionaries(names, arrays, max_size=4)
filled = npst.arrays(np.float32, npst.array_shapes(max_dims=3, max_side=4))


@given(tensors)
def test_the_digest_is_the_documented_one(found: dict[str, Array]) -> None:
    data = b""
    for name, array in sorted(found.items()):
        shape = "x".join(map(str, array.shape))
        data += f"{name}\0{array.dtype}\0{shape}\0".encode() + array.tobytes()
    assert tensor_digest(found) == hashlib.sha256(data).hexdigest()


@given(tensors, st.randoms())
def test_order_layout_and_byte_order_do_not_matter(found: dict[str, Array], random: st.Random) -> None:
    other = list(found.items())
    random.shuffle(other)
    stored = {name: array.copy(order="F").astype(array.dtype.newbyteorder(">")) for name, array in other}
    assert tensor_digest(stored) == tensor_digest(found)
    assert tensor_digest(found, {}) == tensor_digest(found, {name: [] for name in found}) == tensor_digest(found)


@given(filled, st.data())
def test_one_ulp_of_one_value_matters(array: Array, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, array.size - 1))
    other = array.copy()
    bits = other.reshape(-1).view(np.uint32)
    bits[at] = bits[at] + 1 if bits[at] != 0xFFFFFFFF else bits[at] - 1
    assert array_digest("w", other) != array_digest("w", array)


def test_zeros_and_nans_of_other_bits_differ() -> None:
    nan, payload = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    values = [0.0, -0.0, nan, payload]
    assert len({array_digest("w", np.array([value], np.float32)) for value in values}) == 4


@given(tensors, tensors)
def test_different_tensors_have_different_digests(one: dict[str, Array], two: dict[str, Array]) -> None:
    def content(found: dict[str, Array]) -> list[tuple[object, ...]]:
        return sorted((name, str(a.dtype), a.shape, a.tobytes()) for name, a in found.items())

    assert (tensor_digest(one) == tensor_digest(two)) == (content(one) == content(two))


@given(tensors.filter(len), names, arrays, st.data())
def test_names_dtypes_shapes_and_sets_matter(
    found: dict[str, Array], new: str, more: Array, data: st.DataObject
) -> None:
    digest = tensor_digest(found)
    name = data.draw(st.sampled_from(sorted(found)))
    array = found[name]
    rest = {key: value for key, value in found.items() if key != name}
    assert tensor_digest(rest) != digest
    assert tensor_digest({**found, name: array[None]}) != digest
    assert tensor_digest({**found, name: array.view(np.dtype(f"V{array.itemsize}")).view(other_dtype(array))}) != digest
    assume(new not in found)
    assert tensor_digest({**rest, new: array}) != digest
    assert tensor_digest({**found, new: more}) != digest


def other_dtype(array: Array) -> str:
    """A dtype of the same width, so that only the name differs."""
    return {"float32": "uint32", "float64": "int64", "float16": "int16", "int16": "float16", "int64": "float64"}.get(
        str(array.dtype), "int8"
    )


@given(filled, filled)
def test_bytes_cannot_pass_from_one_tensor_to_the_next(one: Array, two: Array) -> None:
    header = f"b\0float32\0{'x'.join(map(str, two.shape))}\0".encode()
    joined = np.frombuffer(one.tobytes() + header + two.tobytes(), np.uint8)
    assert array_digest("a", joined) != tensor_digest({"a": one, "b": two})
    assert array_digest("a", joined.view(np.int8)) != tensor_digest({"a": one, "b": two})


@st.composite
def with_positions(draw: st.DrawFn) -> tuple[Array, list[int]]:
    array = draw(filled)
    return array, sorted(draw(st.sets(st.integers(0, array.size - 1), min_size=1)))


@given(with_positions(), st.data())
def test_a_skipped_value_does_not_matter_and_every_other_does(
    found: tuple[Array, list[int]], data: st.DataObject
) -> None:
    array, skipped = found
    at = data.draw(st.integers(0, array.size - 1))
    other = array.copy()
    other.reshape(-1).view(np.uint32)[at] ^= data.draw(st.integers(1, 2**32 - 1))
    same = tensor_digest({"w": other}, {"w": skipped}) == tensor_digest({"w": array}, {"w": skipped})
    assert same == (at in skipped)


@given(st.lists(with_positions(), min_size=1, max_size=2), st.data())
def test_which_values_are_skipped_matters(found: list[tuple[Array, list[int]]], data: st.DataObject) -> None:
    # All zero, so that nothing but the positions can make the difference.
    tensors = {str(n): np.zeros_like(array) for n, (array, _) in enumerate(found)}
    skip = {str(n): positions for n, (_, positions) in enumerate(found)}
    other = {name: sorted(data.draw(st.sets(st.integers(0, array.size - 1)))) for name, array in tensors.items()}
    assert (tensor_digest(tensors, skip) == tensor_digest(tensors, other)) == (skip == other)


@given(with_positions())
def test_a_digest_that_skips_is_not_that_of_the_rest(found: tuple[Array, list[int]]) -> None:
    array, skipped = found
    rest = np.delete(array.reshape(-1), skipped)
    assert tensor_digest({"w": array}, {"w": skipped}) not in (array_digest("w", rest), array_digest("w", array))


@pytest.mark.parametrize(
    "skip",
    [
        {"v": [0]},
        {"w": [6]},
        {"w": [-1]},
        {"w": [1, 1]},
        {"w": [2, 1]},
        {"w": [0.0]},
        {"w": [True]},
        {"w": [[0], [1]]},
        {"w": [2**70]},
        {"w": [1, 2**64 - 1]},
        {"w": ["1"]},
    ],
)
def test_positions_that_make_no_sense(skip: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match=r"positions to skip in '[vw]'"):
        tensor_digest({"w": np.zeros((2, 3), np.float32)}, skip)


@pytest.mark.parametrize(
    "dtype", ["O", "U3", "S3", "V4", "M8[s]", "g", "G", [("a", "<f4")], [("a", "<u2"), ("b", "<u2")]]
)
def test_dtypes_without_a_portable_form(dtype: object) -> None:
    with pytest.raises(ValueError, match="has no portable digest"):
        array_digest("w", np.zeros(2, dtype))  # type: ignore[call-overload]


def test_names() -> None:
    with pytest.raises(ValueError, match="must not hold NUL"):
        array_digest("a\0b", np.zeros(2))
    assert {dtype_name(np.dtype(c)) for c in "qlp"} == {"int64"}


def test_types_that_numpy_lacks() -> None:
    bits = np.arange(6, dtype=np.uint16).reshape(2, 3)
    found = raw_bits("bfloat16", bits)
    expected = hashlib.sha256(b"w\0bfloat16\0002x3\0" + bits.astype("<u2").tobytes()).hexdigest()
    assert array_digest("w", found) == array_digest("w", raw_bits("bfloat16", bits.astype(">u2"))) == expected
    assert array_digest("w", raw_bits("bfloat16", bits.T)) != expected
    with pytest.raises(ValueError):
        raw_bits("bfloat16", bits.astype(np.int16))


sha256s = st.binary(max_size=4).map(lambda data: hashlib.sha256(data).hexdigest())


@given(st.lists(sha256s, max_size=5), st.lists(sha256s, max_size=5))
def test_the_data_sets_digest_depends_on_content_alone(one: list[str], two: list[str]) -> None:
    assert (dataset_digest(one) == dataset_digest(two)) == (sorted(one) == sorted(two))
    assert dataset_digest(one) == hashlib.sha256("".join(f"{d}\n" for d in sorted(one)).encode()).hexdigest()


@pytest.mark.parametrize("value", ["", "a" * 63, "A" * 64, "a" * 64 + "\n", "g" * 64])
def test_a_data_sets_digest_of_something_else(value: str) -> None:
    with pytest.raises(ValueError, match=re.escape("not a SHA-256")):
        dataset_digest([value])


def test_a_files_digest(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000  # more than one block
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()

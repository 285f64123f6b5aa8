"""Two checkpoints by hand: every number of a difference, and files that torch did not write."""

from __future__ import annotations

import collections
import io
import json
import math
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.baselines.checkpoints import BLOCK, TensorDifference, compare_tensors, in_memory, open_checkpoint
from harness.evidence import EvidenceError

FLOATS = np.arange(6, dtype=np.float32)


def save(path: Path, tensors: dict[str, Any]) -> Path:
    import torch

    torch.save({"adapter": {name: torch.as_tensor(value) for name, value in tensors.items()}, "meta": {}}, path)
    return path


def difference(a: Any, b: Any, dtype: str = "float32") -> TensorDifference:
    """How two lists of numbers differ, as one tensor."""
    one, two = (in_memory({"x": np.array(values, dtype)}) for values in (a, b))
    (found,) = compare_tensors(one, two)
    assert (found.name, found.size) == ("x", np.size(a))
    return found


def difference_of(a: Any, b: Any) -> TensorDifference:
    (found,) = compare_tensors(in_memory({"x": a}), in_memory({"x": b}))
    return found


# What is said of two tensors.


def test_the_largest_difference_is_told_with_its_place_and_values() -> None:
    found = difference([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[1.0, 2.5, 3.0], [4.0, 4.0, 6.0]])
    assert (found.kind_a, found.kind_b) == ("float32 2x3", "float32 2x3")
    assert (found.differing, found.absolute, found.flat, found.index) == (2, 1.0, 4, (1, 1))
    assert (found.a, found.b) == (5.0, 4.0)
    norm = math.sqrt(1 + 2.5**2 + 9 + 16 + 16 + 36)
    assert found.relative == pytest.approx(math.sqrt(0.5**2 + 1.0) / norm, rel=1e-12)


def test_no_difference_is_none() -> None:
    for values in ([], [0.0], [1.0, -0.0, math.inf]):
        assert compare_tensors(*(in_memory({"x": np.array(values, np.float32)}) for _ in range(2))) == []


def test_a_difference_without_a_distance_has_a_place_all_the_same() -> None:
    found = difference([1.0, 2.0, 0.0], [1.0, 2.0, -0.0])
    assert (found.differing, found.absolute, found.flat, found.ulps, found.relative) == (1, 0.0, 2, 1, 0.0)
    found = difference([1.0, 2.0, math.nan], [1.0, 5.0, 3.0])
    assert (found.differing, found.flat, found.ulps) == (2, 2, None) and math.isnan(found.absolute)


@pytest.mark.parametrize(("a", "b"), [(math.nan, 1.0), (1.0, math.nan), (math.nan, math.nan)])
def test_what_is_not_a_number_has_no_distance(a: float, b: float) -> None:
    found = difference([a, 1.0], [b, 1.0])
    assert found.differing == 1 and found.ulps is None and math.isnan(found.absolute) and found.relative == math.inf
    assert [math.isnan(value) for value in (found.a, found.b)] == [math.isnan(a), math.isnan(b)]


@pytest.mark.parametrize(("a", "b"), [(math.inf, 1.0), (1.0, math.inf), (math.inf, -math.inf)])
def test_an_infinity_is_infinitely_far_and_counts_no_ulps(a: float, b: float) -> None:
    found = difference([a, 1.0], [b, 1.0])
    assert (found.differing, found.ulps, found.absolute, found.flat) == (1, None, math.inf, 0)
    assert (found.a, found.b, found.relative) == (a, b, math.inf)


def test_one_value_that_is_not_finite_leaves_no_ulps_of_the_others() -> None:
    assert difference([1.0, math.inf], [2.0, 1.0]).ulps is None
    apart = np.zeros(BLOCK + 1, np.float32)
    one, two = apart.copy(), apart.copy()
    one[0], one[BLOCK] = 1.0, math.inf
    for values in (one, one[::-1]):
        assert difference(values, two).ulps is None


@pytest.mark.parametrize("dtype", ["int64", "int32", "int8", "uint8", "bool"])
def test_whole_numbers_have_no_ulps(dtype: str) -> None:
    found = difference([1, 0, 1], [1, 1, 1], dtype)
    assert (found.differing, found.ulps, found.absolute, found.flat) == (1, None, 1.0, 1)
    assert found.relative == pytest.approx(1 / math.sqrt(3), rel=1e-12)


@pytest.mark.filterwarnings("error")
def test_a_relative_distance_is_of_the_second_tensor_and_finite_only_where_it_means_something() -> None:
    assert difference([1.0, 2.0], [1.0, 4.0]).relative == pytest.approx(2 / math.sqrt(17), rel=1e-12)
    assert difference([0.25], [0.5]).relative == 0.5, "also of a small tensor"
    assert difference([1.0], [0.0]).relative == math.inf
    assert difference([1e300, 1.0], [1e300, 2.0], "float64").relative == math.inf, "its norm is beyond float64"
    assert difference([1e300, 1.0], [1.0, 1.0], "float64").relative == math.inf


def test_of_equal_differences_the_first_counts_and_a_smaller_one_never_does() -> None:
    a = np.zeros(2 * BLOCK, np.float32)
    b = a.copy()
    a[0], b[0] = -10.5, -10.0
    b[BLOCK + 1] = 0.5
    assert difference(a, b).flat == 0
    b[BLOCK + 1] = 0.25
    assert (difference(a, b).flat, difference(a, b).absolute) == (0, 0.5)
    b[BLOCK + 1] = 0.75
    assert (difference(a, b).flat, difference(a, b).b) == (BLOCK + 1, 0.75)


def test_a_scalar_has_no_index() -> None:
    found = difference(1.0, 2.0)
    assert (found.kind_a.strip(), found.index, found.flat, found.size) == ("float32", (), 0, 1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", "int64", "complex64", "complex128"])
def test_equal_values_are_equal_in_any_byte_order(dtype: str) -> None:
    little, big = (np.array([[1, 2, 3], [4, 5, 6]], np.dtype(dtype).newbyteorder(order)) for order in "<>")
    assert compare_tensors(in_memory({"x": little}), in_memory({"x": big})) == []
    big[1, 0] = 7
    (found,) = compare_tensors(in_memory({"x": little}), in_memory({"x": big}))
    assert (found.differing, found.index[:2], found.a, found.b) == (1, (1, 0), 4.0, 7.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_values_are_compared_part_by_part(dtype: str) -> None:
    found = difference_of(np.array([1 + 2j, 3 + 4j], dtype), np.array([1 + 2j, 3 + 5j], dtype))
    assert (found.kind_a, found.index) == (f"{dtype} 2", (1, 1))
    assert (found.differing, found.size, found.a, found.b) == (1, 4, 4.0, 5.0)
    real = "float32" if dtype == "complex64" else "float64"
    other = difference_of(np.array([1 + 2j], dtype), np.array([[1, 2]], real))
    assert (other.kind_a, other.kind_b) == (f"{dtype} 1", f"{real} 1x2")
    scalar = difference_of(np.array(1 + 2j, dtype), np.array(2 + 2j, dtype))
    assert (scalar.index, scalar.a, scalar.b) == ((0,), 1.0, 2.0)


def test_a_tensor_that_one_side_lacks_differs_as_a_whole() -> None:
    here, nothing = in_memory({"x": np.ones(2, np.float32)}), in_memory({})
    nan = {"ulps": None, "absolute": "nan", "flat": 0, "index": (), "a": "nan", "b": "nan", "relative": "nan"}
    for a, b, kinds in ((here, nothing, ("float32 2", "missing")), (nothing, here, ("missing", "float32 2"))):
        (found,) = compare_tensors(a, b)
        expected = {"name": "x", "kind_a": kinds[0], "kind_b": kinds[1], "differing": 2, "size": 2, **nan}
        assert found.to_json() == expected
    (found,) = compare_tensors(in_memory({"x": np.ones(3, np.float32)}), here)
    assert (found.kind_a, found.kind_b, found.size) == ("float32 3", "float32 2", 3)


def test_tensors_are_compared_by_name_in_name_order() -> None:
    a = in_memory({"c": FLOATS, "b": FLOATS, "a": FLOATS})
    b = in_memory({"d": FLOATS, "a": FLOATS + 1, "b": FLOATS, "c": FLOATS[::-1]})
    assert [found.name for found in compare_tensors(a, b)] == ["a", "c", "d"]
    assert json.dumps([found.to_json() for found in compare_tensors(a, b)], allow_nan=False)


def test_the_comparison_agrees_with_brute_force_across_blocks() -> None:
    random = np.random.default_rng(1)
    a = random.standard_normal(3 * BLOCK + 5).astype(np.float32)
    b = a.copy()
    places = random.choice(a.size, 100, replace=False)
    b[places] += random.standard_normal(100).astype(np.float32) / 1000
    (found,) = compare_tensors(in_memory({"x": a}), in_memory({"x": b}))
    distance = np.abs(a.astype(np.float64) - b)
    assert found.differing == np.count_nonzero(a != b)
    assert found.absolute == distance.max() and found.flat == distance.argmax() and found.index == (found.flat,)
    assert (found.a, found.b) == (a[found.flat], b[found.flat])
    assert found.relative == pytest.approx(np.linalg.norm(distance) / np.linalg.norm(b.astype(np.float64)))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_ulps_count_the_values_in_between(dtype: str) -> None:
    kind = np.dtype(dtype).type
    for start, steps in ((1.0, 3), (0.0, 2), (-1.0, 5), (2.0**-14, 4)):
        value = kind(start)
        for _ in range(steps):
            value = np.nextafter(value, kind(9))
        a, b = np.array([start], dtype), np.array([value])
        (found,) = compare_tensors(in_memory({"x": a}), in_memory({"x": b}))
        assert found.ulps == steps
    (zeros,) = compare_tensors(in_memory({"x": np.array([0.0], dtype)}), in_memory({"x": np.array([-0.0], dtype)}))
    assert (zeros.ulps, zeros.absolute, zeros.differing) == (1, 0.0, 1)
    tiny = np.nextafter(kind(0), kind(1))
    (found,) = compare_tensors(in_memory({"x": np.array([-tiny])}), in_memory({"x": np.array([tiny])}))
    assert found.ulps == 3


def test_npz_and_torch_files_are_compared_with_each_other(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "a.npz", x=x)
    a, b = open_checkpoint(tmp_path / "a.npz"), open_checkpoint(save(tmp_path / "b.pt", {"x": x}))
    assert compare_tensors(a, b) == []


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The tensors in what torch loads, by the names that they have here."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        named = [flat(item, f"{name}.{key}".removeprefix(".")) for key, item in items]
        return {key: tensor for part in named for key, tensor in part.items()}
    return {name: value} if hasattr(value, "detach") else {}


def test_what_torch_writes_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    import torch

    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    cases: dict[str, Any] = {
        "lane": {"adapter": {"a": base, "b": base.double()}, "meta": {"steps": 3}},
        "nested": {"x": {"y": [base, base.short()]}, "z": base.byte(), "n": 3, "none": None},
        "no meta": {"adapter": {"a": base, "b": base[1]}},
        "tensors of meta": {"adapter": {"a": base}, "meta": {"b": base}},
        "more than meta": {"adapter": {"a": base}, "meta": {}, "other": base},
        "a tensor as adapter": {"adapter": base, "meta": {}},
        "only meta": {"meta": {"a": base}},
        "a list": [base, {"a": (base, base)}],
        "views": {"half": base[2:], "whole": base, "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4)},
        "one row": {"x": base[1:2], "y": base[:, :1]},
        "strided": {"x": base.T, "y": base[:, ::2]},
        "negative": {"x": torch.view_as_complex(base.reshape(4, 3, 2)).conj().imag},
        "every second row": {"x": base[::2]},
        "bfloat16": {"x": base.bfloat16()},
        "parameter": {"x": torch.nn.Parameter(base)},
        "long": {"x": base.long(), "i": base.int(), "c": base.to(torch.int8), "h": base.half()},
    }
    for name, value in cases.items():
        path = tmp_path / f"{name}.pt"
        torch.save(value, path)
        loaded = torch.load(path, weights_only=True)
        if isinstance(loaded, dict) and "adapter" in loaded and loaded.keys() <= {"adapter", "meta"}:
            loaded = [loaded["adapter"], loaded.get("meta", {})]
            expected = {key.partition(".")[2]: tensor for key, tensor in flat(loaded).items()}
        else:
            expected = flat(loaded)
        found = open_checkpoint(path)
        assert found.keys() == expected.keys(), name
        arrays = {key: t.detach().resolve_conj().resolve_neg().float().numpy() for key, t in expected.items()}
        held = {key: stored.array.astype(np.float32) for key, stored in found.items()}
        assert compare_tensors(in_memory(held), in_memory(arrays)) == [], name


# Files that torch did not write, or that are not plain.


@dataclass(frozen=True)
class Storage:
    key: Any = "0"
    elements: int = 6
    tag: str = "storage"
    kind: Any = None  # torch.FloatStorage


class Fake:
    """A tensor that says of itself what it likes."""

    def __init__(
        self, shape: Any = (2, 3), stride: Any = (3, 1), offset: int = 0, storage: Storage | None = None
    ) -> None:
        self.arguments = storage or Storage(), offset, shape, stride, False, collections.OrderedDict()

    def __reduce__(self) -> Any:
        from torch._utils import _rebuild_tensor_v2

        return _rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, found: Any) -> Any:
        import torch

        if isinstance(found, Storage):
            return (found.tag, found.kind or torch.FloatStorage, found.key, "cpu", found.elements)
        return None


def pickled(tensors: Any) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, 2).dump(tensors)
    return stream.getvalue()


def archive(
    path: Path, tensors: Any, members: dict[str, bytes] | None = None, root: str = "archive", **options: Any
) -> Path:
    """A checkpoint, member by member; six floats are its storage unless `members` has another."""
    data = pickled(tensors) if not isinstance(tensors, bytes) else tensors
    files = {"data.pkl": data, "byteorder": b"little", "data/0": FLOATS.tobytes(), "version": b"3\n", **(members or {})}
    with zipfile.ZipFile(path, "w", options.get("compression", zipfile.ZIP_STORED)) as target:
        for name, content in files.items():
            info = zipfile.ZipInfo(f"{root}/{name}")
            info.compress_type = options.get("compression", zipfile.ZIP_STORED)
            info.extra = options.get("extra", b"")
            target.writestr(info, content)
    return path


def is_refused(path: Path) -> bool:
    """Whether the reader refuses the file."""
    try:
        open_checkpoint(path)
    except EvidenceError:
        return True
    return False


def values(path: Path) -> list[float]:
    (stored,) = open_checkpoint(path).values()
    return [float(value) for block in stored.blocks() for value in block]


def test_an_archive_is_read_plainly_whatever_lies_around_the_values(tmp_path: Path) -> None:
    extra = b"\x99\x99" + (600).to_bytes(2, "little") + bytes(600)
    for options in ({}, {"root": "a" * 300}, {"extra": extra}, {"root": "b" * 300, "extra": extra}):
        path = archive(tmp_path / "a.pt", {"x": Fake()}, **options)
        assert values(path) == FLOATS.tolist()
    path = archive(tmp_path / "older.pt", {"x": Fake()})
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "b.pt", "w") as target:
        for info in whole.infolist():
            if not info.filename.endswith("byteorder"):
                target.writestr(info, whole.read(info))
    assert values(tmp_path / "b.pt") == FLOATS.tolist()


@pytest.mark.parametrize(
    ("fake", "expected"),
    [
        (Fake((3,), (1,), 3), [3.0, 4.0, 5.0]),
        (Fake((1, 3), (7, 1), 1), [1.0, 2.0, 3.0]),  # the stride of a dimension of one is of no account
        (Fake((3, 1), (1, 9), 2), [2.0, 3.0, 4.0]),
        (Fake((), (), 5), [5.0]),
        (Fake((0, 4), (4, 1), 6), []),
        (Fake((2, 2), (2, 1), 2), [2.0, 3.0, 4.0, 5.0]),
        (Fake((2, 3), (1, 2)), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]),
        (Fake((2, 2), (3, 1)), [0.0, 1.0, 3.0, 4.0]),
        (Fake((3,), (2,)), [0.0, 2.0, 4.0]),
    ],
)
def test_a_view_is_the_values_from_its_place_on(tmp_path: Path, fake: Fake, expected: list[float]) -> None:
    path = archive(tmp_path / "a.pt", {"x": fake})
    assert values(path) == expected


@pytest.mark.parametrize(
    "fake",
    [
        Fake((3,), (3,)),  # beyond the end
        Fake((3,), (-1,)),  # before the beginning
        Fake((2, 1 << 70), (0, 0)),
        Fake((2, None), (1, 1)),
        Fake((1,) * 33, (1,) * 33),
        Fake((2, 3), (3,)),
        Fake((2, 3), (1, 3, 1)),
        Fake((2, 3), (3, 1), -1),
        Fake((2, 3), (3, 1), 1),  # beyond the end
        Fake((7,), (1,)),
        Fake((-1,), (1,)),
        Fake((-1, -1), (-1, 1)),
        Fake(storage=Storage(tag="module")),
        Fake(storage=Storage(kind="<c8", elements=6)),
        Fake(storage=Storage(key=0)),
        Fake(storage=Storage(key="1")),
        Fake(storage=Storage(elements=7)),
        Fake(storage=Storage(elements=5)),
    ],
    ids=lambda fake: "-".join(map(str, fake.arguments[:4])),
)
def test_a_tensor_that_does_not_fit_is_refused(tmp_path: Path, fake: Fake) -> None:
    assert is_refused(archive(tmp_path / "a.pt", {"x": fake}))


def test_the_order_of_bytes_is_the_archives(tmp_path: Path) -> None:
    members = {"byteorder": b"big", "data/0": FLOATS.astype(">f4").tobytes()}
    assert values(archive(tmp_path / "a.pt", {"x": Fake()}, members)) == FLOATS.tolist()


@pytest.mark.parametrize(
    ("members", "options"),
    [
        ({}, {"compression": zipfile.ZIP_DEFLATED}),
        ({"data/0": FLOATS.tobytes()[:-1]}, {}),
        ({"more/data.pkl": pickle.dumps({"y": 1}, 2)}, {}),
    ],
    ids=["compressed", "too short", "two pickles"],
)
def test_an_archive_that_does_not_fit_is_refused(
    tmp_path: Path, members: dict[str, bytes], options: dict[str, Any]
) -> None:
    assert is_refused(archive(tmp_path / "a.pt", {"x": Fake()}, members, **options))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", {"x": Fake()})
    with zipfile.ZipFile(path, "a") as target:
        target.writestr("archive/data/0", FLOATS[::-1].tobytes())
    assert is_refused(path)
    path = archive(tmp_path / "b.pt", {"a.b": Fake(), "a": {"b": Fake((3,), (1,))}})
    with pytest.raises(EvidenceError, match="two values of the name"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("known", "other"),
    [
        (b"ctorch\nFloatStorage\n", b"cnumpy\nFloatStorage\n"),
        (b"ctorch\nFloatStorage\n", b"ctorch\nOtherStorage\n"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_tensor\n"),
        (b"ccollections\nOrderedDict\n", b"cbuiltins\neval\n"),
    ],
)
def test_another_name_in_a_pickle_is_refused(tmp_path: Path, known: bytes, other: bytes) -> None:
    data = pickled({"x": Fake()})
    assert data.count(known) == 1
    assert not is_refused(archive(tmp_path / "a.pt", data))
    assert is_refused(archive(tmp_path / "b.pt", data.replace(known, other)))


def test_a_header_that_is_not_where_the_directory_says_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", {"x": Fake()})
    with zipfile.ZipFile(path) as whole:
        at = whole.getinfo("archive/data/0").header_offset
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert is_refused(path)

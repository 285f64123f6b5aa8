"""What a file claims of its sizes is held against the file before memory is asked for: a value or an EvidenceError, and
never another exception, nor more memory than a few times the file."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.evidence import EvidenceError, read_checkpoint
from harness.evidence.checkpoint import read_array
from harness.evidence.strict import parse_json
from harness.promotion import promotion_findings

MEMORY = 64 << 20
PICKLED_BYTES = b"\x80\x02\x96" + (1 << 42).to_bytes(8, "little") + b"."  # a bytearray of 4 TiB
PICKLED_TEXT = b"\x80\x02\x8d" + (1 << 42).to_bytes(8, "little") + b"."
HUGE = [0, 1, 2, 21_000, 1 << 31, 1 << 32, 1 << 42, (1 << 63) - 1, 1 << 63, 1 << 64, 10**19, 10**30]


def bounded(read: Callable[[], Any]) -> Any:
    """What is read, or the EvidenceError; fails where Python or NumPy were asked for more than MEMORY."""
    tracemalloc.start()
    try:
        result = read()
    except EvidenceError as error:
        result = error
        assert str(error).isprintable()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY, f"{peak:,} bytes were asked for"
    return result


def safetensors(header: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def npy(
    shape: str, *, descr: str = "'<f4'", version: int = 1, length: int | None = None, data: bytes = bytes(8)
) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    count = struct.pack("<H" if version == 1 else "<I", len(header) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + count + header + data


def archive(members: Mapping[str, bytes], compression: int = 0, **directory: int) -> bytes:
    """A zip archive; `directory`: what the central directory and the end claim in place of the truth."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    data = bytearray(buffer.getvalue())
    first, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    places = {"packed": (first + 20, 4), "unpacked": (first + 24, 4), "entries": (end + 8, 2), "total": (end + 10, 2)}
    places |= {"size": (end + 12, 4), "offset": (end + 16, 4)}
    for what, value in directory.items():
        at, width = places[what]
        data[at : at + width] = value.to_bytes(width, "little")
    return bytes(data)


class Claimed:
    """A storage of float32, of as many values as it says."""

    def __init__(self, count: Any) -> None:
        self.count = count


class Made:
    """What a pickle makes by calling a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


def torch_file(value: Any, members: Mapping[str, bytes] | None = None, pickled: bytes | None = None) -> bytes:
    """A checkpoint whose pickle claims what `value` says; the storage's member has 8 bytes, the file a megabyte."""
    import torch

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", obj.count) if isinstance(obj, Claimed) else None

    if pickled is None:
        buffer = io.BytesIO()
        Pickler(buffer, protocol=2).dump(value)
        pickled = buffer.getvalue()
    parts = {"a/data.pkl": pickled, "a/version": b"3\n", "a/byteorder": b"little", "a/data/0": bytes(8)}
    return archive({**parts, "a/padding": bytes(1 << 20), **(members or {})})


def claimed(count: Any, shape: tuple[int, ...] = (2,), stride: tuple[int, ...] = (1,), offset: int = 0) -> Made:
    import torch._utils

    return Made(torch._utils._rebuild_tensor_v2, Claimed(count), offset, shape, stride, False, OrderedDict())


BAD: dict[str, Callable[[], bytes]] = {
    "a.safetensors header of 4 TiB": lambda: safetensors(tensor(), length=1 << 42),
    "a.safetensors header of 2^64 - 1": lambda: safetensors(tensor(), length=(1 << 64) - 1),
    "a.safetensors tensor of 4 TiB": lambda: safetensors(tensor(shape=[1 << 40], data_offsets=[0, 1 << 42])),
    "a.safetensors 21,000 dimensions": lambda: safetensors(tensor(shape=[1] * 20_999 + [2])),
    "a.safetensors 50,000 large dimensions": lambda: safetensors(tensor(shape=[10**18] * 50_000)),
    "a.safetensors nothing times much": lambda: safetensors(tensor(shape=[0, 1 << 62, 8], data_offsets=[0, 0]), b""),
    "a.safetensors product past 2^64": lambda: safetensors(tensor(shape=[1 << 32, 1 << 32], data_offsets=[0, 0]), b""),
    "a.safetensors end past 2^63": lambda: safetensors(tensor(data_offsets=[10**19, 10**19 + 8])),
    "a.safetensors JSON without end": lambda: safetensors(b"[" * 100_000),
    "a.safetensors name without end": lambda: safetensors({"." * 100_000: tensor()["w"]}),
    "a.safetensors true as a length": lambda: safetensors(tensor(shape=[True, 2])),
    "a.npy header of 4 GiB": lambda: npy("(2,)", version=2, length=(1 << 32) - 1),
    "a.npy of 4 TiB": lambda: npy(f"({1 << 40},)"),
    "a.npy nothing times much": lambda: npy(f"(0, {1 << 62})", data=b""),
    "a.npy nothing, in many dimensions": lambda: npy(f"({'0,' * 65})", data=b""),
    "a.npy of 33 dimensions": lambda: npy(f"({'1,' * 32} 2)"),
    "a.npy product past 2^64": lambda: npy(f"({1 << 32}, {1 << 32})"),
    "a.npy of -2": lambda: npy("(-2, -1)"),
    "a.npy elements of 4 GB": lambda: npy("(2,)", descr="'V4000000000'"),
    "a.npy elements that are arrays": lambda: npy("(2,)", descr="('<f4', (1000000000,))"),
    "a.npy shape nested without end": lambda: npy("(" * 3000 + ")" * 3000),
    "a.npz directory of 4 GB": lambda: archive({"a.npy": npy("(2,)")}, size=4_000_000_000),
    "a.npz directory past its end": lambda: archive({"a.npy": npy("(2,)")}, offset=4_000_000_000),
    "a.npz member of 1.9 GB": lambda: archive({"a.npy": npy("(2,)")}, unpacked=1_900_000_000),
    "a.npz deflated member of 1.9 GB": lambda: archive({"a.npy": npy("(2,)")}, 8, unpacked=1_900_000_000),
    "a.npz packed bytes past its end": lambda: archive({"a.npy": npy("(2,)")}, packed=1_900_000_000),
    "a.npz packed in another way": lambda: archive({"a.npy": npy("(2,)") + bytes(1 << 20)}, zipfile.ZIP_BZIP2),
    "a.npz array in a member of 4 TiB": lambda: archive({"a.npy": npy(f"({1 << 40},)")}),
    "a.pt storage of 4 TiB": lambda: torch_file({"w": claimed(1 << 40)}),
    "a.pt storage longer than its member": lambda: torch_file({"w": claimed(1000, (1000,))}),
    "a.pt storage of -1": lambda: torch_file({"w": claimed(-1)}),
    "a.pt storage of 2^70": lambda: torch_file({"w": claimed(1 << 70)}),
    "a.pt tensor longer than its storage": lambda: torch_file({"w": claimed(2, (1000,))}),
    "a.pt one value, a terabyte of it": lambda: torch_file({"w": claimed(2, (1 << 20, 1 << 20), (0, 0))}),
    "a.pt 21,000 dimensions": lambda: torch_file({"w": claimed(2, (1,) * 21_000, (1,) * 21_000)}),
    "a.pt bytes by their number": lambda: torch_file({"w": claimed(2), "x": Made(bytearray, 1 << 30)}),
    "a.pt bytes of a claimed length": lambda: torch_file(None, pickled=PICKLED_BYTES),
    "a.pt text of a claimed length": lambda: torch_file(None, pickled=PICKLED_TEXT),
    "a.pt key of a million digits": lambda: torch_file({1 << 4_000_000: claimed(2)}),
    "a.pt two pickles": lambda: torch_file({"w": claimed(2)}, {"b/data.pkl": b"x"}),
    "a.pt storage under two spellings": lambda: torch_file({"w": claimed(2)}, {"a/DATA/0": b""}),
}  # fmt: skip


NAMED = "a.pt bytes by their number"


def test_an_object_is_named_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(BAD[NAMED]())
    found = bounded(lambda: read_checkpoint(path))
    assert not isinstance(found, EvidenceError) and found.meta["x"] == "<builtins.bytearray>"


@pytest.mark.parametrize("what", [what for what in BAD if what != NAMED])
def test_a_claim_that_cannot_be_is_one_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / what.split()[0]
    path.write_bytes(BAD[what]())
    found = bounded(lambda: read_array(path) if path.suffix == ".npy" else read_checkpoint(path))
    assert isinstance(found, EvidenceError), f"read as {found}"


@pytest.mark.parametrize("what", [what for what in BAD if what.startswith("a.pt storage")])
def test_a_storage_is_no_more_than_its_member_where_the_file_is_mapped(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There torch believes the claim, and takes what lies behind the member in the file."""
    monkeypatch.setattr("harness.evidence.torch_file.MAP_ABOVE", 0)
    (tmp_path / "a.pt").write_bytes(BAD[what]())
    assert isinstance(bounded(lambda: read_checkpoint(tmp_path / "a.pt")), EvidenceError)


@pytest.mark.parametrize("what", BAD)
def test_promotion_check_refuses_it_in_one_line(what: str, tmp_path: Path) -> None:
    bundle = tmp_path / "d" / "voice_bundle"
    bundle.mkdir(parents=True)
    (bundle / what.split()[0]).write_bytes(BAD[what]())
    refusals = bounded(lambda: promotion_findings(tmp_path / "d", [tmp_path / "none"]).refusals)
    assert any(refusal.code == "unexamined" and what.split()[0] in refusal.what for refusal in refusals)


def test_a_list_of_members_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry of it becomes an object of ten times its size."""
    monkeypatch.setattr("harness.evidence.checkpoint.HEADER_LIMIT", 200)
    for count, refused in ((3, False), (4, True)):
        (tmp_path / "a.npz").write_bytes(archive({f"{n}.npy": npy("(2,)") for n in range(count)}))
        found = bounded(lambda: read_checkpoint(tmp_path / "a.npz"))
        assert isinstance(found, EvidenceError) == refused, found


def test_the_same_files_without_the_claims_are_read(tmp_path: Path) -> None:
    whole = {
        "a.safetensors": safetensors(tensor()),
        "a.npz": archive({"w.npy": npy("(2,)")}, zipfile.ZIP_DEFLATED),
        "a.pt": torch_file({"w": claimed(2)}),
    }
    for name, data in whole.items():
        (tmp_path / name).write_bytes(data)
        assert bounded(lambda name=name: read_checkpoint(tmp_path / name)).tensors["w"].tolist() == [0.0, 0.0]
    (tmp_path / "a.npy").write_bytes(npy("(2,)"))
    assert bounded(lambda: read_array(tmp_path / "a.npy")).tolist() == [0.0, 0.0]
    (tmp_path / "a.npy").write_bytes(npy(f"({'1,' * 31} 2)"))
    assert bounded(lambda: read_array(tmp_path / "a.npy")).ndim == 32


lengths = st.one_of(st.integers(-2, 9), st.sampled_from(HUGE))


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "U8", "I64", "C64", "", 3]),
                "shape": st.one_of(st.lists(lengths, max_size=40), lengths, st.none()),
                "data_offsets": st.lists(lengths, max_size=3),
            }
        ),
        max_size=3,
    ),
    st.one_of(st.none(), st.sampled_from(HUGE[:-2])),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_safetensors_header(tmp_path: Path, header: dict[str, Any], length: int | None) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(header, length=None if length is None else length % (1 << 64)))
    bounded(lambda: read_checkpoint(path))


@given(
    st.lists(lengths, max_size=70), st.sampled_from(["'<f4'", "'<f8'", "'|u1'", "'>c16'", "'|O'", "[('a','<f4')]", "7"])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_npy_header(tmp_path: Path, shape: list[int], descr: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy(f"({''.join(f'{side},' for side in shape)})", descr=descr))
    found = bounded(lambda: read_array(path))
    assert isinstance(found, EvidenceError) or found.nbytes in (0, 8)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_edit_of_any_header(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes anywhere in a small file of each kind are overwritten, by what lengths are made of."""
    name = data.draw(st.sampled_from(["a.safetensors", "a.npz", "a.pt"]))
    whole = {
        "a.safetensors": lambda: safetensors(tensor()),
        "a.npz": lambda: archive({"w.npy": npy("(2,)")}, zipfile.ZIP_DEFLATED),
        "a.pt": lambda: torch_file({"w": claimed(2)}, {"a/padding": b""}),
    }[name]()
    edited = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        new = data.draw(
            st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f\xff"]))
        )
        edited[at : at + len(new)] = new
    (tmp_path / name).write_bytes(edited)
    bounded(lambda: read_checkpoint(tmp_path / name))


@given(
    st.recursive(
        st.sampled_from(["1", '"a"', "1" * 30, "1e999", "-0"]), lambda one: one.map(lambda t: f'[{t}, {{"a": {t}}}]')
    )
)
@settings(max_examples=50)
def test_any_json(text: str) -> None:
    for depth in (0, 60, 70, 100_000):
        found = bounded(lambda depth=depth: parse_json(("[" * depth + text + "]" * depth).encode(), "a.json"))
        assert depth < 64 or isinstance(found, EvidenceError)

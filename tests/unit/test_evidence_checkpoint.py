"""Reading checkpoints: right values from good files, one clear line from bad ones, and nothing executed."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import http
import io
import json
import os
import pickle
import random
import struct
import subprocess
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.evidence import EvidenceError, read_array, read_checkpoint
from harness.numerics.digest import file_sha256, raw_bits, tensor_digest


def refused(path: Path) -> str:
    """The one printable line with which reading `path` is refused."""
    with pytest.raises(EvidenceError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isprintable()
    return message


def saved(path: Path, value: Any, **options: Any) -> Path:
    import torch

    torch.save(value, path, **options)
    return path


def tensor(*values: float) -> Any:
    import torch

    return torch.tensor(values, dtype=torch.float32)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


class Opaque:
    """An object that could be loaded only by running this module."""


def test_the_lanes_own_layout(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"adapter": {"b": tensor(1, 2), "a": tensor(3)}, "meta": {"seed": 3, "lane": "x"}})
    found = read_checkpoint(path)
    assert list(found.tensors) == ["a", "b"] and found.meta == {"seed": 3, "lane": "x"}
    assert found.tensors["b"].tolist() == [1.0, 2.0] and found.dtypes == {"a": "float32", "b": "float32"}
    assert found.tensor_digest == tensor_digest(found.tensors)
    assert (found.path, found.bytes, found.sha256) == (path, path.stat().st_size, file_sha256(path))
    with pytest.raises(ValueError):
        found.tensors["b"][0] = 5.0


def test_nested_dictionaries_are_flattened(tmp_path: Path) -> None:
    state = {"model": {"x": tensor(1)}, "opt": [{"m": tensor(2), "lr": 0.1}], "adapter": tensor(3), 7: None}
    found = read_checkpoint(saved(tmp_path / "a.pt", state))
    assert sorted(found.tensors) == ["adapter", "model.x", "opt.0.m"]
    assert found.meta == {"opt.0.lr": 0.1, "7": None}


def test_bfloat16_keeps_its_values_and_its_bits(tmp_path: Path) -> None:
    import torch

    values = torch.tensor([1.0, -2.5, float("inf"), 3e-39, -0.0]).bfloat16()
    found = read_checkpoint(saved(tmp_path / "a.pt", {"w": values}))
    assert found.dtypes == {"w": "bfloat16"} and found.tensors["w"].dtype == np.float32
    assert found.tensors["w"].tobytes() == values.float().numpy().tobytes()
    bits = raw_bits("bfloat16", values.view(torch.uint16).numpy())
    assert found.tensor_digest == tensor_digest({"w": bits}) != tensor_digest({"w": values.float().numpy()})


def test_tensors_of_other_kinds(tmp_path: Path) -> None:
    import torch

    whole = torch.arange(6.0)
    state = {
        "transposed": whole.view(2, 3).t(),
        "slice": whole[1:3],
        "parameter": torch.nn.Parameter(tensor(1)),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "bool": torch.tensor([True]),
        "half": tensor(1, -2).half(),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(5, dtype=torch.int64),
    }
    found = read_checkpoint(saved(tmp_path / "a.pt", state)).tensors
    assert found["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]] and found["slice"].tolist() == [1, 2]
    assert found["half"].dtype == np.float16 and found["half"].tolist() == [1, -2]
    assert found["conjugate"].tolist() == [1 - 2j] and found["empty"].shape == (0, 3) and found["scalar"] == 5


def test_a_large_checkpoint_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.pt", {"w": tensor(1, 2)})
    expected = read_checkpoint(path)
    monkeypatch.setattr("harness.evidence.torch_file.MAP_ABOVE", 0)
    assert read_checkpoint(path).tensor_digest == expected.tensor_digest


def test_a_hostile_pickle_is_refused_unread(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"w": tensor(1), "x": Hostile(f"touch {tmp_path}/executed")})
    assert "refused unread, expected tensors and plain values only" in refused(path)
    assert "GLOBAL posix.system" in refused(path) and "weights_only" not in refused(path)
    path.write_bytes(pickle.dumps(Hostile(f"touch {tmp_path}/executed")))
    assert "no readable archive" in refused(path)
    saved(path, {"w": Hostile(f"touch {tmp_path}/executed")}, _use_new_zipfile_serialization=False)
    assert "no readable archive" in refused(path)
    assert not (tmp_path / "executed").exists()


def test_an_object_is_named_and_not_made(tmp_path: Path) -> None:
    found = read_checkpoint(saved(tmp_path / "a.pt", {"w": tensor(1), "x": Opaque()}))
    assert list(found.tensors) == ["w"] and found.meta["x"].endswith("test_evidence_checkpoint.Opaque>")
    message = refused(saved(tmp_path / "a.pt", Opaque()))
    assert "no tensor, but an object <" in message and "test_evidence_checkpoint.Opaque>" in message


@dataclasses.dataclass
class Config:
    """As people keep beside their tensors."""

    width: int
    place: Path
    inner: Any = None


class ByAttribute:
    """Pickled as Python 3.11.2 pickles a member of an enum."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (http.HTTPStatus, "OK")


def test_what_lies_beside_the_tensors_is_listed(tmp_path: Path) -> None:
    import torch

    config = Config(3, Path("/tmp/x"), argparse.Namespace(rate=0.1, mean=tensor(2)))
    config.inner.config = config  # a circle
    state = {
        "model": torch.nn.Linear(1, 1),
        "config": config,
        "when": datetime.datetime(2026, 1, 1),
        "kind": http.HTTPStatus.OK,
        "member": ByAttribute(),
        "of": collections.defaultdict(list, {"a": [tensor(3)]}),
        "best": np.float64(0.5),
        "seen": {1, 2},
        "w": tensor(1),
    }
    for protocol in (2, 4):
        found = read_checkpoint(saved(tmp_path / "a.pt", state, pickle_protocol=protocol))
        assert sorted(found.tensors) == [
            "config.inner.mean", "model._parameters.bias", "model._parameters.weight", "of.a.0", "w"
        ]  # fmt: skip
        assert found.meta["config.width"] == 3 and found.meta["config.inner.rate"] == 0.1
        assert found.meta["config.place"] == "<pathlib.PosixPath>" and found.meta["kind"].startswith("<http.HTTPStatus")
        assert found.meta["member"] == "<http.HTTPStatus.OK>"
        assert found.meta["config.inner.config"] == found.meta["config"] and "Config>" in found.meta["config"]
        assert found.tensors["model._parameters.weight"].tolist() == state["model"].weight.tolist()


def test_an_omegaconf_beside_tensors(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    state = {"cfg": OmegaConf.create({"lr": 0.1, "dirs": ["/a", "/b"]}), "w": tensor(1)}
    found = read_checkpoint(saved(tmp_path / "a.pt", state))
    assert list(found.tensors) == ["w"] and found.meta["cfg"] == "<omegaconf.dictconfig.DictConfig>"
    assert 0.1 in found.meta.values() and "/b" in found.meta.values()


class Caller:
    """Pickled as a call of whatever is given, with a state."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.made = function, arguments, state

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize("function", [eval, exec, compile, __import__, os.system, os.remove, subprocess.run, open])
def test_what_would_run_something_is_refused(function: Any, tmp_path: Path) -> None:
    message = refused(saved(tmp_path / "a.pt", {"w": tensor(1), "x": Caller(function, "touch executed")}))
    assert "refused unread" in message and "GLOBAL" in message


def test_a_call_of_anything_else_makes_nothing(tmp_path: Path) -> None:
    """Neither a class nor a function of the file's choice, nor `getattr` on one, nor a state for what is ours."""
    marker = tmp_path / "executed"
    state = {"w": tensor(1), "x": Caller(Path.touch, marker), "y": Caller(getattr, Path, "touch")}
    found = read_checkpoint(saved(tmp_path / "a.pt", state))
    assert list(found.tensors) == ["w"] and not marker.exists()
    assert found.meta["y"] == "<pathlib.Path.touch>"


def test_the_reader_cannot_be_changed_by_what_it_reads(tmp_path: Path) -> None:
    import torch

    class Changes(pickle._Pickler):
        def save(self, value: Any, save_persistent_id: bool = True) -> None:
            super().save(value, save_persistent_id)
            if value is collections.OrderedDict:
                super().save((None, {"keys": "changed"}))
                self.write(pickle.BUILD)

    module = types.SimpleNamespace(**{**vars(pickle), "Pickler": Changes})
    torch.save({"w": tensor(1), "x": collections.OrderedDict}, tmp_path / "a.pt", pickle_module=module)
    assert "a damaged checkpoint (ValueError: a state of type" in refused(tmp_path / "a.pt")
    assert list(read_checkpoint(saved(tmp_path / "b.pt", collections.OrderedDict(w=tensor(1)))).tensors) == ["w"]


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    import torch

    path = saved(tmp_path / "rng_state.pth", {"python": random.getstate(), "numpy": np.random.get_state(),
                                              "cpu": torch.get_rng_state()})  # fmt: skip
    assert "found the state of random number generators" in refused(path)
    for head, says in {
        pickle.dumps({"a": 1}): "a bare pickle, which is not read, because that could execute code",
        pickle.dumps({"a": 1}) + b"joblib.numpy_pickle": "joblib's pickle, which is not read",
        b"{L\x00\x00\x00\x00\x00\x00\x00\x02i\x07learner": "UBJSON (of XGBoost's, say)",
        b"x\x9cjoblib": "a zlib file (of joblib's, say)",
        b"CBM1\0\0": "a model of CatBoost's",
        b"\x89HDF\r\n\x1a\n": "an HDF5 file (of Keras, say)",
        b"tree\nversion=v4": "a LightGBM model in text",
        b'{"a": 1}': "JSON",
        b"words": "a text",
    }.items():
        path.write_bytes(head)
        assert says in refused(path)
        assert "truncated" not in refused(path)
    path.write_bytes(b"PK\x03\x04")
    assert "is it truncated?" in refused(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"w": tensor(*range(100))})
    data = path.read_bytes()
    for end in (0, 1, 4, 100, len(data) // 2, len(data) - 30, len(data) - 1):
        path.write_bytes(data[:end])
        refused(path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    assert "no such file" in refused(path)
    path.mkdir()
    assert "a folder" in refused(path)
    path.rmdir()
    path.write_text("not a checkpoint")
    assert "no readable archive" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "found an archive with 'readme.txt'" in refused(path)
    with zipfile.ZipFile(path, "w"):
        pass
    assert "no member" in refused(path)
    for nothing in ({}, {"adapter": {}, "meta": {}}, 3, "text", {"lr": 0.1}):
        assert "no tensor" in refused(saved(path, nothing))


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (64 << 20))
    assert "the compressed member 'archive/data.pkl'" in refused(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * (64 << 20))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 0xFFFFFFFE)  # the size that the directory announces
    path.write_bytes(data)
    assert "arrays of more bytes than are read" in refused(path)


def forged(path: Path, member: str, *, unpacked: int, packed: int, hole: int = 0, compression: int = 0) -> Path:
    """An archive of one member with these sizes in its directory, behind a hole that takes no place on the disk."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(member, b"\0" * 100)
    data = bytearray(buffer.getvalue())
    at = data.index(b"PK\x01\x02")
    data[at + 20 : at + 28] = struct.pack("<II", packed, unpacked)
    with path.open("wb") as file:
        file.seek(hole)
        file.write(data)
    return path


def test_files_above_the_limits_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert refused(path).endswith("expected a checkpoint of at most 17,179,869,184 bytes")
    with pytest.raises(EvidenceError, match=r"expected an \.npy file of at most 2,147,483,648 bytes"):
        read_array(path)


def test_arrays_of_two_gigabytes_are_read_and_no_more(tmp_path: Path) -> None:
    path = forged(tmp_path / "a.npz", "a.npy", unpacked=1 << 31, packed=(1 << 31) - 1, hole=1 << 31)
    assert "'a.npy' of 2,147,483,648 bytes in 2,147,483,647" in refused(path)
    forged(path, "a.npy", unpacked=(2 << 30) + 1, packed=100)
    assert "arrays of more bytes than are read, expected at most 2,147,483,648" in refused(path)


def test_a_pickle_has_a_limit(tmp_path: Path) -> None:
    limit = 64 << 20
    path = forged(tmp_path / "a.pt", "a/data.pkl", unpacked=limit, packed=limit, hole=limit)
    assert "a damaged checkpoint" in refused(path)
    forged(path, "a/data.pkl", unpacked=limit + 1, packed=limit + 1, hole=limit + 1)
    assert "'a/data.pkl' of 67,108,865 bytes, expected at most 67,108,864" in refused(path)


def test_only_the_pickle_has_that_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.pt", {"w": tensor(*range(1000))})
    monkeypatch.setattr("harness.evidence.torch_file.PICKLE_LIMIT", 1000)
    assert read_checkpoint(path).tensors["w"].nbytes == 4000


def test_a_member_is_compressed_by_its_kind_or_by_its_sizes(tmp_path: Path) -> None:
    path = forged(tmp_path / "a.pt", "a/data.pkl", unpacked=101, packed=100)
    assert "the compressed member" in refused(path)
    forged(path, "a/data.pkl", unpacked=100, packed=100, compression=zipfile.ZIP_DEFLATED)
    assert "the compressed member" in refused(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = _saved_npz(tmp_path / "a.npz", w=np.arange(3.0))
    data = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("w.npy", data)
    assert "two members of one name" in refused(path)


def test_a_checkpoint_on_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    path = saved(tmp_path / "a.pt", {"w": tensor(1)})
    monkeypatch.setattr("harness.evidence.checkpoint.hashlib.file_digest", fail)
    assert "a file that cannot be read ([Errno 5] Input/output error)" in refused(path)


def test_members_that_overlap(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"w": tensor(1)})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 20 : at + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(data)
    assert "members larger than the file's" in refused(path)


def test_a_view_that_claims_more_than_the_file_holds(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"w": tensor(1).expand(1 << 40)})
    assert "a.pt: w: found 1,099,511,627,776 elements" in refused(path)


def test_a_tensor_may_say_as_many_bytes_as_the_file_has(tmp_path: Path) -> None:
    import torch

    def claiming(count: int, kind: Any) -> Path:
        return saved(tmp_path / "a.pt", {"w": torch.zeros(1, dtype=kind).expand(count)})

    size = claiming(1000, torch.uint8).stat().st_size
    assert claiming(size, torch.uint8).stat().st_size == size and len(read_checkpoint(tmp_path / "a.pt").tensors["w"])
    assert f"{size + 1:,} elements" in refused(claiming(size + 1, torch.uint8))
    assert "elements" in refused(claiming(size // 2, torch.float32)), "four bytes each"


def test_tensors_may_share_storage_eight_times_over(tmp_path: Path) -> None:
    import torch

    def claiming(size: int, more: int) -> Path:
        """A checkpoint whose tensors say that they hold eight times `size` bytes, and `more`."""
        whole = torch.zeros(1, dtype=torch.uint8)
        views = {f"view {n}": whole.expand(size) for n in range(8)}
        rest = {"rest": torch.zeros(0, dtype=torch.uint8).expand(0) if not more else whole.expand(more)}
        return saved(tmp_path / "a.pt", {"first": "text", **rest, **views, "last": "text"})

    for more, allowed in ((0, True), (1, False)):
        size = claiming(1000, more).stat().st_size
        assert claiming(size, more).stat().st_size == size
        if allowed:
            assert len(read_checkpoint(tmp_path / "a.pt").tensors) == 9
        else:
            assert "tensors of more than 8 times the file's size" in refused(tmp_path / "a.pt")


def test_plain_values_are_kept_and_others_named(tmp_path: Path) -> None:
    values = {"none": None, "text": "x", "real": 0.5, "yes": True, "whole": 2**64 - 1, "huge": 2**64, "bytes": b"x"}
    meta = read_checkpoint(saved(tmp_path / "a.pt", {"adapter": {"w": tensor(1)}, "meta": values})).meta
    assert meta == values | {"huge": "<int>", "bytes": "<bytes>"}


def test_numbers_of_eight_bits_stay_as_their_bits(tmp_path: Path) -> None:
    import torch

    values = torch.tensor([1.0, -2.0]).to(torch.float8_e5m2)
    found = read_checkpoint(saved(tmp_path / "a.pt", {"w": values}))
    assert found.dtypes == {"w": "float8_e5m2"}
    assert found.tensors["w"].dtype == np.uint8
    assert found.tensors["w"].tolist() == values.view(torch.uint8).tolist()


def test_names_have_a_limit(tmp_path: Path) -> None:
    assert read_checkpoint(saved(tmp_path / "a.pt", {"w" * 4096: tensor(1)})).tensors
    assert "names of their own" in refused(saved(tmp_path / "a.pt", {"w" * 4097: tensor(1)}))


def test_values_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.evidence.pickled.NODES_LIMIT", 3)
    assert read_checkpoint(saved(tmp_path / "a.pt", {"w": tensor(1), "lr": 0.1})).meta == {"lr": 0.1}
    assert "nested without end" in refused(saved(tmp_path / "a.pt", {"w": tensor(1), "lr": 0.1, "n": 2}))


def test_nesting_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cycle: dict[str, Any] = {"w": tensor(1)}
    cycle["self"] = cycle
    assert "nested without end" in refused(saved(tmp_path / "a.pt", cycle))
    wide: Any = "text"
    for _ in range(40):
        wide = {"a": wide, "b": wide}
    monkeypatch.setattr("harness.evidence.pickled.NODES_LIMIT", 1000)
    assert "nested without end" in refused(saved(tmp_path / "a.pt", wide))


def test_names_must_not_clash(tmp_path: Path) -> None:
    assert "two values of the name 'a.b'" in refused(
        saved(tmp_path / "a.pt", {"a.b": tensor(1), "a": {"b": tensor(2)}})
    )
    assert "two values of the name '0'" in refused(saved(tmp_path / "a.pt", {0: tensor(1), "0": tensor(2)}))
    assert "a key of type tuple" in refused(saved(tmp_path / "a.pt", {(1, 2): tensor(1)}))
    assert "a tensor without a digest" in refused(saved(tmp_path / "a.pt", {"a\0b": tensor(1)}))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch calls half of these kinds experimental
def test_tensors_that_hold_no_plain_numbers(tmp_path: Path) -> None:
    import torch

    for bad in (
        torch.eye(2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ):
        message = refused(saved(tmp_path / "a.pt", {"w": bad}))
        assert "a.pt: w: found a tensor of another kind" in message and message.endswith("expected a dense tensor")
    message = refused(saved(tmp_path / "a.pt", {"w": torch.zeros(2, dtype=torch.complex32)}))
    assert "a.pt: w: found a tensor of " in message and message.endswith("expected a dense tensor of numbers")


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays = {"w": np.arange(6.0).reshape(2, 3).T, "b": np.array([1], ">i2"), "s": np.array(2.5), "e": np.zeros((0, 3))}
    np.savez(path, **arrays)
    found = read_checkpoint(path)
    assert list(found.tensors) == ["b", "e", "s", "w"] and found.dtypes["b"] == "int16"
    assert found.tensor_digest == tensor_digest(arrays)
    np.savez_compressed(path, **arrays)
    assert read_checkpoint(path).tensor_digest == found.tensor_digest


def test_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, w=np.array([Hostile(f"touch {tmp_path}/executed")], dtype=object), allow_pickle=True)
    assert refused(path) == f"{path}: w: found an array of object, expected an array of numbers"
    np.savez(path, w=np.arange(1000.0))
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    assert "a damaged member" in refused(path)
    assert not (tmp_path / "executed").exists()


def npy(header: str) -> bytes:
    text = header.encode().ljust(118)
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 10**99)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "1," * 65 + ")}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)",
        "(" * 100,
    ],
)
def test_an_npy_header_that_lies(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy(header) + b"\0" * 8)
    with pytest.raises(EvidenceError, match=r"a\.npy"):
        read_array(path)


def test_an_npy_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}") + np.float32([1, 2]).tobytes())
    assert read_array(path).tolist() == [1.0, 2.0]
    whole = path.read_bytes()
    for data, found in (
        (whole[:-1], "less than the header's 8 bytes"),
        (whole + b"\0", "more than the header's 8 bytes"),
    ):
        path.write_bytes(data)
        with pytest.raises(EvidenceError, match=found):
            read_array(path)
    path.write_bytes(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999)}"))
    with pytest.raises(EvidenceError, match="a shape of 2 dimensions"):
        read_array(path)
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}]), allow_pickle=True)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(EvidenceError, match="an array of object"):
        read_array(path)


def test_an_npy_file_in_either_order_and_either_version(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    values = np.arange(6.0).reshape(2, 3)
    for order in (values, np.asfortranarray(values)):
        for version in ((1, 0), (2, 0)):
            with path.open("wb") as file:
                np.lib.format.write_array(file, order, version=version)
            assert read_array(path).tolist() == values.tolist()


def _safetensors(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_safetensors_are_read(tmp_path: Path) -> None:
    values = np.arange(6, dtype="<f4")
    header = {
        "__metadata__": {"lane": "experimental"},
        "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "half": {"dtype": "BF16", "shape": [2], "data_offsets": [24, 28]},
    }
    path = tmp_path / "a.safetensors"
    path.write_bytes(_safetensors(header, values.tobytes() + b"\x80\x3f\x00\xc0"))
    found = read_checkpoint(path)
    assert found.tensors["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.tensors["half"].tolist() == [1.0, -2.0] and found.dtypes["half"] == "bfloat16"
    assert found.meta == {"lane": "experimental"}
    same = read_checkpoint(_saved_npz(tmp_path / "a.npz", w=values.reshape(2, 3)))
    assert same.tensors["w"].tobytes() == found.tensors["w"].tobytes()


def test_safetensors_are_read_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [2], "data_offsets": [8, 10]},
        "b": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]},
        "c": {"dtype": "F64", "shape": [0, 3], "data_offsets": [10, 10]},
    }
    path = tmp_path / "a.safetensors"
    path.write_bytes(_safetensors(header, (5).to_bytes(8, "little") + b"\x01\x02"))
    found = read_checkpoint(path)
    assert found.tensors["b"] == 5 and found.tensors["a"].tolist() == [1, 2] and found.tensors["c"].shape == (0, 3)
    assert found.dtypes == {"a": "uint8", "b": "int64", "c": "float64"} and found.meta == {}


def test_a_zip_archive_is_one_under_any_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", {"w": tensor(1, 2)})
    assert read_checkpoint(path).tensors["w"].tolist() == [1.0, 2.0]


def test_each_of_several_tensors_has_its_own_bytes(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")
    header = {name: {"dtype": "U8", "shape": [2], "data_offsets": [2 * n, 2 * n + 2]} for n, name in enumerate(names)}
    path = tmp_path / "a.safetensors"
    path.write_bytes(_safetensors(header, bytes(range(8))))
    assert [array.tolist() for array in read_checkpoint(path).tensors.values()] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_header_has_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    limit = 16 << 20
    for length, says in ((limit, "expected strict JSON"), (limit + 1, "found a header of 16,777,217 bytes")):
        path.write_bytes(length.to_bytes(8, "little") + b"\0" * (limit + 1))
        assert says in refused(path)


def _saved_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "header"),
        (b"\xff" * 64, "header"),
        (b"\1" + b"\0" * 7 + b"{", "a header of 1 bytes"),
        (b"\3" + b"\0" * 7 + b"{}", "a header of 3 bytes in a file of 10"),
        (_safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 7), "truncated"),
        (_safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 9), "9 bytes"),
        (_safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"\0" * 12), "from 0 on"),
        (_safetensors({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"\0" * 8), "its shape"),
        (_safetensors({"w": {"dtype": "OBJ", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8), "dtype"),
        (_safetensors({"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8), "shape"),
        (_safetensors({}, b""), "no tensor"),
    ],
)
def test_damaged_safetensors_are_errors(data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(EvidenceError, match=says):
        read_checkpoint(path)

"""Whatever bytes a file holds, reading it gives a valid value or an EvidenceError, and never anything else."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from run_directory import write_run

from harness.evidence import EvidenceError, hex_float, load_run, parse_json, parse_report, read_array, read_checkpoint
from harness.evidence.trace import parse_trace

FILES = {
    "status": "train_status.json",
    "manifest": "knowledge_audio/voice_dataset_manifest.json",
    "environment": "environment.json",
    "report": "train_report.txt",
    "trace": "trace.jsonl",
    "partial_trace": "trace.jsonl",
    "tokens": "tokens.npy",
    "checkpoint": "checkpoints/tts_voice_train_musicgen_nano.pt",
    "checkpoint_sidecar": "checkpoints/tts_voice_train_musicgen_nano.json",
}
# The files of one run are rewritten for each example; nothing of one example is left for the next.
SHARED = [HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    np.savez(path, w=np.arange(6.0).reshape(2, 3), b=np.zeros(2, np.int16))
    return path.read_bytes()


def outcome(read: Callable[[], Any]) -> Any:
    """What `read` returns, or its EvidenceError's message, which is one printable line."""
    try:
        return read()
    except EvidenceError as error:
        assert str(error).isprintable()
        return error


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**19) + 1, 10**19)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(json_values)
def test_strict_json_comes_back(value: Any) -> None:
    found = parse_json(json.dumps(value).encode(), "here")
    assert found == value and json.dumps(found) == json.dumps(value)
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), "here") == value


@given(st.binary() | st.text(st.sampled_from('{}[]",:0123456789.eE+-\\u NaInfty\n')).map(str.encode))
@example(b"")
@example(b"\xef\xbb\xbf{}")
@example(b"[" * 200_000)
@example(b'{"a":' * 200_000)
@example(b"9" * 1_000_000)
@example(b"-" + b"9" * 21)
@example(b"1e400")
@example(b"NaN")
@example(b'["\\udead"]')
@example(b'{"a": 1, "a": 1}')
@example(b'"' + b"\\" * 1001)
def test_any_bytes_as_json(data: bytes) -> None:
    found = outcome(lambda: parse_json(data, "here"))
    if not isinstance(found, EvidenceError):
        # What is accepted can be written again, and means the same to the standard reader.
        assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(data)


@given(json_values, st.sampled_from(["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 30]))
def test_what_strict_json_forbids_is_found_at_any_depth(value: Any, token: str) -> None:
    data = json.dumps([value, {"x": [value, "HERE"]}], ensure_ascii=True).replace('"HERE"', token)
    assert isinstance(outcome(lambda: parse_json(data.encode(), "here")), EvidenceError)


@given(st.floats())
def test_hex_floats_come_back_to_the_bit(value: float) -> None:
    found = hex_float(value.hex())
    assert (
        math.isnan(found) if math.isnan(value) else (found, math.copysign(1, found)) == (value, math.copysign(1, value))
    )


@given(st.text(st.sampled_from("0x1.-+pnaif 9")) | st.text() | json_values)
@example("1.0")
@example("0x1p0")
@example("0x1.0000000000000p+5000")
@example("Infinity")
@example("-nan")
@example(" nan")
def test_any_other_text_is_no_hex_float(text: Any) -> None:
    try:
        found = hex_float(text)
    except ValueError:
        return
    assert found.hex() == text


@given(st.binary() | st.text().map(lambda text: f"=== COLAB TRAIN REPORT ===\n{text}\n".encode("utf-8", "replace")))
@example(b"=== COLAB TRAIN REPORT ===\n")
@example(b"=== COLAB TRAIN REPORT ===\na: b\xe2\x80\xa8c: d\n")
def test_any_bytes_as_a_report(data: bytes) -> None:
    found = outcome(lambda: parse_report(data, "here"))
    if not isinstance(found, EvidenceError):
        lines = "".join(f"{key}: {value}\n" for key, value in found.items())
        assert f"=== COLAB TRAIN REPORT ===\n{lines}".encode() == data


@given(st.binary(), st.booleans())
def test_any_bytes_as_a_trace(data: bytes, partial: bool) -> None:
    assert isinstance(outcome(lambda: parse_trace(io.BytesIO(data), Path("here"), partial=partial)), EvidenceError)


@pytest.mark.parametrize("part", FILES)
@settings(max_examples=60, suppress_health_check=SHARED)
@given(data=st.data())
def test_a_damaged_file(run_dir: Path, part: str, data: st.DataObject) -> None:
    """A few bytes of a good file changed, removed, inserted or repeated; or other bytes altogether."""
    path = run_dir / FILES[part]
    whole = path.read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged)))
        length = data.draw(st.sampled_from([0, 1, 2, 8, 1000, 10**6]))
        damaged[at : at + length] = data.draw(st.binary(max_size=8) | st.just(bytes(damaged[at : at + 50]) * 2))
    try:
        path.write_bytes(damaged)
        run = load_run(run_dir)
        outcome(lambda: getattr(run, part))
        outcome(run.run_ids)
        assert run.failure() is None or str(run.failure()).isprintable()
        assert all(problem.isprintable() for problem in run.manifest_problems())
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("part", ["status", "manifest", "environment", "checkpoint_sidecar", "trace"])
@settings(max_examples=60, suppress_health_check=SHARED)
@given(data=st.data())
def test_a_value_of_another_type(run_dir: Path, part: str, data: st.DataObject) -> None:
    """Any value anywhere in a good file replaced by any other JSON value: still a value of its type, or refused."""
    path = run_dir / FILES[part]
    whole = path.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()] if part == "trace" else [json.loads(whole)]
    place = data.draw(st.sampled_from(lines))
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(json_values)
    try:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        outcome(lambda: getattr(load_run(run_dir), part))
    finally:
        path.write_bytes(whole)


@settings(max_examples=150, suppress_health_check=SHARED)
@given(data=st.data())
def test_a_damaged_npz_file(tmp_path: Path, npz: bytes, data: st.DataObject) -> None:
    damaged = bytearray(npz)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.sampled_from([0, 1, 4]))] = data.draw(st.binary(max_size=4))
    (tmp_path / "a.npz").write_bytes(damaged)
    outcome(lambda: read_checkpoint(tmp_path / "a.npz"))


@settings(suppress_health_check=SHARED)
@given(data=st.binary() | st.text().map(lambda text: b"\x93NUMPY\x01\x00\x76\x00" + text.encode("utf-8", "replace")))
def test_any_bytes_as_an_array(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    outcome(lambda: read_array(tmp_path / "a.npy"))

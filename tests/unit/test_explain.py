"""`explain`: the first difference and its likely cause, for runs, checkpoints and baselines."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_lane import Toy, edit_steps

from harness.baselines import cli
from harness.baselines.baseline import Code, Store
from harness.baselines.checkpoints import BLOCK, Stored, compare_tensors, in_memory, open_checkpoint
from harness.baselines.explain import explain, main
from harness.baselines.record import record
from harness.evidence import EvidenceError, RunEvidence, read_checkpoint

TOY = Toy()
NATIVE = Toy(mode="native")
CODE = Code("a" * 40, False, "1" * 64)
REFERENCES = Path(__file__).resolve().parents[2] / "baselines"

Run = Callable[[Toy], RunEvidence]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    counter: Iterator[int] = iter(range(1000))
    return lambda toy: toy.run(tmp_path / f"run{next(counter)}")


def lines_of(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 40, text
    return text


def of_runs(run: Run, capsys: pytest.CaptureFixture[str], a: Toy, b: Toy, *, code: int = 1) -> str:
    one, two = run(a).run_dir, run(b).run_dir
    assert main([str(one), str(two)]) == code
    text = lines_of(capsys)
    assert main([str(one), str(two), "--json"]) == code
    document = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"bare {name}"))
    assert document["differ"] is bool(code) and document["kind"] == "runs"
    return text


# Two runs.


def test_equal_runs_are_no_difference(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert of_runs(run, capsys, TOY, TOY, code=0).startswith("no difference\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rate_factor": 1.01}, ["step 1 of 6, phase optimizer, tensor", "the update (learning rate"]),
        ({"learning_rate": 0.00303}, ["phase optimizer", "the settings differ (learning_rate 0.00303 → 0.003)"]),
        ({"noise": 1e-4}, ["step 1 of 6, phase backward, tensor", "the losses agree and the gradients do not"]),
        ({"swap_step": 4}, ["step 4 of 6, phase data (order of chunks, step 4)", "in another order", "equally often"]),
        ({"seed": 1}, ["phase start, tensor", "the seeds are 0 and 1"]),
        ({"data": 1}, ["phase data (dataset digest)", "the audio itself differs"]),
        ({"steps": 5}, ["steps in the trace", "steps 5 → 6"]),
        ({"mode": "native"}, ["A is computed in universal mode and B in native mode"]),
        (
            {"noise": 1e-4, "environment": {"packages": {"torch": "2.13.0"}, "threads": 2}},
            ["the thread settings differ (threads 2 → 1)"],
        ),
    ],
)
def test_where_and_why_two_runs_differ(
    run: Run, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: list[str]
) -> None:
    text = of_runs(run, capsys, TOY, TOY.with_(**change))
    for word in words:
        assert word in text


def test_a_difference_of_the_size_of_rounding_is_called_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    text = of_runs(run, capsys, NATIVE, NATIVE.with_(noise=1e-7, numeric_class="bbbbbbbbbbbbbbbb"))
    assert "the size of float32 rounding" in text
    assert "numeric class bbbbbbbbbbbbbbbb → aaaaaaaaaaaaaaaa" in text


def test_drift_in_universal_mode_is_the_same_result(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    text = of_runs(run, capsys, TOY, TOY.with_(noise=1e-15))
    assert "within the drift that universal mode allows" in text


def test_from_which_step_on_everything_differs(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the loss differs at every step from step 2 on" in of_runs(run, capsys, TOY, TOY.with_(rate_factor=1.1))


def test_one_tensor_only_is_said_and_where_in_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    one, two = run(NATIVE), run(NATIVE)
    held = torch.load(two.checkpoint_path, weights_only=True)
    held["adapter"]["0.taps"].view(torch.int32)[7, 3] += 5
    torch.save(held, two.checkpoint_path)
    assert main([str(one.run_dir), str(two.run_dir)]) == 1
    text = lines_of(capsys)
    assert "every step agrees, the checkpoint does not" in text
    (row,) = (line for line in text.splitlines() if line.startswith("  0.taps"))
    assert "1 of 160" in row and " 5 " in row and "[7, 3] = 115" in row


def test_a_run_that_ended_early_is_explained_as_far_as_it_goes(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = run(TOY), run(TOY.with_(rate_factor=1.1))
    lines = two.trace_path.read_text().splitlines(keepends=True)
    two.trace_path.write_text("".join(lines[:6]) + lines[6][:50])
    two.checkpoint_path.unlink()
    assert main([str(one.run_dir), str(two.run_dir)]) == 1
    text = lines_of(capsys)
    assert "3 steps, ended early" in text and "step 1 of 6, phase optimizer" in text and "checkpoint" in text


# A run and a baseline.


def test_a_run_and_a_baseline_in_either_order(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = Store(tmp_path / "baselines")
    record(run(TOY), run(TOY), store, reason="for a test", code=CODE, environment={})
    (path,) = map(str, store.paths())
    same, other = str(run(TOY).run_dir), str(run(TOY.with_(rate_factor=1.01)).run_dir)
    assert main([same, path]) == 0 and "the recorded result" in lines_of(capsys)
    for pair in ([other, path], [path, other]):
        assert main(pair) == 1
        text = lines_of(capsys)
        assert "step 1 of 6, phase optimizer" in text and "of its change (allowed 1e-09)" in text
        assert "estimates from sketches" in text and "for a test" in text
    seeded = str(run(TOY.with_(seed=1)).run_dir)
    assert main([seeded, path, "--json"]) == 1
    assert "the keys differ (settings_digest)" in json.loads(capsys.readouterr().out)["notes"][0]


# Two checkpoints.


def save(path: Path, tensors: dict[str, Any], **more: Any) -> Path:
    import torch

    torch.save({"adapter": {name: torch.as_tensor(value) for name, value in tensors.items()}, "meta": more}, path)
    return path


def test_one_ulp_in_two_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(0).standard_normal((700, 800)).astype(np.float32)
    moved = values.copy()
    moved[401, 17] = np.nextafter(moved[401, 17], np.float32(9))
    a = save(tmp_path / "a.pt", {"x": values, "y": values})
    b = save(tmp_path / "b.pt", {"x": values, "y": moved})
    assert main([str(a), str(a)]) == 0
    capsys.readouterr()
    assert main([str(a), str(b)]) == 1
    text = lines_of(capsys)
    assert "1 of 2 tensors, 1 values" in text and "[401, 17] = 320817" in text
    assert "one tensor only, y: one value by one ULP" in text
    assert f"{values[401, 17]:.9g}" in text and f"{moved[401, 17]:.9g}" in text


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


def test_nan_equals_nothing_and_has_no_distance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = save(tmp_path / "a.pt", {"x": np.array([1.0, math.nan], np.float32)})
    assert main([str(a), str(a)]) == 1
    assert "not finite" in lines_of(capsys)
    assert main([str(a), str(a), "--json"]) == 1
    (tensor,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["tensors"]
    assert tensor["differing"] == 1 and tensor["absolute"] == "nan" and tensor["ulps"] is None


def test_other_tensors_shapes_and_dtypes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.ones((2, 3), np.float32)
    a = save(tmp_path / "a.pt", {"x": x})
    for name, tensors, words in (
        ("b", {"x": x, "z": x}, "z is on one side only"),
        ("c", {"x": x.T.copy()}, "x is float32 2x3 and float32 3x2"),
        ("d", {"x": x.astype(np.float64)}, "x is float32 2x3 and float64 2x3"),
        ("e", {"x": x + 1}, "far more than rounding"),
        ("f", {"x": x * np.float32(1 + 3e-7)}, "the size of float32 rounding"),
    ):
        assert main([str(a), str(save(tmp_path / f"{name}.pt", tensors))]) == 1
        assert words in lines_of(capsys)


def test_npz_and_torch_files_are_compared_with_each_other(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "a.npz", x=x)
    a, b = open_checkpoint(tmp_path / "a.npz"), open_checkpoint(save(tmp_path / "b.pt", {"x": x}))
    assert compare_tensors(a, b) == []


def test_the_reader_without_torch_reads_what_the_other_reads(tmp_path: Path) -> None:
    """Plain tensors, and everything that it must leave to the other reader."""
    import torch

    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    cases: dict[str, Any] = {
        "lane": {"adapter": {"a": base, "b": base.double()}, "meta": {"steps": 3}},
        "nested": {"x": {"y": [base, base.short()]}, "z": base.byte(), "n": 3, "none": None},
        "views": {"half": base[2:], "whole": base, "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4)},
        "one row": {"x": base[1:2], "y": base[:, :1]},
        "strided": {"x": base.T, "y": base},
        "bfloat16": {"x": base.bfloat16()},
        "parameter": {"x": torch.nn.Parameter(base)},
        "long": {"x": base.long(), "i": base.int(), "c": base.to(torch.int8), "h": base.half()},
    }
    plain = 0
    for name, value in cases.items():
        path = tmp_path / f"{name}.pt"
        torch.save(value, path)
        found, expected = open_checkpoint(path), read_checkpoint(path).tensors
        assert list(found) == list(expected), name
        assert compare_tensors(found, in_memory(expected)) == [], name
        plain += all(stored.path is not None for stored in found.values())
    assert plain == 4  # the others are strided, or of a type that NumPy lacks


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/exploded-by-explain"),))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import zipfile

    good = save(tmp_path / "good.pt", {"x": np.ones(3, np.float32)})
    bad = tmp_path / "bad.pt"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w", zipfile.ZIP_STORED) as target:
        for info in source.infolist():
            data = pickle.dumps({"adapter": {"x": Bomb()}, "meta": {}}, 2) if "data.pkl" in info.filename else None
            target.writestr(info.filename, data if data is not None else source.read(info))
    assert main([str(good), str(bad)]) == 2
    assert "refused" in capsys.readouterr().err
    assert not Path("/tmp/exploded-by-explain").exists()


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
def test_damaged_checkpoints_are_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: float
) -> None:
    good = save(tmp_path / "good.pt", {"x": np.ones(3000, np.float32)})
    bad = tmp_path / "bad.pt"
    bad.write_bytes(good.read_bytes()[: int(cut * good.stat().st_size)])
    assert main([str(good), str(bad)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("explain: ") and error.count("\n") == 1 and "bad.pt" in error


def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {"x": np.ones(3000, np.float32)})
    found = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="buffer"):
        compare_tensors(found, in_memory({"x": np.ones(3000, np.float32)}))
    assert isinstance(found["x"], Stored)


# Usage.


def test_what_cannot_be_compared_is_exit_code_2(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save(tmp_path / "a.pt", {"x": np.ones(3, np.float32)})
    one = run(TOY).run_dir
    other = run(TOY).run_dir
    edit_steps(other, lambda lines: lines.clear())
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for pair, words in (
        ((checkpoint, one), "is a checkpoint"),
        ((tmp_path / "nothing", one), "there is no such file"),
        ((one, tmp_path / "empty"), "trace.jsonl"),
        ((one, other), "trace.jsonl"),
        ((one, tmp_path / "b.json"), "no valid baseline"),
        ((tmp_path / "b.json", tmp_path / "b.json"), "give two runs"),
    ):
        assert main([str(pair[0]), str(pair[1])]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    with pytest.raises(EvidenceError):
        explain(checkpoint, one)
    with pytest.raises(SystemExit) as caught:
        main(["one"])
    assert caught.value.code == 2


# baseline show, baseline list.


def test_baseline_list_and_show(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(tmp_path / "baselines")]
    store = Store(tmp_path / "baselines")
    assert cli.main([*root, "list"]) == 0 and "nothing is recorded" in capsys.readouterr().out
    record(run(TOY), run(TOY), store, reason="for a test", code=CODE, environment={})
    record(run(NATIVE), run(NATIVE), store, reason="for a test", code=CODE, environment={})
    assert cli.main([*root, "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    key = lines[0].split()[0]
    for which in (key, key[:8], str(store.paths()[0]), store.paths()[0].name):
        assert cli.main([*root, "show", which]) == 0
        text = capsys.readouterr().out
        assert "for a test" in text and "numeric class aaaaaaaaaaaaaaaa" in text and "torch 2.13.0" in text
    assert cli.main([*root, "show", ""]) == 1 and "2 baselines" in capsys.readouterr().err
    assert cli.main([*root, "show", "zzz"]) == 1 and "no baseline of the key" in capsys.readouterr().err
    store.paths()[0].write_text("{}")
    assert cli.main([*root, "list"]) == 1 and "unreadable" in capsys.readouterr().out


def test_the_published_reference_is_shown_and_is_no_criterion(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show"]) == 0
    text = capsys.readouterr().out
    for words in (
        "2026-02-23",
        "6442a579",
        "9.698966026306152",
        "64242758c67eff5e2c3a54f96a33ec5b08b182a98f5c2ab286c7aa3897ec8e86",
        "not seeded",
        "no criterion",
    ):
        assert words in text
    store = Store(REFERENCES)
    assert not any("reference" in path.parts[-2] for path in store.paths())


@pytest.mark.benchmark
def test_two_checkpoints_of_50_mb_that_differ_by_one_ulp(tmp_path: Path) -> None:
    """The bar: 2 s, with bounded memory."""
    random = np.random.default_rng(0)
    tensors = {f"layer{n}": random.standard_normal((1024, 1024)).astype(np.float32) for n in range(12)}
    a = save(tmp_path / "a.pt", tensors)
    moved = tensors["layer7"].copy()
    moved[3, 5] = np.nextafter(moved[3, 5], np.float32(9))
    b = save(tmp_path / "b.pt", tensors | {"layer7": moved})
    program = (
        "import sys, pathlib; from harness.baselines.explain import main; code = main(sys.argv[1:])\n"
        "print(pathlib.Path('/proc/self/status').read_text(), file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", program]
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([*command, str(a), str(b)], capture_output=True, text=True, check=False)
        best = min(best, time.perf_counter() - start)
    assert done.returncode == 1 and "[3, 5] = 3077" in done.stdout
    (peak,) = (line.split()[1] for line in done.stderr.splitlines() if line.startswith("VmHWM"))
    size = a.stat().st_size / 1e6
    print(f"explain, two checkpoints of {size:.0f} MB: {best:.2f} s (bar 2 s), peak {int(peak) / 1024:.0f} MB")

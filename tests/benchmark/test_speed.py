"""What things cost, as ratios within one run on one machine. Prints tables and asserts no time."""

from __future__ import annotations

import datetime
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lane_child
import pytest

pytestmark = pytest.mark.benchmark
ROOT = Path(__file__).resolve().parents[2]


def seconds(command: list[str], cwd: Path) -> float:
    """Wall seconds of one run of ``command``; fails the test if it fails. Python keeps what it has compiled, whatever
    this shell says: the first run is not counted."""
    own = ("LANE_", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - started
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return taken


def test_smoke_run_against_import_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`pytest -m smoke` beside `python -c "import torch"`, in turn, on the shipped model in universal mode."""
    importing = [sys.executable, "-c", "import torch"]
    smoke = [sys.executable, "-m", "pytest", "-m", "smoke", "-q", f"--lane-run-dir={tmp_path}"]
    seconds(importing, ROOT)  # warms the disk's cache
    seconds(smoke, ROOT)
    pairs = [(seconds(smoke, ROOT), seconds(importing, ROOT)) for _ in range(5)]
    ratios = [a / b for a, b in pairs]
    with capsys.disabled():
        print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
        print("| pytest -m smoke | import torch | ratio |\n|---|---|---|")
        for (a, b), ratio in zip(pairs, ratios, strict=True):
            print(f"| {a:.2f} s | {b:.2f} s | {ratio:.1f} |")
        print(f"median ratio {statistics.median(ratios):.2f} (bar 6, aim 4)")


def test_price_of_the_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Training with and without trace, norms, sketches and digests, in turn, in one process; the bar is 3 %."""
    import numpy as np
    import torch

    from harness.lane import trainer
    from harness.lane.adapter import make_adapters
    from harness.lane.model import load_model
    from harness.lane.settings import read_settings
    from harness.lane.tokens import TokenSet
    from harness.lane.trace import Trace
    from harness.numerics.battery import numeric_class
    from harness.numerics.modes import apply_mode

    settings = read_settings({"LANE_RUN_DIR": str(tmp_path)})
    dtype = apply_mode("universal", 1)
    model, _ = load_model(settings, dtype)
    codes = np.random.default_rng(1).integers(0, model.lm.card, size=(68, 4, 128))
    tokens = TokenSet(torch.from_numpy(codes), [])

    def once() -> float:
        adapters = make_adapters(model.lm, 0, dtype=dtype, device="cpu")
        settings.trace_path.unlink(missing_ok=True)
        trace = Trace(settings)
        started = time.process_time()
        trainer.train(settings, model, adapters, tokens, trace, lambda *_: None)
        trace.publish()
        return time.process_time() - started

    def once_without() -> float:
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "norms", lambda tensors: dict.fromkeys(tensors, 0.0))
            patch.setattr(trainer, "sketches", lambda adapters: {})
            patch.setattr(trainer, "array_digest", lambda name, array: "0" * 64)
            patch.setattr(trainer, "frozen_digest", lambda model: "0" * 64)
            patch.setattr(Trace, "write", lambda self, kind, **values: None)
            return once()

    once()
    pairs = [(once(), once_without()) for _ in range(7)]
    share = statistics.median(a / b - 1 for a, b in pairs)
    started = time.process_time()
    numeric_class()
    battery = time.process_time() - started
    with capsys.disabled():
        print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors; CPU seconds of one thread")
        print("| with evidence | without | price |\n|---|---|---|")
        for a, b in pairs:
            print(f"| {a:.2f} s | {b:.2f} s | {a / b - 1:.1%} |")
        print(f"median price {share:.1%} (bar 3 %); the kernel battery takes {1000 * battery:.0f} ms (bar 150)")


def log_seconds(run_dir: Path, first: str, last: str) -> float:
    """Seconds between two steps of a run, from its log."""
    times = {}
    for line in (run_dir / "lane.log").read_text().splitlines():
        if (found := re.match(r"(\S+ \S+) INFO harness.lane: step (\w+)", line)) is not None:
            times[found[2]] = datetime.datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f")
    return (times[last] - times[first]).total_seconds()


def test_price_of_each_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped lane in each numeric mode, in turn, one thread: the training alone, and the whole process."""
    from harness.numerics.modes import environment_pins
    from harness.numerics.processor import lacking

    absent = {mode: lacking(environment_pins(mode, 1)) for mode in ("native", "universal", "portable")}
    rows: dict[str, list[tuple[float, float]]] = {mode: [] for mode, why in absent.items() if not why}
    for _ in range(3):
        for mode, found in rows.items():
            started = time.perf_counter()
            ended = lane_child.run(tmp_path, {"LANE_NUMERICS": mode, "LANE_THREADS": "1"})
            assert ended.exit_code == 0, ended.stderr
            found.append((log_seconds(tmp_path, "train", "checkpoint"), time.perf_counter() - started))
    base = [statistics.median(column) for column in zip(*rows["native"], strict=True)]
    with capsys.disabled():
        print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
        print("| mode | training | × native | whole process | × native |\n|---|---|---|---|---|")
        for mode, found in rows.items():
            train, whole = (statistics.median(column) for column in zip(*found, strict=True))
            print(f"| {mode} | {train:.2f} s | {train / base[0]:.2f} | {whole:.2f} s | {whole / base[1]:.2f} |")
        print("\n".join(f"| {mode} | not run: {why} | | | |" for mode, why in absent.items() if why))


def test_upstream_way_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Decoding and encoding the whole file at every step, as the lane that this one replaces did, beside encoding it
    once; the same audio, codec, dtype (float32) and thread."""
    import soundfile
    import torch

    from harness.lane.dataset import prepare_dataset
    from harness.lane.model import load_model
    from harness.lane.preflight import check_narration
    from harness.lane.settings import read_settings
    from harness.lane.tokens import tokenise
    from harness.numerics.modes import apply_mode

    settings = read_settings({"LANE_RUN_DIR": str(tmp_path), "LANE_NUMERICS": "native", "LANE_THREADS": "1"})
    model, _ = load_model(settings, apply_mode("native", 1))
    settings.audio_dir.mkdir(parents=True)
    manifest = prepare_dataset(settings, check_narration(settings))

    def upstream() -> float:
        started = time.process_time()
        samples, _ = soundfile.read(settings.audio_path, dtype="float32")
        with torch.no_grad():
            model.compression_model.encode(torch.from_numpy(samples)[None, None])
        return time.process_time() - started

    def ours() -> float:
        started = time.process_time()
        tokenise(settings, manifest, model.compression_model)
        return time.process_time() - started

    pairs = [(upstream(), ours()) for _ in range(3)]
    theirs, once = (statistics.median(column) for column in zip(*pairs, strict=True))
    steps = settings.steps
    with capsys.disabled():
        print(f"\nfrom file to tokens, {manifest['entries'][0]['frames'] / 32_000:.0f} s of audio, {steps} steps:")
        print(f"every step, whole file: {theirs:.2f} s a step, {theirs * steps:.1f} s a run")
        print(f"once, in chunks: {once:.2f} s a run; the upstream way takes {theirs * steps / once:.0f} times as long")

"""The shipped lane again and again: the same bits each time, and nothing grows. See docs/safety.md."""

from __future__ import annotations

import gc
import os
import resource
from pathlib import Path

import lane_child
import pytest

from harness.lane.settings import DEFAULT_THREADS
from harness.numerics.modes import environment_pins

pytestmark = [pytest.mark.fault, pytest.mark.soak, pytest.mark.timeout(0)]

RUNS = int(os.environ.get("SOAK_RUNS", "100"))


def test_runs_are_bit_identical(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each a process of its own, all in one run directory."""
    seen: set[tuple[bytes, bytes, str]] = set()
    files: set[tuple[str, ...]] = set()
    for number in range(RUNS):
        ended = lane_child.run(tmp_path, timeout=600)
        assert ended.exit_code == 0, f"run {number}: {ended.stderr}"
        trace = (tmp_path / "trace.jsonl").read_text().partition("\n")[2]  # the first line has the run id
        seen.add(
            (
                (tmp_path / "checkpoints/tts_voice_train_musicgen_nano.pt").read_bytes(),
                (tmp_path / "tokens.npy").read_bytes(),
                trace,
            )
        )
        files.add(tuple(sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))))
        assert len(seen) == 1, f"run {number} differs from those before it"
        assert len(files) == 1, f"run {number} left other files: {files}"
    with capsys.disabled():
        print(f"\n{RUNS} runs of the shipped lane, bit-identical")


def test_nothing_grows_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lane's functions, over and over in this process: open files and memory stay where they are."""
    from harness.lane.__main__ import main
    from harness.lane.memory import find_trim

    give_back = find_trim() or (lambda pad: 0)
    # With all of its pins in place: else the lane would start this process, and the session in it, over.
    pins = environment_pins("universal", DEFAULT_THREADS)
    for name, value in {**lane_child.SHORT, **pins, "LANE_RUN_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    files: list[int] = []
    memory: list[int] = []
    for _ in range(max(10, RUNS // 4)):
        assert main([]) == 0
        gc.collect()
        give_back(0)  # else it goes up and down by 180 MB with what the allocator keeps, a heap for each thread
        files.append(len(list(Path("/proc/self/fd").iterdir())))
        memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
    with capsys.disabled():
        print(f"\n{len(files)} runs in one process: open files {files[0]} to {files[-1]},")
        print(f"resident memory {memory[2] / 1e6:.0f} MB after three, {memory[-1] / 1e6:.0f} MB at the end")
    assert files[-1] == files[1], f"open files after each run: {files}"
    # What is left goes up and down, upwards further than downwards: the smallest of each half tell growth.
    half = len(memory) // 2
    shown = [m // 10**6 for m in memory]
    assert min(memory[half:]) < min(memory[:half]) + 30e6, f"resident memory after each run, in MB: {shown}"

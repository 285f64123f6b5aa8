"""The lane computes the same thing every time and everywhere, and another thing when the audio or the seed is
another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile
import voice

from harness.baselines.guard import guarded_positions
from harness.evidence import RunEvidence, load_run
from harness.numerics.digest import tensor_digest
from harness.numerics.modes import PORTABLE_PINS
from harness.numerics.processor import forced, lacking

SHIPPED = Path(__file__).resolve().parents[2] / "data" / "knowledge_audio_source" / "auntie_dottie.flac"
SHORT = {"LANE_STEPS": "2", "LANE_STRIDE_SECONDS": "30", "LANE_BATCH": "2"}
GUARD = 1e-12


def run(folder: Path, settings: Mapping[str, str]) -> RunEvidence:
    """One run of the lane in ``folder``; fails the test if it does not complete."""
    return run_all({folder: settings})[0]


def run_all(runs: Mapping[Path, Mapping[str, str]]) -> list[RunEvidence]:
    """One run in each folder, all at the same time."""
    processes = [voice.start(folder, settings) for folder, settings in runs.items()]
    found = [load_run(process.run_dir, run_id=process.wait().run_id) for process in processes]
    for evidence in found:
        assert evidence.failure() is None, evidence.failure()
    return found


def trace_lines(evidence: RunEvidence) -> list[str]:
    """The trace without its header, which carries the run id."""
    return evidence.path_of("trace").read_text().splitlines()[1:]


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> RunEvidence:
    return run(tmp_path_factory.mktemp("short"), SHORT)


def test_second_run_is_bit_identical(lane_run: RunEvidence, tmp_path: Path) -> None:
    """Another folder, another time, another hash seed, other thread settings of the caller: the same bytes."""
    caller = {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "TZ": "Pacific/Chatham", "LC_ALL": "C"}
    again = run(tmp_path / "another folder", caller)
    assert again.checkpoint_path.read_bytes() == lane_run.checkpoint_path.read_bytes()
    assert again.path_of("tokens").read_bytes() == lane_run.path_of("tokens").read_bytes()
    assert trace_lines(again) == trace_lines(lane_run)
    assert again.status.loss == lane_run.status.loss
    assert again.trace.header.run_id != lane_run.trace.header.run_id


@pytest.mark.parametrize("mode", ["portable", "native"])
def test_float32_modes_are_bit_identical_too(mode: str, tmp_path: Path) -> None:
    if mode == "portable" and (why := lacking(PORTABLE_PINS)):
        pytest.skip(why)
    settings = {**SHORT, "LANE_NUMERICS": mode}
    one, two = run_all(
        {
            tmp_path / "one": {**settings, "PYTHONHASHSEED": "1"},
            tmp_path / "two" / "deeper": {**settings, "PYTHONHASHSEED": "2"},
        }
    )
    assert one.trace.header.mode == mode
    assert one.checkpoint_path.read_bytes() == two.checkpoint_path.read_bytes()
    assert trace_lines(one) == trace_lines(two)


def test_another_seed_gives_another_checkpoint(short_run: RunEvidence, tmp_path: Path) -> None:
    other = run(tmp_path, {**SHORT, "LANE_SEED": "1"})
    assert other.tokens_digest() == short_run.tokens_digest()
    assert other.trace.steps[0].chunks != short_run.trace.steps[0].chunks
    same = [
        name for name, t in other.checkpoint.tensors.items() if np.array_equal(t, short_run.checkpoint.tensors[name])
    ]
    assert not same


def test_one_second_of_other_audio_changes_tokens_and_checkpoint(short_run: RunEvidence, tmp_path: Path) -> None:
    samples, rate = soundfile.read(SHIPPED, dtype="int16")
    start = short_run.trace.tokens.chunks[short_run.trace.steps[0].chunks[0]].start
    samples[start : start + rate] = samples[start : start + rate][::-1]
    edited = tmp_path / "edited.flac"
    soundfile.write(edited, samples, rate, subtype="PCM_16")
    other = run(tmp_path / "run", {**SHORT, "AUDIO_PATH": str(edited)})
    assert other.dataset_digest() != short_run.dataset_digest()
    changed = np.flatnonzero((other.tokens != short_run.tokens).any(axis=(1, 2)))
    assert len(changed) == 1, f"one second lies in one chunk; {len(changed)} chunks have other tokens"
    assert other.checkpoint.tensor_digest != short_run.checkpoint.tensor_digest


def test_names_times_and_folders_change_nothing(short_run: RunEvidence, tmp_path: Path) -> None:
    renamed = tmp_path / "Another Name (1).flac"
    renamed.write_bytes(SHIPPED.read_bytes())
    other = run(tmp_path / "run", {**SHORT, "AUDIO_PATH": str(renamed)})
    assert other.checkpoint_path.read_bytes() == short_run.checkpoint_path.read_bytes()
    assert other.dataset_digest() == short_run.dataset_digest()


KERNELS = (
    {**forced(aten="default"), "LANE_THREADS": "1"},
    forced(aten="avx2"),
    {**forced(aten="avx512"), "LANE_THREADS": "1"},
)


@pytest.fixture(scope="session")
def kernel_runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunEvidence | None]:
    """A short run on each choice of kernels, all at the same time; None where the processor lacks them."""
    folders = [None if lacking(settings) else tmp_path_factory.mktemp("kernels") for settings in KERNELS]
    chosen = {folder: {**SHORT, **settings} for folder, settings in zip(folders, KERNELS, strict=True) if folder}
    found = iter(run_all(chosen))
    return [next(found) if folder else None for folder in folders]


@pytest.mark.parametrize("number", range(len(KERNELS)), ids=[" ".join(settings.values()) for settings in KERNELS])
def test_universal_mode_holds_across_kernels_and_threads(
    number: int, short_run: RunEvidence, kernel_runs: list[RunEvidence | None]
) -> None:
    """The float32 checkpoint is the same but for positions within the guard, whatever kernels computed it.

    A short run; docs/measurements/universality.md has whole ones.
    """
    other = kernel_runs[number]
    if other is None:
        pytest.skip(lacking(KERNELS[number]))
    reference = short_run.checkpoint_float64
    assert reference is not None, "the session's run is not in universal mode"
    assert other.checkpoint_float64 is not None
    skip = {name: guarded_positions(values, GUARD) for name, values in reference.tensors.items()}
    values = other.checkpoint_float64.tensors
    drift = max(float(np.abs(values[name] - tensor).max()) for name, tensor in reference.tensors.items())
    assert drift <= GUARD / 10, f"the parameters drifted by {drift:.2g}"
    assert tensor_digest(other.checkpoint.tensors, skip) == tensor_digest(short_run.checkpoint.tensors, skip)
    assert other.tokens_digest() == short_run.tokens_digest()

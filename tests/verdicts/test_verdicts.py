"""All seven verdicts, each reached for real: by running the lane, from changed code, in a moved environment, on other
audio."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile
import voice

from harness.baselines.baseline import Baseline
from harness.baselines.compare import judge
from harness.baselines.record import record
from harness.baselines.second_leg import code_of, run_second_leg
from harness.baselines.store import Store
from harness.baselines.verdict import Verdict
from harness.evidence import RunEvidence, load_run
from harness.numerics.processor import forced, lacking
from harness.runs.run import LaneRun

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"LANE_STEPS": "2", "LANE_STRIDE_SECONDS": "10", "LANE_BATCH": "2", "LANE_THREADS": "1"}
NATIVE = {**SHORT, "LANE_NUMERICS": "native"}
AVX2 = {**NATIVE, **forced(aten="avx2")}
TRAINER = "harness/lane/trainer.py"


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass
class Lane:
    """A clone of this checkout, as it is in the working tree, to run the lane from; and a store of its own."""

    clone: Path
    folder: Path
    store: Store
    runs: int = 0

    def start(self, settings: Mapping[str, str], code: Path | None = None) -> LaneRun:
        self.runs += 1
        return voice.start(self.folder / f"run{self.runs}", settings, root=code or self.clone)

    def ended(self, process: LaneRun) -> RunEvidence:
        evidence = load_run(process.run_dir, run_id=process.wait().run_id)
        assert evidence.failure() is None, evidence.failure()
        return evidence

    def run(self, settings: Mapping[str, str], code: Path | None = None) -> RunEvidence:
        return self.ended(self.start(settings, code))

    def record(self, settings: Mapping[str, str]) -> list[str]:
        both = [self.start(settings), self.start(settings)]
        first, second = (self.ended(process) for process in both)
        return record(
            first, second, self.store, reason="a short run, for a test", code=code_of(self.clone), environment={}
        )

    def edit(self, file: str, old: str, new: str) -> None:
        """Change the clone's code, and commit it."""
        text = (self.clone / file).read_text()
        assert text.count(old) == 1, f"{file} does not hold {old!r} once"
        (self.clone / file).write_text(text.replace(old, new))
        git(self.clone, "commit", "-qam", f"{old} becomes {new}")

    def judge(self, evidence: RunEvidence, settings: Mapping[str, str]) -> Verdict:
        """The verdict as the gates find it, with a second run and the baseline's own code."""

        def second_leg(baseline: Baseline) -> RunEvidence:
            return run_second_leg(baseline, self.clone, lambda code: self.run(settings, code))

        return judge(evidence, self.store, lambda: self.run(settings), second_leg, code_of(self.clone))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Lane:
    """A clone with a short run recorded in universal mode."""
    folder = tmp_path_factory.mktemp("verdicts")
    clone = folder / "clone"
    git(ROOT, "clone", "-q", str(ROOT), str(clone))
    shutil.copytree(ROOT / "harness", clone / "harness", dirs_exist_ok=True)
    shutil.copytree(ROOT / "data", clone / "data", dirs_exist_ok=True)
    git(clone, "add", "-A", "harness", "data")
    git(clone, "commit", "-q", "--allow-empty", "-m", "the working tree")
    lane = Lane(clone, folder, Store(folder / "baselines"))
    assert lane.record(SHORT)
    return lane


@pytest.fixture(scope="module")
def recorded_elsewhere(recorded: Lane) -> Lane:
    """The same with a native run recorded too, in a numeric class that no test runs in."""
    if why := lacking(AVX2):
        pytest.skip(why)
    assert recorded.record({**NATIVE, **forced(aten="default")})
    return recorded


@pytest.fixture
def lane(recorded: Lane) -> Iterator[Lane]:
    """The recorded lane, its clone put back afterwards to the commit that was recorded."""
    head = git(recorded.clone, "rev-parse", "HEAD").strip()
    yield recorded
    git(recorded.clone, "reset", "-q", "--hard", head)


def test_match(lane: Lane) -> None:
    verdict = lane.judge(lane.run(SHORT), SHORT)
    assert verdict.kind == "match", verdict.text()
    assert verdict.passed


def test_regression_when_the_learning_rate_is_changed_in_the_code(lane: Lane) -> None:
    lane.edit(TRAINER, "lr=settings.learning_rate,", "lr=settings.learning_rate,  # changed")
    lane.edit(TRAINER, "return settings.learning_rate * step /", "return 1.0001 * settings.learning_rate * step /")
    verdict = lane.judge(lane.run(SHORT), SHORT)
    assert verdict.kind == "regression", verdict.text()
    text = verdict.text()
    assert verdict.where is not None
    assert (verdict.where.step, verdict.where.phase) == (1, "optimizer"), text
    assert "not chance" in text and "code" in text


def test_nondeterministic_when_the_order_is_not_seeded(lane: Lane) -> None:
    lane.edit(TRAINER, 'draws = Draws(settings.seed, "order")', 'draws = Draws(__import__("time").time_ns(), "order")')
    verdict = lane.judge(lane.run(SHORT), SHORT)
    assert verdict.kind == "nondeterministic", verdict.text()
    assert verdict.where is not None and verdict.where.phase == "data", verdict.text()


def test_environment_moved_when_another_audiocraft_computes_something_else(lane: Lane, tmp_path: Path) -> None:
    """Another audiocraft, whose layer norm has another epsilon: the lane's old code gives the new result too."""
    spec = importlib.util.find_spec("audiocraft")
    assert spec is not None and spec.submodule_search_locations
    moved = tmp_path / "site" / "audiocraft"
    shutil.copytree(spec.submodule_search_locations[0], moved, ignore=shutil.ignore_patterns("__pycache__"))
    transformer = moved / "modules" / "transformer.py"
    text = transformer.read_text()
    assert "return nn.LayerNorm(dim, eps=1e-5" in text
    transformer.write_text(text.replace("return nn.LayerNorm(dim, eps=1e-5", "return nn.LayerNorm(dim, eps=2e-5"))
    settings = {**SHORT, "PYTHONPATH": str(moved.parent)}
    verdict = lane.judge(lane.run(settings), settings)
    assert verdict.kind == "environment-moved", verdict.text()
    assert not verdict.passed


def test_incomparable_when_the_audio_is_edited(lane: Lane, tmp_path: Path) -> None:
    samples, rate = soundfile.read(lane.clone / "data" / "knowledge_audio_source" / "auntie_dottie.flac", dtype="int16")
    samples[rate : 2 * rate] //= 2
    soundfile.write(tmp_path / "edited.flac", samples, rate)
    settings = {**SHORT, "AUDIO_PATH": str(tmp_path / "edited.flac")}
    verdict = lane.judge(lane.run(settings), settings)
    assert verdict.kind == "incomparable", verdict.text()
    assert "dataset" in verdict.text() or "data" in verdict.text()
    assert "--no-baseline" in verdict.text() and "--snapshot-update" not in verdict.text()


def test_missing_when_nothing_is_recorded(lane: Lane, tmp_path: Path) -> None:
    verdict = judge(load_run(lane.folder / "run1"), Store(tmp_path / "none"))
    assert verdict.kind == "missing", verdict.text()
    assert "--snapshot-update" in verdict.text()


def test_tolerance_match_in_another_numeric_class(recorded_elsewhere: Lane, lane: Lane) -> None:
    verdict = lane.judge(lane.run(AVX2), NATIVE)
    assert verdict.kind == "tolerance-match", verdict.text()
    assert verdict.passed


def test_tolerance_tier_sees_a_learning_rate_one_percent_off(recorded_elsewhere: Lane, lane: Lane) -> None:
    """In a class of which nothing is recorded, a real change is out of the tolerances."""
    lane.edit(TRAINER, "return settings.learning_rate * step /", "return 1.01 * settings.learning_rate * step /")
    verdict = lane.judge(lane.run(AVX2), AVX2)
    assert not verdict.passed, verdict.text()
    assert verdict.where is not None and verdict.where.phase == "optimizer", verdict.text()

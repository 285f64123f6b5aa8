"""What page, summary and JUnit say of a run, read from its files and from the baseline that it was held against."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.baselines.baseline import Baseline, BaselineError, Store, load
from harness.baselines.result import UNIVERSAL, Key
from harness.evidence import EvidenceError, ExternalEvidence, RunEvidence, Trace, load_run

BASELINES = Path(__file__).resolve().parents[2] / "baselines"


@dataclass(frozen=True)
class Facts:
    """``trace`` is what there is of it, and None where it cannot be read; ``key`` is None there too. ``problems`` says
    why something is missing, a line each."""

    run: RunEvidence
    run_id: str
    trace: Trace | None
    baseline: Baseline | None
    problems: tuple[str, ...]
    key: Key | None = None

    def report(self, key: str) -> str:
        """A value of the run's report; `unknown` where there is none."""
        try:
            return self.run.report.get(key, "unknown")
        except EvidenceError:
            return self._status(key) if isinstance(self.run, ExternalEvidence) else "unknown"

    def _status(self, key: str) -> str:
        """The same of an external lane, which need not write a report."""
        try:
            return str(self.run.status.get({"objective_status": "status"}.get(key, key), "unknown"))
        except EvidenceError:
            return "unknown"

    def losses(self) -> list[tuple[int, float, float | None]]:
        """(step, obtained, recorded) for each step of the run."""
        recorded = {} if self.baseline is None else {step.step: step.loss for step in self.baseline.result.steps}
        steps = [] if self.trace is None else self.trace.steps
        return [(step["step"], step["loss"], recorded.get(step["step"])) for step in steps]

    def metrics(self, verdict: Mapping[str, Any] | None) -> dict[str, str]:
        """What a CI system keeps of a run, by name."""
        found = {
            "verdict": "none" if verdict is None else str(verdict["verdict"]),
            "objective_status": self.report("objective_status"),
            "run_id": self.run_id,
            "loss": self.report("loss"),
            "loss_first": self.report("loss_first"),
            "checkpoint_tensor_digest": self.report("checkpoint_tensor_digest"),
            "numeric_mode": self.report("numeric_mode"),
            "numeric_class": self.report("numeric_class"),
            "steps": self.report("steps"),
            "sanitized_logits": self.report("sanitized_logits"),
            "head_commit": self.report("head_commit"),
        }
        if self.trace is not None and "eval_loss" in self.trace.end:
            found["eval_loss"] = repr(self.trace.end["eval_loss"])
        return found


def facts_of(run_dir: Path, verdict: Mapping[str, Any] | None, baselines: Path = BASELINES) -> Facts:
    """Read a run directory. Raises nothing: a run that failed has facts too."""
    run = load_here(run_dir)
    problems: list[str] = []
    run_id, trace, baseline = "none", None, None
    try:
        run_id = str(run.status["run_id"])
    except EvidenceError as error:
        problems.append(str(error))
    try:
        trace = run.partial_trace
        if trace.header["run_id"] != run_id:
            problems.append(f"{run.trace_path} is of another run ({trace.header['run_id']}), and left out")
            trace = None
    except EvidenceError as error:
        problems.append(str(error))
    key = None if trace is None else _key(trace)
    try:
        baseline = _baseline(key, verdict, baselines)
    except (BaselineError, OSError) as error:
        problems.append(str(error))
    return Facts(run, run_id, trace, baseline, tuple(problems), key)


def load_here(run_dir: Path) -> RunEvidence:
    """The run, with status and manifest from where the user's settings put them, should they not be in it."""
    status, audio = os.environ.get("TRAIN_STATUS_PATH"), os.environ.get("KNOWLEDGE_AUDIO_DIR")
    status_path = Path(status) if status and not (run_dir / "train_status.json").exists() else None
    manifest_path = None
    if audio and not (run_dir / "knowledge_audio").exists():
        manifest_path = Path(audio) / "voice_dataset_manifest.json"
    return load_run(run_dir, status_path=status_path, manifest_path=manifest_path)


def loss_tolerance(facts: Facts, verdict: Mapping[str, Any] | None) -> float | None:
    """How far, relatively, a loss may be from the recorded one; 0 means to the bit, None that nothing was recorded."""
    if facts.baseline is None:
        return None
    exact = facts.baseline.result.key.mode != UNIVERSAL and (verdict or {}).get("verdict") != "tolerance-match"
    return 0.0 if exact else facts.baseline.tolerance.loss


def relative(obtained: float, expected: float) -> float:
    """The distance of a loss from the recorded one, relative to it; NaN and infinity have none."""
    if obtained == expected:
        return 0.0
    return abs(obtained - expected) / abs(expected) if expected and math.isfinite(obtained) else math.inf


def _baseline(key: Key | None, verdict: Mapping[str, Any] | None, baselines: Path) -> Baseline | None:
    """The one that the verdict is about; without a verdict the one with the run's key."""
    named = None if verdict is None else verdict.get("baseline")
    if named is not None:
        return load(Path(named)) if Path(named).exists() else None
    return None if key is None else next((b for b in Store(baselines).all()[0] if b.result.key == key), None)


def _key(trace: Trace) -> Key:
    header = trace.header
    return Key(
        lane=header["lane"],
        mode=header["mode"],
        model_digest=header["model_digest"],
        dataset_digest=header["dataset_digest"],
        settings_digest=header["settings_digest"],
        numeric_class="" if header["mode"] == UNIVERSAL else header["numeric_class"] or "none",
    )

"""What page, summary and JUnit say of a run, read from its files and from the baseline that it was held against."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.project import default_baselines
from harness.baselines.baseline import Baseline, BaselineError
from harness.baselines.document import load
from harness.baselines.result import UNIVERSAL, Key, key_of
from harness.baselines.store import Store
from harness.evidence import EvidenceError, RunEvidence, Trace, load_run
from harness.evidence.formats import PLACES


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
            return self._status(key)

    def _status(self, key: str) -> str:
        """The same of a lane that need not write a report."""
        try:
            if self.run.promises("report"):
                return "unknown"
            known = self.run.status.get({"objective_status": "status"}.get(key, key))
            own = self.run.own_status if self.run.gives("status") else {}
            return str(own.get(key, "unknown") if known is None else known)
        except EvidenceError:
            return "unknown"

    def losses(self) -> list[tuple[int, float, float | None]]:
        """(step, obtained, recorded) for each step of the run."""
        recorded = {} if self.baseline is None else {step.step: step.loss for step in self.baseline.result.steps}
        steps = [] if self.trace is None else self.trace.steps
        return [(step.step, step.loss, recorded.get(step.step)) for step in steps]

    def metrics(self, verdict: Mapping[str, Any] | None) -> dict[str, str]:
        """What a CI system keeps of a run, by name."""
        found = {
            "verdict": "none" if verdict is None else str(verdict["verdict"]),
            "objective_status": self.report("objective_status"),
            "run_id": self.run_id,
            "loss": self.report("loss"),
            "loss_first": self.report("loss_first"),
            "loss_smoothed": self.report("loss_smoothed"),
            "held_out_loss_first": self.report("held_out_loss_first"),
            "held_out_loss": self.report("held_out_loss"),
            "best_step": self.report("best_step"),
            "checkpoint_tensor_digest": self.report("checkpoint_tensor_digest"),
            "numeric_mode": self.report("numeric_mode"),
            "numeric_class": self.report("numeric_class"),
            "steps": self.report("steps"),
            "sanitized_logits": self.report("sanitized_logits"),
            "head_commit": self.report("head_commit"),
        }
        if self.trace is not None and self.trace.complete:
            found["eval_loss"] = repr(self.trace.end.eval_loss)
        return found


def facts_of(run: RunEvidence | Path, verdict: Mapping[str, Any] | None) -> Facts:
    """What there is of a run, or of the one in a run directory. Raises nothing: a run that failed has facts too."""
    run = load_here(run) if isinstance(run, Path) else run
    problems: list[str] = []
    run_id, trace, baseline, key = "none", None, None, None
    try:
        run_id = run.status.run_id
    except EvidenceError as error:
        problems.append(str(error))
    try:
        trace = run.outline
        if run.promises("trace") and trace.header.run_id != run_id:
            problems.append(f"{trace.path} is of another run ({trace.header.run_id}), and left out")
            trace = None
        key = None if trace is None else key_of(run, trace)
    except EvidenceError as error:
        problems.append(str(error))
    try:
        baseline = _baseline(key, verdict)
    except (BaselineError, OSError) as error:
        problems.append(str(error))
    return Facts(run, run_id, trace, baseline, tuple(problems), key)


def load_here(run_dir: Path) -> RunEvidence:
    """The run, with status and manifest from where the user's settings put them, should they not be in it."""
    return load_run(
        run_dir, places={what: path for what, path in places().items() if not (run_dir / PLACES[what]).exists()}
    )


def places() -> dict[str, Path]:
    """Where the user's settings put files of the voice lane's run that are not in the run directory."""
    status, audio = os.environ.get("TRAIN_STATUS_PATH"), os.environ.get("KNOWLEDGE_AUDIO_DIR")
    found = {"status": Path.cwd() / status} if status else {}
    return found | ({"manifest": Path.cwd() / audio / "voice_dataset_manifest.json"} if audio else {})


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


def _baseline(key: Key | None, verdict: Mapping[str, Any] | None) -> Baseline | None:
    """The one that the verdict is about; without a verdict the one with the run's key."""
    named = None if verdict is None else verdict.get("baseline")
    if named is not None:
        return load(Path(named)) if Path(named).exists() else None
    return None if key is None else next((b for b in Store(default_baselines()).all()[0] if b.result.key == key), None)

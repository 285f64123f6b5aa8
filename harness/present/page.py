"""What is written into a run directory when its gates have been judged: gates.json, clips, report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.present.audio import cheap_clips
from harness.present.facts import facts_of
from harness.present.gates import GateResult, GatesFile
from harness.present.html import write_html


def present_run(
    run_dir: Path, gates: Sequence[GateResult], verdict: Mapping[str, Any] | None
) -> tuple[GatesFile, list[str]]:
    """Write all of it. Returns what gates.json holds, and lines for the terminal. Raises OSError."""
    facts = facts_of(run_dir, verdict)
    baseline = facts.baseline
    about = None if baseline is None else {"path": str(baseline.path), "recorded": baseline.recorded}
    file = GatesFile(
        run_id=facts.run_id,
        gates=gates,
        verdict=None if verdict is None else dict(verdict),
        metrics=facts.metrics(verdict),
        losses=facts.losses(),
        baseline=about,
    )
    file.write(run_dir)
    missing = cheap_clips(facts.run, facts.run_id)
    path = write_html(run_dir, gates, verdict, facts=facts, missing_audio=missing)
    return file, [f"page: {path}"]

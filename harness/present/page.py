"""What is written into a run directory when its gates have been judged: gates.json, clips, history, report.html."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.files import NotOurs
from harness.evidence import EvidenceError, RunEvidence
from harness.present.audio import cheap_clips
from harness.present.facts import facts_of
from harness.present.gates import GateResult, GatesFile
from harness.present.history import add_to_history
from harness.present.html import write_html


def present_run(
    run: RunEvidence | Path, gates: Sequence[GateResult], verdict: Mapping[str, Any] | None
) -> tuple[GatesFile, list[str]]:
    """Write all of it, as far as it can be written. Returns what gates.json holds, and lines for the terminal: where
    the page lies, and what could not be written and why."""
    facts = facts_of(run, verdict)
    run_dir = facts.run.run_dir
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
    lines: list[str] = []

    def attempt(what: str, write: Callable[[], object]) -> None:
        try:
            write()
        except NotOurs as error:
            lines.append(f"no {what}: {error.filename} {error.strerror}; move it away")
        except OSError as error:
            lines.append(f"no {what}: {run_dir}: {error.strerror or error}")
        except EvidenceError as error:
            lines.append(f"no {what}: {error}; move it away to begin another")

    def write_page() -> None:
        missing = cheap_clips(facts.run, facts.run_id)
        lines.append(f"page: {write_html(run_dir, gates, verdict, facts=facts, missing_audio=missing)}")

    attempt("gates.json", lambda: file.write(run_dir))
    attempt("trend", lambda: add_to_history(run_dir, facts, file))
    attempt("page", write_page)
    return file, lines

"""``history.json`` in a run directory: the last value of each of the last runs that were judged there, for the trend.

    {"schema": "history/1", "lane", "promotable", "runs": [{"run_id", "key", "ended", "commit", "verdict", "gates",
     "green", "loss", "seconds"}, …]}

The oldest run comes first, at most LIMIT of them. Runs with one `key` computed the same: lane, mode, model, data,
settings, and in the float32 modes the numeric class. `loss` is `float.hex()` text, or null. The one file that outlives
the run it was written with; what cannot be read of it is named on the page, and never stops one.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, structs

from harness.base.files import write_json
from harness.evidence import EvidenceError
from harness.evidence.formats import HISTORY
from harness.evidence.strict import HexFloat, Number, Sha256, read_struct
from harness.present.facts import Facts
from harness.present.gates import GatesFile, all_passed, counts

SCHEMA = "history/1"
LIMIT = 100
_LONGEST = 200
Short = Annotated[str, Meta(min_length=1, max_length=_LONGEST)]


class Past(Struct):
    """A run that was judged: a row of the file. ``loss``: of its last step; ``seconds``: of the lane, not the gates."""

    run_id: Short
    key: Sha256
    ended: Short
    commit: Short
    verdict: Short
    gates: Short
    green: bool
    loss: HexFloat | None
    seconds: Number | None


class _File(Struct):
    schema: Literal["history/1"]
    lane: Literal["experimental"]
    promotable: Literal[False]
    runs: list[Past]


def read_history(run_dir: Path) -> list[Past]:
    """The runs that were judged here, the oldest first; none where there is no file. Raises EvidenceError."""
    path = run_dir / HISTORY
    if not path.is_symlink() and not path.exists():
        return []
    return read_struct(path, _File, "the history of the runs judged here").runs[-LIMIT:]


def add_to_history(run_dir: Path, facts: Facts, judged: GatesFile) -> None:
    """Add a run, in place of what was known of it before. Raises EvidenceError, OSError: then the file is untouched."""
    if facts.key is None:
        return
    said = facts.report("head_commit")
    ended, seconds = _time(facts)
    one = Past(
        run_id=facts.run_id[:_LONGEST],
        key=facts.key.digest(),
        ended=ended[:_LONGEST],
        commit=said[:_LONGEST] or "unknown",
        verdict=judged.metrics["verdict"][:_LONGEST] or "none",
        gates=counts(judged.gates)[:_LONGEST],
        green=all_passed(judged.gates),
        loss=HexFloat(judged.losses[-1][1]) if judged.losses else None,
        seconds=seconds,
    )
    runs = [past for past in read_history(run_dir) if past.run_id != one.run_id]
    rows = [{**structs.asdict(p), "loss": None if p.loss is None else p.loss.hex()} for p in [*runs, one][-LIMIT:]]
    boundary = {"lane": "experimental", "promotable": False}
    write_json(run_dir / HISTORY, {"schema": SCHEMA, **boundary, "runs": rows})


def _time(facts: Facts) -> tuple[str, float | None]:
    """When the run ended, and how long the lane took; ("unknown", None) where its files do not say."""
    try:
        if facts.run.is_recorded:
            return facts.run.record.started_at, float(facts.run.record.seconds)
        begun, ended = facts.run.status.started_at, facts.run.status.finished_at
        took = datetime.fromisoformat(ended) - datetime.fromisoformat(begun)
        return str(ended), took.total_seconds()
    except (EvidenceError, ValueError, TypeError):
        return "unknown", None

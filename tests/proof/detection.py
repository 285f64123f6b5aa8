"""Writes detection.md from the kept results of the mutation campaign and of the search for false alarms."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from proof import false_alarms, mutation, recordings
from proof.copies import MEASUREMENTS
from proof.faults import FAMILIES, WHOLE, Fault, cause_of, faults
from proof.kept import read_rows
from proof.mutation import Trial

DOCUMENT = MEASUREMENTS / "detection.md"

Rows = Mapping[str, Mapping[str, Any]]


def main(arguments: list[str]) -> int:
    """Write the page from what is kept; returns 0."""
    DOCUMENT.write_text(document(read_rows(mutation.RESULTS), read_rows(false_alarms.RESULTS, "case")))
    print(f"wrote {DOCUMENT}")
    return 0


def document(trials: Rows, clean: Rows) -> str:
    """The page."""
    return "\n".join([*_top(), *_faults(trials), *_clean(clean)]) + "\n"


def _top() -> Iterator[str]:
    yield "# The harness as a detector: what was measured"
    yield ""
    yield "Written by `python tests/proof mutation` and `python tests/proof false-alarms`; do not edit."
    yield ""


def _faults(trials: Rows) -> Iterator[str]:
    every = faults()
    rows = {
        (fault.name, column): trials.get(Trial(fault, column).name) for fault in every for column in mutation.COLUMNS
    }
    known = [row for row in rows.values() if row is not None]
    yield "## Seeded faults"
    yield ""
    yield "Each fault is a small textual change of a copy of the lane, and a whole run of it. It counts as caught only"
    yield "if the gate that is named here is red and its message holds the words given in `tests/proof/faults.py`; a"
    yield "crash of the changed lane counts as nothing. *Classic*: the four gates that such lanes usually have (report"
    yield "completed, finite loss, non-empty checkpoint, status completed). *Universal*: the exact part of the recorded"
    yield "baseline, and our other gates. *No recording*: the same run without the four gates that compare with one,"
    yield "where again a named gate must be red with the words given. *Float32*: nothing is recorded for this numeric"
    yield "class, so that there is the tolerance tier, against a recording of another class, and our other gates."
    yield ""
    yield f"{len(every)} faults. {_when(known)}"
    yield ""
    yield "| | classic | universal | no recording | float32 |"
    yield "|---|---|---|---|---|"
    for family, meaning in FAMILIES.items():
        chosen = [fault for fault in every if fault.family == family]
        yield f"| {family}: {meaning} | {_tally(chosen, rows)} |"
    yield f"| **all** | {_tally(every, rows)} |"
    whole = [fault.name for fault in every if fault.expected_alone()[0] == WHOLE]
    missed = [f"{fault.name} ({fault.missed})" for fault in every if fault.missed]
    yield ""
    yield "Without a recording, found by `tests/smoke/test_whole_recipe.py` alone, which trains a second time and is no"
    yield f"part of the smoke run: {', '.join(whole) or 'none'}."
    yield f"Not found without a recording: {', '.join(missed) or 'none'}."
    told = {fault.name: (rows[fault.name, "universal"] or {}).get("likely", "") for fault in every}
    right = [
        fault.name for fault in every if told[fault.name] and cause_of(fault) and cause_of(fault) in told[fault.name]
    ]
    laid_down = [fault.name for fault in every if told[fault.name] and cause_of(fault)]
    yield ""
    yield f"Where a recording sees the fault, its verdict names a likely cause: the right one for {len(right)} of the"
    yield f"{len(laid_down)} faults for which `tests/proof/faults.py` lays down what that is."
    yield ""
    yield "A fault that acts in some runs only (one of ten, say) is found by running again:"
    yield "`pytest -m smoke --lane-runs=4` trains four times, and a fault that acts in one run of ten then stays hidden"
    yield "in two thirds of such sessions."
    yield "One that acts on other data only is found on that data: the gates hold for any (`AUDIO_PATH`,"
    yield "`KNOWLEDGE_SOURCE_DIR`, with `--no-baseline`), and cost one run."
    controls = [row for name, row in trials.items() if row["fault"] == ""]
    green = sum(row["outcome"] == "green" for row in controls)
    yield ""
    yield f"The lane unchanged, on the same data in the same columns: {green} of {len(controls)} runs pass every gate."
    yield ""
    yield "| fault | what it is | data | classic | universal: gate | no recording: gate | float32: gate | gates red |"
    yield "|---|---|---|---|---|---|---|---|"
    for fault in every:
        yield _row(fault, rows)
    yield ""
    yield "Data: " + "; ".join(f"*{name}* is {what}" for name, what in recordings.DATA_SETS.items()) + "."
    yield ""


def _caught(row: Mapping[str, Any] | None, what: str = "outcome") -> bool:
    return row is not None and row.get(what) == "caught"


def _tally(chosen: Sequence[Fault], rows: Mapping[tuple[str, str], Mapping[str, Any] | None]) -> str:
    classic = sum(bool((rows[f.name, "universal"] or {}).get("classic")) for f in chosen)
    cells = [f"{classic} of {len(chosen)}"]
    for column in mutation.COLUMNS:
        run = [f for f in chosen if rows[f.name, column] and (column == "universal" or not f.float64_alone)]
        cells.append(f"{sum(_caught(rows[f.name, column]) for f in run)} of {len(run)}")
        if column == "universal":
            cells.append(f"{sum(_caught(rows[f.name, column], 'alone') for f in run)} of {len(run)}")
    return " | ".join(cells)


def _row(fault: Fault, rows: Mapping[tuple[str, str], Mapping[str, Any] | None]) -> str:
    cells: list[str] = []
    red: list[str] = []
    for column in mutation.COLUMNS:
        row = rows[fault.name, column]
        gate = fault.expected(column)[0].replace("_", " ")
        if column == "float32" and fault.float64_alone:
            cells.append("no fault there")
            continue
        if row is None:
            cells += ["not run"] * (2 if column == "universal" else 1)
            continue
        cells.append(gate if _caught(row) else f"**{row['outcome']}** ({gate})")
        if column == "universal":
            alone = fault.expected_alone()[0].replace("_", " ")
            cells.append(
                alone if _caught(row, "alone") else f"**{row.get('alone', 'not run')}** ({fault.missed or alone})"
            )
        red.append(str(len(row["red"])))
    classic = (rows[fault.name, "universal"] or {}).get("classic")
    seen = ", ".join(classic) if classic else "missed"
    data = fault.data + (f", after a run on {fault.before}" if fault.before else "")
    return f"| {fault.name} | {fault.what} | {data} | {seen} | {' | '.join(cells)} | {', '.join(red)} |"


def _clean(rows: Rows) -> Iterator[str]:
    repeats = [row for name, row in rows.items() if name.startswith("repeat ")]
    others = [row for name, row in rows.items() if not name.startswith("repeat ")]
    tried = [row for row in others if "skipped" not in row]
    alarms = sum(not false_alarms.good(row) for row in (*tried, *repeats))
    yield "## False alarms"
    yield ""
    yield "Each case is one whole clean session of the gates, which trains. The plain repeats fork the lane and the"
    yield "gates after the imports."
    yield ""
    yield f"{alarms} false alarms in {len(tried) + len(repeats)} sessions: {len(tried)} circumstances and"
    yield f"{len(repeats)} plain repeats. {_when([*tried, *repeats])}"
    yield ""
    yield "| circumstance | gates passed |"
    yield "|---|---|"
    for row in others:
        if "skipped" in row:
            yield f"| {row['case']} | not tried: {row['skipped']} |"
        else:
            alarm = "" if false_alarms.good(row) else " **alarm**"
            yield f"| {row['case']} | {row['passed']} of {row['gates']}{alarm} |"
    yield ""
    emulated = [row for row in _json_lines(MEASUREMENTS / "universality.jsonl") if "emulated" in row["case"]]
    for row in emulated:
        yield f"{row['case']}: the comparison with the baseline says `{row['verdict']}` ([table](universality.md))."
    yield ""


def _when(rows: Sequence[Mapping[str, Any]]) -> str:
    """Dates and commits that the rows are of."""
    if not rows:
        return "Not measured yet."
    dates, commits = sorted({row["date"] for row in rows}), sorted({row["commit"] for row in rows})
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"Measured {span}, at {', '.join(f'`{commit}`' for commit in commits)}."


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

"""``python3 -m harness summary``: a run, its gates and its verdict in Markdown, as a CI job's summary shows it.

Standard library only: after a set-up that failed, too, it says what is known. Everything that comes from a file or from
git stands in Markdown code, so that no name or message can become a heading, a link or a row of a table.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.git import GitFailed, git
from harness.base.project import default_run_dir, project_folder
from harness.present.changed import Decision, decide, markdown
from harness.present.gates import (
    IDLE,
    NOT_APPLICABLE,
    NOT_RUN,
    XFAILED,
    XPASSED,
    GateResult,
    GatesError,
    GatesFile,
    all_passed,
    by_reason,
    counts,
    judging,
    read_gates,
)
from harness.present.recording import get, recording_table
from harness.present.text import code, table

LIMIT = 1_000_000  # bytes; GitHub drops a step's summary above 1 MiB as a whole
_ROWS = 100
_MARK = {
    "passed": "✅",
    "failed": "❌",
    "error": "❌",
    "skipped": "➖",
    XFAILED: "➖",
    XPASSED: "➖",
    NOT_RUN: "➖",
    NOT_APPLICABLE: "·",
}
_METRICS = (
    "loss", "loss_smoothed", "loss_first", "held_out_loss_first", "held_out_loss", "best_step", "eval_loss",
    "checkpoint_tensor_digest", "numeric_mode", "numeric_class", "steps",
    "sanitized_logits", "head_commit",
)  # fmt: skip


def summary(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        "python3 -m harness summary",
        description="Prints a run's verdict, gates, losses and what moved as Markdown; with --base also which "
        "baselines were edited, and why.",
        epilog="exit codes: 0 printed; 1 there is nothing to summarise; 64 wrong usage",
    )
    parser.add_argument("run_dir", nargs="?", type=Path, help="run directory; default: LANE_RUN_DIR, else artifacts")
    parser.add_argument("--base", metavar="REF", help="branch, tag or commit to compare the baselines with")
    options = parser.parse_args(arguments)
    run_dir = options.run_dir or default_run_dir()
    decision = None if options.base is None else decide(options.base)
    text, found = render(run_dir, decision)
    # Also where the terminal's encoding knows no check mark.
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
    sys.stdout.flush()
    return 0 if found else 1


def render(run_dir: Path, decision: Decision | None = None, root: Path | None = None) -> tuple[str, bool]:
    """(The Markdown, whether there was anything to say of a run)."""
    report = _report(run_dir)
    lines: list[str] = []
    found = True
    try:
        gates = read_gates(run_dir)
        if report and report.get("run_id", gates.run_id) != gates.run_id:
            which = f"gates.json is of run {gates.run_id}, the report of {report['run_id']}"
            raise GatesError(f"{run_dir}: {which}; next: {judging(run_dir)}")
        lines += _run(gates, report)
    except GatesError as error:
        found = bool(report)
        lines += ["## No gates of this run", "", code(str(error)), ""]
        lines += _failure(report)
    if decision is not None:
        lines += _baselines(decision, root or project_folder())
        lines += ["", markdown(decision)]
    return shorten("\n".join(lines) + "\n"), found


def shorten(text: str, limit: int = LIMIT) -> str:
    """At most `limit` bytes, cut between lines, and saying so at its beginning and its end."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return text
    notice = f"> [!CAUTION]\n> This summary is cut: it had {len(data):,} bytes, and {limit:,} are shown at most.\n\n"
    end = "\n\n**Cut here.** The whole is in `gates.json` and `report.html`, among the run's files.\n"
    room = limit - len((notice + end).encode())
    kept, _, _ = data[: max(0, room)].decode("utf-8", "ignore").rpartition("\n")
    return notice + kept + end


def _run(found: GatesFile, report: Mapping[str, str]) -> list[str]:
    verdict = found.verdict
    whole = all(gate.outcome != NOT_RUN for gate in found.gates)
    mark = ("✅" if whole else "➖") if all_passed(found.gates) else "❌"
    status = found.metrics.get("objective_status", "unknown")
    title = "no comparison with a baseline" if verdict is None else str(verdict.get("verdict"))
    lines = [f"## {mark} Lane: {code(title)} · {counts(found.gates)}", ""]
    if status != "completed":
        lines += _failure(report)
    if verdict is not None:
        lines += _verdict(verdict)
    if found.baseline is not None:
        recorded = found.baseline
        lines += [f"Baseline {code(recorded.get('path', ''))}, {code(recorded.get('recorded', ''))}.", ""]
    lines += _gates(found.gates)
    rows = [[name.replace("_", " "), code(found.metrics[name])] for name in _METRICS if name in found.metrics]
    lines += ["### Numbers", "", *table(("what", "value"), rows)]
    return lines + _losses(found.losses)


def _verdict(verdict: Mapping[str, Any]) -> list[str]:
    lines = [code(str(verdict.get("headline", ""))), ""]
    where = verdict.get("where")
    rows: list[tuple[str, str]] = []
    if isinstance(where, Mapping):
        tensors = where.get("tensors") or [where.get("what")]
        rows.append(("first differs", f"step {where.get('step')}, phase {where.get('phase')}: {tensors[0]}"))
    rows += [("moved", str(line)) for line in (verdict.get("moved") or [])[:_ROWS]]
    rows += [("likely", str(verdict["cause"]))] if verdict.get("cause") else []
    rows += [("note", str(note)) for note in verdict.get("notes") or []]
    rows += [("next", line) for line in str(verdict.get("next") or "").splitlines()]
    lines += [f"- {name}: {code(value)}" for name, value in rows]
    out = verdict.get("out_of_bounds") or []
    if out:
        columns = ("what", "obtained", "expected", "distance")
        lines += ["", "### Out of bounds", ""]
        lines += table(columns, [[code(str(row.get(column))) for column in columns] for row in out[:_ROWS]])
        if verdict.get("more"):
            lines.append(f"and {verdict['more']} more")
    return [*lines, ""]


def _gates(gates: Sequence[GateResult]) -> list[str]:
    groups = by_reason(gates)
    lines: list[str] = []
    if groups:
        idle = all(group[0].outcome in IDLE for group in groups)
        lines += ["### Gates that judged nothing" if idle else "### Gates that did not pass", ""]
        rows = []
        for group in groups[:_ROWS]:
            # Gates with one reason share a row.
            names = ", ".join(code(gate.name) for gate in group[:_ROWS])
            more = f" and {len(group) - _ROWS} more" if len(group) > _ROWS else ""
            rows.append([_MARK[group[0].outcome], names + more, code(group[0].reason or "no reason given")])
        lines += table(("", "gate", "why"), rows)
        if len(groups) > _ROWS:
            lines += [f"and {sum(map(len, groups[_ROWS:]))} more", ""]
    good = [gate for gate in gates if gate.outcome == "passed"]
    if good:
        listed = [f"- ✅ {code(gate.name)}" for gate in good[: 5 * _ROWS]]
        further = [f"- and {len(good) - 5 * _ROWS} more"] if len(good) > 5 * _ROWS else []
        lines += [f"<details><summary>{len(good)} passed</summary>", "", *listed, *further, "", "</details>", ""]
    return lines


def _losses(losses: Sequence[tuple[int, float, float | None]]) -> list[str]:
    if not losses:
        return ["### Loss", "", "No training step was taken.", ""]
    compared = [(a, b) for _, a, b in losses if b is not None]
    equal = sum(a == b for a, b in compared)
    said = f"{len(losses)} steps, {losses[0][1]:.6g} to {losses[-1][1]:.6g}"
    said += f"; {equal} of {len(compared)} losses equal the recorded ones to the bit" if compared else "; none recorded"
    # All of a short run, and evenly spread steps of a long one, the first and the last among them.
    last = len(losses) - 1
    chosen = losses if last < 60 else [losses[round(n * last / 59)] for n in range(60)]
    rows = [
        [str(step), repr(a), "–" if b is None else repr(b), "–" if b is None else _distance(a, b)]
        for step, a, b in chosen
    ]
    return [
        "### Loss",
        "",
        said + ".",
        "",
        f"<details><summary>{'all' if chosen is losses else len(chosen)} steps</summary>",
        "",
        *table(("step", "obtained", "recorded", "relative distance"), rows),
        "</details>",
        "",
    ]


def _distance(obtained: float, expected: float) -> str:
    if obtained == expected:
        return "equal"
    if not expected or not math.isfinite(obtained):
        return "not finite"
    return f"{'▲' if obtained > expected else '▼'} {abs(obtained - expected) / abs(expected):.1e}"


def _failure(report: Mapping[str, str]) -> list[str]:
    """How a run or a set-up failed, in the words of its report."""
    if not report:
        return ["No report was written either.", ""]
    keys = ("objective_status", "first_failed_step", "root_cause", "next_unblock_action")
    return [*(f"- {key.replace('_', ' ')}: {code(report.get(key, 'unknown'))}" for key in keys), ""]


def _baselines(decision: Decision, root: Path) -> list[str]:
    if not decision.baselines:
        return []
    lines = ["", "### Baselines edited", ""]
    if decision.baseline_with_code:
        lines += [
            "> [!WARNING]",
            "> A baseline changes together with the lane's code or settings. The gates then hold the change against "
            "what it recorded itself: they pass by construction. Review the reason and what moved.",
            "",
        ]
    for file in decision.baselines[:_ROWS]:
        new = _parse(_read(root / file.path)) if file.status != "removed" else {}
        old = _parse(_at(decision.merge_base, file.path, root)) if file.status != "added" else {}
        reason = get(new, "provenance", "reason")
        lines += [f"{code(file.path)} ({file.status}): {code(str(reason)) if reason else 'no reason'}", ""]
        lines += recording_table(old, new) or ["No value in it differs.", ""]
    if len(decision.baselines) > _ROWS:
        lines += [f"and {len(decision.baselines) - _ROWS} more", ""]
    return lines


def _report(run_dir: Path) -> dict[str, str]:
    """The report's keys and values; empty where there is none. Also that of a set-up that failed."""
    lines = _read(run_dir / "train_report.txt").splitlines()
    pairs = (line.partition(": ") for line in lines)
    return {key: value for key, separator, value in pairs if separator and key.isidentifier()}


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(1 << 20).decode("utf-8", "backslashreplace")
    except OSError:
        return ""


def _at(commit: str, path: str, root: Path) -> str:
    try:
        return git(root, "show", f"{commit}:./{path}")
    except GitFailed:
        return ""


def _parse(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

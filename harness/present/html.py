"""report.html: one file that holds all there is to see and hear of a run. No script, no other file, no network.

Everything that comes from a file is escaped, and the page forbids itself scripts and connections on top of that.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

from harness.base.files import PAGE_MARK, atomic_write
from harness.evidence import EvidenceError
from harness.present.audio import CLIPS, SECONDS, Clip, NoAudio, possible_clips, read_clips
from harness.present.chart import Series, legend, line_chart
from harness.present.facts import Facts, facts_of, loss_tolerance, relative
from harness.present.gates import NOT_APPLICABLE, NOT_RUN, XFAILED, XPASSED, GateResult, all_passed, by_reason, counts
from harness.present.history import read_history
from harness.present.picture import RANGE_DB, TOP_HZ, spectrogram_png
from harness.present.style import POLICY, STYLE
from harness.present.text import count, without_local_paths

PAGE = "report.html"
CODEBOOKS_SHOWN = 8
_NAMED = 12  # red gates that the verdict names
_TREND = 10  # runs in the table; the charts have all that are kept
_FLOOR = 1e-17  # where a distance of zero is drawn
_OUTCOME = {
    "passed": "✓",
    "failed": "✗",
    "error": "✗",
    "skipped": "–",
    XFAILED: "–",
    XPASSED: "–",
    NOT_RUN: "–",
    NOT_APPLICABLE: "·",
}
_GOOD = ("match", "tolerance-match")


def write_html(
    run_dir: Path,
    gates: Sequence[GateResult],
    verdict: Mapping[str, Any] | None,
    *,
    facts: Facts | None = None,
    missing_audio: Sequence[str] = (),
) -> Path:
    """Write the page of a run, over no file of another's. `verdict` is `Verdict.to_json()`. Raises OSError.

    Clips that lie in the run's folder `listen/` are on it; `missing_audio` says why others are not.
    """
    path = run_dir / PAGE
    text = page(facts or facts_of(run_dir, verdict), gates, verdict, missing_audio)
    atomic_write(path, text.encode("utf-8", "backslashreplace"))
    return path


def page(
    facts: Facts,
    gates: Sequence[GateResult],
    verdict: Mapping[str, Any] | None,
    missing_audio: Sequence[str] = (),
) -> str:
    """The page's text; the same for the same files."""
    model = facts.run.name if facts.run.numerics == "bits" else facts.report("model_id")
    head = f"{_headline(gates, verdict, facts)[0]} · {model}"
    sections = [
        _verdict(facts, gates, verdict),
        _gates(gates),
        _losses(facts, verdict),
        _trend(facts),
        _listen(facts, missing_audio),
        _provenance(facts),
    ]
    body = f"""<header>
<p class="over">Voice-adapter training lane</p>
<h1>{escape(model)}</h1>
<p class="over">experimental, not promotable · run <code>{escape(facts.run_id[:12])}</code></p>
</header>
<main>
{chr(10).join(sections)}
</main>
"""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{PAGE_MARK}
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{_portable(f"<title>{escape(head)}</title>", facts.run.run_dir)}
<style>{STYLE}</style>
</head>
<body>
{_portable(body, facts.run.run_dir)}</body>
</html>
"""


def _portable(html: str, run_dir: Path) -> str:
    """HTML, without paths of this machine in its text."""
    clean = without_local_paths(run_dir)
    return re.sub(r"(?<=>)[^<>]+(?=<)", lambda found: escape(clean(unescape(found[0]))), html)


def _headline(gates: Sequence[GateResult], verdict: Mapping[str, Any] | None, facts: Facts) -> tuple[str, str]:
    """(The most important thing in a few words, good or bad)."""
    if facts.run.failure() is not None:
        return "the lane failed", "bad"
    if verdict is not None and verdict["verdict"] not in _GOOD:
        return str(verdict["verdict"]), "bad"
    if not all_passed(gates):
        return counts(gates), "bad"
    if any(gate.outcome == NOT_RUN for gate in gates):
        return counts(gates), "unsure"
    if verdict is None:
        return "gates passed, not compared with a baseline", "unsure"
    return str(verdict["verdict"]), "good"


def _verdict(facts: Facts, gates: Sequence[GateResult], verdict: Mapping[str, Any] | None) -> str:
    headline, kind = _headline(gates, verdict, facts)
    mark = {"good": "✓", "bad": "✗", "unsure": "?"}[kind]
    lines = [f'<p class="badge"><span aria-hidden="true">{mark}</span> {escape(headline)}</p>']
    failure = facts.run.failure()
    if failure:
        lines.append(f"<p>{escape(failure)}</p>")
    if headline != counts(gates):
        lines.append(f'<p><a href="#gates">{escape(counts(gates))}</a></p>')
    lines.append(_red(gates))
    if verdict is None:
        lines.append("<p>The run was not compared with a baseline.</p>")
    else:
        name = "" if headline == verdict["verdict"] else f"<strong>{_text(verdict, 'verdict')}</strong>: "
        lines.append(f"<p>{name}{_text(verdict, 'headline')}</p>")
        rows = [("baseline", _text(verdict, "baseline")), ("first differs", _where(verdict))]
        rows += [("moved", escape("; ".join(map(str, verdict.get("moved") or []))))]
        rows += [("likely", _text(verdict, "cause"))]
        rows += [("note", escape(str(note))) for note in verdict.get("notes") or []]
        rows += [("next", f"<code>{escape(line)}</code>") for line in str(verdict.get("next") or "").splitlines()]
        lines.append(_list((name, value) for name, value in rows if value))
        lines.append(_out_of_bounds(verdict))
    if facts.baseline is not None:
        lines.append(f"<p>Baseline {escape(facts.baseline.recorded)}.</p>")
    lines += [f'<p class="note">{escape(problem)}</p>' for problem in facts.problems]
    return f'<section class="verdict {kind}" aria-label="Verdict"><h2>Verdict</h2>\n{_join(lines)}</section>'


def _red(gates: Sequence[GateResult]) -> str:
    """Links to the gates that are red."""
    red = [
        (n, gate) for n, gate in enumerate(gates) if gate.outcome not in ("passed", "skipped", NOT_RUN, NOT_APPLICABLE)
    ]
    links = [f'<a href="#gate-{n}">{escape(gate.name)}</a>' for n, gate in red[:_NAMED]]
    more = f', <a href="#gates">and {len(red) - _NAMED} more</a>' if len(red) > _NAMED else ""
    return f'<p class="red">Red: {", ".join(links)}{more}</p>' if red else ""


def _where(verdict: Mapping[str, Any]) -> str:
    where = verdict.get("where")
    if not isinstance(where, Mapping):
        return ""
    tensors = ", ".join(map(str, (where.get("tensors") or [where.get("what")])[:3]))
    return escape(f"step {where.get('step')}, phase {where.get('phase')}: {tensors}")


def _out_of_bounds(verdict: Mapping[str, Any]) -> str:
    rows = verdict.get("out_of_bounds") or []
    if not rows:
        return ""
    columns = ("what", "obtained", "expected", "distance")
    more = f'<p class="note">and {verdict["more"]} more</p>' if verdict.get("more") else ""
    return _table("What is out of bounds", columns, [[escape(str(row.get(c))) for c in columns] for row in rows]) + more


def _gates(gates: Sequence[GateResult]) -> str:
    blocks = []
    place = {id(gate): number for number, gate in enumerate(gates)}
    judged = [gate for gate in gates if gate.outcome != NOT_APPLICABLE]
    for group in by_reason(judged):
        # Gates with one reason stand together, and say it once.
        reason = f'<p class="reason">{escape(group[0].reason)}</p>' if group[0].reason else ""
        few = len(group) <= 4
        rows = [_gate(gate, place[id(gate)], details=few or number == 0) for number, gate in enumerate(group)]
        caption = f"{len(group)} {group[0].outcome}"
        blocks.append(f'<div class="{_class(group[0])}">{reason}{_gate_table(caption, rows)}</div>')
    passed = [_gate(gate, place[id(gate)]) for gate in gates if gate.outcome == "passed"]
    blocks.append(_gate_table(f"{len(passed)} passed", passed) if passed else "")
    others = [dataclasses.replace(gate, measured=gate.reason) for gate in gates if gate.outcome == NOT_APPLICABLE]
    if others:
        table = _gate_table(
            "What the lane need not give", [_gate(gate, len(gates) + n) for n, gate in enumerate(others)]
        )
        blocks.append(f"<details><summary>{len(others)} not applicable</summary>{table}</details>")
    empty = "" if gates else "<p>No gate ran.</p>"
    return f'<section id="gates"><h2>Gates</h2>\n{empty}{_join(blocks)}</section>'


def _gate_table(caption: str, rows: Sequence[Sequence[str]]) -> str:
    return _table(caption, ("gate", "wants", "found", "seconds"), rows, style="gates")


def _class(gate: GateResult) -> str:
    return "skipped" if gate.outcome in (NOT_APPLICABLE, NOT_RUN, XFAILED, XPASSED) else escape(gate.outcome)


def _gate(gate: GateResult, number: int, *, details: bool = False) -> list[str]:
    mark = f'<span aria-hidden="true">{_OUTCOME.get(gate.outcome, "?")}</span>'
    said = "" if gate.outcome in ("passed", NOT_APPLICABLE) else f"{escape(gate.outcome)}: "
    more = ""
    if details and gate.details and " ".join(gate.details.split()) != gate.reason:
        more = f"<details><summary>in full</summary><pre tabindex=0>{escape(gate.details)}</pre></details>"
    name = f'<div id="gate-{number}" class="gate {_class(gate)}">{mark}<b>{said}{escape(gate.name)}</b></div>{more}'
    return [name, escape(gate.wants), escape(gate.measured), f"{gate.seconds:.2f}"]


def _losses(facts: Facts, verdict: Mapping[str, Any] | None) -> str:
    rows = facts.losses()
    if not rows:
        return "<section><h2>Loss</h2><p>The run took no training step.</p></section>"
    tolerance = loss_tolerance(facts, verdict)
    recorded = [(float(step), b) for step, _, b in rows if b is not None]
    finite = [(step, a) for step, a, _ in rows if math.isfinite(a)]
    broken = [str(step) for step, a, _ in rows if not math.isfinite(a)]
    first, last = rows[0], rows[-1]
    says = f"Loss in {count(len(rows), 'step')}, from {first[1]:.4f} to {last[1]:.4f}."
    if finite:
        says += f" Lowest {min(a for _, a in finite):.4f}, highest {max(a for _, a in finite):.4f}."
    series = [Series("this run", "run", [(float(step), a) for step, a, _ in rows], dots=True)]
    keys = [("this run", "run")]
    band: list[tuple[float, float, float]] = []
    notes = [f"Not finite in step {', '.join(broken)}." if broken else ""]
    if recorded and tolerance is not None:
        series.insert(0, Series("baseline", "recorded", recorded))
        keys.append(("baseline, with its tolerance band", "recorded"))
        band = [(x, y - abs(y) * tolerance, y + abs(y) * tolerance) for x, y in recorded]
        distance = max(relative(a, b) for _, a, b in rows if b is not None)
        says += f" The baseline's curve is {f'at most {distance:.1e} away, relatively' if distance else 'the same'}."
        if tolerance == 0:
            notes.append("The losses must be the recorded ones to the bit: the band has no width.")
        elif tolerance < 1e-4:
            notes.append(f"The band is ±{tolerance:.0e} of the loss, thinner than the line; the next chart shows it.")
    else:
        notes.append("Nothing is recorded for this run's key: there is no curve to compare with.")
    if len(recorded) not in (0, len(rows)):
        notes.append(f"The baseline has {len(recorded)} of these {len(rows)} steps.")
    chart = line_chart("loss", "Training loss by step", says, series, band=band)
    caption = escape(" ".join(filter(None, [says, *notes])))
    body = (
        f"<p>{caption}</p>"
        if len(rows) == 1
        else f"<figure><h3>By step</h3>{legend(keys)}{chart}<figcaption>{caption}</figcaption></figure>"
    )
    if recorded and tolerance is not None and len(rows) > 1:
        body += _distances(rows, tolerance)
    body += _codebooks(facts)
    columns = ("step", "obtained", "recorded", "distance")
    cells = [
        [str(step), repr(a), "–" if b is None else repr(b), "–" if b is None else f"{relative(a, b):.1e}"]
        for step, a, b in rows
    ]
    numbers = f"<details><summary>The numbers</summary>{_table('Loss by step', columns, cells)}</details>"
    evaluated = ""
    if facts.trace is not None and facts.trace.complete:
        evaluated = (
            f"<p>On the first batch the loss was {facts.trace.start.loss:.4f} before the training and is "
            f"{facts.trace.end.eval_loss:.4f} after it.</p>"
        )
    return f'<section><h2>Loss</h2>{evaluated}\n<div class="charts">{body}</div>{numbers}</section>'


def _distances(rows: Sequence[tuple[int, float, float | None]], tolerance: float) -> str:
    """How far each loss is from the recorded one, on a scale on which a tolerance of 1e-11 can be seen."""

    def height(value: float) -> float:
        return math.log10(min(max(value, _FLOOR), 10.0))

    points = [(float(step), relative(a, b)) for step, a, b in rows if b is not None]
    worst = max(value for _, value in points)
    inside = sum(value <= tolerance for _, value in points)
    far = f"the farthest is {worst:.1e} from the recorded one, relative to it" if worst else "all of them are equal"
    says = f"{inside} of {len(points)} losses are within the tolerance; {far}."
    ticks = [(-17.0, "equal"), *((float(e), f"1e{e}") for e in (-15, -12, -9, -6, -3, 0))]
    top = height(tolerance) if tolerance else -16.6
    ends = (points[0][0], points[-1][0])
    chart = line_chart(
        "distance",
        "Distance of each loss from the recorded one",
        says,
        [Series("distance", "run", [(x, height(y)) for x, y in points], dots=True)],
        band=[(x, -17.2, top) for x in ends],
        y_label="distance",
        limits=(-17.2, 1.0),
        ticks=ticks,
    )
    allowed = f"within the tolerance of {tolerance:.0e}" if tolerance else "equal to the bit"
    keys = legend([("this run", "run"), (allowed, "band")])
    return f"<figure><h3>Distance from the baseline</h3>{keys}{chart}<figcaption>{escape(says)}</figcaption></figure>"


def _codebooks(facts: Facts) -> str:
    steps = facts.trace.steps if facts.trace is not None else []
    if len(steps) < 2 or not steps[0].loss_by_codebook:
        return ""
    shown = min(len(steps[0].loss_by_codebook), CODEBOOKS_SHOWN)
    series = [
        Series(f"codebook {k}", f"k{k % 4}", [(float(s.step), s.loss_by_codebook[k]) for s in steps])
        for k in range(shown)
    ]
    ends = "; ".join(f"codebook {k} from {s.points[0][1]:.3f} to {s.points[-1][1]:.3f}" for k, s in enumerate(series))
    says = f"Loss by codebook: {ends}."
    chart = line_chart("codebooks", "Training loss by codebook and step", says, series)
    keys = legend([(one.name, one.style) for one in series])
    return f"<figure><h3>By codebook</h3>{keys}{chart}<figcaption>{escape(says)}</figcaption></figure>"


def _trend(facts: Facts) -> str:
    """The runs with this run's key that were judged in this run directory, this one among them."""
    title = "<h2>Runs of the same key</h2>"
    try:
        runs = [] if facts.key is None else [p for p in read_history(facts.run.run_dir) if p.key == facts.key.digest()]
    except EvidenceError as error:
        return f'<section>{title}<p class="note">{escape(str(error))}</p></section>'
    if len(runs) < 2:
        said = "No earlier run with the same lane, model, data and settings was judged in this run directory."
        return f'<section>{title}<p class="note">{said}</p></section>'
    charts = _trend_chart("trend", "Last loss", "loss", [run.loss for run in runs])
    charts += _trend_chart(
        "trend-seconds",
        "Seconds that the lane took",
        "seconds",
        [run.seconds and round(run.seconds, 1) for run in runs],
    )
    columns = ("ended", "commit", "verdict", "gates", "last loss", "seconds")
    rows = [
        [
            escape(run.ended),
            f"<code>{escape(run.commit[:12])}</code>",
            escape(run.verdict),
            escape(("✓ " if run.green else "✗ ") + run.gates),
            "–" if run.loss is None else f"{run.loss:.9g}",
            "–" if run.seconds is None else f"{run.seconds:.1f}",
        ]
        for run in reversed(runs[-_TREND:])
    ]
    table = _table("The newest first", columns, rows)
    return f'<section>{title}\n<div class="charts">{charts}</div>{table}</section>'


def _trend_chart(name: str, title: str, label: str, values: Sequence[float | None]) -> str:
    """A line over the runs, oldest first; nothing where none has the value."""
    points = [(float(n), value) for n, value in enumerate(values, 1) if value is not None]
    finite = [value for _, value in points if math.isfinite(value)]
    if not finite:
        return ""
    says = f"{len(points)} runs, the newest last; lowest {min(finite):.10g}, highest {max(finite):.10g}."
    if len(finite) == len(points) and min(finite) == max(finite):
        says = f"{len(points)} runs, the newest last; all of them have {finite[0]:.10g}."
    chart = line_chart(name, title, says, [Series(title, "run", points, dots=True)], y_label=label, x_label="run")
    return f"<figure><h3>{escape(title)}</h3>{chart}<figcaption>{escape(says)}</figcaption></figure>"


def _listen(facts: Facts, missing: Sequence[str]) -> str:
    clips = read_clips(facts.run.run_dir, facts.run_id)
    lines = [_clip(clip) for clip in clips]
    there = {clip.name for clip in clips}
    absent = [CLIPS[name][0] for name in possible_clips(facts.run) if name not in there]
    notes = [f'<p class="note">{escape(line)}</p>' for line in missing]
    if absent:
        command = f"python3 -m harness listen {shlex.quote(str(facts.run.run_dir.absolute()))}"
        notes.append(
            f'<p class="note">Not here: {escape(", ".join(absent).lower())}. '
            f"This makes them: <code>{escape(command)}</code></p>"
        )
    about = f"<p>Excerpts of about {SECONDS:.0f} seconds. The spectrograms reach from 0 to {TOP_HZ // 1000} kHz.</p>"
    about = about if clips else ""
    return f'<section><h2>Listen and look</h2>{about}\n<div class="clips">{_join(lines)}</div>{_join(notes)}</section>'


def _clip(clip: Clip) -> str:
    try:
        wave, rate = clip.decoded()
        png = spectrogram_png(wave, rate)
    except NoAudio as error:
        return f"<article><h3>{escape(clip.title)}</h3><p>{escape(str(error))}</p></article>"
    seconds = len(wave) / rate
    alt = (
        f"Spectrogram of {clip.what}: {seconds:.1f} seconds from left to right, 0 to {TOP_HZ // 1000} kHz from bottom "
        f"to top, brighter is louder, over {RANGE_DB} dB."
    )
    return f"""<article><h3>{escape(clip.title)}</h3>
<p>{escape(clip.what)}</p>
<audio controls preload="metadata" aria-label="{escape(clip.title)}"
src="data:audio/flac;base64,{_base64(clip.data)}"></audio>
<img alt="{escape(alt)}" src="data:image/png;base64,{_base64(png)}">
<p class="note">{escape(clip.about)}</p></article>"""


def _provenance(facts: Facts) -> str:
    keys = (
        "run_id head_commit model_id model_digest dataset_digest tokens_digest settings_digest numeric_mode "
        "numeric_class seed steps loss loss_first sanitized_logits checkpoint_sha256 checkpoint_tensor_digest "
        "python_version gpu_available audiocraft_import"
    ).split()
    rows = [(key.replace("_", " "), f"<code>{escape(facts.report(key))}</code>") for key in keys]
    try:
        environment = facts.run.environment
        packages = environment.get("packages")
        if isinstance(packages, Mapping):
            listed = ", ".join(f"{name} {version}" for name, version in packages.items())
            rows.append(("packages", f"<code>{escape(listed)}</code>"))
        for key in ("platform", "cpu_capability", "threads", "device"):
            rows.append((key.replace("_", " "), f"<code>{escape(str(environment.get(key, 'unknown')))}</code>"))
    except EvidenceError:
        pass
    try:
        status = facts.run.status
        rows.append(("started, ended", escape(f"{status.started_at}, {status.finished_at}")))
    except EvidenceError:
        pass
    rows.append(("RUN_DIR", "the run's directory, in which this page was written"))
    if facts.baseline is not None:
        rows.append(("baseline", f"<code>{escape(str(facts.baseline.result.source))}</code>"))
        rows.append(("recorded", escape(facts.baseline.recorded)))
    return f"<footer><h2>Provenance</h2>{_list(rows)}</footer>"


def _text(value: Mapping[str, Any], key: str) -> str:
    return "" if value.get(key) is None else escape(str(value[key]))


def _list(rows: Iterable[tuple[str, str]]) -> str:
    """A list of names and values; the values are HTML."""
    return "<dl>" + "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in rows) + "</dl>"


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, style: str = "") -> str:
    """A table; its cells are HTML. On a phone each row is a block, in which each cell says its column."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        "<tr>" + "".join(f'<td data-label="{c}">{cell}</td>' for c, cell in zip(columns, row, strict=True)) + "</tr>"
        for row in rows
    )
    # Wide tables scroll inside, and can be scrolled with the keyboard.
    return (
        f'<div class="scroll" tabindex=0 role="region" aria-label="{escape(caption)}"><table class="{style}"><caption>'
        f"{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _join(parts: Iterable[str]) -> str:
    return "\n".join(part for part in parts if part)


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")

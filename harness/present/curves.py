"""The curves of a run's page: its loss, its distance from the recording, its codebooks, and the runs before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from harness.evidence import EvidenceError
from harness.present.chart import Series, legend, line_chart
from harness.present.elements import html_table
from harness.present.facts import Facts, loss_tolerance, relative
from harness.present.history import read_history
from harness.present.text import count

CODEBOOKS_SHOWN = 8
_TREND = 10  # runs in the table; the charts have all that are kept
_FLOOR = 1e-17  # where a distance of zero is drawn


def losses(facts: Facts, verdict: Mapping[str, Any] | None) -> str:
    rows = facts.losses()
    if not rows:
        return "<section><h2>Loss</h2><p>The run took no training step.</p></section>"
    tolerance = loss_tolerance(facts, verdict)
    recorded = [(float(step), b) for step, _, b in rows if b is not None]
    finite = [(step, a) for step, a, _ in rows if math.isfinite(a)]
    broken = [str(step) for step, a, _ in rows if not math.isfinite(a)]
    first, last = rows[0], rows[-1]
    says = f"Loss of each step's own batch in {count(len(rows), 'step')}, from {first[1]:.4f} to {last[1]:.4f}."
    if finite:
        says += f" Lowest {min(a for _, a in finite):.4f}, highest {max(a for _, a in finite):.4f}."
    series = [Series("this run", "run", [(float(step), a) for step, a, _ in rows], dots=True)]
    keys = [("this run", "run")]
    for name, style, points in _learned(facts):
        series.append(Series(name, style, points, dots=len(points) < len(rows)))
        keys.append((name, style))
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
    numbers = f"<details><summary>The numbers</summary>{html_table('Loss by step', columns, cells)}</details>"
    evaluated = ""
    if facts.trace is not None and facts.trace.complete:
        evaluated = (
            f"<p>On the first batch the loss was {facts.trace.start.loss:.4f} before the training and is "
            f"{facts.trace.end.eval_loss:.4f} after it.</p>"
        )
    evaluated += _held_out(facts)
    return f'<section><h2>Loss</h2>{evaluated}\n<div class="charts">{body}</div>{numbers}</section>'


def _learned(facts: Facts) -> list[tuple[str, str, list[tuple[float, float]]]]:
    """The smoothed loss and the held-out loss, where the trace has them: name, style, points."""
    if facts.trace is None or not facts.trace.has("start"):
        return []
    steps, before = facts.trace.steps, facts.trace.start.held_out
    smoothed = [(float(s.step), float(s.loss_smoothed)) for s in steps if s.loss_smoothed is not None]
    held_out = [(0.0, float(before.loss))] if before is not None else []
    held_out += [(float(s.step), float(s.held_out.loss)) for s in steps if s.held_out is not None]
    found = [("smoothed over the steps", "k3", smoothed), ("on held-out audio", "k2", held_out)]
    return [one for one in found if one[2]]


def _held_out(facts: Facts) -> str:
    """What the training did for audio that it was not shown, in a sentence."""
    trace = facts.trace
    if trace is None or not trace.complete or trace.start.held_out is None:
        return ""
    before, step = trace.start.held_out.loss, trace.end.best_step
    after = next((s.held_out.loss for s in trace.steps if s.step == step and s.held_out is not None), math.nan)
    learned = "less: it learned something that holds" if after < before else "no less: it learned nothing that holds"
    return (
        f"<p>On audio that it was never trained on the loss was {before:.4f} before the training and is {after:.4f} "
        f"with the checkpoint, {learned} for unheard audio of this voice. The checkpoint is that of step {step} of "
        f"{trace.end.steps}, the best one on the held-out audio.</p>"
    )


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


def trend(facts: Facts) -> str:
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
    table = html_table("The newest first", columns, rows)
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

"""Line charts as inline SVG: drawn for a phone's width, scaled up elsewhere, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 68, 10, 12, 36


@dataclass(frozen=True)
class Series:
    """Points ``(x, y)`` in order; a y that is not finite breaks the line. ``style`` is a class of the style sheet."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def line_chart(
    name: str,
    title: str,
    description: str,
    series: Sequence[Series],
    *,
    band: Sequence[tuple[float, float, float]] = (),
    y_label: str = "loss",
    x_label: str = "step",
    limits: tuple[float, float] | None = None,
    ticks: Sequence[tuple[float, str]] | None = None,
) -> str:
    """The SVG of some series over one x axis; with a `band` of `(x, low, high)` behind them.

    `name` makes the ids of title and description unique on the page; both are read by screen readers. `limits` and
    `ticks` of the y axis are found where they are not given.
    """
    xs = [x for one in series for x, _ in one.points] or [0.0, 1.0]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    low, high = limits or _limits(
        [y for one in series for _, y in one.points] + [y for _, a, b in band for y in (a, b)]
    )
    y_ticks = ticks if ticks is not None else _labelled(_nice(low, high, 5))
    if limits is None:
        low, high = min(low, y_ticks[0][0]), max(high, y_ticks[-1][0])

    def x_of(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y_of(y: float) -> float:
        inside = min(max(y, low), high)
        return HEIGHT - BOTTOM - (inside - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def at(x: float, y: float) -> str:
        return f"{x_of(x):.2f},{y_of(y):.2f}"

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>',
    ]
    for value, label in y_ticks:
        y = y_of(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.2f}" y2="{y:.2f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.2f}">{escape(label)}</text>')
    for value in _nice(x_low, x_high, 7, whole=True):
        parts.append(f'<text class="tick mid" x="{x_of(value):.2f}" y="{HEIGHT - BOTTOM + 16}">{value:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick mid" x="{middle}" y="{HEIGHT - 4}">{escape(x_label)}</text>')
    half = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text class="tick mid" transform="translate(11 {half}) rotate(-90)">{escape(y_label)}</text>')
    if band:
        edge = [at(x, b) for x, _, b in band] + [at(x, a) for x, a, _ in reversed(band)]
        parts.append(f'<polygon class="band" points="{" ".join(edge)}"/>')
    for one in series:
        for piece in _pieces(one.points):
            if len(piece) > 1:
                parts.append(f'<polyline class="{one.style}" points="{" ".join(at(x, y) for x, y in piece)}"/>')
            if one.dots or len(piece) == 1:
                parts += [
                    f'<circle class="{one.style}" cx="{x_of(x):.2f}" cy="{y_of(y):.2f}" r="2.2"/>' for x, y in piece
                ]
    parts.append("</svg>")
    return "\n".join(parts)


def legend(series: Sequence[tuple[str, str]]) -> str:
    """Names with a sample of their line: (name, style)."""
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 28 8" aria-hidden="true">'
        f'<line class="{style}" x1="1" x2="27" y1="4" y2="4"/></svg>{escape(name)}</li>'
        for name, style in series
    )
    return f'<ul class="legend">{items}</ul>'


def _pieces(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks with their labels; where those would read alike, the lowest has its value, the others what they add."""
    labels = [f"{value:g}" for value in values]
    if len(set(labels)) < len(labels):
        labels[1:] = [f"+{value - values[0]:.2g}" for value in values[1:]]
    return list(zip(values, labels, strict=True))


def _nice(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """At most about `most` round numbers from `low` to `high`; a little beyond where they would be fewer than two."""
    raw = (high - low) / max(1, most - 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= raw * 0.999)
    if whole:
        step = max(1.0, round(step))
        return [float(n * step) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    first, last = math.floor(low / step), math.ceil(high / step)
    digits = max(12, 3 - math.floor(math.log10(step)))
    return [round(n * step, digits) for n in range(first, last + 1)]

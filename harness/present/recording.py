"""What moved between two recordings, in decimal numbers with up and down: git's own diff of them is hexadecimal floats.

Standard library only. The documents may be anything that JSON holds: what is not as a recording has it is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from harness.present.text import code, table

_ROWS = 60
_DIGEST = re.compile(r"[0-9a-f]{16,}")
_HEX_FLOAT = re.compile(r"-?0x[01]\.[0-9a-f]+p[+-][0-9]+")


def recording_table(old: Any, new: Any) -> list[str]:
    """The lines of a Markdown table with each value that differs; none where nothing does."""
    before, after = dict(_values(old)), dict(_values(new))
    pairs = {name: (before.get(name), after.get(name)) for name in {**before, **after}}
    differ = [(name, a, b) for name, (a, b) in pairs.items() if a != b]
    rows = [[code(name), code(_show(a)), code(_show(b)), _how(a, b)] for name, a, b in differ[:_ROWS]]
    more = [f"and {len(differ) - _ROWS} more values that differ", ""] if len(differ) > _ROWS else []
    return [*table(("what", "before", "after", "change"), rows), *more] if rows else []


def _values(document: Any) -> Iterator[tuple[str, float | str]]:
    """(Name, value) of what a reviewer compares, what matters most first. A hexadecimal float is a number."""
    exact, shape = get(document, "exact"), get(document, "shape")
    losses = list(_losses(get(exact, "curve")))
    if losses:
        yield "first loss", losses[0][1]
        yield "last loss", losses[-1][1]
    yield from _numbers("", get(exact, "end"))
    yield from _numbers("at the start: ", get(exact, "start"))
    for name in ("tensor_digest", "tokens_digest", "dataset_digest", "base_digest"):
        yield from _named({name.replace("_", " "): get(exact, name)})
    yield from _named({f"key: {name}": value for name, value in _items(get(document, "key"))})
    yield from _named({f"tolerance: {name}": value for name, value in _items(get(document, "tolerance"))})
    yield from _named({f"guard: {name}": get(exact, "guard", name) for name in ("width", "measured_drift")})
    if isinstance(steps := get(exact, "curve", "rows"), list):
        yield "steps", float(len(steps))
    for name, text in _items(get(shape, "end")):
        kind, _, words = str(text).rpartition(" ")[0].rpartition(" ")
        yield from _named({f"{name}: type and shape": kind, f"{name}: norm": words})
    for step, loss in losses[1:-1]:
        yield f"loss, step {step}", loss
    for part in ("settings", "environment"):
        yield from _named({f"{part}: {name}": value for name, value in _items(get(document, "provenance", part))})


def _losses(curve: Any) -> Iterator[tuple[str, float]]:
    """(Step, loss) of each row of a curve that has them."""
    columns, rows = get(curve, "columns"), get(curve, "rows")
    if not isinstance(columns, str) or not isinstance(rows, list) or "loss" not in columns.split(" "):
        return
    for row in rows:
        cells = dict(zip(columns.split(" "), str(row).split(" "), strict=False))
        if isinstance(loss := _number(cells.get("loss", "")), float):
            yield cells.get("step", "?"), loss


def _numbers(prefix: str, values: Any) -> Iterator[tuple[str, float | str]]:
    yield from _named({f"{prefix}{name.replace('_', ' ')}": value for name, value in _items(values)})


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, float | str]]:
    for name, value in values.items():
        if isinstance(value, str) and value:
            yield name, _number(value)


def _number(text: str) -> float | str:
    if not _HEX_FLOAT.fullmatch(text):
        return text
    try:
        return float.fromhex(text)
    except OverflowError:
        return text


def _show(value: float | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value[:12] if _DIGEST.fullmatch(value) else value
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else repr(value)


def _how(old: float | str | None, new: float | str | None) -> str:
    """Up or down, by how much, and by which part of the old value."""
    if old is None or new is None:
        return "new" if old is None else "gone"
    if isinstance(old, str) or isinstance(new, str):
        return "another"
    part = f" ({abs(new / old - 1):.2%})" if old and math.isfinite(new / old) and abs(new / old - 1) >= 5e-5 else ""
    return f"{'▲' if new > old else '▼'} {abs(new - old):.3g}{part}"


def get(value: Any, *path: str) -> Any:
    """What lies at a path of nested objects; None where there is nothing."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []

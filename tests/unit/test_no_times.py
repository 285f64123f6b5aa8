"""No test asserts a time: on a busy machine it would fail, and on a fast one it would hold nothing."""

from __future__ import annotations

import ast

import pytest
from imports import ROOT

CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time", "process_time_ns", "time_ns"}
CLOCKS |= {"getrusage", "thread_time", "times"}
SPANS = {"seconds", "cpu_seconds", "elapsed", "duration", "wall_s", "took"}  # as attributes or keys of what ran
ORDERS = ast.Lt | ast.LtE | ast.Gt | ast.GtE


def times_asserted(source: str) -> list[int]:
    """The lines of assertions that one thing which comes from a clock is smaller or greater than another."""
    nodes = list(ast.walk(ast.parse(source)))
    compared = [
        compare
        for check in nodes
        if isinstance(check, ast.Assert)
        for compare in ast.walk(check.test)
        if isinstance(compare, ast.Compare) and any(isinstance(order, ORDERS) for order in compare.ops)
    ]
    timed: set[str] = set()
    assigned = [node for node in nodes if compared and isinstance(node, ast.Assign | ast.AugAssign | ast.NamedExpr)]
    while found := {name for node in assigned if _is_timed(node.value, timed) for name in _targets(node)} - timed:
        timed |= found
    return [one.lineno for one in compared if any(_is_timed(side, timed) for side in (one.left, *one.comparators))]


def _targets(node: ast.Assign | ast.AugAssign | ast.NamedExpr) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def _is_timed(expression: ast.expr, timed: set[str]) -> bool:
    """Whether it is a clock's, or made from what is."""
    for node in ast.walk(expression):
        match node:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if name in CLOCKS:
                return True
            case ast.Call(func=ast.Attribute(value=ast.Name(id="time"), attr="time")):
                return True
            case ast.Attribute(attr=name) | ast.Subscript(slice=ast.Constant(value=name)) if name in SPANS:
                return True
            case ast.Name(id=name) if name in timed:
                return True
    return False


def test_no_test_asserts_a_time() -> None:
    files = sorted((ROOT / "tests").rglob("*.py"))
    found = [f"{path.relative_to(ROOT)}:{line}" for path in files for line in times_asserted(path.read_text())]
    assert not found, f"these assert a time: {', '.join(found)}"


@pytest.mark.parametrize(
    "source",
    [
        "import time\nstart = time.monotonic()\nassert time.monotonic() - start < 5",
        "from time import perf_counter\nstart = perf_counter()\ntook = perf_counter() - start\nassert took <= 1",
        "import time\na = time.time()\nb = time.time()\nspan = b - a\nlimit = 2\nassert limit > span, 'slow'",
        "assert run().cpu_seconds < 3",
        "assert json['seconds'] < 3",
        "assert ok and 0 < ended.elapsed < 3",
        "import time\nassert (took := time.perf_counter() - t) < 1",
    ],
)
def test_an_asserted_time_is_seen(source: str) -> None:
    assert times_asserted(source)


@pytest.mark.parametrize(
    "source",
    [
        "assert run.seconds == 41.0",
        "assert (seconds.std(axis=1) > 1.0).all()",
        "import time\nwhile not done() and time.monotonic() < deadline:\n    time.sleep(1)\nassert done()",
    ],
)
def test_what_is_no_time_is_let_be(source: str) -> None:
    assert not times_asserted(source)

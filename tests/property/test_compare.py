"""Properties of the comparison: nothing is overlooked, nothing equal is red, and a red table is never empty."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.baselines.causes import likely_cause
from harness.baselines.compare import BITS
from harness.baselines.differences import Rule, first_divergence, rows, table, walk
from harness.baselines.result import Key, Result, StepResult, TensorResult, norm_of, total
from harness.numerics.digest import tensor_digest
from harness.numerics.sketch import sketch

UNIVERSAL = Rule("universal", digests=True, loss=1e-11, tensor=1e-9)
TOLERANT = Rule("within tolerance", digests=False, loss=2e-6, tensor=2e-4)
RULES = st.sampled_from([BITS, UNIVERSAL, TOLERANT])
STEPS, CODEBOOKS = 4, 2
LOSS_FIELDS = ("loss", "by_codebook", "start", "end")


def result_of(seed: int) -> Result:
    """A result with everything in it, made of random numbers."""
    random = np.random.default_rng(seed)
    begin = {"a": random.standard_normal((5, 3)), "b": random.standard_normal(4) * 1e-3}
    change = {name: 0.01 * random.standard_normal(value.shape) for name, value in begin.items()}

    def at(step: int) -> dict[str, Any]:
        return {name: begin[name] + change[name] * step for name in begin}

    steps = []
    for step in range(1, STEPS + 1):
        norms = {name: norm_of(value) for name, value in at(step).items()}
        losses = random.uniform(0.5, 5.0, CODEBOOKS)
        steps.append(
            StepResult(
                step=step,
                chunks=f"{step:016x}",
                batch=f"{seed:016x}",
                loss=float(losses.mean()),
                by_codebook=tuple(losses.tolist()),
                valid=(9, 8),
                sanitized=0,
                grad_total=total(norms.values()),
                param_total=total(norms.values()),
                grad=norms,
                param=norms,
                sketch={name: sketch(value) for name, value in at(step).items()} if step in (1, 2) else {},
            )
        )
    values = {name: value.astype(np.float32) for name, value in at(STEPS).items()}
    return Result(
        source="somewhere",
        key=Key("experimental", "universal", "m", "d", "s", ""),
        model="toy",
        numeric_class="c",
        environment={},
        settings={},
        dataset_digest="d" * 64,
        tokens_digest="e" * 64,
        base_digest="f" * 64,
        start_losses={"loss": steps[0].loss, "loss_without_adapters": 4.0},
        start_param={name: norm_of(value) for name, value in begin.items()},
        steps=tuple(steps),
        end_losses={"evaluation loss": 1.5},
        tensor_digest=tensor_digest(values),
        tensors={
            n: TensorResult("float32 5x3" if n == "a" else "float32 4", norm_of(v), sketch(v))
            for n, v in values.items()
        },
        values=values,
    )


def with_loss(result: Result, field: str, step: int, change: Any) -> Result:
    """The result with one loss put through `change`."""
    if field in ("start", "end"):
        name = {"start": "start_losses", "end": "end_losses"}[field]
        losses = dict(getattr(result, name))
        first = next(iter(losses))
        losses[first] = change(losses[first])
        return dataclasses.replace(result, **{name: losses})
    old = result.steps[step]
    if field == "loss":
        new = dataclasses.replace(old, loss=change(old.loss))
    else:
        new = dataclasses.replace(old, by_codebook=(old.by_codebook[0], change(old.by_codebook[1])))
    return dataclasses.replace(result, steps=(*result.steps[:step], new, *result.steps[step + 1 :]))


def red(obtained: Result, expected: Result, rule: Rule) -> bool:
    return any(item.criterion and item.out_of_bounds for item in walk(obtained, expected, rule))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), RULES)
def test_a_result_equals_itself_under_every_rule(seed: int, rule: Rule) -> None:
    items = list(walk(result_of(seed), result_of(seed), rule))
    assert not any(item.out_of_bounds for item in items)
    assert first_divergence(items, STEPS) is None and rows(items) == ([], 0)
    assert {item.part for item in items if item.criterion} >= {"dataset", "tokens", "loss", "checkpoint"}


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 50), st.sampled_from(LOSS_FIELDS), st.integers(0, STEPS - 1), RULES, st.floats(-3, 3))
def test_a_loss_is_red_exactly_beyond_the_tolerance(seed: int, field: str, step: int, rule: Rule, power: float) -> None:
    expected = result_of(seed)
    relative = max(rule.loss, 1e-11) * 10.0**power
    obtained = with_loss(expected, field, step, lambda loss: loss * (1 + relative))
    if abs(power) > 0.01:
        assert red(obtained, expected, rule) == (power > 0 or rule is BITS)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 50), st.sampled_from(LOSS_FIELDS), st.integers(0, STEPS - 1), st.booleans())
def test_one_ulp_of_one_loss_is_red_to_the_bit(seed: int, field: str, step: int, up: bool) -> None:
    expected = result_of(seed)
    obtained = with_loss(expected, field, step, lambda loss: math.nextafter(loss, math.inf if up else -math.inf))
    assert red(obtained, expected, BITS) and not red(obtained, expected, UNIVERSAL)


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 50),
    st.sampled_from(LOSS_FIELDS),
    st.integers(0, STEPS - 1),
    RULES,
    st.sampled_from([math.nan, math.inf, -math.inf, 1e300, 0.0, -1.0]),
)
def test_a_loss_that_exploded_is_red_on_either_side(seed: int, field: str, step: int, rule: Rule, value: float) -> None:
    good = result_of(seed)
    bad = with_loss(good, field, step, lambda loss: value)
    assert red(bad, good, rule) and red(good, bad, rule)
    if not math.isfinite(value):
        assert red(bad, bad, rule), "what is not finite equals nothing"


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 50), st.sampled_from(["a", "b"]), st.floats(-12, -1), st.integers(0, 2**32 - 1))
def test_a_tensor_is_red_beyond_its_tolerance_and_the_sketch_s_error(
    seed: int, name: str, power: float, direction: int
) -> None:
    expected = result_of(seed)
    assert expected.values is not None
    value = expected.values[name].astype(np.float64)
    step = np.random.default_rng(direction).standard_normal(value.shape)
    scale = max(norm_of(value) for value in expected.values.values())
    moved = value + step / norm_of(step) * scale * 10.0**power
    tensors = dict(expected.tensors)
    tensors[name] = TensorResult(tensors[name].kind, norm_of(moved), sketch(moved))
    obtained = dataclasses.replace(expected, tensors=tensors)
    (item,) = (
        i for i in walk(obtained, expected, UNIVERSAL) if i.phase == "checkpoint" and i.what == f"norm of {name}"
    )
    true = norm_of(moved - value)
    first = next(s for s in expected.steps if s.sketch)
    begins = {n: s.sketch - first.sketch[n] for n, s in expected.tensors.items()}
    change = {n: float(np.sqrt((d**2).mean())) for n, d in begins.items()}
    exact = true / max(change[name], 0.01 * total(change.values()))
    if true > 1e-14:
        assert 0.3 * exact <= item.distance <= 2.6 * exact
    assert item.out_of_bounds == (item.distance > 1e-9)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 20), st.integers(0, 20), RULES, st.integers(0, STEPS))
def test_a_red_table_is_never_empty_and_always_short(one: int, two: int, rule: Rule, length: int) -> None:
    obtained, expected = result_of(one), result_of(two)
    obtained = dataclasses.replace(obtained, steps=obtained.steps[:length])
    items = list(walk(obtained, expected, rule))
    chosen, left_out = rows(items)
    bad = [item for item in items if item.criterion and item.out_of_bounds]
    assert bool(chosen) == bool(bad) or one == two
    assert len(chosen) <= 12 and left_out >= 0
    assert left_out + sum(item.criterion for item in chosen) == len(bad)
    assert len(table(chosen, left_out)) <= 14
    where = first_divergence(items, STEPS)
    if bad:
        assert where is not None and where.text() and likely_cause(where, obtained, expected, items)
        assert items.index(where.item) <= items.index(bad[0])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 20), st.integers(0, STEPS), st.integers(0, STEPS))
def test_traces_of_different_lengths_are_red(seed: int, one: int, two: int) -> None:
    result = result_of(seed)
    a, b = (dataclasses.replace(result, steps=result.steps[:count]) for count in (one, two))
    assert red(a, b, UNIVERSAL) == (one != two)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 20), st.sampled_from(["dataset_digest", "tokens_digest", "base_digest", "tensor_digest"]), RULES)
def test_every_digest_counts(seed: int, name: str, rule: Rule) -> None:
    expected = result_of(seed)
    changed = dataclasses.replace(expected, **{name: "0" * 64})
    assert red(changed, expected, rule) == (rule.digests or name != "tensor_digest")
    assert red(dataclasses.replace(expected, **{name: ""}), expected, rule) or name == "tensor_digest"


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 20), st.sampled_from(["chunks", "batch", "valid", "sanitized"]), st.integers(0, STEPS - 1), RULES)
def test_everything_in_a_step_counts(seed: int, name: str, step: int, rule: Rule) -> None:
    expected = result_of(seed)
    value: Any = {"chunks": "x", "batch": "x", "valid": (9, 7), "sanitized": 1}[name]
    changed = dataclasses.replace(expected.steps[step], **{name: value})
    obtained = dataclasses.replace(expected, steps=(*expected.steps[:step], changed, *expected.steps[step + 1 :]))
    items = list(walk(obtained, expected, rule))
    where = first_divergence(items, STEPS)
    assert red(obtained, expected, rule) and where is not None
    assert (where.step, where.phase) == (step + 1, {"chunks": "data", "batch": "tokens"}.get(name, "forward"))

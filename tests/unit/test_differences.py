"""What a comparison lists, by hand: every value, in the order of a run, with its distance and what is allowed."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Any

import numpy as np
import pytest

from harness.baselines.compare import BITS
from harness.baselines.differences import (
    EQUAL_SKETCH,
    ROUNDED_SKETCH,
    Item,
    Rule,
    first_divergence,
    moved,
    rounding,
    settings_changed,
    walk,
)
from harness.baselines.result import EXTERNAL, PARTS, Key, Result, StepResult, TensorResult, kind_of, norm_of, total
from harness.numerics.digest import tensor_digest

UNIVERSAL = Rule("universal", digests=True, loss=1e-11, tensor=1e-9)
TOLERANT = Rule("within tolerance", digests=False, loss=2e-6, tensor=2e-4)


def flat(value: float) -> Any:
    """A sketch whose distance from another one is the difference of their values."""
    return np.full(4, value)


STEP = StepResult(
    step=1,
    chunks="c",
    batch="t",
    loss=2.0,
    by_codebook=(1.0, 3.0),
    valid=(4, 3),
    sanitized=0,
    grad_total=5.0,
    param_total=10.0,
    grad={"a": 3.0, "b": 4.0},
    param={"a": 6.0, "b": 8.0},
    sketch={"a": flat(1.0), "b": flat(1.0)},
)
RESULT = Result(
    source="somewhere",
    key=Key("experimental", "universal", "m", "d", "s", ""),
    model="toy",
    numeric_class="c",
    environment={},
    settings={},
    dataset_digest="d",
    tokens_digest="e",
    base_digest="f",
    start_losses={"loss": 2.0},
    start_param={"a": 3.0, "b": 4.0},
    steps=(STEP, dataclasses.replace(STEP, step=2, sketch={})),
    end_losses={"evaluation loss": 2.0},
    tensor_digest="g",
    tensors={"a": TensorResult("float32 4", 6.0, flat(3.0)), "b": TensorResult("float32 4", 8.0, flat(1.0))},
)


def with_step(**changes: Any) -> Result:
    """The result with another second step."""
    return dataclasses.replace(RESULT, steps=(RESULT.steps[0], dataclasses.replace(RESULT.steps[1], **changes)))


def with_first_step(**changes: Any) -> Result:
    return dataclasses.replace(RESULT, steps=(dataclasses.replace(STEP, **changes), RESULT.steps[1]))


def item(obtained: Result, what: str, rule: Rule = BITS, expected: Result = RESULT) -> Item:
    """The one item of that name."""
    (found,) = (i for i in walk(obtained, expected, rule) if i.what == what)
    return found


def of_step(n: int) -> list[tuple[str, int, str, str, str, bool]]:
    where = f", step {n}"
    sketches = [("checkpoint", n, "optimizer", f"{name} after step {n}", name, True) for name in "ab"]
    return [
        ("loss", n, "forward", f"loss{where}", "", True),
        ("loss", n, "forward", f"loss of codebook 0{where}", "", True),
        ("loss", n, "forward", f"loss of codebook 1{where}", "", True),
        ("loss", n, "forward", f"valid positions{where}", "", True),
        ("loss", n, "forward", f"sanitized logits{where}", "", True),
        *(
            ("checkpoint", n, "backward", f"norm of the gradient of {name}{where}", name, True)
            for name in ("a", "b", "all")
        ),
        *(sketches if n == 1 else ()),
        *(
            ("checkpoint", n, "optimizer", f"norm of the value of {name}{where}", name, True)
            for name in ("a", "b", "all")
        ),
    ]


def in_front(n: int) -> list[tuple[str, int, str, str, str, bool]]:
    return [
        ("loss", n, "data", f"order of chunks, step {n}", "", True),
        ("loss", n, "tokens", f"digest of the batch, step {n}", "", True),
    ]


@pytest.mark.parametrize("rule", [BITS, UNIVERSAL, TOLERANT], ids=lambda rule: rule.name)
def test_every_value_is_listed_once_in_the_order_of_a_run(rule: Rule) -> None:
    digest = "guarded tensor digest" if rule is UNIVERSAL else "tensor digest"
    found = list(walk(RESULT, RESULT, rule))
    assert [(i.part, i.step, i.phase, i.what, i.tensor, i.criterion) for i in found] == [
        ("dataset", 0, "data", "dataset digest", "", True),
        ("tokens", 0, "tokens", "tokens digest", "", True),
        ("loss", 0, "start", "digest of the frozen model", "", True),
        ("checkpoint", 0, "start", "norm of the initial value of a", "a", True),
        ("checkpoint", 0, "start", "norm of the initial value of b", "b", True),
        *in_front(1),
        ("loss", 0, "start", "loss before the first step", "", True),
        *of_step(1),
        *in_front(2),
        *of_step(2),
        ("loss", 3, "forward", "steps in the trace", "", True),
        ("loss", 3, "evaluation", "evaluation loss", "", True),
        ("checkpoint", 3, "checkpoint", "dtype and shape of a", "a", True),
        ("checkpoint", 3, "checkpoint", "norm of a", "a", rule is not BITS),
        ("checkpoint", 3, "checkpoint", "dtype and shape of b", "b", True),
        ("checkpoint", 3, "checkpoint", "norm of b", "b", rule is not BITS),
        *([("checkpoint", 3, "checkpoint", digest, "", True)] if rule.digests else []),
    ]
    assert {i.distance for i in found} == {0.0}
    for i in found:
        if i.what.startswith(("loss", "evaluation")):
            assert i.allowed == rule.loss
        elif i.what.startswith("norm of the"):  # rounded sums: in universal mode they may differ as losses may
            assert i.allowed == {BITS: 0.0, UNIVERSAL: 1e-11, TOLERANT: 2e-4}[rule]
        elif "after step" in i.what:
            assert i.allowed == max(rule.tensor, 1e-5)
        elif i.what.startswith("norm of"):
            assert i.allowed == (rule.tensor or 1e-9)
        else:
            assert i.allowed == 0.0


@pytest.mark.parametrize("rule", [BITS, UNIVERSAL, TOLERANT], ids=lambda rule: rule.name)
def test_distances_are_relative_to_what_was_recorded(rule: Rule) -> None:
    assert item(with_step(loss=3.0), "loss, step 2", rule).distance == 0.5
    assert item(with_step(by_codebook=(1.0, 6.0)), "loss of codebook 1, step 2", rule).distance == 1.0
    grad, param = "norm of the gradient of a, step 2", "norm of the value of a, step 2"
    assert item(with_step(grad={"a": 6.0}), grad, rule).distance == 1.0
    assert item(with_step(param={"a": 3.0}), param, rule).distance == 0.5
    # A gradient near nothing is measured by 1 % of all gradients.
    small = dataclasses.replace(RESULT, steps=(dataclasses.replace(STEP, grad={"a": 0.0, "b": 100.0}),))
    other = dataclasses.replace(RESULT, steps=(dataclasses.replace(STEP, grad={"a": 0.5, "b": 100.0}),))
    assert item(other, "norm of the gradient of a, step 1", rule, small).distance == 0.5
    # A tensor by its change since the first sketch (here 2), and no less than 1 % of all change.
    for name, start, distance in (("a", 3.0, 0.25), ("b", 1.0, 25.0)):
        tensors = {**RESULT.tensors, name: TensorResult("float32 4", 1.0, flat(start + 0.5))}
        moved = dataclasses.replace(RESULT, tensors=tensors)
        assert item(moved, f"norm of {name}", rule).distance == pytest.approx(distance, rel=1e-12)
        sketches = {**STEP.sketch, name: flat(1.5)}
        assert item(with_first_step(sketch=sketches), f"{name} after step 1", rule).distance == pytest.approx(
            distance, rel=1e-12
        )


def test_without_a_sketch_on_the_way_a_tensor_is_measured_by_its_norm() -> None:
    bare = with_first_step(sketch={})
    tensors = {**RESULT.tensors, "a": TensorResult("float32 4", 1.0, flat(6.0))}
    assert item(dataclasses.replace(bare, tensors=tensors), "norm of a", UNIVERSAL, bare).distance == 0.5
    # Sketches of another length say nothing of each other.
    tensors["a"] = TensorResult("float32 4", 6.0, np.full(3, 3.0))
    assert item(dataclasses.replace(bare, tensors=tensors), "norm of a", UNIVERSAL, bare).distance == math.inf
    longer = with_first_step(sketch={"a": np.full(3, 1.0)})
    moved = dataclasses.replace(longer, tensors={**RESULT.tensors, "a": TensorResult("float32 4", 1.0, flat(6.0))})
    assert item(moved, "norm of a", UNIVERSAL, longer).distance == 0.5


def test_a_tensor_that_never_was_anything_has_no_distance_to_another() -> None:
    nothing = {"a": TensorResult("float32 4", 0.0, flat(0.0))}
    expected = dataclasses.replace(with_first_step(sketch={}), tensors=nothing)
    obtained = dataclasses.replace(expected, tensors={"a": TensorResult("float32 4", 1e-30, flat(1e-30))})
    assert item(obtained, "norm of a", TOLERANT, expected).distance == math.inf
    assert item(expected, "norm of a", TOLERANT, expected).distance == 0.0


def test_to_the_bit_the_sign_of_a_zero_counts() -> None:
    for field, what in (("start_losses", "loss before the first step"), ("end_losses", "evaluation loss")):
        name = next(iter(getattr(RESULT, field)))
        zero, minus = (dataclasses.replace(RESULT, **{field: {name: value}}) for value in (0.0, -0.0))
        assert item(minus, what, BITS, zero).distance == math.inf
        assert item(minus, what, UNIVERSAL, zero).distance == 0.0
    zero, minus = with_step(grad={"a": 0.0}), with_step(grad={"a": -0.0})
    assert item(minus, "norm of the gradient of a, step 2", BITS, zero).distance == math.inf
    assert item(minus, "norm of the gradient of a, step 2", UNIVERSAL, zero).distance == 0.0


@pytest.mark.parametrize("field", ["start_losses", "end_losses"])
def test_a_loss_that_one_side_lacks_is_out_of_bounds(field: str) -> None:
    less = dataclasses.replace(RESULT, **{field: {}})
    for obtained, expected in ((less, RESULT), (RESULT, less)):
        for rule in (BITS, UNIVERSAL, TOLERANT):
            assert [i.distance for i in walk(obtained, expected, rule) if i.out_of_bounds] == [math.inf]
    shorter = with_step(by_codebook=(1.0,))
    for obtained, expected in ((shorter, RESULT), (RESULT, shorter)):
        (found,) = (i for i in walk(obtained, expected, TOLERANT) if i.out_of_bounds)
        assert (found.what, found.distance) == ("loss of codebook 1, step 2", math.inf)


def test_a_tensor_that_one_side_lacks_is_out_of_bounds() -> None:
    less = dataclasses.replace(RESULT, tensors={"a": RESULT.tensors["a"]})
    for obtained, expected in ((less, RESULT), (RESULT, less)):
        found = [i for i in walk(obtained, expected, TOLERANT) if i.out_of_bounds]
        assert [(i.what, i.distance) for i in found] == [("dtype and shape of b", math.inf)]


def test_a_digest_that_neither_side_has_agrees_with_nothing() -> None:
    none = dataclasses.replace(RESULT, tensor_digest="")
    assert item(none, "tensor digest", BITS, none).distance == math.inf


@pytest.mark.parametrize(("one", "two", "step"), [(0, 2, 1), (1, 2, 2), (2, 1, 2), (2, 2, 3)])
def test_what_comes_after_training_is_one_step_behind_the_common_ones(one: int, two: int, step: int) -> None:
    a, b = (dataclasses.replace(RESULT, steps=RESULT.steps[:count]) for count in (one, two))
    ends = {i.step for i in walk(a, b, BITS) if i.phase in ("evaluation", "checkpoint")}
    assert ends == {step} == {item(a, "steps in the trace", BITS, b).step}


def test_a_difference_that_only_a_sketch_shows_is_found_where_it_begins() -> None:
    turned = with_first_step(sketch={"a": flat(1.0 + 4e-5), "b": flat(1.0)})
    where = first_divergence(walk(turned, RESULT, BITS), 2)
    assert where is not None and (where.step, where.phase, where.tensors) == (1, "optimizer", ("a",))
    assert where.tensors_known == 2
    rounded = with_first_step(sketch={"a": flat(1.0 + 1e-8), "b": flat(1.0 + 1e-9)})
    assert first_divergence(walk(rounded, RESULT, BITS), 2) is None
    assert (ROUNDED_SKETCH, EQUAL_SKETCH) == (1e-5, 1e-9)


def test_the_tensors_of_a_divergence_are_sorted_the_farthest_first() -> None:
    grads = {"a": 3.0 * 1.5, "b": 4.0 * 2.0}
    moved = with_first_step(grad=grads, param={"a": 9.0, "b": 8.0}, grad_total=7.0)
    where = first_divergence(walk(moved, RESULT, BITS), 2)
    assert where is not None
    assert (where.step, where.steps, where.phase, where.tensors) == (1, 2, "backward", ("b", "a"))
    unknown = with_first_step(grad={"a": 4.0, "b": math.nan})
    where = first_divergence(walk(unknown, RESULT, BITS), 2)
    assert where is not None and where.tensors == ("b", "a"), "what has no distance is the farthest"
    only_all = with_first_step(grad_total=7.0)
    where = first_divergence(walk(only_all, RESULT, BITS), 2)
    assert where is not None and where.tensors == () and where.item.tensor == "all"


def test_the_tensors_of_a_divergence_are_those_of_its_place_alone() -> None:
    moved = with_first_step(grad={"a": 4.0, "b": 4.0}, param={"a": 6.0, "b": 9.0})
    where = first_divergence(walk(moved, RESULT, BITS), 2)
    assert where is not None and (where.phase, where.tensors, where.tensors_known) == ("backward", ("a",), 2)


def test_a_sketch_of_a_tensor_that_is_not_in_the_end_has_no_scale() -> None:
    expected, moved = (with_first_step(sketch={"c": flat(value)}) for value in (1e4, 2e4))
    found = item(moved, "c after step 1", BITS, expected)
    assert (found.distance, found.allowed) == (math.inf, ROUNDED_SKETCH)


def test_an_infinity_on_one_side_is_infinitely_far() -> None:
    infinite = with_step(loss=math.inf)
    assert item(infinite, "loss, step 2").distance == math.inf
    assert item(RESULT, "loss, step 2", BITS, infinite).distance == math.inf


def test_how_far_a_sketch_may_lie_from_its_rounded_values() -> None:
    assert rounding(flat(8.0), 4.0) == 2 * 8.0 * 2.0**-24 / 4.0
    assert rounding(flat(8.0), 0.0) == 0.0
    hardly = {"a": TensorResult("float32 4", 2048.0, flat(1024.5)), "b": RESULT.tensors["b"]}
    moves = dataclasses.replace(with_first_step(sketch={"a": flat(1024.0), "b": flat(1.0)}), tensors=hardly)
    assert item(moves, "a after step 1", BITS, moves).allowed == 1024.0 * 2.0**-22


def test_what_is_too_small_for_a_quotient_is_no_equality() -> None:
    obtained = with_step(loss=math.nextafter(1e300, 0.0), by_codebook=(1e-320, 3.0))
    expected = with_step(loss=1e300, by_codebook=(2e-320, 3.0))
    assert item(obtained, "loss, step 2", BITS, expected).distance > 0.0
    assert item(obtained, "loss of codebook 0, step 2", BITS, expected).distance == pytest.approx(0.5, rel=1e-3)
    zero, least = (with_step(grad={"a": value, "b": 1e6}) for value in (0.0, math.ulp(0.0)))
    assert item(least, "norm of the gradient of a, step 2", BITS, zero).distance == math.ulp(0.0)
    zero = with_step(loss=0.0)
    assert item(with_step(loss=1e-300), "loss, step 2", UNIVERSAL, zero).distance == math.inf
    negative = with_step(loss=-2.0)
    assert item(with_step(loss=-3.0), "loss, step 2", UNIVERSAL, negative).distance == 0.5


# What is compared.


def test_a_run_s_digest_leaves_out_what_the_recording_s_leaves_out() -> None:
    values = {"w": np.arange(6, dtype=np.float32)}
    positions = {"w": [2]}
    run = dataclasses.replace(RESULT, values=values, tensor_digest=tensor_digest(values))
    kept = dataclasses.replace(RESULT, guarded=positions, tensor_digest=tensor_digest(values, positions))
    assert run.digest_as(kept) == kept.tensor_digest != run.tensor_digest
    assert run.digest_as(RESULT) == run.tensor_digest and kept.digest_as(run) == kept.tensor_digest
    assert run.digest_as(dataclasses.replace(kept, guarded={"other": [0]})) == ""
    for place, distance in ((2, 0.0), (3, math.inf)):
        moved = {"w": values["w"].copy()}
        moved["w"][place] += 1
        drifted = dataclasses.replace(run, values=moved, tensor_digest=tensor_digest(moved))
        assert item(drifted, "guarded tensor digest", UNIVERSAL, kept).distance == distance


def test_an_external_lane_need_not_give_every_part() -> None:
    key = dataclasses.replace(RESULT.key, mode=EXTERNAL)
    assert RESULT.parts == dataclasses.replace(RESULT, key=key).parts == PARTS
    bare = dataclasses.replace(RESULT, dataset_digest="", tokens_digest="", steps=(), tensors={})
    assert bare.parts == PARTS and dataclasses.replace(bare, key=key).parts == ("checkpoint",)


def test_a_key_s_digest_is_that_of_its_fields_in_the_order_of_their_names() -> None:
    text = (
        '{"dataset_digest": "d", "lane": "experimental", "mode": "universal", "model_digest": "m", '
        '"numeric_class": "", "settings_digest": "s"}'
    )
    assert RESULT.key.digest() == hashlib.sha256(text.encode()).hexdigest()
    assert RESULT.key.differing(Key("experimental", "native", "m", "d", "s", "c")) == ["mode", "numeric_class"]


def test_what_one_side_alone_has_is_among_what_moved() -> None:
    one = dataclasses.replace(RESULT, environment={"numpy": "2", "torch": "1"}, settings={"rank": "4", "steps": "3"})
    two = dataclasses.replace(RESULT, environment={"torch": "1", "triton": "3"}, settings={"seed": "0", "steps": "3"})
    assert moved(two, one) == ["numpy 2 → none", "triton none → 3"]
    assert moved(one, two) == ["numpy none → 2", "triton 3 → none"]
    assert settings_changed(two, one) == ["rank 4 → none", "seed none → 0"]
    assert moved(one, one) == settings_changed(one, one) == []


@pytest.mark.parametrize(
    ("obtained", "expected", "changes"),
    [("d", "c", ["numeric class c → d"]), ("c", "c", []), ("", "c", []), ("c", "", []), ("", "", [])],
)
def test_the_numeric_class_moved_where_both_sides_have_another(
    obtained: str, expected: str, changes: list[str]
) -> None:
    sides = [dataclasses.replace(RESULT, numeric_class=numeric_class) for numeric_class in (obtained, expected)]
    assert moved(*sides) == changes


def test_norms_are_those_of_all_values() -> None:
    assert norm_of(np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)) == 5.0
    assert norm_of(np.full(4, 1e30, np.float32)) == pytest.approx(2e30, rel=1e-6)
    assert total([3.0, 4.0]) == 5.0 and total([]) == 0.0
    assert math.isnan(total([1.0, math.inf])) and math.isnan(total([1e200, 1.0])) and math.isnan(total([math.nan]))
    assert kind_of(np.zeros((2, 3), np.float32)) == "float32 2x3"

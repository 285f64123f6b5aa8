"""The logit sanitizer, for any logits and any mask: what it hides it counts, and what is sound it leaves alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lazy import Lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.lane import objective
else:
    torch, objective = Lazy("torch"), Lazy("harness.lane.objective")

NAN, INF = float("nan"), float("inf")
CPU_CLAMP = 30.0
SPECIAL = [NAN, INF, -INF, 0.0, -0.0, 30.0, -30.0, 30.25, -1e4, 1e38, -3e38, 1e-45, -1e-40, 1e-310, 5e-324]
VALUES = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32), st.floats(-40, 40, width=32))
DTYPES = st.sampled_from(["float32", "bfloat16", "float64"])


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits of any shape and dtype, and a mask of their shape less the last axis."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    count = int(torch.tensor(shape).prod())
    logits = torch.tensor(draw(st.lists(VALUES, min_size=count, max_size=count)), dtype=torch.float64)
    rows = count // shape[-1]
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), dtype=torch.bool)
    return logits.reshape(shape).to(getattr(torch, draw(DTYPES))), mask.reshape(shape[:-1])


def sanitize(logits: Tensor, mask: Tensor) -> Any:
    return objective.sanitize(logits, mask)


def masked_cross_entropy(logits: Tensor, codes: Tensor, mask: Tensor) -> Any:
    return objective.masked_cross_entropy(logits, codes, mask)


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bits: NaNs can be equal, and zeros of either sign differ."""
    return tensor.detach().contiguous().view(torch.uint8)


def everywhere(mask: Tensor, logits: Tensor) -> Tensor:
    return mask[..., None].expand_as(logits)


@given(cases())
def test_result_is_finite_and_zero_where_the_mask_is_false(case: tuple[Tensor, Tensor]) -> None:
    logits, mask = case
    clean = sanitize(logits, mask).logits
    assert clean.shape == logits.shape
    assert clean.dtype == logits.dtype
    assert torch.isfinite(clean).all()
    assert clean.abs().max() <= CPU_CLAMP
    assert not clean[~mask].any()


@given(cases())
def test_sound_values_come_back_bit_for_bit(case: tuple[Tensor, Tensor]) -> None:
    logits, mask = case
    clean = sanitize(logits, mask).logits
    sound = everywhere(mask, logits) & torch.isfinite(logits) & (logits.abs() <= CPU_CLAMP)
    assert torch.equal(bits(clean[sound]), bits(logits[sound]))


@given(cases())
def test_count_is_exact(case: tuple[Tensor, Tensor]) -> None:
    logits, mask = case
    expected = sum(
        1
        for row, valid in zip(logits.reshape(-1, logits.shape[-1]).tolist(), mask.flatten().tolist(), strict=True)
        for value in row
        if valid and (value != value or value in (INF, -INF))
    )
    assert int(sanitize(logits, mask).replaced) == expected


@given(cases(), VALUES)
def test_invalid_positions_are_never_read(case: tuple[Tensor, Tensor], other: float) -> None:
    """Whatever stands where the mask is false, result, count and gradient are the same."""
    logits, mask = case
    # Through float64: a value that the dtype cannot hold becomes an infinity there, and no error.
    changed = torch.where(everywhere(mask, logits), logits, torch.tensor(other, dtype=torch.float64).to(logits.dtype))
    results = []
    for values in (logits, changed):
        leaf = values.clone().requires_grad_()
        result = sanitize(leaf, mask)
        result.logits.sum().backward()
        assert leaf.grad is not None
        results.append((bits(result.logits), int(result.replaced), bits(leaf.grad)))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert torch.equal(results[0][2], results[1][2])


@given(cases())
def test_idempotent(case: tuple[Tensor, Tensor]) -> None:
    logits, mask = case
    once = sanitize(logits, mask).logits
    twice = sanitize(once, mask)
    assert torch.equal(bits(twice.logits), bits(once))
    assert int(twice.replaced) == 0


@given(cases())
def test_nan_is_zero_infinity_is_the_bound_and_order_is_kept(case: tuple[Tensor, Tensor]) -> None:
    logits, mask = case
    valid, clean = everywhere(mask, logits), sanitize(logits, mask).logits
    assert not clean[valid & torch.isnan(logits)].any()
    assert (clean[valid & (logits == INF)] == CPU_CLAMP).all()
    assert (clean[valid & (logits == -INF)] == -CPU_CLAMP).all()
    ordered = valid & ~torch.isnan(logits)
    assert (clean[ordered][logits[ordered].argsort()].diff() >= 0).all()


@given(cases(), st.integers(0, 2**32 - 1))
def test_gradient_is_the_plain_one_zero_where_replaced_and_never_non_finite(
    case: tuple[Tensor, Tensor], seed: int
) -> None:
    logits, mask = case
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    (sanitize(leaf, mask).logits * weight.to(logits.dtype)).sum().backward()
    grad = leaf.grad
    assert grad is not None
    assert torch.isfinite(grad).all()
    valid = everywhere(mask, logits)
    sound = valid & torch.isfinite(logits) & (logits.abs() <= CPU_CLAMP)
    assert torch.equal(bits(grad[sound]), bits(weight.to(logits.dtype)[sound]))
    assert not grad[~valid].any()
    assert not grad[~torch.isfinite(logits)].any()


@given(cases())
def test_input_is_not_changed(case: tuple[Tensor, Tensor]) -> None:
    logits, mask = case
    before, mask_before = logits.clone(), mask.clone()
    sanitize(logits, mask)
    assert torch.equal(bits(logits), bits(before))
    assert torch.equal(mask, mask_before)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Logits ``[B, K, T, card]``, codes and a mask with at least one valid position in each codebook."""
    b, k, t, card = draw(st.tuples(*[st.integers(1, 3)] * 3, st.integers(2, 5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    logits = 5 * torch.randn((b, k, t, card), generator=generator, dtype=torch.float64)
    codes = torch.randint(0, card, (b, k, t), generator=generator)
    mask = torch.rand((b, k, t), generator=generator) < 0.7
    mask[:, :, draw(st.integers(0, t - 1))] = True
    return logits, codes, mask


@settings(max_examples=40)
@given(batches())
def test_loss_and_its_gradient_are_those_of_the_valid_positions_alone(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """NaN in every invalid position, as audiocraft gives it: the plain loss, taken one position at a time."""
    logits, codes, mask = batch
    poisoned = torch.where(everywhere(mask, logits), logits, torch.full_like(logits, NAN)).requires_grad_()
    plain = logits.clone().requires_grad_()
    by_codebook = []
    for k in range(codes.shape[1]):
        positions = mask[:, k].nonzero().tolist()
        losses = [plain[b, k, t].logsumexp(0) - plain[b, k, t, codes[b, k, t]] for b, t in positions]
        by_codebook.append(torch.stack(losses).mean())
    expected = torch.stack(by_codebook)
    found = masked_cross_entropy(poisoned, codes, mask)
    assert int(found.replaced) == 0
    assert torch.allclose(found.by_codebook, expected, rtol=1e-12, atol=1e-12)
    assert found.total.item() == pytest.approx(expected.mean().item(), rel=1e-12)
    found.total.backward()
    expected.mean().backward()
    assert poisoned.grad is not None
    assert plain.grad is not None
    assert torch.isfinite(poisoned.grad).all()
    assert torch.allclose(poisoned.grad, plain.grad, rtol=1e-10, atol=1e-14)


@given(batches(), st.sampled_from([NAN, INF, -INF]))
def test_what_the_loss_hides_it_counts(batch: tuple[Tensor, Tensor, Tensor], value: float) -> None:
    logits, codes, mask = batch
    b, k, t = mask.nonzero()[0].tolist()
    logits = logits.clone()
    logits[b, k, t, 0] = value
    found = masked_cross_entropy(logits, codes, mask)
    assert int(found.replaced) == 1
    assert torch.isfinite(found.total)

"""What no file can show: probed with audiocraft itself and with the lane's functions, not with what the lane says.

The expectations here are worked out from the audio on the disk by the shortest way there is (decode, encode,
cross-entropy on the valid positions), without the lane's code for it. A lane that trains on other codes, shifts its
targets or counts invalid positions has another first loss.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from truth import Truth

from harness.evidence import RunEvidence
from harness.gates.training import Measured, held_out_of

pytestmark = pytest.mark.smoke

LIMITS = {"universal": 1e-9, "portable": 1e-4, "native": 1e-4}  # relative; the model's own loss in float64 is the truth
HALF = 5e-3  # on a GPU, where the frozen model computes in float16


def is_half(lane_run: RunEvidence) -> bool:
    return bool(lane_run.environment["device"] != "cpu")


def limit_of(lane_run: RunEvidence) -> float:
    """How far, relatively, a loss may be from the model's own in float64."""
    return HALF if is_half(lane_run) else LIMITS[lane_run.trace.header.mode]


def test_tokens_are_the_codecs_own_of_the_audio(lane_run: RunEvidence, truth: Truth, measured: Measured) -> None:
    """The tokens of the first batch, and of audio at each other rate, are those of audiocraft's codec."""
    told = [tokens_agree(lane_run, truth, lane_run.trace.steps[0].chunks, truth.codes, "the first batch's")]
    for rate, chunks in truth.resampled_chunks().items():
        codes = truth.encoded(truth.waves_of(truth.places(chunks)))
        told.append(f"at {rate:,} Hz " + tokens_agree(lane_run, truth, chunks, codes, f"the audio's at {rate:,} Hz"))
    measured("; ".join(told))


def tokens_agree(lane_run: RunEvidence, truth: Truth, chunks: list[int], codes: Any, whose: str) -> str:
    """Fails unless the tokens of these chunks are the codec's own, ``codes``; returns in words how far they are."""
    samples = codes.shape[2] * round(truth.model.sample_rate / truth.model.frame_rate)
    assert lane_run.trace.tokens.samples == samples, "the trace says another length of a chunk, in samples"
    found, expected = lane_run.tokens[chunks], codes.numpy()
    assert found.shape == expected.shape
    differing = float((found != expected).mean())
    # Resampled audio gives the same tokens too (measured: none of 30,000 differs, and a resampler without its low-pass
    # moves 0.07 % of bright audio's); only what decodes to other samples after a seek may move one.
    allowed = 0.0 if truth.is_exact(chunks) else 0.002
    if sum(parameter.numel() for parameter in truth.model.compression_model.parameters()) >= 5_000_000:
        allowed = max(allowed, 0.01)  # the lane encodes with a codec of that size in float32, which flips near-ties
    assert differing <= allowed, f"{differing:.2%} of {whose} tokens are not the codec's tokens of the audio"
    return f"{differing:.2%} of {found.size:,} tokens differ, {allowed:.0%} allowed"


def test_first_loss_is_the_models_own_on_the_audio(lane_run: RunEvidence, truth: Truth, measured: Measured) -> None:
    """The lane's first loss is the one that audiocraft's model has on the audio, by codebook and as a mean."""
    import torch

    limit = limit_of(lane_run)
    codes = torch.from_numpy(lane_run.tokens[lane_run.trace.steps[0].chunks].astype(np.int64))
    expected = truth.losses(codes).numpy()
    found = np.array(lane_run.trace.steps[0].loss_by_codebook)
    worst = float(np.max(np.abs(found - expected) / expected))
    measured(f"at most {worst:.1e} apart, relatively; {limit:.0e} allowed")
    assert worst <= limit, f"by codebook the lane's first loss is {found}, the model's own is {expected}"
    total = lane_run.trace.steps[0].loss
    assert abs(total - expected.mean()) <= limit * total, (
        f"the first loss is {total!r}; the mean over the codebooks is {expected.mean()!r}"
    )


def test_checkpoint_names_the_model_that_it_was_trained_on(
    lane_run: RunEvidence, truth: Truth, measured: Measured
) -> None:
    """The checkpoint has the fingerprint of the model: over names, shapes and float16 values of its tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(truth.model.lm.state_dict().items()):
        digest.update(f"{name}\0{list(tensor.shape)}\0".encode() + tensor.numpy().astype(np.float16).tobytes())
    found = lane_run.checkpoint.meta["model_fingerprint"]
    measured(f"fingerprint {str(found)[:12]}")
    assert found == digest.hexdigest(), f"the checkpoint names the model {found}, and it is {digest.hexdigest()}"


def test_checkpoint_gives_the_loss_that_training_ended_with(
    lane_run: RunEvidence, truth: Truth, measured: Measured
) -> None:
    """The checkpoint, put into audiocraft's model, gives the loss that the lane says training ended with."""
    import torch

    from harness.lane.adapter import attach
    from harness.lane.checkpoint import load_adapters

    adapters = truth.fresh_adapters()
    load_adapters(lane_run.checkpoint_path, adapters)
    codes = torch.from_numpy(lane_run.tokens[lane_run.trace.start.chunks].astype(np.int64))
    hook = attach(truth.model.lm, adapters)
    found = float(truth.losses(codes).mean())
    hook.remove()
    said = lane_run.trace.end.eval_loss
    # The checkpoint is rounded to float32, which moves the loss by about 1e-8 of itself.
    limit = max(limit_of(lane_run), 1e-6)
    measured(f"{found:.9g}, the lane says {said:.9g}; {limit:.0e} apart, relatively, is allowed")
    assert abs(found - said) <= limit * said, (
        f"with the checkpoint the first batch's loss is {found!r}; the lane says {said!r}"
    )


def test_held_out_loss_is_the_models_own_on_the_audio(lane_run: RunEvidence, truth: Truth, measured: Measured) -> None:
    """The held-out loss, before the training and of the checkpoint, is audiocraft's model's own on that audio."""
    import torch

    from harness.lane.adapter import attach
    from harness.lane.checkpoint import load_adapters

    before, after = held_out_of(lane_run)
    limit = max(limit_of(lane_run), 1e-6)  # the checkpoint is rounded to float32
    chunks = lane_run.trace.start.held_out_chunks
    tokens_agree(lane_run, truth, chunks, truth.held_out_codes, "the held-out audio's")
    adapters = truth.fresh_adapters()
    load_adapters(lane_run.checkpoint_path, adapters)
    codes = torch.from_numpy(lane_run.tokens[chunks].astype(np.int64))
    without = truth.losses(codes).numpy()
    hooks = attach(truth.model.lm, adapters)
    trained = truth.losses(codes).numpy()
    hooks.remove()
    written = dict(after)[lane_run.trace.end.best_step]
    said = {"before the training": (before, without), "of the checkpoint": (written, trained)}
    worst = 0.0
    for when, (told, expected) in said.items():
        apart = np.abs(np.array([told.loss, *told.loss_by_codebook]) - [expected.mean(), *expected]) / expected.mean()
        worst = max(worst, float(apart.max()))
        assert float(apart.max()) <= limit, (
            f"{when} the held-out loss is said to be {told.loss!r}; the model's own on that audio is "
            f"{expected.mean()!r}"
        )
    measured(f"at most {worst:.1e} apart, relatively; {limit:.0e} allowed")


def test_every_adapter_tensor_moved(lane_run: RunEvidence, truth: Truth, measured: Measured) -> None:
    """The training moved every tensor of the adapter away from where it starts."""
    start = {name: value.detach().float().numpy() for name, value in truth.fresh_adapters().state_dict().items()}
    trained = lane_run.checkpoint.tensors
    assert set(trained) == set(start), f"other tensors than the adapter's: {sorted(set(trained) ^ set(start))}"
    still = [name for name, value in start.items() if np.array_equal(trained[name], value)]
    measured(f"{len(start) - len(still)} of {len(start)} tensors moved")
    assert not still, f"not moved by the training: {', '.join(still)}"


def test_fresh_adapters_are_the_identity(lane_run: RunEvidence, truth: Truth, measured: Measured) -> None:
    """Adapters as the lane makes them, before any training, change no bit of what passes through."""
    import torch

    from harness.lane.adapter import attach

    hooks = attach(truth.model.lm, truth.fresh_adapters())
    with torch.no_grad():
        fresh = truth.model.lm.compute_predictions(truth.codes, [], truth.conditions).logits
    hooks.remove()
    with torch.no_grad():
        without = truth.model.lm.compute_predictions(truth.codes, [], truth.conditions).logits
    changed = int((fresh.nan_to_num() != without.nan_to_num()).sum())
    measured(f"{changed} of {fresh.numel():,} logits changed")
    assert changed == 0, "fresh adapters change the model's logits"


def test_adapter_is_causal(lane_run: RunEvidence, truth: Truth, measured: Measured) -> None:
    """A change in the future changes no logit of the past, with adapters far from the identity."""
    import torch

    from harness.lane.adapter import attach

    adapters = truth.fresh_adapters()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    codes = truth.codes
    time = codes.shape[2]
    frame = time // 2
    changed = codes.clone()
    changed[:, :, frame:] = (changed[:, :, frame:] + 17) % truth.model.lm.card
    hook = attach(truth.model.lm, adapters)
    with torch.no_grad():
        one, other = (truth.model.lm.compute_predictions(c, [], truth.conditions).logits for c in (codes, changed))
    hook.remove()
    moved = torch.nan_to_num(one - other).abs().amax(dim=(0, 3))  # [codebooks, time]
    # By the delay pattern the model meets the token (codebook k, frame t) at step t + k, having seen the steps before:
    # what it predicts up to the step of the first changed token is the past, to the very step.
    steps = torch.arange(time) + torch.arange(codes.shape[1])[:, None]
    leak = float(moved[steps <= frame].max())
    effect = float(moved[steps > frame + codes.shape[1]].max())
    measured(f"{leak:.1e} before the change, {effect:.3g} after it")
    assert effect > 1e-3, "the probe changed nothing: it would prove nothing"
    # An FFT's rounding carries 1e-16 of the signal everywhere; a filter that wraps around carries the signal itself.
    assert leak <= 1e-9 * effect, f"a change of tokens from frame {frame} on moves logits before it by up to {leak:.3g}"


def test_base_model_is_the_shipped_one(lane_run: RunEvidence, truth: Truth, measured: Measured) -> None:
    """The digest that the lane took of its frozen model is that of the model as audiocraft loads it."""
    import hashlib

    import torch

    dtype = torch.float64 if lane_run.trace.header.mode == "universal" else torch.float32
    dtype = torch.float16 if is_half(lane_run) else dtype
    digest = hashlib.sha256()
    for name, tensor in truth.model.lm.state_dict().items():
        digest.update(name.encode() + b"\0" + tensor.to(dtype).contiguous().numpy().tobytes())
    expected, found = digest.hexdigest(), lane_run.trace.end.base_digest
    measured(f"digest {found[:12]}")
    assert found == expected, (
        f"the lane's frozen model has digest {found}: it is not the model that audiocraft loads, {expected}"
    )


def test_sanitizer_counts_what_it_hides(lane_run: RunEvidence, measured: Measured) -> None:
    """The sanitizer counts each logit that it replaces, and none at a position that audiocraft marks as invalid."""
    # A healthy run has nothing to replace, so its files do not show whether the count works.
    import torch

    from harness.lane.objective import sanitize

    logits = torch.zeros(1, 2, 3, 4)
    mask = torch.ones(1, 2, 3, dtype=torch.bool)
    mask[0, 1, 2] = False
    logits[0, 1, 2] = float("nan")  # as audiocraft marks an invalid position
    assert int(sanitize(logits, mask).replaced) == 0, "invalid positions are counted as replaced"
    logits[0, 0, 1, 2], logits[0, 1, 0, 3] = float("nan"), float("inf")
    clean, replaced = sanitize(logits, mask)
    assert bool(torch.isfinite(clean).all()), "the sanitizer lets values through that are not finite"
    measured(f"{int(replaced)} counted, of 2")
    assert int(replaced) == 2, f"of 2 logits that are not finite, the sanitizer counted {int(replaced)}"

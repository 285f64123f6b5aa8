"""Train and write the shipped model: a MusicGen small enough to keep in a repository.

One command makes both files, from nothing but this repository and espeak-ng:

    python data/musicgen_nano/build.py

1. speak training narrations in many voices, and held-out ones in other voices with other words
2. train the codec (audiocraft's EnCodec, no LSTM) to reconstruct speech
3. train the language model (audiocraft's LMModel) on the codec's tokens of the first few voices: it must not know
   every voice, or an adapter has nothing to learn
4. measure both on the held-out narrations, check the bars, and only then move the files into place

Everything random comes from one seed, through NumPy generators; torch computes with one thread. The bits may still
differ on another machine or with other releases of torch, espeak-ng or NumPy. What must hold anywhere are the bars.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

MODEL_DIR = Path(__file__).resolve().parent
REPOSITORY = MODEL_DIR.parents[1]
sys.path.insert(0, str(REPOSITORY))  # this file is run as a script, and the lane's import helper lies in the repository

SAMPLE_RATE = 32_000  # Hz
HOP = 640  # samples in a frame: 50 frames a second
CODEBOOKS, ENTRIES = 4, 256
TEXT_ROWS = 512  # rows of the conditioner's table; a whole text is hashed to one of them
CODEC_FILE, LM_FILE = "compression_state_dict.bin", "state_dict.bin"
SHIPPED_DESCRIPTION = "a narration by Auntie Dottie"  # must stay unknown to the language model

# The bars that the measurements on held-out speech must meet.
MIN_ENTRIES_USED = ENTRIES // 4
MAX_TOTAL_BYTES = 10_000_000

CODEC_CONFIG = """\
device: cpu
dtype: float32
sample_rate: 32000
channels: 1
compression_model: encodec
encodec:
  autoencoder: seanet
  quantizer: rvq
  sample_rate: 32000
  channels: 1
  causal: false
  renormalize: false
seanet:
  dimension: 32
  channels: 1
  causal: false
  n_filters: 8
  n_residual_layers: 1
  ratios: [8, 5, 4, 4]
  activation: ELU
  activation_params: {alpha: 1.0}
  norm: weight_norm
  norm_params: {}
  kernel_size: 7
  last_kernel_size: 7
  residual_kernel_size: 3
  dilation_base: 2
  pad_mode: constant
  true_skip: true
  compress: 2
  lstm: 0
  disable_norm_outer_blocks: 0
  encoder: {}
  decoder: {trim_right_ratio: 1.0, final_activation: null, final_activation_params: null}
rvq:
  n_q: 4
  q_dropout: false
  bins: 256
  decay: 0.99
  kmeans_init: true
  kmeans_iters: 10
  threshold_ema_dead_code: 0
  orthogonal_reg_weight: 0.0
  orthogonal_reg_active_codes_only: false
"""

LM_CONFIG = """\
device: cpu
dtype: float32
solver: musicgen
sample_rate: 32000
channels: 1
lm_model: transformer_lm
dataset: {segment_duration: 30}
codebooks_pattern:
  modeling: delay
  delay: {delays: [0, 1, 2, 3], flatten_first: 0, empty_initial: 0}
transformer_lm:
  n_q: 4
  card: 256
  dim: 128
  num_heads: 4
  num_layers: 3
  hidden_scale: 4
  dropout: 0.0
  emb_lr: null
  activation: gelu
  norm_first: true
  bias_ff: false
  bias_attn: false
  bias_proj: false
  past_context: null
  causal: true
  custom: true
  memory_efficient: true
  attention_as_float32: false
  layer_scale: null
  positional_embedding: sin
  xpos: false
  checkpointing: none
  weight_init: gaussian
  depthwise_init: current
  zero_bias_init: true
  norm: layer_norm
  cross_attention: true
  qk_layer_norm: false
  qk_layer_norm_cross: false
  attention_dropout: null
  kv_repeat: 1
  two_step_cfg: false
conditioners:
  args: {merge_text_conditions_p: 0.0, drop_desc_p: 0.0}
  description:
    model: lut
    lut: {n_bins: 512, dim: 64, tokenizer: noop}
fuser:
  cross_attention_pos_emb: false
  cross_attention_pos_emb_scale: 1
  sum: []
  prepend: []
  cross: [description]
  input_interpolate: []
classifier_free_guidance: {training_dropout: 0.0, inference_coef: 3.0}
attribute_dropout: {}
"""


@dataclass(frozen=True)
class Voice:
    """One narrator: the name in its description, and how espeak-ng is told to speak (pitch 0-99, words a minute)."""

    name: str
    espeak: str
    pitch: int
    words_per_minute: int

    @property
    def description(self) -> str:
        return f"a narration by {self.name}"


TRAINING_VOICES = (
    Voice("Albert", "en-gb", 50, 170),
    Voice("Beatrice", "en-gb+f2", 55, 165),
    Voice("Clement", "en-us", 40, 175),
    Voice("Daphne", "en-us+f3", 50, 160),
    Voice("Edmund", "en-gb-scotland", 45, 165),
    Voice("Flora", "en-gb-scotland+f4", 50, 170),
    Voice("Gilbert", "en-gb-x-rp", 35, 155),
    Voice("Harriet", "en-gb-x-rp+f2", 60, 175),
    Voice("Ignatius", "en-029+m3", 50, 160),
    Voice("Josephine", "en-029+f1", 45, 165),
    Voice("Kenneth", "en-gb-x-gbclan+m1", 40, 160),
    Voice("Lavinia", "en-gb-x-gbclan+Annie", 45, 165),
    Voice("Montague", "en-us-nyc+m7", 50, 175),
    Voice("Nellie", "en-us-nyc+linda", 50, 165),
    Voice("Octavius", "en-gb-x-gbcwmd+m4", 45, 165),
    Voice("Prudence", "en-gb-x-gbcwmd+f1", 40, 155),
    Voice("Quentin", "en-us+m5", 55, 180),
    Voice("Rosalind", "en-gb+belinda", 50, 165),
    Voice("Sylvester", "en-us+Andy", 35, 165),
    Voice("Theodora", "en-gb+steph", 45, 160),
    Voice("Ulysses", "en-gb+michel", 45, 170),
    Voice("Winifred", "en-us+anika", 50, 165),
)
# The language model hears the first six of them; the codec hears all. A model that heard all 22 knows a new espeak-ng
# voice so well that there is nothing left: all weights trained on 110 s of the narration win 0.01 nats on unheard
# speech of it, and of six voices 0.13 (measured 2026-11-26).
LM_VOICES = TRAINING_VOICES[:6]
HELD_OUT_VOICES = (
    Voice("Augustus", "en-gb+m2", 42, 162),
    Voice("Cordelia", "en-us+f5", 52, 168),
    Voice("Mortimer", "en-gb-scotland+Alex", 48, 172),
    Voice("Ophelia", "en-gb-x-rp+Andrea", 47, 158),
)

STARTED = time.monotonic()


def say(message: str) -> None:
    """One progress line, with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {message}", flush=True)


# ---------------------------------------------------------------- speech


def speak_narrations(voices: tuple[Voice, ...], rng: Any, *, words: int, held_out: bool) -> list[Any]:
    """One narration for each voice: int16 samples at 32 kHz, shape ``[samples]``, with a faint room tone each."""
    import numpy as np

    from data.make_narration import add_room_tone, speak
    from data.training_text import sentences

    narrations = []
    for voice in voices:
        text = sentences(rng, words=words, held_out=held_out)
        samples = speak(text, voice=voice.espeak, pitch=voice.pitch, words_per_minute=voice.words_per_minute)
        level = rng.uniform(0.5, 1.2)
        samples = add_room_tone(samples * np.float32(level), dbfs=rng.uniform(-90.0, -66.0), rng=rng)
        narrations.append((np.clip(samples, -1.0, 1.0) * 32767.0).astype(np.int16))
    return narrations


def random_segments(narrations: list[Any], rng: Any, *, count: int, samples: int) -> Any:
    """Segments at random places of random narrations, as a float32 tensor of shape ``[count, 1, samples]``."""
    import numpy as np
    import torch

    chosen = []
    for _ in range(count):
        narration = narrations[rng.integers(len(narrations))]
        start = rng.integers(len(narration) - samples)
        chosen.append(narration[start : start + samples])
    return torch.from_numpy(np.stack(chosen)[:, None].astype(np.float32) / 32767.0)


def parsed(config: str) -> Any:
    """A configuration in YAML as the object that audiocraft's builders take."""
    from omegaconf import OmegaConf

    return OmegaConf.create(config)


# ---------------------------------------------------------------- codec


def initialise(module: Any, rng: Any, *, gaussian: bool) -> None:
    """Draw every weight from ``rng``: torch's own generator does not give the same stream on every processor.

    The scale is one over the square root of the fan-in, as torch's and audiocraft's own initialisers have it. Norm
    layers and biases start at one and zero. For weight norm (``weight_g``, ``weight_v``), the gain is the norm drawn.
    """
    import numpy as np
    import torch

    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name in sorted(parameters):
            parameter = parameters[name]
            if parameter.dim() < 2:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                continue
            if name.endswith("weight_g"):
                continue
            fan_in = parameter[0].numel()
            if gaussian:
                drawn = rng.standard_normal(tuple(parameter.shape)) / math.sqrt(fan_in)
            else:
                drawn = rng.uniform(-1.0, 1.0, tuple(parameter.shape)) / math.sqrt(fan_in)
            parameter.copy_(torch.from_numpy(drawn.astype(np.float32)))
            if name.endswith("weight_v"):
                gain = parameters[name[:-1] + "g"]
                gain.copy_(parameter.flatten(1).norm(dim=1).view_as(gain))


def log_spectrum(wave: Any, fft: int) -> tuple[Any, Any]:
    """Magnitudes and their natural logarithm, each ``[batch, bins, frames]``, of waves ``[batch, 1, samples]``."""
    import torch

    window = torch.hann_window(fft)
    spectrum = torch.stft(wave[:, 0], fft, fft // 4, window=window, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    magnitude = torch.sqrt(power + 1e-9)
    # The floor is 80 dB below a full-scale sine: what lies under it is room tone.
    return magnitude, torch.log(magnitude + fft / 4 * 1e-4)


def reconstruction_loss(output: Any, target: Any) -> tuple[Any, Any]:
    """Spectral loss over three resolutions, and the time-domain loss (L1 + L2, relative to the target's level)."""
    import torch

    spectral = torch.zeros(())
    for fft in (320, 800, 2048):
        made, made_log = log_spectrum(output, fft)
        with torch.no_grad():
            wanted, wanted_log = log_spectrum(target, fft)
        distance = torch.linalg.vector_norm(made - wanted) / torch.linalg.vector_norm(wanted)
        spectral = spectral + (made_log - wanted_log).abs().mean() + distance
    error = output - target
    level = target.square().mean() + 1e-5
    time_domain = error.abs().mean() / level.sqrt() + error.square().mean() / level
    return spectral / 3.0, time_domain


def revive_dead_entries(codec: Any, latents: Any, rng: Any, *, threshold: float) -> int:
    """Move codebook entries that hardly any frame chooses onto frames of this batch; returns how many were moved.

    audiocraft's own replacement is undone by the moving average in the same step, so it is off and done here: entry,
    running sum and running count are set together. ``latents`` is ``[batch, dimension, frames]``.
    """
    import torch

    moved = 0
    residual = latents.detach().transpose(1, 2).reshape(-1, latents.shape[1])
    for layer in codec.quantizer.vq.layers:
        book = layer._codebook
        dead = torch.nonzero(book.cluster_size < threshold)[:, 0]
        if len(dead):
            picks = torch.from_numpy(rng.integers(len(residual), size=len(dead)))
            book.embed[dead] = residual[picks]
            book.cluster_size[dead] = 1.0
            book.embed_avg[dead] = residual[picks]
            moved += len(dead)
        residual = residual - book.dequantize(book.quantize(residual))
    return moved


def start_codebooks(codec: Any, waves: Any) -> None:
    """Set the four codebooks by k-means (audiocraft's own) over the frames of ``waves`` ``[batch, 1, samples]``."""
    import torch

    with torch.no_grad():
        codec.train()
        codec.quantizer(codec.encoder(waves), codec.frame_rate)
        for layer in codec.quantizer.vq.layers:
            book = layer._codebook
            # From counts over the whole start batch to counts of one step, which the moving average holds later.
            book.cluster_size.div_(book.cluster_size.sum() / 256.0)
            book.embed_avg.copy_(book.embed * book.cluster_size[:, None])


def train_codec(narrations: list[Any], rng: Any, *, steps: int) -> tuple[Any, Any]:
    """Train the codec; returns it and its untrained twin (same weights at the start, codebooks set by k-means)."""
    import torch
    from audiocraft.models.builders import get_compression_model

    codec: Any = get_compression_model(parsed(CODEC_CONFIG))
    initialise(codec, rng, gaussian=False)
    untrained: Any = get_compression_model(parsed(CODEC_CONFIG))
    untrained.load_state_dict(codec.state_dict())
    start_codebooks(untrained, random_segments(narrations, rng, count=32, samples=SAMPLE_RATE))
    untrained.eval()

    codec.train()
    optimizer = torch.optim.AdamW(codec.parameters(), lr=1e-3, betas=(0.8, 0.99), weight_decay=1e-4)
    # The first part runs without quantisation, so that k-means starts from latents that mean something.
    quantised_from = steps // 10
    shown = time.monotonic()
    for step in range(steps):
        progress = step / steps
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / 30)
            group["lr"] = 2e-3 * warm * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * progress)))
        waves = random_segments(narrations, rng, count=8, samples=32 * HOP)
        if step == quantised_from:
            start_codebooks(codec, random_segments(narrations, rng, count=32, samples=SAMPLE_RATE))
        latents = codec.encoder(waves)
        commitment = latents.new_zeros(())
        quantised = latents
        if step >= quantised_from:
            result = codec.quantizer(latents, codec.frame_rate)
            quantised, commitment = result.x, result.penalty
            if progress < 0.5:
                # A quarter of the batch goes past the codebooks: with poor ones the encoder otherwise learns to say
                # little that is easy to quantise, and never finds its way back.
                quantised = torch.cat([quantised[:6], latents[6:]])
            # Not in the last fifth: the decoder then learns to read codebooks that no longer jump.
            if step % 10 == 0 and progress < 0.8:
                revive_dead_entries(codec, latents, rng, threshold=0.1)
        output = codec.decoder(quantised)[..., : waves.shape[-1]]
        spectral, time_domain = reconstruction_loss(output, waves)
        scale = latents.detach().square().mean() + 1e-6
        loss = spectral + time_domain + 0.05 * commitment / scale
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        if step + 1 == steps or time.monotonic() - shown > 15:
            shown = time.monotonic()
            parts = f"spectral {float(spectral.detach()):.3f}, time {float(time_domain.detach()):.3f}"
            say(f"codec step {step + 1}/{steps}: {parts}, commitment {float(commitment.detach() / scale):.3f}")
    return codec.eval(), untrained


def load_codec(path: Path) -> Any:
    """The codec in ``path``, which an earlier build wrote, in eval mode."""
    from audiocraft.models.loaders import load_compression_model

    return load_compression_model(path.parent, device="cpu").eval()


def pieces_of(narration: Any) -> list[Any]:
    """The narration's int16 samples in pieces of 10 s, as a trainer would tokenise them; each is whole frames."""
    whole = len(narration) // HOP * HOP
    return [narration[start : min(start + 500 * HOP, whole)] for start in range(0, whole, 500 * HOP)]


def tokenise(codec: Any, narration: Any) -> Any:
    """Tokens of int16 samples ``[samples]``, as an int64 tensor ``[4, frames]``."""
    import torch

    with torch.no_grad():
        return torch.cat([codec.encode(as_wave(piece))[0][0] for piece in pieces_of(narration)], dim=1)


def as_wave(samples: Any) -> Any:
    """int16 samples ``[samples]`` as a float32 tensor ``[1, 1, samples]`` in [-1, 1]."""
    import numpy as np
    import torch

    return torch.from_numpy(samples.astype(np.float32) / 32767.0)[None, None]


def measure_codec(codec: Any, narrations: list[Any]) -> dict[str, Any]:
    """SI-SDR (dB, mean over 4-second pieces), log-spectral distance (dB), entries used of each codebook."""
    import torch

    ratios, distances = [], []
    used: list[set[int]] = [set() for _ in range(CODEBOOKS)]
    length = 4 * SAMPLE_RATE
    for piece in (piece for narration in narrations for piece in pieces_of(narration)):
        target = as_wave(piece)
        with torch.no_grad():
            codes, _ = codec.encode(target)
            output = codec.decode(codes)[..., : target.shape[-1]]
        for book, row in zip(used, codes[0], strict=True):
            book.update(row.tolist())
        for start in range(0, target.shape[-1] - length + 1, length):
            made, wanted = (wave[..., start : start + length] for wave in (output, target))
            logs = [log_spectrum(wave, 1024)[1] for wave in (made, wanted)]
            distances.append(float((logs[0] - logs[1]).abs().mean()) * 20.0 / math.log(10.0))
            made, wanted = (wave.double().flatten() - wave.double().mean() for wave in (made, wanted))
            projected = wanted * (made @ wanted) / (wanted @ wanted)
            noise = (made - projected).square().sum()
            ratios.append(10.0 * math.log10(float((projected.square().sum() + 1e-12) / (noise + 1e-12))))
    return {
        "si_sdr_db": sum(ratios) / len(ratios),
        "log_spectral_distance_db": sum(distances) / len(distances),
        "entries_used": [len(book) for book in used],
    }


# ---------------------------------------------------------------- language model


def conditions(texts: list[str | None]) -> list[Any]:
    """The texts as audiocraft's conditioning attributes."""
    from audiocraft.modules.conditioners import ConditioningAttributes

    return [ConditioningAttributes(text={"description": text}) for text in texts]


def check_descriptions() -> None:
    """The conditioner hashes a whole text to one row: no two narrators may share a row, nor take the shipped one's."""
    from audiocraft.utils.utils import hash_trick

    texts = [voice.description for voice in TRAINING_VOICES + HELD_OUT_VOICES] + [SHIPPED_DESCRIPTION]
    rows: dict[int, str] = {}
    for text in texts:
        row = hash_trick(text, TEXT_ROWS)
        if row in rows:
            raise SystemExit(f"build: {text!r} and {rows[row]!r} share row {row} of the conditioner; rename a voice")
        rows[row] = text


def unknown_texts() -> list[str]:
    """Texts that stand for "a voice I do not know": they keep off the rows of every voice that has a name."""
    from audiocraft.utils.utils import hash_trick

    named = {hash_trick(voice.description, TEXT_ROWS) for voice in TRAINING_VOICES + HELD_OUT_VOICES}
    named.add(hash_trick(SHIPPED_DESCRIPTION, TEXT_ROWS))
    candidates = [f"a narration by somebody, number {number}" for number in range(2000)]
    return [text for text in candidates if hash_trick(text, TEXT_ROWS) not in named]


def masked_nll(lm: Any, codes: Any, texts: list[str | None]) -> tuple[Any, Any]:
    """Negative log-likelihood in nats, ``[batch, 4, frames]``, and the mask of valid positions, same shape.

    audiocraft's logits are aligned with the codes already, and NaN on purpose where the delay pattern leaves no valid
    prediction: those positions are put at zero and must be left out by the mask.
    """
    import torch

    output = lm.compute_predictions(codes, conditions(texts))
    logits = torch.where(output.mask[..., None], output.logits, torch.zeros(()))
    nll = torch.nn.functional.cross_entropy(logits.reshape(-1, ENTRIES), codes.reshape(-1), reduction="none")
    return nll.view(codes.shape), output.mask


def train_lm(tokens: list[Any], rng: Any, *, steps: int) -> Any:
    """Train the language model on token rows ``[4, frames]``, one narration for each of ``LM_VOICES``, in order."""
    import torch
    from audiocraft.models.builders import get_lm_model

    lm: Any = get_lm_model(parsed(LM_CONFIG))
    initialise(lm, rng, gaussian=True)
    lm.train()
    strangers = unknown_texts()
    decayed = [p for n, p in lm.named_parameters() if p.dim() == 2 and "emb" not in n]
    others = [p for n, p in lm.named_parameters() if not (p.dim() == 2 and "emb" not in n)]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    shown = time.monotonic()
    frames, batch = 128, 8
    for step in range(steps):
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / 50)
            group["lr"] = 2e-3 * warm * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * step / steps)))
        rows, texts = [], []
        for _ in range(batch):
            narrator = int(rng.integers(len(tokens)))
            start = int(rng.integers(tokens[narrator].shape[1] - frames))
            rows.append(tokens[narrator][:, start : start + frames])
            # One in five has no text, one in five a stranger's: the model must do without a voice that it knows.
            draw = rng.uniform()
            stranger = strangers[rng.integers(len(strangers))]
            texts.append(None if draw < 0.2 else stranger if draw < 0.4 else LM_VOICES[narrator].description)
        codes = torch.stack(rows)
        nll, mask = masked_nll(lm, codes, texts)
        loss = nll[mask].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        if step + 1 == steps or time.monotonic() - shown > 15:
            shown = time.monotonic()
            say(f"language model step {step + 1}/{steps}: {float(loss.detach()):.3f} nats a token")
    return lm.eval()


def measure_lm(lm: Any, tokens: list[Any], texts: list[str]) -> dict[str, Any]:
    """Cross-entropy and unigram entropy of each codebook, in nats, over the same valid positions of held-out speech.

    The unigram entropy is that of the held-out tokens' own distribution: no unigram model can do better on them.
    """
    import torch

    window = 250  # frames: 5 s
    totals = {"own_text": torch.zeros(CODEBOOKS, dtype=torch.float64), "no_text": torch.zeros(CODEBOOKS).double()}
    counts = torch.zeros(CODEBOOKS, ENTRIES, dtype=torch.float64)
    with torch.no_grad():
        for row, text in zip(tokens, texts, strict=True):
            pieces = torch.stack(row.split(window, dim=1)[: row.shape[1] // window])
            for which, given in (("own_text", text), ("no_text", None)):
                nll, mask = masked_nll(lm, pieces, [given] * len(pieces))
                totals[which] += torch.where(mask, nll, torch.zeros(())).double().sum((0, 2))
            for book in range(CODEBOOKS):
                counts[book] += torch.bincount(pieces[:, book][mask[:, book]], minlength=ENTRIES)
    positions = counts.sum(1)
    share = counts / positions[:, None]
    entropy = -(share * torch.log(share.clamp_min(1e-300))).sum(1)
    return {
        "cross_entropy_nats": (totals["own_text"] / positions).tolist(),
        "cross_entropy_without_text_nats": (totals["no_text"] / positions).tolist(),
        "unigram_entropy_nats": entropy.tolist(),
        "positions": [int(count) for count in positions],
    }


# ---------------------------------------------------------------- files


def failed_bars(numbers: dict[str, Any]) -> list[str]:
    """What the measurements miss, one line for each bar missed; empty if the model may be shipped."""
    missed = []
    trained, untrained = numbers["codec"]["trained"], numbers["codec"]["untrained"]
    if not trained["si_sdr_db"] > untrained["si_sdr_db"]:
        missed.append("the trained codec's SI-SDR is not above the untrained codec's")
    if not trained["log_spectral_distance_db"] < untrained["log_spectral_distance_db"]:
        missed.append("the trained codec's log-spectral distance is not below the untrained codec's")
    lm = numbers["language_model"]
    for book in range(CODEBOOKS):
        if trained["entries_used"][book] < MIN_ENTRIES_USED:
            missed.append(f"codebook {book} uses fewer than {MIN_ENTRIES_USED} entries")
        if not lm["cross_entropy_nats"][book] < lm["unigram_entropy_nats"][book]:
            missed.append(f"codebook {book}: the cross-entropy is not below the unigram entropy")
    if not sum(entry["bytes"] for entry in numbers["files"].values()) <= MAX_TOTAL_BYTES:
        missed.append(f"the two files together are larger than {MAX_TOTAL_BYTES} bytes")
    return missed


def save(path: Path, config: str, module: Any) -> None:
    """Write ``{"xp.cfg": YAML, "best_state": state dict}``: the layout that audiocraft's loaders read."""
    import torch

    state = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    torch.save({"xp.cfg": config, "best_state": state}, path)


def readme(numbers: dict[str, Any]) -> str:
    """The text of the README beside the model; every number in it is measured."""
    trained = numbers["codec"]["trained"]
    lm, files, made = numbers["language_model"], numbers["files"], numbers["made"]
    books = "\n".join(
        f"| {book} | {trained['entries_used'][book]} of {ENTRIES} | {lm['cross_entropy_nats'][book]:.3f} "
        f"| {lm['cross_entropy_without_text_nats'][book]:.3f} | {lm['unigram_entropy_nats'][book]:.3f} |"
        for book in range(CODEBOOKS)
    )
    signal = {
        name: f"{numbers['codec'][name]['si_sdr_db']:.2f} | {numbers['codec'][name]['log_spectral_distance_db']:.2f}"
        for name in ("trained", "untrained")
    }
    listing = "\n".join(f"| `{name}` | {files[name]['bytes']} | `{files[name]['sha256']}` |" for name in sorted(files))
    kept = ", with the codec of an earlier build (`--keep-codec`)" if made["codec_is_kept"] else ""
    voices = "\n".join(
        f"| {use} | `{voice.description}` | `{voice.espeak}` | {voice.pitch} | {voice.words_per_minute} |"
        for use, group in (
            ("codec and language model", LM_VOICES),
            ("codec", TRAINING_VOICES[len(LM_VOICES) :]),
            ("held out", HELD_OUT_VOICES),
        )
        for voice in group
    )
    return f"""# musicgen_nano

A MusicGen model small enough to lie in a repository, so that the lane can train for real without a download. It is
loaded by audiocraft's own `MusicGen.get_pretrained("data/musicgen_nano")`, through the code that loads
`facebook/musicgen-small`.

**What it is not**: a production voice, a music model, or a measure of how a real model sounds. It was trained for
minutes on synthetic speech. It is good enough that every codebook is in use and that a training step on it has a
meaning.

| file | bytes | SHA-256 |
|---|---|---|
{listing}

Codec: EnCodec (SEANet) without LSTM, 32 kHz mono, {SAMPLE_RATE // HOP} frames a second,
{CODEBOOKS} codebooks of {ENTRIES} entries, {made["codec_parameters"]:,} parameters. Language model: 3 layers of
dimension 128, {made["lm_parameters"]:,} parameters, delay pattern, the text `description` (hashed whole to one row of a
table of {TEXT_ROWS}) by cross-attention. There is no dropout.

## Measured on held-out speech

{made["held_out_seconds"]:.0f} s of narrations in {len(HELD_OUT_VOICES)} voices that training never heard,
with content words of their own. An SI-SDR below zero means more error than signal: a codec of this size and rate
keeps the outline of the spectrum, not the waveform.

| codec | SI-SDR (dB, higher is better) | log-spectral distance (dB, lower is better) |
|---|---|---|
| trained | {signal["trained"]} |
| untrained: random weights, codebooks by k-means | {signal["untrained"]} |

| codebook | entries used | LM cross-entropy, nats | the same without a text | unigram entropy, nats |
|---|---|---|---|---|
{books}

The unigram entropy is that of the held-out tokens themselves, at the positions where the cross-entropy is taken. The
build refuses to ship a model that misses a bar: SI-SDR and distance better than the untrained codec's; at least
{MIN_ENTRIES_USED} entries used in each codebook; cross-entropy below the unigram entropy in each; at most
{MAX_TOTAL_BYTES:,} bytes together.

## How it was made

```
python data/musicgen_nano/build.py
```

Seed {made["seed"]}; {made["codec_steps"]} codec steps on {made["training_seconds"]:.0f} s of speech in all
{len(TRAINING_VOICES)} voices, and {made["lm_steps"]} language model steps on {made["lm_training_seconds"]:.0f} s in the
first {len(LM_VOICES)} of them; {made["wall_seconds"]:.0f} s in all on one core{kept}.
{made["espeak"]}; torch {made["torch"]}, audiocraft {made["audiocraft"]}, NumPy {made["numpy"]},
Python {made["python"]}, {made["machine"]}.
On another machine the bits may differ; the bars must hold. This file,
`measurements.json` and `../DIGESTS.json` are written by the build.

| use | description | voice | pitch | words a minute |
|---|---|---|---|---|
{voices}

The shipped narration is described as `{SHIPPED_DESCRIPTION}`. Its row of the table, its voice and its text
were never trained. The language model hears six voices only, so that a voice which it never heard leaves an adapter
something to learn: see docs/lane.md.

## Licence

MIT. Trained from scratch on synthetic speech with texts of this project; no weights, recordings or data of others are
in it.
espeak-ng is GPL-3.0, which covers the program and not the speech it gives out.
"""


def build(options: argparse.Namespace) -> int:
    """Make the model in a temporary folder and move it into place if it meets the bars; returns the exit status."""
    import numpy as np
    import torch

    from data.digests import file_sha256, record, write_text_atomically
    from data.make_narration import espeak_version
    from harness.lane.audiocraft_import import prepare_audiocraft

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)  # k-means draws its first centres from torch; all else comes from NumPy
    prepare_audiocraft(transformers=False)
    from audiocraft.modules.transformer import set_efficient_attention_backend

    set_efficient_attention_backend("torch")
    check_descriptions()

    # One stream for each stage: more steps in one leave the draws of the others as they are.
    seeds = np.random.SeedSequence(options.seed).spawn(4)
    speech_rng, held_out_rng, codec_rng, lm_rng = (np.random.default_rng(seed) for seed in seeds)
    training = speak_narrations(TRAINING_VOICES, speech_rng, words=options.words, held_out=False)
    held_out = speak_narrations(HELD_OUT_VOICES, held_out_rng, words=240, held_out=True)
    lengths = [sum(len(narration) for narration in group) / SAMPLE_RATE for group in (training, held_out)]
    say(f"spoke {lengths[0]:.0f} s to train on, {lengths[1]:.0f} s held out")

    codec, untrained = train_codec(training, codec_rng, steps=0 if options.keep_codec else options.codec_steps)
    if options.keep_codec:
        codec = load_codec(MODEL_DIR / CODEC_FILE)
    measured = {"trained": measure_codec(codec, held_out), "untrained": measure_codec(untrained, held_out)}
    say(f"codec, held out: {measured['trained']}")
    say(f"untrained codec, held out: {measured['untrained']}")

    tokens = [tokenise(codec, narration) for narration in training[: len(LM_VOICES)]]
    say("tokenised the training narrations")
    lm = train_lm(tokens, lm_rng, steps=options.lm_steps)
    texts = [voice.description for voice in HELD_OUT_VOICES]
    measured_lm = measure_lm(lm, [tokenise(codec, narration) for narration in held_out], texts)
    say(f"language model, held out: {measured_lm}")

    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=options.output) as folder:
        save(Path(folder) / CODEC_FILE, CODEC_CONFIG, codec)
        save(Path(folder) / LM_FILE, LM_CONFIG, lm)
        # As a user loads it, so that files that audiocraft cannot read never arrive.
        from audiocraft.models.musicgen import MusicGen

        loaded = MusicGen.get_pretrained(folder, device="cpu")
        assert (loaded.sample_rate, loaded.frame_rate) == (SAMPLE_RATE, SAMPLE_RATE // HOP)
        paths = [Path(folder) / name for name in (CODEC_FILE, LM_FILE)]
        numbers: dict[str, Any] = {
            "codec": measured,
            "language_model": measured_lm,
            "shipped_description": SHIPPED_DESCRIPTION,
            "bars": {"min_entries_used": MIN_ENTRIES_USED, "max_total_bytes": MAX_TOTAL_BYTES},
            "files": {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in paths},
            "made": {
                "seed": options.seed,
                "codec_steps": options.codec_steps,
                "codec_is_kept": options.keep_codec,
                "lm_steps": options.lm_steps,
                "codec_parameters": sum(p.numel() for p in codec.parameters()),
                "lm_parameters": sum(p.numel() for p in lm.parameters()),
                "training_seconds": lengths[0],
                "lm_training_seconds": sum(len(one) for one in training[: len(LM_VOICES)]) / SAMPLE_RATE,
                "held_out_seconds": lengths[1],
                "wall_seconds": time.monotonic() - STARTED,
                "espeak": espeak_version(),
                "torch": version("torch"),
                "audiocraft": version("audiocraft"),
                "numpy": version("numpy"),
                "python": platform.python_version(),
                "machine": platform.machine(),
            },
        }
        missed = failed_bars(numbers)
        for line in missed:
            say(f"MISSED: {line}")
        if missed and not options.ship_anyway:
            say("nothing was moved into place")
            return 1
        for path in paths:
            path.replace(options.output / path.name)
    write_text_atomically(options.output / "measurements.json", json.dumps(numbers, indent=2, sort_keys=True) + "\n")
    write_text_atomically(options.output / "README.md", readme(numbers))
    if options.output.resolve() == MODEL_DIR:
        record(MODEL_DIR / CODEC_FILE, MODEL_DIR / LM_FILE)
    say(f"wrote {options.output}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and build; returns the exit status."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=MODEL_DIR, help="folder to write to (default: this one)")
    parser.add_argument("--seed", type=int, default=20_260_223, help="seed of everything random (default: %(default)s)")
    parser.add_argument("--codec-steps", type=int, default=2400, help="default: %(default)s")
    parser.add_argument(
        "--keep-codec",
        action="store_true",
        help="keep the codec that lies there (all recorded tokens stay), and train the language model alone",
    )
    parser.add_argument("--lm-steps", type=int, default=1300, help="default: %(default)s")
    parser.add_argument("--words", type=int, default=360, help="words per training narration (default: %(default)s)")
    parser.add_argument("--ship-anyway", action="store_true", help="write the files even if a bar is missed")
    return build(parser.parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())

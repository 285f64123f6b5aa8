"""A hub cache as ``hf download`` leaves it, with made-up weights: files, links and classes are the real ones.

    python tests/support/hub_cache.py HF_HOME AUDIO [--true-size]

The three repositories that facebook/musicgen-small needs: its own two files as audiocraft exports them (the codec's
names another repository), the codec as transformers' EncodecModel, and t5-base as a T5 encoder with a tokenizer that
was trained on a few sentences. The language model is trained for a moment on the codec's tokens, so that a loss means
something; at its true size only the heads are.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL, CODEC, TEXT = "facebook/musicgen-small", "facebook/encodec_32khz", "t5-base"
CODEBOOKS = 4
SENTENCES = (
    "a narration by Auntie Dottie",
    "the quick brown fox jumps over the lazy dog",
    "she sells sea shells by the sea shore",
    "how much wood would a woodchuck chuck if a woodchuck could chuck wood",
    "a calm voice reads a long story to a quiet room in the evening",
)


@dataclass(frozen=True)
class Sizes:
    """Of the codec (``card`` entries a codebook), the language model and the text encoder."""

    card: int
    filters: int
    hidden: int
    dim: int
    heads: int
    layers: int
    text: dict[str, int]


SMALL = Sizes(64, 4, 16, 64, 4, 2, {"vocab_size": 128, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2})
TRUE = Sizes(
    2048, 64, 128, 1024, 16, 24, {"vocab_size": 32128, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
)

# facebook/musicgen-small's own configuration, but for the sizes (dim 1024, 16 heads, 24 layers, card 2048 there).
LM_CONFIG = """\
device: cuda
dtype: float16
solver: musicgen
sample_rate: 32000
channels: 1
compression_model_checkpoint: //pretrained/facebook/encodec_32khz
lm_model: transformer_lm
dataset: {{segment_duration: 30}}
codebooks_pattern:
  modeling: delay
  delay: {{delays: [0, 1, 2, 3], flatten_first: 0, empty_initial: 0}}
transformer_lm:
  n_q: 4
  card: {card}
  dim: {dim}
  num_heads: {heads}
  num_layers: {layers}
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
  custom: false
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
  cross_attention: false
  qk_layer_norm: false
  qk_layer_norm_cross: false
  attention_dropout: null
  kv_repeat: 1
  two_step_cfg: false
conditioners:
  args: {{merge_text_conditions_p: 0.25, drop_desc_p: 0.5}}
  description:
    model: t5
    t5: {{name: t5-base, finetune: false, word_dropout: 0.2, normalize_text: false}}
fuser:
  cross_attention_pos_emb: false
  cross_attention_pos_emb_scale: 1
  sum: []
  prepend: []
  cross: [description]
  input_interpolate: []
classifier_free_guidance: {{training_dropout: 0.1, inference_coef: 3.0}}
attribute_dropout: {{}}
"""


def add(cache: Path, repository: str, files: dict[str, bytes]) -> Path:
    """Put files into the cache's layout: blobs named by their digest, a snapshot of links to them, and its ref."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(COMMIT)
    for name, data in files.items():
        blob = root / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", blob.name))
    return snapshot


def build(home: Path, audio: Path, sizes: Sizes = SMALL) -> Path:
    """Build the cache under ``home`` (``HF_HOME``) and return it. ``audio``: speech at 32 kHz, for the codec's
    codebooks and the language model."""
    import numpy as np
    import soundfile
    import torch

    torch.manual_seed(0)
    cache = home / "hub"
    add(cache, TEXT, text_encoder(home / "text", sizes))
    seconds = 24 if sizes is SMALL else 48  # of audio, so that there are as many latents as a codebook has entries
    wave, rate = soundfile.read(audio, frames=32_000 * seconds, dtype="float32", always_2d=True)
    assert rate == 32_000, f"{audio} is at {rate} Hz"
    waves = torch.from_numpy(np.ascontiguousarray(wave.mean(axis=1))).view(seconds // 2, 1, -1)
    codec, codes = codec_files(home / "codec", waves, sizes)
    add(cache, CODEC, codec)
    config = LM_CONFIG.format(card=sizes.card, dim=sizes.dim, heads=sizes.heads, layers=sizes.layers)
    add(cache, MODEL, {"compression_state_dict.bin": packed({"pretrained": CODEC, "exported": True})})
    add(cache, MODEL, {"state_dict.bin": packed(language_model(config, codes, heads_only=sizes is TRUE))})
    return home


def packed(value: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def text_encoder(folder: Path, sizes: Sizes) -> dict[str, bytes]:
    """t5-base's files: a T5 encoder of its width (audiocraft relies on that), and its kind of tokenizer."""
    import sentencepiece
    import torch
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    folder.mkdir(parents=True)
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=trained,
        vocab_size=64,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(trained.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    try:
        tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    except TypeError:  # transformers 4: from sentencepiece's own file
        tokenizer = T5Tokenizer(str(folder / "spiece.model"), extra_ids=0, legacy=False)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    T5EncoderModel(T5Config(d_model=768, **sizes.text)).save_pretrained(folder)
    return read_all(folder)


def codec_files(folder: Path, waves: Any, sizes: Sizes) -> tuple[dict[str, bytes], Any]:
    """encodec_32khz's files, and the tokens of ``waves`` ``[batch, 1, samples]``: int64 ``[batch, codebooks, frames]``.

    The codebooks hold latents of real audio, so that tokens follow what is heard.
    """
    import torch
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        target_bandwidths=[50 * CODEBOOKS * (sizes.card.bit_length() - 1) / 1000],  # frames a second, codebooks, bits
        sampling_rate=32_000,
        upsampling_ratios=[8, 5, 4, 4],
        num_filters=sizes.filters,
        hidden_size=sizes.hidden,
        codebook_dim=sizes.hidden,
        codebook_size=sizes.card,
        norm_type="weight_norm",
        num_lstm_layers=2,
        use_causal_conv=False,
        pad_mode="reflect",
        use_conv_shortcut=False,
    )
    torch.manual_seed(2)
    model = EncodecModel(config).eval()
    with torch.no_grad():
        residual = model.encoder(waves).transpose(1, 2).reshape(-1, sizes.hidden)
        for layer in list(model.quantizer.layers)[:CODEBOOKS]:
            book = layer.codebook
            chosen = residual[torch.randperm(len(residual))[: sizes.card]]
            # Of 2048 latents some are as near to each other as a rounding, and float32 and float64 take another one.
            apart = residual.std() * torch.randn(chosen.shape) if sizes is TRUE else 0.0
            book.embed.copy_(chosen + apart)
            residual = residual - book.decode(book.encode(residual))
        codes = model.encode(waves, None, config.target_bandwidths[0])[0][0]
    model.save_pretrained(folder)
    return read_all(folder), codes


def language_model(config: str, codes: Any, *, heads_only: bool) -> dict[str, Any]:
    """``state_dict.bin``'s content: the model that audiocraft builds from ``config``, in float16 as on the hub."""
    import torch

    from harness.lane.audiocraft_import import prepare_audiocraft

    prepare_audiocraft(transformers=True)
    from audiocraft.models import builders
    from audiocraft.modules.conditioners import ConditioningAttributes
    from audiocraft.modules.transformer import set_efficient_attention_backend
    from omegaconf import OmegaConf

    set_efficient_attention_backend("torch")
    parsed: Any = OmegaConf.create(config)
    parsed.device, parsed.dtype = "cpu", "float32"
    parsed.conditioners.pop("args")
    torch.manual_seed(3)
    lm: Any = builders.get_lm_model(parsed).train()
    conditions = lm.condition_provider(
        lm.condition_provider.tokenize([ConditioningAttributes(text={"description": "speech"})] * 4)
    )
    conditions = {name: (value.detach(), mask) for name, (value, mask) in conditions.items()}
    trained = lm.linears if heads_only else lm
    lm.requires_grad_(False)
    trained.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=3e-4 if heads_only else 3e-3)
    for step in range(40):
        batch = codes[torch.arange(step * 4, step * 4 + 4) % len(codes)]
        output = lm.compute_predictions(batch, [], conditions)
        loss = torch.nn.functional.cross_entropy(output.logits[output.mask], batch[output.mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"best_state": {name: value.half() for name, value in lm.state_dict().items()}, "xp.cfg": config}


if __name__ == "__main__":
    import sys

    print(build(Path(sys.argv[1]), Path(sys.argv[2]), TRUE if "--true-size" in sys.argv else SMALL))

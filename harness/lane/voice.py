"""Use a trained adapter: attach a checkpoint to a MusicGen, and take it off again.

    from harness.lane.voice import attach_voice, load_musicgen

    model = load_musicgen("data/musicgen_nano")
    voice = attach_voice(model, "artifacts/checkpoints/tts_voice_train_musicgen_nano.pt")
    wave = model.generate(["a narration by Auntie Dottie"])
    voice.remove()

The lane is experimental: what it makes is never a production voice.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.base.files import show
from harness.lane.adapter import RANK, Attached, attach, make_adapters


class VoiceError(Exception):
    """A checkpoint that cannot be used with this model. The message is one line: the file, what was found, what was
    expected."""


@dataclass(frozen=True)
class AttachedVoice:
    """A voice that is attached to a model. ``meta``: what the checkpoint says of itself."""

    meta: dict[str, Any]
    _hooks: Attached

    def remove(self) -> None:
        """Take the adapters off: the model computes what it did before, to the bit."""
        self._hooks.remove()


def model_fingerprint(lm: torch.nn.Module) -> str:
    """SHA-256 over the names and values of a language model's tensors, rounded to float16: the same in whichever of
    float64, float32 and float16 the model was loaded."""
    digest = hashlib.sha256()
    for name, tensor in sorted(lm.state_dict().items()):
        digest.update(f"{name}\0{list(tensor.shape)}\0".encode())
        half = tensor.detach().to("cpu", torch.float16).contiguous()
        digest.update(memoryview(half.view(torch.uint8).numpy().ravel()))
    return digest.hexdigest()


def prepare_model(name: str | os.PathLike[str], offline: bool = False) -> str:
    """The digest that names a model (a directory, or a name on the hub), as a run's report has it; what it needs of
    audiocraft can be imported from then on. ``offline``: from then on this process does not ask the hub. Raises
    VoiceError."""
    from harness.lane.audiocraft_import import prepare_audiocraft
    from harness.lane.errors import LaneError
    from harness.lane.hub import stay_offline
    from harness.lane.model import identify_model

    try:
        digest, needs_transformers = identify_model(str(name))
        prepare_audiocraft(transformers=needs_transformers)
    except LaneError as error:
        raise VoiceError(f"{error.cause}; next: {error.action}") from None
    if offline and needs_transformers:
        stay_offline()
    return digest


def load_musicgen(name: str | os.PathLike[str], device: str = "cpu") -> Any:
    """audiocraft's MusicGen, frozen and in eval mode. ``name``: a directory in audiocraft's export format, or a name
    on the hub. It works in the environment that the set-up makes, where ``from audiocraft.models import MusicGen``
    would import all of audiocraft's solvers. Raises VoiceError, or what audiocraft raises."""
    prepare_model(name)
    from audiocraft.models.musicgen import MusicGen
    from audiocraft.modules.transformer import set_efficient_attention_backend

    set_efficient_attention_backend("torch")  # before a model is built
    model = MusicGen.get_pretrained(str(name), device=device)
    for module in (model.lm, model.compression_model):
        module.eval()
        module.requires_grad_(False)
    return model


def sampled(model: Any, prompt: str, seconds: float) -> Any:
    """float64 samples ``[samples]`` at the model's rate, with a line of progress each second or so."""
    model.set_generation_params(duration=seconds, top_k=min(250, model.lm.card))  # audiocraft's own 250
    shown = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal shown
        if done >= total or time.monotonic() - shown > 1.0:
            shown = time.monotonic()
            print(f"generated {min(done, total)} of {total} frames", file=sys.stderr, flush=True)

    model.set_custom_progress_callback(progress)
    return model.generate([prompt], progress=True)[0, 0].double().cpu().numpy()


def read_voice(checkpoint: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(The adapters' tensors by name, float32; what the checkpoint says of itself). Nothing in the file is executed.
    Raises VoiceError for a file that is no checkpoint of this lane."""
    path = Path(checkpoint)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        tensors, meta = dict(loaded["adapter"]), dict(loaded["meta"])
    except FileNotFoundError:
        raise VoiceError(f"{show(path)}: found no such file, expected a checkpoint of the lane") from None
    except Exception as error:  # whatever a file that is none makes the reader raise
        reason = " ".join(str(error).split())[:120]
        raise VoiceError(
            f"{show(path)}: found {type(error).__name__} ({reason}), expected a checkpoint of the lane"
        ) from None
    if meta.get("rank") != RANK:
        raise VoiceError(f"{show(path)}: found an adapter of rank {meta.get('rank', 'not named')}, expected {RANK}")
    return tensors, meta


def attach_voice(model: Any, checkpoint: str | os.PathLike[str]) -> AttachedVoice:
    """Attach a checkpoint's adapters to audiocraft's MusicGen ``model``; ``.remove()`` takes them off.

    Right teacher-forced (``lm.compute_predictions``) and in streaming generation (``generate``), for any split of the
    sequence. The adapters compute in the model's dtype, or in float32 where that is a half precision. Raises
    VoiceError for a file that is no checkpoint of the lane, and for one that was trained on another model.
    """
    tensors, meta = read_voice(checkpoint)
    own, trained_on = model_fingerprint(model.lm), meta.get("model_fingerprint")
    if trained_on != own:
        found = f"trained on {meta.get('model_id')} ({str(trained_on or 'not named')[:12]})"
        raise VoiceError(f"{show(Path(checkpoint))}: found an adapter {found}, and this model is {own[:12]}: attach it "
                         "to the model that it was trained on, or train again")  # fmt: skip
    parameter = next(model.lm.parameters())
    dtype = parameter.dtype if parameter.dtype in (torch.float32, torch.float64) else torch.float32
    adapters = make_adapters(model.lm, 0, dtype=dtype, device=str(parameter.device))
    try:
        adapters.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise VoiceError(f"{show(Path(checkpoint))}: found other tensors than an adapter has: {reason}") from None
    return AttachedVoice(meta, attach(model.lm, adapters.requires_grad_(False)))

"""Load a MusicGen, unmodified, freeze it, and bring it into the dtype of the numeric mode."""

from __future__ import annotations

import hashlib
import logging
import pickle
from pathlib import Path
from typing import Any

import torch

from harness.lane.audiocraft_import import prepare_audiocraft
from harness.lane.errors import LaneError
from harness.lane.files import file_sha256
from harness.lane.settings import Settings

MODEL_FILES = ("state_dict.bin", "compression_state_dict.bin")


def check_model_directory(directory: Path) -> tuple[str, bool]:
    """(SHA-256 that names the model, whether it needs the transformers package) of a directory in audiocraft's export
    format.

    The files are opened with ``weights_only``: a pickle that would run code is refused unread. Raises LaneError.
    """
    digests = []
    needs_transformers = False
    for name in MODEL_FILES:
        path = directory / name
        try:
            package = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            config = package.get("xp.cfg", "")
            needs_transformers |= "pretrained" in package or "t5" in str(config)
            digests.append(file_sha256(path))
        except FileNotFoundError:
            cause = f"{path}: there is no such file; a model directory holds {' and '.join(MODEL_FILES)}"
            raise LaneError("load_model", "model_missing", cause, "set LANE_MODEL to an exported model") from None
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, AttributeError, KeyError) as error:
            reason = " ".join(str(error).split())[:160]
            cause = f"{path}: refused, it cannot be read as plain tensors and values ({type(error).__name__}: {reason})"
            raise LaneError(
                "load_model", "model_refused", cause, "export the model again, from a source you trust"
            ) from None
    return hashlib.sha256("\n".join(digests).encode()).hexdigest(), needs_transformers


def load_model(settings: Settings, dtype: torch.dtype) -> tuple[Any, str]:
    """(audiocraft's MusicGen, the model's digest): frozen, in eval mode, its LM in ``dtype``.

    The codec computes in float64 where the mode can afford it, see ``codec_dtype``. Raises LaneError (step
    ``load_model``).
    """
    directory = Path(settings.model)
    if directory.is_dir():
        digest, needs_transformers = check_model_directory(directory)
    else:
        digest, needs_transformers = "unknown", True
    try:
        prepare_audiocraft(transformers=needs_transformers)
        if settings.attention_backend == "xformers":
            import xformers.ops  # the placeholder, or the real one

            if not hasattr(xformers.ops, "fmha"):
                raise ImportError("xformers is not installed")
        from audiocraft.modules.transformer import set_efficient_attention_backend

        set_efficient_attention_backend(settings.attention_backend)  # before a model is built
        from audiocraft.models.musicgen import MusicGen
    except ImportError as error:
        raise LaneError(
            "load_model",
            "package_missing",
            f"cannot import what the model needs: {error}",
            "python3 -m harness bootstrap",
        ) from error
    logging.getLogger("audiocraft").setLevel(logging.WARNING)
    try:
        model = MusicGen.get_pretrained(settings.model, device=settings.device)
    except (OSError, RuntimeError, KeyError, AttributeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        cause = f"{settings.model}: audiocraft cannot load it ({type(error).__name__}: {reason})"
        raise LaneError(
            "load_model", "model_unusable", cause, "set LANE_MODEL to a model that audiocraft can load"
        ) from error
    model.lm.to(dtype)
    for module in (model.lm, model.compression_model):
        module.eval()
        module.requires_grad_(False)
    return model, digest


def condition_tensors(model: Any, description: str, batch: int) -> Any:
    """The text condition of ``batch`` equal descriptions, computed once for the run by audiocraft's own
    conditioners."""
    from audiocraft.modules.conditioners import ConditioningAttributes

    provider = model.lm.condition_provider
    attributes = [ConditioningAttributes(text={"description": description}) for _ in range(batch)]
    with torch.no_grad():
        return provider(provider.tokenize(attributes))

"""Load a MusicGen, unmodified, freeze it, and bring it into the dtype of the numeric mode."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import init
from torch.utils.serialization import config

from harness.base.files import file_sha256, show
from harness.lane.audiocraft_import import prepare_audiocraft
from harness.lane.errors import LaneError, shortage
from harness.lane.hub import (
    MODEL_FILES,
    check_model_file,
    fetch_model,
    fetch_parts,
    files_digest,
    named_parts,
    stay_offline,
)
from harness.lane.settings import Settings


def check_model_files(files: dict[str, Path]) -> tuple[list[str], str | None, list[str]]:
    """(SHA-256 of each, the codec they name or None, the text encoders they name) of the two files of a model.

    The files are opened with ``weights_only``: a pickle that would run code is refused unread. Raises LaneError.
    """
    digests = []
    codec = None
    encoders: list[str] = []
    for path in files.values():

        def refuse(code: str, found: str, action: str, path: Path = path) -> LaneError:
            return LaneError("load_model", code, f"{show(path)}: {found}", action)

        try:
            check_model_file(path)
            check_pickle(path)
            package = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            weights = {} if "pretrained" in package else package["best_state"]
            for key, value in weights.items():
                if value.numel() * value.element_size() > path.stat().st_size:  # by strides of 0, or none at all
                    found = f"tensor {show(Path(key))} says that it is larger than the file"
                    raise refuse("model_refused", found, "export the model again")
                if not bool(torch.isfinite(value).all()):
                    found = f"tensor {show(Path(key))} holds a value that is not finite"
                    raise refuse("model_not_finite", found, "export the model again")
            # A codec may be named instead of held: by its name on the hub, and not as a file, which could hold code.
            named = package.get("pretrained", "facebook/encodec_32khz")
            if not re.fullmatch(r"[\w-]+/[\w.-]+", named) or Path(named).exists():
                found = f"names the codec {show(Path(named))}, which is no name on the hub"
                raise refuse("model_refused", found, "export the model again, from a source you trust")
            codec = package.get("pretrained", codec)
            config = package.get("xp.cfg", "")
            if not isinstance(config, str):
                raise refuse("model_refused", "its configuration is no text", "export the model again")
            encoders += named_parts(config)
            digests.append(file_sha256(path))
        except LaneError:
            raise
        except Exception as error:  # a hostile pickle can make the reader raise anything
            if shortage(error):
                raise
            reason = " ".join(str(error).split())[:160]
            found = f"refused, it cannot be read as plain tensors and values ({type(error).__name__}: {reason})"
            raise refuse("model_refused", found, "export the model again, from a source you trust") from None
    return digests, codec, encoders


def check_pickle(path: Path) -> None:
    """Raises ValueError for a file whose pickle makes torch ask for memory that the file does not hold."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > member.compress_size:
                raise ValueError(f"its member {member.filename[:80]!r} is compressed, as torch writes none")
            if member.filename.endswith("data.pkl") and b"bytearray" in archive.read(member):
                raise ValueError("its pickle makes a bytearray")


def identify_model(name: str, say: Callable[[str], None] = lambda line: None) -> tuple[str, bool]:
    """(SHA-256 that names the model, whether it needs the transformers package) of a directory in audiocraft's export
    format, or of a name on the hub. The digest is over the files that the model is made from, those of a codec and a
    text encoder that it names included. ``say`` shows what is downloaded. Raises LaneError (step ``load_model``)."""
    directory = Path(name)
    is_here = directory.is_dir()
    files = {file: directory / file for file in MODEL_FILES} if is_here else fetch_model(name, say)
    digests, codec, encoders = check_model_files(files)
    parts = fetch_parts(codec, encoders, say)
    return hashlib.sha256("\n".join([*digests, *files_digest(parts)]).encode()).hexdigest(), bool(parts)


@contextlib.contextmanager
def no_initial_values() -> Iterator[None]:
    """While the block runs, new parameters keep what is in memory: every one is read from the file next
    (``load_state_dict`` is strict). Drawing 420M initial values takes 6.6 of the 9.3 s of a load (measured, one core).
    """
    names = [name for name in dir(init) if name.endswith("_") and not name.startswith("_")]
    kept = {name: getattr(init, name) for name in names}
    try:
        for name in names:
            setattr(init, name, lambda tensor, *arguments, **options: tensor)
        yield
    finally:
        for name, function in kept.items():
            setattr(init, name, function)


@contextlib.contextmanager
def mapped_files() -> Iterator[None]:
    """While the block runs, ``torch.load`` maps files instead of reading them into memory, which for a model of 0.84 GB
    in float16 the process kept to its end (measured, glibc)."""
    kept = config.load.mmap
    try:
        config.load.mmap = True
        yield
    finally:
        config.load.mmap = kept


def load_model(
    settings: Settings, dtype: torch.dtype, say: Callable[[str], None] = lambda line: None
) -> tuple[Any, str]:
    """(audiocraft's MusicGen, the model's digest): frozen, in eval mode, its LM in ``dtype``.

    ``say`` shows what is downloaded. Raises LaneError (step ``load_model``).
    """
    # Both would make torch run what a pickle asks for: this variable, and audiocraft's own way with an address.
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    digest, needs_transformers = identify_model(settings.model, say)
    if needs_transformers:
        stay_offline()
    try:
        prepare_audiocraft(transformers=needs_transformers)
        if needs_transformers:
            import transformers

            transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
        from audiocraft.modules.transformer import set_efficient_attention_backend

        set_efficient_attention_backend(settings.attention_backend)  # before a model is built
        from audiocraft.models.musicgen import MusicGen
    except ImportError as error:
        if shortage(error):
            raise
        raise LaneError(
            "load_model",
            "package_missing",
            f"cannot import what the model needs: {error}",
            "python3 -m harness bootstrap",
        ) from error
    logging.getLogger("audiocraft").setLevel(logging.WARNING)
    try:
        with no_initial_values(), mapped_files():
            model = MusicGen.get_pretrained(settings.model, device=settings.device)
    except Exception as error:  # whatever a configuration that makes no sense leads audiocraft into
        if shortage(error):
            raise
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

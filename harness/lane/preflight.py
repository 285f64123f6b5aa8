"""Step ``preflight``: can this processor compute what is asked for, is the narration there and whole, are there
a model and the other recordings?

Nothing is written, and nothing of an earlier run is removed yet: a mistyped path costs none."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path

from harness.base.files import is_lfs_pointer, show
from harness.lane.audio import MINIMUM_BYTES, AudioFacts, AudioStream, bad_audio, check_regular_file, inspect_audio
from harness.lane.containers import NEED_AV, kind_of
from harness.lane.dataset import find_audio, read_manifest
from harness.lane.errors import LaneError
from harness.lane.hub import MODEL_FILES, check_model_file, fetch_model
from harness.lane.outputs import check_names
from harness.lane.scalars import check_tensorboard
from harness.lane.settings import Settings
from harness.numerics.processor import FORCING, lacking


def preflight(settings: Settings, say: Callable[[str], None]) -> AudioFacts:
    """All of it; returns what one pass over the narration found. ``say`` shows what is downloaded.

    Raises LaneError (step ``preflight``).
    """
    try:
        check_names(settings)
        check_processor(settings)
        check_tensorboard(settings)
        narration = check_narration(settings)
        check_model(settings, say)
        if settings.run_prepare:
            find_audio(settings)
        else:
            read_manifest(settings)
        return narration
    except LaneError as error:  # also of those whose code is a later step's too
        error.step = "preflight"
        raise


def check_model(settings: Settings, say: Callable[[str], None]) -> None:
    """Refuse a LANE_MODEL that is none: a path with nothing there, a directory without a model's files, a name that
    neither cache nor hub has. What is in the files is seen when they are loaded. Raises LaneError."""
    if settings.attention_backend == "xformers" and importlib.util.find_spec("xformers") is None:
        cause = "EFFICIENT_ATTENTION_BACKEND=xformers, and xformers is not installed"
        action = "pip install xformers, or set EFFICIENT_ATTENTION_BACKEND=torch"
        raise LaneError("preflight", "package_missing", cause, action)
    directory = Path(settings.model)
    if directory.is_dir():
        for name in MODEL_FILES:
            check_model_file(directory / name)
    elif directory.exists() or not re.fullmatch(r"[\w-]+(/[\w.-]+)?", settings.model):
        cause = f"LANE_MODEL={show(directory)} is no model directory, and no name on the hub (owner/name)"
        raise LaneError("preflight", "model_missing", cause, "set LANE_MODEL to an exported model")
    else:
        try:
            fetch_model(settings.model, say)
        except LaneError as error:
            error.cause = f"LANE_MODEL={show(directory)} is no directory here; as a name on the hub: {error.cause}"
            raise


def check_processor(settings: Settings) -> None:
    """Refuse kernels that the processor lacks, before torch is asked for one: it would die of SIGILL, or, where it
    ignores the name, compute other bits than portable mode promises. Raises LaneError (step ``preflight``)."""
    if not (absent := lacking(os.environ, FORCING)):
        return
    if settings.numerics == "portable":
        cause = f"portable mode cannot be computed here: {absent}"
        raise LaneError("preflight", "processor_lacks_kernels", cause, "set LANE_NUMERICS=universal or native")
    names = " ".join(f"-u {name}" for name in FORCING if lacking(os.environ, (name,)))
    action = f"unset it: env {names} python3 -m harness run"
    raise LaneError("preflight", "processor_lacks_kernels", absent, action)


def audio_in(paths: list[Path]) -> tuple[float, int]:
    """(Seconds, bytes as 16-bit PCM) of recordings by their headers; of what has none that is understood, nothing."""
    import soundfile

    seconds, size = 0.0, 0
    for path in paths:
        with contextlib.suppress(soundfile.SoundFileError, LaneError, OSError, RuntimeError, TypeError, ValueError):
            if kind_of(path) in NEED_AV:
                with AudioStream(path) as stream:
                    frames, rate, channels = stream.promised, stream.sample_rate, stream.channels
            else:
                header = soundfile.info(os.fspath(path))
                frames, rate, channels = header.frames, header.samplerate, header.channels
            seconds += frames / rate
            size += frames * channels * 2
    return seconds, size


def check_narration(settings: Settings) -> AudioFacts:
    """Check AUDIO_PATH: a regular file, no LFS pointer, decodable to its end, finite, not silent, longer than a chunk.

    It has more than 5,000,000 bytes, or all recordings together have as 16-bit PCM. Returns what one pass over it
    found; raises LaneError (step ``preflight``)."""
    path = settings.audio_path
    size = check_regular_file(path)
    if is_lfs_pointer(path):
        raise bad_audio(
            path, "audio_is_lfs_pointer", f"is a git-LFS pointer of {size} bytes, not the audio", "git lfs pull"
        )
    if size <= MINIMUM_BYTES:
        seconds, as_pcm = audio_in(find_audio(settings))
        if as_pcm <= MINIMUM_BYTES:
            found = f"is {size:,} bytes"
            if as_pcm:
                found += f"; all recordings together last {seconds:.0f} s, {as_pcm:,} bytes as 16-bit PCM"
            raise bad_audio(
                path,
                "audio_too_small",
                f"{found}; there must be more than {MINIMUM_BYTES:,}",
                "use a longer recording, or a folder of more of them in KNOWLEDGE_SOURCE_DIR (about 3 minutes in all)",
            )
    facts = inspect_audio(path)
    if facts.seconds <= settings.chunk_seconds:
        raise bad_audio(
            settings.audio_path,
            "audio_too_short",
            f"lasts {facts.seconds:.3g} s; one chunk is {settings.chunk_seconds:g} s",
            "use a longer recording, or a smaller LANE_CHUNK_SECONDS",
        )
    return facts

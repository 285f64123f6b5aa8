"""Models that have a name on the Hugging Face hub: find every file in its cache, or fetch it, before anything loads.

A file that is in the cache is used as it is, without asking the hub whether there is a newer one: a run is made from
files, and their digest names the model. ``HF_HOME``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` are huggingface_hub's own;
``AUDIOCRAFT_CACHE_DIR`` is audiocraft's, and holds the two files of the model itself, not the codec and the text
encoder that it names.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.base.files import file_sha256, is_lfs_pointer, show
from harness.lane.errors import LaneError, shortage

MODEL_FILES = ("state_dict.bin", "compression_state_dict.bin")
# audiocraft's own short names.
SHORT_NAMES = {name: f"facebook/musicgen-{name}" for name in ("small", "medium", "large", "melody")}
# What transformers reads. Each line is one need; the first file of it that the cache or the hub has is the one.
CODEC_FILES = (("config.json",), ("model.safetensors", "pytorch_model.bin"))
TEXT_FILES = (*CODEC_FILES, ("tokenizer.json", "spiece.model"))
# Read too where they are there: the tokenizer's settings, and what older releases of transformers read instead.
TEXT_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "spiece.model")
USUAL = {"facebook/encodec_32khz": CODEC_FILES, "t5-base": TEXT_FILES}  # what the MusicGens on the hub name
ANSWER_S = 15.0  # the hub must answer a first question within this; huggingface_hub alone tries for 24 s a file
SHOW_EVERY_S = 5.0
CONFIG_DEPTH = 64
CONFIG_LIMIT = 1 << 20  # characters; audiocraft's own have 10,000

Say = Callable[[str], None]


class Cache:
    """The hub's cache on this machine: one repository's files after another's. ``say`` shows downloads."""

    def __init__(self, say: Say) -> None:
        import huggingface_hub
        from huggingface_hub import constants

        self._hub: Any = huggingface_hub
        self._constants: Any = constants
        self._say = say
        self._answered = False
        self.folder = Path(constants.HF_HUB_CACHE)

    def get(self, repository: str, needs: tuple[tuple[str, ...], ...], folder: Path | None = None) -> dict[str, Path]:
        """``{"<repository>/<file>": path}``: for each need the first file that there is, fetched where it is missing.

        ``folder``: another cache than the usual one. Raises LaneError (step ``load_model``) that names what is missing.
        """
        found = {}
        for need in needs:
            path = next(filter(None, (self._cached(repository, name, folder) for name in need)), None)
            path = path or self._fetch(repository, need, folder)
            found[f"{repository}/{path.name}"] = path
        return found

    def extras(self, repository: str, names: tuple[str, ...]) -> dict[str, Path]:
        """Those of the files that are there; fetched where the hub was asked for this repository already."""
        found: dict[str, Path] = {}
        for name in names:
            path = self._cached(repository, name, None)
            if path is None and self._answered:
                try:
                    path = self._download(repository, name, None)
                except Exception as error:  # it has no such file, or cannot be had: then it is done without
                    if shortage(error):
                        raise
            if path is not None:
                found[f"{repository}/{name}"] = path
        return found

    def _cached(self, repository: str, name: str, folder: Path | None) -> Path | None:
        path = self._hub.try_to_load_from_cache(repository, name, cache_dir=folder)
        return Path(path) if isinstance(path, str) else None

    def _fetch(self, repository: str, need: tuple[str, ...], folder: Path | None) -> Path:
        reason = self._unreachable(repository, need[0])
        for name in need if reason is None else ():
            try:
                return self._download(repository, name, folder)
            except Exception as error:
                if shortage(error):
                    raise
                reason = _told(error)
        where = show(folder or self.folder)
        cause = f"{repository}: {' or '.join(need)} is not in the cache {where}, and cannot be fetched ({reason})"
        raise LaneError("load_model", "model_not_cached", cause, how_to_fetch(repository, folder))

    def _unreachable(self, repository: str, name: str) -> str | None:
        """Why the hub cannot be asked; None where it answers. At most ANSWER_S, whatever the network does."""
        if self._answered:
            return None
        if self._constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set"
        told: list[str | None] = []

        def ask() -> None:
            try:
                self._hub.get_hf_file_metadata(self._hub.hf_hub_url(repository, name), timeout=ANSWER_S)
                told.append(None)
            except Exception as error:
                # That this one file does not exist is an answer too.
                told.append(None if type(error).__name__.endswith("EntryNotFoundError") else _told(error))

        asking = threading.Thread(target=ask, name="hub", daemon=True)
        asking.start()
        asking.join(ANSWER_S)
        reason = told[0] if told else f"no answer within {ANSWER_S:g} s"
        self._answered = reason is None
        return reason

    def _download(self, repository: str, name: str, folder: Path | None) -> Path:
        options: dict[str, Any] = {"cache_dir": folder}
        if "tqdm_class" in inspect.signature(self._hub.hf_hub_download).parameters:
            options["tqdm_class"] = _progress_class(f"{repository}/{name}", self._say)
        self._say(f"DOWNLOAD {repository}/{name}")
        return Path(self._hub.hf_hub_download(repository, name, **options))


def check_model_file(path: Path) -> None:
    """Refuse what cannot be a file of a model, by its place and first bytes. Raises LaneError (step ``load_model``)."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
        found, code, action = "is no regular file", "model_refused", "set LANE_MODEL to an exported model"
        if regular and is_lfs_pointer(path):
            found, code, action = "is a git-LFS pointer, not the model", "model_is_lfs_pointer", "git lfs pull"
        elif regular:
            return
    except FileNotFoundError:
        found = f"there is no such file; a model directory holds {' and '.join(MODEL_FILES)}"
        code, action = "model_missing", "set LANE_MODEL to an exported model"
    raise LaneError("load_model", code, f"{show(path)}: {found}", action)


def fetch_model(name: str, say: Say) -> dict[str, Path]:
    """The two files of the model called ``name``, from the cache or the hub: ``{"<name>/state_dict.bin": path, …}``.

    Raises LaneError (step ``load_model``) within half a minute where neither has them.
    """
    need_transformers()
    cache = os.environ.get("AUDIOCRAFT_CACHE_DIR")
    return Cache(say).get(
        SHORT_NAMES.get(name, name), tuple((file,) for file in MODEL_FILES), Path(cache) if cache else None
    )


def fetch_parts(codec: str | None, text_encoders: list[str], say: Say) -> dict[str, Path]:
    """The files of the codec and of the text encoders that a model names; then the hub is not asked again.

    Raises LaneError (step ``load_model``).
    """
    if codec is None and not text_encoders:
        return {}
    need_transformers()
    cache = Cache(say)
    found: dict[str, Path] = {}
    if codec is not None:
        found |= cache.get(codec, CODEC_FILES)
    for encoder in text_encoders:
        found |= cache.get(encoder, TEXT_FILES) | cache.extras(encoder, TEXT_EXTRAS)
    return found


def stay_offline() -> None:
    """Everything is in the cache: what loads now finds it there at once, also with a network that leads nowhere.

    Before transformers is imported, which reads this once.
    """
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def files_digest(files: dict[str, Path]) -> list[str]:
    """For each file, in the order of the names: its name and SHA-256."""
    return [f"{name} {file_sha256(path)}" for name, path in sorted(files.items())]


def read_config(config: str) -> Any:
    """A model's configuration, as audiocraft will read it. Raises ValueError for one that is too long, that repeats
    itself by aliases (a few lines then stand for more than memory holds), or that asks for anything but itself.

    ``${seanet.channels}``, which audiocraft's own configurations hold, is another place of the same file. All else that
    OmegaConf would resolve (``${oc.env:NAME}`` and whatever packages add) reads the machine, and is refused.
    """
    import yaml  # type: ignore[import-untyped, unused-ignore]
    from omegaconf import OmegaConf

    if len(config) > CONFIG_LIMIT:
        raise ValueError(f"its configuration has {len(config):,} characters; at most {CONFIG_LIMIT:,} are read")
    depth = 0
    for event in yaml.parse(config, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > CONFIG_DEPTH:  # which PyYAML reads in quadratic time
            raise ValueError(f"its configuration holds a YAML alias, or is more than {CONFIG_DEPTH} levels deep")
    whole = OmegaConf.create(config)
    values: list[tuple[str, Any]] = [("", OmegaConf.to_container(whole, resolve=False))]
    while values:
        name, value = values.pop()
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            values += [(f"{name}.{key!s}".lstrip("."), item) for key, item in items]
        elif isinstance(value, str) and "${" in value and not re.fullmatch(r"\$\{[\w.\[\]]+\}", value):
            raise ValueError(
                f"its configuration's {name} is {value!r}, and may name a place of the same file, as ${{a.b}}"
            )
    return whole


def named_parts(config: str) -> list[str]:
    """The text encoders from the hub that a model's configuration (YAML) names: ``["t5-base"]``. Raises ValueError."""
    whole = read_config(config)
    conditioners = whole.get("conditioners") or {}
    named = []
    for conditioner in conditioners.values():
        if conditioner is not None and conditioner.get("model") == "t5":
            named.append(str(conditioner["t5"]["name"]))
    if not all(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not Path(name).exists() for name in named):
        raise ValueError(f"names the text encoder {named[0]!r}, which is no name on the hub")
    return named


def need_transformers() -> None:
    """Raises LaneError (step ``load_model``) where transformers is not installed: before anything is downloaded."""
    if importlib.util.find_spec("transformers") is None:
        raise LaneError(
            "load_model",
            "package_missing",
            "the model needs transformers (a text encoder or a codec from the hub), which is not installed",
            "pip install 'transformers>=4.45' 'sentencepiece>=0.2'   (the extra: hub)",
        )


def how_to_fetch(repository: str, folder: Path | None) -> str:
    """The commands that fill the cache on a machine with a network. The model's own files are the last known to be
    missing, so what it usually names is named too."""
    if repository in USUAL:
        commands = [f"hf download {repository} {' '.join(need[0] for need in USUAL[repository])}"]
    elif repository.startswith("t5") or "encodec" in repository or "/" not in repository:
        commands = [f"hf download {repository}"]
    else:
        into = f" --cache-dir {folder}" if folder else ""
        commands = [f"hf download {repository} {' '.join(MODEL_FILES)}{into}"]
        commands += [f"hf download {name} {' '.join(need[0] for need in needs)}" for name, needs in USUAL.items()]
    return f"where there is a network: {'; '.join(commands)}; then set HF_HOME to that cache here"


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _progress_class(label: str, say: Say) -> Any:
    """A progress bar for huggingface_hub that says a line now and then: ``DOWNLOAD <label> <done> of <total> MB``."""
    from huggingface_hub import utils

    bar: Any = utils.tqdm  # type: ignore[attr-defined]

    class Lines(bar):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})
            self.done, self.whole = int(options.get("initial") or 0), options.get("total")
            self.said = time.monotonic()

        def update(self, n: float | None = 1) -> bool | None:
            self.done += int(n or 0)
            ended = self.whole is not None and self.done >= self.whole
            if ended or time.monotonic() - self.said >= SHOW_EVERY_S:
                self.said = time.monotonic()
                whole = f" of {self.whole / 1e6:.0f}" if self.whole else ""
                say(f"DOWNLOAD {label} {self.done / 1e6:.0f}{whole} MB")
            return None

    return Lines

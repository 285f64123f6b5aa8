"""Every setting of the lane: its variable, its default, what it accepts. A value that is not understood is an error."""

# ruff: noqa: RUF009 (a field's metadata is no shared default)

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.lane.errors import LaneError

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED_MODEL = REPOSITORY / "data" / "musicgen_nano"
SUFFIXES = (".wav", ".mp3", ".flac", ".ogg")  # of the recordings that are read
MORE_SUFFIXES = tuple(".opus .oga .wave .rf64 .aif .aiff .aifc .w64 .caf .au".split())  # read too
WITH_AV_SUFFIXES = (".m4a", ".m4b", ".mp4", ".mov", ".aac")  # read where PyAV is installed
NUMERIC_MODES = ("universal", "portable", "native")
Reader = Callable[[str], Any]


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("one line of text")
    return value


def _line(value: str) -> str:
    if "\n" in _text(value):
        raise ValueError("one line of text")
    return value


def _utf8(value: str) -> str:
    if any("\udc80" <= c <= "\udcff" for c in _line(value)):  # what bytes that are no UTF-8 come as
        raise ValueError("text in UTF-8")
    return value


def absolute(path: str | Path) -> Path:
    """``path`` from the current directory, not following links (so that messages show what the user wrote)."""
    return Path.cwd() / Path(path)


def _path(value: str) -> Path:
    return absolute(_text(value))


def _folder(value: str) -> Path:
    return absolute(_line(value))


def _model(value: str) -> str:
    directory = absolute(_line(value))
    return str(directory.resolve()) if directory.is_dir() else value


def _flag(value: str) -> bool:
    word = value.strip().lower()
    if word not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError("1 or 0")
    return word in ("1", "true", "yes", "on")


def _one_of(*choices: str) -> Reader:
    def read(value: str) -> str:
        if value.strip() not in choices:
            raise ValueError(" or ".join(choices))
        return value.strip()

    return read


def _whole(low: int, high: int, word: str = "") -> Reader:
    """A whole number; None for ``word``."""
    accepted = f"{word}, or a " if word else "a "

    def read(value: str) -> int | None:
        text = value.strip()
        if word and text == word:
            return None
        if len(text) > 20 or not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"{accepted}whole number from {low} to {high}")
        return int(text)

    return read


def _number(low: float, high: float) -> Reader:
    def read(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return number

    return read


@dataclass(frozen=True)
class Variable:
    """An environment variable that is a setting. ``read`` turns its text into the value, or raises ValueError with what
    is accepted. ``default`` is read in the same way: one text, or the shipped model's and every other model's."""

    name: str
    read: Reader
    default: str | tuple[str, str]
    meaning: str
    changes_result: bool = False  # what is computed, and not only where, when or how fast

    def default_for(self, shipped: bool) -> str:
        return self.default if isinstance(self.default, str) else self.default[0 if shipped else 1]

    def shown_default(self) -> str:
        return self.default if isinstance(self.default, str) else " or ".join(self.default)


def _setting(*arguments: Any, **more: Any) -> Any:
    return field(metadata={"variable": Variable(*arguments, **more)})


_result = functools.partial(_setting, changes_result=True)


# fmt: off
@dataclass(frozen=True)
class Settings:
    """The settings of one run, checked; paths are absolute. Here alone stand each one's variable, what is accepted, its
    default and what it is: ``read_settings``, ``--help`` and the README's table are made from it."""

    run_dir: Path = _setting("LANE_RUN_DIR", _folder, "artifacts", "run directory; every file of the run lies in it")
    model: str = _setting("LANE_MODEL", _model, "{checkout}/data/musicgen_nano",
                          "model: a directory in audiocraft's export format, or a name on the hub")
    numerics: str = _setting("LANE_NUMERICS", _one_of(*NUMERIC_MODES), ("universal", "native"),
                             "universal, portable or native; universal for the shipped model, else native")
    seed: int = _result("LANE_SEED", _whole(0, 2**63 - 1), "0", "seed of all randomness, 0 to 2^63-1")
    steps: int = _result("LANE_STEPS", _whole(2, 10**6), "24", "optimizer steps, at least 2")
    batch: int = _result("LANE_BATCH", _whole(1, 4096), ("4", "2"), "chunks in a step; 4 for the shipped model, else 2")
    chunk_seconds: float = _result("LANE_CHUNK_SECONDS", _number(0.1, 30.0), "2.56", "seconds of audio in a chunk")
    stride_seconds: float = _result("LANE_STRIDE_SECONDS", _number(0.02, 1e4), "the chunk's",
                                    "seconds from one chunk's start to the next one's")
    learning_rate: float = _result("LANE_LEARNING_RATE", _number(0.0, 10.0), "0.005",
                                   "AdamW's peak learning rate; two steps of warm-up, then straight down to a tenth")
    weight_decay: float = _result("LANE_WEIGHT_DECAY", _number(0.0, 10.0), "0.01", "AdamW's weight decay")
    holdout: float = _result("LANE_HOLDOUT", _number(0.0, 0.5), "0.15",
                             "share of the audio that is never trained on: of one recording its end, of several whole "
                             "files; 0: hold nothing out")
    eval_every: int = _result("LANE_EVAL_EVERY", _whole(1, 10**6), "8",
                              "steps from one measurement of the held-out loss to the next; the best one is written")
    description: str = _result("LANE_DESCRIPTION", _utf8, "a narration by Auntie Dottie", "condition text")
    max_sanitized: int = _result("LANE_MAX_SANITIZED", _whole(0, 10**12), "0",
                                 "non-finite logits the sanitizer may replace before the run fails")
    threads: int = _setting("LANE_THREADS", _whole(1, 1024), "2", "CPU threads of the lane")
    ranks: int = _setting("LANE_RANKS", _whole(1, 4096), "1",
                          "processes that train together on this machine; under torchrun, as many as it starts")
    timeout_s: float = _setting("LANE_TIMEOUT_S", _number(0.1, 1e6), ("600", "3600"),
                                "seconds after which the run ends itself; 600 for the shipped model, else 3600")
    resume: bool = _setting("LANE_RESUME", _flag, "0",
                            "1: go on from the state that an interrupted run left in the run directory")
    save_every: int | None = _setting("LANE_SAVE_EVERY", _whole(0, 10**6, "auto"), "auto",
                                      "steps from one saved state to the next; 0: none; auto: at most 2 % of the time")
    skip_bad_files: bool = _setting("LANE_SKIP_BAD_FILES", _flag, "0",
                                    "1: leave bad audio files out and say so; 0: a bad file stops the run")
    tensorboard: bool = _setting("LANE_TENSORBOARD", _flag, "0",
                                 "1: losses and learning rate for TensorBoard, in {run_dir}/tensorboard")
    run_id: str = _setting("LANE_RUN_ID", _utf8, "a fresh one", "identifier written into every file of the run")
    audio_path: Path = _setting("AUDIO_PATH", _path, "{checkout}/data/knowledge_audio_source/auntie_dottie.flac",
                                "the narration; more than 5,000,000 bytes, or all recordings together as 16-bit PCM. "
                                "Of a KNOWLEDGE_SOURCE_DIR alone: the largest recording in it")
    source_dir: Path | None = _setting("KNOWLEDGE_SOURCE_DIR", _path, "{checkout}/data/knowledge_audio_source",
        "every recording under it is used, by content; where only AUDIO_PATH is set, that file alone")
    audio_dir: Path = _setting("KNOWLEDGE_AUDIO_DIR", _path, "{run_dir}/knowledge_audio", "where the audio is staged")
    status_path: Path = _setting("TRAIN_STATUS_PATH", _path, "{run_dir}/train_status.json", "status file")
    clear_previous_artifacts: bool = _setting("CLEAR_PREVIOUS_ARTIFACTS", _flag, "1",
                                              "remove an earlier run's report, log and environment first")
    reset_train_outputs: bool = _setting("RESET_TRAIN_OUTPUTS", _flag, "1",
                                         "remove an earlier run's status, tokens, trace and checkpoint first")
    run_prepare: bool = _setting("RUN_PREPARE", _flag, "1", "stage the audio; 0: use the manifest that is there")
    run_train: bool = _setting("RUN_TRAIN", _flag, "1", "train; 0: stop after prepare")
    attention_backend: str = _setting("EFFICIENT_ATTENTION_BACKEND", _one_of("torch", "xformers"), "torch",
                                      "torch, or xformers where that is installed")
    device: str = _setting("ALLOW_CPU_SMOKE", _flag, "1", "0: stop on a machine without a GPU")
    # fmt: on

    def meaning(self) -> dict[str, Any]:
        """The settings that change what is computed; not where, when or how fast."""
        return {name: getattr(self, name) for name, variable in _FIELDS.items() if variable.changes_result}

    def digest(self) -> str:
        """SHA-256 of ``meaning()`` as canonical JSON."""
        return hashlib.sha256(json.dumps(self.meaning(), sort_keys=True).encode()).hexdigest()

    @property
    def model_id(self) -> str:
        """The model's last name in file-name form: ``facebook/musicgen-small`` is ``musicgen_small``."""
        return Path(self.model).name.replace("-", "_").replace(".", "_")

    @property
    def checkpoint_path(self) -> Path:
        return self.run_dir / "checkpoints" / f"tts_voice_train_{self.model_id}.pt"

    @property
    def checkpoint_float64_path(self) -> Path:
        return self.checkpoint_path.with_suffix(".float64.pt")

    @property
    def last_step_path(self) -> Path:
        return self.checkpoint_path.with_suffix(".last_step.pt")

    @property
    def checkpoint_sidecar_path(self) -> Path:
        return self.checkpoint_path.with_suffix(".json")

    @property
    def manifest_path(self) -> Path:
        return self.audio_dir / "voice_dataset_manifest.json"

    @property
    def report_path(self) -> Path:
        return self.run_dir / "train_report.txt"

    @property
    def trace_path(self) -> Path:
        return self.run_dir / "trace.jsonl"

    @property
    def tensorboard_dir(self) -> Path:
        return self.run_dir / "tensorboard"

    @property
    def state_path(self) -> Path:
        return self.run_dir / "train_state.pt"

    @property
    def tokens_path(self) -> Path:
        return self.run_dir / "tokens.npy"

    @property
    def environment_path(self) -> Path:
        return self.run_dir / "environment.json"

    @property
    def log_path(self) -> Path:
        return self.run_dir / "lane.log"


_FIELDS: dict[str, Variable] = {each.name: each.metadata["variable"] for each in fields(Settings)}
VARIABLES = {variable.name: variable for variable in _FIELDS.values()}
DEFAULT_THREADS = int(VARIABLES["LANE_THREADS"].default_for(True))


def is_shipped(model: str) -> bool:
    """Whether ``model`` (a value of LANE_MODEL, or empty) is the shipped one. Others are taken for large ones: 420M
    parameters, of which a smoke run on two cores should take minutes."""
    return not model or absolute(model).resolve() == SHIPPED_MODEL.resolve()


def default_timeout_s(model: str) -> float:
    """The default of LANE_TIMEOUT_S with this value of LANE_MODEL."""
    return float(VARIABLES["LANE_TIMEOUT_S"].default_for(is_shipped(model)))


def settings_table() -> str:
    """The settings as a Markdown table; README.md holds it between two marks, and a test holds README.md to it."""
    rows = [f"| `{name}` | {one.shown_default()} | {one.meaning} |" for name, one in VARIABLES.items()]
    return "\n".join(["| variable | default | what it is |", "|---|---|---|", *rows])


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings of a run from environment variables; an empty value counts as not set. Raises LaneError (step
    ``settings``) naming the first bad one."""
    for name in environment:
        if name.startswith("LANE_") and name not in VARIABLES:
            near = difflib.get_close_matches(name, VARIABLES, n=1)
            hint = f"did you mean {near[0]}?" if near else "python3 -m harness.lane --help lists the settings"
            raise LaneError("settings", "setting_unknown", f"{name} is no setting of the lane; {hint}", f"unset {name}")
    shipped = True
    words = {"{checkout}": str(REPOSITORY), "a fresh one": uuid.uuid4().hex}  # of which a default may be made
    values: dict[str, Any] = {}
    for name, variable in _FIELDS.items():
        text = environment.get(variable.name, "")
        if not text:
            text = variable.default_for(shipped)
            for word, stands_for in words.items():
                text = text.replace(word, stands_for)
        try:
            values[name] = variable.read(text)
        except ValueError as accepted:
            cause = f"{variable.name}={text!r} is not understood; accepted: {accepted}"
            action = f"set {variable.name} to {accepted}, or unset it"
            raise LaneError("settings", "setting_not_understood", cause, action) from None
        # What the defaults of those below are made from.
        if name == "run_dir":
            words["{run_dir}"] = str(values[name])
        elif name == "model":
            shipped = is_shipped(values[name])
        elif name == "chunk_seconds":
            words["the chunk's"] = text
    if environment.get("AUDIO_PATH") and not environment.get("KNOWLEDGE_SOURCE_DIR"):
        values["source_dir"] = None
    elif environment.get("KNOWLEDGE_SOURCE_DIR") and not environment.get("AUDIO_PATH"):
        values["audio_path"] = _largest(values["source_dir"]) or values["audio_path"]
    values["ranks"] = _ranks(values["ranks"], values["batch"], environment)
    values["device"] = _device(values["numerics"], allow_cpu=values["device"])
    return Settings(**values)


def _ranks(asked: int, batch: int, environment: Mapping[str, str]) -> int:
    """How many processes train together: as many as torch's launcher has started, or else as were asked for."""
    started = int(environment["WORLD_SIZE"]) if is_rank(environment) else 1
    if environment.get("LANE_RANKS") and is_rank(environment) and asked != started:
        cause = f"LANE_RANKS={asked}, and torch's launcher has started {started} processes"
        raise LaneError("settings", "ranks_contradict", cause, "unset LANE_RANKS, or start as many")
    ranks = max(asked, started)
    if ranks > batch:
        cause = f"{ranks} ranks (LANE_RANKS, or torchrun's) and {batch} chunks in a step: a rank would have none"
        raise LaneError("settings", "too_many_ranks", cause, "set LANE_RANKS lower, or LANE_BATCH higher")
    return ranks


def is_rank(environment: Mapping[str, str]) -> bool:
    """Whether torch's launcher started this process as one of several."""
    numbers = [environment.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")]
    return bool(environment.get("MASTER_ADDR")) and all(map(str.isdigit, numbers)) and int(numbers[1]) > 1


def _largest(folder: Path) -> Path | None:
    """The largest recording in a folder: its narration, where AUDIO_PATH names none. What needs PyAV comes last."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for suffixes in ((*SUFFIXES, *MORE_SUFFIXES), WITH_AV_SUFFIXES):
        if found := [path for path in files if path.suffix.lower() in suffixes]:
            return max(found, key=lambda path: path.stat().st_size)
    return None


def _device(numerics: str, *, allow_cpu: bool) -> str:
    """``cuda`` where there is one and the mode is native: the other modes promise bits that only the CPU gives."""
    if allow_cpu and numerics != "native":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda" if numerics == "native" else "cpu"
    if not allow_cpu:
        raise LaneError(
            "settings",
            "no_gpu",
            "ALLOW_CPU_SMOKE=0, and torch finds no GPU on this machine",
            "run on a machine with a GPU, or set ALLOW_CPU_SMOKE=1",
        )
    return "cpu"

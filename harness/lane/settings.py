"""Every setting of the lane: its variable, its default, what it accepts. A value that is not understood is an error."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.lane.errors import LaneError

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED_MODEL = REPOSITORY / "data" / "musicgen_nano"
SHIPPED_SOURCE = REPOSITORY / "data" / "knowledge_audio_source"
NUMERIC_MODES = ("universal", "portable", "native")


@dataclass(frozen=True)
class Settings:
    """The settings of one run, checked. Paths are absolute."""

    run_dir: Path  # everything the run leaves behind lies here
    run_id: str  # the same in every file of the run

    clear_previous_artifacts: bool  # remove the report, log and environment of an earlier run first
    reset_train_outputs: bool  # remove status, tokens, trace and checkpoint of an earlier run first
    run_prepare: bool  # stage the audio and write the manifest; otherwise use the manifest that is there
    run_train: bool  # train; otherwise stop after prepare

    audio_path: Path  # the narration that must be there
    source_dir: Path | None  # all audio under it is staged; None: the narration alone
    audio_dir: Path  # where it is staged
    status_path: Path
    skip_bad_files: bool  # leave a bad file out, and say so, instead of stopping

    model: str  # directory in audiocraft's export format, or a name on the hub
    device: str  # cpu, or cuda in native mode
    attention_backend: str  # torch, or xformers where it is installed
    numerics: str  # universal, portable or native
    threads: int
    timeout_s: float  # the run ends itself after this long

    seed: int
    steps: int  # optimizer steps
    batch: int  # chunks in a step
    chunk_seconds: float  # length of a chunk of audio
    stride_seconds: float  # from the start of a chunk to the start of the next
    learning_rate: float
    weight_decay: float
    description: str  # condition text
    max_sanitized: int  # logits the sanitizer may replace before the run counts as failed

    resume: bool  # go on from the state that an interrupted run saved, where there is one
    save_every: int | None  # steps from one saved state to the next; 0: none is saved; None: seldom enough to be cheap

    def meaning(self) -> dict[str, Any]:
        """The settings that change what is computed; not where, when or how fast."""
        return {
            "seed": self.seed,
            "steps": self.steps,
            "batch": self.batch,
            "chunk_seconds": self.chunk_seconds,
            "stride_seconds": self.stride_seconds,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "description": self.description,
            "max_sanitized": self.max_sanitized,
        }

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


# Variable, default, and what it is; the README's table of settings is generated from this one.
VARIABLES: dict[str, tuple[str, str]] = {
    "LANE_RUN_DIR": ("artifacts", "run directory; every file of the run lies in it"),
    "LANE_MODEL": ("data/musicgen_nano", "model: a directory in audiocraft's export format, or a name on the hub"),
    "LANE_NUMERICS": (
        "universal or native",
        "universal, portable or native; universal for the shipped model, else native",
    ),
    "LANE_SEED": ("0", "seed of all randomness, 0 to 2^63-1"),
    "LANE_STEPS": ("24", "optimizer steps, at least 2"),
    "LANE_BATCH": ("4 or 2", "chunks in a step; 4 for the shipped model, else 2"),
    "LANE_CHUNK_SECONDS": ("2.56", "seconds of audio in a chunk"),
    "LANE_STRIDE_SECONDS": ("the chunk's", "seconds from one chunk's start to the next one's"),
    "LANE_LEARNING_RATE": ("0.005", "AdamW's peak learning rate; two steps of warm-up, then straight down to a tenth"),
    "LANE_WEIGHT_DECAY": ("0.01", "AdamW's weight decay"),
    "LANE_DESCRIPTION": ("a narration by Auntie Dottie", "condition text"),
    "LANE_MAX_SANITIZED": ("0", "non-finite logits the sanitizer may replace before the run fails"),
    "LANE_THREADS": ("2", "CPU threads of the lane"),
    "LANE_TIMEOUT_S": (
        "600 or 3600",
        "seconds after which the run ends itself as failed; 600 for the shipped model, else 3600",
    ),
    "LANE_RESUME": ("0", "1: go on from the state that an interrupted run left in the run directory"),
    "LANE_SAVE_EVERY": (
        "auto",
        "steps from one saved state to the next; 0: none; auto: at most 2 % of the training's time",
    ),
    "LANE_SKIP_BAD_FILES": ("0", "1: leave bad audio files out and say so; 0: a bad file stops the run"),
    "LANE_RUN_ID": ("a fresh one", "identifier written into every file of the run"),
    "AUDIO_PATH": ("data/knowledge_audio_source/auntie_dottie.flac", "the narration; larger than 5,000,000 bytes"),
    "KNOWLEDGE_SOURCE_DIR": (
        "data/knowledge_audio_source",
        "every recording under it is used, by content; where only AUDIO_PATH is set, that file alone",
    ),
    "KNOWLEDGE_AUDIO_DIR": ("<run directory>/knowledge_audio", "where the audio is staged"),
    "TRAIN_STATUS_PATH": ("<run directory>/train_status.json", "status file"),
    "CLEAR_PREVIOUS_ARTIFACTS": ("1", "remove an earlier run's report, log and environment first"),
    "RESET_TRAIN_OUTPUTS": ("1", "remove an earlier run's status, tokens, trace and checkpoint first"),
    "RUN_PREPARE": ("1", "stage the audio; 0: use the manifest that is there"),
    "RUN_TRAIN": ("1", "train; 0: stop after prepare"),
    "EFFICIENT_ATTENTION_BACKEND": ("torch", "torch, or xformers where that is installed"),
    "ALLOW_CPU_SMOKE": ("1", "0: stop on a machine without a GPU"),
}


def is_shipped(model: str) -> bool:
    """Whether ``model`` (a value of LANE_MODEL, or empty) is the shipped one. Others are taken for large ones: 420M
    parameters, of which a smoke run on two cores should take minutes."""
    return not model or absolute(model).resolve() == SHIPPED_MODEL.resolve()


DEFAULT_THREADS = 2


def default_timeout_s(model: str) -> float:
    """The default of LANE_TIMEOUT_S; with a model on the hub the run may have to download it."""
    return 600.0 if is_shipped(model) else 3600.0


def settings_table() -> str:
    """The settings as a Markdown table; README.md holds it between two marks, and a test holds README.md to it."""
    rows = [f"| `{name}` | {default} | {meaning} |" for name, (default, meaning) in VARIABLES.items()]
    return "\n".join(["| variable | default | what it is |", "|---|---|---|", *rows])


def _refuse(name: str, value: str, accepted: str) -> LaneError:
    return LaneError(
        "settings",
        "setting_not_understood",
        f"{name}={value!r} is not understood; accepted: {accepted}",
        f"set {name} to {accepted}, or unset it",
    )


def _is_text(value: str) -> bool:
    """Whether the bytes that an environment variable held were UTF-8 (others come as lone surrogates)."""
    return value.isascii() or not any("\udc80" <= c <= "\udcff" for c in value)


class _Reader:
    """Reads typed values from an environment; an empty value counts as not set."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment

    def text(self, name: str, default: str) -> str:
        value = self.environment.get(name, "")
        if "\0" in value or ("\n" in value and name.startswith("LANE_")):
            raise _refuse(name, value, "one line of text")
        if name in ("LANE_DESCRIPTION", "LANE_RUN_ID") and not _is_text(value):
            raise _refuse(name, value, "text in UTF-8")
        return value or default

    def flag(self, name: str, default: bool) -> bool:
        value = self.environment.get(name, "").strip().lower()
        if value in ("1", "true", "yes", "on"):
            return True
        if value in ("0", "false", "no", "off"):
            return False
        if value:
            raise _refuse(name, value, "1 or 0")
        return default

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self.environment.get(name, "").strip()
        if not value:
            return default
        if not value.isascii() or not value.isdigit() or not low <= int(value[:20]) <= high or len(value) > 20:
            raise _refuse(name, value, f"a whole number from {low} to {high}")
        return int(value)

    def whole_or(self, name: str, word: str, low: int, high: int) -> int | None:
        """A whole number; None for ``word``, which is the default."""
        if self.environment.get(name, "").strip() in ("", word):
            return None
        try:
            return self.whole(name, low, low, high)
        except LaneError:
            raise _refuse(name, self.environment[name], f"{word}, or a whole number from {low} to {high}") from None

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.environment.get(name, "").strip()
        if not value:
            return default
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise _refuse(name, value, f"a number from {low:g} to {high:g}")
        return number

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.environment.get(name, "").strip()
        if value and value not in choices:
            raise _refuse(name, value, " or ".join(choices))
        return value or default


def absolute(path: str | Path) -> Path:
    """``path`` from the current directory, not following links (so that messages show what the user wrote)."""
    return Path.cwd() / Path(path)


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings of a run from environment variables. Raises LaneError (step ``settings``) naming the first bad
    one."""
    for name in environment:
        if name.startswith("LANE_") and name not in VARIABLES:
            near = difflib.get_close_matches(name, VARIABLES, n=1)
            hint = f"did you mean {near[0]}?" if near else "python3 -m harness.lane --help lists the settings"
            raise LaneError("settings", "setting_unknown", f"{name} is no setting of the lane; {hint}", f"unset {name}")
    read = _Reader(environment)
    run_dir = absolute(read.text("LANE_RUN_DIR", "artifacts"))
    model = read.text("LANE_MODEL", str(SHIPPED_MODEL))
    if absolute(model).is_dir():
        model = str(absolute(model).resolve())
    shipped = is_shipped(model)
    numerics = read.choice("LANE_NUMERICS", "universal" if shipped else "native", NUMERIC_MODES)
    audio_given = bool(environment.get("AUDIO_PATH"))
    source_given = bool(environment.get("KNOWLEDGE_SOURCE_DIR"))
    source_dir: Path | None = absolute(read.text("KNOWLEDGE_SOURCE_DIR", str(SHIPPED_SOURCE)))
    if audio_given and not source_given:
        source_dir = None
    chunk = read.number("LANE_CHUNK_SECONDS", 2.56, 0.1, 30.0)
    return Settings(
        run_dir=run_dir,
        run_id=read.text("LANE_RUN_ID", uuid.uuid4().hex),
        clear_previous_artifacts=read.flag("CLEAR_PREVIOUS_ARTIFACTS", True),
        reset_train_outputs=read.flag("RESET_TRAIN_OUTPUTS", True),
        run_prepare=read.flag("RUN_PREPARE", True),
        run_train=read.flag("RUN_TRAIN", True),
        audio_path=absolute(read.text("AUDIO_PATH", str(SHIPPED_SOURCE / "auntie_dottie.flac"))),
        source_dir=source_dir,
        audio_dir=absolute(read.text("KNOWLEDGE_AUDIO_DIR", str(run_dir / "knowledge_audio"))),
        status_path=absolute(read.text("TRAIN_STATUS_PATH", str(run_dir / "train_status.json"))),
        skip_bad_files=read.flag("LANE_SKIP_BAD_FILES", False),
        model=model,
        device=_device(numerics, allow_cpu=read.flag("ALLOW_CPU_SMOKE", True)),
        attention_backend=read.choice("EFFICIENT_ATTENTION_BACKEND", "torch", ("torch", "xformers")),
        numerics=numerics,
        threads=read.whole("LANE_THREADS", DEFAULT_THREADS, 1, 1024),
        timeout_s=read.number("LANE_TIMEOUT_S", default_timeout_s(model), 0.1, 1e6),
        seed=read.whole("LANE_SEED", 0, 0, 2**63 - 1),
        steps=read.whole("LANE_STEPS", 24, 2, 10**6),
        batch=read.whole("LANE_BATCH", 4 if shipped else 2, 1, 4096),
        chunk_seconds=chunk,
        stride_seconds=read.number("LANE_STRIDE_SECONDS", chunk, 0.02, 1e4),
        learning_rate=read.number("LANE_LEARNING_RATE", 5e-3, 0.0, 10.0),
        weight_decay=read.number("LANE_WEIGHT_DECAY", 0.01, 0.0, 10.0),
        description=read.text("LANE_DESCRIPTION", "a narration by Auntie Dottie"),
        max_sanitized=read.whole("LANE_MAX_SANITIZED", 0, 0, 10**12),
        resume=read.flag("LANE_RESUME", False),
        save_every=read.whole_or("LANE_SAVE_EVERY", "auto", 0, 10**6),
    )


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

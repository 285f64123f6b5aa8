"""The places where a run leaves files, what may lie there when it begins, and what of earlier runs it removes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from harness.base.files import TEMPORARY_PREFIX, NotOurs, check_place, remove, remove_leftover, show
from harness.base.lock import LOCK_NAME, Busy, owned
from harness.lane.errors import LaneError
from harness.lane.settings import Settings

# What others write into a run directory when the run has ended: the launcher, and the session that judges it.
LATER = {"run.json": "lane_run/1", "gates.json": "gates/1", "history.json": "history/1", "report.html": "page"}
FOLDER = f"{TEMPORARY_PREFIX}rank-"  # where a rank other than 0 has its own files, in the run directory
CLIPS = ("source", "reconstruction", "without_adapter", "with_adapter")


def checkpoint_files(path: Path) -> list[tuple[Path, str]]:
    """A checkpoint and the files beside it, with their kinds (files.py)."""
    return [
        (path, "checkpoint"),
        (path.with_suffix(".float64.pt"), "checkpoint"),
        (path.with_suffix(".last_step.pt"), "last_step"),
        (path.with_suffix(".json"), "checkpoint/1"),
    ]


def train_outputs(settings: Settings) -> list[tuple[Path, str]]:
    """The files that RESET_TRAIN_OUTPUTS is about, with their kinds."""
    own = [(settings.status_path, "train_status/1"), (settings.tokens_path, "tokens")]
    return [*own, (settings.trace_path, "lane_trace/1"), *checkpoint_files(settings.checkpoint_path)]


def outputs(settings: Settings) -> list[tuple[Path, str]]:
    """Every file that a run, its launcher and the session that judges it may write, with its kind."""
    later = {
        **LATER,
        "listen/listen.json": "listen/1",
        **{f"listen/{name}.flac": "clip" for name in CLIPS},
        LOCK_NAME: "lock",
    }
    return [
        *train_outputs(settings),
        (settings.report_path, "report"),
        (settings.environment_path, "environment/1"),
        (settings.log_path, "log"),
        (settings.state_path, "state"),
        (settings.manifest_path, "voice_dataset/1"),
        (settings.audio_dir / LOCK_NAME, "lock"),
        *((settings.run_dir / name, kind) for name, kind in later.items()),
    ]


def other_checkpoints(settings: Settings) -> list[Path]:
    """What the gates would take for a checkpoint of this run, and is none."""
    try:
        found = list(settings.checkpoint_path.parent.glob("tts_voice_train_*.pt"))
    except OSError:  # a folder that cannot be used: who makes and locks it says so
        return []
    named = [path for path in found if re.fullmatch(r"tts_voice_train_[^.]+\.pt", path.name, re.DOTALL)]
    return sorted(path for path in named if path != settings.checkpoint_path)


def check_outputs(settings: Settings) -> None:
    """Refuse, before anything is written, to write where something lies that the lane did not write, or that this run
    must not replace. Raises LaneError (step ``run_directory``)."""
    if settings.source_dir is not None and settings.source_dir.resolve() == settings.audio_dir.resolve():
        cause = f"{show(settings.source_dir)} is both KNOWLEDGE_SOURCE_DIR and KNOWLEDGE_AUDIO_DIR"
        action = "set KNOWLEDGE_AUDIO_DIR to another folder"
        raise LaneError("run_directory", "source_is_staging", cause, action)
    places: dict[Path, tuple[Path, str]] = {}
    others = other_checkpoints(settings)
    for path, kind in [*outputs(settings), *(one for other in others for one in checkpoint_files(other))]:
        real = Path(os.path.realpath(path.parent)) / path.name
        there, of_kind = places.setdefault(real, (path, kind))
        if of_kind != kind:
            cause = f"{show(path)} and {show(there)} are one file, for two outputs ({kind} and {of_kind})"
            action = f"set {_variable(there, settings)} to another place"
            raise LaneError("run_directory", "output_twice", cause, action)
        try:
            check_place(path, kind)
        except NotOurs as error:
            raise not_ours(error, settings) from None
        except NotADirectoryError:
            if settings.run_dir.is_dir() or not path.is_relative_to(settings.run_dir):
                file = next(parent for parent in path.parents if os.path.lexists(parent))
                raise not_ours(NotOurs(0, "is a file where the lane needs a folder", str(file)), settings) from None
        except OSError:
            pass  # a folder that cannot be used: who makes and locks it says so
    if others and settings.run_train and not settings.reset_train_outputs:
        cause = f"{show(others[0])}: an earlier run's, of another model; a run directory holds one checkpoint"
        action = "set RESET_TRAIN_OUTPUTS=1, which removes it, or LANE_RUN_DIR to another folder"
        raise LaneError("run_directory", "checkpoint_of_another_model", cause, action)


def check_folders(settings: Settings) -> None:
    """Refuse, before anything of an earlier run is removed, a folder of an output that cannot be made or written into.
    Raises LaneError (step ``run_directory``); leaves nothing behind."""
    for folder, path in {path.parent: path for path, _ in outputs(settings)}.items():
        there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        try:
            tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            name = _variable(path, settings)
            cause = f"{show(folder)}: cannot be used for {name} ({error.strerror})"
            action = f"set {name} to a place you can write to"
            raise LaneError("run_directory", "run_directory_unusable", cause, action) from None


@contextlib.contextmanager
def locked(settings: Settings, own: Callable[[Path], AbstractContextManager[None]] = owned) -> Iterator[None]:
    """Own the run directory, and the staging folder where that lies elsewhere, while the block runs.

    Raises LaneError if a folder cannot be used, if what is not the lane's lies where it is to write, or if a living run
    owns the folder: with that run's pid, and since when.
    """
    check_outputs(settings)
    folders = {"LANE_RUN_DIR": settings.run_dir}
    if not settings.audio_dir.is_relative_to(settings.run_dir):
        folders["KNOWLEDGE_AUDIO_DIR"] = settings.audio_dir
    with contextlib.ExitStack() as held:
        for name, folder in folders.items():
            action = f"set {name} to a folder you can write to"
            try:
                held.enter_context(own(folder))
            except Busy as owner:
                cause = f"{show(folder)} ({name}): in use by {owner}"
                action = f"wait for it to end, or set {name} to another folder"
                raise LaneError("run_directory", "run_directory_busy", cause, action) from None
            except NotOurs as error:
                raise not_ours(error, settings) from None
            except OSError as error:
                cause = f"{show(folder)}: cannot be used as {name} ({error.strerror})"
                raise LaneError("run_directory", "run_directory_unusable", cause, action) from None
        check_folders(settings)
        yield


def not_ours(error: NotOurs, settings: Settings) -> LaneError:
    """The refusal to write where something lies that is not the lane's."""
    path = Path(error.filename)
    action = f"move it away, or set {_variable(path, settings)} to another place"
    return LaneError("run_directory", "output_not_ours", f"{show(path)}: {error.strerror}", action)


def _variable(path: Path, settings: Settings) -> str:
    status = settings.status_path
    if status != settings.run_dir / "train_status.json" and path in (status, *status.parents):
        return "TRAIN_STATUS_PATH"
    return "LANE_RUN_DIR" if path.is_relative_to(settings.run_dir) else "KNOWLEDGE_AUDIO_DIR"


def check_names(settings: Settings) -> None:
    """Refuse names that the file system cannot hold, before minutes go by. Raises LaneError (step ``preflight``)."""
    for path, kind in outputs(settings):
        if path == settings.checkpoint_float64_path and settings.numerics != "universal":
            continue  # it is not made
        folder = next(parent for parent in path.parents if parent.exists())
        temporary = f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}"
        for name in (folder / temporary, path.parent / temporary):
            try:
                os.lstat(name)
            except FileNotFoundError:
                continue
            except OSError as error:
                lengths = f"{len(os.fsencode(temporary))} bytes, {len(os.fsencode(name))} with its folders"
                cause = f"{show(path.parent / temporary)}: cannot be written ({error.strerror}: {lengths})"
                own = name.parent == folder and (path, kind) in checkpoint_files(settings.checkpoint_path)
                variable = "LANE_MODEL" if own else _variable(path, settings)
                action = f"set {variable} to a shorter path" + (", or rename the model's folder" if own else "")
                raise LaneError("preflight", "name_too_long", cause, action) from None


def temporary_files(settings: Settings) -> Iterator[Path]:
    """Files that runs left unfinished, by their names; of staged copies see dataset.py."""
    for folder in {path.parent for path, _ in outputs(settings)}:
        yield from folder.glob(f"{TEMPORARY_PREFIX}*")


def remove_earlier(settings: Settings) -> None:
    """Remove what earlier runs left, as CLEAR_PREVIOUS_ARTIFACTS and RESET_TRAIN_OUTPUTS say. Raises NotOurs where
    something else has come to lie there; OSError."""
    to_remove: list[tuple[Path, str]] = []
    if settings.clear_previous_artifacts:
        to_remove += [(settings.report_path, "report"), (settings.environment_path, "environment/1")]
    if settings.reset_train_outputs:
        to_remove += train_outputs(settings)
        to_remove += [one for other in other_checkpoints(settings) for one in checkpoint_files(other)]
        to_remove.append((settings.run_dir / "run.json", "lane_run/1"))
        with contextlib.suppress(NotOurs):  # an earlier run's, where this one's goes elsewhere
            remove(settings.run_dir / "train_status.json", "train_status/1")
    if settings.reset_train_outputs and not settings.resume:
        to_remove.append((settings.state_path, "state"))
    for path, kind in to_remove:
        remove(path, kind)
    remove_places(settings.run_dir)
    for path in temporary_files(settings):
        remove_leftover(path)


def place_of(settings: Settings, rank: int) -> Settings:
    """The settings of a rank: of rank 0 the run's, of another the same with a folder of its own, which is removed."""
    if rank == 0:
        return settings
    folder = settings.run_dir / f"{FOLDER}{rank}"
    return dataclasses.replace(
        settings,
        run_dir=folder,
        audio_dir=folder / "knowledge_audio",
        status_path=folder / "train_status.json",
        save_every=0,
        tensorboard=False,
    )


def remove_places(run_dir: Path) -> None:
    """Remove the folders of ranks, also those that ranks left that were killed."""
    for folder in run_dir.glob(f"{FOLDER}[0-9]*"):
        if (folder / LOCK_NAME).is_file() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def stage_again(common: Settings, own: Settings) -> None:
    """With RUN_PREPARE=0 a rank reads what was staged for the run, in its own folder. Raises OSError."""
    if not own.run_prepare and common.audio_dir.is_dir():
        ignored = shutil.ignore_patterns(LOCK_NAME, f"{TEMPORARY_PREFIX}*")
        shutil.copytree(common.audio_dir, own.audio_dir, ignore=ignored, copy_function=os.link, dirs_exist_ok=True)

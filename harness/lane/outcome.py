"""How a run ended, on the disk and on the terminal: its status, its report and its exit code."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from pathlib import Path

from harness.base.files import atomic_write, drop_unfinished, holds_run, is_lfs_pointer, kind_at, show, write_json
from harness.base.report import one_line, render_report
from harness.lane.console import complain, mute, say
from harness.lane.environment import head_commit, peak_gpu_memory_bytes, peak_memory_bytes
from harness.lane.errors import LaneError
from harness.lane.failure import failure_of
from harness.lane.outputs import remove_earlier, remove_places
from harness.lane.run import Run, log, now
from harness.lane.settings import Settings

LEARNED = ("loss_smoothed", "held_out_loss_first", "held_out_loss", "best_step")


def begin(settings: Settings, run: Run) -> None:
    """Remove what earlier runs left, and write status and report of a run that has not ended.

    Whatever ends this process from here on, those two say that nothing was completed.
    """
    run.step = "reset"
    run.began = True
    remove_earlier(settings)
    cause = f"the run of process {os.getpid()} has not ended: it is running, or it was killed"
    unended = LaneError("lane_process", "run_not_ended", cause, "wait for it, or run it again", status="interrupted")
    write_status(settings, run, unended)
    atomic_write(settings.report_path, report_text(run, unended).encode())
    if run.ranks is not None:
        run.ranks.tell("began")


def finish(run: Run, error: BaseException | None) -> int:
    """Write status and report, print the report, and return the exit code. Goes on where a part of it cannot be
    done. Signals are ignored by now."""
    run.let_go()
    failure = failure_of(error, run) if error else None
    if error is not None and failure is not None and run.ranks is not None:
        failure, speaks = run.ranks.last_word(failure, error, run.step, run.where())
        mute(not speaks)
        if speaks and run.common is not None:  # for rank 0, which cannot
            run.settings, run.began = run.common, True
    if error is not None:
        run.loss = run.loss if getattr(error, "loss", None) is None else getattr(error, "loss", None)
        run.sanitized = getattr(error, "sanitized", run.sanitized)
        with contextlib.suppress(MemoryError):
            log.error("the run ended early in step %s", run.step, exc_info=error)
    settings = run.settings
    text = ""
    # A mistyped setting is no reason to lose what an earlier run left.
    if settings and run.owns_run_dir and (run.began or not holds_run(settings.status_path, settings.report_path)):
        failure = _write_status(settings, run, failure)
        drop_unfinished()  # a signal came before its owner could see to it
        text = report_text(run, failure)
        try:
            atomic_write(settings.report_path, text.encode())
        except (OSError, MemoryError) as trouble:
            _not_written(settings.report_path, "report", trouble, settings)
            if not failure:  # the status that was just written says otherwise
                failure = _write_status(settings, run, failure_of(trouble, run))
            text = ""
    text = text or report_text(run, failure)
    if settings and run.ranks is not None and settings.ranks > 1 and run.owns_run_dir and failure:
        remove_places(settings.run_dir)  # those of ranks that are gone; the others have no more use for theirs
    if failure:
        complain(f"{failure.step}: {failure.code}: {failure.cause}")
    say("\n" + text.rstrip())
    return failure.exit_code if failure else 0


def _write_status(settings: Settings, run: Run, failure: LaneError | None) -> LaneError | None:
    """Write the status, if that can be done; returns ``failure``, or that it could not."""
    try:
        write_status(settings, run, failure)
    except (OSError, MemoryError) as trouble:
        _not_written(settings.status_path, "status", trouble, settings)
        return failure or failure_of(trouble, run)
    return failure


def _not_written(path: Path, what: str, trouble: OSError | MemoryError, settings: Settings) -> None:
    """Say so on stderr; and an earlier run's file must not stay in its place and be taken for this one's."""
    reason = getattr(trouble, "strerror", None) or "out of memory"
    complain(f"{show(path)}: the {what} could not be written ({reason})")
    with contextlib.suppress(OSError):
        if kind_at(path) is not None and settings.run_id.encode() not in path.read_bytes():
            path.unlink()


def as_json_number(value: float | None) -> float | str | None:
    """A number for strict JSON: what is not finite becomes the text ``nan``, ``inf`` or ``-inf``."""
    return value if value is None or value - value == 0 else str(value)


def write_status(settings: Settings, run: Run, failure: LaneError | None) -> None:
    """Write ``train_status.json``, atomically; raises OSError."""
    status = {
        "schema": "train_status/1",
        "run_id": settings.run_id,
        "lane": "experimental",
        "promotable": False,
        "status": failure.status if failure else "completed",
        "first_failed_step": failure.step if failure else "none",
        "root_cause": one_line(f"{failure.code}: {failure.cause}") if failure else "none",
        "next_unblock_action": one_line(failure.action) if failure else "none",
        "loss": as_json_number(run.loss),
        "loss_first": as_json_number(run.loss_first),
        **dict.fromkeys(LEARNED),
        **run.learned,
        "steps_done": run.steps_done,
        "steps_total": 0 if run.settings_refused else settings.steps,
        "sanitized_logits": run.sanitized,
        "ranks": settings.ranks,
        "checkpoint_path": show(settings.checkpoint_path) if run.checkpoint else None,
        "checkpoint_sha256": run.checkpoint["sha256"] if run.checkpoint else None,
        "checkpoint_tensor_digest": run.checkpoint["tensor_digest"] if run.checkpoint else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_gpu_memory_bytes": peak_gpu_memory_bytes(),
        "started_at": run.started_at,
        "finished_at": now(),
        "settings": {} if run.settings_refused else settings.meaning(),
    }
    write_json(settings.status_path, status)


def report_text(run: Run, failure: LaneError | None) -> str:
    """The report of a run that has ended, from what is known and from what lies on the disk."""
    status = failure.status if failure else "completed"
    values: dict[str, object] = {
        **run.values,
        "objective_status": {"interrupted": "failed"}.get(status, status),
        "first_failed_step": failure.step if failure else "none",
        "root_cause": f"{failure.code}: {failure.cause}" if failure else "none",
        "next_unblock_action": failure.action if failure else "none",
        "head_commit": head_commit(),
        "python_version": platform.python_version(),
        "gpu_available": gpu_available(),
        "audiocraft_import": os.environ.get("AUDIOCRAFT_IMPORT", "installed"),
    }
    settings = run.settings
    if settings is None:
        return render_report(values)
    if run.settings_refused:
        values |= {"training_status_path": show(settings.status_path), "run_id": settings.run_id}
        values["checkpoint_exists"] = False
        values |= {"training_status_json": _status_json(settings, run), "log_path": show(settings.log_path)}
        return render_report(values)
    audio, checkpoint = settings.audio_path, settings.checkpoint_path
    with contextlib.suppress(OSError, ValueError):
        values |= {"audio_path": show(audio), "audio_exists": audio.exists(), "audio_is_lfs_pointer": False}
        values["audio_size_bytes"] = audio.stat().st_size
        if audio.is_file():
            values["audio_is_lfs_pointer"] = is_lfs_pointer(audio)
    values |= {
        "manifest_path": show(settings.manifest_path),
        "manifest_exists": run.owns_run_dir and settings.manifest_path.exists(),  # else it is another's
        "training_status_path": show(settings.status_path),
        "training_status_json": _status_json(settings, run),
        "checkpoint_path": show(checkpoint),
        "checkpoint_exists": run.checkpoint is not None,
        "checkpoint_size_bytes": run.checkpoint["bytes"] if run.checkpoint else 0,
        "checkpoint_sha256": run.checkpoint["sha256"] if run.checkpoint else None,
        "checkpoint_tensor_digest": run.checkpoint["tensor_digest"] if run.checkpoint else None,
        "run_id": settings.run_id,
        "model_id": settings.model_id,
        "settings_digest": settings.digest(),
        "numeric_mode": settings.numerics,
        "seed": settings.seed,
        "steps": settings.steps,
        "ranks": settings.ranks,
        "loss": run.loss,
        "loss_first": run.loss_first,
        **run.learned,
        "sanitized_logits": run.sanitized,
        "log_path": show(settings.log_path),
    }
    values.setdefault("manifest_entry_count", 0)
    return render_report(values)


def _status_json(settings: Settings, run: Run) -> str | None:
    """The status file on one line; None where it is not this run's, or cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        if run.owns_run_dir:
            status = json.loads(settings.status_path.read_bytes())
            return json.dumps(status) if status["run_id"] == settings.run_id else None
    return None


def gpu_available() -> bool:
    """Whether torch sees a GPU; where torch was never imported, whether the system has an NVIDIA device."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):
        return bool(torch.cuda.is_available())
    return Path("/dev/nvidia0").exists()

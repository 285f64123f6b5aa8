"""``python3 -m harness.lane``: one run of the lane, from audio file to checkpoint and report.

The steps stand in ``run_lane``, in the order in which data flows. Everything around it makes sure that, whatever
happens, the run ends in a status file, a report and an exit code that agree.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import faulthandler
import fcntl
import json
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

from harness.lane.audio import is_lfs_pointer, show
from harness.lane.errors import EXIT_CODES, LaneError
from harness.lane.files import TEMPORARY_PREFIX, atomic_write, write_json
from harness.lane.report import one_line, render_report
from harness.lane.settings import VARIABLES, Settings, read_settings, settings_table
from harness.numerics.modes import environment_pins

log = logging.getLogger("harness.lane")


class Stopped(BaseException):
    """Raised in the main thread by a signal; not an Exception, so that no library swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Run:
    """What is known of the run so far; the status file and the report are written from it."""

    def __init__(self, settings: Settings | None) -> None:
        self.settings = settings
        self.step = "settings"
        self.started_at = now()
        self.owns_run_dir = False
        self.values: dict[str, Any] = {"lane": "experimental", "promotable": False}
        self.loss: float | None = None
        self.loss_first: float | None = None
        self.steps_done = 0
        self.sanitized = 0
        self.checkpoint: dict[str, Any] | None = None

    def enter(self, step: str) -> None:
        """Note and show which step of the lane begins."""
        self.step = step
        log.info("step %s", step)
        say(f"STEP {step}")


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def say(line: str) -> None:
    """One line on stdout, at once. A reader who went away is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        print(line, flush=True)


def run_lane(settings: Settings, run: Run) -> None:
    """The lane, in the order in which data flows. Raises LaneError (or anything else) on the way; returns when
    completed."""
    run.enter("reset")
    reset(settings)

    run.enter("preflight")
    from harness.lane.preflight import check_narration

    narration = check_narration(settings)

    run.enter("prepare")
    from harness.lane.dataset import prepare_dataset, read_manifest

    manifest = prepare_dataset(settings, narration) if settings.run_prepare else read_manifest(settings)
    run.values |= {"dataset_digest": manifest["dataset_digest"], "manifest_entry_count": len(manifest["entries"])}
    for line in manifest.get("skipped", []):
        say(f"SKIPPED {line}")
    if not settings.run_train:
        raise LaneError(
            "train", "training_not_asked_for", "RUN_TRAIN=0: prepared, not trained", "set RUN_TRAIN=1", exit_code=0
        )

    run.enter("load_model")
    import torch

    from harness.lane.adapter import make_adapters
    from harness.lane.checkpoint import write_checkpoint
    from harness.lane.environment import describe_environment
    from harness.lane.model import load_model
    from harness.lane.tokens import tokenise, write_tokens
    from harness.lane.trace import Trace
    from harness.lane.trainer import train
    from harness.numerics.battery import numeric_class
    from harness.numerics.modes import apply_mode

    dtype = apply_mode(settings.numerics, settings.threads)
    run.values["numeric_class"] = numeric_class()
    write_json(settings.environment_path, describe_environment(settings, run.values["numeric_class"]))
    model, model_digest = load_model(settings, dtype)
    run.values["model_digest"] = model_digest

    run.enter("tokenise")
    # Tokens are an argmin: float64 gives the same ones in every numeric class, so it is used wherever it can be
    # afforded.
    codec = model.compression_model
    small = sum(parameter.numel() for parameter in codec.parameters()) < 5_000_000
    codec.to(torch.float64 if small and settings.device == "cpu" else torch.float32)
    tokens = tokenise(settings, manifest, codec, lambda done, total: say(f"TOKENS {done} {total}"))
    write_tokens(settings.tokens_path, tokens)
    run.values["tokens_digest"] = tokens.digest()

    run.enter("adapt")
    adapter_dtype = dtype if settings.device == "cpu" else torch.float32
    adapters = make_adapters(model.lm.dim, settings.seed, dtype=adapter_dtype, device=settings.device)

    run.enter("train")
    trace = Trace(settings)
    with contextlib.ExitStack() as at_the_end:
        at_the_end.callback(trace.publish)
        trace.write(
            "header",
            schema="lane_trace/1",
            run_id=settings.run_id,
            lane="experimental",
            promotable=False,
            mode=settings.numerics,
            numeric_class=run.values["numeric_class"],
            seed=settings.seed,
            steps=settings.steps,
            batch=settings.batch,
            settings_digest=settings.digest(),
            model_digest=model_digest,
            dataset_digest=manifest["dataset_digest"],
        )
        trace.write(
            "tokens",
            tokens_digest=run.values["tokens_digest"],
            shape=list(tokens.codes.shape),
            chunks=[
                {"file": file, "start": start, "digest": digest}
                for (file, start), digest in zip(tokens.sources, tokens.chunk_digests(), strict=True)
            ],
        )

        def progress(done: int, total: int, loss: float) -> None:
            run.steps_done, run.loss = done, loss
            run.loss_first = loss if run.loss_first is None else run.loss_first
            say(f"PROGRESS {done} {total} LOSS {loss:.6f}")

        result = train(settings, model, adapters, tokens, trace, progress)
    run.loss, run.loss_first, run.sanitized = result.loss, result.loss_first, result.sanitized

    run.enter("checkpoint")
    run.checkpoint = write_checkpoint(settings, adapters, keep_float64=settings.numerics == "universal")


def pin_process(settings: Settings) -> None:
    """Numeric environment variables count only if they are set before torch loads: where they are not, start over with
    them."""
    pins = environment_pins(settings.numerics, settings.threads)
    if any(os.environ.get(name) != value for name, value in pins.items()):
        os.environ.update(pins, LANE_RUN_ID=settings.run_id)
        os.execv(sys.executable, sys.orig_argv)


def reset(settings: Settings) -> None:
    """Remove what earlier runs left, as CLEAR_PREVIOUS_ARTIFACTS and RESET_TRAIN_OUTPUTS say: files the lane writes,
    by name, and its temporary files of runs that were killed. Nothing else is touched."""
    doomed: list[Path] = []
    if settings.clear_previous_artifacts:
        doomed += [settings.report_path, settings.environment_path]
    if settings.reset_train_outputs:
        doomed += [settings.status_path, settings.tokens_path, settings.trace_path]
        doomed += [settings.checkpoint_path, settings.checkpoint_float64_path, settings.checkpoint_sidecar_path]
    folders = [settings.run_dir, settings.checkpoint_path.parent, settings.audio_dir]
    for folder in folders:
        if folder.is_relative_to(settings.run_dir):
            doomed += folder.glob(f"{TEMPORARY_PREFIX}*")
    for path in doomed:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Own the run directory while the block runs. The kernel lets go of the lock when its owner dies, however it dies.

    Raises LaneError if the directory cannot be used, or if a living run owns it: with that run's pid, and since when.
    """
    path = settings.run_dir / ".lane.lock"
    try:
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        file: IO[str] = path.open("a+", encoding="ascii")
    except OSError as error:
        cause = f"{show(settings.run_dir)}: cannot be used as the run directory ({error.strerror})"
        raise LaneError(
            "run_directory", "run_directory_unusable", cause, "set LANE_RUN_DIR to a folder you can write to"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = " ".join(file.read(200).split()) or "an unknown process"
            cause = f"{show(settings.run_dir)}: in use by {owner}"
            action = "wait for it to end, or set LANE_RUN_DIR to another folder"
            raise LaneError("run_directory", "run_directory_busy", cause, action) from None
        file.truncate(0)
        file.write(f"pid {os.getpid()} since {now()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log, warnings and the stacks of a crash go to ``path``, and not to the terminal."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        logging.captureWarnings(True)
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
            root.removeHandler(handler)


def failure_of(error: BaseException, run: Run) -> LaneError:
    """Any way in which a run can end early, as a LaneError with step, cause and next action."""
    if isinstance(error, LaneError):
        return error
    if isinstance(error, Stopped) and error.signum != signal.SIGALRM:
        cause = f"the run got {error} in step {run.step}"
        return LaneError(
            run.step, "interrupted", cause, "run it again", status="interrupted", exit_code=128 + error.signum
        )
    if isinstance(error, Stopped):
        limit = run.settings.timeout_s if run.settings else 0
        cause = f"the time limit of {limit:g} s was reached in step {run.step}"
        action = "set LANE_TIMEOUT_S higher, or LANE_STEPS lower"
        return LaneError(run.step, "time_limit", cause, action, status="failed", exit_code=4)
    text = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "not enough memory" in text:
        cause = f"out of memory in step {run.step} ({text or 'no more could be had'})"
        return LaneError(
            run.step, "out_of_memory", cause, "set LANE_BATCH lower, or free memory", status="failed", exit_code=1
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = f"{show(Path(error.filename))}: " if error.filename else ""
        cause = f"{where}no room to write ({error.strerror}) in step {run.step}"
        return LaneError(run.step, "disk_full", cause, "free space, or set LANE_RUN_DIR", status="failed", exit_code=1)
    if isinstance(error, OSError):
        where = f"{show(Path(os.fsdecode(error.filename)))}: " if error.filename else ""
        cause = f"{where}{error.strerror or text} in step {run.step}"
        return LaneError(run.step, "system_error", cause, "look at lane.log", status="failed", exit_code=1)
    cause = f"{type(error).__name__} in step {run.step}: {text}"
    return LaneError(
        run.step, "internal_error", cause, "look at lane.log; it has the traceback", status="failed", exit_code=1
    )


def as_json_number(value: float | None) -> float | str | None:
    """A number for strict JSON: what is not finite becomes the text ``nan``, ``inf`` or ``-inf``."""
    return value if value is None or value - value == 0 else str(value)


def write_status(settings: Settings, run: Run, failure: LaneError | None) -> None:
    """Write ``train_status.json``, atomically; raises OSError."""
    loss = getattr(failure, "loss", None)
    status = {
        "schema": "train_status/1",
        "run_id": settings.run_id,
        "lane": "experimental",
        "promotable": False,
        "status": failure.status if failure else "completed",
        "first_failed_step": failure.step if failure else "none",
        "root_cause": one_line(f"{failure.code}: {failure.cause}") if failure else "none",
        "next_unblock_action": one_line(failure.action) if failure else "none",
        "loss": as_json_number(run.loss if loss is None else loss),
        "loss_first": as_json_number(run.loss_first),
        "steps_done": run.steps_done,
        "steps_total": settings.steps,
        "sanitized_logits": run.sanitized,
        "checkpoint_path": str(settings.checkpoint_path) if run.checkpoint else None,
        "checkpoint_sha256": run.checkpoint["sha256"] if run.checkpoint else None,
        "checkpoint_tensor_digest": run.checkpoint["tensor_digest"] if run.checkpoint else None,
        "started_at": run.started_at,
        "finished_at": now(),
        "settings": settings.meaning(),
    }
    write_json(settings.status_path, status)


def report_text(run: Run, failure: LaneError | None) -> str:
    """The report of a run that has ended, from what is known and from what lies on the disk."""
    from harness.lane.environment import head_commit

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
    audio, checkpoint = settings.audio_path, settings.checkpoint_path
    with contextlib.suppress(OSError, ValueError):
        values |= {"audio_path": show(audio), "audio_exists": audio.exists(), "audio_is_lfs_pointer": False}
        values["audio_size_bytes"] = audio.stat().st_size
        if audio.is_file():
            values["audio_is_lfs_pointer"] = is_lfs_pointer(audio)
    values |= {
        "manifest_path": show(settings.manifest_path),
        "manifest_exists": settings.manifest_path.exists(),
        "training_status_path": show(settings.status_path),
        "training_status_json": None,
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
        "loss": run.loss,
        "loss_first": run.loss_first,
        "sanitized_logits": run.sanitized,
        "log_path": show(settings.log_path),
    }
    values.setdefault("manifest_entry_count", 0)
    if run.owns_run_dir:
        with contextlib.suppress(OSError, ValueError):
            values["training_status_json"] = json.dumps(json.loads(settings.status_path.read_bytes()))
    return render_report(values)


def gpu_available() -> bool:
    """Whether torch sees a GPU; where torch was never imported, whether the system has an NVIDIA device."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):
        return bool(torch.cuda.is_available())
    return Path("/dev/nvidia0").exists()


def finish(run: Run, error: BaseException | None) -> int:
    """Write status and report, print the report, and return the exit code. Goes on where a part of it cannot be
    done."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(signum, signal.SIG_IGN)  # the run is over; it ends within a moment, and in order
    signal.setitimer(signal.ITIMER_REAL, 0)
    failure = failure_of(error, run) if error else None
    settings = run.settings
    if error is not None:
        log.error("the run ended early in step %s", run.step, exc_info=error)
    if settings and run.owns_run_dir:
        try:
            write_status(settings, run, failure)
        except OSError as trouble:
            failure = failure or failure_of(trouble, run)
            complain(f"{show(settings.status_path)}: the status could not be written ({trouble.strerror})")
    text = report_text(run, failure)
    if settings and run.owns_run_dir:
        try:
            atomic_write(settings.report_path, text.encode())
        except OSError as trouble:
            failure = failure or failure_of(trouble, run)
            complain(f"{show(settings.report_path)}: the report could not be written ({trouble.strerror})")
    if failure:
        complain(f"{failure.step}: {failure.code}: {failure.cause}")
    say("\n" + text.rstrip())
    return failure.exit_code if failure else 0


def complain(line: str) -> None:
    """One line on stderr."""
    with contextlib.suppress(OSError, ValueError):
        print(f"FAILED {one_line(line)}", file=sys.stderr, flush=True)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Stopped(signum)


def main(arguments: list[str] | None = None) -> int:
    """Run the lane with the settings of this process's environment; returns the exit code."""
    variables = "\n".join(f"  {name:28} {default:32} {meaning}" for name, (default, meaning) in VARIABLES.items())
    codes = "\n".join(f"  {code:3}  {meaning}" for code, meaning in EXIT_CODES.items())
    parser = argparse.ArgumentParser(
        prog="python3 -m harness.lane",
        description="Train the voice adapter once, from audio to checkpoint. Settings are environment variables.",
        epilog=f"settings (name, default, meaning):\n{variables}\n\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--settings-table", action="store_true", help="print the settings as Markdown, and do not run")
    if parser.parse_args(arguments).settings_table:
        print(settings_table())
        return 0
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(signum, _stop)
    run = Run(None)
    try:
        settings = run.settings = read_settings(os.environ)
        pin_process(settings)
        signal.setitimer(signal.ITIMER_REAL, settings.timeout_s)
        with locked(settings):
            run.owns_run_dir = True
            with logging_to(settings.log_path):
                try:
                    run_lane(settings, run)
                except BaseException as error:
                    return finish(run, error)
                return finish(run, None)
    except BaseException as error:
        return finish(run, error)


if __name__ == "__main__":
    sys.exit(main())

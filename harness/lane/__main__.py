"""``python3 -m harness.lane``: one run of the lane, from audio file to checkpoint and report.

The steps stand in ``run_lane``, in the order in which data flows. Everything around it makes sure that, whatever
happens, the run ends in a status file, a report and an exit code that agree.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import faulthandler
import gc
import io
import json
import logging
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from harness.base.files import (
    NotOurs,
    atomic_write,
    drop_unfinished,
    holds_run,
    is_lfs_pointer,
    kind_at,
    remove,
    show,
    write_json,
)
from harness.base.lock import Busy, could_own, owned
from harness.base.report import one_line, render_report
from harness.lane.environment import (
    describe_environment,
    head_commit,
    let_warnings_be_warnings,
    peak_memory_bytes,
)
from harness.lane.errors import EXIT_CODES, LaneError, shortage
from harness.lane.outputs import check_folders, check_outputs, not_ours, remove_earlier
from harness.lane.settings import VARIABLES, Settings, read_settings, settings_table
from harness.numerics.modes import environment_pins

if TYPE_CHECKING:
    from harness.lane.audio import AudioFacts
    from harness.lane.state import StateFile

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
        self.began = False  # and with that removed what an earlier run had left
        self.is_check = False  # it ends before it trains, and leaves nothing
        self.settings_refused = False  # settings are then the defaults, in the folder that the run was to use
        self.reserve: bytes | None = bytes(4_000_000)  # let go of at the end, so that a run out of memory can say so
        self.values: dict[str, Any] = {"lane": "experimental", "promotable": False}
        self.loss: float | None = None
        self.loss_first: float | None = None
        self.steps_done = 0
        self.sanitized = 0
        self.checkpoint: dict[str, Any] | None = None
        self.states: StateFile | None = None

    def enter(self, step: str) -> None:
        """Note and show which step of the lane begins."""
        go_on()
        self.step = step
        log.info("step %s", step)
        say(f"STEP {step}")


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def say(line: str) -> None:
    """One line on stdout, at once. A reader who went away is no reason to fail."""
    _print(line, sys.stdout)


def complain(line: str) -> None:
    """One line on stderr."""
    _print(f"FAILED {one_line(line)}", sys.stderr)


def _print(line: str, stream: TextIO) -> None:
    try:
        print(line, file=stream, flush=True)
    except (OSError, ValueError):
        # What could not be written waits in the buffer. Python 3.12 tries once more at its end, and then makes the exit
        # code 120.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def run_lane(settings: Settings, run: Run, narration: AudioFacts) -> None:
    """The lane after its preflight, in the order in which data flows. Raises LaneError (or anything else) on the way;
    returns when completed."""
    run.enter("prepare")
    from harness.lane.dataset import prepare_dataset, read_manifest, same_content

    manifest = prepare_dataset(settings, narration) if settings.run_prepare else read_manifest(settings)
    run.values |= {"dataset_digest": manifest["dataset_digest"], "manifest_entry_count": len(manifest["entries"])}
    for line in [*manifest["skipped"], *manifest["left_out"]]:
        say(f"SKIPPED {line}")
    for line in same_content(manifest):
        say(f"EQUAL {line}")
    if not settings.run_train:
        raise LaneError(
            "train", "training_not_asked_for", "RUN_TRAIN=0: prepared, not trained", "set RUN_TRAIN=1", exit_code=0
        )

    run.enter("load_model")
    gc.disable()  # nothing that an import makes is garbage, and looking for some takes 0.15 s (measured)
    import torch

    from harness.lane.adapter import make_adapters
    from harness.lane.checkpoint import write_checkpoint
    from harness.lane.estimate import Estimate
    from harness.lane.model import load_model
    from harness.lane.state import StateFile, identity_of
    from harness.lane.tokens import tokenise, write_tokens
    from harness.lane.trace import Trace
    from harness.lane.trainer import train
    from harness.numerics.battery import numeric_class
    from harness.numerics.modes import apply_mode

    dtype = apply_mode(settings.numerics, settings.threads)
    run.values["numeric_class"] = numeric_class()
    write_json(settings.environment_path, describe_environment(settings, run.values["numeric_class"]))
    model, model_digest = load_model(settings, dtype, say)
    run.values["model_digest"] = model_digest
    gc.enable()
    if run.is_check:
        return

    run.enter("tokenise")
    # Tokens are an argmin: float64 gives the same ones in every numeric class, so it is used wherever it can be
    # afforded.
    codec = model.compression_model
    small = sum(parameter.numel() for parameter in codec.parameters()) < 5_000_000
    codec.to(torch.float64 if small and settings.device == "cpu" else torch.float32)
    tokens = tokenise(settings, manifest, codec, lambda done, total: go_on(f"TOKENS {done} {total}"))
    write_tokens(settings.tokens_path, tokens)
    run.values["tokens_digest"] = tokens.digest()
    model.compression_model = codec = None  # its memory, 0.23 GB of encodec_32khz, is the training's now

    run.enter("adapt")
    adapter_dtype = dtype if settings.device == "cpu" else torch.float32
    adapters = make_adapters(model.lm.dim, settings.seed, dtype=adapter_dtype, device=settings.device)

    run.enter("train")
    run.states = StateFile(settings, identity_of(settings, run.values))
    saved = run.states.load() if settings.resume else None
    if saved is not None:
        run.steps_done, run.loss, run.loss_first = saved.step, saved.loss, saved.loss_first
        say(f"RESUMED after step {saved.step} of {settings.steps}")
    elif settings.resume:
        say("RESUMED nothing: no state was saved, so the training begins")
    tokens_a_step = settings.batch * tokens.codes.shape[-1]
    estimate = Estimate(model, settings.steps - run.steps_done, tokens_a_step, dtype, settings.device)
    say(f"ESTIMATE {estimate.before()}")
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
            go_on(f"PROGRESS {done} {total} LOSS {loss:.6f}")
            if line := estimate.after(done):
                say(f"ESTIMATE {line}")

        result = train(settings, model, adapters, tokens, trace, progress, saved, run.states)
    run.loss, run.loss_first, run.sanitized = result.loss, result.loss_first, result.sanitized

    run.enter("checkpoint")
    run.checkpoint = write_checkpoint(settings, adapters, keep_float64=settings.numerics == "universal")
    run.states.remove()


def pin_process(settings: Settings) -> None:
    """Numeric environment variables count only if they are set before torch loads: where they are not, start over with
    them."""
    pins = environment_pins(settings.numerics, settings.threads)
    if any(os.environ.get(name) != value for name, value in pins.items()):
        os.environ.update(pins, LANE_RUN_ID=settings.run_id)
        os.execv(sys.executable, sys.orig_argv)


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


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log, warnings, errors that Python cannot raise, and the stacks of a crash go to ``path``, not to the terminal.

    A log that can no longer be written (a full disk) is no reason to fail, and nothing to show a traceback for.
    """
    logging.raiseExceptions = False
    remove(path, "log")
    file = path.open("x", encoding="utf-8", errors="backslashreplace")
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    faulthandler.enable(file)
    sys.unraisablehook = lambda what: log.error("ignored in %r: %r", what.object, what.exc_value)
    try:
        yield
    finally:
        sys.unraisablehook = sys.__unraisablehook__
        faulthandler.disable()
        root.removeHandler(handler)
        with contextlib.suppress(OSError):
            file.close()


def failure_of(error: BaseException, run: Run) -> LaneError:
    """Any way in which a run can end early, as a LaneError with step, cause and next action."""
    if isinstance(error, LaneError):
        return error
    saved = run.states.saved_step if run.states else 0
    again = f"LANE_RESUME=1 goes on after step {saved}" if saved else "run it again"
    if isinstance(error, Stopped) and error.signum != signal.SIGALRM:
        cause = f"the run got {error} in step {run.step}"
        return LaneError(run.step, "interrupted", cause, again, status="interrupted", exit_code=128 + error.signum)
    if isinstance(error, Stopped):
        limit = run.settings.timeout_s if run.settings else 0
        cause = f"the time limit of {limit:g} s was reached in step {run.step}"
        action = "set LANE_TIMEOUT_S higher, or LANE_STEPS lower" + (f"; {again}" if saved else "")
        return LaneError(run.step, "time_limit", cause, action, status="failed", exit_code=4)
    text = " ".join(str(error).split())[:300]
    if isinstance(error, NotOurs) and run.settings:
        return not_ours(error, run.settings)
    number = error.errno if isinstance(error, OSError) else None
    where = f"{show(Path(os.fsdecode(error.filename)))}: " if isinstance(error, OSError) and error.filename else ""
    short = shortage(error)
    if short == "out_of_memory":
        code, action = short, "set LANE_BATCH lower, or free memory"
        cause = f"out of memory in step {run.step} ({text or 'no more could be had'})"
    elif short == "too_many_open_files":
        code, action = short, "raise the limit (ulimit -n), and run it again"
        cause = f"{where}no more files can be opened in step {run.step} ({text})"
    elif short == "too_many_threads":
        code, action = short, "raise the limit (ulimit -u), and run it again"
        cause = f"no more threads can be started in step {run.step} ({text})"
    elif number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        code, action = "disk_full", "free space, or set LANE_RUN_DIR"
        where = where or (f"{show(run.settings.run_dir)}: " if run.settings else "")
        cause = f"{where}no room to write ({os.strerror(number or 0)}) in step {run.step}"
    elif isinstance(error, ImportError):
        code, action = "package_missing", "python3 -m harness bootstrap"
        cause = f"{text or type(error).__name__} in step {run.step}"
    elif isinstance(error, OSError):
        code, action = "system_error", "look at lane.log"
        cause = f"{where}{error.strerror or text} in step {run.step}"
    else:
        code, action = "internal_error", "look at lane.log; it has the traceback"
        cause = f"{type(error).__name__} in step {run.step}: {text}"
    return LaneError(run.step, code, cause, action, status="failed", exit_code=1)


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
        "steps_done": run.steps_done,
        "steps_total": 0 if run.settings_refused else settings.steps,
        "sanitized_logits": run.sanitized,
        "checkpoint_path": show(settings.checkpoint_path) if run.checkpoint else None,
        "checkpoint_sha256": run.checkpoint["sha256"] if run.checkpoint else None,
        "checkpoint_tensor_digest": run.checkpoint["tensor_digest"] if run.checkpoint else None,
        "peak_memory_bytes": peak_memory_bytes(),
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
        "loss": run.loss,
        "loss_first": run.loss_first,
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


def finish(run: Run, error: BaseException | None) -> int:
    """Write status and report, print the report, and return the exit code. Goes on where a part of it cannot be
    done. Signals are ignored by now."""
    run.reserve = None
    failure = failure_of(error, run) if error else None
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


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)
_requests: list[int] = []  # signals that asked this process to stop


def listen(on: bool) -> None:
    """Let signals stop the run, or (at its end, which takes a moment and is kept in order) ignore them."""
    if not on:
        signal.setitimer(signal.ITIMER_REAL, 0)
    for signum in SIGNALS:
        # Who started the lane with nohup does not want it to end with the terminal.
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _stop if on else signal.SIG_IGN)


def _stop(signum: int, frame: FrameType | None) -> None:
    _requests.append(signum)
    raise Stopped(signum)


def go_on(line: str | None = None) -> None:
    """Say ``line``, unless the run was asked to stop: an exception that a signal raises within a destructor is
    swallowed by Python, and must not be lost."""
    if line is not None:
        say(line)
    if _requests:
        raise Stopped(_requests[0])


def prepare_streams() -> None:
    """Make sure that 0, 1 and 2 are open (else a file of the run would get such a number, and a library's chatter),
    and that any text can be printed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def settings_of(environment: Mapping[str, str], run: Run) -> Settings:
    """The settings. Raises LaneError; ``run`` then has defaults that tell where its status and report belong."""
    try:
        return read_settings(environment)
    except LaneError:
        run.settings_refused = True
        places = ("LANE_RUN_DIR", "TRAIN_STATUS_PATH", "LANE_RUN_ID")
        for count in (3, 2, 1):
            with contextlib.suppress(LaneError):
                run.settings = read_settings({k: environment[k] for k in places[:count] if k in environment})
                break
        raise


def check(environment: Mapping[str, str]) -> LaneError | None:
    """What would stop a run before it trains: its settings, run directory, recordings or model, as the run's own code
    finds them. Leaves nothing behind, and fetches nothing."""
    run = Run(None)
    run.is_check = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        try:
            run.settings = settings = read_settings(environment)
            with locked(settings, could_own):
                run.step = "prepare"
                from harness.lane.preflight import preflight

                audio = Path(folder) / "audio"
                if not settings.run_prepare and settings.audio_dir.is_dir():
                    shutil.copytree(settings.audio_dir, audio)
                run.step = "preflight"
                narration = preflight(settings, say)
                run_lane(dataclasses.replace(settings, run_dir=Path(folder), audio_dir=audio), run, narration)
        except Exception as error:
            failure = failure_of(error, run)
            if run.settings:
                failure.cause = failure.cause.replace(f"{folder}/audio", show(run.settings.audio_dir))
            return failure if failure.exit_code else None
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run the lane with the settings of this process's environment; returns the exit code."""
    let_warnings_be_warnings()
    variables = "\n".join(f"  {name:28} {one.shown_default():32} {one.meaning}" for name, one in VARIABLES.items())
    codes = "\n".join(f"  {code:3}  {meaning}" for code, meaning in EXIT_CODES.items())
    parser = argparse.ArgumentParser(
        prog="python3 -m harness.lane",
        description="Train the voice adapter once, from audio to checkpoint. Settings are environment variables.",
        epilog=f"settings (name, default, meaning):\n{variables}\n\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--settings-table", action="store_true", help="print the settings as Markdown, and do not run")
    parser.add_argument(
        "--check", action="store_true", help="say what would stop a run before it trains: one JSON line"
    )
    asked = parser.parse_args(arguments)
    if asked.settings_table:
        print(settings_table(), flush=True)
        return 0
    logging.getLogger().addHandler(logging.NullHandler())  # else an error before there is a log goes to the terminal
    prepare_streams()
    _requests.clear()
    if asked.check:
        failure = check(os.environ)
        keys = ("step", "code", "cause", "action") if failure else ()
        say(json.dumps({key: one_line(getattr(failure, key)) for key in keys}))
        return failure.exit_code if failure else 0
    run = Run(None)
    ended: BaseException | None = None
    with contextlib.ExitStack() as held:
        try:
            listen(True)
            try:
                settings = run.settings = settings_of(os.environ, run)
                pin_process(settings)
            finally:
                if run.settings:
                    held.enter_context(locked(run.settings))
                    run.owns_run_dir = True
            # Repeated, because one that comes within a destructor is swallowed.
            signal.setitimer(signal.ITIMER_REAL, settings.timeout_s, 1.0)
            run.enter("preflight")
            from harness.lane.preflight import preflight

            narration = preflight(settings, say)
            held.enter_context(logging_to(settings.log_path))
            begin(settings, run)
            run_lane(settings, run, narration)
            go_on()
            listen(False)
        except BaseException as error:
            ended = error
        while True:  # until no signal comes between the first of these lines and the last
            try:
                listen(False)
                break
            except Stopped as again:
                ended = ended or again
        return finish(run, ended)


if __name__ == "__main__":
    code = main()
    # All is written and said. What Python would do now is take apart all that torch made: 0.13 s (measured). Who wants
    # to see what it does at exit (a profiler's file) calls main().
    os._exit(code)

"""The recipe: one run of the lane, from the audio to the checkpoint, read from top to bottom.

``run_once`` is a whole run and ``train_voice`` its middle, in the order in which data flows. Whatever happens on the
way, the run ends in a status file, a report and an exit code that agree.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import sys
from typing import TYPE_CHECKING

from harness.base.files import write_json
from harness.base.lock import HELD_BY
from harness.lane.console import mute, say
from harness.lane.environment import describe_environment, own_code_digest
from harness.lane.errors import LaneError
from harness.lane.log import logging_to
from harness.lane.outcome import begin, finish
from harness.lane.outputs import locked, place_of, stage_again
from harness.lane.ranks import ALONE
from harness.lane.run import Run
from harness.lane.settings import Settings, is_rank, read_settings
from harness.lane.signals import Stopped, listen, raise_if_stopped, requests
from harness.numerics.modes import environment_pins

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.lane.audio import AudioFacts


def run_once() -> int:
    """A run with the settings of this process's environment. Returns its exit code; status and report are written."""
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
                    begin_with_the_others(run, held)
                    held.enter_context(locked(run.settings))
                    run.own()
            settings = run.settings
            if settings.ranks > 1 and not is_rank(os.environ):
                from harness.lane.launch import launch

                return launch(settings, run)
            # Repeated, because one that comes within a destructor is swallowed.
            signal.setitimer(signal.ITIMER_REAL, settings.timeout_s, 1.0)
            run.enter("preflight")
            from harness.lane.preflight import preflight

            narration = preflight(settings, say)
            held.enter_context(logging_to(settings.log_path))
            begin(settings, run)
            train_voice(settings, run, narration)
            raise_if_stopped()
            listen(False)
        except BaseException as error:
            ended = error
        while True:  # until no signal comes between the first of these lines and the last
            try:
                listen(False)
                break
            except Stopped as again:
                ended = ended or again
        if ended and requests and not isinstance(ended, Stopped):
            ended = Stopped(requests[0])  # a library that was calling back swallowed it, and failed for it
        return finish(run, ended)


def begin_with_the_others(run: Run, held: contextlib.ExitStack) -> None:
    """Of several processes that train together, rank 0 goes first; another has a folder of its own, and is mute."""
    assert run.settings is not None
    if not is_rank(os.environ):
        return
    from harness.lane.ranks import Together

    run.ranks = ranks = Together(run.settings)
    if ranks.rank > 0:
        mute(True)
        os.environ.pop(HELD_BY, None)  # that of the run directory
        ranks.await_first("began")
        run.common, run.settings = run.settings, place_of(run.settings, ranks.rank)
        held.callback(shutil.rmtree, run.settings.run_dir, ignore_errors=True)
        stage_again(run.common, run.settings)


def train_voice(settings: Settings, run: Run, narration: AudioFacts) -> None:
    """The lane after its preflight, in the order in which data flows. Raises LaneError (or anything else) on the way;
    returns when completed."""
    ranks = run.ranks or ALONE
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
    from harness.lane.checkpoint import write_checkpoint, write_last_step
    from harness.lane.estimate import Estimate
    from harness.lane.held_out import split_chunks
    from harness.lane.model import load_model
    from harness.lane.scalars import Scalars
    from harness.lane.state import StateFile, identity_of, of_first
    from harness.lane.tokens import tokenise, write_tokens
    from harness.lane.trace import Trace
    from harness.lane.trainer import Progress, train
    from harness.lane.voice import model_fingerprint
    from harness.numerics.battery import numeric_class
    from harness.numerics.modes import apply_mode

    dtype = apply_mode(settings.numerics, settings.threads)
    run.values["numeric_class"] = numeric_class()
    write_json(settings.environment_path, describe_environment(settings, run.values["numeric_class"]))
    # A GPU holds the frozen model in float16, as it is on the hub; adapters and loss are float32 there.
    model, model_digest = load_model(settings, dtype if settings.device == "cpu" else torch.float16, say)
    run.values["model_digest"] = model_digest
    fingerprint = model_fingerprint(model.lm)
    gc.enable()
    if run.is_check:
        return
    ranks.join(settings)
    ranks.agree(settings.meaning() | {"numeric_mode": settings.numerics, "code_digest": own_code_digest()})
    ranks.agree({name: run.values[name] for name in ("dataset_digest", "model_digest")})

    run.enter("tokenise")
    # Tokens are an argmin: float64 gives the same ones in every numeric class, so it is used wherever it can be
    # afforded.
    codec = model.compression_model
    small = sum(parameter.numel() for parameter in codec.parameters()) < 5_000_000
    codec.to(torch.float64 if small else torch.float32)
    tokens = tokenise(settings, manifest, codec, lambda done, total: raise_if_stopped(f"TOKENS {done} {total}"), ranks)
    write_tokens(settings.tokens_path, tokens)
    run.values["tokens_digest"] = tokens.digest()
    split = split_chunks(tokens.sources, tokens.samples, settings.holdout)
    model.compression_model = codec = None  # its memory, 0.23 GB of encodec_32khz, is the training's now

    run.enter("adapt")
    adapters = make_adapters(model.lm, settings.seed, dtype=dtype, device=settings.device)

    run.enter("train")
    run.states = StateFile(settings, identity_of(settings, run.values))
    saved = of_first(run.states.load() if settings.resume and ranks.rank == 0 else None, ranks)
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
        scalars = Scalars(settings)
        at_the_end.callback(scalars.close)
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
            ranks=settings.ranks,
            settings_digest=settings.digest(),
            model_digest=model_digest,
            dataset_digest=manifest["dataset_digest"],
        )
        trace.write(
            "tokens",
            tokens_digest=run.values["tokens_digest"],
            shape=list(tokens.codes.shape),
            samples=tokens.samples,
            chunks=[
                {"file": file, "start": start, "digest": digest, "use": use}
                for (file, start), digest, use in zip(
                    tokens.sources, tokens.chunk_digests(), split.uses(len(tokens.sources)), strict=True
                )
            ],
        )

        def progress(now: Progress) -> None:
            run.steps_done, run.loss = now.step, now.loss
            run.loss_first = now.loss if run.loss_first is None else run.loss_first
            line = f"PROGRESS {now.step} {settings.steps} LOSS {now.loss:.6f} SMOOTHED {now.smoothed:.6f}"
            if now.held_out:
                line += " HELD_OUT {:.6f} {:.6f}".format(*now.held_out)
            scalars.add(now)
            raise_if_stopped(line)
            if estimated := estimate.after(now.step):
                say(f"ESTIMATE {estimated}")

        result = train(settings, model, adapters, tokens, split, trace, progress, saved, run.states, ranks)
    run.loss, run.loss_first, run.sanitized = result.loss, result.loss_first, result.sanitized
    run.learned = {
        "loss_smoothed": result.loss_smoothed,
        "held_out_loss_first": result.held_out_first,
        "held_out_loss": result.held_out,
        "best_step": result.best_step,
    }

    ranks.tell("trained")
    ranks.await_all("trained")
    if ranks.rank > 0:
        return

    run.enter("checkpoint")
    is_rounded = settings.numerics == "universal"
    run.checkpoint = write_checkpoint(
        settings, adapters, keep_float64=is_rounded, fingerprint=fingerprint, step=result.best_step
    )
    write_last_step(settings, result.last_step)
    run.states.remove()


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


def pin_process(settings: Settings) -> None:
    """Numeric environment variables count only if they are set before torch loads: where they are not, start over with
    them."""
    pins = environment_pins(settings.numerics, settings.threads)
    if any(os.environ.get(name) != value for name, value in pins.items()):
        os.environ.update(pins, LANE_RUN_ID=settings.run_id)
        os.execv(sys.executable, sys.orig_argv)

"""``--check``: what would stop a run before it trains, found by the run's own code."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from harness.base.files import show
from harness.base.lock import could_own
from harness.lane.console import say
from harness.lane.errors import LaneError
from harness.lane.failure import failure_of
from harness.lane.outputs import locked
from harness.lane.recipe import train_voice
from harness.lane.run import Run
from harness.lane.settings import read_settings


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
                train_voice(dataclasses.replace(settings, run_dir=Path(folder), audio_dir=audio), run, narration)
        except Exception as error:
            failure = failure_of(error, run)
            if run.settings:
                failure.cause = failure.cause.replace(f"{folder}/audio", show(run.settings.audio_dir))
            return failure if failure.exit_code else None
    return None

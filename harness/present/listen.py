"""``python3 -m harness listen``: all clips of a run, generated samples included, and the page with them."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

from harness.base.project import default_run_dir
from harness.evidence import EvidenceError, RunEvidence
from harness.present.audio import (
    Clip,
    NoAudio,
    choose_excerpt,
    encode,
    model_name,
    possible_clips,
    reconstruction_clip,
    source_clip,
    write_clips,
)
from harness.present.facts import load_here
from harness.present.gates import GateResult, GatesError, judging, read_gates
from harness.present.html import write_html

SAMPLE_SECONDS = 5.0


def listen(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        "python3 -m harness listen",
        description="Writes short clips of a run into its folder listen/ (the source, its reconstruction, and samples "
        "with and without the adapter from one seed), and its report.html anew.",
        epilog="exit codes: 0 all clips and the page were made; 1 some could not be, each with a line that says why; "
        "64 wrong usage",
    )
    parser.add_argument("run_dir", nargs="?", type=Path, help="run directory; default: LANE_RUN_DIR, else artifacts")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (0)")
    options = parser.parse_args(arguments)
    # audiocraft's codec uses a function of torch that is to go away; nothing to do about it here.
    warnings.filterwarnings("ignore", category=FutureWarning)
    run_dir = options.run_dir or default_run_dir()
    run = load_here(run_dir)
    try:
        run_id = run.status.run_id
    except EvidenceError as error:
        print(f"no run to listen to: {error}; next: {judging(run_dir)}", file=sys.stderr)
        return 1
    clips, missing = make_clips(run, options.seed)
    gates, verdict, judged = _judged(run_dir, run_id)
    try:
        write_clips(run_dir, run_id, clips)
        for clip in clips.values():
            print(f"{run_dir / 'listen' / clip.name}.flac  {clip.what} ({clip.about})")
        print(write_html(run_dir, gates, verdict, missing_audio=missing))
    except OSError as error:
        missing.append(f"{error.filename}: cannot be written: {error.strerror}")
    # A page without gates is one all the same: that is said, and no failure of what was asked for.
    for line in [*missing, *judged]:
        print(line, file=sys.stderr)
    return 1 if missing else 0


def _judged(run_dir: Path, run_id: str) -> tuple[list[GateResult], dict[str, Any] | None, list[str]]:
    """(The run's gates, its verdict, and where there are none a line that says how to get them)."""
    try:
        found = read_gates(run_dir)
    except GatesError as error:
        return [], None, [f"the page is without gates: {error}"]
    if found.run_id != run_id:
        return [], None, [f"the page is without gates: they are of another run; next: {judging(run_dir)}"]
    return list(found.gates), found.verdict, []


def make_clips(run: RunEvidence, seed: int) -> tuple[dict[str, Clip], list[str]]:
    """(The clips that could be made, why others could not). Loads torch and the run's model."""
    clips: dict[str, Clip] = {}
    missing: list[str] = []

    def attempt(step: Any) -> None:
        try:
            for clip in step():
                clips[clip.name] = clip
        except (NoAudio, EvidenceError) as error:
            missing.append(str(error))
        except Exception as error:  # whatever a model does; the other clips are worth having
            missing.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")

    attempt(lambda: [source_clip(choose_excerpt(run))])
    if not possible_clips(run):
        return clips, missing
    try:
        name = model_name(run)
    except (NoAudio, EvidenceError, ImportError) as error:
        return clips, [*missing, str(error)]
    attempt(lambda: [reconstruction_clip(run, choose_excerpt(run))])
    attempt(lambda: sample_clips(run, name, seed))
    return clips, missing


def sample_clips(run: RunEvidence, name: str, seed: int) -> list[Clip]:
    """The same description and seed twice: by the frozen model, and with the run's adapters. Raises what audiocraft
    raises."""
    import torch

    from harness.lane.voice import attach_voice, load_musicgen, sampled

    model = load_musicgen(name)
    if sum(parameter.numel() for parameter in model.lm.parameters()) < 5_000_000:  # as the shipped one
        torch.set_num_threads(1)  # two are slower
    description = str((run.status.settings or {}).get("description") or "")

    def sample(name: str) -> Clip:
        torch.manual_seed(seed)
        wave = sampled(model, description, SAMPLE_SECONDS)
        return Clip(name, f"“{description}”, seed {seed}", encode(wave, model.sample_rate))

    without = sample("without_adapter")
    attach_voice(model, run.checkpoint_path)
    return [without, sample("with_adapter")]

"""What the files of a run say is held against another source: another file, the disk, or this process.

docs/evidence.md lists every field; `tests/voice_lane/test_every_field.py` edits each of them, one at a time, and says
of the few that no gate can hold why that is so.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.base.files import show
from harness.evidence import NotApplicable, RunEvidence
from harness.gates.training import Measured
from harness.numerics.digest import file_sha256
from harness.numerics.modes import PIN_NAMES, environment_pins
from harness.numerics.processor import FORCING

pytestmark = pytest.mark.smoke

SHIPPED_MODEL = Path(__file__).resolve().parents[2] / "data" / "musicgen_nano"
MODEL_FILES = ("state_dict.bin", "compression_state_dict.bin")


@pytest.fixture(autouse=True)
def own_formats(lane_run: RunEvidence) -> None:
    """Only the voice lane's formats have these fields."""
    if not lane_run.promises("environment"):
        pytest.skip("not applicable: only the voice lane's files have these fields")


def hold(said: dict[str, tuple[Any, Any]], measured: Measured) -> None:
    """Fails with each statement that is not what its other source gives: {what: (found, expected)}."""
    wrong = [f"{what}: found {found!r}, expected {due!r}" for what, (found, due) in said.items() if found != due]
    measured(f"{len(said)} statements")
    assert not wrong, "\n".join(wrong)


def test_report_says_what_the_other_files_say(lane_run: RunEvidence, measured: Measured) -> None:
    """Digests, mode, settings and losses in the report are those of trace, status and environment."""
    report, status, environment = lane_run.report, lane_run.status, lane_run.environment
    header, start, end = lane_run.trace.header, lane_run.trace.start, lane_run.trace.end
    settings = status.settings or {}
    canonical = json.dumps(settings, sort_keys=True)
    hold(
        {
            "report: head_commit": (report["head_commit"], environment["head_commit"]),
            "report: python_version": (report["python_version"], environment["python"]),
            "report: next_unblock_action": (report["next_unblock_action"], "none"),
            "report: model_id": (report["model_id"], lane_run.checkpoint.meta["model_id"]),
            "report: model_digest": (report["model_digest"], header.model_digest),
            "report: dataset_digest": (report["dataset_digest"], header.dataset_digest),
            "report: tokens_digest": (report["tokens_digest"], lane_run.trace.tokens.tokens_digest),
            "report: settings_digest": (report["settings_digest"], header.settings_digest),
            "settings_digest of status.settings": (
                hashlib.sha256(canonical.encode()).hexdigest(),
                header.settings_digest,
            ),
            "report: numeric_mode": (report["numeric_mode"], header.mode),
            "environment: numeric_mode": (environment["numeric_mode"], header.mode),
            "report: numeric_class": (report["numeric_class"], header.numeric_class),
            "environment: numeric_class": (environment["numeric_class"], header.numeric_class),
            "report: seed": (report["seed"], str(header.seed)),
            "report: steps": (report["steps"], str(header.steps)),
            "trace: seed": (header.seed, settings["seed"]),
            "trace: steps": (header.steps, settings["steps"]),
            "trace: batch": (header.batch, settings["batch"]),
            "report: loss_first": (float(report["loss_first"]), start.loss),
            "status: loss_first": (status.get("loss_first"), start.loss),
            "report: best_step": (report["best_step"], str(end.best_step)),
            "status: steps_total": (status.get("steps_total"), header.steps),
            "report: sanitized_logits": (report["sanitized_logits"], str(status.get("sanitized_logits"))),
        },
        measured,
    )


def staged_now(pytestconfig: pytest.Config) -> bool:
    """Whether this session staged the audio. What was staged earlier may lie elsewhere by now, or not at all."""
    again = os.environ.get("RUN_PREPARE", "1").strip().lower() in ("1", "true", "yes", "on")
    return again and not pytestconfig.getoption("--lane-evidence")


def on_disk(shown: str) -> Path | None:
    """The file whose path the evidence gives as ``shown``, where what does not print is an escape sequence."""
    if not Path(shown).is_absolute():
        return None
    here = Path(Path(shown).anchor)
    for part in Path(shown).parts[1:]:
        # First the name as it stands: to list a folder may be forbidden, or long.
        names = (
            [part] if os.path.lexists(here / part) else [c.name for c in here.iterdir() if show(Path(c.name)) == part]
        )
        if not names:
            return None
        here /= names[0]
    return here


def test_report_names_the_files_of_the_run(
    lane_run: RunEvidence, pytestconfig: pytest.Config, measured: Measured
) -> None:
    """The paths in the report are those of the run's files, and the narration is one of the data set."""
    report = lane_run.report
    checkpoint = lane_run.checkpoint_path.name
    said: dict[str, tuple[Any, Any]] = {
        "report: manifest_path": (Path(report["manifest_path"]).name, lane_run.path_of("manifest").name),
        "report: training_status_path": (Path(report["training_status_path"]).name, lane_run.path_of("status").name),
        "report: checkpoint_path": (Path(report["checkpoint_path"]).name, checkpoint),
        "report: log_path": (Path(report["log_path"]).name, lane_run.log_path.name),
        "the checkpoint's .json: file": (lane_run.checkpoint_sidecar.file, checkpoint),
        "report: audio_is_lfs_pointer": (report["audio_is_lfs_pointer"], "false"),
    }
    if staged_now(pytestconfig):
        audio = on_disk(report["audio_path"])
        # The name may be a link to what was staged, or what was staged a link to it.
        sources = {os.path.realpath(on_disk(entry.source) or entry.source) for entry in lane_run.manifest.entries}
        said["report: audio_path, and it is staged"] = (audio is not None and os.path.realpath(audio) in sources, True)
        said["report: audio_exists"] = (report["audio_exists"], "true")
        size = str(audio.stat().st_size) if audio else "no file"
        said["report: audio_size_bytes"] = (report["audio_size_bytes"], size)
    hold(said, measured)


def test_manifest_describes_the_audio(lane_run: RunEvidence, pytestconfig: pytest.Config, measured: Measured) -> None:
    """Rates, channels and lengths in the manifest are the staged files' own, and each source is where it says."""
    import soundfile

    folder, said = lane_run.path_of("manifest").parent, {}
    for number, entry in enumerate(lane_run.manifest.entries):
        about, where = soundfile.info(folder / entry.target), f"entry {number}"
        said[f"{where}: sample_rate"] = (entry.sample_rate, about.samplerate)
        said[f"{where}: channels"] = (entry.channels, about.channels)
        said[f"{where}: duration_seconds"] = (entry.duration_seconds, round(entry.frames / entry.sample_rate, 6))
        if staged_now(pytestconfig):
            source = on_disk(entry.source)
            found = file_sha256(source) if source else "no file"
            said[f"{where}: source"] = (found, entry.decoded_from or entry.sha256)
    for line in [*lane_run.manifest.skipped, *lane_run.manifest.left_out] if staged_now(pytestconfig) else []:
        begins = itertools.accumulate(line.split(": "), lambda a, b: f"{a}: {b}")
        said[f"left out: {line[:80]}"] = (any(map(on_disk, begins)), True)
    hold(said, measured)


def test_losses_of_the_trace_are_the_means_of_their_codebooks(lane_run: RunEvidence, measured: Measured) -> None:
    """Each loss in the trace is the mean over its codebooks, and as many positions count in every step."""
    trace, worst = lane_run.trace, 0.0
    limit = 1e-12 if trace.header.mode == "universal" else 1e-5
    losses = {"after the training": (trace.end.eval_loss, trace.end.eval_loss_by_codebook)}
    if trace.start.held_out is not None:
        losses["held out, before the training"] = (trace.start.held_out.loss, trace.start.held_out.loss_by_codebook)
    for step in trace.steps:
        losses[f"step {step.step}"] = (step.loss, step.loss_by_codebook)
        if step.held_out is not None:
            losses[f"held out, after step {step.step}"] = (step.held_out.loss, step.held_out.loss_by_codebook)
        assert step.valid == trace.steps[0].valid, f"at step {step.step} {step.valid} positions count"
    for what, (loss, by_codebook) in losses.items():
        apart = abs(loss - float(np.mean(by_codebook))) / loss
        worst = max(worst, apart)
        assert apart <= limit, f"the loss {what} is {loss!r}, and the mean of its codebooks {np.mean(by_codebook)!r}"
    measured(f"{len(losses)} losses, at most {worst:.1e} apart, relatively")


def test_model_digest_is_that_of_the_models_files(lane_run: RunEvidence, measured: Measured) -> None:
    """The digest that names the model is that of the two files it was loaded from."""
    folder = Path(os.environ.get("LANE_MODEL") or SHIPPED_MODEL)
    if folder.resolve() != SHIPPED_MODEL:
        raise NotApplicable("a model with parts from the hub: their files are not looked for here")
    digests = "\n".join(file_sha256(folder / name) for name in MODEL_FILES)
    found = lane_run.trace.header.model_digest
    measured(f"digest {found[:12]}")
    assert found == hashlib.sha256(digests.encode()).hexdigest(), f"the trace names the model {found[:12]}"


def test_environment_is_the_one_that_the_lane_ran_in(
    lane_run: RunEvidence, pytestconfig: pytest.Config, measured: Measured
) -> None:
    """Versions, pins and kernels in environment.json are this Python's, in which the lane ran."""
    if pytestconfig.getoption("--lane-evidence"):
        raise NotApplicable("--lane-evidence runs nothing: the evidence may be of another machine")
    import torch

    environment = lane_run.environment
    is_portable = environment["numeric_mode"] == "portable"
    packages = {name: (found, installed(name)) for name, found in environment["packages"].items()}
    pins = {name: os.environ.get(name) for name in PIN_NAMES}
    pins |= environment_pins(environment["numeric_mode"], environment["threads"])
    said = {
        "python": (environment["python"], platform.python_version()),
        "platform": (environment["platform"], f"{platform.system()} {platform.machine()}"),
        "threads": (environment["threads"], 1 if is_portable else int(os.environ.get("LANE_THREADS") or 2)),
        "attention_backend": (
            environment["attention_backend"],
            os.environ.get("EFFICIENT_ATTENTION_BACKEND") or "torch",
        ),
        "report: gpu_available": (lane_run.report["gpu_available"], str(torch.cuda.is_available()).lower()),
        **{f"packages: {name}": both for name, both in packages.items()},
        **{f"pins: {name}": (found, pins.get(name)) for name, found in environment["pins"].items()},
    }
    if all(pins.get(name) == os.environ.get(name) for name in FORCING):  # torch was loaded here with the same
        said["cpu_capability"] = (environment["cpu_capability"], torch.backends.cpu.get_cpu_capability())
    hold(said, measured)


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"

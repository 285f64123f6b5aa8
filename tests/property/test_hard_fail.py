"""A value that must be finite and is not ends the run, wherever and whenever it turns up.

It is planted from outside the lane's code, with torch's own hooks, into the shipped model while it really trains.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import audio_files
import lane_child
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lazy import Lazy
from truth import load_model

from harness.lane.errors import LaneError
from harness.lane.held_out import Split
from harness.lane.settings import read_settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.lane import adapter, audio, checkpoint, dataset, optimizer, tokens, trainer
    from harness.lane import model as lane_model
    from harness.lane import trace as lane_trace
else:
    torch, lane_model, lane_trace = Lazy("torch"), Lazy("harness.lane.model"), Lazy("harness.lane.trace")
    adapter, audio, checkpoint = (
        Lazy("harness.lane.adapter"),
        Lazy("harness.lane.audio"),
        Lazy("harness.lane.checkpoint"),
    )
    dataset, tokens, trainer = Lazy("harness.lane.dataset"), Lazy("harness.lane.tokens"), Lazy("harness.lane.trainer")
    optimizer = Lazy("harness.lane.optimizer")

STEPS = 3
EVALUATION = STEPS + 1  # the forward pass after the last step
PLACES = ("embedding", "adapter", "logits", "loss", "gradient", "parameter")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return lane_model.load_model(read_settings({"LANE_NUMERICS": "native"}), torch.float32)[0]


def _spoil(tensor: Tensor, value: float, where: int) -> Tensor:
    spoilt = tensor.clone()
    spoilt.view(-1)[where % spoilt.numel()] = value
    return spoilt


@contextmanager
def planted(place: str, step: int, value: float, where: int, model: Any, adapters: Any) -> Iterator[None]:
    """One value at one place of one step (0: the pass without adapters) is not what it should be."""
    count = {"calls": 0 if place in ("adapter", "gradient", "parameter") else -1}

    def now() -> bool:
        count["calls"] += 1
        return count["calls"] == step

    def after_forward(module: Any, arguments: Any, output: Tensor) -> Tensor | None:
        return _spoil(output, value, where) if now() else None

    with ExitStack() as stack:
        if place in ("embedding", "adapter", "logits"):
            module = {"embedding": model.lm.emb[0], "adapter": adapters[-1].linear2, "logits": model.lm.linears[0]}[
                place
            ]
            stack.callback(module.register_forward_hook(after_forward).remove)
        elif place == "loss":
            real = torch.nn.functional.cross_entropy

            def cross_entropy(*arguments: Any, **options: Any) -> Tensor:
                losses = real(*arguments, **options)
                return losses + value if now() else losses

            stack.enter_context(mock.patch("torch.nn.functional.cross_entropy", cross_entropy))
        elif place == "gradient":
            hook = adapters[0].linear1.down.register_hook(lambda g: _spoil(g, value, where) if now() else None)
            stack.callback(hook.remove)
        else:
            real_step = optimizer.AdamW.step

            def step_and_spoil(adamw: Any, *arguments: Any, **options: Any) -> Any:
                result = real_step(adamw, *arguments, **options)
                if now():
                    with torch.no_grad():
                        adapters[1].linear2.up.copy_(_spoil(adapters[1].linear2.up, value, where))
                return result

            stack.enter_context(mock.patch.object(optimizer.AdamW, "step", step_and_spoil))
        yield


def train_with(
    folder: Path, model: Any, plant: Callable[[Any], Any], **variables: str
) -> tuple[Any, list[dict[str, Any]]]:
    """Train for three steps on random tokens; returns the result and the trace. ``plant(adapters)``: what to enter."""
    chosen = {"LANE_RUN_DIR": str(folder), "LANE_NUMERICS": "native", "LANE_STEPS": str(STEPS), "LANE_BATCH": "2"}
    options = read_settings({**chosen, **variables})
    codes = torch.randint(0, 256, (5, 4, 12), generator=torch.Generator().manual_seed(1))
    token_set = tokens.TokenSet(codes, [("0" * 64, 0)] * 5, 12)
    split = Split([0, 1, 2, 3, 4], [])  # nothing is held out: each pass of the model is then a step
    adapters = adapter.make_adapters(model.lm, 0, dtype=torch.float32, device="cpu")
    options.trace_path.unlink(missing_ok=True)  # it has no header, by which the lane would know it for its own
    trace = lane_trace.Trace(options)
    try:
        with plant(adapters):
            result = trainer.train(options, model, adapters, token_set, split, trace, lambda now: None)
    finally:
        trace.publish()
        for module in model.lm.transformer.modules():  # a process that fails ends, and its hooks with it
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()
    return result, [json.loads(line) for line in options.trace_path.read_text().splitlines()]


NAMES = {
    "embedding": r"the tokens' embedding|logits without adapters",
    "adapter": "the transformer's output",
    "logits": r"logits( without adapters| of the trained adapters)?",
    "loss": r"loss( without adapters| of the trained adapters)?",
    "gradient": r"gradient of 0\.linear1\.down",
    "parameter": r"parameter 1\.linear2\.up",
}


@settings(max_examples=30)
@given(
    place=st.sampled_from(PLACES),
    step=st.integers(0, EVALUATION),
    value=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    # The first values of a tensor lie where the delay pattern makes every position valid.
    where=st.integers(0, 127),
)
@example("embedding", 0, float("nan"), 0)
@example("logits", 0, float("nan"), 0)
@example("loss", 0, float("inf"), 0)
@example("embedding", EVALUATION, float("nan"), 0)
@example("logits", EVALUATION, float("-inf"), 0)
@example("loss", EVALUATION, float("nan"), 0)
@example("adapter", EVALUATION, float("inf"), 5)
@example("gradient", 1, float("-inf"), 7)
@example("parameter", STEPS, float("nan"), 3)
def test_any_place_any_step(
    model: Any, tmp_path_factory: pytest.TempPathFactory, place: str, step: int, value: float, where: int
) -> None:
    if step == 0 and place in ("adapter", "gradient", "parameter"):
        step = 1
    if step == EVALUATION and place in ("gradient", "parameter"):
        step = STEPS
    folder = tmp_path_factory.mktemp("hard")
    with pytest.raises(trainer.NonFiniteError) as caught:
        train_with(folder, model, lambda adapters: planted(place, step, value, where, model, adapters))
    error = caught.value
    assert (error.exit_code, error.status, error.step, error.code) == (2, "failed", "train", "non_finite")
    said_step = min(step, STEPS)
    assert re.fullmatch(rf"({NAMES[place]}) is -?(nan|inf) .*at step {said_step}", error.cause) or (
        place == "loss" and re.fullmatch(rf"({NAMES['loss']}) is -?(nan|inf) at step {said_step}", error.cause)
    ), error.cause
    if place in ("adapter", "gradient", "parameter", "loss"):
        assert f" is {value}" in error.cause, f"planted {value}: {error.cause}"
    trace = [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in trace if line["kind"] == "step"]
    assert steps == list(range(1, STEPS + 1 if step == EVALUATION else max(step, 1)))
    assert "end" not in [line["kind"] for line in trace]


@contextmanager
def some_logits(model: Any, amounts: dict[int, int]) -> Iterator[None]:
    """In forward pass n (0: without adapters), ``amounts[n]`` valid logits are NaN."""
    count = {"calls": -1}

    def after_forward(module: Any, arguments: Any, output: Tensor) -> Tensor | None:
        count["calls"] += 1
        amount = amounts.get(count["calls"], 0)
        if not amount:
            return None
        spoilt = output.clone()
        spoilt[0, 2, :amount] = float("nan")
        return spoilt

    hook = model.lm.linears[0].register_forward_hook(after_forward)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("step", [0, 2, EVALUATION])
def test_what_the_sanitizer_hides_is_counted_against_its_limit(model: Any, tmp_path: Path, step: int) -> None:
    """Two replaced logits pass where two are allowed; one is too many by default; and they add up over the run."""
    result, _ = train_with(tmp_path, model, lambda adapters: some_logits(model, {step: 2}), LANE_MAX_SANITIZED="2")
    assert result.sanitized == 2
    with pytest.raises(trainer.NonFiniteError, match=r"logits.* is nan .*one of 1 in"):
        train_with(tmp_path, model, lambda adapters: some_logits(model, {step: 1}))
    with pytest.raises(trainer.NonFiniteError) as caught:
        train_with(tmp_path, model, lambda adapters: some_logits(model, {1: 2, 3: 1}), LANE_MAX_SANITIZED="2")
    assert caught.value.sanitized == 3
    assert "at step 3" in caught.value.cause


def test_parameter_that_only_float64_can_hold_is_no_checkpoint(tmp_path: Path) -> None:
    options = read_settings({"LANE_RUN_DIR": str(tmp_path)})
    lm = load_model().lm
    adapters = adapter.make_adapters(lm, 0, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        adapters[0].linear1.up[3, 0] = 1e39
    with pytest.raises(LaneError) as caught:
        checkpoint.write_checkpoint(options, adapters, keep_float64=True, fingerprint="0" * 64, step=3)
    assert (caught.value.exit_code, caught.value.code) == (2, "non_finite")
    assert "0.linear1.up" in caught.value.cause
    assert not list(tmp_path.rglob("*.pt"))


def test_codec_that_gives_nan_makes_no_tokens(model: Any, tmp_path: Path) -> None:
    """The nearest codebook entry of a NaN is some entry: the tokens would look like any others."""
    path = audio_files.write(tmp_path / "voice.wav", audio_files.voice(6))
    options = read_settings({"LANE_RUN_DIR": str(tmp_path / "run"), "AUDIO_PATH": str(path)})
    manifest = dataset.prepare_dataset(options, audio.inspect_audio(path))
    codec = model.compression_model
    assert len(tokens.tokenise(options, manifest, codec).codes) == 3
    layer = next(module for module in codec.encoder.modules() if isinstance(module, torch.nn.Conv1d))
    hook = layer.register_forward_hook(lambda module, arguments, output: output * float("nan"))
    with pytest.raises(LaneError, match=r"encoder gave a value that is not finite, in audio [0-9a-f]{12}") as caught:
        tokens.tokenise(options, manifest, codec)
    hook.remove()
    assert (caught.value.exit_code, caught.value.step) == (2, "tokenise")
    assert len(tokens.tokenise(options, manifest, codec).codes) == 3


# The whole process: what stays on the disk.

# Five runs in one process, to import torch once: one that completes, then loss and parameter are spoilt at the second
# step. What each left is copied aside.
FIVE_RUNS = """
import os, shutil, sys, torch
from harness.lane.__main__ import main
from harness.lane.optimizer import AdamW

what, calls = None, 0
real_loss, real_step = torch.nn.functional.cross_entropy, AdamW.step

def cross_entropy(*arguments, **options):
    global calls
    calls += what == "loss" and "ignore_index" in options  # the lane's own, and not those of the kernel battery
    return real_loss(*arguments, **options) * (float("nan") if what == "loss" and calls == 3 else 1.0)

def step(self, *arguments, **options):
    global calls
    real_step(self, *arguments, **options)
    calls += what == "parameter"
    if what == "parameter" and calls == 2:
        self.parameters[0].data[1] = float("-inf")

torch.nn.functional.cross_entropy, AdamW.step = cross_entropy, step
codes, run_dir = [], os.environ["LANE_RUN_DIR"]
for what, reset in ((None, "1"), ("loss", "0"), ("loss", "1"), ("loss", "1"), ("parameter", "1")):
    os.environ["RESET_TRAIN_OUTPUTS"], calls = reset, 0
    codes.append(main([]))
    shutil.copytree(run_dir, f"{run_dir}-{len(codes)}")
print("CODES", codes)
sys.exit(codes[-1])
"""
FEW = {"LANE_STEPS": "3", "LANE_STRIDE_SECONDS": "60", "LANE_BATCH": "2", "LANE_HOLDOUT": "0"}
CHECKPOINT = Path("checkpoints", "tts_voice_train_musicgen_nano.pt")


@pytest.fixture(scope="module")
def five_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """What each run left (1: completed; 2: NaN loss, outputs kept; 3, 4: the same, reset; 5: parameter)."""
    folder = tmp_path_factory.mktemp("five")
    ended = lane_child.run(folder / "run", FEW, plant=FIVE_RUNS)
    assert "CODES [0, 2, 2, 2, 2]" in ended.stdout, ended.stdout[-2000:] + ended.stderr
    assert ended.exit_code == 2
    assert "Traceback" not in ended.stdout + ended.stderr
    return lambda number: folder / f"run-{number}"


def status_of(run_dir: Path) -> dict[str, Any]:
    return lane_child.strict_json(run_dir / "train_status.json")


def report_of(run_dir: Path) -> dict[str, str]:
    return lane_child.parse_report((run_dir / "train_report.txt").read_text())


@pytest.mark.parametrize("number", [2, 3, 4])
def test_non_finite_loss_is_text_in_strict_json(five_runs: Callable[[int], Path], number: int) -> None:
    run_dir = five_runs(number)
    status, report = status_of(run_dir), report_of(run_dir)
    assert status["loss"] == report["loss"] == "nan"
    assert status["status"] == report["objective_status"] == "failed"
    assert status["root_cause"] == report["root_cause"] == "non_finite: loss is nan at step 2"
    assert status["first_failed_step"] == report["first_failed_step"] == "train"
    assert status["steps_done"] == 1
    for line in (run_dir / "trace.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda token: pytest.fail(f"a bare {token} in the trace"))


def test_parameter_is_named_with_its_value(five_runs: Callable[[int], Path]) -> None:
    status = status_of(five_runs(5))
    assert re.fullmatch(
        r"non_finite: parameter 0\.linear1\.down is -inf \(at \[1, 0\] of \[8, 128\]\) at step 2", status["root_cause"]
    )
    assert isinstance(status["loss"], float)  # the loss of the step was sound
    assert not (five_runs(5) / CHECKPOINT).exists()


def test_earlier_checkpoint_is_not_taken_for_this_runs(five_runs: Callable[[int], Path]) -> None:
    """RESET_TRAIN_OUTPUTS=0 keeps the earlier run's checkpoint, which this run does not claim; 1 removes it."""
    assert (five_runs(2) / CHECKPOINT).read_bytes() == (five_runs(1) / CHECKPOINT).read_bytes()
    assert not list(five_runs(3).rglob("*.pt"))
    for run_dir in (five_runs(2), five_runs(3)):
        status, report = status_of(run_dir), report_of(run_dir)
        for key in ("checkpoint_path", "checkpoint_sha256", "checkpoint_tensor_digest"):
            assert status[key] is None
        assert report["checkpoint_exists"] == "false"
        assert report["checkpoint_sha256"] == report["checkpoint_tensor_digest"] == "none"


def test_failure_is_the_same_bytes_each_time(five_runs: Callable[[int], Path]) -> None:
    """The run id, the times and the memory that the process happened to take aside."""
    changing = re.compile(r'\b[0-9a-f]{32}\b|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ|(?<="peak_memory_bytes": )\d+')
    for name in ("train_status.json", "train_report.txt", "trace.jsonl"):
        one, two = (changing.sub("…", (five_runs(number) / name).read_text()) for number in (3, 4))
        assert one == two, f"{name} differs between two runs that fail in the same way"

"""What the recorder sees of training loops of many kinds, and that it changes none of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.evidence.watched import Watched, read_watched
from harness.runs.watching import HOOK

HERE = Path(__file__).parent
EAGER = """plain accumulated two_optimizers cycled closure scaled checkpointed tied groups loaded bare half sparse
    forked""".split()
COMPILED = "compiled compiled_late compiled_in_place compiled_function".split()


def run(*command: str, watch: Path | None = None, path: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """A program in Python; ``watch``: recorded into this folder."""
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HARNESS_WATCH")}
    search = [str(HOOK)] if watch else []
    if watch:
        environ["HARNESS_WATCH"] = json.dumps({"folder": str(watch), **options})
    environ["PYTHONPATH"] = os.pathsep.join([*search, *filter(None, [path])])
    return subprocess.run(
        [sys.executable, *command], env=environ, capture_output=True, text=True, timeout=250, check=False
    )


Traces = dict[str, Watched]


def watched_and_not(names: list[str], folder: Path) -> Traces:
    """Run loops with and without the recorder, hold their output together, and give the trace of each."""
    loops = str(HERE / "loops.py")
    alone, seen = run(loops, *names), run(loops, *names, watch=folder)
    assert alone.returncode == seen.returncode == 0, seen.stderr[-2000:]
    assert seen.stdout == alone.stdout, "the recorder changed what was computed"
    assert "harness watch" not in seen.stderr, seen.stderr
    assert [line.split()[0] for line in dict.fromkeys(alone.stdout.splitlines())] == [
        name for name in names for _ in range(2 if name == "forked" else 1)
    ]
    traces = read_watched(folder)
    # Of `forked` and `spawned` there are two.
    order = [name for name in names for _ in range(2 if name in ("forked", "spawned") else 1)]
    assert len(traces) == len(order)
    return dict(zip(order, traces, strict=True))  # the last of two


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Traces:
    return watched_and_not(EAGER, tmp_path_factory.mktemp("watch") / "traces")


def test_a_plain_loop_is_seen_whole(traces: Traces) -> None:
    found = traces["plain"]
    assert found.end is not None and found.unseen == []
    assert [step.step for step in found.steps] == list(range(1, 9))
    names = {"0.weight", "0.bias", "3.weight", "3.bias"}
    first = found.steps[0]
    for part in (found.tensors[0].start, first.grad, first.param, first.grad_bits, first.param_bits, first.sketch):
        assert set(part) == names
    assert found.tensors[0].tensors["0.weight"].kind == "float32 16x8"
    assert found.tensors[0].optimizers[0].kind == "AdamW"
    assert found.tensors[0].optimizers[0].settings[0]["weight_decay"] == "0.01"
    assert len({step.batch for step in found.steps}) == 8
    assert all(len(step.losses) == 1 and step.learning_rates == [1e-3] for step in found.steps)
    assert first.param["0.weight"] != found.tensors[0].start["0.weight"][0]


@pytest.mark.parametrize(("name", "steps"), [("accumulated", 4), ("two_optimizers", 16), ("closure", 8), ("tied", 8)])
def test_a_step_is_an_optimizers_step(name: str, steps: int, traces: Traces) -> None:
    assert len(traces[name].steps) == steps


def test_all_backward_passes_of_a_step_are_counted(traces: Traces) -> None:
    assert [step.backwards for step in traces["accumulated"].steps] == [2] * 4
    assert all(len(step.losses) == 2 for step in traces["accumulated"].steps)
    assert all(step.backwards > 1 and step.grad for step in traces["closure"].steps), "a closure's gradients"
    assert [step.backwards for step in traces["checkpointed"].steps] == [1] * 8, "one within another is none"


def test_what_a_model_made_is_no_batch_of_another(traces: Traces) -> None:
    """Each optimizer has a number, and tensors of its own; names of two models do not meet."""
    found = traces["two_optimizers"]
    assert [step.optimizer for step in found.steps[:4]] == [1, 0, 1, 0]
    assert not set(found.steps[0].param) & set(found.steps[1].param)
    assert len(found.tensors[-1].tensors) == 8


def test_what_is_recorded_when_goes_by_the_steps_of_each_optimizer(tmp_path: Path) -> None:
    ended = run(str(HERE / "loops.py"), "two_optimizers", watch=tmp_path / "traces", every=3)
    assert ended.returncode == 0, ended.stderr
    (found,) = read_watched(tmp_path / "traces")
    for optimizer in (0, 1):
        steps = [step for step in found.steps if step.optimizer == optimizer]
        assert [bool(step.grad and step.param) for step in steps] == [n in (1, 2, 3, 4, 6, 8) for n in range(1, 9)]


def test_a_schedule_of_the_momentum_does_not_tell_the_tensors_again(traces: Traces) -> None:
    found = traces["cycled"]
    lines = [json.loads(line)["kind"] for line in found.path.read_text().splitlines()]
    assert lines == ["header", *["tensors", "step"], *["settings", "step"] * 7, "end"]
    betas = {part.optimizers[0].settings[0]["betas"] for part in found.tensors}
    assert len(betas) == 8 and all(set(part.tensors) == set(found.tensors[0].tensors) for part in found.tensors)


def test_of_parameters_whose_module_is_hidden_it_is_said_that_they_go_by_number(traces: Traces) -> None:
    assert set(traces["cycled"].steps[0].param) == {f"parameter {number}" for number in range(4)}
    assert any("by number" in line for line in traces["cycled"].unseen)


def test_a_step_that_a_scaler_skips_is_there_and_called_that(traces: Traces) -> None:
    steps = traces["scaled"].steps
    assert [step.step for step in steps if step.skipped] == [4]
    loss = traces["plain"].steps[0].losses[0]
    assert abs(steps[0].losses[0] - loss) < 1e-6 * loss, "the loss is the program's, and not the scaled one"


def test_tensors_that_are_shared_or_frozen_have_one_name(traces: Traces) -> None:
    for name in ("tied", "forked"):
        tensors = traces[name].tensors[0].tensors
        assert set(tensors) == {"inside.weight", "frozen.weight", "frozen.bias"} or name == "forked"
    assert not traces["tied"].tensors[0].tensors["frozen.weight"].trainable
    assert traces["tied"].tensors[0].tensors["frozen.weight"].optimizer is None


def test_learning_rates_are_those_of_the_schedule(traces: Traces) -> None:
    steps = traces["groups"].steps
    assert all(len(step.learning_rates) == 2 for step in steps)
    assert len({step.learning_rates[1] for step in steps}) == 8
    assert [group["weight_decay"] for group in traces["groups"].tensors[0].optimizers[0].settings] == ["0.1", "0.01"]


def test_batches_of_a_data_loader_are_seen_with_their_labels(traces: Traces) -> None:
    assert len({step.batch for step in traces["loaded"].steps}) == 8


def test_what_could_not_be_seen_is_said(traces: Traces) -> None:
    assert all(step.batch == "none" for step in traces["bare"].steps)
    assert any("batches" in line for line in traces["bare"].unseen)
    assert set(traces["bare"].steps[0].param) == {"parameter 0"}


def test_a_forked_process_has_a_trace_with_its_own_names(traces: Traces) -> None:
    assert traces["forked"].path.stem != traces["plain"].path.stem
    assert {"plain", "sparse", "half"} <= {name for name, trace in traces.items() if trace.end is not None}


@pytest.mark.frameworks
def test_spawned_processes_have_a_trace_each(tmp_path: Path) -> None:
    assert len(watched_and_not(["spawned"], tmp_path / "traces")["spawned"].steps) == 8
    assert len(read_watched(tmp_path / "traces")) == 2


@pytest.mark.frameworks
def test_torch_compile_is_not_in_the_way(tmp_path: Path) -> None:
    """Whole graphs stay whole; inputs are seen at the wrapper, and where there is none it is said."""
    found = watched_and_not(COMPILED, tmp_path / "traces")
    assert all(len(trace.steps) == 8 for trace in found.values())
    seen = {name: len({step.batch for step in trace.steps}) for name, trace in found.items()}
    assert seen == {"compiled": 8, "compiled_late": 8, "compiled_in_place": 1, "compiled_function": 1}
    assert {name for name, trace in found.items() if trace.unseen} == {"compiled_in_place", "compiled_function"}
    assert all("0.weight" in trace.steps[0].param for trace in found.values())


# What may be around it


def test_another_sitecustomize_runs_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.mine = 5\n")
    code = "import sys, os; print(mine, [p for p in sys.path if 'watch' in p], 'torch' in sys.modules)"
    for watch in (None, tmp_path / "traces"):
        assert run("-c", code, watch=watch, path=str(tmp_path)).stdout == "5 [] False\n"


SMALL = (
    "import torch\nw = torch.ones(4, requires_grad=True)\no = torch.optim.SGD([w], 0.5)\n"
    "for _ in range(6):\n    o.zero_grad(); (w ** 2).sum().backward(); o.step(){more}\nprint(w.sum().item())\n"
)


@pytest.mark.parametrize("spoil", ["file", "full"])
def test_a_recorder_that_fails_does_not_reach_the_program(spoil: str, tmp_path: Path) -> None:
    folder, options = tmp_path / "traces", {}
    if spoil == "file":
        folder.write_text("in the way")
    else:
        options["limit_bytes"] = 2500
    alone, seen = run("-c", SMALL.format(more="")), run("-c", SMALL.format(more=""), watch=folder, **options)
    assert (seen.stdout, seen.returncode) == (alone.stdout, 0)
    if spoil == "full":
        (found,) = read_watched(folder)
        assert 0 < len(found.steps) < 6 and any("limit" in line for line in found.unseen)


@pytest.mark.parametrize(
    ("more", "code"), [("\nraise SystemExit(3)", 3), ("\nimport os; os.kill(os.getpid(), 9)", -9)], ids=["exit", "kill"]
)
def test_however_a_program_ends_its_steps_are_kept(more: str, code: int, tmp_path: Path) -> None:
    done = run("-c", SMALL.format(more="") + more, watch=tmp_path / "traces")
    assert done.returncode == code
    (found,) = read_watched(tmp_path / "traces")
    assert len(found.steps) == 6 and (found.end is None) == (code < 0)
    assert bool(found.unseen) and ("did not come to its end" in found.unseen[0]) == (code < 0)


def test_every_and_modules_are_as_asked(tmp_path: Path) -> None:
    done = run(str(HERE / "loops.py"), "plain", watch=tmp_path / "traces", every=3, modules=["3", "0"])
    assert done.returncode == 0, done.stderr
    (found,) = read_watched(tmp_path / "traces")
    assert [step.step for step in found.steps if step.param] == [1, 2, 3, 4, 6, 8]
    assert all(set(step.forward) == {"0", "3"} for step in found.steps)


def bits_of() -> Callable[[Any], int]:
    from harness.watch.measure import bits

    return bits


def test_bits_are_the_same_in_any_layout_and_tell_an_exchange() -> None:
    import torch

    bits = bits_of()
    made = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int8):
        values = (torch.randn(130, 257, generator=made) * 9).to(dtype)
        kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
        plain = values.reshape(-1).view(kind).tolist()
        assert bits(values) == sum(value * (2 * i + 1) for i, value in enumerate(plain)) % 2**64
        assert bits(values.T.contiguous().T) == bits(values)
        swapped = values.clone()
        swapped[0, 0], swapped[5, 7] = values[5, 7], values[0, 0]
        assert bits(swapped) != bits(values)
    assert bits(torch.zeros(0)) == 0 and bits(torch.tensor(True)) == 1

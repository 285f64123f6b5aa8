"""Names of what is wrapped, and the traces of data-parallel ranks as one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from harness.baselines.differences import Rule, walk
from harness.baselines.result import Key, Result, _step
from harness.evidence.ranks import together
from harness.evidence.watched import read_watched
from harness.watch.names import class_name, is_part, named_modules, named_parameters


def wrapped(kind: str, attribute: str, module: Any) -> Any:
    import torch

    outer = type(kind, (torch.nn.Module,), {})()
    setattr(outer, attribute, module)
    return outer


def test_a_wrapper_does_not_change_a_name() -> None:
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(2, 2), wrapped("CheckpointWrapper", "_checkpoint_wrapped_module",
                              torch.nn.Linear(2, 1)))  # fmt: skip
    names = ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [name for name, _ in named_parameters(net)] == names
    twice = wrapped("OptimizedModule", "_orig_mod", wrapped("DistributedDataParallel", "module", net))
    assert [name for name, _ in named_parameters(twice)] == names and class_name(twice) == "Sequential"
    assert {name for name, _ in named_modules(twice)} == {"", "0", "1"}
    shards = wrapped("FullyShardedDataParallel", "_fsdp_wrapped_module", net)
    assert [name for name, _ in named_parameters(shards)] == names


def test_a_module_that_is_no_wrapper_keeps_its_names() -> None:
    import torch

    inner = wrapped("Lit", "module", torch.nn.Linear(1, 1))
    assert [name for name, _ in named_parameters(inner)] == ["module.weight", "module.bias"]
    clash = wrapped("DistributedDataParallel", "module", torch.nn.Linear(1, 1))
    clash.weight = torch.nn.Parameter(torch.zeros(1))
    assert [name for name, _ in named_parameters(clash)] == ["weight", "module.weight", "bias"]


def test_what_is_here_of_a_tensor() -> None:
    import torch

    from harness.watch.measure import bits
    from harness.watch.names import Part

    whole = torch.randn(5, 3)
    assert not is_part(whole)
    assert bits(whole) == (bits(whole[:2]) + bits(whole[2:], 6)) % (1 << 64)
    for kind in (torch.float32, torch.bfloat16, torch.complex64, torch.bool):
        cube = torch.randn(4, 6, 3).to(kind)
        # In columns, as tensor parallelism has it, and each of those in rows; a copy of a part is not counted again.
        for rows in ((0, 4), (0, 1, 4)):
            parts = [
                bits(cube[top:end, left:right], Part(cube.shape, (top, left, 0)))
                for top, end in itertools.pairwise(rows)
                for left, right in ((0, 2), (2, 6))
            ]
            assert bits(cube) == sum(parts) % (1 << 64), kind
    assert bits(whole, Part(whole.shape, (0, 0), counts=False)) == 0


def written(folder: Path, rank: int, *, ranks: int = 2, part: bool = False, **changes: Any) -> None:
    header = {"kind": "header", "schema": "watch_trace/1", "run_id": "r", "lane": "experimental", "promotable": False,
              "torch": "2", "rank": rank, "ranks": ranks, "every": 1, "program": "train.py"}  # fmt: skip
    tensor = {"kind": "float32 2", "trainable": True, "optimizer": 0, "part": part}
    tensors = {"kind": "tensors", "before_step": 1, "tensors": {"w": tensor}, "start": {"w": [(3.0 + rank * part).hex(),
               "0" * 16]}, "optimizers": [{"class": "SGD", "settings": [{}]}]}  # fmt: skip
    step = {"kind": "step", "step": 1, "optimizer": 0, "backwards": 1, "losses": [(1.0 + rank).hex()],
            "learning_rates": [(0.1).hex()], "batch": f"{rank:016x}", "grad": {"w": (1.0).hex()},
            "param": {"w": (2.0).hex()}, "grad_bits": {"w": "f" * 16}, "param_bits": {"w": "0" * 15 + "2"}}  # fmt: skip
    end = {"kind": "end", "steps": 1, "unseen": []}
    folder.mkdir(exist_ok=True)
    lines = [header, tensors, {**step, **changes}, end]
    (folder / f"{rank}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def result(folder: Path) -> Result:
    trace = together(read_watched(folder))
    key = Key("lane", "external", "", "", "", "")
    return Result("", key, "", "", {}, {}, "", "", "", {}, trace.initial, tuple(map(_step, trace.steps)), {}, "", {})


def apart(one: Path, other: Path) -> list[str]:
    rule = Rule("to the bit", digests=False, loss=0.0, tensor=0.0)
    return [item.what for item in walk(result(other), result(one), rule) if item.out_of_bounds]


def test_every_rank_counts(tmp_path: Path) -> None:
    for name in "abc":
        written(tmp_path / name, 0)
        written(tmp_path / name, 1)
    assert together(read_watched(tmp_path / "a")).steps[0].loss == 1.5
    written(tmp_path / "b", 1, batch="1" * 16, losses=[(5.0).hex()])
    assert apart(tmp_path / "a", tmp_path / "b") == [
        "digest of the batch of rank 1, step 1", "loss, step 1", "loss of rank 1, step 1"
    ]  # fmt: skip
    written(tmp_path / "c", 1, param_bits={"w": "1" * 16})
    assert apart(tmp_path / "a", tmp_path / "c") == ["bits of all parameters, step 1"]
    assert apart(tmp_path / "a", tmp_path / "a") == []


def test_parts_are_put_together(tmp_path: Path) -> None:
    for rank in (0, 1):
        written(tmp_path, rank, part=True)
    trace = together(read_watched(tmp_path))
    (step,) = trace.steps
    assert trace.initial == {"w": 5.0} and step.grad == {"w": 2.0**0.5} and step.param == {"w": 8.0**0.5}
    assert step.param_bits == {"w": "0" * 15 + "4"} and step.grad_bits == {"w": "f" * 15 + "e"}


def test_a_rank_that_has_something_else_has_a_name(tmp_path: Path) -> None:
    for rank in (0, 1):
        written(tmp_path, rank, param={"w": (2.0 + rank).hex()})
    assert together(read_watched(tmp_path)).steps[0].param == {"w": 2.0, "w of rank 1": 3.0}


def test_processes_that_are_no_ranks(tmp_path: Path) -> None:
    written(tmp_path, 0, ranks=1)
    assert together(read_watched(tmp_path)).steps[0].batch_digest == "0" * 16


def test_sketches_of_tensors_that_the_checkpoint_calls_otherwise(tmp_path: Path) -> None:
    """In a recording they are rounded to float32, which is no difference."""
    sketch = [0.1 + 0.01 * k for k in range(8)]
    for rank, name in enumerate("ab"):
        written(tmp_path / name, 0, ranks=1, sketch={"w": [(x + 1e-10 * rank).hex() for x in sketch]})
    assert apart(tmp_path / "a", tmp_path / "b") == []
    written(tmp_path / "c", 0, ranks=1, sketch={"w": [(x * 1.1).hex() for x in sketch]})
    assert apart(tmp_path / "a", tmp_path / "c") == ["w after step 1"]

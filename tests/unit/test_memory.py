"""Memory is given back in long forward passes, in those alone, and again and again on the way through a recording."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import audio_files
import pytest
from lazy import Lazy

if TYPE_CHECKING:
    import torch

    from harness.lane import memory, tokens
else:
    torch, memory, tokens = Lazy("torch"), Lazy("harness.lane.memory"), Lazy("harness.lane.tokens")


@pytest.mark.parametrize(("tokens", "calls"), [(512, 3), (511, 0)])
def test_some_calls_in_a_long_pass_and_none_in_a_short_one(tokens: int, calls: int) -> None:
    asked: list[int] = []
    transformer = torch.nn.Module()
    transformer.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(24))
    hooks = memory.give_back_on_the_way(transformer, asked.append)
    for _ in range(2):
        x = torch.zeros(1, tokens, 1024)
        for layer in transformer.layers:
            x = layer(x)
        for hook in hooks:
            hook.remove()
    assert asked == [0] * calls


def test_and_once_on_the_way_back() -> None:
    asked: list[int] = []
    transformer = torch.nn.Module()
    transformer.layers = torch.nn.ModuleList(torch.nn.ReLU() for _ in range(24))
    memory.give_back_on_the_way(transformer, asked.append)
    start = torch.ones(1, 512, 1024, requires_grad=True)
    x = start
    order: list[str] = []
    for number, layer in enumerate(transformer.layers):
        x = layer(x)
        x.register_hook(lambda gradient, number=number: order.append(f"{number}, {len(asked)} calls"))
    x.sum().backward()
    # What the last two layers kept is freed by then, and the process is largest.
    assert order[:4] == ["23, 3 calls", "22, 3 calls", "21, 3 calls", "20, 4 calls"]
    assert order[-1] == "0, 4 calls"
    assert torch.equal(start.grad, torch.ones_like(start))


def test_another_c_library_is_no_trouble() -> None:
    transformer = torch.nn.Module()
    transformer.layers = torch.nn.ModuleList([torch.nn.Identity()])
    assert memory.give_back_on_the_way(transformer, None) == []


def test_glibc_has_it() -> None:
    trim = memory.find_trim()
    if trim is None:
        pytest.skip("another C library than glibc")
    assert trim(0) in (0, 1)


def test_given_back_for_every_so_many_seconds_of_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Codec(torch.nn.Module):
        sample_rate, frame_rate, channels = 32_000, 50, 1

        def __init__(self) -> None:
            super().__init__()
            self.encoder = torch.nn.Linear(1, 1)

        def encode(self, wave: Any) -> Any:
            return torch.zeros(1, 4, 50, dtype=torch.int64), None

    asked: list[int] = []
    monkeypatch.setattr("harness.lane.tokens.find_trim", lambda: asked.append)
    monkeypatch.setattr("harness.lane.tokens.TRIM_SECONDS", 3)
    audio_files.write(tmp_path / "a.wav", audio_files.voice(10), subtype="PCM_16")
    settings: Any = SimpleNamespace(chunk_seconds=1.0, stride_seconds=1.0, audio_dir=tmp_path)
    entry = {"target": "a.wav", "sha256": "0" * 64, "sample_rate": 32_000, "frames": 320_000}
    assert len(tokens.tokenise(settings, {"entries": [entry]}, Codec()).codes) == 10
    assert asked == [0] * 3

"""One measurement at musicgen-small's true size, in a process of its own; prints one line of JSON. See
test_full_size.py.

    python tests/benchmark/full_size.py build DIR            a model of that size with made-up weights (0.9 GB)
    python tests/benchmark/full_size.py step DIR TOKENS      steps, and their matrix products (STEPS, OMP_NUM_THREADS)
    python tests/benchmark/full_size.py start DIR            start-up by part
    python tests/benchmark/full_size.py codec SECONDS        the codec, at encodec_32khz's size
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
DIM, HEADS, LAYERS, CARD, CODEBOOKS, TEXT_TOKENS = 1024, 16, 24, 2048, 4, 8
RANK = 8  # of the adapters
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
# With one thread the time that it worked, which others on the machine do not lengthen; with more, the time on the wall.
CLOCK = time.process_time if THREADS == 1 else time.perf_counter
LUT = "    model: lut\n    lut: {n_bins: 512, dim: 768, tokenizer: noop}\n"


def config() -> str:
    """musicgen-small's configuration; a table in place of the T5 encoder, which no step of the training touches."""
    import re

    from hub_cache import LM_CONFIG

    text = LM_CONFIG.format(card=CARD, dim=DIM, heads=HEADS, layers=LAYERS)
    return re.sub(r"    model: t5\n    t5: .*\n", LUT, text)


def build(folder: Path) -> None:
    import shutil

    import torch
    from omegaconf import OmegaConf

    from harness.lane.audiocraft_import import prepare_audiocraft

    prepare_audiocraft(transformers=False)
    from audiocraft.models import builders
    from audiocraft.modules.transformer import set_efficient_attention_backend

    set_efficient_attention_backend("torch")
    parsed: Any = OmegaConf.create(config())
    parsed.device, parsed.dtype = "cpu", "float32"
    parsed.conditioners.pop("args")
    parsed.transformer_lm.weight_init = parsed.transformer_lm.depthwise_init = None
    parsed.transformer_lm.zero_bias_init = False
    torch.manual_seed(0)
    lm: Any = builders.get_lm_model(parsed)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().half() for name, value in lm.state_dict().items()}
    torch.save({"best_state": state, "xp.cfg": config()}, folder / "state_dict.bin")
    shutil.copy(ROOT / "data" / "musicgen_nano" / "compression_state_dict.bin", folder)


def loaded(folder: Path, numerics: str = "native") -> tuple[Any, Any, Any]:
    """(settings, model, dtype), as the lane has them."""
    from harness.lane.model import load_model
    from harness.lane.settings import read_settings
    from harness.numerics.modes import apply_mode

    settings = read_settings(
        {
            "LANE_MODEL": str(folder),
            "LANE_NUMERICS": numerics,
            "LANE_THREADS": str(THREADS),
            "LANE_RUN_DIR": tempfile.mkdtemp(),
            "LANE_STEPS": os.environ.get("STEPS", "4"),
            "LANE_BATCH": "1",
        }
    )
    dtype = apply_mode(numerics, THREADS)
    model, _ = load_model(settings, dtype)
    return settings, model, dtype


def operations(tokens: int) -> float:
    """Of the matrix products of one step: forward, and backward to the activations; weights' gradients for the adapters
    alone."""
    positions = tokens + CODEBOOKS - 1
    layers = LAYERS * 14 * DIM * DIM * 4 * positions  # qkv, out, cross q and out, feed-forward: 2 forward, 2 backward
    text = LAYERS * 2 * DIM * DIM * 2 * TEXT_TOKENS  # cross k and v
    attention = LAYERS * DIM * positions * (positions + 1) * (2 + 5)  # causal: half of the square; 2 products, then 5
    heads = CODEBOOKS * CARD * DIM * 4 * positions
    adapters = LAYERS * 2 * RANK * 5 * DIM * 6 * positions  # of two linears between DIM and 4 * DIM
    return float(layers + text + attention + heads + adapters)


def gemm_rate(model: Any, tokens: int) -> float:
    """Operations a second of the layers' largest product, with the model's own weights of all layers in turn: weights
    made for this would take memory that is then counted as the training's."""
    import torch

    x = torch.randn(tokens + CODEBOOKS - 1, DIM)
    weights = [layer.linear1.weight for layer in model.lm.transformer.layers]
    torch.nn.functional.linear(x, weights[0])
    started = CLOCK()
    for weight in weights:
        torch.nn.functional.linear(x, weight)
    return LAYERS * 2 * x.shape[0] * 4 * DIM * DIM / (CLOCK() - started)


def step(folder: Path, tokens: int) -> dict[str, Any]:
    import numpy as np
    import torch

    from harness.lane import trainer
    from harness.lane.adapter import make_adapters
    from harness.lane.held_out import Split
    from harness.lane.optimizer import AdamW
    from harness.lane.state import State, StateFile
    from harness.lane.tokens import TokenSet
    from harness.lane.trace import Trace

    settings, model, dtype = loaded(folder)
    peak_loading = peak()
    conditions = {"description": (torch.randn(1, TEXT_TOKENS, DIM), torch.ones(1, TEXT_TOKENS, dtype=torch.long))}
    trainer.condition_tensors = lambda *_: conditions  # type: ignore[assignment]
    trainer.frozen_digest = lambda model: "0" * 64  # once a run, not once a step
    codes = np.random.default_rng(1).integers(0, CARD, size=(8, CODEBOOKS, tokens))
    adapters = make_adapters(model.lm, 0, dtype=dtype, device="cpu")
    trace = Trace(settings)
    ended, rates = [], []

    def progress(now: Any) -> None:
        ended.append(CLOCK())
        rates.append(gemm_rate(model, tokens))
        ended.append(CLOCK())

    split = Split(list(range(len(codes))), [])
    trainer.train(settings, model, adapters, TokenSet(torch.from_numpy(codes), [], 0), split, trace, progress)
    trace.publish()
    peak_training = peak()
    optimizer = AdamW(adapters.parameters(), 0.1, (0.9, 0.999), 1e-6, 0.0)
    states = StateFile(settings, {})
    started = time.perf_counter()
    states.save(State(1, 0.0, 0.0, 0.0, 0, None, None, "", adapters.state_dict(), {}, optimizer.state_dict(), {}))
    saving = {"save_s": time.perf_counter() - started, "state_mb": states.path.stat().st_size / 1e6}
    times = [ended[2 * i] - ended[2 * i - 1] for i in range(1, len(rates))]
    floors = [operations(tokens) / (sum(pair) / 2) for pair in itertools.pairwise(rates)]
    return {
        "tokens": tokens,
        "step_s": statistics.median(times),
        "floor_s": statistics.median(floors),
        "ratio": statistics.median(t / f for t, f in zip(times, floors, strict=True)),
        "gflops": statistics.median(rates) / 1e9,
        "peak_loading_gb": peak_loading,
        "peak_gb": peak_training,
        **saving,
    }


def start(folder: Path) -> dict[str, Any]:
    times = [time.perf_counter()]

    import torch

    times.append(time.perf_counter())
    from harness.lane.audiocraft_import import prepare_audiocraft

    prepare_audiocraft(transformers=False)
    import audiocraft.models.musicgen

    times.append(time.perf_counter())
    _, model, _ = loaded(folder)
    times.append(time.perf_counter())
    parameters = sum(p.numel() for p in model.lm.parameters())
    assert torch and audiocraft and parameters
    parts = dict(
        zip(("torch_s", "audiocraft_s", "model_s"), (b - a for a, b in itertools.pairwise(times)), strict=True)
    )
    return {**parts, "parameters": parameters, "peak_gb": peak()}


def codec(seconds: float) -> dict[str, Any]:
    import torch
    from transformers import EncodecConfig, EncodecModel

    from harness.lane.tokens import AT_ONCE

    torch.set_num_threads(THREADS)
    config = EncodecConfig(
        target_bandwidths=[2.2],
        sampling_rate=32_000,
        upsampling_ratios=[8, 5, 4, 4],
        num_filters=64,
        hidden_size=128,
        codebook_dim=128,
        codebook_size=CARD,
        norm_type="weight_norm",
        use_causal_conv=False,
        use_conv_shortcut=False,
    )
    model = EncodecModel(config).eval()

    def encode(wave: Any) -> int:
        with torch.no_grad():
            return int(model.encode(wave, None, 2.2)[0].shape[-1])

    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        model.to(dtype)
        waves = [torch.randn(1, 1, round(2.56 * 32_000), dtype=dtype)] * AT_ONCE
        # As the lane does it: chunks at once, each on threads of its own.
        at_once = min(THREADS, AT_ONCE)
        with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(THREADS // at_once,)) as workers:
            list(workers.map(encode, waves))
            started, frames = time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                frames += sum(workers.map(encode, waves))
            found[f"{name}_frames_a_second"] = frames / (time.perf_counter() - started)
    return found


def peak() -> float:
    """This process's largest resident size so far, GB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
    command, argument, *rest = sys.argv[1:]
    if command == "build":
        build(Path(argument))
        result: dict[str, Any] = {}
    elif command == "step":
        result = step(Path(argument), int(rest[0]))
    elif command == "start":
        result = start(Path(argument))
    else:
        result = codec(float(argument))
    print(json.dumps(result))

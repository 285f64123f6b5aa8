"""The lane on a GPU: the gates hold, an interrupted run goes on, and the codec takes no more memory than it needs.

pytest -m gpu
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from lane_child import ROOT, SHORT, run, start, strict_json

from harness.numerics.modes import environment_pins

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
NATIVE = {"LANE_NUMERICS": "native"}


@pytest.fixture(autouse=True)
def gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU on this machine")


def test_all_gates_hold(tmp_path: Path) -> None:
    """Every gate but the four that need a recording: of a GPU's numbers there is none."""
    names = ("gates", "meaning", "recipe", "said", "own_lane")
    gates = [str(ROOT / "tests" / "smoke" / f"test_{name}.py") for name in names]
    options = ["-m", "smoke", "-p", "no:cacheprovider", f"--lane-run-dir={tmp_path}"]
    options += [f"--junitxml={tmp_path}/junit.xml"]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("LANE_")}
    command = [sys.executable, "-m", "pytest", *gates, *options]
    done = subprocess.run(command, cwd=ROOT, env={**ours, **NATIVE}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    suite = next(iter(ElementTree.parse(tmp_path / "junit.xml").getroot()))
    assert (suite.get("failures"), suite.get("errors"), suite.get("skipped")) == ("0", "0", "0"), done.stdout[-2000:]
    assert strict_json(tmp_path / "environment.json")["device"] != "cpu", "the run did not use the GPU"
    assert strict_json(tmp_path / "train_status.json")["peak_gpu_memory_bytes"] < 1e9


def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """Killed after three steps, it goes on and writes the same bytes."""
    settings = {**SHORT, **NATIVE, "LANE_STEPS": "6", "LANE_EVAL_EVERY": "2"}
    whole = run(tmp_path / "whole", settings)
    assert whole.exit_code == 0, whole.stderr
    plant = (
        "import time\nfrom harness.lane import recipe\nreal = recipe.raise_if_stopped\n"
        "def said(line=None):\n    real(line)\n    if (line or '').startswith('PROGRESS 3 '): time.sleep(60)\n"
        "recipe.raise_if_stopped = said"
    )
    stopped = start(tmp_path / "stopped", {**settings, "LANE_SAVE_EVERY": "2"}, plant=plant)
    assert stopped.stdout is not None and any(line.startswith("PROGRESS 3 ") for line in stopped.stdout)
    stopped.kill()
    stopped.communicate()
    ended = run(tmp_path / "stopped", {**settings, "LANE_RESUME": "1"})
    assert "RESUMED after step 2 of 6" in ended.stdout, ended.stderr
    for name in ("checkpoints/tts_voice_train_musicgen_nano.pt", "tokens.npy"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), f"{name} differs"


CODEC = """
import torch
from transformers import EncodecConfig, EncodecModel
from harness.numerics.modes import apply_mode
apply_mode("native", 2)
sizes = {"num_filters": 64, "hidden_size": 128, "codebook_dim": 128, "codebook_size": 2048}
rates = {"sampling_rate": 32000, "upsampling_ratios": [8, 5, 4, 4], "target_bandwidths": [2.2]}
model = EncodecModel(EncodecConfig(**sizes, **rates, use_causal_conv=False, use_conv_shortcut=False)).eval().cuda()
with torch.no_grad():
    model.encode(torch.randn(1, 1, 81920, device="cuda"), None, 2.2)
print(torch.cuda.max_memory_reserved())
"""


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="not installed: transformers")
def test_a_codec_of_the_hubs_size_encodes_in_a_gigabyte() -> None:
    """cuDNN took 70 GB for one chunk, as much as there was."""
    environment = {**os.environ, **environment_pins("native", 2), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", CODEC]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) < 1e9, f"torch took {int(done.stdout.split()[-1]) / 1e9:.1f} GB"

"""A checkpoint attached to a MusicGen: as in training for any split of a sequence, on its own model, and off again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import voice
from bare_machine import ROOT, clean_environ
from truth import load_model

from harness.lane.generate import generate
from harness.lane.settings import SHIPPED_MODEL

SHORT = {"LANE_STEPS": "2", "LANE_STRIDE_SECONDS": "40", "LANE_BATCH": "2", "LANE_THREADS": "1"}
FRAMES = 90


@pytest.fixture(scope="module")
def model() -> Any:
    """The shipped model, in float64."""
    return load_model()


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose adapters do something, as the lane would write it."""
    import torch

    from harness.lane.adapter import RANK, make_adapters
    from harness.lane.voice import model_fingerprint

    generator = torch.Generator().manual_seed(1)
    state = make_adapters(model.lm, 0, dtype=torch.float32, device="cpu").state_dict()
    tensors = {name: value + 0.05 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
    meta = {"model_id": "musicgen_nano", "model_fingerprint": model_fingerprint(model.lm), "rank": RANK}
    path = tmp_path_factory.mktemp("voice") / "voice.pt"
    torch.save({"adapter": tensors, "meta": meta}, path)
    return path


def test_a_stream_gives_the_logits_of_the_whole(model: Any, checkpoint: Path) -> None:
    import torch

    from harness.lane.model import condition_tensors
    from harness.lane.voice import attach_voice

    lm = model.lm
    codes = torch.randint(0, lm.card, (2, lm.num_codebooks, FRAMES), generator=torch.Generator().manual_seed(2))
    conditions = condition_tensors(model, "a voice", 2)
    with torch.no_grad():
        plain = lm(codes, [], conditions)
        attached = attach_voice(model, checkpoint)
        whole = lm(codes, [], conditions)
        assert float((whole - plain).abs().max()) > 1e-3, "the adapters do nothing: this would prove nothing"
        for split in ([1] * FRAMES, [FRAMES], [70, *[1] * 20]):
            with lm.streaming():
                pieces = [lm(piece, [], conditions) for piece in codes.split(split, dim=2)]
            apart = float((torch.cat(pieces, dim=2) - whole).abs().max())
            assert apart <= 1e-12 * float(whole.abs().max()), split
        attached.remove()
        assert torch.equal(lm(codes, [], conditions), plain), "taken off, it leaves the model as it was"


def test_two_voices_at_once_stream_as_they_are_whole(model: Any, checkpoint: Path) -> None:
    import torch

    from harness.lane.model import condition_tensors
    from harness.lane.voice import attach_voice

    codes = torch.randint(0, model.lm.card, (1, model.lm.num_codebooks, 9), generator=torch.Generator().manual_seed(3))
    conditions = condition_tensors(model, "a voice", 1)
    voices = [attach_voice(model, checkpoint), attach_voice(model, checkpoint)]
    with torch.no_grad():
        whole = model.lm(codes, [], conditions)
        with model.lm.streaming():
            pieces = [model.lm(codes[..., n : n + 1], [], conditions) for n in range(9)]
    for one in voices:
        one.remove()
    assert float((torch.cat(pieces, dim=2) - whole).abs().max()) <= 1e-12 * float(whole.abs().max())


def test_another_model_and_what_is_no_checkpoint_are_refused(model: Any, checkpoint: Path, tmp_path: Path) -> None:
    import torch

    from harness.lane.voice import VoiceError, attach_voice

    loaded = torch.load(checkpoint)
    parameter = model.lm.linears[0].weight
    with torch.no_grad():
        before = parameter[0, 0].item()
        parameter[0, 0] += 0.5
        with pytest.raises(VoiceError, match="trained on musicgen_nano"):
            attach_voice(model, checkpoint)
        parameter[0, 0] = before
    (tmp_path / "notes.pt").write_text("notes")
    torch.save({"adapter": {"x": torch.zeros(2)}, "meta": loaded["meta"]}, tmp_path / "other.pt")
    torch.save({**loaded, "meta": {**loaded["meta"], "rank": 3}}, tmp_path / "short.pt")
    for name in ("gone.pt", "notes.pt", "other.pt", "short.pt"):
        with pytest.raises(VoiceError, match=name):
            attach_voice(model, tmp_path / name)
    hooks = [h for module in model.lm.modules() for h in (module._forward_hooks, module._forward_pre_hooks)]
    assert not any(hooks), "what was refused is attached nevertheless"


def test_the_same_model_in_another_dtype_is_the_same(model: Any) -> None:
    import copy

    from harness.lane.voice import load_musicgen, model_fingerprint

    float32 = load_musicgen(SHIPPED_MODEL)
    half = copy.deepcopy(float32.lm).half()
    assert len({model_fingerprint(lm) for lm in (model.lm, float32.lm, half)}) == 1


def test_generate_from_a_run_with_the_adapter_and_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import soundfile

    run = voice.run_lane(tmp_path / "run", SHORT)
    assert run.exit_code == 0, run.report
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("tts_voice_train_musicgen_nano.pt"))
    words = ["--checkpoint", str(checkpoint), "--seconds", "1.2"]
    command = [sys.executable, "-m", "harness", "generate", *words, "--out", str(tmp_path / "a.wav")]
    done = subprocess.run(command, cwd=ROOT, env=clean_environ(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "experimental" in done.stdout and "63 of 63" in done.stderr, done
    for name in "bd":
        assert generate([*words, "--out", str(tmp_path / f"{name}.wav")]) == 0
    assert generate([*words, "--out", str(tmp_path / "c.wav"), "--without-adapter"]) == 0
    waves = {name: soundfile.read(tmp_path / f"{name}.wav") for name in "abcd"}
    assert {(len(wave), rate) for wave, rate in waves.values()} == {(38_400, 32_000)}
    assert (waves["b"][0] == waves["d"][0]).all(), "the same seed"
    assert (waves["b"][0] != waves["c"][0]).any()
    capsys.readouterr()
    before = (tmp_path / "a.wav").read_bytes()
    assert generate([*words, "--out", str(tmp_path / "a.wav")]) == 1
    assert (tmp_path / "a.wav").read_bytes() == before and "a.wav is there already" in capsys.readouterr().err
    assert generate(["--checkpoint", str(tmp_path / "gone.pt"), "--out", str(tmp_path / "e.wav")]) == 1
    assert not (tmp_path / "e.wav").exists() and "gone.pt" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--seconds", "0"], ["--seconds", "nan"], ["--out", "x.mp3"], ["--seed", "-1"]])
def test_wrong_usage_computes_nothing(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        generate(["--checkpoint", "x.pt", "--out", "x.wav", *words])

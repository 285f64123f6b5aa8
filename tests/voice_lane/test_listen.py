"""`harness listen`: what is played is what was trained on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from truth import load_model

from harness.evidence import RunEvidence
from harness.present.html import write_html
from harness.present.listen import listen


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model()


def test_a_reconstruction_is_the_codecs_own_of_the_tokens(model: Any, tmp_path: Path) -> None:
    import io

    import numpy as np
    import soundfile
    import torch
    from run_directory import write_report, write_run

    from harness.evidence import load_run
    from harness.present.audio import Excerpt, NoAudio, model_name, reconstruction_clip

    run_dir = write_run(tmp_path / "run", checkpoint=False)
    tokens = np.random.default_rng(0).integers(0, 256, (2, 4, 50), dtype=np.int16)
    np.save(run_dir / "tokens.npy", tokens)
    report = load_run(run_dir).report
    with pytest.raises(NoAudio, match="is not the run's model"):
        model_name(load_run(run_dir))
    from harness.lane.model import identify_model
    from harness.lane.settings import SHIPPED_MODEL

    digest, _ = identify_model(str(SHIPPED_MODEL))
    write_report(run_dir / "train_report.txt", report | {"model_digest": digest})
    clip = reconstruction_clip(load_run(run_dir), Excerpt(run_dir, 0, (0, 1), 2.0))
    wave, rate = soundfile.read(io.BytesIO(clip.data))
    with torch.no_grad():
        joined = torch.from_numpy(np.concatenate(list(tokens), axis=1).astype(np.int64))[None]
        expected = model.compression_model.decode(joined)[0, 0].clamp(-1, 1).numpy()
    assert rate == 32_000 and wave.shape == expected.shape == (2 * 32_000,)
    assert np.abs(wave - expected).max() < 1e-3


def test_the_page_plays_all_four_and_says_what_the_samples_are_worth(
    lane_run: RunEvidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.present.listen.SAMPLE_SECONDS", 0.5)
    run = shutil.copytree(lane_run.run_dir, tmp_path / "run")
    assert "toy of 1.1M" not in write_html(run, [], None).read_text(), "no sample, and the page speaks of samples"
    assert listen([str(run)]) == 0, capsys.readouterr().err
    page = (run / "report.html").read_text()
    assert page.count("<audio") == 4
    assert "toy of 1.1M" in page and "buzzes" in page
    samples = [(run / "listen" / f"{name}.flac").read_bytes() for name in ("without_adapter", "with_adapter")]
    assert samples[0] != samples[1]

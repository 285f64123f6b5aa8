"""docs/colab.ipynb: kept without outputs, and executed from its first cell to its last against this checkout."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[2]
NARRATION = ROOT / "data" / "knowledge_audio_source" / "auntie_dottie.flac"
NOTEBOOK = ROOT / "docs" / "colab.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_it_is_kept_without_outputs() -> None:
    for number, cell in enumerate(cells("code")):
        assert cell["outputs"] == [] and cell["execution_count"] is None, (
            f"{NOTEBOOK.name}: code cell {number} has outputs; clear them (jupyter nbconvert --clear-output --inplace)"
        )


def test_it_opens_in_colab_and_asks_for_the_address() -> None:
    first = source(cells("markdown")[0])
    assert "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]" in first
    assert "/blob/main/docs/colab.ipynb)" in first and "Set `REPOSITORY`" in first
    assert source(cells("code")[0]).count('REPOSITORY = "') == 1


def test_every_cell_is_python() -> None:
    for cell in cells("code"):
        compile(source(cell), NOTEBOOK.name, "exec")


def execute(checkout: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    nbformat = pytest.importorskip("nbformat", reason="pip install '.[notebook]' for nbformat")
    nbclient = pytest.importorskip("nbclient", reason="pip install '.[notebook]' for nbclient")
    pytest.importorskip("ipykernel", reason="pip install '.[notebook]' for ipykernel")
    for name in [name for name in os.environ if name.startswith(("LANE_", "PYTEST_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HARNESS_CHECKOUT", str(checkout))
    monkeypatch.setenv("LANE_RUN_DIR", str(run_dir))
    # This interpreter's own kernel, whatever kernels this machine knows.
    spec = tmp_path / "jupyter" / "kernels" / "this"
    spec.mkdir(parents=True)
    words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": words, "display_name": "this", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=280, kernel_name="this", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    return notebook


@pytest.mark.notebook
def test_it_runs_from_the_first_cell_to_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = NOTEBOOK.read_bytes()
    run_dir = tmp_path / "run"
    own = tmp_path / "own"
    own.mkdir()
    samples, rate = soundfile.read(NARRATION, dtype="int16", frames=100 * 32_000)
    for number in range(4):
        soundfile.write(own / f"{number}.flac", samples[number * 25 * rate : (number + 1) * 25 * rate], rate)
    for name, value in {"OWN_VOICE": own, "OWN_STEPS": 4, "OWN_RUN_DIR": tmp_path / "own run"}.items():
        monkeypatch.setenv(name, str(value))
    notebook = execute(ROOT, run_dir, tmp_path, monkeypatch)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "=== COLAB TRAIN REPORT ===" in printed and "objective_status: completed" in printed
    shown = [output["data"] for output in outputs if output["output_type"] == "display_data"]
    html = "".join(data.get("text/html", "") for data in shown)
    assert html.count("<audio") == 8 and "srcdoc=" in html and "Content-Security-Policy" in html
    assert any(data.get("text/markdown", "").startswith("## ✅ Lane:") for data in shown)
    assert sorted(path.name for path in (run_dir / "listen").glob("*.flac")) == [
        "reconstruction.flac", "source.flac", "with_adapter.flac", "without_adapter.flac",
    ]  # fmt: skip
    assert "OWN_VOICE is not set" not in printed
    report = (tmp_path / "own run" / "train_report.txt").read_text()
    assert "objective_status: completed" in report and "manifest_entry_count: 4" in report
    assert NOTEBOOK.read_bytes() == before


@pytest.mark.notebook
def test_an_address_that_was_not_set_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="set REPOSITORY in the first cell"):
        execute(tmp_path / "nowhere", tmp_path / "run", tmp_path, monkeypatch)

"""`python3 -m harness init`: what it proposes for projects of several kinds, and what it leaves alone."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from harness.runs.propose import main
from harness.runs.table import find_lane

TORCH = """
import torch
import model.net
from helpers import batches
for x in batches():
    loss = step(x)
    loss.backward()
    optimizer.step()
torch.save({"model": 1}, "out/ckpt.pt")
"""
TRAINER = """
from transformers import Trainer
trainer = Trainer(model)
trainer.train()
trainer.model.save_pretrained("out/final")
"""
PLAIN = "import numpy as np\ndef train():\n    np.savez('out/w.npz', w=1)\n"
NONE = "print('hello')\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lane(text: str) -> dict[str, object]:
    (table,) = tomllib.loads(text)["tool"]["harness"]["lanes"].values()
    return dict(table)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (TORCH, {"checkpoint": "out/ckpt.pt", "trace": "watch", "code": ["train.py", "helpers.py", "model"]}),
        (TRAINER, {"checkpoint": "out/final", "trace": "watch", "code": ["train.py"]}),
        (PLAIN, {"checkpoint": "out/w.npz", "code": ["train.py"]}),
    ],
    ids=["torch", "trainer", "numpy"],
)
def test_the_table_is_what_the_script_does(
    code: str, expected: dict[str, object], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "train.py").write_text(code)
    (project / "helpers.py").write_text(NONE)
    (project / "model").mkdir()
    (project / "model" / "__init__.py").write_text("")
    assert main([]) == 0
    assert lane(capsys.readouterr().out) == {"command": ["{python}", "train.py"], **expected}
    assert sorted(p.name for p in project.iterdir()) == ["helpers.py", "model", "train.py"], "nothing is written"


def test_what_it_writes_is_a_lane_and_nothing_is_lost(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "train.py").write_text(TORCH)
    (project / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    assert main(["--write"]) == 0
    assert find_lane(project, "train").is_watched
    assert tomllib.loads((project / "pyproject.toml").read_text())["project"] == {"name": "mine"}
    assert (project / "test_lane.py").read_text() == "from harness.gates import *\n"
    assert "pytest -m smoke --lane=train" in capsys.readouterr().out
    before = (project / "pyproject.toml").read_bytes()
    (project / "test_lane.py").write_text("# mine\n")
    assert main(["--write"]) == 1, "there is such a table"
    assert (project / "pyproject.toml").read_bytes() == before
    assert (project / "test_lane.py").read_text() == "# mine\n"


def test_where_nothing_trains_it_says_so(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "app.py").write_text(NONE)
    (project / "broken.py").write_text("def (")
    assert main([]) == 1 and "SCRIPT" in capsys.readouterr().err
    assert main(["app.py"]) == 0, "one that is named is taken"
    assert "was not found" in capsys.readouterr().out
    assert main(["app.py", "--write"]) == 1, "it leaves nothing that could be judged"
    assert not (project / "pyproject.toml").exists()


def test_environments_and_tests_are_passed_over(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("env", "tests", ".hidden"):
        (project / folder).mkdir()
        (project / folder / "train.py").write_text(TORCH)
    (project / "env" / "pyvenv.cfg").touch()
    assert main([]) == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("path", "checkpoint"),
    [
        ('os.path.join(args.output_dir, "m.pt")', "runs/m.pt"),
        ('Path(args.output_dir) / "last" / "m.pt"', "runs/last/m.pt"),
        ('args.output_dir + "/m.pt"', None),
        ('os.path.join(args.data, "m.pt")', None),
        ('os.path.join(unknown(), "m.pt")', None),
    ],
)
def test_options_of_the_command_line_say_where_it_saves(
    path: str, checkpoint: str | None, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "train.py").write_text(f"""
import argparse, os, torch
from pathlib import Path
def main(args):
    loss.backward()
    torch.save(model.state_dict(), {path})
parser = argparse.ArgumentParser()
parser.add_argument("-o", "--output_dir", default="runs")
parser.add_argument("--data", required=True)
main(parser.parse_args())
""")
    assert main([]) == 0
    said = capsys.readouterr().out
    assert lane(said).get("checkpoint") == checkpoint
    assert "# it must be given --data: add them" in said
    assert checkpoint or '# where it leaves its checkpoint was not found: checkpoint = "PATH"' in said


def test_a_package_is_run_as_one(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its relative imports fail where its file is run by its path."""
    (project / "mine").mkdir()
    (project / "mine" / "__init__.py").write_text("")
    (project / "mine" / "__main__.py").write_text("from . import model\n" + TORCH)
    assert main([]) == 0
    assert lane(capsys.readouterr().out)["command"] == ["{python}", "-m", "mine"]


def test_of_a_notebook_it_says_how_it_becomes_a_script(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "my notes.ipynb").write_text("{}")
    assert main([]) == 1
    assert "jupyter nbconvert --to script 'my notes.ipynb'" in capsys.readouterr().err

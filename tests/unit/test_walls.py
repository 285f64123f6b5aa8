"""The walls of the house: who may import whom, and what collecting the tests may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from imports import LOADED, ROOT, circles, graph, imports_of, is_under, module_of

FILES = sorted((ROOT / "harness").rglob("*.py"))
STANDARD = sys.stdlib_module_names
# Each part of the house: what of the house it may import, and what from outside it (beside the standard library).
PARTS = {
    "__main__": ("bootstrap", ""),
    "base": ("", "filelock"),
    "numerics": ("", "numpy torch"),
    "lane": (
        "base numerics",
        "audiocraft av huggingface_hub numpy omegaconf soundfile torch transformers xformers yaml",
    ),
    "runs": ("base baselines evidence numerics", "msgspec numpy soundfile"),
    "session": ("base baselines bootstrap.report evidence present runs", "pytest"),
    "watch": ("", "torch"),  # in the process of another program, which need not know this one
    "evidence": ("base numerics", "msgspec numpy torch"),
    "baselines": ("base.git base.project base.workers evidence numerics", "msgspec numpy pytest syrupy"),
    "gates": ("baselines evidence numerics", "numpy pytest"),
    "present": ("base baselines evidence", "audiocraft msgspec numpy pytest soundfile torch"),
    "promotion": ("base.project baselines evidence numerics", "msgspec numpy"),
    "bootstrap": ("base numerics", ""),
}
# They bring the parts together.
ABOVE = {"__init__", "pytest_plugin"}
# Where the wall has a hole today. This list may only become shorter.
HOLES = {
    "bootstrap/command_line.py": "?",  # the command of its table
    "bootstrap/doctor.py": "harness.lane.settings",
    "lane/__init__.py": "harness.bootstrap.too_old",  # for a Python that cannot run the lane
    "lane/audiocraft_import.py": "?",  # the packages of its table
    "watch/hook/sitecustomize.py": "?",  # the folder above it, under a name of its own
    "present/audio.py": "harness.lane.settings harness.lane.voice",
    "present/listen.py": "harness.lane.voice",
    "promotion/contents.py": "harness.lane.audio harness.lane.containers harness.lane.errors",
}


def place(path: Path) -> str:
    return str(path.relative_to(ROOT / "harness"))


def over_the_wall(path: Path, source: str | None = None) -> set[str]:
    """What a file imports and may not; ``source``: with this text in it."""
    part = place(path).partition("/")[0].removesuffix(".py")
    own, outside = PARTS[part]
    allowed = [f"harness.{name}" for name in (part, *own.split())] + outside.split()
    found = {name for name in imports_of(path, source) if name not in ("harness", "__future__")}
    return {
        name for name in found if name.split(".")[0] not in STANDARD and not any(is_under(name, a) for a in allowed)
    }


@pytest.mark.parametrize("path", [path for path in FILES if len(path.relative_to(ROOT).parts) > 2], ids=place)
def test_nothing_looks_over_the_wall(path: Path) -> None:
    holes = HOLES.get(place(path), "").split()
    over = over_the_wall(path)
    assert not {name for name in over if not any(is_under(name, hole) for hole in holes)}
    assert all(any(is_under(name, hole) for name in over) for hole in holes), "a hole is closed: take it off the list"


def test_every_part_of_the_house_has_its_walls() -> None:
    assert {place(path).partition("/")[0].removesuffix(".py") for path in FILES} == {*PARTS, *ABOVE}
    assert not over_the_wall(ROOT / "harness" / "__main__.py")


@pytest.mark.parametrize(
    ("file", "planted"),
    [
        ("bootstrap/plan.py", "import numpy"),
        ("bootstrap/plan.py", "def later():\n    import numpy.linalg"),
        ("__main__.py", "def later():\n    import importlib\n    importlib.import_module('torch')"),
        ("gates/training.py", "from harness.lane import files"),
        ("runs/process.py", "from importlib import import_module as load\nload('harness.lane')"),
        ("present/html.py", "from ..lane.settings import read_settings"),
        ("present/html.py", "from .. import pytest_plugin"),
        ("evidence/run.py", "__import__('harness.runs.run')"),
        ("baselines/compare.py", "if True:\n    import harness.lane.trainer as t"),
        ("lane/tokens.py", "import importlib\nimportlib.import_module('py' + 'test')"),
        ("lane/tokens.py", "def later():\n    from harness.evidence import load_run"),
        ("numerics/digest.py", "import harness.base.files"),
    ],
)
def test_what_is_planted_is_seen(file: str, planted: str) -> None:
    assert over_the_wall(ROOT / "harness" / file, planted)


def test_the_set_up_loads_nothing_but_the_standard_library() -> None:
    """Nor does what it imports: every module of it, in a Python without installed packages."""
    modules = [module_of(path) for path in FILES if place(path).startswith(("bootstrap/", "__main__"))]
    command = [sys.executable, "-S", "-c", f"import {', '.join(modules)}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_no_modules_import_each_other() -> None:
    """In no circle of whatever length, when they are imported."""
    assert not circles(graph(FILES))
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


def test_no_module_is_longer_than_four_hundred_lines() -> None:
    assert {place(path) for path in FILES if len(path.read_text().splitlines()) > 400} == set()


def test_collecting_the_suite_imports_no_torch(pytestconfig: pytest.Config) -> None:
    """Of whatever this session has collected: the whole suite, in the default one."""
    assert "pytest" in pytestconfig.stash[LOADED] and "torch" not in pytestconfig.stash[LOADED]


def test_one_evidence_class_reads_every_lanes_run() -> None:
    """Nothing that reads or judges a run asks whose lane it is."""
    read = [
        path for part in ("evidence", "baselines", "present", "gates") for path in (ROOT / "harness" / part).glob("*")
    ]
    classes = [node.name for path in read if path.suffix == ".py" for node in ast.walk(ast.parse(path.read_text()))
               if isinstance(node, ast.ClassDef) and node.name.endswith("Evidence")]  # fmt: skip
    assert classes == ["RunEvidence"]
    assert not [path for path in FILES if "is_external" in path.read_text()]


def test_smoke_is_for_the_gates_alone() -> None:
    """`pytest -m smoke` collects tests/smoke and nothing else (conftest.py): the marker elsewhere would be lost."""
    marked = [
        path
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if "mark.smoke" in path.read_text() and path.parent.name != "smoke" and path != Path(__file__)
    ]
    assert not marked

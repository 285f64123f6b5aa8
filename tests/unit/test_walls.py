"""The walls of the house: who may import whom, and what collecting the tests may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def imports_of(path: Path) -> set[str]:
    """Every module named in an import of ``path``, wherever in the file it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("lane", ("harness.evidence", "harness.baselines", "harness.pytest_plugin", "pytest", "syrupy", "hypothesis")),
        ("evidence", ("harness.lane", "harness.launch", "pytest")),
        ("baselines", ("harness.lane", "harness.launch")),
        ("gates", ("harness.lane", "harness.launch")),
        ("numerics", ("harness.lane", "harness.evidence", "harness.baselines", "pytest")),
    ],
)
def test_nothing_looks_over_the_wall(folder: str, forbidden: tuple[str, ...]) -> None:
    files = sorted((ROOT / "harness" / folder).rglob("*.py"))
    assert files
    for path in files:
        over = {name for name in imports_of(path) if any(name == f or name.startswith(f"{f}.") for f in forbidden)}
        assert not over, f"{path.relative_to(ROOT)} imports {', '.join(sorted(over))}"


def test_collecting_the_suite_imports_no_torch() -> None:
    code = (
        "import sys, pytest\n"
        "class Look:\n"
        "    def pytest_collection_finish(self, session):\n"
        "        print('TORCH', 'torch' in sys.modules, len(session.items))\n"
        "arguments = ['--collect-only', '-qq', '-p', 'no:cacheprovider', '-p', 'no:xdist']\n"
        "sys.exit(pytest.main(arguments, plugins=[Look()]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("TORCH")]
    assert lines and lines[0].split()[1] == "False", done.stdout[-2000:] + done.stderr[-2000:]
    assert int(lines[0].split()[2]) > 50


def test_smoke_is_for_the_gates_alone() -> None:
    """`pytest -m smoke` collects tests/smoke and nothing else (conftest.py): the marker elsewhere would be lost."""
    marked = [
        path
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if "mark.smoke" in path.read_text() and path.parent.name != "smoke" and path != Path(__file__)
    ]
    assert not marked

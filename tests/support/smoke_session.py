"""`pytest -m smoke` in another project, as its user would type it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def voice_table(project: Path) -> None:
    """Make the voice lane of this checkout the project's own."""
    table = (ROOT / "pyproject.toml").read_text()
    begin, end = table.index("[tool.harness.lanes.experimental]"), table.index("[tool.pytest.ini_options]")
    table = table[begin:end].replace('import_from = "{root}"', f'import_from = "{ROOT}"')
    table = table.replace('code = ["harness/lane", "harness/numerics"]\n', "").replace("{root}/data", f"{ROOT}/data")
    (project / "pyproject.toml").write_text(table)


def smoke(project: Path, of_python: str, *arguments: str, cwd: Path | None = None, **settings: str) -> tuple[int, str]:
    """Exit code and output. `of_python`: an option of the interpreter; `cwd`: where it is typed, `project` if it is not
    given; `settings`: environment variables."""
    tests = project / "tests"
    tests.mkdir(exist_ok=True)
    (tests / "test_lane.py").write_text("from harness.gates import *\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "LANE_", "CI"))}
    # Or it would, at its end, clear away what earlier sessions of this machine left: up to half a minute.
    environment["PYTEST_DEBUG_TEMPROOT"] = str(project.parent)
    done = subprocess.run(
        [
            sys.executable,
            of_python,
            "-m",
            "pytest",
            "-m",
            "smoke",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:randomly",
            *arguments,
        ],
        cwd=cwd or project,
        env={**environment, "GITHUB_ACTIONS": "", "PYTHONPATH": str(ROOT), **settings},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr

"""What pip would install into a fresh environment of this Python, a line each: the key of the workflow's cache.

Nothing is installed. `python3 .ci/resolved.py`; standard library only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from harness.bootstrap.plan import AUDIOCRAFT_VERSION, needed  # noqa: E402


def resolved() -> list[str]:
    """`name==version` of each package, and this Python itself. Raises CalledProcessError where pip finds no answer."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
        command = [sys.executable, "-m", "pip", *words, *needed(ROOT, {}, tests=True)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        packages = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    lines = [f"{package['name']}=={package['version']}" for package in packages]
    return [*sorted(lines), f"audiocraft=={AUDIOCRAFT_VERSION}", f"python {sys.version}", sysconfig.get_platform()]


if __name__ == "__main__":
    print("\n".join(resolved()))

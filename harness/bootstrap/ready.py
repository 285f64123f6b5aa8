"""An environment that an earlier set-up made ready, and whether it still is. A second call needs no more than this."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.files import write_json
from harness.base.project import first_on_path
from harness.bootstrap.installed import editable_source, metadata_folders
from harness.bootstrap.settings import SetupSettings
from harness.bootstrap.target import Target

PROJECT = "voice-lane-harness"
STATE_FILE = "voice-lane-setup.json"
STATE_SCHEMA = "voice_lane_setup/1"
# Raise it when a set-up made by an older version of these modules is no longer good enough.
BOOTSTRAP_VERSION = 2


@dataclass(frozen=True)
class Setup:
    """An environment that is ready: its interpreter, and what to add to the environment of what runs in it."""

    root: Path
    python: Path
    prefix: Path
    audiocraft_import: str
    audiocraft_source: str | None

    def child_environ(self, environ: dict[str, str]) -> dict[str, str]:
        """``environ`` for a child: its code is this checkout's, whatever is linked into the environment; it says how
        audiocraft is imported, and makes the way over PYTHONPATH work."""
        child = {**environ, "AUDIOCRAFT_IMPORT": self.audiocraft_import}
        if self.audiocraft_import == "pythonpath" and self.audiocraft_source:
            child = first_on_path(Path(self.audiocraft_source), child)
        return first_on_path(self.root, child)


def read_state(prefix: Path) -> dict[str, Any]:
    """What the last set-up of this environment left behind; empty if there was none that can be read."""
    try:
        state = json.loads((prefix / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) and state.get("schema") == STATE_SCHEMA else {}


def fingerprint(root: Path, python: Path, folders: tuple[Path, ...], settings: SetupSettings) -> str:
    """A digest of everything that decides whether a set-up is still good.

    The project's declaration, this code's version, the checkout, the interpreter, each installed package, and how
    audiocraft is to be imported. Raises OSError where one of them cannot be read.
    """
    binary = python.resolve(strict=True)
    stat = binary.stat()
    parts = {
        "bootstrap": BOOTSTRAP_VERSION,
        "pyproject": pyproject_digest(root),
        "root": str(root),
        "python": [str(binary), stat.st_size, stat.st_mtime_ns],
        "installed": sorted(str(folder) for _, folder in metadata_folders(folders).values()),
        "project": str(editable_source(folders, PROJECT)),
        "audiocraft": [settings.audiocraft_editable, str(settings.audiocraft_source)],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def pyproject_digest(root: Path) -> str:
    return hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()


def find_ready(root: Path, target: Target, settings: SetupSettings, *, tests: bool = False) -> Setup | None:
    """The set-up of ``target``, if it was made earlier (with ``tests``: with what the suite needs) and nothing has
    changed since. Starts no process."""
    state = read_state(target.prefix)
    try:
        folders = tuple(Path(folder) for folder in state["folders"])
        if tests > state["tests"] or fingerprint(root, target.python, folders, settings) != state["fingerprint"]:
            return None
        audiocraft = state["audiocraft"]
        return Setup(root, target.python, target.prefix, audiocraft["import"], audiocraft["source"])
    except (KeyError, TypeError, OSError):
        return None


def remember(setup: Setup, folders: tuple[Path, ...], settings: SetupSettings, *, tests: bool) -> None:
    state = {
        "schema": STATE_SCHEMA,
        "fingerprint": fingerprint(setup.root, setup.python, folders, settings),
        "pyproject": pyproject_digest(setup.root),
        "tests": tests,
        "folders": [str(folder) for folder in folders],
        "audiocraft": {"import": setup.audiocraft_import, "source": setup.audiocraft_source},
    }
    try:
        write_json(setup.prefix / STATE_FILE, state)
    except OSError as reason:
        print(f"  the set-up cannot be remembered ({reason}); the next call will look again", file=sys.stderr)

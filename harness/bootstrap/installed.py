"""What is installed in an interpreter, read from the folders' names: no import, no pip, a few milliseconds."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from harness.bootstrap.errors import SetupError

_METADATA_FOLDER = re.compile(r"(?P<name>[A-Za-z0-9][^-]*)-(?P<version>[^-]+)(?:-py[\d.]+)?\.(?:dist|egg)-info")
# Asked of the interpreter itself, isolated from PYTHONPATH and the user's folder, which may change between calls.
_PROBE = """
import json, os, sys
folders = [p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages") and os.path.isdir(p)]
print(json.dumps({"version": list(sys.version_info[:3]), "prefix": sys.prefix, "folders": folders}))
"""


def normalise(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class Interpreter:
    """A Python that was asked about itself."""

    python: Path
    version: tuple[int, int, int]
    prefix: Path
    folders: tuple[Path, ...]


def ask_interpreter(python: Path) -> Interpreter:
    """Start ``python`` and have it say what it is. Raises SetupError when it does not start."""
    try:
        done = subprocess.run([str(python), "-I", "-c", _PROBE], capture_output=True, text=True, timeout=60)
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as reason:
        raise SetupError(
            "environment",
            f"the interpreter {python} does not work: {reason}",
            f"delete the environment it belongs to ({python.parent.parent}) and run the same command again",
        ) from reason
    major, minor, micro = answer["version"]
    return Interpreter(
        python, (major, minor, micro), Path(answer["prefix"]), tuple(Path(folder) for folder in answer["folders"])
    )


def metadata_folders(folders: Iterable[Path]) -> dict[str, tuple[str, Path]]:
    """Package name -> (version, its metadata folder); where a package is there twice, the first one counts."""
    found: dict[str, tuple[str, Path]] = {}
    for folder in folders:
        try:
            names = sorted(entry.name for entry in folder.iterdir())
        except OSError:
            continue
        for name in names:
            if match := _METADATA_FOLDER.fullmatch(name):
                found.setdefault(normalise(match["name"]), (match["version"], folder / name))
    return found


def installed_versions(folders: Iterable[Path]) -> dict[str, str]:
    """Package name -> version."""
    return {name: version for name, (version, _) in metadata_folders(folders).items()}


def editable_source(folders: Iterable[Path], name: str) -> Path | None:
    """The checkout that package ``name`` is an editable install of, or None."""
    entry = metadata_folders(folders).get(normalise(name))
    if entry is None:
        return None
    try:
        direct = json.loads((entry[1] / "direct_url.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not direct.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlsplit(direct["url"]).path))

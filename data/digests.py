"""The digests of the files this folder ships, kept in ``DIGESTS.json`` by the scripts that make the files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

DATA_DIR = Path(__file__).resolve().parent
DIGESTS_PATH = DATA_DIR / "DIGESTS.json"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_text_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text beside ``path`` and rename it into place, so that no reader ever sees half a file."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def record(*paths: Path) -> None:
    """Note size (bytes) and SHA-256 of each file in ``DIGESTS.json``, under its path relative to ``data/``."""
    known = json.loads(DIGESTS_PATH.read_text(encoding="utf-8")) if DIGESTS_PATH.exists() else {}
    for path in paths:
        name = path.resolve().relative_to(DATA_DIR).as_posix()
        known[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    write_text_atomically(DIGESTS_PATH, json.dumps(known, indent=2, sort_keys=True) + "\n")

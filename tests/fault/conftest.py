"""Files that the fault tests share; made once a session, in a folder of pytest's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Whole recordings of more than 5,000,000 bytes: ``good("flac")`` and so on, and ``good("mp3")``, smaller, made
    when first asked for."""
    import audio_files

    folder = tmp_path_factory.mktemp("good")

    def make(kind: str) -> Path:
        path = folder / f"good.{'ogg' if kind == 'opus' else kind}"
        if kind == "opus":
            path = folder / "opus" / "good.ogg"
        if not path.exists():
            if kind == "flac":
                audio_files.write(path, audio_files.voice(90), subtype="PCM_16")
            elif kind == "wav":
                audio_files.write(path, audio_files.voice(80), subtype="PCM_16")
            elif kind == "opus":
                audio_files.write(path, audio_files.voice(60, 48_000), 48_000, subtype="OPUS")
            else:
                audio_files.write(path, audio_files.voice(60))
        return path

    return make

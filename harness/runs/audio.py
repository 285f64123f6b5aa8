"""Other audio under the same names, and the same audio under other names, for the runs that must tell them apart."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from harness.evidence.data import audio_files
from harness.evidence.errors import EvidenceError, mismatch

BLOCK = 1 << 16  # frames of audio in memory at once


def changed_audio(source: Path, folder: Path) -> Path:
    """Other audio under the same names: each file backwards, its first half softer. Raises EvidenceError where no file
    is audio that can be written, or an `.npy` array; others are in a folder as they are."""
    troubles = []

    def change(index: int, file: Path, target: Path) -> None:
        try:
            _change(file, target / file.name)
        except EvidenceError as error:
            troubles.append(error)
            shutil.copyfile(file, target / file.name)

    changed = copied_files(source, folder, change)
    if len(troubles) == len(audio_files(source)):
        raise troubles[0]
    return changed


def renamed_audio(source: Path, folder: Path) -> Path:
    """The same audio under other names, in the opposite order, with other times."""

    def rename(index: int, file: Path, target: Path) -> None:
        new = target / f"{9999 - index:04d}-renamed{file.suffix}"
        shutil.copyfile(file, new)
        os.utime(new, (1_000_000_000 + index, 1_000_000_000 + index))

    return copied_files(source, folder, rename)


def copied_files(source: Path, folder: Path, write: Callable[[int, Path, Path], None]) -> Path:
    """A file, or each of a folder, as `write` makes it from its number and place. Raises EvidenceError for none."""
    files = audio_files(source)
    if not files:
        raise mismatch(source, "no file", "the audio that the lane trains on")
    for index, file in enumerate(files):
        target = folder / file.parent.relative_to(source) if source.is_dir() else folder
        target.mkdir(parents=True, exist_ok=True)
        write(index, file, target)
    return folder if source.is_dir() else next(path for path in folder.iterdir())


def _change(file: Path, target: Path) -> None:
    import numpy as np

    if file.suffix == ".npy":
        from harness.evidence import read_array

        changed = read_array(file)[::-1].copy()
        changed[: len(changed) // 2] //= np.array(2, changed.dtype)
        np.save(target, changed)
        return
    import soundfile

    try:
        with soundfile.SoundFile(file) as old:
            facts = (old.samplerate, old.channels, old.subtype, None, old.format)
            with soundfile.SoundFile(target, "w", *facts) as new:
                for end in range(old.frames, 0, -BLOCK):
                    old.seek(max(0, end - BLOCK))
                    block = old.read(min(end, BLOCK), dtype="int32", always_2d=True)[::-1]
                    block[: max(0, end - (old.frames + 1) // 2)] //= 2
                    new.write(block)
    except (RuntimeError, TypeError, ValueError) as error:  # soundfile's own errors are RuntimeErrors
        what = f"a file that is not changed here ({' '.join(str(error).split())[:100]})"
        raise mismatch(file, what, "audio (WAV, FLAC, OGG) or an .npy array") from None

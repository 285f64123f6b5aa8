"""Other data in place of a lane's own, and its own under other names, for runs that must tell them apart."""

from __future__ import annotations

from pathlib import Path

from harness.baselines.verdict import SecondLegUnavailable
from harness.evidence import NotApplicable
from harness.evidence.data import audio_files
from harness.evidence.errors import EvidenceError, mismatch
from harness.numerics.digest import file_sha256
from harness.runs.audio import changed_audio, copied_files, renamed_audio
from harness.runs.copies import copied
from harness.runs.table import Lane

Varied = tuple[Path | None, dict[str, Path]]  # the audio, and of `data` what is varied, by its path in the table


def other_data(lane: Lane, folder: Path) -> Varied:
    """Other audio, and other data where the table says that they may be altered. Raises NotApplicable where nothing
    may be, or nothing of it is another afterwards."""
    try:
        audio = _of_audio(lane, folder, is_renamed=False)
        data = {
            entry.path: _altered(lane.folder / lane.fill(entry.path, {}), _new(folder, index), entry.alter)
            for index, entry in enumerate(lane.data)
            if entry.alter is not None
        }
    except EvidenceError as error:
        raise NotApplicable(str(error)) from None
    _need(lane, audio, data, 'audio, and no data with alter = "lines" or "uint16", say')
    pairs = [(lane.audio_path(), audio), *((lane.folder / lane.fill(path, {}), to) for path, to in data.items())]
    for source, changed in pairs:
        if source and changed and _digests(source) == _digests(changed):
            raise NotApplicable(f"{source}: altered it is the same (is it silent, or empty?)")
    return audio, data


def renamed_data(lane: Lane, folder: Path) -> Varied:
    """The same audio, and the same data where the table allows it, under other names and with other times. Raises
    NotApplicable likewise."""
    try:
        audio = _of_audio(lane, folder, is_renamed=True)
        data = {
            entry.path: renamed_audio(lane.folder / lane.fill(entry.path, {}), _new(folder, index))
            for index, entry in enumerate(lane.data)
            if entry.rename
        }
    except EvidenceError as error:
        raise NotApplicable(str(error)) from None
    _need(lane, audio, data, "audio, and no data with rename = true")
    return audio, data


def data_for(lane: Lane, checkout: Path) -> None:
    """Put copies of the lane's data into another checkout of the project, as they lie here: git need not have them. No
    links: a lane may write into its data. Raises SecondLegUnavailable for what cannot be copied."""
    for path in lane.data_paths():
        if not path.is_relative_to(lane.root):
            continue
        for file in audio_files(path):
            there = checkout / file.relative_to(lane.root)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.unlink(missing_ok=True)
            if trouble := copied(file, there):
                raise SecondLegUnavailable(f"the data cannot be copied for it: {file}: {trouble}")


def _need(lane: Lane, audio: Path | None, data: dict[str, Path], what: str) -> None:
    if audio is None and not data:
        raise NotApplicable(f"the table of lane {lane.name} names no {what}")


def _new(folder: Path, index: int) -> Path:
    made = folder / f"data-{index}"
    made.mkdir()
    return made


def _of_audio(lane: Lane, folder: Path, *, is_renamed: bool) -> Path | None:
    if (source := lane.audio_path()) is None:
        return None
    (folder / "audio").mkdir()
    return (renamed_audio if is_renamed else changed_audio)(source, folder / "audio")


def _digests(path: Path) -> list[str]:
    return sorted(map(file_sha256, audio_files(path)))


def _altered(source: Path, folder: Path, how: str) -> Path:
    def alter(index: int, file: Path, target: Path) -> None:
        new = target / file.name
        if how == "lines":
            with file.open("rb") as old, new.open("wb") as out:
                out.writelines(line for number, line in enumerate(old) if number % 2 == 0)
            return
        import numpy as np

        items = np.fromfile(file, how)
        if items.nbytes != file.stat().st_size:
            raise mismatch(file, f"{file.stat().st_size:,} bytes", f"a whole number of items of {how}, as alter says")
        items[::-1].tofile(new)

    return copied_files(source, folder, alter)

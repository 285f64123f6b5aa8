"""A further run of a lane leaves no trace in the project, and nothing of a user's is lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from harness.runs.copies import copied
from harness.runs.footprint import MARK, Footprint, interrupted


def held(root: Path) -> dict[str, str]:
    """Every file of the project but those of the runs, and what it holds."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and "artifacts" not in path.parts]
    return {str(path.relative_to(root)): path.read_text() for path in files}


@pytest.fixture
def footprint(tmp_path: Path) -> Footprint:
    root = tmp_path / "project"
    (root / "artifacts" / "mine").mkdir(parents=True)
    (root / "notes.txt").write_text("a user's")
    (root / "out").mkdir()
    (root / "out" / "old.txt").write_text("there before")
    made = Footprint(root, root / "artifacts" / "mine", tmp_path / "store")
    made.begin()
    (root / "out" / "voice.bin").write_text("first")
    (root / "out" / "old.txt").write_text("first, over the old")
    return made


def further_run(root: Path) -> None:
    (root / "out" / "voice.bin").write_text("further")
    (root / "out" / "old.txt").unlink()
    (root / "out" / "not_in_the_table.txt").write_text("further")


def test_the_project_is_as_the_first_run_left_it(footprint: Footprint) -> None:
    before = held(footprint.root)
    for _ in range(2):
        footprint.before_further()
        further_run(footprint.root)
        said = footprint.put_back()
        assert held(footprint.root) == before
        assert len(said) == 1 and "not_in_the_table.txt" in said[0]
    assert (footprint.store / "footprint" / "moved" / "out" / "not_in_the_table.txt").read_text() == "further"
    assert interrupted(footprint.run_dir) is None


def test_nothing_is_put_back_through_a_link(footprint: Footprint, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("a user's")
    footprint.before_further()
    voice = footprint.root / "out" / "voice.bin"
    voice.unlink()
    voice.symlink_to(tmp_path / "elsewhere")
    footprint.put_back()
    assert voice.read_text() == "first" and not voice.is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "a user's"


def test_a_file_of_which_there_is_no_copy_is_named(footprint: Footprint) -> None:
    footprint.before_further()
    (footprint.root / "notes.txt").write_text("changed by a further run")
    assert [str(footprint.root / "notes.txt") in line for line in footprint.put_back()] == [True]


def test_a_session_that_was_killed_leaves_a_mark_that_is_told_once(footprint: Footprint) -> None:
    footprint.before_further()
    further_run(footprint.root)
    assert (footprint.run_dir / MARK).exists()
    told = interrupted(footprint.run_dir)
    assert told is not None and (footprint.store / "footprint" / "kept" / "out" / "voice.bin").read_text() == "first"
    assert str(footprint.store / "footprint" / "kept") in told and interrupted(footprint.run_dir) is None


@pytest.mark.parametrize("what", ["nothing", "folder", "pipe", "sparse"])
def test_what_is_copied_is_looked_at_before(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a byte is copied first: a file of 1 TiB would fill the disk before it were refused."""
    monkeypatch.setattr(shutil, "copyfileobj", lambda *_: pytest.fail("it was copied"))
    source = tmp_path / "source"
    if what == "folder":
        source.mkdir()
    elif what == "pipe":
        os.mkfifo(source)
    elif what == "sparse":
        with source.open("wb") as file:
            file.truncate(1 << 40)
    assert copied(source, tmp_path / "copy") and not (tmp_path / "copy").exists()

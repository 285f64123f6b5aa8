"""A recording that git ignores is said to be one: nobody else would have it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness.baselines.record import _ignored


def test_a_recording_that_git_ignores_is_said(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    recording = tmp_path / "baselines" / "a b.json"
    recording.parent.mkdir()
    recording.write_text("{}")
    assert _ignored(recording) == []
    (tmp_path / ".gitignore").write_text("baselines/\n")
    (line,) = _ignored(recording)
    command = line.partition("next: ")[2]
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    listed = subprocess.run(["git", "-C", str(tmp_path), "ls-files"], capture_output=True, text=True, check=True).stdout
    assert listed == "baselines/a b.json\n"


def test_where_there_is_no_git_nothing_is_said(tmp_path: Path) -> None:
    assert _ignored(tmp_path / "a.json") == []

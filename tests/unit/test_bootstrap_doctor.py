"""The doctor: one line about each thing, and what to do where it is off."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from bare_machine import ROOT, clean_environ, copy_checkout, harness

from harness.bootstrap import doctor as module
from harness.bootstrap.doctor import Finding, as_line, examine
from harness.numerics.processor import forced

SUBJECTS = [
    "Python",
    "settings",
    "environment",
    "to install",
    "torch",
    "numeric class",
    "pins",
    "threads",
    "lane",
    "memory",
    "disk",
    "git head",
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_checkout(tmp_path)


TORCH = {"torch": "2.13.0", "capability": "AVX2", "threads": 1, "gpu": None, "numeric_class": "0123456789abcdef"}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing torch takes seconds; one test does it, the others are told."""
    monkeypatch.setattr(module, "_ask_torch", lambda *words: dict(TORCH))
    monkeypatch.setattr(module, "_lane", lambda *words: Finding("lane", "in order"))


def found(checkout: Path, **environ: str) -> dict[str, Finding]:
    findings = examine(clean_environ(HF_HUB_OFFLINE="1", **environ), checkout)
    assert [finding.subject for finding in findings] == SUBJECTS
    return {finding.subject: finding for finding in findings}


def test_on_a_bare_machine_it_says_what_to_do(checkout: Path) -> None:
    done = harness(checkout, "doctor", environ=clean_environ(HF_HUB_OFFLINE="1"))
    assert done.returncode == 1 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line[4:18].strip() for line in lines[: len(SUBJECTS)]] == SUBJECTS
    assert lines[2].startswith("OFF environment") and lines[2].endswith("To do: python3 -m harness bootstrap")
    assert not (checkout / ".venv").exists() and not (checkout / "artifacts").exists(), "the doctor changes nothing"
    assert "\033" not in done.stdout


@pytest.mark.usefixtures("told")
def test_settings_and_head(checkout: Path) -> None:
    lines = found(checkout, RUN_GIT_SYNC="maybe")
    assert "RUN_GIT_SYNC='maybe'" in lines["settings"].text and lines["settings"].todo
    assert not found(checkout)["settings"].todo
    assert found(checkout, EXPECTED_HEAD="abcdef1", GIT_CEILING_DIRECTORIES="/")["git head"].text


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@pytest.mark.parametrize(
    ("environ", "code", "names"),
    [
        ({}, "", "in order"),
        ({"LANE_STEPS": "abc"}, "setting_not_understood", "LANE_STEPS='abc'"),
        ({"LANE_FOO": "1"}, "setting_unknown", "LANE_FOO"),
        ({"LANE_RUN_DIR": "file/below"}, "run_directory_unusable", "file/below"),
        ({"KNOWLEDGE_SOURCE_DIR": "empty"}, "narration_outside_source", "empty"),
        ({"AUDIO_PATH": "file"}, "audio_is_lfs_pointer", "file"),
        ({"LANE_MODEL": "empty"}, "model_missing", "state_dict.bin"),
        ({"EFFICIENT_ATTENTION_BACKEND": "xformers"}, "package_missing", "xformers"),
        ({"RUN_PREPARE": "0"}, "manifest_unusable", "voice_dataset_manifest.json"),
    ],
)
def test_what_the_lane_would_refuse(tmp_path: Path, environ: dict[str, str], code: str, names: str) -> None:
    """Asked of the lane itself, in a process of its own, which leaves nothing behind."""
    (tmp_path / "file").write_text(LFS)
    (tmp_path / "empty").mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    asked = clean_environ(PYTHONPATH=str(ROOT), TMPDIR=str(tmp_path / "empty"), PYTHONDONTWRITEBYTECODE="1", **environ)
    finding = module._lane(Path(sys.executable), asked, tmp_path)
    assert code in finding.text and names in finding.text and bool(finding.todo) == bool(code), finding
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "empty"} == {
        path: time for path, time in before.items() if path.name != "empty"
    }


def test_a_run_directory_without_locks_or_of_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.base.lock import LOCK_NAME, Busy, could_own, owned

    with could_own(tmp_path / "new" / "run"):
        assert list(tmp_path.iterdir()) == []
    with owned(tmp_path), pytest.raises(Busy, match=f"pid {os.getpid()} since"), could_own(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]

    def no_locks(*words: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(OSError, match="No locks"), could_own(tmp_path):
        pass


@pytest.mark.parametrize(("threads", "is_off"), [("1", False), ("1000", True)])
@pytest.mark.usefixtures("told")
def test_threads(checkout: Path, threads: str, is_off: bool) -> None:
    assert bool(found(checkout, LANE_THREADS=threads)["threads"].todo) == is_off


def test_torch_and_the_numeric_class_are_asked_of_the_interpreter() -> None:
    by_subject = {
        finding.subject: finding for finding in module._computing(Path(sys.executable), clean_environ(), ROOT)
    }
    assert not by_subject["torch"].todo and by_subject["torch"].text.startswith("2.")
    assert re.fullmatch(r"[0-9a-f]{16} \(universal mode\)", by_subject["numeric class"].text)


def test_an_interpreter_without_torch(tmp_path: Path) -> None:
    by_subject = {
        finding.subject: finding for finding in module._computing(tmp_path / "none", clean_environ(), tmp_path)
    }
    assert by_subject["torch"].todo and by_subject["numeric class"].text == "unknown without torch"


@pytest.mark.usefixtures("told")
def test_pins_that_are_set_here_are_named(checkout: Path) -> None:
    pins = forced(mkl="COMPATIBLE")
    assert "=".join(next(iter(pins.items()))) in found(checkout, **pins)["pins"].text


@pytest.mark.usefixtures("told")
def test_a_full_disk_and_little_memory(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(7 << 30))
    assert found(checkout)["disk"].todo, "torch with CUDA needs more"
    monkeypatch.setattr(module, "MEMORY_NEEDED", 1 << 60)
    assert found(checkout)["memory"].todo


def test_a_finding_is_one_line() -> None:
    line = as_line(Finding("torch", "is\nabsent", "install it"))
    assert line == "OFF torch          is absent. To do: install it"

"""What belongs to the user: no run replaces, alters or removes a file that the lane did not write."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lane_child
import numpy as np
import pytest
import voice

from harness.base import files
from harness.base.lock import owned
from harness.bootstrap.steps import STDERR_LOG, STDOUT_LOG, SetupLog
from harness.lane import outputs
from harness.lane.audio import inspect_audio
from harness.lane.dataset import prepare_dataset
from harness.lane.errors import LaneError
from harness.lane.outcome import _not_written
from harness.lane.outputs import locked
from harness.lane.settings import Settings, read_settings

pytestmark = pytest.mark.fault

SHORT = {"LANE_STEPS": "2", "LANE_STRIDE_SECONDS": "80", "LANE_BATCH": "2"}
PLACES = sorted(
    {
        "train_report.txt",
        "train_status.json",
        "tokens.npy",
        "trace.jsonl",
        "environment.json",
        "lane.log",
        "run.json",
    }
    | {"train_state.pt", "gates.json", "report.html", ".lane.lock", "listen/source.flac", "listen/listen.json"}
    | {f"checkpoints/tts_voice_train_musicgen_nano{suffix}" for suffix in (".pt", ".json", ".float64.pt")}
    | {"checkpoints/tts_voice_train_mine.pt", "knowledge_audio/voice_dataset_manifest.json"}
)


def settings_in(run_dir: Path, **variables: str) -> Settings:
    return read_settings({"LANE_RUN_DIR": str(run_dir), **variables})


def everything(folder: Path) -> dict[str, Any]:
    """What lies under a folder: kind, and content or target."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = path.read_bytes() if stat.S_ISREG(mode) else path.readlink() if stat.S_ISLNK(mode) else None
        found[str(path.relative_to(folder))] = (stat.S_IFMT(mode), content)
    return found


def refusal_of(settings: Settings) -> LaneError:
    with pytest.raises(LaneError) as caught, locked(settings):
        raise AssertionError("the run began")
    return caught.value


def notes(path: Path, run: Path) -> None:
    path.write_text("notes of mine\n")


def recording(path: Path, run: Path) -> None:
    path.write_bytes(b"fLaC\0\0\0\x22" + bytes(200))


def foreign_json(path: Path, run: Path) -> None:
    path.write_text('{"schema": "train_status/1", "job_type": "tts_prod_train"}')


def foreign_array(path: Path, run: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((3, 4, 128), np.int16))


def foreign_checkpoint(path: Path, run: Path) -> None:
    import torch

    torch.save({"state": torch.zeros(3), "lane": "mine"}, path)


def another_kind(path: Path, run: Path) -> None:
    """A file of the lane's, but a different one: its report; a status where the report belongs."""
    report = path.name == "train_report.txt"
    status = '{"schema": "train_status/1", "run_id": "x", "lane": "experimental"}'
    path.write_text(status if report else "=== COLAB TRAIN REPORT ===\nlane: experimental\n")


def link_to_ours(path: Path, run: Path) -> None:
    target = run.parent / "kept.txt"
    target.write_text("=== COLAB TRAIN REPORT ===\nkept\n")
    path.symlink_to(target)


def dangling(path: Path, run: Path) -> None:
    path.symlink_to(run.parent / "nowhere")


def folder(path: Path, run: Path) -> None:
    path.mkdir()


def pipe(path: Path, run: Path) -> None:
    os.mkfifo(path)


def hard_link(path: Path, run: Path) -> None:
    precious = run.parent / "precious.txt"
    precious.write_text("precious")
    path.hardlink_to(precious)


FOREIGN: list[Callable[[Path, Path], None]] = [
    *(notes, recording, foreign_json, foreign_array, foreign_checkpoint, another_kind),
    *(link_to_ours, dangling, folder, pipe, hard_link),
]


@pytest.mark.parametrize("place", PLACES)
def test_anything_else_in_the_place_of_an_output_stops_the_run_before_anything_is_written(
    place: str, tmp_path: Path
) -> None:
    for switches in ({}, {"CLEAR_PREVIOUS_ARTIFACTS": "0", "RESET_TRAIN_OUTPUTS": "0"}):
        for make in FOREIGN:
            run = tmp_path / f"{make.__name__}{len(switches)}" / "run"
            path = run / place
            path.parent.mkdir(parents=True)
            make(path, run)
            before = everything(run.parent)
            error = refusal_of(settings_in(run, **switches))
            assert (error.code, error.exit_code) == ("output_not_ours", 3), make.__name__
            assert str(path) in error.cause and error.action
            assert everything(run.parent) == before, make.__name__


@pytest.mark.parametrize(
    "place",
    ["a recording", "below a recording", "a folder", "/dev/null", "/dev/stdout", "a link", "the report", "the lock"],
)
def test_the_status_goes_nowhere_else(place: str, tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / "x"
    if place.endswith("a recording"):
        recording(path, run)
    elif place == "a folder":
        path.mkdir()
    elif place == "a link":
        path.symlink_to(tmp_path / "y")
    elif place.startswith("the"):
        path = run / {"the report": "train_report.txt", "the lock": ".lane.lock"}[place]
    else:
        path = Path(place)
    before, mode = everything(tmp_path), path.lstat().st_mode if os.path.lexists(path) else None
    status = path / "deeper" / "status.json" if place == "below a recording" else path
    error = refusal_of(settings_in(run, TRAIN_STATUS_PATH=str(status)))
    assert error.code == ("output_twice" if place.startswith("the") else "output_not_ours")
    assert str(path) in error.cause and "TRAIN_STATUS_PATH" in error.action
    assert everything(tmp_path) == before and (mode is None or path.lstat().st_mode == mode)


def test_nothing_is_lost_to_a_setting_that_is_not_understood(tmp_path: Path) -> None:
    """The end of such a run writes its status too, and removes one that is not this run's."""
    path = tmp_path / "take1.flac"
    recording(path, tmp_path)
    before = path.read_bytes()
    ended = lane_child.run(tmp_path / "run", {"LANE_STEPS": "many", "TRAIN_STATUS_PATH": str(path)})
    assert ended.exit_code == 3 and "output_not_ours" in ended.stderr and "Traceback" not in ended.stderr
    assert path.read_bytes() == before
    launched = voice.run_lane(tmp_path / "launched", {"TRAIN_STATUS_PATH": str(path)})
    assert launched.exit_code == 3 and path.read_bytes() == before


def test_a_status_that_could_not_be_written_takes_nobody_s_file_with_it(tmp_path: Path) -> None:
    path = tmp_path / "train_status.json"
    path.write_text("mine")
    _not_written(path, "status", OSError(28, "No space left on device"), settings_in(tmp_path))
    assert path.read_text() == "mine"


@pytest.mark.parametrize("make", [notes, another_kind, link_to_ours, dangling, folder, pipe, hard_link])
def test_the_writer_itself_replaces_only_its_kind(make: Callable[[Path, Path], None], tmp_path: Path) -> None:
    """Whatever comes to lie there while a run goes on; for the launcher, the page and the set-up too."""
    run = tmp_path / "run"
    run.mkdir()
    path = run / "gates.json"
    make(path, run)
    before = everything(tmp_path)
    with pytest.raises(files.NotOurs):
        files.write_json(path, {"schema": "gates/1", "lane": "experimental"})
    for kind in ("gates/1", "report", "log"):
        with pytest.raises(files.NotOurs):
            files.remove(path, "gates/1" if make is another_kind else kind)
    assert everything(tmp_path) == before


def test_somebody_who_is_faster_keeps_his_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the place and the name that is given there."""
    path, real = tmp_path / "train_status.json", files.check_place
    seen: list[Path] = []

    def check_place(place: Path, kind: str | None) -> bool:
        there = real(place, kind)
        if place == path and not seen:
            seen.append(place)
            path.write_text("mine")
        return there

    monkeypatch.setattr(files, "check_place", check_place)
    with pytest.raises(files.NotOurs):
        files.write_json(path, {"schema": "train_status/1", "lane": "experimental"})
    assert seen and path.read_text() == "mine" and not lane_child.leftovers(tmp_path)


def test_temporary_names_are_nobodys_excuse(tmp_path: Path) -> None:
    """A file, or a link, under a temporary name of the lane's; and one that a killed run left."""
    target = tmp_path / "target"
    target.write_text("precious")
    mine = tmp_path / f".lane-tmp-{os.getpid()}-a.json"
    for make in (mine.symlink_to, mine.hardlink_to):
        make(target)
        with pytest.raises(files.NotOurs):
            files.write_json(tmp_path / "a.json", {"schema": "gates/1", "lane": "experimental"})
        assert target.read_text() == "precious" and os.path.lexists(mine)
        mine.unlink()
    mine.write_text('{"schema": "gates/1", "lane": "experimental", "cut')
    files.write_json(tmp_path / "a.json", {"schema": "gates/1", "lane": "experimental"})
    assert not lane_child.leftovers(tmp_path)
    note = tmp_path / ".lane-tmp-1-notes.txt"
    note.write_text("mine")
    outputs.remove_earlier(settings_in(tmp_path))
    assert note.read_text() == "mine"


def test_the_lock_and_the_set_up_s_logs_replace_nothing(tmp_path: Path) -> None:
    (tmp_path / ".lane.lock").write_text("mine")
    with pytest.raises(files.NotOurs), owned(tmp_path):
        raise AssertionError("owned")
    for name in (STDOUT_LOG, STDERR_LOG):
        (tmp_path / name).write_text("mine")
    SetupLog.remove(tmp_path)
    with pytest.raises(files.NotOurs):
        SetupLog(["$ pip\n"]).write(tmp_path)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}
    for name in (STDOUT_LOG, STDERR_LOG):
        (tmp_path / name).unlink()
    for _ in range(2):
        SetupLog(["$ pip\n"]).write(tmp_path)
    SetupLog.remove(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lane.lock"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory that a whole run left; to be copied."""
    run = tmp_path_factory.mktemp("finished") / "run"
    ended = voice.run_lane(run, {**SHORT, "LANE_THREADS": "1"})
    assert ended.exit_code == 0
    return run


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(finished, tmp_path / "run"))


def test_every_file_of_a_run_is_known_again(copied: Path) -> None:
    known = {path: kind for path, kind in outputs.outputs(settings_in(copied)) if path.exists()}
    staged = {path for path in (copied / "knowledge_audio").iterdir() if path.suffix == ".flac"}
    assert {path for path in copied.rglob("*") if path.is_file()} == known.keys() | staged
    for path, kind in known.items():
        assert files.kind_at(path) == kind
    assert np.load(copied / "tokens.npy").dtype == np.int16  # the mark in its header is one that NumPy reads over


def test_what_an_earlier_version_wrote_without_a_mark_is_known_by_what_lists_it(copied: Path) -> None:
    """Tokens by the trace's digest, clips by listen.json's: an upgrade goes on in the same run directory."""
    clip, tokens, page = copied / "listen" / "source.flac", copied / "tokens.npy", copied / "report.html"
    np.save(tokens, np.load(tokens))
    clip.parent.mkdir()
    clip.write_bytes(b"fLaC and so on")
    listed = {"clips": {"source": {"sha256": files.file_sha256(clip)}}}
    files.write_json(clip.parent / "listen.json", {"schema": "listen/1", "lane": "experimental", **listed})
    page.write_text("<!DOCTYPE html>\n<style>:root { --recorded: #e09a2b; --band: #e09a2b55; }</style>")
    assert [files.kind_at(path) for path in (tokens, clip, page)] == ["tokens", "clip", "page"]
    outputs.check_outputs(settings_in(copied))
    np.save(tokens, np.load(tokens) + np.int16(1))  # anything else there is still nobody's to remove
    clip.write_bytes(b"fLaC and more")
    page.write_text("<!DOCTYPE html>\n<p>notes")
    for path in (tokens, clip, page):
        with pytest.raises(files.NotOurs):
            files.kind_at(path)


def test_a_run_owns_what_it_finds_of_earlier_ones(copied: Path) -> None:
    """Another model in the same directory: one checkpoint remains to be found; what is not the lane's stops the run."""
    folder = copied / "checkpoints"
    for suffix in (".pt", ".json", ".float64.pt"):
        (folder / f"tts_voice_train_musicgen_nano{suffix}").rename(folder / f"tts_voice_train_other{suffix}")
    (folder / "tts_voice_train_second.pt").write_bytes((folder / "tts_voice_train_other.pt").read_bytes())
    (folder / "notes.txt").write_text("mine")
    kept = {**SHORT, "RESET_TRAIN_OUTPUTS": "0"}
    error = refusal_of(settings_in(copied, **kept))
    assert error.code == "checkpoint_of_another_model" and "tts_voice_train_other.pt" in error.cause
    settings = settings_in(copied)
    with locked(settings):
        outputs.remove_earlier(settings)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_names_that_cannot_be_written_are_refused_at_the_start(tmp_path: Path) -> None:
    for length, refused in ((40, False), (170, False), (230, True), (255, True)):
        settings = settings_in(tmp_path, LANE_MODEL=f"owner/{'m' * length}")
        if refused:
            with pytest.raises(LaneError) as caught:
                outputs.check_names(settings)
            assert caught.value.code == "name_too_long" and "LANE_MODEL" in caught.value.action
        else:
            outputs.check_names(settings)
    limit = os.pathconf(tmp_path, "PC_NAME_MAX")
    longest = limit - len(f".lane-tmp-{os.getpid()}-tts_voice_train_.last_step.pt")
    for letter, size in (("m", 1), ("ü", 2)):
        outputs.check_names(settings_in(tmp_path, LANE_MODEL=letter * (longest // size), LANE_NUMERICS="universal"))
        with pytest.raises(LaneError, match="cannot be written"):
            outputs.check_names(
                settings_in(tmp_path, LANE_MODEL=letter * (longest // size + 1), LANE_NUMERICS="universal")
            )
    deep = tmp_path
    while len(str(deep)) < os.pathconf(tmp_path, "PC_PATH_MAX") - 120:
        deep /= "d" * 100
    with pytest.raises(LaneError) as caught:
        outputs.check_names(settings_in(deep, LANE_MODEL="m" * 100))
    assert caught.value.code == "name_too_long"


def test_a_long_model_name_ends_in_a_report_before_any_training(tmp_path: Path) -> None:
    model = tmp_path / ("m" * 230)
    model.mkdir()
    ended = lane_child.run(tmp_path / "run", {**SHORT, "LANE_MODEL": str(model)})
    lane_child.assert_refused(ended, "name_too_long", "m" * 200)
    assert ended.status["first_failed_step"] == "preflight"


# The staging folder.


def staged_once(run: Path, source: Path, **variables: str) -> tuple[Settings, dict[str, Any]]:
    settings = settings_in(run, AUDIO_PATH=str(source), **variables)
    return settings, prepare_dataset(settings, inspect_audio(source))


@pytest.mark.parametrize("clear", ["0", "1"])
@pytest.mark.parametrize("linked", [False, True])
def test_the_staging_folder_s_clean_up_removes_what_a_manifest_lists(
    clear: str, linked: bool, tmp_path: Path, good: Any
) -> None:
    run, folder = tmp_path / "run", tmp_path / "run" / "knowledge_audio"
    if linked:
        run.mkdir()
        (tmp_path / "recordings").mkdir()
        folder.symlink_to(tmp_path / "recordings")
    switches = {"CLEAR_PREVIOUS_ARTIFACTS": clear, "RESET_TRAIN_OUTPUTS": clear}
    folder.mkdir(parents=True, exist_ok=True)
    takes = [
        "202411221530-take1.flac",
        "0123456789ab-orphan.wav",
        "abcdefabcdef-x",
        "plain.flac",
        ".lane-tmp-1-0123456789ab",
    ]
    for name in takes:
        (folder / name).write_bytes(good("flac").read_bytes()[:1000] + name.encode())
    settings, first = staged_once(run, good("flac"), **switches)
    target = folder / first["entries"][0]["target"]
    renamed = folder / f"{'0' * 12}-renamed.flac"
    renamed.hardlink_to(target)  # listed content, another name
    target.unlink()
    target.write_bytes(b"listed name, other content")
    _, second = staged_once(run, good("flac"), **switches)
    again = folder / second["entries"][0]["target"]
    assert again != target and target.read_bytes() == b"listed name, other content" and renamed.exists()
    _, third = staged_once(run, good("opus"), **switches)
    assert not again.exists(), "listed, with the listed content: an earlier run's"
    present = {path.name for path in folder.iterdir()}
    assert present == {*takes, target.name, renamed.name, settings.manifest_path.name, third["entries"][0]["target"]}
    for name in takes:
        assert (folder / name).read_bytes().endswith(name.encode())
    assert settings.manifest_path.exists()


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": "voice_dataset/1", "entries": ENTRIES}',
        '{"entries": ENTRIES}',
        '{"schema": "voice_dataset/1", "lane": "production", "entries": ENTRIES}',
        '[{"schema": "voice_dataset/1", "lane": "experimental"}]',
    ],
)
def test_a_manifest_that_is_not_ours_removes_nothing(text: str, tmp_path: Path, good: Any) -> None:
    settings, first = staged_once(tmp_path / "run", good("flac"))
    settings.manifest_path.write_text(text.replace("ENTRIES", json.dumps(first["entries"])))
    before = everything(tmp_path)
    with pytest.raises(files.NotOurs):
        prepare_dataset(settings, inspect_audio(good("flac")))
    assert refusal_of(settings).code == "output_not_ours"
    assert everything(tmp_path) == before


def test_what_a_run_that_was_killed_has_staged_is_listed(
    tmp_path: Path, good: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a file was staged, and while one was being copied, which leaves the beginning of a recording."""
    settings, first = staged_once(tmp_path / "run", good("flac"))
    entry = first["entries"][0]
    monkeypatch.setattr("harness.lane.dataset._stage", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(settings, inspect_audio(good("flac")))
    monkeypatch.undo()
    shutil.copyfile(good("flac"), settings.audio_dir / entry["target"])
    (settings.audio_dir / f".lane-tmp-999999-{entry['sha256'][:12]}").write_bytes(good("flac").read_bytes()[:5000])
    _, second = staged_once(tmp_path / "run", good("flac"))
    assert second["entries"] == first["entries"]
    assert {path.name for path in settings.audio_dir.iterdir()} == {entry["target"], settings.manifest_path.name}


def test_a_source_folder_that_is_the_staging_folder_too_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    """Not even a lock is made in it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to("mine")
    with pytest.raises(LaneError) as refused:
        outputs.check_outputs(
            settings_in(
                tmp_path, KNOWLEDGE_SOURCE_DIR=str(tmp_path / "mine"), KNOWLEDGE_AUDIO_DIR=str(tmp_path / "link")
            )
        )
    assert refused.value.code == "source_is_staging" and list((tmp_path / "mine").iterdir()) == []

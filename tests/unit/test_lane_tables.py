"""A lane's table, and the run that it describes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import voice

from harness.base.files import PAGE_MARK, atomic_write, write_json
from harness.evidence import EvidenceError, NotApplicable, RunEvidence, load_run
from harness.evidence.formats import PLACES
from harness.evidence.record import RUN_FILE
from harness.lane.settings import DEFAULT_THREADS, VARIABLES, read_settings
from harness.numerics.digest import file_sha256
from harness.numerics.modes import environment_pins
from harness.runs.audio import changed_audio, renamed_audio
from harness.runs.directory import make_empty
from harness.runs.run import LaneRun
from harness.runs.table import LaneTableError, default_lane, find_lane, parse_lane, read_lanes

GOOD: dict[str, Any] = {"command": ["true"], "checkpoint": "out.npz"}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({**GOOD, "chekpoint": "x"}, "chekpoint: found a key that is not known, expected checkpoint?"),
        ({"checkpoint": "x"}, "command: found no such key"),
        ({**GOOD, "command": "python train.py"}, "command: found text 'python train.py', expected a list"),
        ({**GOOD, "command": []}, "command: found a list of 0"),
        ({**GOOD, "command": [1]}, "command[0]: found 1"),
        ({**GOOD, "env": {"SEED": 1}}, "env.SEED: found 1, expected text"),
        ({**GOOD, "checkpoint": ""}, "checkpoint: found text ''"),
        ({**GOOD, "checkpoint": "a\nb"}, "checkpoint: found text"),
        ({**GOOD, "cwd": "nowhere"}, "nowhere, which is no folder"),
        ({**GOOD, "vocabulary": 1}, "a whole number of at least 2"),
        ({**GOOD, "vocabulary": True}, "vocabulary: found true"),
        ({**GOOD, "time_limit": 0}, "time_limit: found 0"),
        ({**GOOD, "time_limit": -1.5}, "time_limit: found -1.5"),
        ({**GOOD, "time_limit": "${LIMIT:-soon}"}, "seconds above 0"),
        ({**GOOD, "runs": 0}, "runs: found 0"),
        ({**GOOD, "promises": ["trace"]}, "promises: found trace, which the table does not name"),
        ({**GOOD, "promises": ["thesis"]}, "promises[0]: found text 'thesis'"),
        ({**GOOD, "time_limit": "1h"}, "seconds above 0"),
        ({**GOOD, "status": {"state": "x"}}, "status.path: found no such key"),
        ({**GOOD, "status": {"path": "x", "los": "y"}}, "status.los: found a key that is not known, expected loss?"),
        ({**GOOD, "report": {"begin": "x"}}, "both path and output, or neither"),
        ({**GOOD, "report": {"path": "x", "output": True}}, "both path and output, or neither"),
        ({**GOOD, "report": {"output": 1}}, "report.output: found 1, expected true or false"),
        ({**GOOD, "audio": "data"}, "no way to tell the lane another path"),
        ({**GOOD, "data": [{"path": "a.csv", "alter": "lines"}]}, "no way to tell the lane another 'a.csv'"),
        ({**GOOD, "data": [{"path": "a.csv", "env": "A", "alter": "words"}]}, "data[0]"),
        ({**GOOD, "code": "train.py"}, "code: found text 'train.py', expected a list"),
        ({"command": ["true"]}, "nothing that the lane leaves"),
        ([], "found a list of 0, expected an object"),
    ],
)
def test_a_table_that_is_not_understood(table: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(LaneTableError) as error:
        parse_lane("mine", table, tmp_path)
    assert says in str(error.value) and "lanes.mine" in str(error.value)


@pytest.mark.parametrize("name", ["reference", "Mine", "a b", "../x", ""])
def test_a_name_that_cannot_be_a_lanes(name: str, tmp_path: Path) -> None:
    with pytest.raises(LaneTableError, match="this name"):
        parse_lane(name, GOOD, tmp_path)


def test_lanes_of_a_project(tmp_path: Path) -> None:
    assert read_lanes(tmp_path) == {}
    (tmp_path / "pyproject.toml").write_text('[tool.harness.lanes.one]\ncommand = ["true"]\nstatus = "s.json"\n')
    assert find_lane(tmp_path, "one").outputs == {"status": "s.json"}
    with pytest.raises(LaneTableError, match=r"no \[tool.harness.lanes.two\]; there are: one"):
        find_lane(tmp_path, "two")
    (tmp_path / "pyproject.toml").write_text("[tool")
    with pytest.raises(LaneTableError, match="cannot be read"):
        read_lanes(tmp_path)


def test_the_default_lane_is_the_marked_one_or_the_only_one(tmp_path: Path) -> None:
    def write(*marks: str) -> None:
        tables = [f'[tool.harness.lanes.l{n}]\ncommand = ["true"]\nstatus = "s"\n{m}\n' for n, m in enumerate(marks)]
        (tmp_path / "pyproject.toml").write_text("".join(tables))

    assert default_lane(tmp_path) is None
    write("")
    assert getattr(default_lane(tmp_path), "name", None) == "l0"
    write("", "")
    assert default_lane(tmp_path) is None
    write("", "default = true")
    assert getattr(default_lane(tmp_path), "name", None) == "l1"
    write("default = true", "default = true")
    with pytest.raises(LaneTableError, match="l0 and l1 marked as default"):
        default_lane(tmp_path)


def test_variables_and_words_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = parse_lane("mine", {**GOOD, "time_limit": "${LIMIT:-30}", "run_dir": "${RUNS:-{root}/out}"}, tmp_path)
    words = {"{run_dir}": "/r"}
    assert lane.fill("${A:-${B:-{run_dir}/x}}/y", words, {}) == "/r/x/y"
    assert lane.fill("${A:-${B:-{run_dir}/x}}/y", words, {"B": "b"}) == "b/y"
    assert lane.fill("${A:-${B:-{run_dir}/x}}/y", words, {"A": "a", "B": "b"}) == "a/y"
    assert lane.fill("${A}$A{B}", words, {"A": ""}) == "$A{B}", "what is neither is left as it is"
    odd = {"A": "/{run_dir}/${B:-x}", "B": "b"}
    assert lane.fill("${A}|{run_dir}", {"{run_dir}": "/{root}"}, odd) == "/{run_dir}/${B:-x}|/{root}", (
        "nor what is put in"
    )
    limits = [lane.time_limit({}), lane.time_limit({"LIMIT": "5"}), lane.time_limit({"LIMIT": "soon"})]
    assert limits == [30, 5, 30], "what is not understood the lane itself refuses"
    monkeypatch.delenv("RUNS", raising=False)
    assert lane.run_directory() == tmp_path / "out"
    monkeypatch.setenv("RUNS", "mine")
    monkeypatch.chdir(tmp_path)
    assert lane.run_directory() == tmp_path / "mine", "from where the session was started"


def test_the_voice_lanes_table_names_its_settings_and_what_it_leaves() -> None:
    """Held to the lane's own settings: what a printed command must repeat, and where its files lie."""
    table = voice.lane().table
    assert table.default and {*table.promises} == {*PLACES} == {*voice.lane().outputs}
    named = {name for name in VARIABLES if any(fnmatch(name, pattern) for pattern in table.variables)}
    assert named == {*VARIABLES}
    run_dir = Path("/run")
    settings = read_settings({"LANE_RUN_DIR": str(run_dir)})
    own = {"report": settings.report_path, "status": settings.status_path, "manifest": settings.manifest_path,
           "tokens": settings.tokens_path, "trace": settings.trace_path, "environment": settings.environment_path,
           "checkpoint": settings.checkpoint_path.parent}  # fmt: skip
    assert {what: Path(voice.lane().fill(path, {"{run_dir}": "/run"}, {})) for what, path in
            voice.lane().outputs.items()} == own  # fmt: skip
    pins = environment_pins("universal", DEFAULT_THREADS)
    assert {name: voice.lane().fill(value, {}, {}) for name, value in table.env.items()} == pins


def run(tmp_path: Path, script: str, **table: Any) -> RunEvidence:
    """Run a lane that is a few lines of Python, in `tmp_path`."""
    (tmp_path / "lane.py").write_text(script)
    lane = parse_lane("mine", {"command": ["{python}", "lane.py"], **table}, tmp_path)
    process = LaneRun(lane, tmp_path / "artifacts" / "mine")
    return load_run(process.wait().run_dir, run_id=process.run_id)


def test_what_a_run_leaves_is_copied_and_told(tmp_path: Path) -> None:
    script = (
        "import json, os\nprint('=== OLD ===\\nloss: 9.0\\nnoise\\n=== OLD ===\\nloss: 0.5\\nbye')\n"
        "json.dump({'a': {'loss': 0.5}, 'status': 'completed'}, open('s.json', 'w'))\n"
        "open(os.environ['LANE_RUN_DIR'] + '/m.json', 'w').write('[]')\n"
    )
    table = {
        "status": {"path": "s.json", "loss": "a.loss"},
        "report": {"output": True, "begin": "=== OLD ==="},
        "manifest": "{run_dir}/m.json",
    }
    found = run(tmp_path, script, **table)
    assert found.failure() is None
    assert found.status.loss == 0.5 and (found.status.settings or {})["command"] == "{python} lane.py"
    assert found.report == {"loss": "0.5"}
    assert "at least one file" in found.manifest_problems()[0]
    with pytest.raises(NotApplicable, match="gives no trace"):
        _ = found.trace
    with pytest.raises(NotApplicable, match="has no sanitized_logits"):
        _ = found.status.sanitized_logits
    assert (found.record.lane, found.record.promotable) == ("experimental", False)
    left = {"lane.log", "train_report.txt", "train_status.json", "voice_dataset_manifest.json"}
    assert found.record.left.keys() == left and found.record.work.keys() == {"m.json"}


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("raise SystemExit(3)", "exited with 3"),
        ("import os; os.kill(os.getpid(), 9)", "exited with -9"),
        ("pass", "no such file"),
        ("open('s.json', 'w').write('{\"status\": NaN}')", "NaN"),
        ('open(\'s.json\', \'w\').write(\'{"status": "failed", "root_cause": "no disk"}\')', "no disk"),
        ("open('s.json', 'w').write('{\"state\": \"completed\"}')", "found null"),
        ("open('s.json', 'w').write('[]')", "a list"),
    ],
)
def test_a_lane_that_failed_says_why_in_one_line(script: str, says: str, tmp_path: Path) -> None:
    reason = run(tmp_path, script, status="s.json").failure()
    assert reason is not None and says in reason and "\n" not in reason and "lane.log" in reason


def test_a_time_limit_ends_the_lane_and_what_it_started(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open('pid', 'w').write(str(child.pid))\ntime.sleep(600)\n"
    )
    found = run(tmp_path, script, status="s.json", time_limit=2)
    assert "time limit of 2 s" in str(found.failure())
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not _alive(pid):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("a process that the lane had started outlived it")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_command_that_is_none_and_a_folder_that_is_somebodys(tmp_path: Path) -> None:
    lane = parse_lane("mine", {**GOOD, "command": ["no-such-program"]}, tmp_path)
    with pytest.raises(EvidenceError, match=r"a command that does not start .*no-such-program"):
        LaneRun(lane, tmp_path / "run")
    lane = parse_lane("mine", GOOD, tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("years of work")
    with pytest.raises(EvidenceError, match="an empty folder"):
        LaneRun(lane, tmp_path / "theirs")
    assert (tmp_path / "theirs" / "thesis.txt").exists()
    missing = parse_lane("mine", {**GOOD, "initial_checkpoint": "gone.npz"}, tmp_path)
    with pytest.raises(EvidenceError, match=r"initial_checkpoint: found .*gone.npz"):
        LaneRun(missing, tmp_path / "run")


def a_file(folder: Path) -> None:
    folder.write_text("somebody's")


def a_dangling_link(folder: Path) -> None:
    folder.symlink_to("nowhere")


@pytest.mark.parametrize("trouble", [a_file, a_dangling_link])
def test_a_run_directory_that_cannot_be_used_is_named_and_no_traceback(
    trouble: Callable[[Path], None], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    trouble(run_dir)
    with pytest.raises(EvidenceError, match="run: found something that cannot be used"):
        LaneRun(parse_lane("mine", GOOD, tmp_path), run_dir)


def test_a_run_directory_that_goes_away_while_the_lane_runs_is_named(tmp_path: Path) -> None:
    """As a disk that is full by then: nothing can be written there any more."""
    lane = parse_lane("mine", {"command": ["rm", "-r", str(tmp_path / "run")], "report": {"output": True}}, tmp_path)
    process = LaneRun(lane, tmp_path / "run")
    with pytest.raises(EvidenceError, match="found something that cannot be used"):
        process.wait()


def test_the_history_outlives_a_run(tmp_path: Path) -> None:
    run(tmp_path, "open('s.json', 'w').write('{}')", status="s.json")
    folder = tmp_path / "artifacts" / "mine"
    history = {"schema": "history/1", "lane": "experimental", "promotable": False, "runs": []}
    write_json(folder / "history.json", history)
    (folder / "listen").mkdir()
    write_json(folder / "gates.json", {"schema": "gates/1", "lane": "experimental"})
    atomic_write(folder / "report.html", f"<!DOCTYPE html>\n{PAGE_MARK}".encode())
    run(tmp_path, "open('s.json', 'w').write('{}')", status="s.json")
    assert json.loads((folder / "history.json").read_text()) == history
    assert not any((folder / name).exists() for name in ("report.html", "gates.json", "listen"))


def test_a_manifest_is_held_against_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"one")
    entries = [{"path": "a.wav", "sha256": "0" * 64, "bytes": 4}, {"target": "gone.wav"}, {"name": "b"}]
    script = f"import json; json.dump({{'entries': {entries!r}}}, open('m.json', 'w'))"
    problems = run(tmp_path, script, manifest="m.json").manifest_problems()
    assert len(problems) == 4
    for said in ("SHA-256", "3 bytes", "gone.wav: no such file", "entries[2]"):
        assert any(said in problem for problem in problems), said


def test_audio_is_changed_and_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import soundfile

    monkeypatch.setattr("harness.runs.audio.BLOCK", 64)  # frames: a recording is many blocks
    source = tmp_path / "in"
    source.mkdir()
    samples = (np.arange(1000, dtype=np.int16) - 300) * 20
    soundfile.write(source / "a.wav", samples, 8000)
    soundfile.write(source / "b.flac", samples[:500], 8000)
    np.save(source / "c.npy", samples)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    changed = changed_audio(source, tmp_path / "changed")
    assert sorted(path.name for path in changed.iterdir()) == ["a.wav", "b.flac", "c.npy"]
    other, _ = soundfile.read(changed / "a.wav", dtype="int16")
    assert np.array_equal(other[500:], samples[:500][::-1])
    assert np.abs(other[:500] - samples[500:][::-1] // 2).max() <= 1
    renamed = renamed_audio(source, tmp_path / "renamed")
    files = sorted(renamed.iterdir())
    assert [path.read_bytes() for path in files] == [before["c.npy"], before["b.flac"], before["a.wav"]]
    assert all(path.stat().st_mtime < 1_100_000_000 and path.name not in before for path in files)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    single = changed_audio(source / "a.wav", tmp_path / "one")
    assert single == tmp_path / "one" / "a.wav"
    (source / "notes.txt").write_text("not audio")
    assert (changed_audio(source, tmp_path / "again") / "notes.txt").read_text() == "not audio"
    with pytest.raises(EvidenceError, match=r"notes.txt: found a file that is not changed here"):
        changed_audio(source / "notes.txt", tmp_path / "alone")


def test_python_is_this_one(tmp_path: Path) -> None:
    found = run(tmp_path, "import sys; open('s.json', 'w').write('{\"status\": \"completed\"}'); print(sys.executable)",
                status="s.json")  # fmt: skip
    assert (found.run_dir / "lane.log").read_text().strip() == sys.executable


def earlier_run(folder: Path, record: str = RUN_FILE) -> Path:
    """What an earlier run of another lane, and the session that judged it, left."""
    schema, told = {RUN_FILE: ("lane_run/1", "left"), "external_run.json": ("external_run/1", "files")}[record]
    run_dir = folder / "run"
    (run_dir / "work").mkdir(parents=True)
    (run_dir / "work" / "scratch.bin").write_bytes(b"the lane's own")
    for name in ("lane.log", "checkpoint.pt", "initial.pt", "train_status.json"):
        (run_dir / name).write_text(f"the run's {name}")
    listed = {path.name: file_sha256(path) for path in run_dir.iterdir() if path.is_file()}
    boundary = {"lane": "experimental", "promotable": False}
    write_json(run_dir / record, {"schema": schema, **boundary, "run_id": "a", told: listed})
    write_json(run_dir / "gates.json", {"schema": "gates/1", **boundary})
    return run_dir


def test_a_further_run_removes_the_earlier_one(tmp_path: Path) -> None:
    run_dir = earlier_run(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(run_dir)
    make_empty(link)
    assert sorted(path.name for path in run_dir.iterdir()) == [RUN_FILE, "work"] and link.is_symlink()
    run_dir = earlier_run(tmp_path / "killed")
    write_json(run_dir / RUN_FILE, {"schema": "lane_run/1", "lane": "experimental", "promotable": False, "run_id": "a"})
    make_empty(run_dir)
    assert sorted(path.name for path in run_dir.iterdir()) == [RUN_FILE, "work"]  # which the next run replaces
    run_dir = earlier_run(tmp_path / "before", "external_run.json")  # from before there was run.json
    make_empty(run_dir)
    assert sorted(path.name for path in run_dir.iterdir()) == ["work"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", "mine"),
        ("take1.flac", "fLaC"),
        ("checkpoint.pt", "other content under a listed name"),
        ("lane.log", "written by hand"),
        ("deeper/notes.txt", "mine"),
        ("listen/notes.txt", "mine"),
        ("gates.json", '{"schema": "mine/1"}'),
        (RUN_FILE, '{"schema": "lane_run/1"}'),
        ("link", None),
    ],
)
def test_a_further_run_removes_nothing_that_is_somebodys(name: str, content: str | None, tmp_path: Path) -> None:
    run_dir = earlier_run(tmp_path)
    path = run_dir / name
    path.parent.mkdir(exist_ok=True)
    if content is None:
        path.symlink_to(tmp_path)
    else:
        path.write_text(content)
    before = sorted(run_dir.rglob("*"))
    with pytest.raises(EvidenceError, match="an empty folder"):
        make_empty(run_dir)
    assert sorted(run_dir.rglob("*")) == before and (content is None or path.read_text() == content)

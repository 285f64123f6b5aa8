"""Reading a run directory: a checked value or one clear line, whatever the files hold."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_directory import RUN_ID, edit_json, edit_trace, write_json, write_record, write_run

from harness.evidence import EvidenceError, RunEvidence, check_report_keys, load_run
from harness.evidence.trace import parse_trace

OTHER = "f" * 32
JSON_FILES = {
    "status": "train_status.json",
    "manifest": "knowledge_audio/voice_dataset_manifest.json",
    "environment": "environment.json",
}
FILES = {**JSON_FILES, "report": "train_report.txt", "trace": "trace.jsonl", "tokens": "tokens.npy"}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", checkpoint=False)


def error_of(run_dir: Path, part: str) -> str:
    """The message of the error that reading `part` raises; one line, and the same each time."""
    run = load_run(run_dir)
    messages = []
    for _ in range(2):
        with pytest.raises(EvidenceError) as caught:
            getattr(run, part)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].isprintable()
    return messages[0]


def test_a_whole_run_is_read(run_dir: Path) -> None:
    run = load_run(run_dir)
    check_report_keys(run.report)
    assert run.status.status == "completed"
    assert run.trace.complete and [step.step for step in run.trace.steps] == [1, 2, 3]
    assert isinstance(run.trace.steps[0].grad["0.taps"], float)
    assert len(run.trace.end.sketch["0.taps"]) == 16
    assert run.tokens.shape == (3, 2, 5) and run.tokens_digest() == run.trace.tokens.tokens_digest
    assert run.manifest_problems() == [] and run.dataset_digest() == run.manifest.dataset_digest
    assert run.environment["numeric_mode"] == "universal"
    assert set(run.run_ids().values()) == {RUN_ID} and len(run.run_ids()) == 5
    assert run.failure() is None


def test_loading_reads_nothing(tmp_path: Path) -> None:
    run = load_run(tmp_path / "nowhere")
    assert run.run_ids() == {}
    assert run.log_path == tmp_path / "nowhere" / "lane.log"


def test_each_file_is_read_once(run_dir: Path) -> None:
    run = load_run(run_dir)
    first = run.status
    (run_dir / "train_status.json").unlink()
    assert run.status is first


@pytest.mark.parametrize("part", FILES)
class TestAnyFile:
    def test_missing(self, run_dir: Path, part: str) -> None:
        (run_dir / FILES[part]).unlink()
        assert f"{run_dir / FILES[part]}: found no such file, expected" in error_of(run_dir, part)

    def test_empty(self, run_dir: Path, part: str) -> None:
        (run_dir / FILES[part]).write_bytes(b"")
        assert str(run_dir / FILES[part]) in error_of(run_dir, part)

    @pytest.mark.parametrize("cut", [1, 30, 200])
    def test_truncated(self, run_dir: Path, part: str, cut: int) -> None:
        path = run_dir / FILES[part]
        data = path.read_bytes().rstrip(b"}\n")
        path.write_bytes(data[:-cut])
        assert str(path) in error_of(run_dir, part)

    def test_a_folder(self, run_dir: Path, part: str) -> None:
        (run_dir / FILES[part]).unlink()
        (run_dir / FILES[part]).mkdir()
        assert "found a folder" in error_of(run_dir, part)

    def test_a_pipe_does_not_block(self, run_dir: Path, part: str) -> None:
        (run_dir / FILES[part]).unlink()
        os.mkfifo(run_dir / FILES[part])
        assert "no regular file" in error_of(run_dir, part)

    def test_a_loop_of_links(self, run_dir: Path, part: str) -> None:
        (run_dir / FILES[part]).unlink()
        (run_dir / FILES[part]).symlink_to(run_dir / FILES[part])
        assert "cannot be opened" in error_of(run_dir, part)

    def test_too_large(self, run_dir: Path, part: str) -> None:
        with (run_dir / FILES[part]).open("r+b") as file:
            file.truncate(1 << 43)
        assert "expected" in error_of(run_dir, part) and "8,796,093,022,208 bytes" in error_of(run_dir, part)

    def test_not_utf8(self, run_dir: Path, part: str) -> None:
        path = run_dir / FILES[part]
        path.write_bytes(path.read_bytes().replace(b"a", b"\xff"))
        assert str(path) in error_of(run_dir, part)


@pytest.mark.parametrize("part", JSON_FILES)
class TestJsonFiles:
    def test_wrong_schema(self, run_dir: Path, part: str) -> None:
        edit_json(run_dir / FILES[part], lambda value: value.update(schema="something/2"))
        assert "schema: found text 'something/2', expected text" in error_of(run_dir, part)

    @pytest.mark.parametrize("key", ["schema", "run_id", "lane", "promotable"])
    def test_key_missing(self, run_dir: Path, part: str, key: str) -> None:
        edit_json(run_dir / FILES[part], lambda value: value.pop(key))
        assert f"{key}: found no such key" in error_of(run_dir, part)

    def test_promotable_is_refused(self, run_dir: Path, part: str) -> None:
        edit_json(run_dir / FILES[part], lambda value: value.update(promotable=0))
        assert "promotable: found 0, expected false" in error_of(run_dir, part)

    def test_key_twice(self, run_dir: Path, part: str) -> None:
        path = run_dir / FILES[part]
        path.write_text(path.read_text().replace("{", '{"lane": "experimental",', 1))
        assert "the key 'lane' twice" in error_of(run_dir, part)

    @pytest.mark.parametrize(
        ("value", "found"),
        [
            ("NaN", "bare token NaN"),
            ("-Infinity", "bare token -Infinity"),
            ("1e999", "overflows"),
            ("9" * 5000, "whole number of 5000"),
            ("[" * 100_000, "nested"),
            ("[" * 100 + "]" * 100, "nested"),
            ('"\\ud800"', "surrogate"),
            ('{"\\ud800": 1}', "surrogate"),
        ],
    )
    def test_not_strict(self, run_dir: Path, part: str, value: str, found: str) -> None:
        path = run_dir / FILES[part]
        path.write_text(path.read_text().replace("{", '{"extra": ' + value + ",", 1))
        assert found in error_of(run_dir, part)

    @pytest.mark.parametrize("text", ["[]", "3", '"text"', "null", "{} {}", "\ufeff{}"])
    def test_no_object(self, run_dir: Path, part: str, text: str) -> None:
        (run_dir / FILES[part]).write_text(text)
        assert str(run_dir / FILES[part]) in error_of(run_dir, part)

    def test_of_another_run(self, run_dir: Path, part: str) -> None:
        edit_json(run_dir / FILES[part], lambda value: value.update(run_id=OTHER))
        run = load_run(run_dir, run_id=RUN_ID)
        with pytest.raises(EvidenceError, match=f"run_id: found text '{OTHER}', expected text '{RUN_ID}'"):
            getattr(run, part)
        assert run.run_ids()[Path(FILES[part]).name] == OTHER


@pytest.mark.parametrize("part", ["manifest", "environment", "report", "trace"])
def test_the_status_says_whose_run_it_is(run_dir: Path, part: str) -> None:
    edit_json(run_dir / "train_status.json", lambda value: value.update(run_id=OTHER))
    assert "of train_status.json (is the file stale?)" in error_of(run_dir, part)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("status", "fine"),
        ("status", None),
        ("loss", True),
        ("loss", "2.5"),
        ("loss", [2.5]),
        ("steps_done", 3.0),
        ("steps_done", -1),
        ("steps_done", True),
        ("root_cause", None),
        ("root_cause", ""),
        ("settings", []),
        ("checkpoint_path", 3),
    ],
)
def test_status_of_wrong_types(run_dir: Path, key: str, value: object) -> None:
    edit_json(run_dir / "train_status.json", lambda status: status.update({key: value}))
    assert f"train_status.json: {key}: found" in error_of(run_dir, "status")


@pytest.mark.parametrize("key", ["loss", "status", "sanitized_logits", "checkpoint_sha256"])
def test_status_without_a_key(run_dir: Path, key: str) -> None:
    edit_json(run_dir / "train_status.json", lambda status: status.pop(key))
    assert f"{key}: found no such key" in error_of(run_dir, "status")


@pytest.mark.parametrize(
    "target", ["../one.flac", "/etc/passwd", ".", "a/../../x", "x/../one.flac", "link", "loop", "a\0b", "", 3]
)
def test_a_target_outside_the_folder_is_refused(run_dir: Path, target: object) -> None:
    (run_dir / "knowledge_audio/link").symlink_to("/etc/passwd")
    (run_dir / "knowledge_audio/loop").symlink_to("loop/loop")
    edit_json(run_dir / FILES["manifest"], lambda value: value["entries"][1].update(target=target))
    if target in (".", "loop"):  # inside the folder, but no file
        assert load_run(run_dir).manifest_problems() != []
        return
    message = error_of(run_dir, "manifest")
    assert "entries[1].target: found" in message
    assert load_run(run_dir).manifest_problems() == [message]
    with pytest.raises(EvidenceError):
        load_run(run_dir).dataset_digest()


def test_a_target_is_neither_the_folder_nor_a_whole_path(run_dir: Path) -> None:
    for target in (".", str(run_dir / "knowledge_audio/two.flac")):
        edit_json(run_dir / FILES["manifest"], lambda value, target=target: value["entries"][1].update(target=target))
        assert "entries[1].target: found" in error_of(run_dir, "manifest")


def test_a_target_twice_is_refused(run_dir: Path) -> None:
    edit_json(run_dir / FILES["manifest"], lambda value: value["entries"][1].update(target="one.flac"))
    assert "again, expected each target once" in error_of(run_dir, "manifest")


def change_byte(audio: Path) -> None:
    audio.write_bytes(b"x" * 100)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda audio: audio.unlink(), "no such file"),
        (change_byte, "SHA-256"),
        (lambda audio: audio.write_bytes(b"x" * 101), "found 101 bytes, expected 100"),
        (lambda audio: (audio.unlink(), audio.mkdir()), "a folder"),
        (lambda audio: (audio.unlink(), os.mkfifo(audio)), "no regular file"),
    ],
)
def test_staged_audio_that_changed(run_dir: Path, change: Callable[[Path], object], problem: str) -> None:
    change(run_dir / "knowledge_audio/two.flac")
    problems = load_run(run_dir).manifest_problems()
    assert problem in problems[0] and "two.flac" in problems[0]
    of_the_data_set = [line for line in problems if "dataset_digest" in line]
    assert len(of_the_data_set) == (problem == "SHA-256") == len(problems) - 1, "only where every file can be read"


def test_the_first_staged_file_is_named_with_its_digest(run_dir: Path) -> None:
    change_byte(run_dir / "knowledge_audio/one.flac")
    problem = load_run(run_dir).manifest_problems()[0]
    assert "one.flac" in problem and hashlib.sha256(b"x" * 100).hexdigest() in problem


def test_staged_audio_on_a_disk_that_fails(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("harness.evidence.run.file_sha256", fail)
    problems = load_run(run_dir).manifest_problems()
    assert len(problems) == 2 and all("a file that cannot be read" in problem for problem in problems)


def test_staged_audio_above_a_terabyte_is_not_read(run_dir: Path) -> None:
    with (run_dir / "knowledge_audio/two.flac").open("wb") as file:
        file.truncate(1 << 43)
    (problem,) = load_run(run_dir).manifest_problems()
    assert problem.endswith("expected a staged file of at most 1,099,511,627,776 bytes")


def test_a_false_dataset_digest(run_dir: Path) -> None:
    edit_json(run_dir / FILES["manifest"], lambda value: value.update(dataset_digest="0" * 64))
    (problem,) = load_run(run_dir).manifest_problems()
    assert "dataset_digest 0000" in problem
    assert load_run(run_dir).dataset_digest() != "0" * 64


def test_a_manifest_of_nothing(run_dir: Path) -> None:
    edit_json(run_dir / FILES["manifest"], lambda value: value["entries"].clear())
    assert load_run(run_dir).manifest_problems() == [
        f"{run_dir / FILES['manifest']}: found no entries, expected at least one file"
    ]
    with pytest.raises(EvidenceError):
        load_run(run_dir).dataset_digest()


Lines = list[dict[str, Any]]


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda lines: lines.pop(), "no end after line 6"),
        (lambda lines: lines.pop(4), "found 3, expected 2"),
        (lambda lines: lines.pop(0), "kind: found text 'tokens', expected header"),
        (lambda lines: lines.append(lines[-1]), "a line after the last"),
        (lambda lines: lines.insert(1, lines[1]), "expected start"),
        (lambda lines: lines[0].update(schema="lane_trace/2"), "schema: found"),
        (lambda lines: lines[0].update(steps=4), "expected step (3 of 4 steps so far)"),
        (lambda lines: lines[0].update(steps=2), "expected end"),
        (lambda lines: lines[0].update(seed="0"), "seed: found text '0'"),
        (lambda lines: lines[1].update(shape=[4, 2, 5]), "chunks: found 3, expected 4"),
        (lambda lines: lines[1].update(tokens_digest="0" * 63), "tokens_digest"),
        (lambda lines: lines[1]["chunks"][1].update(digest=3), "chunks[1].digest: found 3"),
        (lambda lines: lines[3].update(chunks=[0]), "chunks: found 1, expected 2, a whole batch"),
        (lambda lines: lines[3].update(chunks=[0, 3]), "chunks[1]: found 3, expected a chunk from 0 to 2"),
        (lambda lines: lines[3].update(chunks=[0, -1]), "chunks[1]: found -1, expected a chunk from 0 to 2"),
        (lambda lines: lines[3].update(loss=2.5), "loss: found 2.5, expected a number as float.hex()"),
        (lambda lines: lines[3].update(loss="2.5"), "loss: found text '2.5'"),
        (lambda lines: lines[3].update(loss="0x1p400000"), "loss: found"),
        (lambda lines: lines[3].update(loss="NaN"), "loss: found"),
        (lambda lines: lines[3]["loss_by_codebook"].pop(), "loss_by_codebook: found a list of 1"),
        (lambda lines: lines[3]["valid"].append(1), "valid: found a list of 3"),
        (lambda lines: lines[3].pop("batch_digest"), "batch_digest: found no such key"),
        (lambda lines: lines[4]["grad"].pop("0.gate"), "grad.0.gate: found no such tensor"),
        (lambda lines: lines[4]["param"].update(new="0x0.0p+0"), "param.new: found a tensor that was not there"),
        (lambda lines: lines[3]["sketch"].pop("0.taps"), "sketch.0.taps: found no such tensor"),
        (lambda lines: lines[-1].update(steps=2), "steps: found 2, expected 3"),
        (lambda lines: lines[-1].update(sketch={}), "sketch: found an object with 0 keys"),
        (lambda lines: lines[-1].pop("sketch"), "sketch: found no such key"),
        (lambda lines: lines.__setitem__(3, []), "found a list of 0"),
    ],
)
def test_an_inconsistent_trace(run_dir: Path, edit: Callable[[Lines], object], found: str) -> None:
    edit_trace(run_dir / "trace.jsonl", edit)
    assert found in error_of(run_dir, "trace")


def test_values_that_are_not_finite_are_read(run_dir: Path) -> None:
    edit_trace(run_dir / "trace.jsonl", lambda lines: lines[4].update(loss="nan", loss_by_codebook=["inf", "-inf"]))
    step = load_run(run_dir).trace.steps[1]
    assert step.loss != step.loss and step.loss_by_codebook == [float("inf"), float("-inf")]


def test_the_trace_of_a_run_that_ended_early(run_dir: Path) -> None:
    path = run_dir / "trace.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:5]) + whole[5][:40])
    assert "is the trace truncated?" in error_of(run_dir, "trace")
    trace = load_run(run_dir).partial_trace
    assert len(trace.steps) == 2 and not trace.complete and not trace.has("end")
    path.write_text(whole[0][:50])
    assert "no header" in error_of(run_dir, "partial_trace")


def test_a_trace_on_a_disk_that_fails(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def readline(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("harness.evidence.trace.open_regular", lambda *_: Failing())
    assert "a file that cannot be read ([Errno 5] Input/output error)" in error_of(run_dir, "trace")


def test_a_line_without_end(run_dir: Path) -> None:
    with (run_dir / "trace.jsonl").open("wb") as file:
        file.truncate(1 << 29)
    assert "found more than 8,388,608 bytes, expected a line of at most that" in error_of(run_dir, "trace")


def test_a_trace_has_a_limit(run_dir: Path) -> None:
    with (run_dir / "trace.jsonl").open("wb") as file:
        file.truncate(1 << 40)
    assert error_of(run_dir, "trace").endswith("expected the lane's trace of at most 1,073,741,824 bytes")


def test_an_open_trace_must_be_whole_and_have_its_sketches_unless_it_is_said_not_to(run_dir: Path) -> None:
    data = (run_dir / "trace.jsonl").read_bytes()
    assert parse_trace(io.BytesIO(data), Path("here")).complete
    with pytest.raises(EvidenceError, match="a whole trace"):
        parse_trace(io.BytesIO(data[: data.index(b'{"kind": "end"')]), Path("here"))
    edit_trace(run_dir / "trace.jsonl", lambda lines: lines[-1].pop("sketch"))
    data = (run_dir / "trace.jsonl").read_bytes()
    with pytest.raises(EvidenceError, match="sketch: found no such key"):
        parse_trace(io.BytesIO(data), Path("here"))
    assert parse_trace(io.BytesIO(data), Path("here"), sketches=False).complete


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("=== COLAB", "== COLAB", "expected the line '=== COLAB TRAIN REPORT ===' first"),
        ("seed: 0\n", "seed 0\n", "expected 'key: value'"),
        ("seed: 0\n", "seed: \n", "expected 'key: value'"),
        ("seed: 0\n", "seed: 0\rx\n", "expected 'key: value'"),
        ("seed: 0\n", "seed: 0\nseed: 0\n", "the key seed again"),
        ("seed: 0\n", "seed: 0\n\n", "expected 'key: value'"),
        (f"run_id: {RUN_ID}", f"run_id: {OTHER}", "is the file stale?"),
        ("log_path: none\n", "log_path: none", "is the report truncated?"),
    ],
)
def test_a_report_that_is_none(run_dir: Path, before: str, after: str, found: str) -> None:
    path = run_dir / "train_report.txt"
    assert before in path.read_text()
    path.write_bytes(path.read_bytes().replace(before.encode(), after.encode()))
    assert found in error_of(run_dir, "report")


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("seed: 0\n", "", "found the key steps as number 31, expected seed, which is missing"),
        ("seed: 0\nsteps: 3\n", "steps: 3\nseed: 0\n", "expected seed, which comes later"),
        ("log_path: none\n", "", "only 42 keys"),
        ("log_path: none\n", "log_path: none\nmore: 1\n", "the key more after the last"),
    ],
)
def test_report_keys(run_dir: Path, before: str, after: str, found: str) -> None:
    path = run_dir / "train_report.txt"
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(EvidenceError, match=found):
        check_report_keys(load_run(run_dir).report)


def test_tokens_of_another_kind(run_dir: Path) -> None:
    import numpy as np

    np.save(run_dir / "tokens.npy", load_run(run_dir).tokens.astype(np.int32))
    assert "found int32 [3, 2, 5], expected int16" in error_of(run_dir, "tokens")
    np.save(run_dir / "tokens.npy", np.zeros((2, 5), np.int16))
    assert "found int16 [2, 5], expected int16" in error_of(run_dir, "tokens")
    np.save(run_dir / "tokens.npy", np.zeros((0, 2, 5), np.int16))
    assert "found int16 [0, 2, 5], expected int16" in error_of(run_dir, "tokens")
    np.save(run_dir / "tokens.npy", np.zeros((1, 1, 1), np.int16))
    assert load_run(run_dir).tokens.shape == (1, 1, 1)
    np.save(run_dir / "tokens.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "an array of object" in error_of(run_dir, "tokens")


class TestFailure:
    """Why the lane itself failed, in one line."""

    def failed(self, run_dir: Path) -> RunEvidence:
        edit_json(
            run_dir / "train_status.json",
            lambda value: value.update(
                status="failed",
                first_failed_step="train",
                root_cause="loss_not_finite: nan",
                next_unblock_action="look",
            ),
        )
        return load_run(run_dir)

    def test_from_the_status(self, run_dir: Path) -> None:
        expected = "the lane ended as failed in step train: loss_not_finite: nan; next: look; log: "
        assert self.failed(run_dir).failure() == f"{expected}{run_dir / 'lane.log'}"

    def test_from_the_report_alone(self, run_dir: Path) -> None:
        report = run_dir / "train_report.txt"
        report.write_text(report.read_text().replace("objective_status: completed", "objective_status: blocked"))
        (run_dir / "train_status.json").unlink()
        failure = load_run(run_dir).failure()
        assert failure is not None and failure.startswith("the lane ended as blocked in step none")
        assert "train_status.json: found no such file" in failure

    def test_a_report_that_contradicts(self, run_dir: Path) -> None:
        report = run_dir / "train_report.txt"
        report.write_text(report.read_text().replace("objective_status: completed", "objective_status: failed"))
        assert "the lane ended as failed" in str(load_run(run_dir).failure())

    def test_from_the_exit_code(self, run_dir: Path) -> None:
        write_record(run_dir, 0)
        assert load_run(run_dir).failure() is None
        write_record(run_dir, -9)
        assert "the lane experimental exited with -9" in str(load_run(run_dir).failure())
        (run_dir / "run.json").unlink()
        (run_dir / "run.json").mkdir()
        assert "found a folder" in str(load_run(run_dir).failure())

    def test_the_status_and_the_exit_code(self, run_dir: Path) -> None:
        """The report, which tells the same story, is left out where the status is there."""
        write_record(run_dir, 1)
        report = run_dir / "train_report.txt"
        report.write_text(report.read_text().replace("objective_status: completed", "objective_status: failed"))
        failure = self.failed(run_dir).failure()
        reasons = "in step train: loss_not_finite: nan; next: look; the lane experimental exited with 1"
        assert failure == f"the lane ended as failed {reasons}; log: {run_dir / 'lane.log'}"

    def test_is_cut_where_it_is_long(self, run_dir: Path) -> None:
        self.failed(run_dir)
        edit_json(run_dir / "train_status.json", lambda value: value.update(root_cause="x" * 1000))
        failure = load_run(run_dir).failure()
        assert failure is not None
        reason, log = failure.split("; log: ")
        assert len(reason) == 500 and reason.endswith("x…") and log == str(run_dir / "lane.log")

    def test_is_cut_where_its_log_is_far(self, tmp_path: Path) -> None:
        failure = load_run(tmp_path.joinpath(*["d" * 200] * 4)).failure()
        assert failure is not None and len(failure) == 1600 and failure.endswith("…")

    def test_nothing_left(self, tmp_path: Path) -> None:
        failure = load_run(tmp_path).failure()
        assert failure is not None and "train_status.json: found no such file" in failure
        assert failure.endswith("lane.log (there is none)")

    def test_an_unreadable_status_is_no_success(self, run_dir: Path) -> None:
        (run_dir / "train_status.json").write_text("{")
        assert "expected strict JSON" in str(load_run(run_dir).failure())


def test_the_id_that_was_asked_for_counts_not_the_status_s(run_dir: Path) -> None:
    edit_json(run_dir / "train_status.json", lambda value: value.update(run_id=OTHER))
    run = load_run(run_dir, run_id=RUN_ID)
    assert run.environment["run_id"] == run.trace.header.run_id == RUN_ID
    with pytest.raises(EvidenceError, match="of this run"):
        run.status  # noqa: B018


def test_a_report_from_before_there_was_a_run_has_no_id(run_dir: Path) -> None:
    report = run_dir / "train_report.txt"
    report.write_text(report.read_text().replace(f"run_id: {RUN_ID}\n", ""))
    run = load_run(run_dir)
    assert "run_id" not in run.report and "train_report.txt" not in run.run_ids() and len(run.run_ids()) == 4


def test_six_files_carry_the_id_of_a_run_with_a_checkpoint(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run"))
    assert len(run.run_ids()) == run.run_id_files == 6


def test_a_stale_file_shows_in_the_run_ids(run_dir: Path) -> None:
    edit_json(run_dir / "environment.json", lambda value: value.update(run_id=OTHER))
    assert load_run(run_dir).run_ids()["environment.json"] == OTHER
    (run_dir / "environment.json").write_text("{")
    with pytest.raises(EvidenceError):
        load_run(run_dir).run_ids()


def test_the_checkpoint_of_one_run(run_dir: Path) -> None:
    assert "checkpoints: found no such folder" in error_of(run_dir, "checkpoint")
    folder = run_dir / "checkpoints"
    folder.mkdir()
    for other in ("tts_voice_train_a.float64.pt", "tts_voice_train_a.json", ".lane-tmp-1-tts_voice_train_a.pt", "x.pt"):
        (folder / other).touch()
    assert "found no tts_voice_train_<model>.pt" in error_of(run_dir, "checkpoint")
    (folder / "tts_voice_train_a.pt").touch()
    assert load_run(run_dir).checkpoint_path == folder / "tts_voice_train_a.pt"
    assert "a.pt: found no readable archive" in error_of(run_dir, "checkpoint")
    (folder / "tts_voice_train_b.pt").touch()
    assert "found tts_voice_train_a.pt and tts_voice_train_b.pt" in error_of(run_dir, "checkpoint_sidecar")


def test_what_universal_mode_must_leave(run_dir: Path) -> None:
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints/tts_voice_train_a.pt").touch()
    assert "a.float64.pt: found no such file" in error_of(run_dir, "checkpoint_float64")
    edit_trace(run_dir / "trace.jsonl", lambda lines: lines[0].update(mode="native"))
    assert load_run(run_dir).checkpoint_float64 is None


def test_files_in_other_places(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "train_status.json").rename(tmp_path / "status.json")
    (run_dir / "knowledge_audio").rename(tmp_path / "audio")
    run = load_run(
        run_dir,
        places={"status": tmp_path / "status.json", "manifest": tmp_path / "audio/voice_dataset_manifest.json"},
    )
    assert run.status.status == "completed" and run.manifest_problems() == []


def test_messages_are_one_printable_line(tmp_path: Path) -> None:
    run_dir = tmp_path / "new\nline\udcff"
    assert "new\\nline\\udcff" in error_of(run_dir, "status")
    write_json(tmp_path / "train_status.json", {"schema": "x" * 10_000 + "\n\x1b[31m"})
    message = error_of(tmp_path, "status")
    assert len(message) < 700


def test_imports_neither_torch_nor_the_lane_nor_pytest() -> None:
    code = (
        "import sys, harness.evidence, harness.numerics.digest, harness.numerics.sketch;"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'pytest') or m.startswith('harness.lane')];"
        "sys.exit(str(bad) if bad else 0)"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)

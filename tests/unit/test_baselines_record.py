"""Baseline files: strict, small, written only from two equal runs, never half, and never by accident."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_lane import Toy

from harness.baselines import record as record_module
from harness.baselines.baseline import BaselineError, Code, Provenance
from harness.baselines.compare import compare
from harness.baselines.document import SIZE_LIMIT, dump, load, own_digest
from harness.baselines.record import RecordRefused, record, refusal, unused_baselines
from harness.baselines.result import EXTERNAL
from harness.baselines.store import Store
from harness.evidence import RunEvidence, load_run

CODE = Code("a" * 40, False, "1" * 64)
TOY = Toy()
NATIVE = Toy(mode="native")
REASON = "the schedule was fixed"

Run = Callable[[Toy], RunEvidence]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    counter: Iterator[int] = iter(range(1000))
    return lambda toy: toy.run(tmp_path / f"run{next(counter)}")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "baselines")


def save(run: Run, store: Store, toy: Toy, **options: Any) -> list[str]:
    return record(run(toy), run(toy), store, **{"reason": REASON, "code": CODE, "environment": {}, **options})


def contents(store: Store) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in store.root.rglob("*") if path.is_file()}


# The file.


@pytest.mark.parametrize("toy", [TOY, NATIVE], ids=lambda toy: toy.mode)
def test_a_baseline_reads_back_as_it_was_written(run: Run, store: Store, toy: Toy) -> None:
    save(run, store, toy)
    (path,) = store.paths()
    baseline = load(path)
    assert dump(baseline).encode() == path.read_bytes()
    assert path.stat().st_size <= SIZE_LIMIT
    assert path.parent.name == "experimental"
    assert path.name.startswith("toy-universal-" if toy is TOY else "toy-native-aaaaaaaa-")
    assert baseline.result.key.digest()[:12] in path.name
    assert baseline.provenance.reason == REASON and baseline.provenance.code == CODE
    assert baseline.result.environment["packages.torch"] == "2.13.0"
    assert str(store.root.parent) not in path.read_text(), "a baseline holds no path of a machine"


def edited(path: Path, *keys: str, value: Any) -> None:
    """Change one field in place, in the form in which the file is written."""
    document = json.loads(path.read_text())
    place = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    document["digest"] = own_digest(document)
    path.write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("schema",), "lane_baseline/3", "schema"),
        (("surprise",), 1, "surprise: found a key that is not known"),
        (("key", "seed"), "1", "seed: found a key that is not known"),
        (("key", "model_digest"), "x", "digest is not that of its fields"),
        (("exact", "tensor_digest"), "abc", "64 lower-case"),
        (("exact", "start", "loss"), 1.5, "loss: found 1.5"),
        (("exact", "start", "loss"), "1.5", r"float\.hex"),
        (("exact", "start", "loss"), "nan", "finite"),
        (("exact", "end", "evaluation loss"), "inf", "finite"),
        (("exact", "curve", "rows"), [], "nothing to compare"),
        (("exact", "curve", "rows"), ["1 2 3"], "3 columns"),
        (("exact", "curve", "columns"), "step loss", "columns"),
        (("exact", "guard"), None, "guard"),
        (("exact", "guard", "positions"), {"0.out": "1,0"}, "strictly increasing"),
        (("exact", "guard", "positions"), {"0.out": "99"}, r"\[0, 32\)"),
        (("exact", "guard", "positions"), {"0.nothing": "1"}, "0.nothing"),
        (("shape", "end"), {}, "nothing to compare"),
        (("tolerance", "loss"), "0x1.0p-3", r"tolerance\.loss: found"),
        (("provenance", "recorded_at"), "yesterday", "isoformat"),
        (("provenance", "environment", "threads"), 1, "expected text"),
    ],
)
def test_a_file_that_is_not_exactly_a_baseline_is_refused(
    run: Run, store: Store, keys: tuple[str, ...], value: Any, words: str
) -> None:
    save(run, store, TOY)
    (path,) = store.paths()
    edited(path, *keys, value=value)
    with pytest.raises(BaselineError, match=words) as caught:
        load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_duplicates_other_forms_and_other_names_are_refused(run: Run, store: Store) -> None:
    save(run, store, TOY)
    (path,) = store.paths()
    good = path.read_text()
    for text in (good.replace("{", '{"schema": "lane_baseline/1",', 1), json.dumps(json.loads(good)), good[:-20]):
        path.write_text(text)
        with pytest.raises(BaselineError):
            load(path)
    path.write_text(good)
    evidence = run(TOY.with_(seed=1))
    other = store.path_for(record_module.result_of_run(evidence))
    other.write_text(good)
    verdict = compare(evidence, store)
    assert not verdict.passed and "another key than its name says" in verdict.text()


# Recording.


@pytest.mark.parametrize("reason", [None, "", "   ", "update", "x" * 301 + " y", "two\nlines"])
def test_no_reason_no_recording(run: Run, store: Store, reason: str | None) -> None:
    with pytest.raises(RecordRefused, match="reason"):
        save(run, store, TOY, reason=reason)
    assert contents(store) == {}


def test_a_reason_is_of_two_words_to_three_hundred_characters() -> None:
    assert refusal("was fixed", {}) is None and refusal("x" * 148 + " " + "y" * 151, {}) is None
    assert refusal("fixed", {}) is not None and refusal("x" * 148 + " " + "y" * 152, {}) is not None


@pytest.mark.parametrize("name", ["CI", "GITHUB_ACTIONS", "JENKINS_URL", "GITLAB_CI"])
def test_no_recording_under_ci(run: Run, store: Store, name: str) -> None:
    with pytest.raises(RecordRefused, match=f"under CI \\({name} is set\\)"):
        save(run, store, TOY, environment={name: "true"})
    assert contents(store) == {}


@pytest.mark.parametrize("value", ["", "0", "false", "False", " no "])
def test_a_ci_variable_that_says_no_is_no_ci(value: str) -> None:
    assert refusal(REASON, {"CI": value}) is None


def test_two_runs_that_differ_are_refused_and_it_says_where(run: Run, store: Store) -> None:
    first, second = run(TOY.with_(noise=1e-9, noise_seed=1)), run(TOY.with_(noise=1e-9, noise_seed=2))
    with pytest.raises(RecordRefused, match="step 1 of 6, phase backward") as caught:
        record(first, second, store, reason=REASON, code=CODE, environment={})
    assert "is no baseline" in str(caught.value)
    assert contents(store) == {}


def test_two_runs_that_differ_only_below_float32_are_refused(run: Run, store: Store) -> None:
    with pytest.raises(RecordRefused, match="before rounding to float32"):
        record(run(TOY), run(TOY.with_(drift=1e-15)), store, reason=REASON, code=CODE, environment={})


def test_one_run_twice_is_not_two_runs(run: Run, store: Store) -> None:
    evidence = run(TOY)
    with pytest.raises(RecordRefused, match="one and the same"):
        record(evidence, load_run(evidence.run_dir), store, reason=REASON, code=CODE, environment={})


def test_runs_of_different_keys_are_refused(run: Run, store: Store) -> None:
    with pytest.raises(RecordRefused, match="settings_digest"):
        record(run(TOY), run(TOY.with_(seed=1)), store, reason=REASON, code=CODE, environment={})


@pytest.mark.parametrize("which", [0, 1])
def test_a_failed_run_is_never_recorded(run: Run, store: Store, which: int) -> None:
    runs = [run(TOY), run(TOY)]
    runs[which].path_of("trace").unlink()
    with pytest.raises(RecordRefused, match=f"the {('first', 'second')[which]} run is no good.*trace.jsonl"):
        record(*runs, store, reason=REASON, code=CODE, environment={})
    assert contents(store) == {}


@pytest.mark.parametrize("name", ["tokens.npy", "knowledge_audio/one.flac"])
def test_a_run_of_which_a_part_cannot_be_read_is_never_recorded(run: Run, store: Store, name: str) -> None:
    runs = [run(TOY), run(TOY)]
    for evidence in runs:
        (evidence.run_dir / name).unlink()
    with pytest.raises(RecordRefused, match=f"the first run is no good.*{name.rpartition('/')[2]}"):
        record(*runs, store, reason=REASON, code=CODE, environment={})
    assert contents(store) == {}


def test_a_file_is_replaced_and_never_written_over(run: Run, store: Store, tmp_path: Path) -> None:
    """Whoever has the old one open reads all of the old one."""
    save(run, store, TOY)
    (path,) = store.paths()
    before = path.read_bytes()
    os.link(path, tmp_path / "the old file")
    save(run, store, TOY.with_(rate_factor=1.01))
    assert (tmp_path / "the old file").read_bytes() == before != path.read_bytes()


def test_nothing_changed_nothing_written_byte_for_byte(run: Run, store: Store) -> None:
    assert save(run, store, TOY)
    before = contents(store)
    (path,) = store.paths()
    stamp = path.stat().st_mtime_ns
    later = {"reason": "some other reason", "code": Code("b" * 40, True, "2" * 64)}
    assert save(run, store, TOY, **later) == []
    assert save(run, store, TOY.with_(drift=1e-15, environment={"threads": 2}), **later) == []
    assert contents(store) == before and path.stat().st_mtime_ns == stamp


def test_a_change_is_written_and_printed_old_to_new(run: Run, store: Store) -> None:
    save(run, store, TOY)
    lines = save(run, store, TOY.with_(rate_factor=1.01))
    assert lines[0].startswith("changed ") and "toy-universal" in lines[0]
    assert any("loss, step 2: 0.63306" in line and "→ 0.63216" in line for line in lines)
    assert len(lines) <= 16
    assert compare(run(TOY.with_(rate_factor=1.01)), store).kind == "match"


def test_other_tolerances_are_a_change(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, store, TOY)
    tighter = record_module.tolerance_for("universal").__class__(1e-12, 1e-10, 1e-15, 1e-13)
    monkeypatch.setattr(record_module, "tolerance_for", lambda mode: tighter)
    assert any("tolerance" in line for line in save(run, store, TOY))
    assert load(store.paths()[0]).tolerance == tighter


def test_a_broken_file_is_replaced_and_that_is_said(run: Run, store: Store) -> None:
    save(run, store, TOY)
    store.paths()[0].write_text("")
    assert any("was no baseline" in line for line in save(run, store, TOY))


@pytest.mark.parametrize("what", ["notes", "JSON", "a conflict", "a link", "a dangling link", "a folder"])
def test_what_no_recording_wrote_is_not_replaced(what: str, run: Run, store: Store, tmp_path: Path) -> None:
    save(run, store, TOY)
    (path,) = store.paths()
    recorded = path.read_bytes()
    path.unlink()
    target = tmp_path / "target"
    if what == "a folder":
        path.mkdir()
    elif what.endswith("link"):
        path.symlink_to(target)
        if what == "a link":
            target.write_bytes(recorded)
    else:
        path.write_text({"notes": "mine", "JSON": '{"mine": 1}', "a conflict": "<<<<<<< HEAD\n"}[what])
    before = path.lstat()
    with pytest.raises(RecordRefused):
        save(run, store, TOY.with_(rate_factor=1.01))
    assert (path.lstat().st_mtime_ns, path.lstat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert not target.exists() or target.read_bytes() == recorded
    if what == "notes":
        path.write_bytes(recorded[: len(recorded) // 2])
        assert any("was no baseline" in line for line in save(run, store, TOY)), "a damaged recording is"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_result_that_is_not_finite_is_refused(run: Run, store: Store) -> None:
    huge = TOY.with_(learning_rate=1e200)
    with pytest.raises(RecordRefused):
        save(run, store, huge)
    assert contents(store) == {}


def test_a_result_with_nothing_in_it_is_refused(run: Run) -> None:
    result = record_module.result_of_run(run(NATIVE))
    provenance, path = Provenance("2026-01-01", REASON, CODE), Path("x.json")
    for nothing in ({"values": None}, {"values": {}}, {"steps": ()}):
        with pytest.raises(ValueError, match="no tensors or no steps"):
            record_module.baseline_of(dataclasses.replace(result, **nothing), provenance, path)
    key = dataclasses.replace(result.key, mode=EXTERNAL)  # which need not give steps
    assert record_module.baseline_of(dataclasses.replace(result, steps=(), key=key), provenance, path).guard is None


def test_too_many_guarded_parameters_are_refused(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "GUARD", 1e-8)
    with pytest.raises(RecordRefused, match="too many to leave out"):
        save(run, store, TOY)


@pytest.mark.parametrize("count", [26, 27])
def test_a_share_of_the_parameters_may_be_guarded_and_no_more(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """An eighth here, of 208; what is recorded without them holds for the same result."""
    monkeypatch.setattr(record_module, "MOST_GUARDED", 0.125)
    monkeypatch.setattr(
        record_module, "guarded_positions", lambda values, guard: list(range(count if values.size == 160 else 0))
    )
    if count > 26:
        with pytest.raises(RecordRefused, match="27 of 208 parameters"):
            save(run, store, TOY)
        return
    save(run, store, TOY)
    (path,) = store.paths()
    assert load(path).result.guarded == {"0.taps": list(range(26))}
    verdict = compare(run(TOY), store)
    assert verdict.kind == "match" and verdict.compared["checkpoint"] == 7 + 3 + 6 * 4 + 3


def test_the_folder_of_baselines_need_not_be_there(run: Run, tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "b" / "baselines")
    assert save(run, store, TOY) and compare(run(TOY), store).kind == "match"


def test_a_write_that_fails_leaves_the_file_as_it_was(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, store, TOY)
    before = contents(store)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", no_space)
        with pytest.raises(RecordRefused, match="No space left on device"):
            save(run, store, TOY.with_(rate_factor=1.01))
    assert contents(store) == before


def test_a_recording_by_somebody_else_in_the_meantime_is_not_lost(run: Run, store: Store) -> None:
    changed = TOY.with_(rate_factor=1.01)
    runs = run(changed), run(changed)
    seen = store.read(record_module.result_of_run(runs[0]))
    assert seen is None
    save(run, store, TOY)
    before = contents(store)
    with pytest.raises(RecordRefused, match="changed by somebody else"):
        record(*runs, store, reason=REASON, code=CODE, environment={}, seen=seen)
    assert contents(store) == before


def test_recordings_at_once_lose_nothing(run: Run, store: Store) -> None:
    toys = [TOY.with_(seed=seed) for seed in range(4)] + [TOY.with_(seed=0)] * 2
    pairs = [(run(toy), run(toy)) for toy in toys]
    errors: list[Exception] = []

    def save_pair(pair: tuple[RunEvidence, RunEvidence]) -> None:
        try:
            record(*pair, store, reason=REASON, code=CODE, environment={})
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save_pair, args=(pair,)) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(store.paths()) == 4 and set(contents(store)) == {str(path) for path in store.paths()}
    assert all(compare(pair[0], store).kind == "match" for pair in pairs)


def test_the_lock_holds_between_processes(store: Store) -> None:
    """While one process records, another waits."""
    program = (
        "import sys, pathlib; from harness.baselines.record import _locked\n"
        "with _locked(pathlib.Path(sys.argv[1])): print('got it', flush=True)"
    )
    with record_module._locked(store.root):
        child = subprocess.Popen([sys.executable, "-c", program, str(store.root)], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(1.0)
    assert child.communicate(timeout=10)[0] == "got it\n"


# Orphans.


def test_unused_baselines_are_named(run: Run, store: Store) -> None:
    for toy in (TOY, TOY.with_(seed=1), NATIVE, NATIVE.with_(numeric_class="bbbbbbbbbbbbbbbb")):
        save(run, store, toy)
    used = [store.path_for(record_module.result_of_run(run(TOY)))]
    lines = unused_baselines(store, used)
    assert len(lines) == 1 and "unused, it is of another settings digest" in lines[0]
    used.append(store.path_for(record_module.result_of_run(run(NATIVE))))
    assert len(unused_baselines(store, used)) == 1, "another class's recording is not unused"
    (store.root / "experimental" / "notes.txt").write_text("stray")
    (store.root / "experimental" / "broken.json").write_text("{")
    (store.root / "README.md").write_text("about")
    (store.root / "reference").mkdir()
    (store.root / "reference" / "published.json").write_text("{}")
    store.paths()[-1].rename(store.root / "experimental" / "renamed.json")
    text = "\n".join(unused_baselines(store, used))
    assert "notes.txt: no baseline" in text and "broken.json" in text and "renamed.json: its name" in text
    assert "README" not in text and "published" not in text

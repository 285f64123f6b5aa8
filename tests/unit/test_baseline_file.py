"""The form of a baseline file: its name, its size, what it keeps of a run, and which numbers it may hold."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_lane import Toy

from harness.baselines.baseline import (
    FLOAT32_TOLERANCE,
    UNIVERSAL_TOLERANCE,
    Baseline,
    BaselineError,
    Code,
    Provenance,
    Tolerance,
)
from harness.baselines.document import dump, load, own_digest
from harness.baselines.record import baseline_of
from harness.baselines.result import EXTERNAL, Result, result_of_run
from harness.baselines.store import Store

CODE = Code("a" * 40, False, "1" * 64)

Make = Callable[..., Baseline]


@pytest.fixture
def result(tmp_path: Path) -> Result:
    return result_of_run(Toy().run(tmp_path / "run"))


@pytest.fixture
def made(result: Result, tmp_path: Path) -> Make:
    """Makes the baseline of the run, with some fields of the result replaced."""

    def make(reason: str = "the schedule was fixed", **changes: Any) -> Baseline:
        provenance = Provenance("2026-01-01T00:00:00+00:00", reason, CODE)
        return baseline_of(dataclasses.replace(result, **changes), provenance, tmp_path / "baseline.json")

    return make


def external(result: Result, **changes: Any) -> dict[str, Any]:
    return {"key": dataclasses.replace(result.key, mode=EXTERNAL), **changes}


def written(baseline: Baseline, edit: Callable[[dict[str, Any]], object] | None = None) -> Path:
    """The baseline's file; `edit` changes what it holds, not the form in which it is written, nor that its digest is
    its own."""
    document = json.loads(dump(baseline))
    if edit is not None:
        edit(document)
        document["digest"] = own_digest(document)
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if edit is None:
        assert text == dump(baseline), "fields in order, each on its line, characters as they are"
    baseline.path.write_text(text)
    return baseline.path


def test_what_may_differ_is_what_the_documentation_says() -> None:
    assert Tolerance(loss=1e-11, tensor=1e-9, measured_loss=4.4e-16, measured_tensor=7.1e-14) == UNIVERSAL_TOLERANCE
    assert Tolerance(loss=2e-6, tensor=2e-4, measured_loss=2.3e-7, measured_tensor=3.9e-5) == FLOAT32_TOLERANCE


def test_a_reason_is_kept_letter_for_letter(made: Make) -> None:
    path = written(made(reason="größere Schritte, → 2"))
    assert "größere Schritte, → 2" in path.read_text()
    assert load(path).provenance.reason == "größere Schritte, → 2"


def test_the_name_has_the_first_digits_of_the_class_and_of_the_key(result: Result, tmp_path: Path) -> None:
    digits = result.key.digest()[:12]
    assert Store(tmp_path).path_for(result) == tmp_path / "experimental" / f"toy-universal-{digits}.json"
    key = dataclasses.replace(result.key, mode="native", numeric_class="0123456789abcdef", lane="a lane/..")
    native = dataclasses.replace(result, key=key, model="a/b")
    name = f"a_b-native-01234567-{key.digest()[:12]}.json"
    assert Store(tmp_path).path_for(native) == tmp_path / "a_lane_.." / name


@pytest.mark.parametrize(("mode", "limit"), [("universal", 20_000), ("external", 1_000_000)])
def test_a_baseline_is_as_large_as_its_limit_and_no_larger(made: Make, result: Result, mode: str, limit: int) -> None:
    changes = external(result) if mode == "external" else {}
    room = limit - len(dump(made(reason="", **changes)))
    path = written(made(reason="x" * room, **changes))
    assert path.stat().st_size == limit and load(path).provenance.reason == "x" * room
    with pytest.raises(ValueError, match=f"more than {limit:,}"):
        dump(made(reason="x" * (room + 1), **changes))


def test_single_tensors_are_kept_of_the_first_step_and_of_the_middle_one_with_sketches(
    made: Make, result: Result
) -> None:
    sketch = {name: np.ones(16) for name in result.steps[0].grad}

    def kept(*sketched: int, known: tuple[int, ...] = (1, 2, 3, 4, 5, 6)) -> list[int]:
        steps = [
            dataclasses.replace(
                step,
                grad=step.grad if step.step in known else {},
                param=step.param if step.step in known else {},
                sketch=sketch if step.step in sketched else {},
            )
            for step in result.steps
        ]
        return [step.step for step in load(written(made(steps=tuple(steps)))).result.steps if step.grad]

    assert kept() == [1]
    assert kept(1) == [1]
    assert kept(4) == [1, 4]
    assert kept(2, 4, 6) == [1, 4]
    assert kept(1, 2, 3, 4, 5) == [1, 3]
    assert kept(2, 5) == [1, 5]
    assert kept(3, known=(2, 3)) == [2, 3]
    assert kept(known=()) == []


def test_a_run_of_one_step_reads_back(tmp_path: Path) -> None:
    provenance = Provenance("2026-01-01T00:00:00+00:00", "one step alone", CODE)
    only = baseline_of(result_of_run(Toy(steps=1).run(tmp_path / "run")), provenance, tmp_path / "baseline.json")
    (step,) = load(written(only)).result.steps
    assert step.grad and step.sketch


def test_an_external_lane_need_not_give_data_or_steps(made: Make, result: Result) -> None:
    whole = load(written(made(**external(result)))).result
    assert (whole.dataset_digest, whole.tokens_digest) == (result.dataset_digest, result.tokens_digest)
    bare = load(written(made(**external(result, dataset_digest="", tokens_digest="", steps=())))).result
    assert (bare.dataset_digest, bare.tokens_digest, bare.steps) == ("", "", ())


@pytest.mark.parametrize("name", ["dataset_digest", "tokens_digest"])
def test_a_digest_that_is_none_is_refused(made: Make, result: Result, name: str) -> None:
    for changes, value in (({}, ""), (external(result), "abc"), ({}, "A" * 64), ({}, "0" * 65)):
        with pytest.raises(BaselineError, match="64 lower-case"):
            load(written(made(**changes), lambda document, value=value: document["exact"].update({name: value})))


def test_a_missing_digest_of_the_parameters_is_refused(made: Make, result: Result) -> None:
    for changes in ({}, external(result)):
        with pytest.raises(BaselineError, match="64 lower-case"):
            load(written(made(**changes), lambda document: document["exact"].update(tensor_digest="")))


def in_end(name: str, words: str) -> Callable[[dict[str, Any]], None]:
    """Puts other words in the place of a tensor's sketch."""

    def edit(document: dict[str, Any]) -> None:
        end = document["shape"]["end"]
        end[name] = " ".join([*end[name].split(" ")[:3], words])

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (in_end("0.out", ""), "a sketch is empty"),
        (in_end("0.out", "7ff8000000000000" * 2), "a sketch is empty or not finite"),
        (lambda document: document["exact"]["end"].update({"evaluation loss": "inf"}), "holds finite numbers"),
        (lambda document: document["exact"]["guard"].update(positions={"0.no": "1"}), "no field '0.no'"),
        (lambda document: document["shape"]["steps"].update({"7": {}}), "a step that is not in the curve"),
        (lambda document: document["shape"].pop("start"), r"shape\.start: found no such key"),
    ],
)
def test_what_no_run_could_have_given_is_refused(
    made: Make, edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    with pytest.raises(BaselineError, match=words):
        load(written(made(), edit))


def test_a_sketch_may_be_of_one_value(made: Make) -> None:
    path = written(made(), in_end("0.out", "3ff0000000000000"))
    assert load(path).result.tensors["0.out"].sketch.tolist() == [1.0]


def test_numbers_that_are_not_finite_are_not_written(made: Make, result: Result) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="holds finite numbers"):
            dump(made(end_losses={**result.end_losses, "evaluation loss": value}))
        tensor = dataclasses.replace(result.tensors["0.out"], sketch=np.array([1.0, value]))
        with pytest.raises(ValueError, match="a sketch is not finite"):
            dump(made(tensors={**result.tensors, "0.out": tensor}))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match=r"a\.json: cannot be read: Is a directory; next: "):
        (tmp_path / "a.json").mkdir()
        load(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "b.json")


def test_every_file_but_the_published_references_is_a_baseline(made: Make, result: Result, tmp_path: Path) -> None:
    store = Store(tmp_path / "baselines")
    assert store.paths() == [] and store.get(result) is None and store.read(result) is None
    text = dump(made())
    for name in ("reference/a.json", "experimental/b.json", "another/c.json"):
        (store.root / name).parent.mkdir(parents=True)
        (store.root / name).write_text(text if "b." in name else "{")
    assert [path.name for path in store.paths()] == ["c.json", "b.json"]
    baselines, (broken,) = store.all()
    assert [baseline.path.name for baseline in baselines] == ["b.json"] and "c.json" in broken


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda data: data.replace(b"\n", b"\r\n"), "CRLF"),
        (lambda data: data.replace(b"\n", b"\r"), "CR"),
        (lambda data: data.replace(b"\n", b"\r\n", 3), "3 CRLF"),
        (lambda data: data.rstrip(b"\n"), "none after the last line"),
    ],
)
def test_other_line_endings_are_named_and_the_next_command_mends_them(
    made: Make, change: Callable[[bytes], bytes], named: str, tmp_path: Path
) -> None:
    whole = dump(made()).encode()
    path = tmp_path / "a folder" / "it's $HOME.json"
    path.parent.mkdir()
    path.write_bytes(change(whole))
    with pytest.raises(BaselineError) as caught:
        load(path)
    said, _, command = str(caught.value).partition("; next: ")
    assert f"{named}" in said and "line endings" in said
    subprocess.run(["bash", "-c", command], check=True, cwd="/")
    assert path.read_bytes() == whole
    load(path)


def committed(path: Path) -> None:
    """Put a file under git, in a repository of its own."""
    for words in (
        ["init", "-q"],
        ["add", path.name],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", "--allow-empty"],
    ):
        subprocess.run(["git", "-C", str(path.parent), *words], check=True, capture_output=True)


def one_digit(data: bytes) -> bytes:
    """Another digit in the recorded loss of some step."""
    place = data.index(b"0x1.", data.index(b'"rows"')) + 8
    return data[:place] + (b"0" if data[place : place + 1] != b"0" else b"1") + data[place + 1 :]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (one_digit, "changed after it was recorded"),
        (lambda data: data.replace(b"the schedule was fixed", b"another schedule"), "changed after it was recorded"),
        (lambda data: data.replace(b' "exact"', b'<<<<<<< HEAD\n "exact"', 1), "a merge that was not finished"),
        (lambda data: data[: len(data) // 2], "no valid baseline"),
        (lambda data: b"", "an empty file"),
    ],
    ids=["one digit", "another reason", "marks of a merge", "cut", "empty"],
)
def test_what_was_changed_since_is_called_that_and_the_next_command_brings_it_back(
    made: Make, change: Callable[[bytes], bytes], named: str, tmp_path: Path
) -> None:
    """Also where the changed file was committed since."""
    whole = dump(made()).encode()
    path = tmp_path / "a folder" / "it's $HOME.json"
    path.parent.mkdir()
    path.write_bytes(whole)
    committed(path)
    for _ in ("changed", "and committed"):
        path.write_bytes(change(whole))
        with pytest.raises(BaselineError) as caught:
            load(path)
        assert named in caught.value.found and str(path) in caught.value.found
        committed(path)
        subprocess.run(["bash", "-c", caught.value.mend], check=True, cwd="/")
        assert path.read_bytes() == whole
        load(path)


def test_without_git_it_is_said_that_it_takes_a_new_recording(made: Make, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_bytes(one_digit(dump(made()).encode()))
    with pytest.raises(BaselineError, match="record again"):
        load(path)


def test_a_recording_of_the_earlier_form_is_read(made: Make) -> None:
    """It has no digest of its own, and does not say which gates held."""
    baseline = made()
    earlier = dataclasses.replace(baseline, provenance=dataclasses.replace(baseline.provenance, held=None))
    baseline.path.write_text(dump(earlier))
    assert "lane_baseline/1" in baseline.path.read_text() and "digest" not in json.loads(baseline.path.read_text())
    assert load(baseline.path).provenance.held is None


def test_the_gates_that_held_are_kept(made: Make) -> None:
    baseline = made()
    held = dataclasses.replace(baseline.provenance, held=("loss_falls", "loss_is_finite"))
    baseline.path.write_text(dump(dataclasses.replace(baseline, provenance=held)))
    assert load(baseline.path).provenance.held == ("loss_falls", "loss_is_finite")


def test_an_edit_beside_other_line_endings_is_no_matter_of_line_endings(made: Make) -> None:
    path = written(made(), lambda document: document["provenance"].update(reason="another"))
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").replace(b' "schema"', b'  "schema"'))
    with pytest.raises(BaselineError, match="edited by hand"):
        load(path)

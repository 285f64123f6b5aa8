"""`baseline list` and `baseline show`: every recording is named, and what cannot be read is said."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_lane import Toy

from harness.base.project import default_baselines
from harness.baselines.baseline import Code, Provenance
from harness.baselines.cli import main
from harness.baselines.document import dump
from harness.baselines.record import baseline_of
from harness.baselines.result import EXTERNAL, Result, result_of_run
from harness.baselines.store import Store

PROVENANCE = Provenance("2026-01-01T00:00:00+00:00", "for a test", Code("a" * 40, False, "1" * 64))
LIMIT = 1 << 20  # bytes of a published reference

Show = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "baselines")


@pytest.fixture
def show(store: Store, capsys: pytest.CaptureFixture[str]) -> Show:
    """Runs the command on the store; returns its exit code, what it printed, and its errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["--root", str(store.root), *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def result(tmp_path: Path) -> Result:
    return result_of_run(Toy(mode="native").run(tmp_path / "run"))


def keep(store: Store, result: Result) -> Path:
    path = store.path_for(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump(baseline_of(result, PROVENANCE, path)))
    return path


def two(store: Store, result: Result) -> tuple[Path, Path]:
    """Recordings in two numeric classes; they are listed in this order."""
    key = dataclasses.replace(result.key, numeric_class="b" * 16)
    return keep(store, result), keep(store, dataclasses.replace(result, key=key, numeric_class="b" * 16))


def publish(store: Store, change: Callable[[dict[str, Any]], object] = lambda document: None) -> Path:
    """A published reference."""
    document = {"schema": "lane_reference/1", "title": "published once", "result": {"loss": "9.5"}, "provenance": {}}
    change(document)
    path = store.root / "reference" / "published.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("command", ["list", "show"])
def test_where_nothing_is_recorded_that_is_said(show: Show, store: Store, command: str) -> None:
    assert show(command) == (0, f"nothing is recorded under {store.root}\n", "")


def test_each_recording_is_a_line_of_the_list(show: Show, store: Store, result: Result) -> None:
    paths = two(store, result)
    reference = publish(store)
    code, text, _ = show("list")
    *lines, last = text.splitlines()
    assert code == 0 and [line.split()[1] for line in lines] == [str(path) for path in paths]
    assert lines[0].split()[0] == result.key.digest()[:12] and "for a test" in lines[0]
    assert last.split() == ["reference", str(reference), "published", "once"]


def test_all_are_shown_one_after_the_other(show: Show, store: Store, result: Result) -> None:
    paths = two(store, result)
    reference = publish(store)
    code, text, _ = show("show")
    assert code == 0
    assert [part.splitlines()[0] for part in text.split("\n\n")] == [str(path) for path in (*paths, reference)]
    assert "numeric class aaaaaaaaaaaaaaaa" in text and "9.5" in text


def test_one_is_shown_by_its_key_its_file_or_its_name(show: Show, store: Store, result: Result) -> None:
    path, other = two(store, result)
    reference = publish(store)
    key = result.key.digest()
    for which in (key, key[:12], key[:8], str(path), path.name, path.stem):
        code, text, _ = show("show", which)
        assert code == 0 and text.startswith(f"{path}\n") and "\n\n" not in text
        assert "for a test" in text and "numeric class aaaaaaaaaaaaaaaa" in text and "torch 2.13.0" in text
        assert str(other) not in text
    for which in (str(reference), "published", "published.json"):
        code, text, _ = show("show", which)
        assert code == 0 and text.startswith(f"{reference}\n  published once\n") and "no criterion" in text


def test_a_name_of_none_or_of_several_is_an_error(show: Show, store: Store, result: Result) -> None:
    two(store, result)
    for which, words in (("", "2 baselines of"), ("zzz", "no baseline of")):
        code, text, error = show("show", which)
        assert (code, text) == (1, "") and error.startswith(f"baseline: {words}") and error.count("\n") == 1


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(show: Show, store: Store, result: Result) -> None:
    good, broken = two(store, result)
    broken.write_text("{}")
    code, text, _ = show("list")
    lines = text.splitlines()
    assert code == 1 and len(lines) == 2 and str(good) in lines[0]
    assert lines[1].startswith("unreadable") and str(broken) in lines[1]
    code, text, _ = show("show")
    assert code == 1 and text.startswith(f"{good}\n") and f"unreadable: {broken}" in text
    code, text, error = show("show", str(broken))
    assert (code, text) == (1, "") and str(broken) in error
    good.unlink()
    code, text, _ = show("list")
    assert code == 1 and "nothing is recorded" not in text


@pytest.mark.parametrize("loses", [(), ("steps",), ("end_losses",), ("steps", "end_losses")])
def test_a_recording_of_an_external_lane_is_shown_with_what_it_has(
    show: Show, store: Store, result: Result, loses: tuple[str, ...]
) -> None:
    less = {name: () if name == "steps" else {} for name in loses}
    path = keep(store, dataclasses.replace(result, key=dataclasses.replace(result.key, mode=EXTERNAL), **less))
    code, text, _ = show("show", str(path))
    (loss,) = (line for line in text.splitlines() if line.startswith("  loss "))
    assert code == 0
    assert ("at step 1, " in loss and "at step 6" in loss) is ("steps" not in loses)
    assert ("in the evaluation" in loss) is ("end_losses" not in loses)
    assert ("none" in loss) is (len(loses) == 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(schema="lane_reference/2"),
        lambda document: document.pop("schema"),
        lambda document: document.update(title=1),
        lambda document: document.pop("title"),
        lambda document: document.update(result="9.5"),
        lambda document: document.pop("result"),
        lambda document: document.update(provenance=[]),
        lambda document: document.pop("provenance"),
    ],
)
def test_a_file_that_is_no_reference_is_an_error_of_one_line(show: Show, store: Store, change: Any) -> None:
    path = publish(store, change)
    for arguments in (("list",), ("show",), ("show", "published")):
        code, _, error = show(*arguments)
        assert code == 1 and error.startswith(f"baseline: {path}: no valid reference") and error.count("\n") == 1


@pytest.mark.parametrize("text", ["", "[]", "1", "\x00"])
def test_a_reference_that_is_no_object_is_an_error_of_one_line(show: Show, store: Store, text: str) -> None:
    publish(store).write_text(text)
    code, _, error = show("list")
    assert code == 1 and "no valid reference" in error and error.count("\n") == 1


def test_a_reference_is_read_up_to_its_limit(show: Show, store: Store) -> None:
    path = publish(store)
    text = path.read_text()
    path.write_text(text[:-1] + " " * (LIMIT - len(text)) + "}")
    assert path.stat().st_size == LIMIT and show("list")[0] == 0
    path.write_text(text[:-1] + " " * (LIMIT + 1 - len(text)) + "}")
    code, _, error = show("list")
    assert code == 1 and "no valid reference" in error


def test_a_name_that_no_file_can_have_is_an_error_of_one_line(show: Show) -> None:
    code, _, error = show("show", "x" * 5000)
    assert code == 1 and error.startswith("baseline: ") and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["forget"], ["show", "a", "b"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_the_published_reference_is_shown_and_is_no_criterion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show"]) == 0
    text = capsys.readouterr().out
    for words in (
        "2026-02-23",
        "6442a579",
        "9.698966026306152",
        "64242758c67eff5e2c3a54f96a33ec5b08b182a98f5c2ab286c7aa3897ec8e86",
        "not seeded",
        "no criterion",
    ):
        assert words in text
    assert not any("reference" in path.parts[-2] for path in Store(default_baselines()).paths())

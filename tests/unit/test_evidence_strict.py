"""The limits and the kinds of what is read: each holds at its edge, and one printable line says what is wrong."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import pytest
from msgspec import Meta, Struct

from harness.evidence import (
    CONTRACT_KEYS,
    REPORT_KEYS,
    EvidenceError,
    check_report_keys,
    load_run,
    parse_json,
    parse_report,
)
from harness.evidence.errors import mismatch, one_line, show
from harness.evidence.strict import (
    Count,
    Hex16,
    HexFloat,
    NotFinite,
    Number,
    Positive,
    Sha256,
    Text,
    as_struct,
    read_bytes,
    read_struct,
)


def refusal(data: bytes) -> str:
    """What `parse_json` says of `data`."""
    with pytest.raises(EvidenceError) as error:
        parse_json(data, "here")
    return str(error.value)


class TestMessages:
    def test_a_text_is_cut_at_its_limit_and_no_sooner(self) -> None:
        assert one_line("12345", 5) == "12345"
        assert one_line("123456", 5) == one_line("1234" + "5" * 100, 5) == "1234…"

    def test_what_does_not_print_is_escaped_within_the_limit(self) -> None:
        assert one_line("a\n\x1b", 7) == "a\\n\\x1b"
        assert one_line("a\n\x1b", 6) == "a\\n\\x…"
        assert one_line("\n" * 5, 5) == "\\n\\n…" and one_line("ü€", 2) == "ü€"

    def test_an_error_is_of_600_characters_at_most(self) -> None:
        assert str(EvidenceError("x" * 600)) == "x" * 600
        assert str(EvidenceError("x" * 601)) == "x" * 599 + "…"
        assert str(mismatch("file", "one", "two")) == "file: found one, expected two"

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            ("a\nb", "text 'a\\\\nb'"),
            ("x" * 80, f"text '{'x' * 80}'"),
            ("x" * 81, f"text '{'x' * 79}…'"),
            ({"a": 1, "b": 2}, "an object with 2 keys"),
            ([1], "a list of 1"),
            (None, "null"),
            (True, "true"),
            (False, "false"),
            (1, "1"),
            (0.5, "0.5"),
        ],
    )
    def test_a_value_is_shown_so_that_its_type_is_seen(self, value: object, shown: str) -> None:
        assert show(value) == shown


class TestFiles:
    def test_a_file_of_the_limit_is_read_whole_and_a_larger_one_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"abc")
        assert read_bytes(path, 3, "three") == b"abc"
        with pytest.raises(EvidenceError, match="found 3 bytes, expected three of at most 2 bytes"):
            read_bytes(path, 2, "three")

    def test_a_file_that_holds_more_than_its_size_says(self) -> None:
        with pytest.raises(EvidenceError, match="found more than 10 bytes, expected a status of at most 10 bytes"):
            read_bytes(Path("/proc/self/status"), 10, "a status")

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"")
        for path in (tmp_path / "gone", tmp_path / "a" / "below a file"):
            with pytest.raises(EvidenceError, match="found no such file, expected it"):
                read_bytes(path, 3, "it")

    def test_a_name_that_can_be_no_files(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to("loop")
        for path in (tmp_path / "loop", tmp_path / "a\0b"):
            with pytest.raises(EvidenceError, match="found a file that cannot be opened"):
                read_bytes(path, 3, "it")

    @pytest.mark.timeout(10)
    def test_no_regular_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for path, found in ((tmp_path, "a folder"), (tmp_path / "pipe", "no regular file")):
            with pytest.raises(EvidenceError, match=f"found {found}, expected it"):
                read_bytes(path, 1 << 30, "it")

    def test_a_disk_that_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Failing(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                raise OSError(5, "Input/output error")

        monkeypatch.setattr("harness.evidence.strict.open_regular", lambda *_: Failing())
        with pytest.raises(EvidenceError, match="a file that cannot be read"):
            read_bytes(tmp_path / "a", 3, "it")

    def test_more_values_than_memory_holds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> NoReturn:
            raise MemoryError

        (tmp_path / "a").write_text("{}")
        monkeypatch.setattr("harness.evidence.strict.parse_json", fail)
        with pytest.raises(EvidenceError, match="more values than memory holds"):
            read_struct(tmp_path / "a", dict, "it")

    def test_json_and_reports_have_limits(self, tmp_path: Path) -> None:
        with (tmp_path / "a").open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(EvidenceError, match="at most 16,777,216 bytes"):
            read_struct(tmp_path / "a", dict, "it")
        with pytest.raises(EvidenceError, match="at most 1,048,576 bytes"):
            _ = load_run(tmp_path, places={"report": tmp_path / "a"}).report


class TestJson:
    def test_values_may_be_nested_64_deep(self) -> None:
        for open_, close in (("[", "]"), ('{"a": ', "}")):
            deep = open_ * 63 + "[]" + close * 63
            assert parse_json(deep.encode(), "here")
            assert "nested more than 64 deep" in refusal(f"{open_}{deep}{close}".encode())
        assert "nested without end" in refusal(b"[" * 100_000)

    def test_whole_numbers_may_have_20_digits(self) -> None:
        assert parse_json(b"9" * 20, "here") == 10**20 - 1
        assert "a whole number of 21 characters" in refusal(b"9" * 21)

    @pytest.mark.parametrize(
        ("data", "found"),
        [
            (b"", "an empty file"),
            (b" \n", "nothing but blanks"),
            (b"\xff", "bytes that are not UTF-8 at 0"),
            (b'{"a": 1, "a": 1}', "the key 'a' twice in one object"),
            (b"1e999", "the number 1e999, which overflows"),
            (b"NaN", "the bare token NaN"),
            (b'{"a" 1}', "expecting ':' delimiter at line 1 column 6"),
            (b'["\\ud800"]', "half of a surrogate pair in a text"),
            (b'{"\\ud800": 1}', "half of a surrogate pair in a text"),
        ],
    )
    def test_what_is_not_strict_is_told(self, data: bytes, found: str) -> None:
        assert found in refusal(data)

    def test_what_is_strict_is_read(self) -> None:
        assert parse_json('{"a": [1.5, -2, "ü", "\\ud83d\\ude00", null, true]}'.encode(), "here") == {
            "a": [1.5, -2, "ü", "😀", None, True]
        }


DIGITS = "0123456789abcdef"
EMPTY = "found text '', expected text"


class Fields(Struct):
    """A struct for these tests."""

    a: Count
    b: Annotated[dict[str, Annotated[list[Text], Meta(min_length=2, max_length=2)]], Meta(min_length=1)] = {}


class TestStructs:
    @pytest.mark.parametrize(
        ("kind", "good", "bad"),
        [
            (Text, ["a"], ["", 1, None]),
            (bool, [True, False], [0, 1, "true"]),
            (Count, [0, 1], [-1, 0.0, True, "0"]),
            (Positive, [1, 2], [0, -1, 1.0, True, "1"]),
            (Number, [0, -1, 0.5], [True, "1", None]),
            (None, [None], [0, "", False]),
            (HexFloat, ["0x1.0000000000000p+0", "nan"], ["1.0", 1.0, "0x1p0", "0x1.0000000000000p+5000"]),
            (Sha256, [DIGITS * 4], [DIGITS * 4 + "0", DIGITS * 4 + "\n", "F" * 64, 1]),
            (Hex16, [DIGITS], [DIGITS[1:], "F" * 16, 1]),
            (dict[str, Any], [{}, {"a": 1}], [[], None]),
            (Literal[False], [False], [0, True, None]),
            (Literal["x"], ["x"], ["y", None]),
            (Literal["x", "y"], ["x", "y"], ["z", 1, ["x"]]),
            (Text | None, ["a", None], ["", 0]),
            (list[Count], [[], [0, 1]], [{}, None, [-1]]),
            (Fields, [{"a": 0}, {"a": 0, "b": {"c": ["x", "y"]}}, {"a": 0, "more": []}], [{}, {"b": {}}, [], None]),
        ],
    )
    def test_take_their_own_values_and_no_others(self, kind: Any, good: list[Any], bad: list[Any]) -> None:
        for value in good:
            found = as_struct(value, kind, "here")
            assert kind in (HexFloat, Fields) or (found == value and type(found) is type(value))
        for value in bad:
            with pytest.raises(EvidenceError):
                as_struct(value, kind, "here")

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            (3, "here: found 3, expected an object"),
            ({}, "here: a: found no such key, expected a whole number of at least 0"),
            ({"a": -1}, "here: a: found -1, expected a whole number of at least 0"),
            ({"a": 0, "b": {}}, "here: b: found an object with 0 keys, expected an object that is not empty"),
            ({"a": 0, "b": {"c": ["x"]}}, "here: b.c: found a list of 1, expected a list of 2 items"),
            ({"a": 0, "b": {"c": ["x", 5]}}, "here: b.c[1]: found 5, expected text"),
            ({"a": 0, "b": {f"k{n}": ["x", "y" * (n != 7)] for n in range(20)}}, f"here: b.k7[1]: {EMPTY}"),
            ({"a": 0, "b": {"x`.y[3] - at `$.a": ["x", ""]}}, f"here: b.x`.y[3] - at `$.a[1]: {EMPTY}"),
        ],
    )
    def test_name_the_field_what_was_found_and_what_was_expected(self, value: object, says: str) -> None:
        with pytest.raises(EvidenceError) as error:
            as_struct(value, Fields, "here")
        assert str(error.value) == says

    @pytest.mark.parametrize(
        ("kind", "value", "says"),
        [
            (list[Count] | None, 3, "found 3, expected a list or null"),
            (NotFinite | None, "x - at `$.y", "found text 'x - at `$.y', expected one of -inf, inf, nan or null"),
            (Number | None, True, "found true, expected a number or null"),
            (Literal["x", "y"], "z", "found text 'z', expected one of x, y"),
            (Count | None, -1, "found -1, expected a whole number of at least 0 or null"),
        ],
    )
    def test_of_several_kinds_name_each(self, kind: Any, value: object, says: str) -> None:
        with pytest.raises(EvidenceError) as error:
            as_struct({"a": value}, dict[str, kind], "here")
        assert str(error.value) == f"here: a: {says}"


class TestReports:
    TITLE = b"=== COLAB TRAIN REPORT ===\n"

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            (b"", "here: found an empty file, expected the line '=== COLAB TRAIN REPORT ===' first"),
            (b"x\n", "here: found text 'x', expected the line"),
            (TITLE[:-1], "a last line without an end"),
            (TITLE + b"a: 1", "a last line without an end"),
            (TITLE + b"a: 1\na 1\n", "here line 3: found text 'a 1'"),
            (TITLE + b"a: \n", "here line 2: found text 'a: '"),
            (TITLE + b"a: \x1b\n", "here line 2: found text"),
            (TITLE + b"A: 1\n", "here line 2: found text 'A: 1'"),
            (TITLE + b": 1\n", "here line 2: found text ': 1'"),
            (TITLE + b"a: 1\nb: 1\na: 1\n", "here line 4: found the key a again"),
        ],
    )
    def test_what_is_no_report_is_told_with_its_line(self, data: bytes, says: str) -> None:
        with pytest.raises(EvidenceError) as error:
            parse_report(data, "here")
        assert says in str(error.value)

    def test_a_report_is_read_in_its_order(self) -> None:
        found = parse_report(self.TITLE + b"b: 1: 2\na_1: x y\n", "here")
        assert list(found.items()) == [("b", "1: 2"), ("a_1", "x y")]
        assert parse_report(self.TITLE, "here") == {}

    def test_our_report_has_our_keys_and_no_more(self) -> None:
        report = dict.fromkeys(REPORT_KEYS, "1")
        check_report_keys(report)
        with pytest.raises(EvidenceError, match="found the key more after the last, expected log_path last"):
            check_report_keys({**report, "more": "1"})

    def test_after_the_contracts_keys_more_may_follow(self) -> None:
        report = dict.fromkeys(CONTRACT_KEYS, "1")
        for further in (0, 1, len(REPORT_KEYS)):
            check_report_keys({**report, **{f"more_{n}": "1" for n in range(further)}}, keys=CONTRACT_KEYS)
        with pytest.raises(EvidenceError, match="only 19 keys, expected 20, the next one being next_unblock_action"):
            check_report_keys(dict.fromkeys(CONTRACT_KEYS[:-1], "1"), keys=CONTRACT_KEYS)

    def test_a_key_in_another_place_is_told_with_its_number(self) -> None:
        first, second, *rest = REPORT_KEYS
        for keys, late in (([second, first, *rest], "which comes later"), ([second, *rest], "which is missing")):
            with pytest.raises(EvidenceError, match=f"the key {second} as number 1, expected {first}, {late}"):
                check_report_keys(dict.fromkeys(keys, "1"))

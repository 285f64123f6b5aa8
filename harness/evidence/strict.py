"""Reading files that somebody else wrote: bounded, strict, and with one kind of error."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from harness.evidence.errors import EvidenceError, mismatch, one_line, show

JSON_LIMIT = 16 << 20
DEPTH_LIMIT = 64
DIGITS_LIMIT = 20


def is_there(path: Path) -> bool:
    """Whether there is something at `path`; False too where that cannot be seen, as in a folder of another user."""
    try:
        return path.exists()
    except OSError:
        return False


def open_regular(path: Path, limit: int, what: str) -> BufferedReader:
    """Open a regular file of at most `limit` bytes for reading. `what` says what the file is, for the message.

    Raises EvidenceError when it is missing, unreadable, larger, or no regular file (a pipe would block for ever).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise mismatch(path, "no such file", what) from None
    except (OSError, ValueError) as error:
        raise mismatch(path, f"a file that cannot be opened ({error})", what) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        os.close(descriptor)
        if stat.S_ISREG(status.st_mode):
            raise mismatch(path, f"{status.st_size:,} bytes", f"{what} of at most {limit:,} bytes")
        raise mismatch(path, "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file", what)
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit: int, what: str) -> bytes:
    """The bytes of a regular file. Raises EvidenceError as `open_regular` does, and when reading fails."""
    with open_regular(path, limit, what) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise mismatch(path, f"a file that cannot be read ({error})", what) from None
    if len(data) > limit:
        raise mismatch(path, f"more than {limit:,} bytes", f"{what} of at most {limit:,} bytes")
    return data


def decode(data: bytes, where: object) -> str:
    """`data` as text. Raises EvidenceError unless it is UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise mismatch(where, f"bytes that are not UTF-8 at {error.start}", "UTF-8 text") from None


def parse_json(data: bytes, where: object) -> Any:
    """The one JSON value in `data`.

    Raises EvidenceError for what is not strict JSON, and for what Python's reader would take on trust: duplicate keys,
    NaN and Infinity, numbers that overflow, whole numbers of more than 20 digits, half surrogate pairs, deep nesting.
    """

    def refuse(found: str) -> NoReturn:
        raise mismatch(where, found, "strict JSON")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for key, item in items:
            if key in value:
                refuse(f"the key {one_line(key, 80)!r} twice in one object")
            value[key] = item
        return value

    def real(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            refuse(f"the number {text[:30]}, which overflows")
        return value

    def whole(text: str) -> int:
        if len(text) > DIGITS_LIMIT:
            refuse(f"a whole number of {len(text)} characters")
        return int(text)

    text = decode(data, where)
    if not text.strip():
        refuse("an empty file" if not data else "nothing but blanks")
    try:
        value = json.loads(
            text,
            object_pairs_hook=pairs,
            parse_float=real,
            parse_int=whole,
            parse_constant=lambda token: refuse(f"the bare token {token}"),
        )
    except json.JSONDecodeError as error:
        refuse(f"{error.msg.lower()} at line {error.lineno} column {error.colno}")
    except RecursionError:
        refuse("values nested without end")
    _check_tree(value, refuse)
    return value


def _check_tree(root: Any, refuse: Callable[[str], NoReturn]) -> None:
    """Refuses nesting that would overflow the stack of whoever walks the value, and text that cannot be written."""
    level, depth = [root], 0
    while level:
        depth += 1
        if depth > DEPTH_LIMIT:
            refuse(f"values nested more than {DEPTH_LIMIT} deep")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and not value.isascii() and re.search("[\ud800-\udfff]", value):
                refuse("half of a surrogate pair in a text")
        level = below


class _Unfit(Exception):
    """A value is not of its kind: `at` is where below the field, then what was found and expected there."""

    def __init__(self, at: str, found: str, expected: str) -> None:
        super().__init__(at, found, expected)
        self.at, self.found, self.expected = at, found, expected


@dataclass(frozen=True)
class Kind:
    """A kind of JSON value: what to call it, and how to read it (returns the value, or raises _Unfit)."""

    what: str
    read: Callable[[Any], Any]


def kind(what: str, fits: Callable[[Any], bool], convert: Callable[[Any], Any] = lambda value: value) -> Kind:
    """The kind of the values for which `fits` holds; `convert` makes the result of one."""

    def read(value: Any) -> Any:
        if not fits(value):
            raise _Unfit("", show(value), what)
        return convert(value)

    return Kind(what, read)


def constant(expected: str | bool) -> Kind:
    """Exactly this value, of this type."""
    return kind(show(expected), lambda value: type(value) is type(expected) and value == expected)


def choice(*choices: str) -> Kind:
    """One of these texts."""
    return kind("one of " + ", ".join(choices), lambda value: isinstance(value, str) and value in choices)


def either(first: Kind, second: Kind) -> Kind:
    """A value of the one kind or of the other."""
    what = f"{first.what} or {second.what}"

    def read(value: Any) -> Any:
        for one in (first, second):
            try:
                return one.read(value)
            except _Unfit:
                continue
        raise _Unfit("", show(value), what)

    return Kind(what, read)


def list_of(item: Kind, length: int | None = None) -> Kind:
    """A list of values of one kind; of this many, where `length` is given."""
    what = f"a list of {length} items" if length is not None else "a list"

    def read(value: Any) -> list[Any]:
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise _Unfit("", show(value), what)
        return [_below(f"[{index}]", item, found) for index, found in enumerate(value)]

    return Kind(what, read)


def dict_of(item: Kind) -> Kind:
    """An object, not empty, of values of one kind."""

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            raise _Unfit("", show(value), "an object that is not empty")
        return {key: _below(f".{key}", item, found) for key, found in value.items()}

    return Kind("an object that is not empty", read)


def record(fields: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None) -> Kind:
    """An object with these keys; further keys are kept as they are."""
    known = {**fields, **(optional or {})}

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _Unfit("", show(value), "an object")
        for key in fields:
            if key not in value:
                raise _Unfit(f".{key}", "no such key", fields[key].what)
        return {key: _below(f".{key}", known[key], found) if key in known else found for key, found in value.items()}

    return Kind("an object", read)


def read_as(kind: Kind, value: Any, where: object) -> Any:
    """`value` read as `kind`. Raises EvidenceError naming `where`, the field, what was found and what was expected."""
    try:
        return kind.read(value)
    except _Unfit as error:
        place = f"{where}: {error.at.removeprefix('.')}" if error.at else where
        raise mismatch(place, error.found, error.expected) from None


def _below(at: str, kind: Kind, value: Any) -> Any:
    try:
        return kind.read(value)
    except _Unfit as error:
        raise _Unfit(one_line(at, 80) + error.at, error.found, error.expected) from None


def hex_float(text: Any) -> float:
    """The float that `float.hex` writes as `text` (`nan`, `inf` and `-inf` too). Raises ValueError for other text."""
    if not isinstance(text, str):
        raise ValueError("not text")
    try:
        value = float.fromhex(text)
    except OverflowError as error:
        raise ValueError(str(error)) from None
    if value.hex() != text:
        raise ValueError("not the canonical form")
    return value


def _fits_hex(value: Any) -> bool:
    try:
        hex_float(value)
    except ValueError:
        return False
    return True


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


TEXT = kind("text", lambda value: isinstance(value, str) and value != "")
FLAG = kind("true or false", lambda value: isinstance(value, bool))
COUNT = kind("a whole number of at least 0", lambda value: _whole(value) and value >= 0)
POSITIVE = kind("a whole number of at least 1", lambda value: _whole(value) and value >= 1)
NUMBER = kind("a number", lambda value: _whole(value) or isinstance(value, float))
NOT_FINITE = choice("nan", "inf", "-inf")
NULL = kind("null", lambda value: value is None)
HEX_FLOAT = kind("a number as float.hex() writes it", _fits_hex, hex_float)
SHA256 = kind(
    "64 lower-case hex digits", lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value))
)
HEX16 = kind(
    "16 lower-case hex digits", lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{16}", value))
)
OBJECT = kind("an object", lambda value: isinstance(value, dict))


def read_json(path: Path, fields: Kind, what: str) -> dict[str, Any]:
    """The object in a JSON file, read as `fields`. Raises EvidenceError."""
    try:
        value = read_as(fields, parse_json(read_bytes(path, JSON_LIMIT, what), path), path)
    except MemoryError:
        raise EvidenceError(f"{path}: found more values than memory holds, expected {what}") from None
    result: dict[str, Any] = value
    return result

"""Reading files that somebody else wrote: bounded, strict, and with one kind of error."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Sequence
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, inspect

from harness.evidence.errors import EvidenceError, NotApplicable, mismatch, one_line, show

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


if TYPE_CHECKING:
    HexFloat = float
else:

    class HexFloat(float):
        """A number that is written as float.hex() writes it."""


Text = Annotated[str, Meta(min_length=1)]
Line = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]+\Z")]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Hex16 = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
Number = int | float
UNKNOWN = "a key that is not known"
NotFinite = Literal["nan", "inf", "-inf"]
LATER: Any = UNSET  # of a field that a file need not have


class Told(Struct):
    """What a file says. A field that it does not have, and need not, is not applicable when it is asked for."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if value is UNSET:
            raise self._lacks(name)
        return value

    def _lacks(self, name: str) -> EvidenceError:
        return NotApplicable(f"{(type(self).__doc__ or '').partition(':')[0]} has no {name}")

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or `default` where the file does not have it."""
        try:
            return getattr(self, name, default)
        except EvidenceError:
            return default


T = TypeVar("T")


def read_struct(path: Path, kind: type[T], what: str) -> T:
    """A JSON file as a struct. Raises EvidenceError."""
    try:
        return as_struct(parse_json(read_bytes(path, JSON_LIMIT, what), path), kind, path)
    except MemoryError:
        raise EvidenceError(f"{path}: found more values than memory holds, expected {what}") from None


def as_struct(value: Any, kind: type[T], where: object) -> T:
    """`value`, as `parse_json` gives it, as a struct or another type that msgspec knows.

    Raises EvidenceError naming `where`, the field, what was found and what was expected; `value` is then taken apart.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=_convert)
    except msgspec.ValidationError as error:
        try:
            place, found = _locate(error, value, kind)
        except (LookupError, TypeError, ValueError):  # msgspec quotes a text of the file that reads like a place
            place, found = [], "a value"
        unknown = found == UNKNOWN
        expected = "no such key" if unknown else _words(_type_at(inspect.type_info(kind), place))
        field = "".join(f"[{key}]" if isinstance(key, int) else f".{one_line(key, 80)}" for key in place)
        raise mismatch(f"{where}: {field.removeprefix('.')}" if field else where, found, expected) from None


def _convert(kind: type, value: Any) -> Any:
    if kind is HexFloat:
        return HexFloat(hex_float(value))
    raise NotImplementedError(kind)


def _steps(error: msgspec.ValidationError) -> list[str]:
    """The steps to the fault, as msgspec gives them: a name, an index, and `...` for a key that it does not name."""
    _, found, place = str(error).rpartition(" - at `$")
    return re.findall(r"\.\.\.|[^.\[\]]+", place.rstrip("`")) if found else []


def _locate(error: msgspec.ValidationError, value: Any, kind: type) -> tuple[list[str | int], str]:
    """Where the fault is, and what was found there."""
    place: list[str | int] = []
    at = value
    for step in (steps := _steps(error)):
        key: str | int = int(step) if isinstance(at, list) else step
        if step == "...":
            key = _faulty_key(at, lambda: _still_at(steps, value, kind))
        place.append(key)
        at = at[key]
    if field := re.match(r"Object (missing required|contains unknown) field `(.+?)`", str(error)):
        return [*place, field[2]], "no such key" if field[1].startswith("missing") else UNKNOWN
    return place, show(at)


def _faulty_key(holder: dict[str, Any], is_faulty: Callable[[], bool]) -> str:
    """The key whose value is at fault; `holder` is left with it alone."""
    items = list(holder.items())
    while len(items) > 1:
        half = dict(items[: len(items) // 2])
        holder.clear()
        holder.update(half)
        items = list(half.items()) if is_faulty() else items[len(half) :]
    holder.clear()
    holder.update(items)
    return items[0][0]


def _still_at(steps: Sequence[str], value: Any, kind: type) -> bool:
    try:
        msgspec.convert(value, kind, dec_hook=_convert)
    except msgspec.ValidationError as error:
        return _steps(error) == steps
    return False


def _type_at(info: inspect.Type, place: Sequence[str | int]) -> inspect.Type:
    """The type of what lies at a place."""
    for key in place:
        for one in info.types if isinstance(info, inspect.UnionType) else (info,):
            if isinstance(one, inspect.StructType | inspect.DataclassType) and isinstance(key, str):
                info = next((field.type for field in one.fields if field.encode_name == key), inspect.AnyType())
            elif isinstance(one, inspect.DictType) and isinstance(key, str):
                info = one.value_type
            elif isinstance(one, inspect.ListType | inspect.VarTupleType) and isinstance(key, int):
                info = one.item_type
            elif isinstance(one, inspect.TupleType) and isinstance(key, int):
                info = one.item_types[key]
    return info


_WORDS: dict[type[inspect.Type], str] = {
    inspect.StructType: "an object",
    inspect.DataclassType: "an object",
    inspect.FloatType: "a number",
    inspect.BoolType: "true or false",
    inspect.NoneType: "null",
    inspect.CustomType: "a number as float.hex() writes it",
}


def _words(info: inspect.Type) -> str:
    """What is expected of a value, in words."""
    if isinstance(info, inspect.UnionType):
        words = [_words(one) for one in info.types]
        return " or ".join(word for word in words if word != "a whole number" or "a number" not in words)
    if isinstance(info, inspect.LiteralType):
        return show(info.values[0]) if len(info.values) == 1 else "one of " + ", ".join(map(str, info.values))
    if isinstance(info, inspect.StrType):
        if info.pattern and info.pattern.startswith("^[^"):
            return "text on one line, not empty"
        if info.pattern:
            return f"{info.pattern.partition('{')[2].partition('}')[0]} lower-case hex digits"
        return f"text of 1 to {info.max_length} characters" if info.max_length else "text"
    if isinstance(info, inspect.IntType):
        return "a whole number" if info.ge is None else f"a whole number of at least {info.ge}"
    if isinstance(info, inspect.DictType):
        return "an object that is not empty" if info.min_length else "an object"
    if isinstance(info, inspect.ListType | inspect.VarTupleType | inspect.TupleType):
        count = len(info.item_types) if isinstance(info, inspect.TupleType) else info.max_length
        return f"a list of {count} items" if count else "a list"
    return _WORDS.get(type(info), "a value")

"""The one exception of this package."""

from __future__ import annotations

from harness.base.text import printable

_LONGEST = 600
_LONGEST_VALUE = 80


class EvidenceError(Exception):
    """A run's evidence is missing, unreadable or contradicts itself. The message is one printable line.

    The message names the file, what was found and what was expected. No other exception leaves this package for
    anything that a file may hold.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, _LONGEST))


class NotApplicable(EvidenceError):
    """The lane does not give this evidence, and need not: the gate that asks for it has nothing to judge."""


def mismatch(where: object, found: str, expected: str) -> EvidenceError:
    """The error for `where` (a file, a line or a field of it): `found` and `expected` complete the sentence."""
    return EvidenceError(f"{where}: found {found}, expected {expected}")


def one_line(text: str, longest: int) -> str:
    """`text` as one line of at most `longest` printable characters; what cannot be printed is escaped."""
    head = text[:longest]
    line = printable(head)
    return line if len(line) <= longest and len(head) == len(text) else line[: longest - 1] + "…"


def show(value: object) -> str:
    """A parsed JSON value for a message: its beginning, and its type where the text alone may mislead."""
    if isinstance(value, str):
        return "text " + repr(one_line(value, _LONGEST_VALUE))
    if isinstance(value, dict):
        return f"an object with {len(value)} keys"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    )

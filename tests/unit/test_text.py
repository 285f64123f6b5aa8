"""What came from outside is shown as what it is: it moves no cursor, and is no command to GitHub's runner."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from harness.base.text import VisibleStream, visible
from harness.pytest_plugin import pytest_runtest_makereport


@pytest.mark.parametrize("text", ["loss 3.1, größer als 2 → gut", "a\tb", "two\nlines", "", "gate::name, 10::20"])
def test_plain_text_stays(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    "text",
    ["\x1b[2J", "a\rb", "::error::x", " ::warning file=a::x", "\t::stop-commands::x", "one\n::error::two", "##[error]x",
     "x\x85::error::y", "\u2028::error::", "\udc80", "a\x00b", "\u202egnp.exe"],
)  # fmt: skip
def test_nothing_in_it_acts(text: str) -> None:
    shown = visible(text)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert not any(line.strip().startswith("::") for line in shown.split("\n")) and "##[" not in shown
    assert visible(shown) == shown
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    print(text, end="", flush=True, file=VisibleStream(stream))
    assert stream.buffer.getvalue() == shown.encode()  # type: ignore[attr-defined]


def test_what_a_gate_says_is_shown_as_what_it_is() -> None:
    """Whatever a gate's message was made from."""
    report = SimpleNamespace(keywords={"smoke": 1}, longrepr="regression\n::error::tensor \x1b[2J")
    hook = pytest_runtest_makereport(None)  # type: ignore[arg-type]
    next(hook)
    with pytest.raises(StopIteration):
        hook.send(report)  # type: ignore[arg-type]
    assert report.longrepr == visible("regression\n::error::tensor \x1b[2J") != "regression\n::error::tensor \x1b[2J"

"""The page on detection says what was found: a missed fault and a false alarm stand out, and nothing is made up."""

from __future__ import annotations

from typing import Any

import pytest
from proof.detection import document
from proof.false_alarms import Case, cases, good, why_not
from proof.faults import faults
from proof.mutation import COLUMNS, Trial, fits

IN_32 = sum(not fault.float64_alone for fault in faults())
MADE = {"date": "2026-02-03", "commit": "0123456789ab"}


def rows(**changes: Any) -> dict[str, dict[str, Any]]:
    """A kept result for every fault in every column, as if each had been caught."""
    found = {}
    for fault in faults():
        for column in COLUMNS:
            row = {"fault": fault.name, "column": column, "classic": [], "red": ["x"], "outcome": "caught", **MADE}
            row["alone"] = "caught" if column == "universal" else ""
            found[Trial(fault, column).name] = {**row, **changes}
    return found


def clean(case: str, **changes: Any) -> dict[str, dict[str, Any]]:
    return {case: {"case": case, "exit": 0, "gates": 36, "passed": 36, **MADE, **changes}}


def test_page_counts_what_is_caught() -> None:
    count = len(faults())
    page = document(rows(), clean("umask 077"))
    assert f"| **all** | 0 of {count} | {count} of {count} | {count} of {count} | {IN_32} of {IN_32} |" in page
    assert "0 false alarms in 1 sessions" in page
    assert "`0123456789ab`" in page and "2026-02-03" in page


@pytest.mark.parametrize("word", ["missed", "other reason", "broken"])
def test_page_shows_what_is_not_caught(word: str) -> None:
    page, count = document(rows(outcome=word), {}), len(faults())
    assert f"| **all** | 0 of {count} | 0 of {count} | {count} of {count} | 0 of {IN_32} |" in page
    assert page.count(f"**{word}**") == count + IN_32
    alone = document(rows(alone=word), {})
    assert f"| **all** | 0 of {count} | {count} of {count} | 0 of {count} | {IN_32} of {IN_32} |" in alone
    assert alone.count(f"**{word}**") == count


def test_page_says_what_was_not_run() -> None:
    page = document({}, {})
    assert page.count("not run") == 2 * len(faults()) + IN_32
    assert "Not measured yet." in page


@pytest.mark.parametrize("changes", [{"exit": 1}, {"passed": 35}, {"gates": 0, "passed": 0}])
def test_page_shows_a_false_alarm(changes: dict[str, Any]) -> None:
    page = document({}, clean("umask 077", **changes))
    assert "1 false alarms in 1 sessions" in page and "**alarm**" in page


def test_a_session_without_gates_is_not_good() -> None:
    assert good({"exit": 0, "gates": 3, "passed": 3})
    assert not good({"exit": 0, "gates": 0, "passed": 0})
    assert not good({"exit": 0, "gates": 3, "passed": 2})
    assert not good({"exit": 5, "gates": 3, "passed": 3})


def test_circumstances_have_names_of_their_own() -> None:
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names) > 30


def test_what_cannot_be_tried_here_is_said() -> None:
    assert "no-such-program" in why_not(Case("x", prefix=("no-such-program",)))
    assert why_not(Case("x")) == ""


def test_a_result_is_kept_for_the_same_fault_and_code_only() -> None:
    first, second = faults()[:2]
    assert fits(Trial(first, "universal"), "a") == fits(Trial(first, "universal"), "a")
    others = [
        fits(Trial(second, "universal"), "a"),
        fits(Trial(first, "float32"), "a"),
        fits(Trial(first, "universal"), "b"),
    ]
    assert fits(Trial(first, "universal"), "a") not in others

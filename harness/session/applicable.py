"""The gates of a session that had something to judge, and those that had not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import pytest

from harness.present.collect import GateCollector
from harness.present.gates import NOT_APPLICABLE

# What a reason says is missing, and the line of the lane's table that would give it.
BUYS = (
    ("is not watched", 'trace = "watch" (a PyTorch program)'),
    ("gives no checkpoint|no checkpoint that", 'checkpoint = "PATH"'),
    ("gives no loss in|no loss that", 'status = {path = "FILE.json", loss = "NAME"}'),
    (
        "names no audio|gives no manifest|no dataset that",
        'data = [{path = "PATH", env = "NAME", alter = …, rename = …}]',
    ),
    ("names no initial_checkpoint", 'initial_checkpoint = "PATH"'),
    ("gives no vocabulary", "vocabulary = NUMBER (of a language model)"),
)
OWN_FILES = "gives no (trace|tokens|report)|need not write|status has no|no tokens that|that another of its files says"
SHOWN = 3  # names in a line; the page has them all


def short(reasons: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A line for each line of the table that would buy gates, for whatever else is the reason, and one for the gates
    on files that only a lane that is written for this harness leaves."""
    bought: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for reason, names in reasons.items():
        line = next((line for pattern, line in BUYS if re.search(pattern, reason)), None)
        if line is not None:
            bought.setdefault(f"with {line} in its table", []).extend(names)
        elif re.search(OWN_FILES, reason):
            others.setdefault(
                "on a report and files as docs/evidence.md has them, which the lane does not leave", []
            ).extend(names)
        else:
            bought.setdefault(reason, []).extend(names)
    for reason, names in (bought | others).items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        # Sorted: several processes report them in an order of their own.
        yield f"  {len(names)} {reason}: {', '.join(sorted(names)[:SHOWN])}{more}"


class Applicable:
    """Counts the gates that had something to judge. A session in which none had is a failure."""

    def __init__(self, collector: GateCollector) -> None:
        self.collector = collector
        self.judged = 0
        self.reasons: dict[str, list[str]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for gate in self.collector.gates:
            if gate.outcome == NOT_APPLICABLE:
                self.reasons.setdefault(gate.reason, []).append(gate.name)
            else:
                self.judged += gate.outcome != "skipped"
        if self.reasons and not self.judged:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def lines(self) -> Iterator[str]:
        """For the end of the session: what was not judged, by reason."""
        if self.reasons:
            count = sum(map(len, self.reasons.values()))
            yield f"not applicable: {count} gates, which have judged nothing; {self.judged} have"
        yield from short(self.reasons)
        if self.reasons and not self.judged:
            yield "FAILED: no gate had anything to judge; name more of what the lane leaves in its table"

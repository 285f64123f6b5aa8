"""The gates of a session that had something to judge, and those that had not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.present.collect import GateCollector
from harness.present.gates import NOT_APPLICABLE


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
        for reason, names in self.reasons.items():
            yield f"  {reason}: {', '.join(names)}"
        if self.reasons and not self.judged:
            yield "FAILED: no gate had anything to judge; name more of what the lane leaves in its table"

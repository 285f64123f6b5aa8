"""What a recording rests on: the gates of the session that need none. They come first where one is to be made."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.baselines.record import RecordRefused
from harness.present.collect import NAME, GateCollector

COMPARING = pytest.StashKey[frozenset[str]]()  # node ids of the gates that compare with a recording


def recording_last(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where the session records, put the gates that compare with a recording behind all others."""
    config.stash[COMPARING] = frozenset(
        item.nodeid for item in items if "baseline" in getattr(item, "fixturenames", ())
    )
    if config.getoption("--snapshot-update", default=False):
        items.sort(key=lambda item: item.nodeid in config.stash[COMPARING])


def other_gates(config: pytest.Config) -> Callable[[], tuple[list[str], list[str]]]:
    """The names of the gates that need no recording: those that held so far, and those that did not. Raises
    RecordRefused in a worker of pytest-xdist, which does not know how the others' gates ended."""

    def ended() -> tuple[list[str], list[str]]:
        collector = config.pluginmanager.get_plugin(NAME)
        if not isinstance(collector, GateCollector):
            raise RecordRefused("recording takes one process, which knows how every gate ended: add -n 0")
        gates = [gate for gate in collector.gates if gate.nodeid not in config.stash[COMPARING]]
        held = [gate.nodeid.rpartition("::test_")[2] for gate in gates if gate.outcome == "passed"]
        return held, [gate.name for gate in gates if gate.outcome in ("failed", "error")]

    return ended

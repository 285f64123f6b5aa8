"""A verdict: what a comparison with the recorded baselines found, in words and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.baselines.differences import Divergence, Item, rows, table
from harness.baselines.result import PARTS, shown

Kind = Literal[
    "match", "tolerance-match", "regression", "nondeterministic", "environment-moved", "incomparable", "missing"
]
GATES_COMMAND = "pytest -m smoke"
RECORD = f'{GATES_COMMAND} --snapshot-update --baseline-reason "why the result is right"'


class SecondLegUnavailable(Exception):
    """The lane as of the baseline's commit cannot be run here. The message says why, in one line."""


@dataclass(frozen=True)
class Verdict:
    """What a comparison with the recorded baselines found. `text()` is what a person reads, on one screen."""

    kind: Kind
    headline: str
    baseline: Path | None = None
    recorded: str = ""
    items: Sequence[Item] = ()
    where: Divergence | None = None
    cause: str = ""
    moved: Sequence[str] = ()
    notes: Sequence[str] = ()
    next_command: str = ""
    compared: Mapping[str, int] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the run is good by what was recorded."""
        return self.kind in ("match", "tolerance-match")

    def holds(self, part: str) -> bool:
        """Whether one part (`dataset`, `tokens`, `loss` or `checkpoint`) of the run was compared, and agrees.

        Raises ValueError for a part that there is not.
        """
        if part not in PARTS:
            raise ValueError(f"no part {part!r}; the parts are {', '.join(PARTS)}")
        if not self.compared.get(part):
            return False
        return not any(item.criterion and item.part == part and item.out_of_bounds for item in self.items)

    def measured(self, part: str) -> str:
        """What was compared of one part, in a few words; nothing where nothing was."""
        decisive = [item for item in self.items if item.criterion and item.part == part]
        if not decisive:
            return ""
        if len(decisive) == 1 and isinstance(digest := decisive[0].obtained, str):
            return f"digest {digest[:12]}"
        out = sum(item.out_of_bounds for item in decisive)
        farthest = max(item.distance for item in decisive)
        far = f"at most {farthest:.1e} away, relatively" if farthest else "all of them equal"
        return f"{len(decisive)} values compared, {f'{out} out of bounds' if out else far}"

    def text(self, part: str | None = None) -> str:
        """The verdict in words, with a table of what is out of bounds; of one part only, if it is given."""
        lines = [f"{self.kind}: {self.headline}"]
        if self.baseline is not None:
            lines.append(f"baseline  {shown(self.baseline)}" + (f" ({self.recorded})" if self.recorded else ""))
        if self.where is not None:
            lines.append(f"where     {self.where.text()}")
        chosen, left_out = rows(self.items, part)
        if chosen:
            lines += table(chosen, left_out)
        if self.moved:
            more = f" and {len(self.moved) - 6} more" if len(self.moved) > 6 else ""
            lines.append(f"moved     {'; '.join(self.moved[:6])}{more}")
        if self.cause:
            lines.append(f"likely    {self.cause}")
        lines += [f"note      {note}" for note in self.notes]
        if self.next_command:
            lines.append(f"next      {self.next_command}".replace("\n", "\n          "))
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The verdict for machines: strict JSON values."""
        chosen, left_out = rows(self.items)
        where = self.where
        return {
            "verdict": self.kind,
            "passed": self.passed,
            "headline": self.headline,
            "baseline": None if self.baseline is None else str(self.baseline),
            "where": None
            if where is None
            else {"step": where.step, "phase": where.phase, "tensors": list(where.tensors), "what": where.item.what},
            "out_of_bounds": [
                dict(zip(("what", "obtained", "expected", "distance"), i.row(), strict=True)) for i in chosen
            ],
            "more": left_out,
            "moved": list(self.moved),
            "cause": self.cause,
            "notes": list(self.notes),
            "next": self.next_command,
            "compared": dict(self.compared),
        }

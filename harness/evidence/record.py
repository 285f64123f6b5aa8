"""`run.json`: what was seen of a run from outside, by whoever started it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, field

from harness.evidence.errors import EvidenceError
from harness.evidence.strict import LATER, Count, Number, Sha256, Text, Told, read_struct

RUN_FILE = "run.json"
SCHEMA = "lane_run/1"


class Output(Struct):
    """A file that the lane's table names: where it lay, the copy of it in the run directory, whether this run wrote it,
    and what was found."""

    path: Text
    copy: Text | None
    written: bool
    found: Text


class Data(Struct):
    """The data that was trained on, as it lay on the disk when the run had ended."""

    digest: Sha256 | None
    files: Count
    problems: list[Text]
    source: Text


class Fields(Struct):
    """Where the lane's own status says how it ended (None: in `status`, and nowhere if there is none), the word for a
    run that completed, and where its last loss is."""

    state: Text | None
    completed: Text
    loss: Text


class Tensors(Struct):
    """Patterns for the names of the checkpoint's tensors that are judged."""

    include: list[Text] = field(default_factory=list)
    exclude: list[Text] = field(default_factory=list)


class RunRecord(Told, kw_only=True):
    """A run of a lane. What is known only at the run's end is not there before: an EvidenceError.

    `formats`: which of its files are in a format of docs/evidence.md. `numerics`: how results compare,
    as the trace's header says or to the bit in one numeric class. `on_purpose`: what a watched program is said to do
    on purpose. `went_on`: the settings with which it began from what
    lay in its folder, and not from nothing. `left`: the SHA-256 of each file that the run left in
    its directory; `work`: size and time (ns) of each in the lane's own folder there.
    """

    schema: Literal["lane_run/1"]
    lane: Literal["experimental"]
    promotable: Literal[False]
    name: Text
    default: bool
    run_id: Text
    started_at: Text
    formats: dict[str, Text]
    fields: Fields
    report_begin: Text
    vocabulary: Count | None
    numerics: Literal["bits", "traced"]
    tensors: Tensors = field(default_factory=Tensors)
    on_purpose: list[Text] = field(default_factory=list)
    went_on: list[Text] = field(default_factory=list)
    state: Literal["running", "ended"]
    initial: Text | None = None
    left: dict[str, Sha256] = field(default_factory=dict)
    work: dict[str, list[int]] = field(default_factory=dict)
    outputs: dict[str, Output] = field(default_factory=dict)
    exit_code: int | None = LATER
    ended: Text = LATER
    seconds: Number = LATER
    data: Data = LATER
    numeric_class: Text = LATER
    settings_digest: Sha256 = LATER
    settings: dict[str, Any] = LATER
    environment: dict[str, Any] = LATER

    @property
    def unlike_further(self) -> str:
        """How the circumstances of a further run differ, which begins from nothing in a folder of its own; empty where
        this run began from nothing too."""
        if not self.went_on:
            return ""
        return f"it began from what lay in its folder ({', '.join(self.went_on)}), and the second run from nothing"

    def _lacks(self, name: str) -> EvidenceError:
        return EvidenceError(f"{RUN_FILE}: {name}: found a run that has not ended, expected one that has")


def read_record(run_dir: Path) -> RunRecord:
    """The record of the run in a run directory. Raises EvidenceError."""
    return read_struct(run_dir / RUN_FILE, RunRecord, "the record of a run")

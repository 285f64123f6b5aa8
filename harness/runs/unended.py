"""Status and report of a run whose process was killed, or could write neither: its parent's word for it, so that they
are never missing."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.base.files import atomic_write, show, write_json
from harness.base.report import one_line, render_report
from harness.evidence import EvidenceError
from harness.evidence.strict import open_regular
from harness.runs.process import Ended

STATUS_LIMIT = 1 << 20  # bytes
NOT_ITS_TO_USE = 3  # the lane's exit code where another run owns its directory; the lane has said so


def own_status(path: Path, run_id: str) -> bool:
    """Whether the run itself wrote in its status how it ended; what else is wrong in it the gates say."""
    status = _status(path)
    cause = status.get("root_cause")
    return status.get("run_id") == run_id and isinstance(cause, str) and not cause.startswith("run_not_ended")


def _status(path: Path) -> dict[str, object]:
    """What lies where the status belongs, as far as it can be read at all: bare NaN tokens and odd fields too."""
    try:
        with open_regular(path, STATUS_LIMIT, "the lane's status") as file:
            status = json.loads(file.read())
    except (EvidenceError, OSError, ValueError, RecursionError):
        return {}
    return status if isinstance(status, dict) else {}


@dataclass(frozen=True)
class Word:
    """What is said for a run. ``printed``: the lines of the report that it printed, if it came to that: what the
    process itself gave as the reason stays the reason."""

    status_path: Path
    report_path: Path
    run_id: str
    started_at: str
    limit_s: float
    log: Path
    ended: Ended
    printed: Sequence[str] = field(default_factory=tuple)

    def _outcome(self) -> dict[str, object]:
        ended = self.ended
        if ended.exit_code >= 0:
            code, hint = "lane_died", f"its last line: {ended.last_line or 'none'}"
            if ended.exit_code == 0 and (other := _status(self.status_path).get("run_id")) and other != self.run_id:
                code = "status_of_another_run"
                hint = f"its status is that of run {other}, and not of {self.run_id}"
        else:
            code = "lane_killed"
            hint = "often: out of memory" if ended.exit_code == -signal.SIGKILL else "see lane.log for the stacks"
            if ended.timed_out:
                code, hint = "time_limit", f"it did not stop at its time limit of {self.limit_s:g} s"
        outcome: dict[str, object] = {
            "first_failed_step": "lane_process",
            "root_cause": one_line(f"{code}: the lane's process {ended.how} after {ended.seconds:.0f} s ({hint})"),
            "next_unblock_action": one_line(f"look at {self.log}, then run it again"),
        }
        if ended.exit_code > 0:
            said = dict(line.split(": ", 1) for line in self.printed if ": " in line)
            outcome |= {key: said[key] for key in outcome if key in said}
        return outcome

    def _status_and_report(self) -> tuple[Mapping[str, object], str]:
        outcome = self._outcome()
        boundary = {"lane": "experimental", "promotable": False, "run_id": self.run_id}
        unknown = {"loss": None, "loss_first": None, "steps_done": 0, "steps_total": 0, "sanitized_logits": 0}
        nothing = dict.fromkeys(("checkpoint_path", "checkpoint_sha256", "checkpoint_tensor_digest"))
        times = {"started_at": self.started_at, "finished_at": now(), "settings": {}}
        schema = {"schema": "train_status/1", **boundary, "status": "failed"}
        status = {**schema, **outcome, **unknown, **nothing, **times}
        paths = {"training_status_path": show(self.status_path), "training_status_json": json.dumps(status)}
        return status, render_report({"objective_status": "failed", **outcome, **paths, **boundary})

    @property
    def report(self) -> str:
        """The report, as text."""
        return self._status_and_report()[1]

    def write(self) -> None:
        """Write status and report, atomically. Raises OSError."""
        status, text = self._status_and_report()
        write_json(self.status_path, status)
        atomic_write(self.report_path, text.encode())


def now() -> str:
    """The time, as every file of a run says it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

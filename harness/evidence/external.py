"""The run of a lane that is not this project's: what it left, read as far as it goes.

`harness/lanes.py` runs such a lane and puts copies of what it left into a run directory, with `external_run.json`: how
the run ended, and what was found of each file at once, before another run of the lane overwrites it. What a lane does
not give is NotApplicable: an EvidenceError, so that nothing passes by accident, which the gates tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.evidence.checkpoint import Array, Checkpoint, read_checkpoint
from harness.evidence.errors import EvidenceError, NotApplicable, mismatch, one_line, show
from harness.evidence.report import CONTRACT_KEYS, REPORT_TITLE, parse_report
from harness.evidence.run import RunEvidence, _once
from harness.evidence.strict import (
    COUNT,
    FLAG,
    NULL,
    NUMBER,
    OBJECT,
    SHA256,
    TEXT,
    constant,
    dict_of,
    either,
    list_of,
    parse_json,
    read_bytes,
    read_json,
    record,
)
from harness.evidence.trace import Trace, read_trace

RUN_FILE = "external_run.json"
SCHEMA = "external_run/1"
MODE = "external"
JSON_LIMIT = 16 << 20
REPORT_LIMIT = 1 << 20

_OUTPUT = record({"path": TEXT, "copy": either(TEXT, NULL), "written": FLAG, "found": TEXT})
_RUN = record(
    {
        "schema": constant(SCHEMA),
        "lane": constant("experimental"),
        "promotable": constant(False),
        "name": TEXT,
        "run_id": TEXT,
        "exit_code": either(NUMBER, NULL),
        "ended": TEXT,
        "seconds": NUMBER,
        "started_at": TEXT,
        "outputs": either(dict_of(_OUTPUT), OBJECT),
        "fields": OBJECT,
        "report_begin": TEXT,
        "initial": either(TEXT, NULL),
        "vocabulary": either(NUMBER, NULL),
        "data": record({"digest": either(SHA256, NULL), "files": COUNT, "problems": list_of(TEXT), "source": TEXT}),
        "numeric_class": TEXT,
        "settings_digest": SHA256,
        "settings": OBJECT,
        "environment": OBJECT,
    }
)


class Given(dict[str, Any]):
    """What a file of the lane says. A key that it does not have is not applicable, rather than wrong."""

    def __init__(self, values: Mapping[str, Any], what: str) -> None:
        super().__init__(values)
        self.what = what

    def __missing__(self, key: str) -> Any:
        raise NotApplicable(f"{self.what} has no {one_line(str(key), 80)}")


class ExternalEvidence(RunEvidence):
    """The evidence of an external lane's run. Get one from `load_run`."""

    def __init__(self, run_dir: Path, run_id: str | None = None) -> None:
        super().__init__(run_dir, run_dir / "train_status.json", run_dir / "voice_dataset_manifest.json", run_id)

    @property
    def lane_option(self) -> str:
        """What a pytest command line needs to run this lane."""
        try:
            return f" --lane={self.facts['name']}"
        except EvidenceError:
            return " --lane=NAME"

    @_once
    def facts(self) -> dict[str, Any]:
        """`external_run.json`."""
        path = self.run_dir / RUN_FILE
        facts = read_json(path, _RUN, "the record of an external lane's run")
        if self._run_id is not None and facts["run_id"] != self._run_id:
            raise mismatch(f"{path}: run_id", show(facts["run_id"]), f"{show(self._run_id)} of this run")
        return facts

    def gives(self, what: str) -> bool:
        """Whether the lane's table says where it leaves this: status, manifest, checkpoint, report or trace."""
        return what in self.facts["outputs"]

    def copy_of(self, what: str) -> Path:
        """The copy of a file that the run left. Raises NotApplicable where the lane gives none, EvidenceError where it
        was to give one and did not."""
        outputs = self.facts["outputs"]
        if what not in outputs:
            raise NotApplicable(f"the lane {self.facts['name']} gives no {what}")
        output = outputs[what]
        if output["copy"] is None:
            raise mismatch(output["path"], output["found"], f"the {what} of lane {self.facts['name']}")
        return self.run_dir / str(output["copy"])

    @_once
    def own_status(self) -> dict[str, Any]:
        """The lane's status file, as it is."""
        path = self.copy_of("status")
        value = parse_json(read_bytes(path, JSON_LIMIT, "the lane's status"), path)
        if not isinstance(value, dict):
            raise mismatch(path, show(value), "an object")
        return value

    @_once
    def status(self) -> dict[str, Any]:
        """What is known of how the run ended, under the names of the built-in lane's status."""
        facts = self.facts
        known: dict[str, Any] = {"first_failed_step": "none", "root_cause": "none", "next_unblock_action": "none"}
        if self.gives("status"):
            own, fields = self.own_status, facts["fields"]
            what = facts["outputs"]["status"]["path"]
            known |= {key: value for key, value in own.items() if key not in ("status", "settings")}
            state = _dotted(own, fields["state"])
            if not isinstance(state, str):
                raise mismatch(f"{what}: {fields['state']}", show(state), f"{show(fields['completed'])}, or another")
            known["status"] = "completed" if state == fields["completed"] else state
            if state == "completed" != fields["completed"]:
                known["status"] = "'completed'"
            known.pop("loss", None)
            if (loss := _dotted(own, fields["loss"])) is not None:
                known["loss"] = loss
        else:
            what = f"the lane {facts['name']}, which gives no status file,"
            known["status"] = "completed" if facts["exit_code"] == 0 else "failed"
        return Given({**known, "run_id": facts["run_id"], "settings": facts["settings"]}, what)

    @_once
    def report(self) -> dict[str, str]:
        """The lane's report."""
        path = self.copy_of("report")
        data = read_bytes(path, REPORT_LIMIT, "the lane's report")
        return Given(parse_report(data, path, title=self.facts["report_begin"]), "the lane's report")

    @property
    def report_keys(self) -> tuple[str, ...]:
        """The twenty keys, of a report that begins like one that has them. Raises NotApplicable for another."""
        if self.facts["report_begin"] != REPORT_TITLE:
            raise NotApplicable(f"the report of lane {self.facts['name']} is of another kind")
        return CONTRACT_KEYS

    @_once
    def manifest(self) -> dict[str, Any]:
        """The lane's manifest, as it is; `manifest_problems` says what is wrong with it."""
        path = self.copy_of("manifest")
        value = parse_json(read_bytes(path, JSON_LIMIT, "the data set's manifest"), path)
        return Given(value if isinstance(value, dict) else {"entries": value}, "the lane's manifest")

    def manifest_problems(self) -> list[str]:
        """What the manifest said and the disk did not, when the run had ended."""
        try:
            self.copy_of("manifest")
        except NotApplicable:
            raise
        except EvidenceError as error:
            return [str(error)]
        return list(self.facts["data"]["problems"])

    def dataset_digest(self) -> str:
        """The digest of the data, taken from the files when the run had ended."""
        data = self.facts["data"]
        if data["digest"] is None:
            if data["problems"]:
                raise EvidenceError(data["problems"][0])
            raise NotApplicable(f"the lane {self.facts['name']} gives neither a manifest nor its audio")
        return str(data["digest"])

    @_once
    def environment(self) -> dict[str, Any]:
        """What the run was computed with, as far as it is known."""
        return Given(self.facts["environment"], "what is known of the lane's environment")

    @_once
    def checkpoint_path(self) -> Path:
        """The copy of the checkpoint."""
        return self.copy_of("checkpoint")

    @_once
    def checkpoint_float64(self) -> Checkpoint | None:
        """None: no external lane has one."""
        return None

    @_once
    def checkpoint_sidecar(self) -> dict[str, Any]:
        """Not applicable."""
        raise NotApplicable("only the built-in lane writes a .json beside its checkpoint")

    @_once
    def initial_checkpoint(self) -> Checkpoint:
        """What training started from. Raises NotApplicable where the lane's table names none."""
        name = self.facts["initial"]
        if name is None:
            raise NotApplicable(f"the table of lane {self.facts['name']} names no initial_checkpoint")
        return read_checkpoint(self.run_dir / str(name))

    @_once
    def tokens(self) -> Array:
        """Not applicable."""
        raise NotApplicable("only the built-in lane leaves its tokens")

    @_once
    def trace(self) -> Trace:
        """The lane's trace, where it writes one in the built-in lane's format."""
        return read_trace(self.copy_of("trace"), sketches=False)

    @_once
    def partial_trace(self) -> Trace:
        """What the run's result is compared by: its trace where it has one, under the external lane's own key; else an
        outline: one step, whose loss is the last one."""
        facts = self.facts
        trace = Trace(self.run_dir / RUN_FILE, {}, {}, {}, [], {})
        if self.gives("trace"):
            trace = read_trace(self.copy_of("trace"), partial=True, sketches=False)
        else:
            loss = self.status.get("loss")
            if isinstance(loss, int | float) and not isinstance(loss, bool):
                trace.steps.append(_outline_step(float(loss)))
            trace.end.update({"steps": len(trace.steps), "param": {}, "sketch": {}})
        trace.header.update(
            lane=facts["name"],
            promotable=False,
            run_id=facts["run_id"],
            mode=MODE,
            numeric_class=facts["numeric_class"],
            settings_digest=facts["settings_digest"],
            model_digest=self._initial_digest(),
            dataset_digest=facts["data"]["digest"] or "",
        )
        return trace

    def _initial_digest(self) -> str:
        try:
            return self.initial_checkpoint.tensor_digest
        except NotApplicable:
            return "none"

    @property
    def run_id_files(self) -> int:
        """Not applicable: an external lane need not write a run id; where it does, `own_run_ids` has them."""
        raise NotApplicable("an external lane need not write this run's id; whether its files are of this run is seen "
                            "from when they were written")  # fmt: skip

    def run_ids(self) -> dict[str, str]:
        """The run ids that the lane itself wrote, by the file's name."""
        found: dict[str, str] = {}
        for name, read in self._own_files():
            try:
                run_id = read().get("run_id")
            except EvidenceError:
                continue
            if isinstance(run_id, str) and run_id != "none":
                found[name] = run_id
        return found

    def _own_files(self) -> list[tuple[str, Callable[[], Mapping[str, Any]]]]:
        return [
            ("status", lambda: self.own_status),
            ("report", lambda: self.report),
            ("manifest", lambda: self.manifest),
            ("trace", lambda: self.trace.header),
        ]

    def is_left(self) -> bool:
        """Whether the facts of the run lie here."""
        try:
            return bool(self.facts)
        except EvidenceError:
            return False

    def failure(self) -> str | None:
        """One line that says why the lane failed; None when it completed. Never raises."""
        reasons: list[str] = []
        log = self.log_path
        try:
            facts = self.facts
            if facts["exit_code"] != 0:
                reasons.append(f"the lane {facts['name']} {facts['ended']}")
            if self.gives("status") and (state := self.status["status"]) != "completed":
                cause = f": {show(self.status['root_cause'])}" if self.status["root_cause"] != "none" else ""
                where = f"{facts['outputs']['status']['path']}: {facts['fields']['state']}"
                reasons.append(f"{where}: found {state}, expected {facts['fields']['completed']}{cause}")
        except EvidenceError as error:
            reasons.append(str(error))
        return f"{'; '.join(one_line(reason, 500) for reason in reasons)}; log: {log}" if reasons else None


def _dotted(value: Any, name: str) -> Any:
    """The value under a dotted name; None where there is none."""
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _outline_step(loss: float) -> dict[str, Any]:
    nothing: dict[str, Any] = {"grad": {}, "param": {}}
    lists: dict[str, Any] = {"chunks": [], "loss_by_codebook": [], "valid": []}
    return {"step": 1, "batch_digest": "none", "loss": loss, "sanitized": 0, **lists, **nothing}

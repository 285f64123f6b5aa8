"""The files of one run, read lazily: each is parsed once, and is what it promises to be or an EvidenceError."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

from harness.evidence.checkpoint import Array, Checkpoint, read_array, read_checkpoint
from harness.evidence.errors import EvidenceError, NotApplicable, mismatch, one_line, show
from harness.evidence.folder import read_checkpoints, selected
from harness.evidence.formats import PLACES, Environment, Manifest, Sidecar, Status, TrainStatus
from harness.evidence.ranks import together
from harness.evidence.record import RUN_FILE, Output, RunRecord, Tensors, read_record
from harness.evidence.report import CONTRACT_KEYS, REPORT_KEYS, REPORT_LIMIT, REPORT_TITLE, parse_report
from harness.evidence.strict import JSON_LIMIT, as_struct, is_there, parse_json, read_bytes, read_struct
from harness.evidence.trace import Step, Trace, read_trace
from harness.evidence.watched import Watched, read_watched
from harness.numerics.digest import array_digest

HOW_IT_ENDED = ("first_failed_step", "root_cause", "next_unblock_action")

T = TypeVar("T")


def _once(compute: Callable[[Any], T]) -> T:
    """A property that is computed once; an EvidenceError is remembered too, and raised anew each time."""
    name = compute.__name__

    def value(run: RunFiles) -> Any:
        if name not in run._outcomes:
            try:
                run._outcomes[name] = compute(run)
            except EvidenceError as error:
                run._outcomes[name] = type(error)(str(error))
        outcome = run._outcomes[name]
        if isinstance(outcome, EvidenceError):
            # A new one each time: a raised exception keeps growing the traceback of who raised it before.
            raise type(outcome)(str(outcome))
        return outcome

    return cast(T, property(value, doc=compute.__doc__))


class Given(dict[str, Any]):
    """What a file of the lane says. A key that it does not have is not applicable, rather than wrong."""

    def __init__(self, values: Mapping[str, Any], what: str) -> None:
        super().__init__(values)
        self.what = what

    def __missing__(self, key: str) -> Any:
        raise NotApplicable(f"{self.what} has no {one_line(str(key), 80)}")


class RunFiles:
    """The files of a run.

    Every property raises NotApplicable for what the lane does not give, and EvidenceError, the same each time, when a
    file is missing, is not what it promises to be, or carries the id of another run. Values are shared between callers:
    do not change them.
    """

    def __init__(self, run_dir: Path, run_id: str | None, places: Mapping[str, Path]) -> None:
        self.run_dir = run_dir
        self.log_path = run_dir / "lane.log"
        self._run_id, self._places = run_id, places
        self._outcomes: dict[str, Any] = {}

    # What there is, and where

    @_once
    def record(self) -> RunRecord:
        """`run.json`. Raises NotApplicable where nobody wrote one: then the lane writes all of docs/evidence.md."""
        path = self.run_dir / RUN_FILE
        if not self.is_recorded:
            raise NotApplicable(f"{path} is not there: nobody saw the run from outside")
        record = read_record(self.run_dir)
        if self._run_id is not None and record.run_id != self._run_id:
            raise mismatch(f"{path}: run_id", show(record.run_id), f"{show(self._run_id)} of this run")
        return record

    @_once
    def is_recorded(self) -> bool:
        """Whether there is a record of the run."""
        return is_there(self.run_dir / RUN_FILE)

    @property
    def name(self) -> str:
        """The lane's name; `experimental`, the voice lane's, where nobody wrote it down."""
        try:
            return self.record.name if self.is_recorded else "experimental"
        except EvidenceError:
            return self.run_dir.name

    @property
    def numerics(self) -> str:
        """How results compare: `traced`, as the trace's header says, or `bits`, to the bit in one numeric class."""
        return self.record.numerics if self.is_recorded else "traced"

    @property
    def lane_option(self) -> str:
        """What a pytest command line needs to run this lane: nothing, for the default one."""
        try:
            return "" if not self.is_recorded or self.record.default else f" --lane={self.record.name}"
        except EvidenceError:
            return " --lane=NAME"

    def gives(self, what: str) -> bool:
        """Whether the lane says where it leaves this: status, manifest, checkpoint, report, trace, tokens, …"""
        return what in self.record.outputs if self.is_recorded else what in PLACES

    def promises(self, what: str) -> bool:
        """Whether the lane leaves this in the format of docs/evidence.md, and is held to it."""
        return what in self.record.formats if self.is_recorded else what in PLACES

    def output(self, what: str) -> Output:
        """What was found of a file. Raises NotApplicable where the lane gives none."""
        if not self.gives(what):
            raise NotApplicable(f"the lane {self.name} gives no {what}")
        if self.is_recorded:
            return self.record.outputs[what]
        return Output(path=str(self.path_of(what)), copy=PLACES[what], written=True, found="a file")

    def path_of(self, what: str) -> Path:
        """Where to read a file from: its copy in the run directory, or its place. Raises NotApplicable likewise, and
        EvidenceError where the run was to leave it and did not."""
        if what in self._places:
            return self._places[what]
        if not self.is_recorded:
            return self.run_dir / PLACES[what]
        output = self.output(what)
        if output.copy is not None:
            return self.run_dir / output.copy
        expected = "the trace of a process that trained with torch.optim" if what == "watch" else f"the {what}"
        raise mismatch(output.path, output.found, f"{expected} of lane {self.name}")

    # The files

    @_once
    def report(self) -> dict[str, str]:
        """The report's keys and values, in its order (see `check_report_keys`)."""
        if not self.promises("report"):
            return Given(self._report, "the lane's report")
        # The set-up reports failures from before there was a run, with the contract's keys alone.
        run_id = self._report.get("run_id")
        return self._report if run_id is None else self._of_this_run(self._report, self.path_of("report"), run_id)

    @_once
    def _report(self) -> dict[str, str]:
        path = self.path_of("report")
        title = self.record.report_begin if self.is_recorded else REPORT_TITLE
        return parse_report(read_bytes(path, REPORT_LIMIT, "the lane's report"), path, title=title)

    @property
    def report_keys(self) -> tuple[str, ...]:
        """The keys that the report must have, in this order. Raises NotApplicable for one of another kind."""
        if self.promises("report"):
            return REPORT_KEYS
        if self.record.report_begin != REPORT_TITLE:
            raise NotApplicable(f"the report of lane {self.name} is of another kind")
        return CONTRACT_KEYS

    @_once
    def status(self) -> Status:
        """How the run ended: by the lane's status file, or, where it gives none, by its exit code."""
        if self.promises("status"):
            return self._of_this_run(self._status, self.path_of("status"), self._status.run_id)
        record = self.record
        told: dict[str, Any] = {"status": "completed" if record.exit_code == 0 else "failed"}
        if self.gives("status"):
            own, fields = self.own_status, record.fields
            state = _dotted(self._status_json, fields.state or "status")
            if state is None and fields.state is None:  # the table names none: the exit code says it
                state = fields.completed if record.exit_code == 0 else "failed"
            if not isinstance(state, str):
                where = f"{record.outputs['status'].path}: {fields.state or 'status'}"
                whole = self._status_json
                found = show(state if isinstance(whole, dict) else whole)
                raise mismatch(where, found, f"{show(fields.completed)}, or another")
            known = {name: value for name, value in own.items() if name in Status.__struct_fields__}
            told = {name: value for name, value in known.items() if isinstance(value, str) or name not in HOW_IT_ENDED}
            told.pop("loss", None)
            if (loss := _dotted(self._status_json, fields.loss)) is not None:
                told["loss"] = loss
            told["status"] = "completed" if state == fields.completed else state
            if state == "completed" != fields.completed:
                told["status"] = "'completed'"
        return Status(**{**told, "run_id": record.run_id, "settings": record.settings})

    @_once
    def _status(self) -> TrainStatus:
        return read_struct(self.path_of("status"), TrainStatus, "the lane's status")

    @_once
    def own_status(self) -> dict[str, Any]:
        """The lane's status file, as it is; nothing where that is a list."""
        return self._status_json if isinstance(self._status_json, dict) else {}

    @_once
    def _status_json(self) -> Any:
        path = self.path_of("status")
        value = parse_json(read_bytes(path, JSON_LIMIT, "the lane's status"), path)
        if not isinstance(value, dict | list):
            raise mismatch(path, show(value), "an object or a list")
        return value

    def _object(self, what: str, called: str) -> dict[str, Any]:
        path = self.path_of(what)
        value = parse_json(read_bytes(path, JSON_LIMIT, called), path)
        if not isinstance(value, dict):
            raise mismatch(path, show(value), "an object")
        return value

    @_once
    def manifest(self) -> Manifest:
        """The manifest, each target checked to stay in the manifest's folder (see `manifest_problems`). Raises
        NotApplicable for one in a format of the lane's own."""
        path = self.path_of("manifest")
        if not self.promises("manifest"):
            raise NotApplicable(f"the manifest of lane {self.name} is in a format of its own")
        manifest = self._of_this_run(self._manifest, path, self._manifest.run_id)
        folder = path.parent
        targets: set[str] = set()
        for index, entry in enumerate(manifest.entries):
            where, target = f"{path}: entries[{index}].target", entry.target
            parts = PurePosixPath(target).parts
            try:
                inside = (folder / target).resolve().is_relative_to(folder.resolve())
            except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL
                inside = False
            if not inside or ".." in parts or PurePosixPath(target).is_absolute() or not parts:
                raise mismatch(where, show(target), "a file inside the manifest's folder")
            if target in targets:
                raise mismatch(where, f"{show(target)} again", "each target once")
            targets.add(target)
        return manifest

    @_once
    def _manifest(self) -> Manifest:
        return read_struct(self.path_of("manifest"), Manifest, "the data set's manifest")

    @_once
    def trace(self) -> Trace:
        """The whole trace of a run that reached its end, every number parsed."""
        path, trace = self.path_of("trace"), self.partial_trace
        if not trace.complete or trace.is_cut:
            return read_trace(path, sketches=self.promises("trace"))  # which says what is missing
        return self._of_this_run(trace, path, trace.header.run_id) if self.promises("trace") else trace

    @_once
    def partial_trace(self) -> Trace:
        """The trace as far as it goes, for looking at a run that ended early."""
        return read_trace(self.path_of("trace"), partial=True, sketches=self.promises("trace"))

    @_once
    def outline(self) -> Trace:
        """What is compared of a run: its trace as far as it goes, or, of a lane that gives none, its last loss."""
        if self.gives("trace"):
            return self.partial_trace
        if self.gives("watch"):
            return together(self.watched)
        outline = Trace(self.run_dir / RUN_FILE)
        loss = self.status.get("loss")
        if isinstance(loss, int | float) and not isinstance(loss, bool):
            outline.steps.append(Step.of_loss(float(loss)))
        return outline

    @_once
    def watched(self) -> list[Watched]:
        """The traces of a watched program's processes, by rank: at least one. Raises NotApplicable where the lane's
        table does not say `trace = "watch"`."""
        path = self.path_of("watch")
        if not (found := read_watched(path, self.record.run_id)):
            raise mismatch(path, "no trace of a process of this run", "one of each process that trained")
        return found

    @_once
    def environment(self) -> Mapping[str, Any]:
        """What the run was computed with, as far as it is known."""
        if not self.promises("environment"):
            return Given(self.record.environment, "what is known of the lane's environment")
        path = self.path_of("environment")
        return self._of_this_run(self._environment, path, self._environment["run_id"])

    @_once
    def _environment(self) -> dict[str, Any]:
        found = self._object("environment", "the run's environment")
        as_struct(dict(found), Environment, self.path_of("environment"))
        return found

    @_once
    def checkpoint_path(self) -> Path:
        """The one checkpoint of the run."""
        folder = self.path_of("checkpoint")
        if not self.promises("checkpoint"):
            return folder
        try:
            names = sorted(path.name for path in folder.iterdir())
        except OSError:
            raise mismatch(folder, "no such folder", "the run's checkpoint in it") from None
        found = [name for name in names if re.fullmatch(r"tts_voice_train_[^.]+\.pt", name, re.DOTALL)]
        if len(found) != 1:
            listed = " and ".join(found[:2]) if found else "no tts_voice_train_<model>.pt"
            raise mismatch(folder, listed, "the checkpoint of one run")
        return folder / found[0]

    @_once
    def checkpoint(self) -> Checkpoint:
        """The checkpoint's tensors, with the file's digests recomputed."""
        found = read_checkpoints(self.checkpoint_path)
        chosen = self.record.tensors if self.is_recorded else Tensors()
        return selected(found, chosen.include, chosen.exclude)

    @_once
    def checkpoint_float64(self) -> Checkpoint | None:
        """Universal mode: the same tensors before rounding. None in a mode that has none."""
        if not self.promises("checkpoint"):
            return None
        path = self.checkpoint_path.with_suffix(".float64.pt")
        return read_checkpoint(path) if path.exists() or self.trace.header.mode == "universal" else None

    @_once
    def last_step(self) -> Checkpoint:
        """Values and moments before and after the last update: `before.NAME.value`, `after.NAME.second`, …"""
        if not self.promises("checkpoint"):
            raise NotApplicable(f"the lane {self.name} need not leave its last step")
        path = self.checkpoint_path.with_suffix(".last_step.pt")
        found = read_checkpoint(path)
        return self._of_this_run(found, path, str(found.meta.get("run_id")))

    @_once
    def checkpoint_sidecar(self) -> Sidecar:
        """The `.json` beside the checkpoint. Raises NotApplicable for a lane that need not write one."""
        return self._of_this_run(self._sidecar, self._sidecar_path(), self._sidecar.run_id)

    @_once
    def _sidecar(self) -> Sidecar:
        return read_struct(self._sidecar_path(), Sidecar, "what the checkpoint says of itself")

    def _sidecar_path(self) -> Path:
        if not self.promises("checkpoint"):
            raise NotApplicable(f"the lane {self.name} need not write a .json beside its checkpoint")
        return self.checkpoint_path.with_suffix(".json")

    @_once
    def initial_checkpoint(self) -> Checkpoint:
        """What training started from. Raises NotApplicable where the lane's table names none."""
        if (name := self.record.initial) is None:
            raise NotApplicable(f"the table of lane {self.name} names no initial_checkpoint")
        chosen = self.record.tensors
        found = read_checkpoints(self.run_dir / name)
        return selected(found, chosen.include, chosen.exclude, must_fit=False)

    @_once
    def tokens(self) -> Array:
        """The tokens that were trained on: int16 `[chunks, codebooks, frames]`."""
        path = self.path_of("tokens")
        tokens = read_array(path)
        if tokens.dtype != "int16" or tokens.ndim != 3 or tokens.size == 0:
            raise mismatch(path, f"{tokens.dtype} {list(tokens.shape)}", "int16 [chunks, codebooks, frames]")
        return tokens

    def tokens_digest(self) -> str:
        """The digest of `tokens`, recomputed."""
        return array_digest("tokens", self.tokens)

    def _of_this_run(self, value: T, path: Path, run_id: str) -> T:
        """`value`, from the file at `path`, that carries `run_id`. Raises EvidenceError when that is another run's."""
        expected, source = self._run_id, "this run"
        if expected is None and self.promises("status") and path != self.path_of("status"):
            try:
                expected, source = self._status.run_id, self.path_of("status").name
            except EvidenceError:  # then the status is what is wrong, and says so itself
                return value
        if expected is not None and run_id != expected:
            raise mismatch(f"{path}: run_id", show(run_id), f"{show(expected)} of {source} (is the file stale?)")
        return value


def _dotted(value: Any, name: str) -> Any:
    """The value under a dotted name, in which lists have an index (`log_history[-2].loss`); None where there is
    none."""
    if not (found := re.findall(r"(?:\A|\.)([^.\[\]]+)|\[(-?\d{1,9})\]", name)):
        return None
    for key, index in found:
        if index:
            there = isinstance(value, list) and -len(value) <= int(index) < len(value)
            value = value[int(index)] if there else None
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value

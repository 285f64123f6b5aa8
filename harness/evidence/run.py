"""One run directory, read lazily: each part is parsed once, and is what the contract says or an EvidenceError."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar, overload

from harness.evidence.checkpoint import Array, Checkpoint, read_array, read_checkpoint
from harness.evidence.errors import EvidenceError, mismatch, one_line, show
from harness.evidence.report import REPORT_KEYS, read_report
from harness.evidence.strict import (
    COUNT,
    NOT_FINITE,
    NULL,
    NUMBER,
    OBJECT,
    POSITIVE,
    SHA256,
    TEXT,
    Kind,
    choice,
    constant,
    dict_of,
    either,
    is_there,
    list_of,
    open_regular,
    read_bytes,
    read_json,
    record,
)
from harness.evidence.trace import Trace, read_trace
from harness.numerics.digest import array_digest, dataset_digest, file_sha256

REPORT = "train_report.txt"
STATUS = "train_status.json"
MANIFEST = "knowledge_audio/voice_dataset_manifest.json"
TOKENS = "tokens.npy"
TRACE = "trace.jsonl"
ENVIRONMENT = "environment.json"
CHECKPOINTS = "checkpoints"
LOG = "lane.log"
EXIT_CODE = "exit_code.txt"
HISTORY = "history.json"  # outlives the run that it was written with
AUDIO_LIMIT = 1 << 40

_EVERY_FILE = {"run_id": TEXT, "lane": constant("experimental"), "promotable": constant(False)}
_TEXT_OR_NULL = either(TEXT, NULL)
_LOSS = either(either(NUMBER, NOT_FINITE), NULL)


def _json_file(schema: str, fields: dict[str, Kind]) -> Kind:
    return record({"schema": constant(schema), **_EVERY_FILE, **fields})


_STATUS = _json_file(
    "train_status/1",
    {
        "status": choice("completed", "failed", "blocked", "interrupted"),
        "first_failed_step": TEXT,
        "root_cause": TEXT,
        "next_unblock_action": TEXT,
        "loss": _LOSS,
        "loss_first": _LOSS,
        "steps_done": COUNT,
        "steps_total": either(COUNT, NULL),
        "sanitized_logits": either(COUNT, NULL),
        "checkpoint_path": _TEXT_OR_NULL,
        "checkpoint_sha256": _TEXT_OR_NULL,
        "checkpoint_tensor_digest": _TEXT_OR_NULL,
        "started_at": _TEXT_OR_NULL,
        "finished_at": _TEXT_OR_NULL,
        "settings": either(OBJECT, NULL),
    },
)
_MANIFEST = _json_file(
    "voice_dataset/1",
    {
        "dataset_digest": SHA256,
        "entries": list_of(
            record(
                {
                    "source": TEXT,
                    "target": TEXT,
                    "bytes": COUNT,
                    "sha256": SHA256,
                    "sample_rate": POSITIVE,
                    "channels": POSITIVE,
                    "frames": COUNT,
                    "duration_seconds": NUMBER,
                }
            )
        ),
    },
)
_ENVIRONMENT = _json_file("environment/1", {})
_SIDECAR = _json_file(
    "checkpoint/1",
    {
        "sha256": SHA256,
        "bytes": COUNT,
        "tensor_digest": SHA256,
        "tensors": dict_of(record({"dtype": TEXT, "shape": list_of(COUNT)})),
    },
)

T = TypeVar("T")


class _once(Generic[T]):
    """A property that is computed once; an EvidenceError is remembered too, and raised anew each time."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute = compute
        self.name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, run: None, owner: type) -> _once[T]: ...
    @overload
    def __get__(self, run: RunEvidence, owner: type) -> T: ...
    def __get__(self, run: RunEvidence | None, owner: type) -> _once[T] | T:
        if run is None:
            return self
        if self.name not in run._outcomes:
            try:
                run._outcomes[self.name] = self.compute(run)
            except EvidenceError as error:
                run._outcomes[self.name] = type(error)(str(error))
        outcome = run._outcomes[self.name]
        if isinstance(outcome, EvidenceError):
            # A new one each time: a raised exception keeps growing the traceback of who raised it before.
            raise type(outcome)(str(outcome))
        result: T = outcome
        return result


class RunEvidence:
    """What one run left behind. Get one from `load_run`.

    Every property raises EvidenceError, the same each time, when its file is missing, is not what docs/evidence.md
    says, or carries the id of another run. Values are shared between callers: do not change them.
    """

    def __init__(
        self, run_dir: Path, status_path: Path, manifest_path: Path, run_id: str | None, told: Mapping[str, str] = {}
    ) -> None:
        self.run_dir = run_dir
        self.report_path = run_dir / REPORT
        self.status_path = status_path
        self.manifest_path = manifest_path
        self.tokens_path = run_dir / TOKENS
        self.trace_path = run_dir / TRACE
        self.environment_path = run_dir / ENVIRONMENT
        self.log_path = run_dir / LOG
        self.exit_code_path = run_dir / EXIT_CODE
        self._run_id = run_id
        self._told = told
        self._outcomes: dict[str, Any] = {}
        self._digests: dict[tuple[int, ...], str] = {}

    @_once
    def report(self) -> dict[str, str]:
        """The report's keys and values, in its order (see `check_report_keys`)."""
        report = read_report(self.report_path)
        # The bootstrap reports failures from before there was a run, with the contract's keys alone.
        return self._of_this_run(report, self.report_path) if "run_id" in report else report

    @property
    def lane_option(self) -> str:
        """What a pytest command line needs to run this lane: nothing, for the built-in one."""
        return ""

    @property
    def report_keys(self) -> tuple[str, ...]:
        """The keys that the report must have, in this order."""
        return REPORT_KEYS

    @property
    def run_id_files(self) -> int:
        """How many files of a completed run carry its id."""
        return 6

    @_once
    def status(self) -> dict[str, Any]:
        """`train_status.json`. Its loss is a number, text (`nan`, `inf`, `-inf`) or None: see `finite_loss`."""
        return self._of_this_run(self._status, self.status_path)

    @_once
    def _status(self) -> dict[str, Any]:
        return read_json(self.status_path, _STATUS, "the lane's status")

    @_once
    def manifest(self) -> dict[str, Any]:
        """The manifest, each target checked to stay in the manifest's folder (see `manifest_problems`)."""
        manifest = self._of_this_run(self._manifest, self.manifest_path)
        folder = self.manifest_path.parent
        targets: set[str] = set()
        for index, entry in enumerate(manifest["entries"]):
            where, target = f"{self.manifest_path}: entries[{index}].target", entry["target"]
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
    def _manifest(self) -> dict[str, Any]:
        return read_json(self.manifest_path, _MANIFEST, "the data set's manifest")

    @_once
    def trace(self) -> Trace:
        """The whole trace of a run that reached its end, every number parsed."""
        trace = read_trace(self.trace_path)
        self._of_this_run(trace.header, self.trace_path)
        return trace

    @_once
    def partial_trace(self) -> Trace:
        """The trace as far as it goes, for looking at a run that ended early; its missing parts are empty."""
        return read_trace(self.trace_path, partial=True)

    @_once
    def environment(self) -> dict[str, Any]:
        """`environment.json`."""
        return self._of_this_run(self._environment, self.environment_path)

    @_once
    def _environment(self) -> dict[str, Any]:
        return read_json(self.environment_path, _ENVIRONMENT, "the run's environment")

    @_once
    def checkpoint_path(self) -> Path:
        """The one checkpoint of the run."""
        folder = self.run_dir / CHECKPOINTS
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
        """The adapters as float32, with the file's digests recomputed."""
        return read_checkpoint(self.checkpoint_path)

    @_once
    def checkpoint_float64(self) -> Checkpoint | None:
        """Universal mode: the same adapters before rounding. None in a mode that has none."""
        path = self.checkpoint_path.with_suffix(".float64.pt")
        if not path.exists() and self.trace.header["mode"] != "universal":
            return None
        return read_checkpoint(path)

    @_once
    def checkpoint_sidecar(self) -> dict[str, Any]:
        """The `.json` beside the checkpoint."""
        return self._of_this_run(self._sidecar, self.checkpoint_path.with_suffix(".json"))

    @_once
    def _sidecar(self) -> dict[str, Any]:
        return read_json(self.checkpoint_path.with_suffix(".json"), _SIDECAR, "what the checkpoint says of itself")

    @_once
    def tokens(self) -> Array:
        """The tokens that were trained on: int16 `[chunks, codebooks, frames]`."""
        tokens = read_array(self.tokens_path)
        if tokens.dtype != "int16" or tokens.ndim != 3 or tokens.size == 0:
            raise mismatch(
                self.tokens_path, f"{tokens.dtype} {list(tokens.shape)}", "int16 [chunks, codebooks, frames]"
            )
        return tokens

    def tokens_digest(self) -> str:
        """The digest of `tokens`, recomputed."""
        return array_digest("tokens", self.tokens)

    def dataset_digest(self) -> str:
        """The digest of the staged audio, recomputed from the files. Raises EvidenceError when one cannot be read."""
        entries = self.manifest["entries"]
        if not entries:
            raise mismatch(self.manifest_path, "no entries", "at least one file")
        return dataset_digest([self._sha256(self.manifest_path.parent / entry["target"]) for entry in entries])

    def manifest_problems(self) -> list[str]:
        """What the manifest says and the disk does not: one line each, empty when all is right. Never raises."""
        try:
            manifest = self.manifest
        except EvidenceError as error:
            return [str(error)]
        problems: list[str] = []
        digests: list[str] = []
        for entry in manifest["entries"]:
            path = self.manifest_path.parent / entry["target"]
            try:
                digests.append(self._sha256(path, entry["bytes"]))
                if digests[-1] != entry["sha256"]:
                    raise mismatch(path, f"SHA-256 {digests[-1]}", f"{entry['sha256']}, as the manifest says")
            except EvidenceError as error:
                problems.append(str(error))
        if not manifest["entries"]:
            problems.append(str(mismatch(self.manifest_path, "no entries", "at least one file")))
        elif len(digests) == len(manifest["entries"]) and dataset_digest(digests) != manifest["dataset_digest"]:
            found = f"dataset_digest {manifest['dataset_digest']}"
            problems.append(str(mismatch(self.manifest_path, found, f"{dataset_digest(digests)}, as the files give")))
        return problems

    def run_ids(self) -> dict[str, str]:
        """The run id in each file that is there, by the file's name: all the same, or a file is stale.

        Raises EvidenceError for a file that is there and cannot be read. A report without a run id (of a set-up that
        failed before there was a run) is left out.
        """
        found: dict[str, str] = {}
        for path, read in (
            (self.report_path, lambda: read_report(self.report_path).get("run_id")),
            (self.status_path, lambda: self._status["run_id"]),
            (self.manifest_path, lambda: self._manifest["run_id"]),
            (self.trace_path, lambda: self.partial_trace.header["run_id"]),
            (self.environment_path, lambda: self._environment["run_id"]),
            (self._sidecar_path(), lambda: self._sidecar["run_id"]),
        ):
            if path is not None and path.exists() and (run_id := read()) is not None:
                found[path.name] = run_id
        return found

    def is_left(self) -> bool:
        """Whether it lies here how this run ended: not another run's end, and not that it has begun."""
        try:
            return not self.status["root_cause"].startswith("run_not_ended")
        except EvidenceError:
            return False

    def failure(self) -> str | None:
        """One line that says why the lane itself failed, and where its log is; None when it completed. Never raises."""
        if self._told and not self.is_left() and (told := _outcome(self._told["objective_status"], self._told)):
            return one_line(told[0], 1600)
        reasons: list[str] = []
        try:
            reasons += _outcome(self.status["status"], self.status)
        except EvidenceError as error:
            reasons.append(str(error))
        try:
            outcome = _outcome(self.report.get("objective_status", "none"), self.report)
            # The two tell the same story; the report's is needed only where the status does not tell it.
            reasons = outcome + reasons if not is_there(self.status_path) else reasons or outcome
        except EvidenceError as error:
            reasons.append(str(error))
        code = self._exit_code()
        if code not in (None, "0"):
            reasons.append(f"the lane exited with {code}")
        if not reasons:
            return None
        log = self.log_path if is_there(self.log_path) else f"{self.log_path} (there is none)"
        return one_line(f"{'; '.join(one_line(reason, 500) for reason in reasons)}; log: {log}", 1600)

    def _exit_code(self) -> str | None:
        if not is_there(self.exit_code_path):
            return None
        try:
            return one_line(read_bytes(self.exit_code_path, 100, "an exit code").decode("ascii", "replace").strip(), 20)
        except EvidenceError:
            return "an exit code that cannot be read"

    def _sidecar_path(self) -> Path | None:
        try:
            return self.checkpoint_path.with_suffix(".json")
        except EvidenceError:
            return None

    def _sha256(self, path: Path, size: int | None = None) -> str:
        """SHA-256 of a staged file; of `size` bytes, where that is given. Raises EvidenceError."""
        with open_regular(path, AUDIO_LIMIT, "a staged file"):
            pass
        try:
            found = path.stat()
            if size is not None and found.st_size != size:
                raise mismatch(path, f"{found.st_size:,} bytes", f"{size:,}, as the manifest says")
            # Read once, by whichever gate comes first: a recording may be gigabytes long.
            stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if stamp not in self._digests:
                self._digests[stamp] = file_sha256(path)
            return self._digests[stamp]
        except OSError as error:
            raise mismatch(path, f"a file that cannot be read ({error})", "a staged file") from None

    def _of_this_run(self, value: dict[str, Any], path: Path) -> dict[str, Any]:
        """`value`, from the file at `path`. Raises EvidenceError when it carries another run's id."""
        expected, source = self._run_id, "this run"
        if expected is None and path != self.status_path:
            try:
                expected, source = self._status["run_id"], self.status_path.name
            except EvidenceError:  # then the status is what is wrong, and says so itself
                return value
        if expected is not None and value["run_id"] != expected:
            raise mismatch(
                f"{path}: run_id", show(value["run_id"]), f"{show(expected)} of {source} (is the file stale?)"
            )
        return value


def _outcome(status: str, source: Mapping[str, Any]) -> list[str]:
    """How a run ended that did not complete, in words; nothing for one that did."""
    if status == "completed":
        return []
    step, cause, action = (
        source.get(key, "none") for key in ("first_failed_step", "root_cause", "next_unblock_action")
    )
    return [f"the lane ended as {status} in step {step}: {cause}; next: {action}"]


def load_run(
    run_dir: Path,
    *,
    status_path: Path | None = None,
    manifest_path: Path | None = None,
    run_id: str | None = None,
    told: str = "",
) -> RunEvidence:
    """The evidence of the run in `run_dir`; reads nothing yet and never raises.

    `status_path` and `manifest_path`: where these are not in their usual place (`TRAIN_STATUS_PATH`,
    `KNOWLEDGE_AUDIO_DIR`). `run_id`: the id that every file must carry; without it, the one that the status carries.
    `told`: the report that the run's process printed, which says why there is no evidence where it could leave none.
    The run of an external lane (harness/lanes.py) is an ExternalEvidence.
    """
    from harness.evidence.external import RUN_FILE, ExternalEvidence  # which builds on this module

    if is_there(Path(run_dir) / RUN_FILE):
        return ExternalEvidence(Path(run_dir), run_id)
    return RunEvidence(
        Path(run_dir),
        Path(status_path) if status_path is not None else Path(run_dir) / STATUS,
        Path(manifest_path) if manifest_path is not None else Path(run_dir) / MANIFEST,
        run_id,
        dict(line.split(": ", 1) for line in told.splitlines() if ": " in line),
    )

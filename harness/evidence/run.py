"""What one run left behind: its files (files.py), the data that they name, of which run they are, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.evidence.errors import EvidenceError, NotApplicable, mismatch, one_line, show
from harness.evidence.files import HOW_IT_ENDED, RunFiles
from harness.evidence.strict import is_there, open_regular
from harness.numerics.digest import dataset_digest, file_sha256

AUDIO_LIMIT = 1 << 40
WITH_RUN_ID = ("report", "status", "manifest", "trace", "environment", "checkpoint")


class RunEvidence(RunFiles):
    """What one run left behind. Get one from `load_run`."""

    def __init__(self, run_dir: Path, run_id: str | None, places: Mapping[str, Path], told: Mapping[str, str]) -> None:
        super().__init__(run_dir, run_id, places)
        self._told = told
        self._digests: dict[tuple[int, ...], str] = {}

    def dataset_digest(self) -> str:
        """The digest of the data, from the files: as they lie there, or as they lay when the run had ended. Raises
        EvidenceError when one cannot be read."""
        if self.promises("manifest"):
            if not (entries := self.manifest.entries):
                raise mismatch(self.path_of("manifest"), "no entries", "at least one file")
            return dataset_digest([self._sha256(self.path_of("manifest").parent / entry.target) for entry in entries])
        data = self.record.data
        if data.problems and data.digest is None:
            raise EvidenceError(data.problems[0])
        if data.digest is None:
            raise NotApplicable(f"the lane {self.name} gives neither a manifest nor its audio or data")
        return data.digest

    def dataset_files(self) -> int:
        """How many files of audio were trained on, by the manifest or as they lay there. Raises EvidenceError."""
        return len(self.manifest.entries) if self.promises("manifest") else self.record.data.files

    def manifest_problems(self) -> list[str]:
        """What the manifest says and the disk does not: one line each, empty when all is right. Raises NotApplicable
        for a lane that gives none, and nothing else."""
        try:
            path = self.path_of("manifest")
            if not self.promises("manifest"):
                return list(self.record.data.problems)
            manifest = self.manifest
        except NotApplicable:
            raise
        except EvidenceError as error:
            return [str(error)]
        problems: list[str] = []
        digests: list[str] = []
        for entry in manifest.entries:
            file = path.parent / entry.target
            try:
                digests.append(self._sha256(file, entry.bytes))
                if digests[-1] != entry.sha256:
                    raise mismatch(file, f"SHA-256 {digests[-1]}", f"{entry.sha256}, as the manifest says")
            except EvidenceError as error:
                problems.append(str(error))
        if not manifest.entries:
            problems.append(str(mismatch(path, "no entries", "at least one file")))
        elif len(digests) == len(manifest.entries) and dataset_digest(digests) != manifest.dataset_digest:
            found = f"dataset_digest {manifest.dataset_digest}"
            problems.append(str(mismatch(path, found, f"{dataset_digest(digests)}, as the files give")))
        return problems

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

    # Of which run, and how it ended

    @property
    def run_id_files(self) -> int:
        """How many files of a completed run carry its id. Raises NotApplicable for a lane that need not write it."""
        if not (promised := sum(map(self.promises, WITH_RUN_ID))):
            raise NotApplicable(f"the lane {self.name} need not write this run's id; whether its files are of this run "
                                "is seen from when they were written")  # fmt: skip
        return promised

    def run_ids(self) -> dict[str, str]:
        """The run id in each file that is there, by the file's name: all the same, or a file is stale.

        Raises EvidenceError for a file in a format of ours that is there and cannot be read. A report without a run id
        (of a set-up that failed before there was a run) is left out, and so is what another format does not say.
        """
        found: dict[str, str] = {}
        for what in WITH_RUN_ID:
            promised = self.promises(what)
            try:
                path = self._sidecar_path() if what == "checkpoint" else self.path_of(what)
            except EvidenceError:
                continue
            if not is_there(path):
                continue
            try:
                run_id = self._run_id_in(what, promised)
            except EvidenceError:
                if promised:
                    raise
                continue
            if isinstance(run_id, str) and (promised or run_id != "none"):
                found[path.name] = run_id
        return found

    def _run_id_in(self, what: str, promised: bool) -> Any:
        """The id in a file, which need not be this run's."""
        if what == "report":
            return self._report.get("run_id")
        if what == "trace":
            return self.partial_trace.header.run_id
        if not promised:
            return self._object(what, f"the lane's {what}").get("run_id")
        if what == "environment":
            return self._environment["run_id"]
        own = {"status": "_status", "manifest": "_manifest", "checkpoint": "_sidecar"}
        return getattr(self, own[what]).run_id

    def is_left(self) -> bool:
        """Whether it lies here how this run ended: not another run's end, and not that it has begun."""
        try:
            if self.promises("status"):
                return not self.status.root_cause.startswith("run_not_ended")
            return self.record.state == "ended"
        except EvidenceError:
            return False

    def failure(self) -> str | None:
        """One line that says why the lane itself failed, and where its log is; None when it completed. Never raises."""
        if self._told and not self.is_left() and (told := _outcome(self._told["objective_status"], self._told.get)):
            return one_line(told[0], 1600)
        try:
            reasons = self._reasons()
        except EvidenceError as error:
            reasons = [str(error)]
        if not reasons:
            return None
        log = self.log_path if is_there(self.log_path) else f"{self.log_path} (there is none)"
        return one_line(f"{'; '.join(one_line(reason, 500) for reason in reasons)}; log: {log}", 1600)

    def _reasons(self) -> list[str]:
        reasons: list[str] = []
        try:
            status = self.status
            if self.promises("status"):
                reasons += _outcome(status.status, status.get)
            elif self.gives("status") and status.status != "completed":
                cause = f": {show(status.root_cause)}" if status.root_cause != "none" else ""
                where = f"{self.output('status').path}: {self.record.fields.state}"
                reasons.append(f"{where}: found {status.status}, expected {self.record.fields.completed}{cause}")
        except EvidenceError as error:
            reasons.append(str(error))
        if self.promises("report"):
            try:
                outcome = _outcome(self.report.get("objective_status", "none"), self.report.get)
                # The two tell the same story; the report's is needed only where the status does not tell it.
                reasons = outcome + reasons if not is_there(self.path_of("status")) else reasons or outcome
            except EvidenceError as error:
                reasons.append(str(error))
        if self.is_recorded and self.record.state == "ended" and self.record.exit_code != 0:
            reasons.append(f"the lane {self.name} {self.record.ended}")
        return reasons


def _outcome(status: str, said: Callable[[str, Any], Any]) -> list[str]:
    """How a run ended that did not complete, in words; nothing for one that did."""
    if status == "completed":
        return []
    step, cause, action = (said(key, "none") for key in HOW_IT_ENDED)
    return [f"the lane ended as {status} in step {step}: {cause}; next: {action}"]


def load_run(
    run_dir: Path, *, run_id: str | None = None, places: Mapping[str, Path] | None = None, told: str = ""
) -> RunEvidence:
    """The evidence of the run in `run_dir`; reads nothing yet and never raises.

    `run_id`: the id that every file must carry; without it, the one that the status carries. `places`: where files lie
    that are not in their usual place, by what they are. `told`: the report that the run's process printed, which says
    why there is no evidence where it could leave none.
    """
    said = dict(line.split(": ", 1) for line in told.splitlines() if ": " in line)
    return RunEvidence(Path(run_dir), run_id, places or {}, said)

"""One run of a lane: its process, what it leaves, and `run.json`, which says what was seen of it from outside.

A lane that writes where it always does has what it left copied into the run directory, because its next run overwrites
it. One that is `in_place` is given the run directory itself, and what it left is read there. What must be seen at once
is written down: how the process ended, which files it wrote, and the digests of the data. A lane's own files are never
altered or removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.base.files import write_json
from harness.base.lock import INHERITED, Busy, Hold, owned
from harness.base.project import first_on_path
from harness.evidence.data import data_digest
from harness.evidence.errors import mismatch
from harness.evidence.record import RUN_FILE, SCHEMA
from harness.evidence.watched import FOLDER
from harness.numerics.digest import file_sha256
from harness.runs.copies import Stamps, copied, copied_folder, left_over, stamps
from harness.runs.directory import COPIES, WORK, files_in, left_in, make_empty, usable
from harness.runs.process import Ended, Process
from harness.runs.table import Lane
from harness.runs.unended import NOT_ITS_TO_USE, Word, now, own_status
from harness.runs.watching import traces, watching

EARLY_S = 10.0  # a lane in its own place ends itself at its time limit; where it does not, it is ended so much later
REPORT_LINES = 1000  # of a report in the output that are kept
NO_DATA: dict[str, Any] = {"digest": None, "files": 0, "problems": [], "source": "none"}


class LaneRun:
    """One run of a lane, started at once.

    `run_dir`: where its evidence goes; for a lane whose files are copied a folder that is new, empty, or holds an
    earlier run, which is then removed. `environ`: further environment variables, which win over this process's own
    and the table's. `audio`: use this in place of the table's; `data`: likewise, by the path in the table. `root`:
    run it from another checkout. `python`: the command that starts Python, where it is not this one. `hold`: of the
    run directory, where this process owns it. `numeric_class`: gives that of this machine, asked for while a lane
    runs that does not say its own. `on_line`: called in a thread with each line of its output.

    Raises EvidenceError for a command that does not start and a run directory that is somebody else's.
    """

    def __init__(
        self,
        lane: Lane,
        run_dir: Path,
        *,
        environ: Mapping[str, str] | None = None,
        audio: Path | None = None,
        data: Mapping[str, Path] | None = None,
        root: Path | None = None,
        python: Sequence[str] = (sys.executable,),
        hold: Hold | None = None,
        numeric_class: Callable[[], str] = lambda: "none",
        on_line: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.lane, self.run_dir = lane, run_dir.absolute()
        self.run_id = (environ or {}).get("LANE_RUN_ID") or uuid.uuid4().hex
        self.exit_code, self.seconds, self.report, self._is_over = 0, 0.0, "", False
        self._root = lane.root if root is None else root
        self._hold, self._numeric_class, self._on_line = hold, numeric_class, on_line
        self._printed: list[str] = []  # the report that it printed
        work = self.run_dir
        if not lane.table.in_place:
            work = self.run_dir / WORK
            with usable(self.run_dir):
                make_empty(self.run_dir)
                self._started_at = now()
                self._write({"state": "running"})  # first, so that a killed run leaves a folder that the next may use
        self._started_at = now()
        self.audio = audio or lane.audio_path()
        self._words = {"{python}": python[0], "{run_dir}": str(work), "{audio}": str(self.audio or ""),
                       "{root}": str(self._root)}  # fmt: skip
        given = {**os.environ, **(environ or {})}
        table = {name: lane.fill(value, self._words, given) for name, value in lane.table.env.items()}
        self._environ = {**os.environ, **table, **(environ or {})}
        self._environ |= {"LANE_RUN_DIR": str(work), "LANE_RUN_ID": self.run_id}
        if audio and lane.audio and (name := lane.audio.folder_env if audio.is_dir() else lane.audio.env):
            self._environ[name] = str(audio.absolute())
        elif self.audio and lane.audio and lane.audio.env and not lane.table.in_place:
            self._environ[lane.audio.env] = str(self.audio.absolute())
        self._data = {} if lane.table.in_place else lane.data_paths()
        for one in lane.data:
            if (other := (data or {}).get(one.path)) is not None and one.env is not None:
                self._environ[one.env] = str(other.absolute())
                self._data = {
                    (other if p == lane.folder / lane.fill(one.path, {}) else p): n for p, n in self._data.items()
                }
        if root is not None and "PYTHONPATH" in self._environ:
            self._environ["PYTHONPATH"] = _moved(self._environ["PYTHONPATH"], lane.root, root)
        if lane.table.import_from is not None:
            self._environ = first_on_path(Path(self._fill(lane.table.import_from)), self._environ)
        self._cwd = self._root / self._fill(lane.table.cwd)
        if not self._cwd.is_dir():
            raise mismatch(f"[tool.harness.lanes.{lane.name}] cwd", f"no folder {self._cwd}", "the folder to run in")
        self._initial = self._keep_initial()
        self._before = {what: self._stamps(path) for what, path in self._paths().items()}
        self._limit_s = lane.time_limit(self._environ)
        fds: tuple[int, ...] = ()
        if hold is not None and lane.table.in_place:
            fds, self._environ[INHERITED] = (hold.descriptor,), str(hold.descriptor)
        if lane.is_watched:
            self._environ |= watching(self.run_dir, self.run_id, lane.table.watch, self._environ.get("PYTHONPATH", ""))
        command = [self._fill(word) for word in lane.table.command]
        if lane.table.command[0] == "{python}":
            command[:1] = python
        try:
            self._process = Process(
                command,
                self._environ,
                self._cwd,
                limit_s=self._limit_s + (EARLY_S if lane.table.in_place else 0.0),
                log=None if lane.table.in_place else self.run_dir / "lane.log",
                pass_fds=fds,
                on_line=self._hear,
            )
        except OSError as error:
            what = f"a command that does not start ({error.strerror or error}: {command[0]})"
            raise mismatch(f"[tool.harness.lanes.{lane.name}] command", what, "a program") from None

    def _fill(self, text: str) -> str:
        return self.lane.fill(text, self._words, self._environ)

    def _paths(self) -> dict[str, Path]:
        """Where the lane leaves its files; nothing for a report in its output."""
        outputs = {w: p for w, p in self.lane.outputs.items() if not (w == "report" and self.lane.report.output)}
        return {what: self._cwd / self._fill(path) for what, path in outputs.items()}

    def _stamps(self, path: Path) -> Stamps:
        return stamps(path, inside=not self.lane.table.in_place)

    def _keep_initial(self) -> str | None:
        if self.lane.table.initial_checkpoint is None:
            return None
        source = self._cwd / self._fill(self.lane.table.initial_checkpoint)
        name = "initial" if source.is_dir() else f"initial{source.suffix}"
        if trouble := (copied_folder if source.is_dir() else copied)(source, self.run_dir / name):
            where = f"[tool.harness.lanes.{self.lane.name}] initial_checkpoint"
            raise mismatch(where, f"{source}: {trouble}", "the checkpoint that training starts from")
        return name

    def _hear(self, line: str) -> None:
        if line.rstrip() == self.lane.report.begin:
            self._printed = [line.rstrip()]
        elif self._printed and ": " in line and len(self._printed) < REPORT_LINES:
            self._printed.append(line)
        self._on_line(line)

    @property
    def places(self) -> dict[str, Path]:
        """Where the files of a run in its own place lie, for one of which there is no record."""
        return self._paths() if self.lane.table.in_place else {}

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, signum: int) -> None:
        """Send a signal to the lane."""
        self._process.send(signum)

    def stop(self) -> None:
        """End the command and everything that it started: asked first, then killed. Safe to call at any time."""
        self._process.stop()

    def wait(self) -> LaneRun:
        """Wait until the lane has ended, stop it at its time limit, and collect what it left; again, nothing is left to
        do. Returns itself.

        An exception here (KeyboardInterrupt) stops the lane before it goes on. Raises EvidenceError."""
        if self._is_over:
            return self
        try:
            numeric_class = self._numeric_class() if self.lane.table.numerics == "bits" else "none"
            ended = self._process.wait()
        finally:
            self.stop()
        self.exit_code, self.seconds, self._is_over = ended.exit_code, ended.seconds, True
        self.report = "".join(f"{line}\n" for line in self._printed)
        if self.lane.table.in_place:
            self._leave_word(ended, numeric_class)
        else:
            with usable(self.run_dir):
                self._collect(ended, numeric_class)
        return self

    def _leave_word(self, ended: Ended, numeric_class: str) -> None:
        """The record of a run in its own place, and status and report for one that could write neither. A run directory
        that another run owns is not touched."""
        paths, word = self._paths(), None
        if "status" in paths and "report" in paths and self.lane.formats.keys() >= {"status", "report"}:
            spoke = own_status(paths["status"], self.run_id)
            if not spoke and ended.exit_code == NOT_ITS_TO_USE:
                return
            if ended.exit_code < 0 or not spoke:
                log = self.run_dir / "lane.log"
                word = Word(paths["status"], paths["report"], self.run_id, self._started_at, self._limit_s, log, ended,
                            self._printed)  # fmt: skip
                self.report = word.report
        try:
            with contextlib.nullcontext() if self._hold else owned(self.run_dir):
                if word is not None:
                    word.write()
                self._collect(ended, numeric_class)
        except (OSError, Busy) as error:
            reason = getattr(error, "strerror", None) or f"in use by {error}"
            self._on_line(f"FAILED {self.run_dir}: nothing could be written for the lane that ended ({reason})")

    def _collect(self, ended: Ended, numeric_class: str) -> None:
        """Keep what the lane left, and write down what was found of it. Raises OSError."""
        lane = self.lane
        outputs: dict[str, Any] = {}
        for what, path in self._paths().items():
            now_there = self._stamps(path)
            stale = left_over(self._before[what], now_there)
            written = bool(now_there) and not stale
            if lane.table.in_place:
                inside = path.is_relative_to(self.run_dir)
                copy: str | None = str(path.relative_to(self.run_dir) if inside else path)
                found = "a folder" if path.is_dir() else "a file"
                if not now_there:
                    copy, found = None, "no such file"
            else:
                copy, found = self._copy(what, path)
                if copy and any(stale):
                    found = f"{stale[0]}, which this run did not write"
            outputs[what] = {"path": str(path), "copy": copy, "written": written, "found": found}
        if lane.report.output:
            shutil.copyfile(self.run_dir / "lane.log", self.run_dir / COPIES["report"])
            there = self._trim_report(self.run_dir / COPIES["report"])
            found = "a report" if there else f"no line {lane.report.begin!r} in the output"
            copy = COPIES["report"] if there else None
            outputs["report"] = {"path": "the lane's output", "copy": copy, "written": there, "found": found}
        if lane.is_watched:
            outputs[FOLDER] = traces(self.run_dir)
        how = f"exited with {ended.exit_code}"
        if ended.timed_out:
            how = f"did not end within its time limit of {self._limit_s:g} s, and was stopped"
        known: dict[str, Any] = {"data": NO_DATA, "left": {}, "work": {}}
        if not lane.table.in_place:
            copies = {output["copy"] for what, output in outputs.items() if what != FOLDER} | {
                "lane.log",
                self._initial,
            }
            names = [file for name in filter(None, copies) for file in files_in(self.run_dir, name)]
            known["left"] = {name: file_sha256(self.run_dir / name) for name in sorted(names)}
            known["work"] = left_in(self.run_dir / WORK)
        if "manifest" not in lane.formats:
            manifest = outputs.get("manifest")
            copy = manifest["copy"] if manifest else None
            listed = (Path(manifest["path"]), self.run_dir / copy if copy else None) if manifest else None
            known["data"] = data_digest(listed, self.audio, self._cwd, self._data)
        settings = lane.settings()
        self._write(
            {
                **known,
                "state": "ended",
                "exit_code": ended.exit_code,
                "ended": how,
                "seconds": round(ended.seconds, 3),
                "outputs": outputs,
                "initial": self._initial,
                "numeric_class": numeric_class,
                "settings_digest": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
                "settings": settings,
                "environment": _environment(self._environ),
            }
        )

    def _copy(self, what: str, path: Path) -> tuple[str | None, str]:
        """The name of a file's copy in the run directory, if there is one, and what was found."""
        if what == "checkpoint" and path.is_dir():
            trouble = copied_folder(path, self.run_dir / COPIES[what])
            return (None, trouble) if trouble else (COPIES[what], "a folder")
        name = COPIES[what] + (path.suffix if what == "checkpoint" else "")
        if trouble := copied(path, self.run_dir / name):
            return None, trouble
        if what == "report" and not self._trim_report(self.run_dir / name):
            return None, f"no line {self.lane.report.begin!r}"
        return name, "a file"

    def _write(self, known: Mapping[str, Any]) -> None:
        """Write the run's record: what the table says, and what is known of the run."""
        lane = self.lane
        about = {
            "schema": SCHEMA,
            "lane": "experimental",
            "promotable": False,
            "name": lane.name,
            "default": lane.table.default,
            "run_id": self.run_id,
            "started_at": self._started_at,
            "formats": lane.formats,
            "fields": {"state": lane.status.state, "completed": lane.status.completed, "loss": lane.status.loss},
            "report_begin": lane.report.begin,
            "vocabulary": lane.table.vocabulary,
            "numerics": lane.table.numerics,
            "tensors": {"include": lane.table.tensors.include, "exclude": lane.table.tensors.exclude},
            "went_on": [f"{k}={v}" for k, v in sorted(lane.table.goes_on.items()) if self._environ.get(k) == v],
        }
        if lane.is_watched:
            about["on_purpose"] = lane.table.watch.on_purpose
        write_json(self.run_dir / RUN_FILE, {**about, **known})

    def _trim_report(self, path: Path) -> bool:
        """Keep of a file the last report in it: the line that begins it, and the `key: value` lines after that."""
        begin = self.lane.report.begin
        lines = path.read_bytes().decode("utf-8", "backslashreplace").splitlines()
        if begin not in lines:
            path.unlink()
            return False
        first = len(lines) - 1 - lines[::-1].index(begin)
        last = first + 1
        while last < len(lines) and re.match(r"[a-z][a-z0-9_]*: ", lines[last]):
            last += 1
        path.write_text("".join(f"{line}\n" for line in lines[first:last]), encoding="utf-8")
        return True


# Of these a result depends: in how many parts sums are added up, in which order a set is gone through, which kernels.
NUMERIC_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED",
                     "CUBLAS_WORKSPACE_CONFIG", "CUDA_VISIBLE_DEVICES")  # fmt: skip


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """What is known of what the lane computes with: of the machine, of the packages beside the harness, and of the
    variables of its process."""

    def packages() -> Iterator[tuple[str, str]]:
        for name in ("numpy", "torch", "jax", "tensorflow", "safetensors"):
            with contextlib.suppress(PackageNotFoundError):
                yield name, version(name)

    return {"python": platform.python_version(), "machine": platform.machine(), "packages": dict(packages()),
            "variables": {name: environ[name] for name in NUMERIC_VARIABLES if name in environ}}  # fmt: skip


def _moved(search: str, root: Path, checkout: Path) -> str:
    """The folders of a search path, those in the project taken from another checkout of it."""
    folders = [Path(folder) for folder in search.split(os.pathsep) if folder]
    moved = [checkout / folder.relative_to(root) if folder.is_relative_to(root) else folder for folder in folders]
    return os.pathsep.join(map(str, moved))

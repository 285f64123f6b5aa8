"""Lanes of other projects: the table in the user's pyproject.toml, one run of its command, and what that left.

    [tool.harness.lanes.NAME]
    command = ["{python}", "train.py"]
    checkpoint = "out/voice.pt"

A run copies what the lane left into a run directory, with `run.json` (harness/evidence/record.py), because
the next run of the lane overwrites it. What must be seen at once is written down there: how the process ended, which
files it wrote, and the digests of the data. The lane's own files are never altered or removed, and after a further run
the first one's are put back.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.base.files import EMPTY, NotOurs, kind_at, write_json
from harness.base.lock import LOCK_NAME
from harness.evidence.data import audio_files, data_digest
from harness.evidence.errors import mismatch
from harness.evidence.formats import HISTORY
from harness.evidence.record import RUN_FILE, SCHEMA
from harness.evidence.report import REPORT_TITLE
from harness.evidence.strict import JSON_LIMIT, parse_json, read_bytes
from harness.numerics.digest import file_sha256
from harness.runs.copies import copied
from harness.runs.footprint import SCHEMA as MARK_SCHEMA
from harness.runs.footprint import stamp
from harness.runs.process import Ended, Process

PAGE = "docs/gate-your-own-lane.md"
EARLIER = ("external_run.json", "external_run/1")  # the record of a run, before there was run.json
BLOCK = 1 << 16  # frames of audio in memory at once
COPIES = {"status": "train_status.json", "manifest": "voice_dataset_manifest.json", "report": "train_report.txt",
          "trace": "trace.jsonl", "checkpoint": "checkpoint"}  # fmt: skip
STEMS = ("checkpoint", "initial")  # of copies that keep their suffix
KEYS = ("command", "cwd", "env", *COPIES, "initial_checkpoint", "audio", "vocabulary", "time_limit", "code")
TAKEN = ("experimental", "reference")  # folders under baselines/ with a meaning of their own


class LaneTableError(Exception):
    """A table that is not understood. The message is one line: the key, what was found, what was expected."""


@dataclass(frozen=True)
class ExternalLane:
    """A table. Paths are as in the table: relative to `cwd`, which is relative to `root`; `{run_dir}` in them is a
    fresh folder for each run."""

    name: str
    root: Path
    command: tuple[str, ...]
    cwd: str = "."
    env: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)  # status, manifest, report, trace, checkpoint: where
    report_in_output: bool = False
    report_begin: str = REPORT_TITLE
    fields: Mapping[str, str] = field(
        default_factory=lambda: {"state": "status", "completed": "completed", "loss": "loss"}
    )
    initial_checkpoint: str | None = None
    audio: str | None = None
    audio_env: str | None = None
    vocabulary: int | None = None
    time_limit: float = 600.0
    code: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the command runs."""
        return self.root / self.cwd

    @property
    def code_paths(self) -> tuple[str, ...]:
        """The files and folders of `code`, relative to `root`."""
        return tuple(Path(os.path.normpath(Path(self.cwd) / path)).as_posix() for path in self.code)

    def settings(self) -> dict[str, str]:
        """What the table says of the computation, by name: it is part of a baseline's key."""
        settings = {"command": " ".join(self.command), "cwd": self.cwd}
        return settings | {f"env.{name}": value for name, value in sorted(self.env.items())}


def read_lanes(root: Path) -> dict[str, ExternalLane]:
    """The lanes of the pyproject.toml in `root`, by name. Raises LaneTableError."""
    path = root / "pyproject.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LaneTableError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    tool = document.get("tool", {})
    lanes = tool.get("harness", {}).get("lanes", {}) if isinstance(tool, dict) else {}
    if not isinstance(lanes, dict):
        raise LaneTableError(f"{path}: tool.harness.lanes: found {_found(lanes)}, expected a table for each lane")
    return {name: parse_lane(name, table, root) for name, table in lanes.items()}


def find_lane(root: Path, name: str) -> ExternalLane:
    """One lane of the pyproject.toml in `root`. Raises LaneTableError."""
    lanes = read_lanes(root)
    if name not in lanes:
        known = ", ".join(sorted(lanes)) or "none"
        raise LaneTableError(
            f"{root / 'pyproject.toml'}: found no [tool.harness.lanes.{name}]; there are: {known}; see {PAGE}"
        )
    return lanes[name]


def parse_lane(name: str, table: Any, root: Path) -> ExternalLane:
    """One table. Raises LaneTableError for anything in it that is not understood."""
    read = _Table(f"[tool.harness.lanes.{name}]", table)
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name) or name in TAKEN:
        raise read.error("", "this name", f"small letters, digits, _ and -, and none of {', '.join(TAKEN)}")
    read.known(KEYS)
    outputs: dict[str, str] = {}
    fields = {"state": "status", "completed": "completed", "loss": "loss"}
    begin, in_output = REPORT_TITLE, False
    for what in COPIES:
        if isinstance(table.get(what), dict) and what == "status":
            inner = _Table(f"{read.where} status", table[what])
            inner.known(("path", *fields))
            outputs[what] = inner.path("path", required=True) or ""
            fields |= {key: inner.text(key) or default for key, default in fields.items()}
        elif isinstance(table.get(what), dict) and what == "report":
            inner = _Table(f"{read.where} report", table[what])
            inner.known(("path", "output", "begin"))
            path, in_output = inner.path("path"), inner.flag("output")
            if (path is None) != in_output:
                raise inner.error("", "both path and output, or neither", 'path = "FILE", or output = true')
            begin = inner.text("begin") or REPORT_TITLE
            outputs[what] = path or "its output"
        elif (path := read.path(what)) is not None:
            outputs[what] = path
    audio, audio_env = None, None
    if isinstance(table.get("audio"), dict):
        inner = _Table(f"{read.where} audio", table["audio"])
        inner.known(("path", "env"))
        audio, audio_env = inner.path("path", required=True), inner.text("env")
    elif "audio" in table:
        audio = read.path("audio")
    command = read.texts("command", required=True)
    if audio is not None and audio_env is None and "{audio}" not in " ".join([*command, *read.dict("env").values()]):
        raise read.error(
            "audio", "no way to tell the lane another path", 'audio = {path = …, env = "NAME"}, or {audio} in command'
        )
    if not outputs:
        raise read.error("", "nothing that the lane leaves", f"at least one of {', '.join(COPIES)}")
    lane = ExternalLane(
        name=name,
        root=root,
        command=command,
        cwd=read.path("cwd") or ".",
        env=read.dict("env"),
        outputs=outputs,
        report_in_output=in_output,
        report_begin=begin,
        fields=fields,
        initial_checkpoint=read.path("initial_checkpoint"),
        audio=audio,
        audio_env=audio_env,
        vocabulary=read.whole("vocabulary", least=2),
        time_limit=read.number("time_limit") or 600.0,
        code=read.texts("code"),
    )
    if not lane.folder.is_dir():
        raise read.error("cwd", f"{lane.folder}, which is no folder", "the folder to run the command in")
    for path in lane.code:
        if not (lane.folder / path).exists():
            raise read.error("code", f"{path!r}, which is not there", f"files or folders, relative to {lane.folder}")
    return lane


class _Table:
    """Reads the keys of one table, each of one kind, or raises LaneTableError."""

    def __init__(self, where: str, table: Any) -> None:
        self.where, self.table = where, table
        if not isinstance(table, dict):
            raise self.error("", _found(table), "a table")

    def error(self, key: str, found: str, expected: str) -> LaneTableError:
        place = f"{self.where} {key}".strip()
        return LaneTableError(f"pyproject.toml: {place}: found {found}, expected {expected}; see {PAGE}")

    def known(self, keys: Sequence[str]) -> None:
        for key in self.table:
            if key not in keys:
                near = difflib.get_close_matches(key, keys, 1)
                raise self.error(key, "a key that is not known", f"{near[0]}?" if near else f"one of {', '.join(keys)}")

    def text(self, key: str, *, required: bool = False) -> str | None:
        value = self.table.get(key)
        if value is None and not required:
            return None
        if not isinstance(value, str) or not value or not value.isprintable():
            raise self.error(key, _found(value), "a text on one line, not empty")
        return value

    def path(self, key: str, *, required: bool = False) -> str | None:
        return self.text(key, required=required)

    def texts(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        value = self.table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
            raise self.error(key, _found(value), 'a list of texts, such as ["{python}", "train.py"]; there is no shell')
        if required and not value:
            raise self.error(key, "none", 'a list of texts, such as ["{python}", "train.py"]')
        return tuple(value)

    def dict(self, key: str) -> dict[str, str]:
        value = self.table.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise self.error(key, _found(value), 'a table of texts, such as {SEED = "1"}')
        return value

    def flag(self, key: str) -> bool:
        value = self.table.get(key, False)
        if not isinstance(value, bool):
            raise self.error(key, _found(value), "true or false")
        return value

    def whole(self, key: str, *, least: int) -> int | None:
        value = self.table.get(key)
        if value is None:
            return None
        if type(value) is not int or value < least:
            raise self.error(key, _found(value), f"a whole number of at least {least}")
        return value

    def number(self, key: str) -> float | None:
        value = self.table.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e7:
            raise self.error(key, _found(value), "a number of seconds above 0")
        return float(value)


def _found(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"


class ExternalProcess:
    """One run of an external lane.

    `run_dir`: where its evidence goes; a folder that is new, empty, or holds an earlier run of an external lane, which
    is then removed. `audio`: use this in place of the table's. `root`: run it from another checkout, with what is on
    PYTHONPATH in the project taken from there too. `numeric_class`: gives the numeric class of this machine, asked for
    while the lane runs. `on_line`: called in a thread with each line of its output. Raises EvidenceError for a command
    that does not start and a run directory that is somebody else's.
    """

    def __init__(
        self,
        lane: ExternalLane,
        run_dir: Path,
        *,
        audio: Path | None = None,
        root: Path | None = None,
        numeric_class: Callable[[], str] = lambda: "none",
        on_line: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.lane, self.run_dir, self.run_id = lane, run_dir.absolute(), uuid.uuid4().hex
        self._cwd = (root or lane.root) / lane.cwd
        self._numeric_class = numeric_class
        with _usable(self.run_dir):
            self._prepare()
        own = lane.folder / lane.audio if lane.audio else None
        self.audio = audio or own
        words = {"{python}": sys.executable, "{run_dir}": str(self._work), "{audio}": str(self.audio or "")}
        self._words = words
        environment = {**os.environ, "LANE_RUN_DIR": str(self._work), "LANE_RUN_ID": self.run_id}
        environment |= {name: _fill(value, words) for name, value in lane.env.items()}
        if lane.audio_env and self.audio:
            environment[lane.audio_env] = str(self.audio.absolute())
        if root is not None and "PYTHONPATH" in environment:
            environment["PYTHONPATH"] = _moved(environment["PYTHONPATH"], lane.root, root)
        if not self._cwd.is_dir():
            raise mismatch(f"[tool.harness.lanes.{lane.name}] cwd", f"no folder {self._cwd}", "the folder to run in")
        self._initial = self._keep_initial()
        self._before = {what: stamp(path) for what, path in self._paths().items()}
        command = [_fill(word, words) for word in lane.command]
        try:
            self._process = Process(
                command,
                environment,
                self._cwd,
                limit_s=lane.time_limit,
                log=self.run_dir / "lane.log",
                on_line=on_line,
            )
        except OSError as error:
            what = f"a command that does not start ({error.strerror or error}: {command[0]})"
            raise mismatch(f"[tool.harness.lanes.{lane.name}] command", what, "a program") from None

    def _prepare(self) -> None:
        """An empty run directory. Nothing is removed but an earlier run of an external lane, whose history stays."""
        if self.run_dir.exists() and any(path.name != LOCK_NAME for path in self.run_dir.iterdir()):
            _remove_run(self.run_dir)
        self._work = self.run_dir / "work"
        self._work.mkdir(parents=True, exist_ok=True)
        # First of all, so that a run that is killed leaves a folder that the next one may use.
        self._started_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._write({"state": "running"})

    def _write(self, known: Mapping[str, Any]) -> None:
        """Write the run's record: what the table says, and what is known of the run."""
        lane = self.lane
        about = {
            "schema": SCHEMA,
            "lane": "experimental",
            "promotable": False,
            "name": lane.name,
            "default": False,
            "run_id": self.run_id,
            "started_at": self._started_at,
            "formats": {},
            "fields": dict(lane.fields),
            "report_begin": lane.report_begin,
            "vocabulary": lane.vocabulary,
            "numerics": "bits",
        }
        write_json(self.run_dir / RUN_FILE, {**about, **known})

    def _paths(self) -> dict[str, Path]:
        """Where the lane leaves its files; nothing for a report in its output."""
        outputs = {w: p for w, p in self.lane.outputs.items() if not (w == "report" and self.lane.report_in_output)}
        return {what: self._cwd / _fill(path, self._words) for what, path in outputs.items()}

    def _keep_initial(self) -> str | None:
        if self.lane.initial_checkpoint is None:
            return None
        source = self._cwd / _fill(self.lane.initial_checkpoint, self._words)
        name = f"initial{source.suffix}"
        if trouble := copied(source, self.run_dir / name):
            where = f"[tool.harness.lanes.{self.lane.name}] initial_checkpoint"
            raise mismatch(where, f"{source}: {trouble}", "the checkpoint that training starts from")
        return name

    def wait(self) -> ExternalProcess:
        """Wait until the lane has ended, stop it at its time limit, and collect what it left. Returns itself."""
        try:
            numeric_class = self._numeric_class()
            ended = self._process.wait()
        finally:
            self.stop()
        with _usable(self.run_dir):
            self._collect(ended, numeric_class)
        return self

    def stop(self) -> None:
        """End the command and everything that it started: asked first, then killed. Safe to call at any time."""
        self._process.stop()

    def _collect(self, ended: Ended, numeric_class: str) -> None:
        """Copy what the lane left, and write down what was found of it."""
        lane = self.lane
        outputs: dict[str, Any] = {}
        for what, path in self._paths().items():
            name = COPIES[what] + (path.suffix if what == "checkpoint" else "")
            now, trouble = stamp(path), copied(path, self.run_dir / name)
            copy, found = (None, trouble) if trouble else (name, "a file")
            written = now is not None and now != self._before[what]
            if what == "report" and copy and not self._trim_report(self.run_dir / name):
                copy, found = None, f"no line {lane.report_begin!r}"
            outputs[what] = {"path": str(path), "copy": copy, "written": written, "found": found}
        if lane.report_in_output:
            shutil.copyfile(self.run_dir / "lane.log", self.run_dir / COPIES["report"])
            there = self._trim_report(self.run_dir / COPIES["report"])
            found = "a report" if there else f"no line {lane.report_begin!r} in the output"
            copy = COPIES["report"] if there else None
            outputs["report"] = {"path": "the lane's output", "copy": copy, "written": there, "found": found}
        how = f"exited with {ended.exit_code}"
        if ended.timed_out:
            how = f"did not end within its time limit of {lane.time_limit:g} s, and was stopped"
        copies = {output["copy"] for output in outputs.values()} | {"lane.log", self._initial}
        settings = lane.settings()
        manifest = outputs.get("manifest")
        copy = manifest["copy"] if manifest else None
        listed = (Path(manifest["path"]), self.run_dir / copy if copy else None) if manifest else None
        self._write(
            {
                "state": "ended",
                "exit_code": ended.exit_code,
                "ended": how,
                "seconds": round(ended.seconds, 3),
                "outputs": outputs,
                "initial": self._initial,
                "left": {name: file_sha256(self.run_dir / name) for name in sorted(filter(None, copies))},
                "work": _left(self._work),
                "data": data_digest(listed, self.audio, self._cwd),
                "numeric_class": numeric_class,
                "settings_digest": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
                "settings": settings,
                "environment": _environment(),
            }
        )

    def _trim_report(self, path: Path) -> bool:
        """Keep of a file the last report in it: the line that begins it, and the `key: value` lines after that."""
        lines = path.read_bytes().decode("utf-8", "backslashreplace").splitlines()
        if self.lane.report_begin not in lines:
            path.unlink()
            return False
        first = len(lines) - 1 - lines[::-1].index(self.lane.report_begin)
        last = first + 1
        while last < len(lines) and re.match(r"[a-z][a-z0-9_]*: ", lines[last]):
            last += 1
        path.write_text("".join(f"{line}\n" for line in lines[first:last]), encoding="utf-8")
        return True


@contextlib.contextmanager
def _usable(run_dir: Path) -> Iterator[None]:
    """What the run directory does not let be written is a fault of it, and not of the lane."""
    try:
        yield
    except OSError as error:
        what = f"something that cannot be used ({error.strerror or error})"
        expected = "a run directory that can be written to, as in --lane-run-dir=DIR"
        raise mismatch(error.filename or run_dir, what, expected) from None


def _remove_run(run_dir: Path) -> None:
    """Remove an earlier run of an external lane: what its record lists, by name and content, and what the session that
    judged it wrote. The record stays, for the next run to replace, and so does the history. Raises EvidenceError, with
    nothing removed, where anything else lies there; OSError."""
    expected = "an empty folder, or an earlier run of an external lane and nothing else"
    work = run_dir / "work"
    record = run_dir / (RUN_FILE if (run_dir / RUN_FILE).exists() else EARLIER[0])
    try:
        if kind_at(record) not in (SCHEMA, EARLIER[1]):
            raise mismatch(run_dir, f"files, and no {RUN_FILE} of a run", expected)
    except NotOurs as error:
        raise mismatch(record, f"something that {error.strerror}", expected) from None
    facts = parse_json(read_bytes(record, JSON_LIMIT, "the record of a run"), record)
    for path in sorted(run_dir.rglob("*")):
        is_folder = path.is_dir() and not path.is_symlink()
        if not is_folder and not (_is_left(path, work, facts) or _is_of_run(path, facts)):
            raise mismatch(path, "a file that the earlier run's record does not list as it is", expected)
    for path in run_dir.iterdir():  # but for the record, which the next run replaces, and the history
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (RUN_FILE, HISTORY, LOCK_NAME):
            path.unlink()


def _is_left(path: Path, work: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a file lies in the lane's own folder as its run left it. Of one that was killed nothing is listed."""
    if not path.is_relative_to(work):
        return False
    left = facts.get("work")
    return not isinstance(left, dict) or left.get(str(path.relative_to(work))) == (stamp(path) or [])[2:4]


def _left(work: Path) -> dict[str, list[int]]:
    """Size and time (ns) of each file in the lane's own folder, by name."""
    files = [path for path in sorted(work.rglob("*")) if path.is_symlink() or not path.is_dir()]
    return {str(path.relative_to(work)): status[2:4] for path in files if (status := stamp(path))}


def _is_of_run(path: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a file lies there because of the run with these facts. Raises OSError."""
    files, plain = facts.get("left", facts.get("files")), path.is_file() and not path.is_symlink()
    ended = "files" in facts or "left" in facts
    if not ended and plain and (path.name in ("lane.log", *COPIES.values()) or path.stem in STEMS):
        return True  # it was killed before it could list them; the folder was empty when it began
    if plain and isinstance(files, dict) and path.name in files:
        return bool(file_sha256(path) == files[path.name])
    try:
        known = (SCHEMA, EARLIER[1], "gates/1", "history/1", "page", "listen/1", "clip", "lock", MARK_SCHEMA, EMPTY)
        return kind_at(path) in known
    except NotOurs:
        return False


def changed_audio(source: Path, folder: Path) -> Path:
    """Other audio under the same names: each file backwards, its first half softer. Raises EvidenceError for a file
    that is neither audio that can be written nor an `.npy` array."""
    return _copied(source, folder, lambda index, file, target: _change(file, target / file.name))


def renamed_audio(source: Path, folder: Path) -> Path:
    """The same audio under other names, in the opposite order, with other times."""

    def rename(index: int, file: Path, target: Path) -> None:
        new = target / f"{9999 - index:04d}-renamed{file.suffix}"
        shutil.copyfile(file, new)
        os.utime(new, (1_000_000_000 + index, 1_000_000_000 + index))

    return _copied(source, folder, rename)


def _copied(source: Path, folder: Path, write: Callable[[int, Path, Path], None]) -> Path:
    files = audio_files(source)
    if not files:
        raise mismatch(source, "no file", "the audio that the lane trains on")
    for index, file in enumerate(files):
        target = folder / file.parent.relative_to(source) if source.is_dir() else folder
        target.mkdir(parents=True, exist_ok=True)
        write(index, file, target)
    return folder if source.is_dir() else next(path for path in folder.iterdir())


def _change(file: Path, target: Path) -> None:
    import numpy as np

    if file.suffix == ".npy":
        from harness.evidence import read_array

        changed = read_array(file)[::-1].copy()
        changed[: len(changed) // 2] //= np.array(2, changed.dtype)
        np.save(target, changed)
        return
    import soundfile

    try:
        with soundfile.SoundFile(file) as old:
            facts = (old.samplerate, old.channels, old.subtype, None, old.format)
            with soundfile.SoundFile(target, "w", *facts) as new:
                for end in range(old.frames, 0, -BLOCK):
                    old.seek(max(0, end - BLOCK))
                    block = old.read(min(end, BLOCK), dtype="int32", always_2d=True)[::-1]
                    block[: max(0, end - (old.frames + 1) // 2)] //= 2
                    new.write(block)
    except (RuntimeError, TypeError, ValueError) as error:  # soundfile's own errors are RuntimeErrors
        what = f"a file that is not changed here ({' '.join(str(error).split())[:100]})"
        raise mismatch(file, what, "audio (WAV, FLAC, OGG) or an .npy array") from None


def _environment() -> dict[str, Any]:
    """What is known of what the lane computes with: of the machine, and of the packages beside the harness."""

    def packages() -> Iterator[tuple[str, str]]:
        for name in ("numpy", "torch", "jax", "tensorflow", "safetensors"):
            with contextlib.suppress(PackageNotFoundError):
                yield name, version(name)

    return {"python": platform.python_version(), "machine": platform.machine(), "packages": dict(packages())}


def _fill(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _moved(search: str, root: Path, checkout: Path) -> str:
    """The folders of a search path, those in the project taken from another checkout of it."""
    folders = [Path(folder) for folder in search.split(os.pathsep) if folder]
    moved = [checkout / folder.relative_to(root) if folder.is_relative_to(root) else folder for folder in folders]
    return os.pathsep.join(map(str, moved))

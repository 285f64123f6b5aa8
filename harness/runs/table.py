"""A lane's table in the user's pyproject.toml, and what it says.

    [tool.harness.lanes.NAME]
    command = ["{python}", "train.py"]
    checkpoint = "out/voice.pt"

Paths and texts may hold `{python}`, `{run_dir}`, `{audio}`, `{root}` (the checkout that is run), `{here}` (where the
session was started) and `${NAME:-text}`: an environment variable, or a text where that is not set or empty.
docs/gate-your-own-lane.md has every key.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from harness.evidence import EvidenceError
from harness.evidence.errors import show
from harness.evidence.formats import FORMATS
from harness.evidence.on_purpose import unknown as unknown_purpose
from harness.evidence.report import REPORT_TITLE
from harness.evidence.strict import Line, Number, as_struct

PAGE = "docs/gate-your-own-lane.md"
TAKEN = ("reference",)  # folders under baselines/ with a meaning of their own
OUTPUTS = ("status", "manifest", "report", "tokens", "trace", "environment", "checkpoint")
WATCH = "watch"  # in the place of a path of `trace`
_VARIABLE = re.compile(r"\$\{(\w+)(?::-((?:[^{}$]|\{[a-z_]+\})*))?\}")

Alteration = Literal["lines", "uint8", "uint16", "uint32", "uint64"]
Seconds = Annotated[int, Meta(gt=0, lt=10_000_000)] | Annotated[float, Meta(gt=0, lt=1e7)]


class LaneTableError(Exception):
    """A table that is not understood. The message is one line: the key, what was found, what was expected."""


class StatusTable(Struct, forbid_unknown_fields=True):
    """`status`: where it lies, the (dotted) names of state and loss in it, and the word for a run that completed."""

    path: Line
    state: Line | None = None  # where a table names none: `status`, or if there is none, the exit code says it
    completed: Line = "completed"
    loss: Line = "loss"


class ReportTable(Struct, forbid_unknown_fields=True):
    """`report`: a file, or the lane's output, and the line that begins it."""

    path: Line | None = None
    output: bool = False
    begin: Line = REPORT_TITLE


class AudioTable(Struct, forbid_unknown_fields=True):
    """`audio`: a file or folder, and the variables that tell the lane another file and another folder."""

    path: Line
    env: Line | None = None
    folder_env: Line | None = None


class DataTable(Struct, forbid_unknown_fields=True):
    """One of `data`: a file or folder of any kind, the variable that tells the lane another one, and whether the gates
    may alter it (`lines`: every second line after the first is left out; `uint16` and the like: its items backwards),
    and rename the files in it."""

    path: Line
    env: Line | None = None
    alter: Alteration | None = None
    rename: bool = False


class TensorsTable(Struct, forbid_unknown_fields=True):
    """`tensors`: patterns for the names of the checkpoint's tensors that are judged; all, where it names none."""

    include: list[Line] = field(default_factory=list)
    exclude: list[Line] = field(default_factory=list)


class WatchTable(Struct, forbid_unknown_fields=True):
    """`watch`, of a lane with `trace = "watch"`: norms at every so many steps (None: by the model's size), patterns for
    the modules whose output is looked at, the size of a trace in MB, and what the program does on purpose
    (evidence/on_purpose.py)."""

    every: Annotated[int, Meta(ge=1)] | None = None
    modules: list[Line] = field(default_factory=list)
    limit_mb: Annotated[int, Meta(ge=1, le=1024)] = 64
    on_purpose: list[Line] = field(default_factory=list)


class Table(Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of a lane's table."""

    command: Annotated[list[Line], Meta(min_length=1)]
    default: bool = False
    cwd: Line = "."
    env: dict[str, str] = field(default_factory=dict)
    further_env: dict[str, str] = field(default_factory=dict)
    goes_on: dict[str, str] = field(default_factory=dict)
    variables: list[Line] = field(default_factory=list)
    import_from: Line | None = None
    run_dir: Line | None = None
    in_place: bool = False
    runs: Annotated[int, Meta(ge=1)] | None = None
    time_limit: Seconds | Line = 600.0
    status: Line | StatusTable | None = None
    manifest: Line | None = None
    report: Line | ReportTable | None = None
    tokens: Line | None = None
    trace: Line | None = None
    watch: WatchTable = field(default_factory=WatchTable)
    environment: Line | None = None
    checkpoint: Line | None = None
    tensors: TensorsTable = field(default_factory=TensorsTable)
    initial_checkpoint: Line | None = None
    promises: list[Literal["status", "manifest", "report", "tokens", "trace", "environment", "checkpoint"]] = field(
        default_factory=list
    )
    numerics: Literal["bits", "traced"] = "bits"
    audio: Line | AudioTable | None = None
    data: list[Line | DataTable] = field(default_factory=list)
    vocabulary: Annotated[int, Meta(ge=2)] | None = None
    code: list[Line] = field(default_factory=list)
    code_suffix: str = ""


@dataclass(frozen=True)
class Lane:
    """A table with its name and the folder of its pyproject.toml."""

    name: str
    root: Path
    table: Table

    @cached_property
    def outputs(self) -> dict[str, str]:
        """What the lane leaves, and where, as in the table; `its output` for a report in that."""
        found = {}
        for what in OUTPUTS:
            value = getattr(self.table, what) if (what, self.is_watched) != ("trace", True) else None
            if isinstance(value, StatusTable):
                found[what] = value.path
            elif isinstance(value, ReportTable):
                found[what] = value.path or "its output"
            elif value is not None:
                found[what] = value
        return found

    @property
    def is_watched(self) -> bool:
        """Whether the harness records the trace from outside."""
        return self.table.trace == WATCH

    @property
    def formats(self) -> dict[str, str]:
        """Of what the lane promises in a format of docs/evidence.md: which."""
        return {what: FORMATS[what] for what in self.table.promises}

    @property
    def status(self) -> StatusTable:
        """Where the status says what."""
        status = self.table.status
        return status if isinstance(status, StatusTable) else StatusTable(path=status or "none", state="status")

    @property
    def report(self) -> ReportTable:
        """Where the report lies, and how it begins."""
        report = self.table.report
        return report if isinstance(report, ReportTable) else ReportTable(path=report)

    @property
    def audio(self) -> AudioTable | None:
        """The audio, and how the lane is told another one."""
        audio = self.table.audio
        return AudioTable(path=audio) if isinstance(audio, str) else audio

    @property
    def data(self) -> list[DataTable]:
        """The data besides the audio."""
        return [DataTable(path=one) if isinstance(one, str) else one for one in self.table.data]

    def data_paths(self) -> dict[Path, bool]:
        """Where the data lie that a run trains on, and of each whether the names of its files are none of the lane's
        business (`rename`)."""
        return {self.folder / self.fill(one.path, {}): one.rename for one in self.data}

    @property
    def most_runs(self) -> int:
        """How many times the gates run it at most: a second time, with other data, with other names of the files."""
        altered = self.audio is not None or any(one.alter for one in self.data)
        renamed = self.audio is not None or any(one.rename for one in self.data)
        return 4 if renamed else 3 if altered else 2

    def fill(self, text: str, words: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> str:
        """A text of the table with its variables and words (`{python}`, …) filled in. What is filled in stays as it is,
        whatever braces it has."""
        known = {"{root}": str(self.root), "{here}": str(Path.cwd()), **words}
        kept: list[str] = []

        def keep(value: str) -> str:
            kept.append(value)
            return f"\0{len(kept) - 1}\0"

        def variable(found: re.Match[str]) -> str:
            value = environ.get(found[1])
            return keep(value) if value else found[2] or ""

        more = 1
        while more:  # an inner one first
            text, more = _VARIABLE.subn(variable, text)
        text = re.sub("|".join(map(re.escape, known)), lambda found: keep(known[found[0]]), text)
        return re.sub(r"\0(\d+)\0", lambda found: kept[int(found[1])], text)

    @property
    def folder(self) -> Path:
        """Where the command runs, in this checkout."""
        return self.root / self.fill(self.table.cwd, {})

    @property
    def code_paths(self) -> tuple[str, ...]:
        """The files and folders of `code`, relative to `root`."""
        folder = "." if Path(self.table.cwd).is_absolute() or "{" in self.table.cwd else self.table.cwd
        return tuple(Path(os.path.normpath(Path(folder) / path)).as_posix() for path in self.table.code)

    def audio_path(self) -> Path | None:
        """The audio that a run trains on, with the variables that are set now; None where the table names none."""
        return None if self.audio is None else self.folder / self.fill(self.audio.path, {})

    def run_directory(self) -> Path:
        """The run directory of a session that names none."""
        chosen = self.table.run_dir or f"artifacts/{self.name}"
        return (Path.cwd() if "${" in chosen else self.root) / self.fill(chosen, {})

    def time_limit(self, environ: Mapping[str, str] = os.environ) -> float:
        """Seconds after which a run is ended."""
        limit = self.table.time_limit
        if isinstance(limit, str):
            filled = (_seconds(self.fill(limit, {}, environ)), _seconds(self.fill(limit, {}, {})))
            limit = filled[0] or filled[1] or 600.0
        return limit

    def variables_set(self) -> dict[str, str]:
        """The environment variables that are the lane's settings, and set now."""
        return {
            name: value
            for name, value in sorted(os.environ.items())
            if value and any(fnmatch.fnmatchcase(name, pattern) for pattern in self.table.variables)
        }

    def settings(self) -> dict[str, str]:
        """What the table says of the computation, by name: it is part of a baseline's key."""
        settings = {"command": " ".join(self.table.command), "cwd": self.table.cwd}
        for key in ("include", "exclude"):
            if patterns := getattr(self.table.tensors, key):
                settings[f"tensors.{key}"] = " ".join(patterns)
        return settings | {f"env.{name}": value for name, value in sorted(self.table.env.items())}


def read_lanes(root: Path) -> dict[str, Lane]:
    """The lanes of the pyproject.toml in `root`, by name, in its order. Raises LaneTableError."""
    path = root / "pyproject.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LaneTableError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    tool = document.get("tool", {})
    harness = tool.get("harness", {}) if isinstance(tool, dict) else {}
    lanes = harness.get("lanes", {}) if isinstance(harness, dict) else {}
    if not isinstance(lanes, dict):
        raise LaneTableError(f"{path}: tool.harness.lanes: found {show(lanes)}, expected a table for each lane")
    found = {name: parse_lane(name, table, root) for name, table in lanes.items()}
    if len(marked := [name for name, lane in found.items() if lane.table.default]) > 1:
        raise LaneTableError(f"{path}: found {' and '.join(marked)} marked as default, expected one of them at most")
    return found


def find_lane(root: Path, name: str) -> Lane:
    """One lane of the pyproject.toml in `root`. Raises LaneTableError."""
    lanes = read_lanes(root)
    if name not in lanes:
        known = ", ".join(sorted(lanes)) or "none"
        raise LaneTableError(
            f"{root / 'pyproject.toml'}: found no [tool.harness.lanes.{name}]; there are: {known}; see {PAGE}"
        )
    return lanes[name]


def default_lane(root: Path) -> Lane | None:
    """The lane that is marked as default, or the only one; None where there is neither. Raises LaneTableError."""
    lanes = read_lanes(root)
    marked = [lane for lane in lanes.values() if lane.table.default] or [*lanes.values()]
    return marked[0] if len(marked) == 1 else None


def parse_lane(name: str, value: Any, root: Path) -> Lane:
    """One table. Raises LaneTableError for anything in it that is not understood."""
    where = f"[tool.harness.lanes.{name}]"

    def error(key: str, found: str, expected: str) -> LaneTableError:
        return LaneTableError(
            f"pyproject.toml: {f'{where} {key}'.strip()}: found {found}, expected {expected}; see {PAGE}"
        )

    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name) or name in TAKEN:
        raise error("", "this name", f"small letters, digits, _ and -, and none of {', '.join(TAKEN)}")
    inner = {"status": StatusTable, "report": ReportTable, "audio": AudioTable, "watch": WatchTable,
             "tensors": TensorsTable}  # fmt: skip
    for key, one, kind in (("", value, Table), *((f"{key}.", _get(value, key), kind) for key, kind in inner.items())):
        for unknown in one.keys() - {*kind.__struct_fields__} if isinstance(one, dict) else ():
            near = difflib.get_close_matches(unknown, kind.__struct_fields__, 1)
            expected = f"{near[0]}?" if near else f"one of {', '.join(kind.__struct_fields__)}"
            raise error(f"{key}{unknown}", "a key that is not known", expected)
    try:
        table = as_struct(value, Table, f"pyproject.toml: {where}")
    except EvidenceError as problem:
        raise LaneTableError(f"{problem}; see {PAGE}") from None
    lane = Lane(name, root, table)
    if isinstance(table.report, ReportTable) and (table.report.path is None) != table.report.output:
        raise error("report", "both path and output, or neither", 'path = "FILE", or output = true')
    if isinstance(table.time_limit, str) and _seconds(lane.fill(table.time_limit, {}, {})) is None:
        raise error("time_limit", show(table.time_limit), 'a number of seconds above 0, or "${NAME:-number}"')
    audio = lane.audio
    if audio and audio.env is None and "{audio}" not in " ".join([*table.command, *table.env.values()]):
        expected = 'audio = {path = …, env = "NAME"}, or {audio} in command'
        raise error("audio", "no way to tell the lane another path", expected)
    for given in lane.data:
        if (given.alter or given.rename) and given.env is None:
            expected = f'{{path = {given.path!r}, env = "NAME"}}, a variable that the lane reads'
            raise error("data", f"no way to tell the lane another {given.path!r}", expected)
    if "watch" in value and not lane.is_watched:
        raise error("watch", "a lane that is not watched", 'trace = "watch" beside it')
    for entry in table.watch.on_purpose:
        if (wrong := unknown_purpose(entry)) is not None:
            raise error("watch.on_purpose", *wrong)
    if not lane.outputs and not lane.is_watched:
        raise error("", "nothing that the lane leaves", f"at least one of {', '.join(OUTPUTS)}")
    if missing := [what for what in table.promises if what not in lane.outputs]:
        raise error("promises", f"{missing[0]}, which the table does not name", f'{missing[0]} = "PATH"')
    if not lane.folder.is_dir():
        raise error("cwd", f"{lane.folder}, which is no folder", "the folder to run the command in")
    for path, named in zip(lane.code_paths, table.code, strict=True):
        if not (root / path).exists():
            raise error("code", f"{named!r}, which is not there", f"files or folders, relative to {lane.folder}")
    return lane


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _seconds(text: str) -> Number | None:
    """A text as a number of seconds; None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < 1e7 else None

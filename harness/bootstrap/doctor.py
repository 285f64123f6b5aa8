"""python3 -m harness doctor: one line about each thing a run depends on, and what to do where something is off.

Changes nothing and installs nothing. What only the set-up interpreter knows, it is asked in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

from harness.base.git import GitFailed, git
from harness.base.project import HOME, checkout_here, first_on_path, project_folder
from harness.bootstrap.errors import SetupError
from harness.bootstrap.git_sync import check_expected_head
from harness.bootstrap.installed import ask_interpreter, installed_versions
from harness.bootstrap.plan import AUDIOCRAFT_VERSION, lacking, requirements
from harness.bootstrap.ready import PROJECT, find_ready
from harness.bootstrap.report import head_commit
from harness.bootstrap.settings import SetupSettings, read_settings
from harness.bootstrap.target import MINIMUM_PYTHON, choose_target
from harness.lane.settings import DEFAULT_THREADS, NUMERIC_MODES, is_shipped
from harness.numerics.modes import environment_pins
from harness.numerics.processor import NEEDS

TESTED_PYTHONS = ((3, 11), (3, 12), (3, 13))
MEMORY_NEEDED = 2 << 30
DISK_NEEDED = 1 << 30
DISK_NEEDED_WITH_TORCH = 8 << 30
NOTHING = "nothing"
PINS = (*NEEDS, "OMP_NUM_THREADS", "MKL_NUM_THREADS")

# Asked of the set-up interpreter: torch costs a second to import, and is not there on a bare machine.
_ASK_TORCH = """
import json, sys
answer = {}
try:
    import torch
    answer = {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability(),
              "threads": torch.get_num_threads(),
              "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
    from harness.numerics.battery import numeric_class
    from harness.numerics.modes import apply_mode
    apply_mode(sys.argv[1], int(sys.argv[2]))
    answer["numeric_class"] = numeric_class()
except Exception as error:
    answer["problem"] = f"{type(error).__name__}: {error}"
print(json.dumps(answer))
"""

_ASK_LANES = """
import json, sys
from pathlib import Path
from harness.runs.table import LaneTableError, read_lanes
try:
    answer = {name: lane.table.command[0].replace("{python}", sys.executable)
              for name, lane in read_lanes(Path(sys.argv[1])).items()}
except LaneTableError as error:
    answer = {"problem": str(error)}
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class Finding:
    """One line. ``todo`` is empty where all is well."""

    subject: str
    text: str
    todo: str = ""


def doctor(arguments: list[str]) -> int:
    """Print the findings. Returns 0 if nothing is off, 1 otherwise."""
    if arguments:
        raise SystemExit(f"doctor takes no arguments, found: {' '.join(arguments)}")
    off = 0
    environ, checkout = dict(os.environ), checkout_here()
    for finding in examine_project(environ, project_folder()) if checkout is None else examine(environ, checkout):
        print(as_line(finding), flush=True)
        off += bool(finding.todo)
    print(f"\n{off} of these need attention" if off else "\nnothing is off")
    return 1 if off else 0


def as_line(finding: Finding) -> str:
    """``ok  subject  text``, or ``OFF  subject  text. To do: …``."""
    mark = "OFF" if finding.todo else "ok "
    todo = f". To do: {finding.todo}" if finding.todo else ""
    return f"{mark} {finding.subject:<14} {' '.join(finding.text.split())}{todo}"


def examine(environ: dict[str, str], root: Path) -> list[Finding]:
    """Everything, in the order in which a run needs it."""
    findings = [_python()]
    settings = SetupSettings()
    try:
        settings = read_settings(environ, root)
        findings.append(Finding("settings", "the set-up's switches are understood"))
    except SetupError as error:
        findings.append(Finding("settings", error.cause, error.action))
    findings += _environment(environ, root, settings)
    return [*findings, _memory(), _disk(environ, root, settings), _git(root, settings)]


def examine_project(environ: dict[str, str], project: Path) -> list[Finding]:
    """The same in a project that has the package installed: what its gates need, and its lanes."""
    python = Path(sys.executable)
    missing = lacking(python, [line for line in requires(PROJECT) or [] if "extra ==" not in line], project)
    return [
        _python(),
        Finding("environment", f"{sys.prefix}, harness from {HOME}"),
        Finding("to install", missing or NOTHING, f"{sys.executable} -m pip install {missing!r}" if missing else ""),
        *_torch(_ask_torch(python, "native", "1", environ, project), "native"),
        *_lanes(python, environ, project),
        _git(project, SetupSettings()),
    ]


def _lanes(python: Path, environ: dict[str, str], project: Path) -> list[Finding]:
    answer = _ask([str(python), "-P", "-c", _ASK_LANES, str(project)], environ, project)
    if problem := answer.get("problem"):
        return [Finding("lanes", str(problem), f"mend {project / 'pyproject.toml'}")]
    found = []
    for name, program in answer.items():
        text, there = f"{name}: runs {program}", shutil.which(str(program), path=environ.get("PATH")) is not None
        found.append(Finding("lane", text + ("" if there else ", which is not there"), "" if there else "install it"))
    where = project / "pyproject.toml"
    return found or [Finding("lanes", f"{where} has none", "add [tool.harness.lanes.NAME]: docs/gate-your-own-lane.md")]


def _ask(words: list[str], environ: dict[str, str], folder: Path, timeout: float = 120) -> dict[str, object]:
    """The last line that a command prints, as JSON; {"problem": why} where there is none."""
    try:
        done = subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True, timeout=timeout)
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as reason:
        return {"problem": f"{shlex.join(words[:4])[:200]} gave no answer ({reason})"}


def _lane(python: Path, environ: dict[str, str], root: Path) -> Finding:
    """What the lane itself says, which looks at everything up to the training and begins nothing."""
    refusal = _ask([str(python), "-P", "-m", "harness.lane", "--check"], environ, root, timeout=600)
    if problem := refusal.get("problem"):
        return Finding("lane", str(problem), "report this")
    if not refusal:
        return Finding("lane", "a run would find its settings, run directory, recordings and model in order")
    text = f"{refusal['step']}: {refusal['code']}: {refusal['cause']}"
    if refusal["code"] == "model_not_cached" and not _is_offline(environ):
        return Finding("lane", f"{text}; a run fetches it first")
    return Finding("lane", text, str(refusal["action"]))


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] < MINIMUM_PYTHON:
        return Finding("Python", version, "use Python 3.11, 3.12 or 3.13")
    tested = ", ".join(".".join(str(part) for part in pair) for pair in TESTED_PYTHONS)
    note = "" if sys.version_info[:2] in TESTED_PYTHONS else f" (tested are {tested})"
    return Finding("Python", f"{version}{note}, {sys.executable}")


def _environment(environ: dict[str, str], root: Path, settings: SetupSettings) -> list[Finding]:
    target = choose_target(environ, root)
    where = f"{target.prefix} ({'the checkout' if target.is_own else target.owner or target.kind})"
    child, bootstrap = first_on_path(root, environ), "python3 -m harness bootstrap"
    if (ready := find_ready(root, target, settings)) is not None:
        child = ready.child_environ(environ)
        findings = [Finding("environment", f"{where}, set up; audiocraft: {ready.audiocraft_import}")]
        findings.append(Finding("to install", NOTHING))
    elif not target.python.exists():
        findings = [Finding("environment", f"{where} does not exist", bootstrap)]
        findings.append(Finding("to install", f"everything in {root / 'pyproject.toml'}, torch and audiocraft"))
    elif missing := _missing(target.python, root, settings):
        findings = [Finding("environment", f"{where}, not set up", bootstrap), Finding("to install", missing)]
    else:
        findings = [Finding("environment", f"{where}, complete; no set-up of it is recorded")]
        findings.append(Finding("to install", NOTHING))
    python = target.python if target.python.exists() else Path(sys.executable)
    return [*findings, *_computing(python, child, root), _lane(python, child, root)]


def _missing(python: Path, root: Path, settings: SetupSettings) -> str:
    """What the interpreter lacks first, or ""."""
    try:
        audiocraft = installed_versions(ask_interpreter(python).folders).get("audiocraft")
    except SetupError as error:
        return error.cause
    if missing := lacking(python, requirements(root, tests=False), root):
        return missing
    wanted = settings.audiocraft_source is None and audiocraft != AUDIOCRAFT_VERSION
    return f"audiocraft=={AUDIOCRAFT_VERSION}" if wanted else ""


def _computing(python: Path, environ: dict[str, str], root: Path) -> list[Finding]:
    # Where a value is not understood, the lane says so below; here any will do.
    mode = environ.get("LANE_NUMERICS", "")
    asked = environ.get("LANE_THREADS", "")
    mode = mode if mode in NUMERIC_MODES else "universal" if is_shipped(environ.get("LANE_MODEL", "")) else "native"
    threads = asked if asked.isdigit() and 0 < int(asked) <= 1024 else str(DEFAULT_THREADS)
    pinned = environ | environment_pins(mode, int(threads))
    findings = _torch(_ask_torch(python, mode, threads, pinned, root), mode)
    set_here = [f"{name}={environ[name]}" for name in PINS if environ.get(name)]
    text = ", ".join(set_here) + " (set here; the lane's own come on top)" if set_here else "none set here"
    findings.append(Finding("pins", text))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    todo = "" if int(threads) <= cores else f"set LANE_THREADS between 1 and {cores}"
    findings.append(Finding("threads", f"{threads} for the lane, {cores} cores usable", todo))
    return findings


def _torch(answer: dict[str, object], mode: str) -> list[Finding]:
    problem = str(answer.get("problem", "unknown"))
    if "torch" not in answer:
        todo = "install torch (in a checkout: python3 -m harness bootstrap)"
        return [Finding("torch", problem, todo), Finding("numeric class", "unknown without torch", "see torch")]
    gpu = f"GPU: {answer['gpu']}" if answer["gpu"] else "no GPU, which is fine"
    name = answer.get("numeric_class")
    second = Finding("numeric class", f"{name} ({mode} mode)" if name else problem, "" if name else "report this")
    return [Finding("torch", f"{answer['torch']}, {answer['capability']}, {gpu}"), second]


def _ask_torch(python: Path, mode: str, threads: str, environ: dict[str, str], root: Path) -> dict[str, object]:
    return _ask([str(python), "-P", "-c", _ASK_TORCH, mode, threads], environ, root)


def _memory() -> Finding:
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return Finding("memory", "unknown on this system")
    enough = available >= MEMORY_NEEDED
    return Finding("memory", f"{_gib(available)} available", "" if enough else f"free {_gib(MEMORY_NEEDED)}")


def _disk(environ: dict[str, str], root: Path, settings: SetupSettings) -> Finding:
    free = shutil.disk_usage(root).free
    ready = find_ready(root, choose_target(environ, root), settings) is not None
    needed = DISK_NEEDED if ready else DISK_NEEDED_WITH_TORCH
    why = "a run" if ready else "the set-up, if torch comes with CUDA"
    return Finding("disk", f"{_gib(free)} free", "" if free >= needed else f"free {_gib(needed)} for {why}")


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


def _is_offline(environ: dict[str, str]) -> bool:
    return environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")


def _git(root: Path, settings: SetupSettings) -> Finding:
    head = head_commit(root)
    if head == "none":
        return Finding("git head", "no git commit here; reports will not name one")
    text = head
    with contextlib.suppress(GitFailed):
        changed = git(root, "status", "--porcelain", "--untracked-files=no", timeout_s=20.0).strip()
        text += ", with uncommitted changes" if changed else ", clean"
    try:
        if settings.expected_head:
            check_expected_head(root, settings.expected_head)
    except SetupError as error:
        return Finding("git head", error.cause, error.action)
    return Finding("git head", text)

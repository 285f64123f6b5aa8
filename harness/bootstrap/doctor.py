"""python3 -m harness doctor: one line about each thing a run depends on, and what to do where something is off.

Changes nothing and installs nothing. What only the set-up interpreter knows, it is asked in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from harness.bootstrap.commands import ROOT
from harness.bootstrap.errors import SetupError
from harness.bootstrap.git_sync import check_expected_head
from harness.bootstrap.installed import ask_interpreter, editable_source, installed_versions
from harness.bootstrap.plan import PROJECT, make_plan, read_requirements
from harness.bootstrap.report import DEFAULT_AUDIO_PATH, LFS_POINTER_START, head_commit
from harness.bootstrap.settings import SetupSettings, read_settings
from harness.bootstrap.setup import find_ready, read_state
from harness.bootstrap.target import MINIMUM_PYTHON, choose_target
from harness.lane.settings import DEFAULT_THREADS, NUMERIC_MODES, is_shipped
from harness.numerics.modes import environment_pins
from harness.numerics.processor import NEEDS

TESTED_PYTHONS = ((3, 11), (3, 12), (3, 13))
SMALLEST_AUDIO = 5_000_000
MEMORY_NEEDED = 2 << 30
DISK_NEEDED = 1 << 30
DISK_NEEDED_WITH_TORCH = 8 << 30
NOTHING = "nothing"
# The step in which the lane would stop, and the line that would tell the same.
TOLD_BY_LANE = {"preflight": "audio", "load_model": "model"}
HUB = "https://huggingface.co"
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


@dataclass(frozen=True)
class Finding:
    """One line. ``todo`` is empty where all is well."""

    subject: str
    text: str
    todo: str = ""


def doctor(arguments: list[str]) -> int:
    """Print the findings. Returns 0 if nothing is off, 1 otherwise."""
    if arguments:
        print(f"doctor takes no arguments, found: {' '.join(arguments)}", file=sys.stderr)
        return 64
    off = 0
    for finding in examine(dict(os.environ), ROOT):
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
    findings += [_memory(), _disk(environ, root, settings), _audio(environ, root), _model(environ, root)]
    findings += [_hub(environ, root), _git(root, settings)]
    told = next(finding.text.partition(":")[0] for finding in findings if finding.subject == "lane")
    return [finding for finding in findings if finding.subject != TOLD_BY_LANE.get(told)]


def _lane(python: Path, environ: dict[str, str], root: Path) -> Finding:
    """What the lane itself says, which looks at everything up to the training and begins nothing."""
    try:
        words = [str(python), "-m", "harness.lane", "--check"]
        done = subprocess.run(words, cwd=root, env=environ, capture_output=True, text=True, timeout=600)
        refusal = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as reason:
        return Finding("lane", f"python -m harness.lane --check gave no answer ({reason})", "report this")
    if not refusal:
        return Finding("lane", "a run would find its settings, run directory, recordings and model in order")
    text = f"{refusal['step']}: {refusal['code']}: {refusal['cause']}"
    if refusal["code"] == "model_not_cached" and not _is_offline(environ):
        return Finding("lane", f"{text}; a run fetches it first")
    return Finding("lane", text, refusal["action"])


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
    ready = find_ready(root, target, settings)
    if ready is not None:
        text = f"{where}, set up; audiocraft: {ready.audiocraft_import}"
        findings = [Finding("environment", text), Finding("to install", NOTHING)]
        child = ready.child_environ(environ)
    elif target.is_own and not target.python.exists():
        findings = [
            Finding("environment", f"{where} does not exist", "python3 -m harness bootstrap"),
            Finding("to install", f"everything in {root / 'pyproject.toml'}, torch and audiocraft"),
        ]
        child = environ
    else:
        lacking = _to_install(root, target.python, target.is_own, target.prefix, settings)
        if lacking.text == NOTHING:
            findings = [Finding("environment", f"{where}, complete; no set-up of it is recorded"), lacking]
        else:
            findings = [Finding("environment", f"{where}, not set up", "python3 -m harness bootstrap"), lacking]
        child = environ
    python = target.python if target.python.exists() else Path(sys.executable)
    return [*findings, *_computing(python, child, root), _lane(python, child, root)]


def _to_install(root: Path, python: Path, is_own: bool, prefix: Path, settings: SetupSettings) -> Finding:
    try:
        folders = ask_interpreter(python).folders
        have = installed_versions(folders)
        plan = make_plan(
            read_requirements(root / "pyproject.toml"),
            have,
            is_own=is_own,
            project_is_linked=editable_source(folders, PROJECT) == root,
            vanished=tuple(sorted(set(read_state(prefix).get("installed", {})) - set(have) - {"audiocraft"})),
            audiocraft="package" if settings.audiocraft_source is None else "pythonpath",
        )
    except SetupError as error:
        return Finding("to install", error.cause, error.action)
    if not plan.actions:
        return Finding("to install", NOTHING)
    return Finding("to install", "; ".join(action.words for action in plan.actions))


def _computing(python: Path, environ: dict[str, str], root: Path) -> list[Finding]:
    # Where a value is not understood, the lane says so below; here any will do.
    mode = environ.get("LANE_NUMERICS", "")
    asked = environ.get("LANE_THREADS", "")
    mode = mode if mode in NUMERIC_MODES else "universal" if is_shipped(environ.get("LANE_MODEL", "")) else "native"
    threads = asked if asked.isdigit() and 0 < int(asked) <= 1024 else str(DEFAULT_THREADS)
    pinned = environ | environment_pins(mode, int(threads))
    answer = _ask_torch(python, mode, threads, pinned, root)
    set_here = [f"{name}={environ[name]}" for name in PINS if environ.get(name)]
    findings = []
    if "torch" in answer:
        gpu = f"GPU: {answer['gpu']}" if answer["gpu"] else "no GPU, which is fine"
        findings.append(Finding("torch", f"{answer['torch']}, {answer['capability']}, {gpu}"))
    else:
        findings.append(Finding("torch", str(answer.get("problem", "absent")), "python3 -m harness bootstrap"))
    if "numeric_class" in answer:
        findings.append(Finding("numeric class", f"{answer['numeric_class']} ({mode} mode)"))
    else:
        problem = str(answer.get("problem", "unknown without torch")) if "torch" in answer else "unknown without torch"
        findings.append(Finding("numeric class", problem, "see torch" if "torch" not in answer else "report this"))
    text = ", ".join(set_here) + " (set here; the lane's own come on top)" if set_here else "none set here"
    findings.append(Finding("pins", text))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    todo = "" if int(threads) <= cores else f"set LANE_THREADS between 1 and {cores}"
    findings.append(Finding("threads", f"{threads} for the lane, {cores} cores usable", todo))
    return findings


def _ask_torch(python: Path, mode: str, threads: str, environ: dict[str, str], root: Path) -> dict[str, object]:
    try:
        words = [str(python), "-c", _ASK_TORCH, mode, threads]
        done = subprocess.run(words, cwd=root, env=environ, capture_output=True, text=True, timeout=120)
        answer = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as reason:
        return {"problem": str(reason)}
    return dict(answer)


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


def _audio(environ: dict[str, str], root: Path) -> Finding:
    path = root / (environ.get("AUDIO_PATH") or DEFAULT_AUDIO_PATH)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER_START)) == LFS_POINTER_START
    except OSError as reason:
        return Finding("audio", f"{path}: {reason.strerror}", "set AUDIO_PATH to a recording, or put one there")
    if is_pointer:
        return Finding("audio", f"{path} is a git-LFS pointer", "git lfs pull")
    if size <= SMALLEST_AUDIO:
        return Finding("audio", f"{path}: {size:,} bytes", f"use a recording of more than {SMALLEST_AUDIO:,} bytes")
    return Finding("audio", f"{path}, {size:,} bytes")


def _is_on_disk(model: str, root: Path) -> bool:
    return (root / model).is_dir()


def _model(environ: dict[str, str], root: Path) -> Finding:
    model = environ.get("LANE_MODEL") or "data/musicgen_nano"
    if not _is_on_disk(model, root):
        if environ.get("LANE_MODEL") and model.count("/") <= 1 and not model.startswith("data/"):
            return Finding("model", f"{model}, from the hub")
        return Finding("model", f"{root / model} does not exist", "set LANE_MODEL to a model, or check out all files")
    missing = [n for n in ("state_dict.bin", "compression_state_dict.bin") if not (root / model / n).is_file()]
    if missing:
        return Finding("model", f"{root / model} lacks {', '.join(missing)}", "check out all files (git status)")
    return Finding("model", str(root / model))


def _is_offline(environ: dict[str, str]) -> bool:
    return environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")


def _hub(environ: dict[str, str], root: Path) -> Finding:
    needed = not _is_on_disk(environ.get("LANE_MODEL") or "data/musicgen_nano", root)
    if _is_offline(environ):
        return Finding("hub access", "switched off by HF_HUB_OFFLINE", "unset HF_HUB_OFFLINE" if needed else "")
    address = environ.get("HF_ENDPOINT") or HUB
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=5):
            return Finding("hub access", f"{address} answers")
    except (OSError, ValueError) as reason:
        text = f"{address} does not answer ({getattr(reason, 'reason', reason)})"
    return Finding(
        "hub access",
        text + ("" if needed else "; a model on disk needs none"),
        "connect, or set LANE_MODEL to a folder" if needed else "",
    )


def _git(root: Path, settings: SetupSettings) -> Finding:
    head = head_commit(root)
    if head == "none":
        return Finding("git head", "no git commit here; reports will not name one")
    text = head
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        words = ["git", "--no-optional-locks", "status", "--porcelain", "--untracked-files=no"]
        done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=20)
        text += ", with uncommitted changes" if done.stdout.strip() else ", clean"
    try:
        if settings.expected_head:
            check_expected_head(root, settings.expected_head)
    except SetupError as error:
        return Finding("git head", error.cause, error.action)
    return Finding("git head", text)

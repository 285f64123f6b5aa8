"""The set-up itself: choose, plan, say, do, remember. A second call compares fingerprints and is done."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.files import write_json
from harness.bootstrap.errors import SetupError
from harness.bootstrap.installed import ask_interpreter, editable_source, installed_versions, metadata_folders
from harness.bootstrap.report import run_directory
from harness.bootstrap.settings import SetupSettings
from harness.bootstrap.steps import SetupLog, run_command
from harness.bootstrap.target import MINIMUM_PYTHON, Target, choose_target
from harness.bootstrap.versions import version_key

STATE_FILE = "voice-lane-setup.json"
STATE_SCHEMA = "voice_lane_setup/1"
# Raise it when a set-up made by an older version of these modules is no longer good enough.
BOOTSTRAP_VERSION = 1

# That it works is seen by importing it, in the way the lane does. The last line is where it came from.
_IMPORT_CHECK = """
from harness.lane.audiocraft_import import prepare_audiocraft
prepare_audiocraft(transformers=False)
from audiocraft.models import musicgen
print(musicgen.__file__)
"""


@dataclass(frozen=True)
class Setup:
    """An environment that is ready: its interpreter, and what to add to the environment of what runs in it."""

    python: Path
    prefix: Path
    audiocraft_import: str
    audiocraft_source: str | None
    was_ready: bool

    def child_environ(self, environ: dict[str, str]) -> dict[str, str]:
        """``environ`` for a child: says how audiocraft is imported, and makes the way over PYTHONPATH work."""
        child = {**environ, "AUDIOCRAFT_IMPORT": self.audiocraft_import}
        if self.audiocraft_import == "pythonpath" and self.audiocraft_source:
            paths = [self.audiocraft_source, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
            child["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
        return child


def read_state(prefix: Path) -> dict[str, Any]:
    """What the last set-up of this environment left behind; empty if there was none that can be read."""
    try:
        state = json.loads((prefix / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) and state.get("schema") == STATE_SCHEMA else {}


def fingerprint(root: Path, python: Path, folders: tuple[Path, ...], settings: SetupSettings) -> str:
    """A digest of everything that decides whether a set-up is still good.

    The project's declaration, this code's version, the checkout, the interpreter, each installed package, and how
    audiocraft is to be imported. Raises OSError where one of them cannot be read.
    """
    binary = python.resolve(strict=True)
    stat = binary.stat()
    parts = {
        "bootstrap": BOOTSTRAP_VERSION,
        "pyproject": _pyproject_digest(root),
        "root": str(root),
        "python": [str(binary), stat.st_size, stat.st_mtime_ns],
        "installed": sorted(str(folder) for _, folder in metadata_folders(folders).values()),
        "project": str(editable_source(folders, "voice-lane-harness")),
        "audiocraft": [settings.audiocraft_editable, str(settings.audiocraft_source)],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _pyproject_digest(root: Path) -> str:
    return hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()


def find_ready(root: Path, target: Target, settings: SetupSettings) -> Setup | None:
    """The set-up of ``target``, if it was made earlier and nothing has changed since. Starts no process."""
    state = read_state(target.prefix)
    try:
        folders = tuple(Path(folder) for folder in state["folders"])
        if fingerprint(root, target.python, folders, settings) != state["fingerprint"]:
            return None
        audiocraft = state["audiocraft"]
        return Setup(target.python, target.prefix, audiocraft["import"], audiocraft["source"], was_ready=True)
    except (KeyError, TypeError, OSError):
        return None


def set_up(root: Path, environ: dict[str, str], settings: SetupSettings, log: SetupLog) -> Setup:
    """Make the environment ready and return it; at once if it is ready already. Raises SetupError."""
    target = choose_target(environ, root)
    if ready := find_ready(root, target, settings):
        return ready
    with _only_one(root):
        # Another call may have done it while this one waited.
        if ready := find_ready(root, target, settings):
            return ready
        return _change(root, environ, settings, target, log)


def _change(root: Path, environ: dict[str, str], settings: SetupSettings, target: Target, log: SetupLog) -> Setup:
    # What only this set-up needs is imported here: the second call does not pay for it.
    from harness.bootstrap import pip
    from harness.bootstrap.plan import EXTRA, PROJECT, constraints, make_plan, read_requirements

    started = time.monotonic()
    where = {"own": "the checkout's .venv", "active": "the active environment", "lent": f"{target.owner}: its Python"}
    print(f"Set-up: {where[target.kind]} ({target.prefix})", flush=True)
    if target.is_own:
        _make_environment(target, root, environ, log)
    interpreter = ask_interpreter(target.python)
    if interpreter.version[:2] < MINIMUM_PYTHON:
        found = ".".join(str(part) for part in interpreter.version)
        raise SetupError(
            "python",
            f"{target.python} is Python {found}; this project needs 3.11 or later",
            "use another environment (deactivate this one), or delete .venv if it is the checkout's own",
            blocked=True,
        )
    pip.ensure_pip(target.python, settings.pip_bootstrap_url, log, root=root, environ=environ)

    mode = _audiocraft_mode(settings, interpreter.folders)
    before = installed_versions(interpreter.folders)
    state = read_state(target.prefix)
    plan = make_plan(
        read_requirements(root / "pyproject.toml"),
        before,
        is_own=target.is_own,
        project_is_linked=editable_source(interpreter.folders, PROJECT) == root
        # The link carries a copy of what was declared, entry points for instance.
        and state.get("pyproject", _pyproject_digest(root)) == _pyproject_digest(root),
        vanished=tuple(sorted(set(state.get("installed", {})) - set(before) - {"audiocraft"})),
        audiocraft=mode,
        audiocraft_source=settings.audiocraft_source,
    )
    if plan.left_alone:
        print(f"  stays as it is: {', '.join(plan.left_alone)}", flush=True)
    for action in plan.actions:
        print(f"  will {action.words}", flush=True)
    if not plan.actions:
        print("  nothing has to be installed", flush=True)

    for number, action in enumerate(plan.actions, start=1):
        print(f"  [{number}/{len(plan.actions)}] {action.step}", flush=True)
        arguments: list[str | Path] = ["install", action.package]
        if action.step == "project":
            arguments = ["install", "--editable", f"{root}[{EXTRA}]"]
        elif action.step == "audiocraft" and settings.audiocraft_source is not None:
            arguments = ["install", "--no-deps", "--no-build-isolation", "--editable", settings.audiocraft_source]
        elif action.step == "audiocraft":
            arguments = ["install", "--no-deps", action.package]
        with tempfile.TemporaryDirectory() as folder:
            if action.step != "audiocraft":
                path = Path(folder) / "constraints.txt"
                now = {
                    name: version
                    for name, version in installed_versions(interpreter.folders).items()
                    if version_key(version) is not None
                }
                path.write_text(constraints(now, is_own=target.is_own), encoding="utf-8")
                arguments += ["--constraint", path]
            done = pip.run_pip(target.python, arguments, log, root=root, environ=environ)
        if done.code != 0 or done.gave_up:
            if action.step == "audiocraft" and mode == "editable" and settings.audiocraft_editable == "auto":
                print("  the editable install did not work; importing the source over PYTHONPATH", flush=True)
                mode = "pythonpath"
                continue
            raise pip.pip_failure(done, action.step, action.package)

    source = str(settings.audiocraft_source) if settings.audiocraft_source else None
    if (
        mode == "editable"
        and settings.audiocraft_editable == "auto"
        and _import_problem(Setup(target.python, target.prefix, "editable", source, False), root, environ, log)
    ):
        print("  the editable install does not import; importing the source over PYTHONPATH", flush=True)
        mode = "pythonpath"
    ways = {"package": "installed", "editable": "editable", "pythonpath": "pythonpath"}
    setup = Setup(target.python, target.prefix, ways[mode], source, was_ready=False)
    if problem := _import_problem(setup, root, environ, log):
        raise problem

    _remember(setup, root, interpreter.folders, settings)
    SetupLog.remove(run_directory(root, environ))
    after = installed_versions(interpreter.folders)
    added = [name for name, version in after.items() if before.get(name) != version]
    if added:
        print(f"  {len(added)} packages are new", flush=True)
    print(f"Set-up done in {time.monotonic() - started:.1f} s; audiocraft: {setup.audiocraft_import}\n", flush=True)
    return setup


def _make_environment(target: Target, root: Path, environ: dict[str, str], log: SetupLog) -> None:
    """Create ``.venv``, or complete one that an interrupted set-up left behind; nothing in it is deleted."""
    if target.python.exists():
        return
    print(f"  will create {target.prefix} with Python {'.'.join(str(n) for n in sys.version_info[:3])}", flush=True)
    # pip comes later: where Debian has split ensurepip off, a venv with pip cannot be made, and one without can.
    done = run_command([sys.executable, "-m", "venv", "--without-pip", target.prefix], log, cwd=root, environ=environ)
    if done.code != 0:
        said = " ".join(line.strip() for line in done.stderr + done.stdout if line.strip())[-200:]
        raise SetupError(
            "environment",
            f"a virtual environment could not be made in {target.prefix}: {said or f'exit code {done.code}'}",
            "install Python's venv module (Debian: apt install python3-venv), or activate an environment of your own",
            command=done.command,
        )


def _audiocraft_mode(settings: SetupSettings, folders: tuple[Path, ...]) -> str:
    if settings.audiocraft_source is None:
        return "package"
    return "pythonpath" if settings.audiocraft_editable == "0" else "editable"


def _import_problem(setup: Setup, root: Path, environ: dict[str, str], log: SetupLog) -> SetupError | None:
    """Import audiocraft as the lane does; says what is wrong, also when it came from somewhere else than asked."""
    done = run_command([setup.python, "-c", _IMPORT_CHECK], log, cwd=root, environ=setup.child_environ(environ))
    lines = [line.strip() for line in done.stderr if line.strip()]
    if done.code != 0:
        return SetupError(
            "import_check",
            f"audiocraft does not import ({setup.audiocraft_import}): {lines[-1] if lines else 'no message'}",
            "read the log named above; deleting .venv and running again makes a fresh environment",
            command="import audiocraft.models.musicgen",
        )
    origin = Path(done.stdout[-1].strip())
    if setup.audiocraft_source and not origin.is_relative_to(setup.audiocraft_source):
        return SetupError(
            "import_check",
            f"audiocraft was to come from {setup.audiocraft_source}, and came from {origin}",
            "remove the other audiocraft from PYTHONPATH or from the environment, then run again",
            command="import audiocraft.models.musicgen",
        )
    return None


def _remember(setup: Setup, root: Path, folders: tuple[Path, ...], settings: SetupSettings) -> None:
    versions = installed_versions(folders)
    state = {
        "schema": STATE_SCHEMA,
        "fingerprint": fingerprint(root, setup.python, folders, settings),
        "pyproject": _pyproject_digest(root),
        "folders": [str(folder) for folder in folders],
        "installed": versions,
        "audiocraft": {
            "import": setup.audiocraft_import,
            "source": setup.audiocraft_source,
            "version": versions.get("audiocraft"),
        },
    }
    try:
        write_json(setup.prefix / STATE_FILE, state)
    except OSError as reason:
        print(f"  the set-up cannot be remembered ({reason}); the next call will look again", file=sys.stderr)


@contextlib.contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """One set-up of a checkout at a time. The lock is held on pyproject.toml itself and leaves nothing behind."""
    import fcntl

    with (root / "pyproject.toml").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another set-up of this checkout is running; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: two set-ups at once are then up to pip
        yield

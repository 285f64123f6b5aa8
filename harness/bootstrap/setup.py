"""The set-up itself: choose, plan, say, do, remember. A second call compares fingerprints and is done."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.base.project import is_checkout
from harness.bootstrap import pip
from harness.bootstrap.errors import SetupError
from harness.bootstrap.installed import Interpreter, ask_interpreter, editable_source, installed_versions
from harness.bootstrap.plan import AUDIOCRAFT_VERSION, make_plan
from harness.bootstrap.ready import PROJECT, Setup, find_ready, pyproject_digest, read_state, remember
from harness.bootstrap.report import run_directory
from harness.bootstrap.settings import SetupSettings
from harness.bootstrap.steps import SetupLog, run_command
from harness.bootstrap.target import MINIMUM_PYTHON, Target

# That it works is seen by importing it, in the way the lane does. The last line is where it came from.
_IMPORT_CHECK = """
from harness.lane.audiocraft_import import prepare_audiocraft
prepare_audiocraft(transformers=False)
from audiocraft.models import musicgen
print(musicgen.__file__)
"""


def set_up(
    root: Path, environ: dict[str, str], settings: SetupSettings, target: Target, log: SetupLog, *, tests: bool
) -> Setup:
    """Make ``target`` ready and return it. Raises SetupError.

    ``tests``: with what the suite needs beyond a run, which stays from then on.
    """
    with _only_one(root):
        # Another call may have done it while this one waited.
        if ready := find_ready(root, target, settings, tests=tests):
            return ready
        tests = tests or bool(read_state(target.prefix).get("tests"))
        return _Change(root, environ, settings, target, log, tests).make()


@dataclass
class _Change:
    """One set-up that has something to do."""

    root: Path
    environ: dict[str, str]
    settings: SetupSettings
    target: Target
    log: SetupLog
    tests: bool

    def make(self) -> Setup:
        started, target = time.monotonic(), self.target
        where = {
            "own": "the checkout's .venv",
            "active": "the active environment",
            "lent": f"{target.owner}: its Python",
        }
        print(f"Set-up: {where[target.kind]} ({target.prefix})", flush=True)
        if target.is_own:
            _make_environment(target, self.root, self.environ, self.log)
        interpreter = ask_interpreter(target.python)
        _check_version(interpreter)
        url = self.settings.pip_bootstrap_url
        pip.ensure_pip(target.python, url, self.log, root=self.root, environ=self.environ)
        pip.ensure_able(target.python, is_own=target.is_own, log=self.log, root=self.root, environ=self.environ)
        self._install(interpreter.folders)
        setup = self._with_audiocraft()
        remember(setup, interpreter.folders, self.settings, tests=self.tests)
        SetupLog.remove(run_directory(self.root, self.environ))
        took = time.monotonic() - started
        print(f"Set-up done in {took:.1f} s; audiocraft: {setup.audiocraft_import}\n", flush=True)
        return setup

    def _pip(self, step: str, package: str, *arguments: str | Path) -> None:
        done = pip.run_pip(self.target.python, arguments, self.log, root=self.root, environ=self.environ)
        if done.code != 0 or done.gave_up:
            raise pip.pip_failure(done, step, package)

    def _install(self, folders: tuple[Path, ...]) -> None:
        """All that is lacking, as pip has planned it, in one call; it is printed first."""
        before = installed_versions(folders)
        if stay := [f"{name} {before[name]}" for name in ("torch", "numpy", "transformers") if name in before]:
            print(f"  stays as it is: {', '.join(stay)}", flush=True)
        print("  asking pip what is lacking", flush=True)
        plan = make_plan(
            self.target.python, self.root, before, is_own=self.target.is_own, tests=self.tests, log=self.log,
            environ=self.environ,
        )  # fmt: skip
        packages: list[str | Path] = list(plan.packages)
        replaced = dict(plan.replaced)
        have = before.get("audiocraft")
        if self.settings.audiocraft_source is None and have != AUDIOCRAFT_VERSION:
            # It pins packages that no longer install: its dependencies are among this project's.
            packages.append(f"audiocraft=={AUDIOCRAFT_VERSION}")
            replaced |= {"audiocraft": (have, AUDIOCRAFT_VERSION)} if have else {}
        if packages:
            print(f"  will install {len(packages)} packages: {', '.join(map(str, packages))}", flush=True)
        for name, (old, new) in replaced.items():
            print(f"  will replace {name} {old} by {new}", flush=True)
        if self._is_to_link(folders):
            print(f"  will link this checkout as {PROJECT}", flush=True)
            packages += ["--editable", self.root]
        if packages:
            self._pip("packages", "what the project needs", "install", "--no-deps", *packages)
        else:
            print("  nothing has to be installed", flush=True)

    def _is_to_link(self, folders: tuple[Path, ...]) -> bool:
        """Another checkout that is linked into somebody's environment stays: what starts here finds its own code."""
        linked = editable_source(folders, PROJECT)
        if linked == self.root:
            # The link carries a copy of what was declared, entry points for instance.
            digest = pyproject_digest(self.root)
            return bool(read_state(self.target.prefix).get("pyproject", digest) != digest)
        if self.target.is_own or PROJECT not in installed_versions(folders):
            return True
        return linked is not None and not is_checkout(linked)

    def _with_audiocraft(self) -> Setup:
        """Install audiocraft from a source, if one is named, and see that it imports; the first way that works."""
        ways = {"auto": ("editable", "pythonpath"), "1": ("editable",), "0": ("pythonpath",)}
        source = self.settings.audiocraft_source
        *first, last = ways[self.settings.audiocraft_editable] if source else ("installed",)
        for way in first:
            try:
                return self._one_way(way, source)
            except SetupError as problem:
                print(f"  audiocraft does not work as {way} ({problem.cause}); trying {last}", flush=True)
        return self._one_way(last, source)

    def _one_way(self, way: str, source: Path | None) -> Setup:
        if way == "editable" and source is not None:
            print(f"  will install audiocraft from {source}, editable, without its dependencies", flush=True)
            self._pip("audiocraft", "audiocraft", "install", "--no-deps", "--no-build-isolation", "--editable", source)
        setup = Setup(self.root, self.target.python, self.target.prefix, way, str(source) if source else None)
        _see_that_it_imports(setup, self.environ, self.log)
        return setup


def _check_version(interpreter: Interpreter) -> None:
    if interpreter.version[:2] < MINIMUM_PYTHON:
        found = ".".join(str(part) for part in interpreter.version)
        raise SetupError(
            "python",
            f"{interpreter.python} is Python {found}; this project needs 3.11 or later",
            "use another environment (deactivate this one), or delete .venv if it is the checkout's own",
            blocked=True,
        )


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


def _see_that_it_imports(setup: Setup, environ: dict[str, str], log: SetupLog) -> None:
    """Import audiocraft as the lane does. Raises SetupError, also where it came from somewhere else than asked."""
    done = run_command([setup.python, "-c", _IMPORT_CHECK], log, cwd=setup.root, environ=setup.child_environ(environ))
    lines = [line.strip() for line in done.stderr if line.strip()]
    if done.code != 0:
        raise SetupError(
            "import_check",
            f"audiocraft does not import ({setup.audiocraft_import}): {lines[-1] if lines else 'no message'}",
            "read the log named above; deleting .venv and running again makes a fresh environment",
            command="import audiocraft.models.musicgen",
        )
    origin = Path(done.stdout[-1].strip())
    if setup.audiocraft_source and not origin.is_relative_to(setup.audiocraft_source):
        raise SetupError(
            "import_check",
            f"audiocraft was to come from {setup.audiocraft_source}, and came from {origin}",
            "remove the other audiocraft from PYTHONPATH or from the environment, then run again",
            command="import audiocraft.models.musicgen",
        )


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

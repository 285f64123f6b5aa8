"""Remembering that a set-up was made, and noticing that something has changed since."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.bootstrap import ready as made
from harness.bootstrap import setup as making
from harness.bootstrap import target
from harness.bootstrap.errors import SetupError
from harness.bootstrap.installed import ask_interpreter, editable_source, installed_versions
from harness.bootstrap.ready import STATE_FILE, STATE_SCHEMA, Setup, find_ready, fingerprint, remember
from harness.bootstrap.settings import SetupSettings
from harness.bootstrap.steps import SetupLog
from harness.bootstrap.target import SERVICES, Target, choose_target


class Machine:
    """A checkout with an environment beside it that looks set up."""

    def __init__(self, where: Path) -> None:
        self.root = where / "checkout"
        self.prefix = self.root / ".venv"
        self.packages = self.prefix / "lib" / "python3.11" / "site-packages"
        self.packages.mkdir(parents=True)
        (self.prefix / "bin").mkdir()
        self.base = where / "python3.11"
        self.base.write_text("a binary")
        (self.prefix / "bin" / "python").symlink_to(self.base)
        (self.root / "pyproject.toml").write_text("[project]\n")
        for name in ("torch-2.13.0+cpu", "numpy-2.4.6", "voice_lane_harness-0.1.0"):
            (self.packages / f"{name}.dist-info").mkdir()
        self.link_to(self.root)
        self.settings = SetupSettings()
        self.target = Target("own", self.prefix)
        self.remember(tests=False)

    def remember(self, *, tests: bool) -> None:
        ready = Setup(self.root, self.target.python, self.prefix, "installed", None)
        remember(ready, (self.packages,), self.settings, tests=tests)

    def link_to(self, root: Path) -> None:
        direct = {"url": root.as_uri(), "dir_info": {"editable": True}}
        (self.packages / "voice_lane_harness-0.1.0.dist-info" / "direct_url.json").write_text(json.dumps(direct))

    def ready(self, *, tests: bool = False) -> Setup | None:
        return find_ready(self.root, self.target, self.settings, tests=tests)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_has_changed_and_it_takes_no_process_to_know(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object, **more: object) -> None:
        raise AssertionError(f"a process was started: {words}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    found = machine.ready()
    assert found is not None and found.python == machine.prefix / "bin" / "python"


CHANGES: dict[str, Callable[[Machine], object]] = {
    "pyproject": lambda m: (m.root / "pyproject.toml").write_text("[project]\nname = 'x'\n"),
    "package added": lambda m: (m.packages / "jax-0.7.2.dist-info").mkdir(),
    "package removed": lambda m: (m.packages / "numpy-2.4.6.dist-info").rmdir(),
    "package of another version": lambda m: (m.packages / "numpy-2.4.6.dist-info").rename(
        m.packages / "numpy-2.5.0.dist-info"
    ),
    "another checkout linked": lambda m: m.link_to(m.root.parent / "other"),
    "interpreter updated": lambda m: m.base.write_text("a newer binary"),
    "interpreter gone": lambda m: m.base.unlink(),
    "environment gone": lambda m: m.prefix.rename(m.prefix.with_name("gone")),
    "state gone": lambda m: (m.prefix / STATE_FILE).unlink(),
    "state cut short": lambda m: (m.prefix / STATE_FILE).write_text('{"schema": "voice'),
    "state of another form": lambda m: (m.prefix / STATE_FILE).write_text(f'{{"schema": "{STATE_SCHEMA}"}}'),
    "audiocraft from a checkout": lambda m: setattr(
        m, "settings", dataclasses.replace(m.settings, audiocraft_source=m.root)
    ),
    "editable asked for": lambda m: setattr(m, "settings", dataclasses.replace(m.settings, audiocraft_editable="0")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(machine: Machine, change: str) -> None:
    assert machine.ready() is not None
    CHANGES[change](machine)
    assert machine.ready() is None


def test_what_the_suite_needs_is_there_for_the_suite_alone(machine: Machine) -> None:
    assert machine.ready(tests=True) is None
    machine.remember(tests=True)
    assert machine.ready(tests=True) is not None and machine.ready() is not None


@pytest.mark.parametrize(
    ("linked", "own", "to_link"),
    [
        ("this", True, False),
        ("this", False, False),
        ("this, declared otherwise", False, True),
        ("another checkout", True, True),
        ("another checkout", False, False),
        ("a folder that is gone", False, True),
        ("an ordinary install", False, False),
        ("nothing", False, True),
    ],
)
def test_no_checkout_takes_an_environment_from_another(machine: Machine, linked: str, own: bool, to_link: bool) -> None:
    other = machine.root.parent / "other"
    (other / "harness" / "bootstrap").mkdir(parents=True)
    for name in ("pyproject.toml", "harness/bootstrap/command_line.py"):
        (other / name).touch()
    package = machine.packages / "voice_lane_harness-0.1.0.dist-info"
    match linked:
        case "this, declared otherwise":
            (machine.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
        case "another checkout":
            machine.link_to(other)
        case "a folder that is gone":
            machine.link_to(other / "gone")
        case "an ordinary install":
            (package / "direct_url.json").unlink()
        case "nothing":
            shutil.rmtree(package)
    where = Target("own" if own else "active", machine.prefix)
    change = making._Change(machine.root, {}, machine.settings, where, SetupLog(), tests=False)
    assert change._is_to_link((machine.packages,)) == to_link


def test_a_newer_set_up_code_is_noticed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "BOOTSTRAP_VERSION", made.BOOTSTRAP_VERSION + 1)
    assert machine.ready() is None


def test_the_digest_does_not_depend_on_the_order_of_folders_on_disk(machine: Machine) -> None:
    digests = {fingerprint(machine.root, machine.target.python, (machine.packages,), SetupSettings()) for _ in range(3)}
    assert len(digests) == 1


@pytest.mark.parametrize(("way", "expected"), [("pythonpath", "/root:/source:/mine"), ("editable", "/root:/mine")])
def test_the_child_is_told_how_audiocraft_is_imported(way: str, expected: str) -> None:
    setup = Setup(Path("/root"), Path("/p"), Path("/"), way, "/source")
    environ = setup.child_environ({"PYTHONPATH": "/mine", "A": "b"})
    assert environ == {"PYTHONPATH": expected, "A": "b", "AUDIOCRAFT_IMPORT": way}


def test_the_way_over_pythonpath_is_not_added_twice() -> None:
    setup = Setup(Path("/root"), Path("/p"), Path("/"), "pythonpath", "/source")
    assert setup.child_environ(setup.child_environ({}))["PYTHONPATH"] == "/root:/source"


def test_one_set_up_of_a_checkout_at_a_time(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    with (machine.root / "pyproject.toml").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        entered = threading.Event()

        def wait_for_it() -> None:
            with making._only_one(machine.root):
                entered.set()

        thread = threading.Thread(target=wait_for_it)
        thread.start()
        assert not entered.wait(0.3)
        fcntl.flock(other, fcntl.LOCK_UN)
        assert entered.wait(10)
        thread.join()
    assert "Another set-up of this checkout is running" in capsys.readouterr().out


def test_what_is_installed_here_is_what_importlib_says() -> None:
    from importlib.metadata import distributions

    folders = ask_interpreter(Path(sys.executable)).folders
    expected = {dist.metadata["Name"].replace("_", "-").replace(".", "-").lower() for dist in distributions()}
    found = installed_versions(folders)
    assert set(found) <= expected and len(found) > 20
    assert found["pytest"] == pytest.__version__


def test_the_first_folder_counts_and_remains_of_an_uninstall_do_not(tmp_path: Path) -> None:
    for name in ("a/x-1.0.dist-info", "b/x-2.0.dist-info", "b/Y_z-3.0-py3.11.egg-info", "b/~orch-2.0.dist-info"):
        (tmp_path / name).mkdir(parents=True)
    found = installed_versions([tmp_path / "a", tmp_path / "b", tmp_path / "missing"])
    assert found == {"x": "1.0", "y-z": "3.0"}


def test_an_ordinary_install_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "x-1.0.dist-info").mkdir()
    assert editable_source([tmp_path], "x") is None
    (tmp_path / "x-1.0.dist-info" / "direct_url.json").write_text('{"url": "file:///a%20b", "dir_info": {}}')
    assert editable_source([tmp_path], "x") is None
    text = '{"url": "file:///a%20b", "dir_info": {"editable": true}}'
    (tmp_path / "x-1.0.dist-info" / "direct_url.json").write_text(text)
    assert editable_source([tmp_path], "x") == Path("/a b")


def test_an_interpreter_that_does_not_start_is_named(tmp_path: Path) -> None:
    broken = tmp_path / ".venv" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.symlink_to("/nowhere/python3.11")
    with pytest.raises(SetupError, match="does not work") as caught:
        ask_interpreter(broken)
    assert str(tmp_path / ".venv") in caught.value.action


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As if this interpreter were the system's own."""
    monkeypatch.setattr(sys, "prefix", "/usr")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(target, "in_container", lambda: False)
    monkeypatch.setattr(target, "installed_versions", lambda folders: {"torch": "2.13.0+cu130"})
    (tmp_path / "packages").mkdir()
    monkeypatch.setattr(target.sysconfig, "get_path", {"purelib": tmp_path / "packages", "stdlib": tmp_path}.get)
    return tmp_path


def test_outside_of_everything_the_checkout_gets_its_own(outside: Path) -> None:
    assert choose_target({}, outside) == Target("own", outside / ".venv")


@pytest.mark.parametrize("variable", SERVICES)
def test_a_services_interpreter_is_used_as_it_is(outside: Path, variable: str) -> None:
    lent = Target("lent", Path("/usr"), SERVICES[variable])
    assert choose_target({variable: "x"}, outside) == lent
    assert choose_target({variable: ""}, outside).kind == "own"
    (outside / "EXTERNALLY-MANAGED").touch()
    assert choose_target({variable: "x"}, outside) == lent
    target.sysconfig.get_path("purelib").rmdir()
    assert choose_target({variable: "x"}, outside).kind == "own", "it cannot be written"


def test_an_environment_of_its_own_that_is_there_comes_before_what_is_lent(outside: Path) -> None:
    (outside / ".venv" / "bin").mkdir(parents=True)
    (outside / ".venv" / "bin" / "python").symlink_to(sys.executable)
    assert choose_target({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, outside) == Target("own", outside / ".venv")


@pytest.mark.parametrize("environ", [{}, {"CONDA_PREFIX": "/usr"}, {"JUPYTERHUB_USER": "x"}])
def test_a_torch_that_came_with_the_image_is_used(
    outside: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "in_container", lambda: not environ)
    assert choose_target(environ, outside).kind == "lent"
    (outside / "EXTERNALLY-MANAGED").touch()
    assert choose_target(environ, outside).is_own is ("JUPYTERHUB_USER" not in environ), "pip would refuse"
    (outside / "EXTERNALLY-MANAGED").unlink()
    for found in ({"torch": "2.1.0"}, {}):
        monkeypatch.setattr(target, "installed_versions", lambda folders, found=found: found)
        assert choose_target(environ, outside).kind == "own", "the lane cannot use it, and it is never replaced"


def test_an_active_environment_comes_before_colab(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/mine")
    assert choose_target({"COLAB_RELEASE_TAG": "x"}, outside) == Target("active", Path("/mine"))


def test_an_environment_that_is_active_but_did_not_start_this_python(outside: Path) -> None:
    (outside / "env" / "bin").mkdir(parents=True)
    (outside / "env" / "bin" / "python").symlink_to(sys.executable)
    target = choose_target({"VIRTUAL_ENV": str(outside / "env")}, outside)
    assert target == Target("active", outside / "env") and target.python == outside / "env" / "bin" / "python"
    assert choose_target({"VIRTUAL_ENV": str(outside / "deleted")}, outside).kind == "own"


def test_the_checkouts_own_environment_stays_its_own_when_it_is_active(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(outside / ".venv"))
    assert choose_target({}, outside).is_own


@pytest.mark.parametrize(("name", "kind"), [("work", "active"), ("base", "lent")])
def test_conda(outside: Path, name: str, kind: str) -> None:
    assert choose_target({"CONDA_PREFIX": "/usr", "CONDA_DEFAULT_ENV": name}, outside).kind == kind


@pytest.mark.benchmark
def test_time_of_a_second_call(machine: Machine) -> None:
    """Prints it; asserts nothing about it."""
    started = time.perf_counter()
    assert machine.ready() is not None
    print(f"\nfind_ready: {(time.perf_counter() - started) * 1e3:.1f} ms")

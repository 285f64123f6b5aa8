"""python3 -m harness: help, exit codes, wrong command lines, and the standard-library wall."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from bare_machine import BARE_PYTHON, clean_environ, harness

from harness.__main__ import COMMANDS
from harness.bootstrap.commands import ROOT

BOOTSTRAP_FILES = [ROOT / "harness" / "__main__.py", *sorted((ROOT / "harness" / "bootstrap").glob("*.py"))]


def test_help_lists_every_command_the_exit_codes_and_the_switches() -> None:
    done = harness(ROOT, "--help", environ=clean_environ())
    assert done.returncode == 0 and done.stderr == ""
    for name, command in COMMANDS.items():
        assert f"  {name} " in done.stdout and command.help in done.stdout
    for word in ("exit codes:", "128+N", "RUN_GIT_SYNC", "EXPECTED_HEAD", "INSTALL_AUDIOCRAFT_EDITABLE"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert "\033" not in done.stdout


@pytest.mark.parametrize("name", ["run", "test", "bootstrap", "doctor"])
def test_each_command_of_the_set_up_has_help_that_sets_nothing_up(name: str, tmp_path: Path) -> None:
    done = harness(ROOT, name, "--help", environ=clean_environ(LANE_RUN_DIR=str(tmp_path)))
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: python3 -m harness {name}")
    assert "exit codes:" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("words", "said"), [((), "no command given"), (("runn",), "unknown command 'runn'")])
def test_a_wrong_command_line_names_what_there_is(words: tuple[str, ...], said: str) -> None:
    done = harness(ROOT, *words, environ=clean_environ())
    assert done.returncode == 64 and done.stdout == ""
    assert said in done.stderr and "run, test, bootstrap" in done.stderr and "--help" in done.stderr


def test_bootstrap_takes_no_arguments() -> None:
    done = harness(ROOT, "bootstrap", "-v", environ=clean_environ())
    assert done.returncode == 64 and "found: -v" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_in_the_table_exists(name: str) -> None:
    module, _, function = COMMANDS[name].where.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, f"{name}: there is no module {module}"
    tree = ast.parse(Path(spec.origin).read_text())
    assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    script = f"{BARE_PYTHON[0]} -m harness --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 141) and done.stderr == ""


@pytest.mark.parametrize("path", BOOTSTRAP_FILES, ids=lambda path: path.name)
def test_the_set_up_imports_the_standard_library_and_itself(path: Path) -> None:
    # These know how a report is written and what a mode sets, and import nothing but the standard library themselves.
    lane = ("harness.lane.files", "harness.lane.report", "harness.lane.settings")
    own = ("harness.bootstrap", "harness.numerics.modes", *lane)
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            names = [node.module or ""]
        for name in names:
            is_own = name.startswith(own)
            assert is_own or name.partition(".")[0] in sys.stdlib_module_names, f"{path.name}:{node.lineno}: {name}"


def test_the_set_up_loads_where_no_package_is_installed() -> None:
    modules = [f"harness.bootstrap.{path.stem}" for path in BOOTSTRAP_FILES[1:] if path.stem != "__init__"]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import harness.__main__, {', '.join(modules)}"
    done = subprocess.run([BARE_PYTHON[0], "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("version", ["3.8", "3.9", "3.10"])
def test_a_python_that_is_too_old_still_gets_the_report(version: str, tmp_path: Path) -> None:
    candidates = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    candidates += [path for path in [Path(f"/usr/bin/python{version}")] if path.exists()]
    if not candidates:
        pytest.skip(f"this machine has no Python {version}")
    environ = clean_environ(LANE_RUN_DIR=str(tmp_path))
    done = harness(ROOT, "run", environ=environ, python=[str(candidates[0])])
    assert done.returncode == 11 and done.stderr == ""
    assert "objective_status: blocked\nfirst_failed_step: python\n" in done.stdout
    assert f"this is Python {version}." in done.stdout and "python3.12" in done.stdout

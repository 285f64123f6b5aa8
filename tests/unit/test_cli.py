"""python3 -m harness: help, exit codes, wrong command lines, and the standard-library wall."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from bare_machine import BARE_PYTHON, ROOT, clean_environ, harness

from harness.base.report import CONTRACT_KEYS, HEADER
from harness.bootstrap import commands
from harness.bootstrap.command_line import COMMANDS, main
from harness.bootstrap.ready import Setup

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


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_usage_has_one_exit_code(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(commands, "prepare", lambda environ, root, tests=False: Setup(root, root, root, "", None))
    monkeypatch.setattr(commands, "run_child", lambda *words: 4)  # pytest's
    monkeypatch.setattr(commands, "publish_failure", lambda *words: None)
    assert main([name, "--no-such-option"]) == 64
    assert name in ("run", "test") or capsys.readouterr().err


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
    lane = ("harness.base", "harness.lane.settings")
    own = ("harness.bootstrap", "harness.numerics.modes", "harness.numerics.processor", *lane)
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


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7", "3.8", "3.9", "3.10"])
@pytest.mark.parametrize("newer", ["", "python3.12"])
def test_a_python_that_is_too_old_gets_the_report(version: str, newer: str, tmp_path: Path) -> None:
    """And leaves no file. Where a newer Python is on the path, the next command uses it."""
    candidates = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    candidates += [path for path in [Path(f"/usr/bin/python{version}")] if path.exists()]
    if not candidates:
        pytest.skip(f"this machine has no Python {version}")
    if newer:
        (tmp_path / newer).symlink_to(sys.executable)
        (tmp_path / "python3.13").symlink_to("/bin/false")
    run_dir = tmp_path / "run"
    environ = clean_environ(LANE_RUN_DIR=str(run_dir), PATH=str(tmp_path))
    done = harness(ROOT, "run", "-x", environ=environ, python=[str(candidates[0]), "-B"])
    assert done.returncode == 11 and done.stderr == "" and not run_dir.exists()
    header, *lines = done.stdout.splitlines()
    report = dict(line.split(": ", 1) for line in lines)
    assert header == HEADER and tuple(report)[:20] == CONTRACT_KEYS
    assert report["objective_status"] == "blocked" and report["first_failed_step"] == "python"
    assert report["python_version"].startswith(f"{version}.") and report["python_version"] in report["root_cause"]
    assert report["next_unblock_action"].startswith("install ") or newer
    assert report["next_unblock_action"] == "python3.12 -m harness run -x" or not newer
    lane = [str(candidates[0]), "-B", "-m", "harness.lane"]
    done = subprocess.run(lane, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 11 and done.stderr == "" and not run_dir.exists()
    assert "\nnext_unblock_action: python3.12 -m harness.lane\n" in done.stdout or not newer


OLD = ["__init__.py", "__main__.py", "bootstrap/__init__.py", "bootstrap/too_old.py", "lane/__init__.py"]


@pytest.mark.parametrize("name", OLD)
def test_what_an_old_python_reads_is_old(name: str) -> None:
    """On a machine without an old Python too: no syntax that came after 3.6, and nothing that 2.7 lacks."""
    tree = ast.parse((ROOT / "harness" / name).read_text(encoding="ascii"), feature_version=(3, 6))
    modern = (ast.AnnAssign, ast.JoinedStr, ast.AsyncFunctionDef, ast.Nonlocal, ast.YieldFrom)
    assert not [node for node in ast.walk(tree) if isinstance(node, modern)]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert not [f.name for f in functions if f.returns or f.args.kwonlyargs or any(a.annotation for a in f.args.args)]
    assert not any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in ast.walk(tree))

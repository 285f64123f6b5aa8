"""Getting pip where there is none, and saying in one line why a call of it failed. Real interpreters, no network."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_machine import BARE_PYTHON, clean_environ, no_index
from waiting import until

from harness.bootstrap import pip
from harness.bootstrap.errors import SetupError
from harness.bootstrap.steps import Finished, SetupLog, run_command

# What the real get-pip.py does with the pip it carries, done with the pip that ensurepip carries.
GET_PIP = """
import ensurepip, pathlib, subprocess, sys
wheel = next(pathlib.Path(WHERE).glob("pip-*.whl"))
code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from pip._internal.cli.main import main; sys.exit(main())"
sys.exit(subprocess.call([sys.executable, "-c", code, str(wheel), "install", "--no-index", str(wheel)]))
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter without pip."""
    subprocess.run([BARE_PYTHON[0], "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    found = tmp_path / "env" / "bin" / "python"
    assert pip.pip_version(found) is None
    return found


@pytest.fixture
def without_ensurepip(tmp_path: Path) -> dict[str, str]:
    """An environment in which ensurepip is split off, as Debian does."""
    (tmp_path / "mask" / "ensurepip").mkdir(parents=True)
    (tmp_path / "mask" / "ensurepip" / "__init__.py").write_text("raise ImportError('ensurepip is split off')\n")
    return clean_environ(PYTHONPATH=str(tmp_path / "mask"))


@pytest.fixture
def get_pip(tmp_path: Path) -> Path:
    import ensurepip

    path = tmp_path / "served" / "get-pip.py"
    path.parent.mkdir()
    # Debian keeps the wheels in a folder of its own.
    bundled = sysconfig.get_config_var("WHEEL_PKG_DIR") or str(Path(ensurepip.__file__).parent / "_bundled")
    path.write_text(GET_PIP.replace("import ensurepip, ", "import ").replace("WHERE", repr(bundled)))
    return path


@pytest.fixture
def server(get_pip: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(get_pip.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as service:
        thread = threading.Thread(target=service.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{service.server_port}"
        service.shutdown()
        thread.join()


def test_pip_that_is_there_is_used(tmp_path: Path) -> None:
    log = SetupLog()
    way = pip.ensure_pip(Path(BARE_PYTHON[0]), "file:///none", log, root=tmp_path, environ=clean_environ())
    assert way == "present" and log.stdout == []


def test_get_pip_from_a_file(python: Path, without_ensurepip: dict[str, str], get_pip: Path, tmp_path: Path) -> None:
    log = SetupLog()
    way = pip.ensure_pip(python, get_pip.as_uri(), log, root=tmp_path, environ=without_ensurepip)
    assert way == "get-pip" and pip.pip_version(python)
    assert any("ensurepip is split off" in line for line in log.stderr)


def test_get_pip_from_a_server(python: Path, without_ensurepip: dict[str, str], server: str, tmp_path: Path) -> None:
    way = pip.ensure_pip(python, f"{server}/get-pip.py", SetupLog(), root=tmp_path, environ=without_ensurepip)
    assert way == "get-pip" and pip.pip_version(python)


@pytest.mark.parametrize("name", ["file:///nowhere/get-pip.py", "http://127.0.0.1:9/get-pip.py", "SERVER/missing.py"])
def test_get_pip_that_cannot_be_read(
    python: Path, without_ensurepip: dict[str, str], server: str, tmp_path: Path, name: str
) -> None:
    url = name.replace("SERVER", server)
    with pytest.raises(SetupError, match="could not be read") as caught:
        pip.ensure_pip(python, url, SetupLog(), root=tmp_path, environ=without_ensurepip)
    assert url in caught.value.cause and caught.value.step == "pip" and "PIP_BOOTSTRAP_URL" in caught.value.action


def test_get_pip_that_does_not_help(python: Path, without_ensurepip: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "get-pip.py"
    script.write_text("raise SystemExit(3)")
    with pytest.raises(SetupError, match="exit code 3, and pip still does not work"):
        pip.ensure_pip(python, script.as_uri(), SetupLog(), root=tmp_path, environ=without_ensurepip)


def failed_install(arguments: list[str], environ: dict[str, str], tmp_path: Path, package: str) -> SetupError:
    # This interpreter's pip, writing to a folder of its own: nothing is installed here.
    arguments = ["install", "--target", str(tmp_path / "t"), *arguments]
    done = pip.run_pip(Path(BARE_PYTHON[0]), arguments, SetupLog(), root=tmp_path, environ=environ)
    assert done.code != 0
    return pip.pip_failure(done, "project", package)


def test_nobody_listens_at_the_index(tmp_path: Path) -> None:
    error = failed_install(["--no-deps", "iniconfig"], no_index(), tmp_path, "the project")
    assert error.blocked and error.cause.startswith("no network: pip could not reach the package index for iniconfig")
    assert "Connection refused" in error.cause and "pip install" in error.command


def test_a_proxy_that_is_not_there_is_no_network_either(tmp_path: Path) -> None:
    environ = {**no_index(), "PIP_INDEX_URL": "https://pypi.org/simple", "PIP_PROXY": "http://127.0.0.1:9"}
    error = failed_install(["--no-deps", "iniconfig"], environ, tmp_path, "the project")
    assert error.blocked and "no network" in error.cause and "iniconfig" in error.cause


def test_a_package_that_the_index_does_not_have_is_not_called_a_network_problem(tmp_path: Path) -> None:
    environ = clean_environ(PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1")
    error = failed_install(["no-such-package-at-all==1.0"], environ, tmp_path, "it")
    assert not error.blocked and error.cause == (
        "the package index has no no-such-package-at-all==1.0 for this Python and machine"
    )


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        ("error: externally-managed-environment", "belongs to the operating system"),
        ("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/x'", "no permission"),
        (
            "ERROR: Cannot install x\nThe conflict is caused by:\n    The user requested pytest>=8.4\n"
            "    The user requested (constraint) pytest==7.4\n\nTo fix this\nERROR: ResolutionImpossible: for help",
            "does not go with what is needed: needed: pytest>=8.4; installed: pytest==7.4",
        ),
        (
            "noise\nERROR: Failed building wheel for thing",
            "pip ended with exit code 1: Failed building wheel for thing",
        ),
        ("", "pip ended with exit code 1: see the log"),
    ],
)
def test_a_known_failure_is_named(said: str, cause: str) -> None:
    done = Finished("pip install thing", 1, [], [line + "\n" for line in said.splitlines()])
    assert cause in pip.pip_failure(done, "project", "thing").cause


def test_pip_is_not_left_waiting_for_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(pip.time, "monotonic", lambda: now[0])
    watch = pip._NoNetwork(seconds=25)
    assert watch("Collecting torch\n") == ""
    now[0] = 60
    assert watch(None) == "", "silence alone is a large download"
    trouble = "WARNING: Retrying (Retry(total=0)) after connection broken by 'ConnectTimeoutError()': /simple/torch/"
    assert watch("Downloading x (3 GB)\n") == "" and watch(trouble) == ""
    now[0] = 80
    assert watch(None) == ""
    now[0] = 86
    assert watch(None) == trouble


def test_a_pip_that_cannot_plan_is_upgraded_where_it_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(python: Path, words: list[str], log: SetupLog, **_: object) -> Finished:
        asked.append(words)
        return Finished("pip", 0, [], [])

    monkeypatch.setattr(pip, "run_pip", run)
    log = SetupLog()
    for version, is_own in (((22, 1), True), ((22, 2), True), ((22, 2), False)):
        monkeypatch.setattr(pip, "pip_version", lambda python, version=version: version)
        pip.ensure_able(tmp_path, is_own=is_own, log=log, root=tmp_path, environ={})
    assert asked == [["install", "--upgrade", "pip"]]
    monkeypatch.setattr(pip, "pip_version", lambda python: (22, 1))
    with pytest.raises(SetupError, match=r"found pip 22\.1"):
        pip.ensure_able(tmp_path, is_own=False, log=log, root=tmp_path, environ={})
    assert len(asked) == 1


def test_what_a_command_said_is_kept_and_only_its_end_is_shown(tmp_path: Path) -> None:
    log = SetupLog()
    code = (
        "import sys; print('out'); sys.stderr.write('Traceback (most recent call last):\\n  File x\\nOSError: why\\n')"
    )
    done = run_command([sys.executable, "-c", code], log, cwd=tmp_path, environ=clean_environ())
    assert done.code == 0 and done.stdout == ["out\n"]
    assert log.last_lines() == ["OSError: why"]
    log.write(tmp_path)
    assert "  File x" in (tmp_path / "colab_bootstrap_stderr.log").read_text()
    run_command([sys.executable, "-c", "print('later')"], log, cwd=tmp_path, environ=clean_environ())
    assert log.last_lines() == ["later"], "what an earlier command said is not why this one failed"


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    done = run_command([tmp_path / "none"], SetupLog(), cwd=tmp_path, environ={})
    assert done.code == 127 and "No such file" in done.stderr[0]


@pytest.mark.parametrize("ignores", ["", "trap '' TERM; "])
def test_a_command_is_given_up_with_all_it_started(tmp_path: Path, ignores: str) -> None:
    marker = tmp_path / "pid"
    script = f"({ignores}echo $BASHPID > {marker}; echo ready; sleep 100) & wait"
    done = run_command(
        ["bash", "-c", script],
        SetupLog(),
        cwd=tmp_path,
        environ=clean_environ(),
        watch=lambda line: "enough" if line else "",
    )
    assert done.gave_up == "enough" and done.code != 0
    status = Path(f"/proc/{marker.read_text().strip()}/stat")
    # A process that was killed takes a moment to be gone; one whose parent has gone may stay as a zombie.
    until(lambda: not status.exists() or status.read_text().split()[2] == "Z")

"""Calls pip in the target interpreter, gets pip where it is missing, and says in one line why a call failed."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from harness.bootstrap.errors import SetupError
from harness.bootstrap.steps import Finished, SetupLog, run_command

# One retry and ten seconds, here and in the pip that pip starts to build a package: without a network a person waits
# for an answer, not for five patient retries of each address.
PIP_RETRIES = "1"
PIP_TIMEOUT_S = "10"
NO_NETWORK_AFTER_S = 25.0
RESOLVES = (22, 2)  # the first pip that has `install --dry-run --report`
OWN_ENVIRONMENT = "python3 -m venv .venv && .venv/bin/python -m harness run"

_CONNECTION = re.compile(
    r"connection broken by|NewConnectionError|ConnectTimeout|ReadTimeout|Max retries exceeded"
    r"|Temporary failure in name resolution|Name or service not known|Network is unreachable"
    r"|Connection refused|ProxyError|getaddrinfo failed|Failed to establish a new connection"
)
_UNREACHED = re.compile(r"/simple/(?P<package>[A-Za-z0-9._-]+)/?")
_WORTH_SHOWING = ("Collecting ", "Downloading ", "Building ", "Installing ", "Successfully ", "Attempting uninstall")


class _NoNetwork:
    """A watch that gives up once pip has had trouble connecting and got nowhere for a while."""

    def __init__(self, seconds: float = NO_NETWORK_AFTER_S) -> None:
        self.seconds = seconds
        self.last_progress = time.monotonic()
        self.trouble = ""

    def __call__(self, line: str | None) -> str:
        if line is not None and _CONNECTION.search(line):
            self.trouble = line.strip()
        elif line is not None and line.lstrip().startswith(_WORTH_SHOWING):
            self.last_progress, self.trouble = time.monotonic(), ""
        waited = time.monotonic() - self.last_progress
        return self.trouble if self.trouble and waited > self.seconds else ""


def pip_environment(environ: dict[str, str]) -> dict[str, str]:
    """The environment pip runs in: never asks, never waits long for a network."""
    return {
        **environ,
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_RETRIES": PIP_RETRIES,
        "PIP_DEFAULT_TIMEOUT": PIP_TIMEOUT_S,
        "PIP_TIMEOUT": PIP_TIMEOUT_S,
        "PIP_ROOT_USER_ACTION": "ignore",
    }


def run_pip(
    python: Path, arguments: Sequence[str | Path], log: SetupLog, *, root: Path, environ: dict[str, str]
) -> Finished:
    """``python -m pip`` with these arguments. Failing is the caller's to judge."""
    return run_command(
        [python, "-m", "pip", *arguments],
        log,
        cwd=root,
        environ=pip_environment(environ),
        show=lambda line: line.lstrip().startswith(_WORTH_SHOWING),
        watch=_NoNetwork(),
    )


def pip_failure(done: Finished, step: str, package: str) -> SetupError:
    """Turn a failed call into the line a person can act on."""
    said = "".join(done.stderr) + "".join(done.stdout)
    errors = [line.split("ERROR:", 1)[1].strip() for line in said.splitlines() if line.lstrip().startswith("ERROR:")]
    if trouble := (done.gave_up or next((line for line in said.splitlines() if _CONNECTION.search(line)), "")):
        unreached = _UNREACHED.search(trouble)
        name = unreached["package"] if unreached else package
        reasons = re.findall(
            r"\w+ timed out|Temporary failure in name resolution|Name or service not known"
            r"|Network is unreachable|Connection refused|Cannot connect to proxy",
            said,
        )
        detail = f" ({reasons[-1]})" if reasons else ""
        return SetupError(
            step,
            f"no network: pip could not reach the package index for {name}{detail}",
            "connect this machine to its package index (or point PIP_INDEX_URL at one it reaches), then run again",
            blocked=True,
            command=done.command,
        )
    if "No space left on device" in said:
        cause, action = f"the disk is full; {package} was not installed", "free some disk space, then run again"
    elif "externally-managed-environment" in said:
        cause = "this Python belongs to the operating system, and pip may not install into it"
        action = "run from a checkout that can hold a .venv, or activate a virtual environment"
    elif "Permission denied" in said:
        cause = f"{package} was not installed: no permission to write to the environment"
        action = f"use an environment of your own: {OWN_ENVIRONMENT}"
    elif "ResolutionImpossible" in said or "conflicting dependencies" in said:
        cause = f"what is installed here is never replaced, and does not go with what is needed: {_conflict(said)}"
        action = f"upgrade it yourself, or have an environment of its own, with a torch of its own: {OWN_ENVIRONMENT}"
        return SetupError(step, cause, action, blocked=True, command=done.command)
    elif missing := re.search(r"No matching distribution found for (\S+)", said):
        cause = f"the package index has no {missing[1]} for this Python and machine"
        action = "use Python 3.11, 3.12 or 3.13 on Linux, or provide the package, then run again"
    else:
        cause = f"pip ended with exit code {done.code}: {errors[-1] if errors else 'see the log'}"
        action = "read the log named above, repair what it says, then run again"
    return SetupError(step, cause, action, command=done.command)


def _conflict(said: str) -> str:
    """The parties to a conflict, as pip tells them."""
    block = said.partition("The conflict is caused by:")[2].strip("\n").partition("\n\n")[0]
    told = "; ".join(" ".join(line.split()) for line in block.splitlines())
    return told.replace("The user requested (constraint)", "installed:").replace("The user requested", "needed:")


def pip_version(python: Path) -> tuple[int, int] | None:
    """The version of a pip that works: that it is importable is not enough."""
    try:
        done = subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"pip (\d+)\.(\d+)", done.stdout) if done.returncode == 0 else None
    return (int(found[1]), int(found[2])) if found else None


def ensure_able(python: Path, *, is_own: bool, log: SetupLog, root: Path, environ: dict[str, str]) -> None:
    """See to it that pip can say what it would install. A pip that is somebody's is not replaced."""
    if (have := pip_version(python)) is None or have >= RESOLVES:
        return
    words = ["install", "--upgrade", "pip"]
    if is_own:
        done = run_pip(python, words, log, root=root, environ=environ)
        if done.code != 0 or done.gave_up:
            raise pip_failure(done, "pip", "pip")
        return
    raise SetupError(
        "pip",
        f"found pip {have[0]}.{have[1]}, and needed is {RESOLVES[0]}.{RESOLVES[1]} or later",
        f"upgrade it yourself: {shlex.join([str(python), '-m', 'pip', *words])}",
        blocked=True,
    )


def ensure_pip(python: Path, url: str, log: SetupLog, *, root: Path, environ: dict[str, str]) -> str:
    """Make pip work in ``python``; returns how: "present", "ensurepip" or "get-pip"."""
    if pip_version(python):
        return "present"
    print("  pip is missing; trying ensurepip", flush=True)
    run_command([python, "-m", "ensurepip", "--upgrade", "--default-pip"], log, cwd=root, environ=environ)
    if pip_version(python):
        return "ensurepip"
    print(f"  ensurepip did not help; fetching {url}", flush=True)
    command = f"download {url}"
    log.stderr.append(f"$ {command}\n")
    try:
        with urllib.request.urlopen(url, timeout=float(PIP_TIMEOUT_S)) as answer:
            script = answer.read()
    except (OSError, ValueError) as reason:
        log.stderr.append(f"{reason}\n")
        raise SetupError(
            "pip",
            f"pip is missing, ensurepip does not work, and {url} could not be read: {reason}",
            "install pip for this Python (Debian: apt install python3-venv python3-pip), or set PIP_BOOTSTRAP_URL to"
            " a get-pip.py that can be reached",
            blocked=True,
            command=command,
        ) from reason
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "get-pip.py"
        path.write_bytes(script)
        done = run_command([python, path], log, cwd=root, environ=pip_environment(environ))
    if not pip_version(python):
        raise SetupError(
            "pip",
            f"get-pip.py from {url} ended with exit code {done.code}, and pip still does not work",
            "read the log named above, or install pip for this Python yourself",
            command=done.command,
        )
    return "get-pip"

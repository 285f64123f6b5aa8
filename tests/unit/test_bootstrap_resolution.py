"""Whether the declared ranges can be met on the Pythons that are promised, without installing anything.

pip resolves for another Python from wheels only, and a few packages come as source alone. torch is left out, because
resolving it for a Python other than this one means the CUDA packages, several GB. A package that needs one of these is
checked by itself, and what else it needs is resolved in its place. That the index has torch is asked by itself, too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, requires
from typing import Any

import pytest
from bare_machine import ROOT, clean_environ

from harness.bootstrap.installed import normalise
from harness.bootstrap.plan import TORCH_VERSION, requirements

pytestmark = pytest.mark.bootstrap

# On the index as source only, and pure Python: they build anywhere.
SOURCE_ONLY = {"flashy", "docopt"}
LEFT_OUT = {"torch"}
PYTHONS = ["3.12", "3.13"]


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return normalise(match[0])


def needs_of(name: str) -> list[str]:
    """What the installed package ``name`` declares, extras left out."""
    try:
        return [line for line in requires(name) or [] if "extra ==" not in line]
    except PackageNotFoundError:
        return []


def is_apart(name: str) -> bool:
    """Whether pip cannot resolve this package as it is here: it is left out, or needs one that is."""
    return name in SOURCE_ONLY | LEFT_OUT or any(is_apart(name_of(line)) for line in needs_of(name))


def to_resolve() -> tuple[list[str], list[str]]:
    """What pip resolves as a whole, and the packages that are looked at one by one."""
    whole: set[str] = set()
    apart: set[str] = set()
    queue = requirements(ROOT, tests=True)
    while queue:
        line = queue.pop()
        name = name_of(line)
        if not is_apart(name):
            whole.add(line)
        elif name not in LEFT_OUT and name not in {name_of(seen) for seen in apart}:
            apart.add(line)
            queue += needs_of(name)
    return sorted(whole), sorted(line for line in apart if name_of(line) not in SOURCE_ONLY)


def pip(*words: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    environ = {**clean_environ(**own), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_RETRIES": "1", "PIP_TIMEOUT": "15"}
    done = subprocess.run([sys.executable, "-m", "pip", *words], env=environ, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode != 0 and re.search(r"connection broken by|Max retries exceeded|NewConnectionError", said):
        pytest.skip("no network: the package index cannot be reached")
    return done


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bool], Any]]:
    """Gives what pip says for a Python, of the whole set or of what is apart; it is asked for all of them at once."""
    target = str(tmp_path_factory.mktemp("resolution") / "x")
    whole, apart = to_resolve()

    def resolve(python: str, is_whole: bool) -> subprocess.CompletedProcess[str]:
        words = ["install", "--dry-run", "--only-binary=:all:", "--python-version", python, "--target", target]
        return pip(*words, *(whole if is_whole else ["--no-deps", *apart]))

    with ThreadPoolExecutor() as pool:
        answers = {(p, w): pool.submit(resolve, p, w) for p in PYTHONS for w in (True, False)}
        yield lambda python, is_whole: answers[python, is_whole].result()


@pytest.mark.parametrize("python", PYTHONS)
def test_the_declared_set_resolves(python: str, resolved: Callable[[str, bool], Any]) -> None:
    for is_whole, expected in ((True, ("numpy", "syrupy", "omegaconf")), (False, ("julius", "num2words"))):
        done = resolved(python, is_whole)
        assert done.returncode == 0, done.stderr
        would = done.stdout.splitlines()[-1]
        assert would.startswith("Would install") and all(f" {name}-" in would for name in expected)
        assert " torch-" not in would and "nvidia" not in would, "several GB would have been fetched"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_index_has_torch(python: str) -> None:
    """Reads the index's list; downloads nothing."""
    done = pip("index", "versions", "torch", "--only-binary=:all:", "--python-version", python)
    assert done.returncode == 0, done.stderr
    versions = done.stdout.splitlines()[1].removeprefix("Available versions:").replace(",", " ").split()
    assert TORCH_VERSION in {version.partition("+")[0] for version in versions}


def test_the_key_of_the_workflows_cache_has_the_version_of_each_package() -> None:
    """What `.ci/resolved.py` prints; nothing is installed for it."""
    words = [sys.executable, str(ROOT / ".ci" / "resolved.py")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    named = {normalise(line.partition("==")[0]) for line in lines if "==" in line}
    assert {name_of(line) for line in requirements(ROOT, tests=True)} | {"audiocraft"} <= named
    assert sum(line.startswith(f"torch=={TORCH_VERSION}") for line in lines) == 1
    assert f"python {sys.version}" in lines

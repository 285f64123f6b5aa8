"""Runs at the start of a watched program's Python, and of every Python that it starts: this folder is on PYTHONPATH.

It waits for `torch.optim.optimizer` to be imported, loads the recorder (the folder above this one) then, and lets the
`sitecustomize` run that this one stands in front of. The program need not be able to import this project.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from typing import Any

HERE = os.path.realpath(os.path.dirname(__file__))
AWAITED = "torch.optim.optimizer"
PACKAGE = "_harness_watch"


class Waiting:
    """An import hook that is there until the awaited module is imported."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != AWAITED:
            return None
        sys.meta_path.remove(Waiting)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        loader: Any = spec.loader if spec else None
        if loader is None:
            return None
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            begin(module)

        loader.exec_module = exec_module
        return spec


def begin(optimizers: Any) -> None:
    try:
        folder = os.path.dirname(HERE)
        load(PACKAGE, os.path.join(folder, "__init__.py"), [folder])
        importlib.import_module(f"{PACKAGE}.hooks").begin(optimizers)
    except Exception as error:  # the program goes on, whatever is wrong with its watcher
        print(f"harness watch: nothing is recorded: {type(error).__name__}: {error}", file=sys.stderr)


def load(name: str, path: str, places: list[str]) -> None:
    spec: Any = importlib.util.spec_from_file_location(name, path, submodule_search_locations=places)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


def run_the_next() -> None:
    """The module of this name that would have been imported if this folder were not there."""
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != HERE]
    spec: Any = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        sys.modules["sitecustomize"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["sitecustomize"])


if os.environ.get("HARNESS_WATCH"):
    sys.meta_path.insert(0, Waiting)
run_the_next()

"""Import audiocraft 1.3.0, unmodified, on a machine that has only part of what it asks for.

Two things stand between ``pip install --no-deps audiocraft`` and a working import (read in audiocraft 1.3.0):

* the package files ``audiocraft``, ``audiocraft.data`` and ``audiocraft.models`` import everything there is, the
  solvers included. They are given an empty body here; their submodules load when they are asked for (PEP 562).
* a few packages are imported at the top of modules that the training path needs, and used only by parts that it
  does not. Where such a package is absent, a placeholder stands in that raises ImportError when it is *used*.

Nothing of audiocraft is copied, and nothing on disk is changed. Packages that are installed are used as they are.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from importlib.metadata import version
from types import ModuleType
from typing import Any

LAZY_PACKAGES = ("audiocraft", "audiocraft.data", "audiocraft.models")
# Top-level packages audiocraft imports by name, and the submodules of each that it names in an import.
OPTIONAL_PACKAGES = {
    "xformers": ("xformers.ops",),
    "torchaudio": (),
    "av": (),
    "spacy": (),
    "librosa": ("librosa.filters",),
}
FROM_TRANSFORMERS = ("RobertaTokenizer", "T5EncoderModel", "T5Tokenizer", "EncodecModel")  # what audiocraft takes of it


class _LazyPackageLoader(importlib.abc.Loader):
    """Creates the package without running its ``__init__``; attributes are its submodules, loaded on demand."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__

        def load_submodule(attribute: str) -> Any:
            if attribute == "__version__" and name == "audiocraft":
                return version("audiocraft")
            try:
                return importlib.import_module(f"{name}.{attribute}")
            except ModuleNotFoundError as error:
                if error.name != f"{name}.{attribute}":
                    raise
                raise AttributeError(f"module {name!r} has no submodule {attribute!r}") from None

        module.__getattr__ = load_submodule  # type: ignore[method-assign]


class _LazyPackageFinder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname not in LAZY_PACKAGES:
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path)
        if found is None or found.origin is None:
            return None
        spec = importlib.util.spec_from_file_location(
            fullname,
            found.origin,
            loader=_LazyPackageLoader(),
            submodule_search_locations=list(found.submodule_search_locations or []),
        )
        return spec


class _Absent:
    """Stands for a class or function of a package that is not installed; says so when it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _refuse(self) -> ImportError:
        package = self._name.split(".")[0]
        return ImportError(
            f"{self._name} is needed here, and {package} is not loaded. Install it: pip install {package}"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise self._refuse()

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise self._refuse()


def _placeholder(name: str) -> ModuleType:
    module = ModuleType(name, f"Placeholder: {name} is not loaded in this process.")
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__path__ = []

    def absent(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return _Absent(f"{name}.{attribute}")

    module.__getattr__ = absent  # type: ignore[method-assign]
    return module


def _add_placeholders(package: str, submodules: tuple[str, ...]) -> None:
    top = sys.modules[package] = _placeholder(package)
    for name in submodules:
        sub = sys.modules[name] = _placeholder(name)
        setattr(top, name.rpartition(".")[2], sub)


def prepare_audiocraft(*, transformers: bool) -> None:
    """Make ``audiocraft.models.musicgen`` importable in this process. Call it before the first audiocraft import.

    ``transformers``: whether the model needs that package (a T5 text conditioner, a codec from the hub). It costs
    2.3 s of import, so a model that needs nothing of it gets a placeholder. Raises ImportError if it is needed and
    absent.
    """
    if transformers:
        if isinstance(getattr(sys.modules.get("transformers"), "EncodecModel", None), _Absent):
            raise ImportError("transformers was replaced by a placeholder earlier in this process; start a new one")
        # Before the placeholders: for what it finds here (librosa, say), transformers imports more that is not there.
        installed = importlib.import_module("transformers")
        for name in FROM_TRANSFORMERS:
            getattr(installed, name)
    if not any(isinstance(finder, _LazyPackageFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LazyPackageFinder())
    for package, submodules in OPTIONAL_PACKAGES.items():
        if package in sys.modules or importlib.util.find_spec(package) is not None:
            continue
        _add_placeholders(package, submodules)
        if package == "xformers":
            import torch

            # The two names that audiocraft touches even with the torch attention backend.
            operations = sys.modules["xformers.ops"]
            operations.unbind = torch.unbind  # type: ignore[attr-defined]
            operations.LowerTriangularMask = type("LowerTriangularMask", (), {})  # type: ignore[attr-defined]
    if not transformers and "transformers" not in sys.modules:
        _add_placeholders("transformers", ())

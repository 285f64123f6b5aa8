"""Who imports whom: read from the source, wherever in a file an import stands and however it is written."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LOADED = pytest.StashKey[frozenset[str]]()  # the modules that were loaded when the tests had been collected
ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = "?"  # imported by a name that is made while the program runs


def module_of(path: Path) -> str:
    """``harness/lane/files.py`` is ``harness.base.files``; a package's ``__init__.py`` is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, source: str | None = None, *, at_import: bool = False) -> set[str]:
    """Every module that ``path`` imports (``source``: with this text in it), and every name it takes from one.

    ``at_import``: those alone that are loaded when it is itself.
    """
    found: set[str] = set()
    calls = {"import_module", "__import__", "run_module"}
    package = path.parent.relative_to(ROOT).parts
    for node in _nodes(ast.parse(path.read_text() if source is None else source), at_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
            calls |= {alias.asname for alias in node.names if alias.name in calls and alias.asname}
        elif isinstance(node, ast.Call) and _name(node.func) in calls:
            first = node.args[0] if node.args else None
            found.add(first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else UNKNOWN)
    return found


def _nodes(node: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    """All nodes below; ``at_import``: but those of functions, and of what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if at_import and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import and isinstance(child, ast.If) and _name(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _nodes(child, at_import)


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def graph(files: list[Path]) -> dict[str, set[str]]:
    """Each module, and those among ``files`` that it loads when it is imported."""
    modules = {module_of(path): path for path in files}
    return {name: imports_of(path, at_import=True) & set(modules) - {name} for name, path in modules.items()}


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """The groups of modules in which each one imports every other, by way of the rest."""
    reach = {name: reached(edges, name) for name in edges}
    groups = [frozenset(other for other in reach[name] if name in reach[other]) for name in edges]
    return [set(group) for group in sorted(set(groups), key=sorted) if group]


def reached(edges: dict[str, set[str]], start: str) -> set[str]:
    """What ``start`` imports, by way of others too."""
    found: set[str] = set()
    waiting = list(edges.get(start, ()))
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += edges.get(name, ())
    return found

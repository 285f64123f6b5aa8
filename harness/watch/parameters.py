"""Whose the parameters are, and what they are called."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from .names import class_name, named_parameters


class ByParameter:
    """A text for each parameter that lives. (Tensors compare by value: they can be no dictionary's keys.)"""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, str]] = {}

    def __contains__(self, parameter: Any) -> bool:
        return id(parameter) in self._found and self._found[id(parameter)][0]() is parameter

    def __getitem__(self, parameter: Any) -> str:
        return self._found[id(parameter)][1]

    def __setitem__(self, parameter: Any, text: str) -> None:
        self._found[id(parameter)] = weakref.ref(parameter), text


def owners(wanted: Sequence[Any]) -> list[Any]:
    """The modules that have the parameters and lie in no other, in the order of the first parameter of each."""
    ids = {id(p) for p in wanted}
    found = [
        o
        for o in gc.get_objects()
        if issubclass(type(o), torch.nn.Module) and any(id(p) in ids for p in o.parameters())
    ]
    inner = {id(child) for owner in found for child in owner.modules() if child is not owner}
    place = {id(p): number for number, p in enumerate(wanted)}
    roots = [owner for owner in found if id(owner) not in inner]
    return sorted(roots, key=lambda root: min(place[id(p)] for p in root.parameters() if id(p) in place))


def labels(roots: Sequence[Any], wanted: Sequence[Any]) -> ByParameter:
    """Names for the parameters of the modules, and for others of those that are wanted by number."""
    found = ByParameter()
    for number, root in enumerate(roots):
        begin = f"{number}.{class_name(root)}." if len(roots) > 1 else ""
        for name, p in named_parameters(root):
            found[p] = begin + name
    for number, p in enumerate(wanted):
        if p not in found:
            found[p] = f"parameter {number}"
    return found

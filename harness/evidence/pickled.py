"""The pickle of a checkpoint, read without making anything of what it names: nothing of a file is ever executed.

The unpickler knows a few names, all of them functions and classes of this file. Any other name stands for itself: an
object of it is an `Opaque` with what the pickle puts into it, so that the tensors in it are found, and the rest can be
listed. What would run a program is refused.
"""

from __future__ import annotations

import io
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness.evidence.errors import mismatch, one_line

NODES_LIMIT = 1_000_000
NAME_LIMIT = 4096
STORAGES = {"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
             "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
             "ComplexFloat": "complex64", "ComplexDouble": "complex128", "Untyped": "uint8"}  # fmt: skip
_TORCH = ("torch", "torch._utils", "torch.storage", "torch.serialization")
_VALUES = {("_codecs", "encode"): "bytes", ("__builtin__", "set"): "set", ("__builtin__", "complex"): "complex"}
# What runs something when it is called, and is in no checkpoint that somebody means well with.
_RUNS = {"builtins", "ctypes", "importlib", "nt", "os", "posix", "pty", "runpy", "shutil", "socket", "subprocess",
         "sys", "webbrowser"}  # fmt: skip
_OPENS = {("io", "open"), ("_io", "open"), ("io", "open_code"), ("_io", "open_code")}
_TYPES = set("bool bytearray bytes complex dict float frozenset getattr int list object range set slice str".split())


class Dict(dict[Any, Any]):
    """An ordered dictionary, which may carry attributes."""


@dataclass(frozen=True)
class Named:
    """Something that a pickle names and that is not made: a dtype, a layout, a set, a tensor of another kind."""

    name: str

    def __call__(self, *_: Any) -> Named:
        return self

    __setitem__ = append = extend = add = __call__


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names, of whatever module. Calling it makes an object that is none."""

    name: str

    def __call__(self, *arguments: Any) -> Opaque:
        return Opaque(self.name, arguments)


class Opaque:
    """An object of a class that is not loaded: its arguments, state and items, as the pickle has them."""

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = None
        self.items: list[tuple[Any, Any]] = []

    def __call__(self, *arguments: Any) -> Opaque:
        return Opaque(self.name, (self, *arguments))

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        self.items.append((len(self.items), value))

    add = append

    def parts(self) -> Iterator[tuple[str, Any]]:
        """What is in it, by name: its fields and items, and by number the arguments that it was made with."""
        states = self.state if isinstance(self.state, tuple) and len(self.state) == 2 else (self.state,)
        for state in states:  # of an object with slots there are two
            if isinstance(state, dict):
                yield from ((key_text(key), value) for key, value in state.items())
            elif state is not None:
                yield "state", state
        yield from ((key_text(key), value) for key, value in self.items)
        yield from ((f"argument {number}", value) for number, value in enumerate(self.arguments))


@dataclass(frozen=True)
class Storage:
    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; `dtype` where it is not the storage's own, `bits` what is done to its values on reading."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    bits: dict[str, Any]
    dtype: str


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, _: Any, hooks: Any, bits: Any = None) -> Tensor:
    return Tensor(storage, offset, shape, stride, bits or {}, storage.dtype)


def _tensor_of(
    storage: Any, offset: Any, shape: Any, stride: Any, _: Any, hooks: Any, dtype: Named, bits: Any = None
) -> Tensor:
    return Tensor(storage, offset, shape, stride, bits or {}, dtype.name)


def _of_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes of its own. ``function`` is one of those below, or stands for itself."""
    return function(*arguments)


def _object(kind: Any, *_: Any) -> Any:
    return kind()


def _attribute(owner: Any, name: Any) -> Any:
    """What an attribute stands for: of a class, a member (of an enum, as Python 3.11.2 pickles it). None is got."""
    if isinstance(owner, Global) and isinstance(name, str):
        return Opaque(one_line(f"{owner.name}.{name}", 120))
    return Opaque("builtins.getattr", (owner, name))


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "getattr"): _attribute,
    ("__builtin__", "getattr"): _attribute,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): Dict,
    ("collections", "Counter"): Dict,
    ("copyreg", "_reconstructor"): _object,
    ("copy_reg", "_reconstructor"): _object,
}


class Unpickler(pickle._Unpickler):  # the one that is written in Python asks for memory by what is there
    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch}
    del dispatch[pickle.BYTEARRAY8[0]]  # but for this, which torch does not write

    proto: int
    stack: list[Any]
    append: Callable[[Any], None]

    def __init__(self, stream: io.BytesIO, path: Path) -> None:
        super().__init__(stream)
        self.proto = 0
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module in _TORCH or (module, name) in _VALUES:
            return Named(_VALUES.get((module, name), name))
        if self.proto < 3:  # written with the names of Python 2
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        top = module.partition(".")[0].replace("__builtin__", "builtins")
        if (top in _RUNS and not (top == "builtins" and name in _TYPES)) or (top, name) in _OPENS:
            named = f"GLOBAL {one_line(f'{module}.{name}', 120)}"
            found = f"objects that are not loaded, because that could execute code ({named}); refused unread"
            raise mismatch(self._path, found, "tensors and plain values only")
        return Global(one_line(f"{module}.{name}", 120))

    def persistent_load(self, pid: Any) -> Storage:
        tag, kind, key, _, count = pid
        if tag != "storage" or type(count) is not int or not isinstance(key, str):
            raise ValueError("no storage")
        return Storage(STORAGES.get(kind.name.removesuffix("Storage"), kind.name), key, count)

    def load_newobj(self) -> None:
        """As a call: what stands for a class has no `__new__`."""
        arguments = self.stack.pop()
        kind = self.stack.pop()
        self.append(kind(*arguments))

    def load_newobj_ex(self) -> None:
        named = self.stack.pop()
        arguments = self.stack.pop()
        kind = self.stack.pop()
        self.append(kind(*arguments, *named.values()))

    def load_build(self) -> None:
        """The state of an object. Nothing else has one: what is of this file stays as it is."""
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Opaque):
            made.state = state
        elif not isinstance(made, Dict | Tensor | Named | Global):
            raise ValueError(f"a state of {type(made).__name__}")

    dispatch |= {
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
    }


def key_text(key: Any) -> str:
    """A dictionary's key as a part of a name."""
    plain = key is None or isinstance(key, str | bool | int | float)
    return str(key) if plain else f"<{getattr(key, 'name', type(key).__name__)}>"


def flatten(loaded: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """(name, leaf) of nested dictionaries, lists, tuples and objects. An object is a leaf too, and what is in it comes
    under its name; one that comes again is not looked into. Raises EvidenceError for cycles and for name clashes."""
    stack: list[tuple[str, Any, bool]] = [("", loaded, False)]
    if isinstance(loaded, dict) and "adapter" in loaded and loaded.keys() <= {"adapter", "meta"}:
        stack = [("", loaded.get("meta", {}), False), ("", loaded["adapter"], False)]
    names: set[str] = set()
    seen: set[int] = set()
    nodes = 0
    while stack:
        name, value, within = stack.pop()  # ``within``: within an object, where keys may be of any type
        nodes += 1
        if nodes > NODES_LIMIT or len(name) > NAME_LIMIT:
            raise mismatch(path, "values nested without end", f"at most {NODES_LIMIT:,} values with names of their own")
        if isinstance(value, dict | list | tuple):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                if not within and (not isinstance(key, str | int) or (isinstance(key, int) and key.bit_length() > 64)):
                    raise mismatch(path, f"a key of type {type(key).__name__}", "names, and whole numbers of 64 bits")
                stack.append((f"{name}.{key_text(key)}" if name else key_text(key), item, within))
            continue
        if isinstance(value, Opaque) and id(value) not in seen:
            seen.add(id(value))
            stack += [(f"{name}.{key}" if name else key, item, True) for key, item in value.parts()]
        if within and name in names:
            number = 2
            while f"{name} ({number})" in names:
                number += 1
            name = f"{name} ({number})"
        if name in names:
            raise mismatch(path, f"two values of the name {one_line(name, 80)!r}", "each name once")
        names.add(name)
        yield name, value

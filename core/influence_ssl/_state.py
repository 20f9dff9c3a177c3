"""What a setting is, in words that change when it changes, also in place or in another process."""

from __future__ import annotations

import dis
import hashlib
import importlib.util
import inspect
import logging
import re
import sys
import sysconfig
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from functools import cache, cached_property, partial, partialmethod
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})
_CODE = FunctionType, staticmethod, classmethod, property, cached_property, partialmethod, type
_FOLDERS = {"site-packages", "dist-packages"}
# What names a device or a file.
_PLACE = re.compile(r"cpu|mps|(cuda|xpu)(:\d+)?|.*[/\\].*", re.DOTALL)
LOADED = "_loaded_"  # before the name of a file of one's own that a command imports
# Where they lie does not matter: a run names their versions.
_LIBRARIES = "torch", "influence_ssl"


def state_of(value: Any, opaque: Callable[[Any], object] = lambda value: "") -> str:
    """SHA-256 of a value and all that it holds: attributes, code, closures, tensors.

    Of code it includes all that it names of modules that are not installed as libraries: functions,
    classes and data. ``opaque`` describes what shows none of that, such as a generator of random
    numbers; in one process, ``id`` can tell two of them apart.
    """
    state = State(opaque)
    return _hash(state.of(value), sorted(state.data.items()))


class State:
    """The states of several values, apart from the data that running may change.

    ``data``: the states of the variables of modules, classes, functions and closures, and of the
    attributes of objects of one's own, by name. ``known`` names parts that need no look.
    ``encoder``: whether to leave out what differs between equal encoders, that is objects of
    installed classes and the names of devices and files.
    """

    def __init__(
        self,
        opaque: Callable[[Any], object] = lambda value: "",
        known: Iterable[tuple[Any, str]] = (),
        encoder: bool = False,
    ) -> None:
        self._data: dict[str, list[str]] = {}
        self.opaque = opaque
        self.encoder = encoder
        # With the value, so that no id is used again.
        self._known = {id(value): (value, name) for value, name in known}
        self._open: set[int] = set()
        self._named: set[tuple[int, str]] = set()
        self._number: dict[str, int] = {}

    @property
    def data(self) -> dict[str, str]:
        """The states of what running may change, by name; of all objects of one name together."""
        return {
            path: held[0] if len(held) == 1 else _hash(held) for path, held in self._data.items()
        }

    def of(self, value: Any) -> str:
        """SHA-256 of a value, without what joins :attr:`data`."""
        kind = type(value)
        if self.encoder and kind is str and _PLACE.fullmatch(value):
            return ""
        if kind in _PLAIN:
            return _hash(kind.__name__, repr(value))
        if id(value) in self._known:
            return self._known[id(value)][1]
        if id(value) in self._open:
            return "within itself"
        self._open.add(id(value))
        try:
            name = name_of(value if isinstance(value, type) else kind)
            own = None if installed(kind.__module__) else self._own(value, kind)
            found = _hash(name, self._parts(value), own)
        finally:
            self._open.discard(id(value))
        self._known[id(value)] = value, found
        return found

    def attempt(self, value: Any) -> str:
        """:meth:`of` where that succeeds; a foreign object may fail, or be nested too deeply."""
        with suppress(Exception):
            return self.of(value)
        return ""

    def _parts(self, value: Any) -> Any:
        if isinstance(value, bool | int | float | complex | str | bytes):
            return repr(value)
        if isinstance(value, Tensor):
            return self._tensor(value.detach()), str(value.dtype), tuple(value.shape)
        if isinstance(value, torch.device):
            return ""
        if isinstance(value, np.ndarray | np.generic):
            content = self.of(value.tolist()) if value.dtype.hasobject else _bytes(value)
            return content, str(value.dtype), np.shape(value)
        if isinstance(value, Mapping):
            pairs = sorted(value.items(), key=lambda pair: self._rank(pair[0]))
            return sorted((self.of(key), self.of(held)) for key, held in pairs)
        if isinstance(value, list | tuple):
            flat = not self.encoder and _flat(value)
            return repr(value) if flat else [self.of(one) for one in value]
        if isinstance(value, set | frozenset):
            return sorted([self.of(one) for one in sorted(value, key=self._rank)])
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return self.of(value.__func__), self.of(value.__self__)
        if isinstance(value, BuiltinFunctionType):
            return value.__module__, value.__qualname__
        if isinstance(value, staticmethod | classmethod):
            return self.of(value.__func__)
        if isinstance(value, property):
            return [self.of(part) for part in (value.fget, value.fset, value.fdel)]
        if isinstance(value, cached_property):
            return self.of(value.func)
        if isinstance(value, partial | partialmethod):
            return self.of(value.func), self.of(value.args), self.of(value.keywords)
        if isinstance(value, CodeType):
            consts = [self.of(one) for one in value.co_consts]
            return _signature(value), value.co_code, value.co_exceptiontable, value.co_names, consts
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, ModuleType):
            self._module(value, vars(value))
            return _place(value.__name__)
        if isinstance(value, np.ufunc):
            return repr(value)
        if isinstance(value, logging.Logger):
            return value.name
        if not installed(type(value).__module__):
            return ""  # its class and attributes are all there is
        if self.encoder:
            return ""
        if hasattr(type(value), "__array__") or hasattr(type(value), "__array_interface__"):
            return self.of(np.asarray(value))
        if hasattr(value, "__dict__"):
            # Its class may be installed and yet have a base or a copy of its own.
            return self._class(type(value)), self.of(self._attributes(value))
        text = repr(value)
        return self.opaque(value) if " at 0x" in text else text

    def _tensor(self, value: Tensor) -> Any:
        if value.layout is not torch.strided:
            value = value.to_sparse_coo().coalesce()
            return self._tensor(value.indices()), self._tensor(value.values())
        value = value.cpu().resolve_conj().resolve_neg().contiguous()
        return _bytes(value.flatten().view(torch.uint8).numpy())

    def _own(self, value: Any, kind: type) -> tuple[str, int]:
        """An object of one's own: its class and its number; its attributes join :attr:`data`."""
        found, attributes = (self.of(kind), self._numbered(name_of(kind))), self._attributes(value)
        self._join(name_of(kind), sorted(attributes))
        for name, held in sorted(attributes.items()):
            self._join(f"{name_of(kind)}.{name}", held)
        return found

    def _numbered(self, name: str) -> int:
        """How many of this name were found before: their data alone do not tell which is where."""
        self._number[name] = self._number.get(name, 0) + 1
        return self._number[name]

    def _rank(self, value: Any) -> str:
        """What orders the members of a set: their names, and what is plain of their attributes."""
        if type(value) in _PLAIN:
            return repr(value)
        named: Any = value if isinstance(value, type | FunctionType) else type(value)
        attributes = sorted(self._attributes(value).items())
        return _hash(name_of(named), [(n, repr(x)) for n, x in attributes if type(x) in _PLAIN])

    def _join(self, path: str, held: Any) -> None:
        self._data.setdefault(path, []).append(self.attempt(held))

    def _attributes(self, value: Any) -> dict[str, Any]:
        """Those of an object, in slots too, but for what a ``cached_property`` keeps."""
        if isinstance(value, type | FunctionType | ModuleType):
            return {}
        kinds = [part for base in reversed(type(value).__mro__) for part in vars(base).items()]
        found = {
            name: getattr(value, name)
            for name, part in kinds
            if isinstance(part, MemberDescriptorType) and hasattr(value, name)
        }
        kept = {name for name, part in kinds if isinstance(part, cached_property)}
        held = getattr(value, "__dict__", {})
        return found | {name: one for name, one in held.items() if name not in kept}

    def _function(self, value: FunctionType) -> Any:
        module = value.__globals__.get("__name__", "")
        place, code = f"{_place(module)}.{value.__qualname__}", value.__code__
        # super() names the class, whose other methods need not matter.
        free = zip(code.co_freevars, value.__closure__ or (), strict=True)
        cells = {name: _content(cell) for name, cell in free if name != "__class__"}
        own = [self._held(place, name, one) for name, one in (_defaults(value) | cells).items()]
        if installed(module):  # which may still hold code of one's own, as a decorator does
            return place, self._numbered(place), own
        names, variables, imported = _used(value.__code__)
        for cell in cells.values():
            if isinstance(cell, ModuleType):
                self._module(cell, names)
        for other in imported:
            for found in _imported(other, value.__globals__.get("__package__") or ""):
                self._module(found, names)
        used = [
            self._variable(value.__globals__, _place(module), name, names) for name in variables
        ]
        for name in sorted(vars(value)):
            used.append(self._variable(vars(value), place, name, names))
        return self.of(code), self._numbered(place), own, used

    def _held(self, place: str, name: str, held: Any) -> str:
        """The state of code that a function holds; that of data joins :attr:`data`."""
        if isinstance(held, ModuleType):
            return _place(held.__name__)
        if isinstance(held, _CODE):
            return self.of(held)
        self._join(f"{place}.{name}", held)
        return ""

    def attributes_of(self, kind: type, names: Container[str] | None = None) -> None:
        """Let the data of a class join :attr:`data`, all of it or that of these names."""
        for name, held in sorted(vars(kind).items()):
            code = name.startswith("__") or isinstance(held, (*_CODE, MemberDescriptorType))
            if not code and (names is None or name in names):
                self._datum(vars(kind), name_of(kind), name)

    def _class(self, kind: type) -> list[tuple[str, str]]:
        found = []
        for base in kind.__mro__:
            if not installed(base.__module__):
                code = [(n, x) for n, x in sorted(vars(base).items()) if isinstance(x, _CODE)]
                found += [(name, self.of(held)) for name, held in code]
                self.attributes_of(base)
        return found

    def _module(self, module: ModuleType, names: Iterable[str]) -> None:
        if not installed(module.__name__):
            for name in sorted({*names} & vars(module).keys()):
                if not name.startswith("__"):
                    self._datum(vars(module), _place(module.__name__), name, names)

    def _variable(
        self, held: Mapping[str, Any], place: str, name: str, names: Iterable[str]
    ) -> tuple[str, str]:
        """The state of code, under its name; that of data joins :attr:`data`."""
        value = held.get(name)
        if isinstance(value, _CODE):
            return name, self.of(value)
        if name in held:
            self._datum(held, place, name, names)
        return name, ""

    def _datum(
        self, held: Mapping[str, Any], place: str, name: str, names: Iterable[str] = ()
    ) -> None:
        value = held[name]
        if isinstance(value, ModuleType):
            known = (id(value), "\n".join(sorted(names)))
            if known not in self._named:
                self._named.add(known)
                self._module(value, names)
            return
        known = (id(value), f"{place}.{name}")
        if known not in self._named:
            self._named.add(known)
            self._join(f"{place}.{name}", value)


def forward_code(encoder: nn.Module) -> tuple[list[tuple[str, Any]], set[str]]:
    """The methods of one's own that a forward pass may run, and all names in what it may run.

    It begins with ``forward``, hooks and functions among the attributes, and goes on with all
    methods whose names occur.
    """
    methods: dict[str, list[tuple[type, Any]]] = {}
    waiting, names, found = ["forward"], set[str](), []
    for module in encoder.modules():
        hooks = *module._forward_pre_hooks.values(), *module._forward_hooks.values()
        for function in (*hooks, *vars(module).values()):
            waiting += _names(function)
        for kind in type(module).__mro__:
            for name, held in vars(kind).items() if kind not in (nn.Module, object) else ():
                if isinstance(held, _CODE) and (kind, held) not in methods.get(name, ()):
                    methods.setdefault(name, []).append((kind, held))
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            for kind, held in methods.get(name, ()):
                if not installed(kind.__module__):
                    found.append((f"{name_of(kind)}.{name}", held))
                for function in _functions(held):
                    waiting += _names(function)
    return sorted(found, key=lambda one: one[0]), names


@cache
def installed(module: str) -> bool:
    """Whether a module is part of Python or of an installed library."""
    if module == "__main__":
        return False
    if module.partition(".")[0] in (*_LIBRARIES, *sys.builtin_module_names):
        return True
    return _in_library(getattr(sys.modules.get(module), "__file__", None))


def _in_library(file: str | None) -> bool:
    if file is None:
        return False
    path = Path(file)
    return bool(_FOLDERS & {*path.parts}) or path.is_relative_to(sysconfig.get_path("stdlib"))


@cache
def _used(code: CodeType) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """All names and texts in a code, the global variables among them, and what it imports."""
    names, variables, imported = set(code.co_names), set(), set()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            variables.add(step.argval)
        elif step.opname == "IMPORT_NAME":
            imported.add(step.argval)
    for inner in code.co_consts:
        if isinstance(inner, str):
            names.add(inner)  # as getattr takes it
        if isinstance(inner, CodeType):
            for own, more in zip((names, variables, imported), _used(inner), strict=True):
                own.update(more)
    return tuple(sorted(names)), tuple(sorted(variables)), tuple(sorted(imported))


def _imported(name: str, package: str) -> list[ModuleType]:
    """The modules of one's own that ``import name`` inside a function may mean."""
    parts = package.split(".") if package else []
    above = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    found = []
    for place in (name, *(f"{one}.{name}".rstrip(".") for one in above)):
        with suppress(Exception):  # it may be optional
            first = importlib.util.find_spec(place.partition(".")[0])
            if first and not (first.origin == "built-in" or _in_library(first.origin)):
                found.append(importlib.import_module(place))
    return found


def _functions(held: Any) -> tuple[Any, ...]:
    """The functions behind an entry of a class."""
    if isinstance(held, property):
        return held.fget, held.fset
    return (held.func if isinstance(held, cached_property | partialmethod) else held,)


def _names(function: Any, seen: frozenset[Any] = frozenset()) -> set[str]:
    """The names in a function and in those of one's own that it calls by their names."""
    if isinstance(function, MethodType | staticmethod | classmethod):
        function = function.__func__
    if isinstance(function, FunctionType):
        function = inspect.unwrap(function)
    if not isinstance(function, FunctionType) or function in seen:
        return set()
    names, variables, _ = _used(function.__code__)
    known = function.__globals__
    called = [known[name] for name in variables if isinstance(known.get(name), FunctionType)]
    own = [one for one in called if not installed(one.__module__)]
    return set(names).union(*(_names(one, seen | {function}) for one in own))


def _flat(values: Iterable[Any]) -> bool:
    return all(
        type(one) in _PLAIN or (type(one) is tuple and all(type(x) in _PLAIN for x in one))
        for one in values
    )


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode(errors="surrogatepass")).hexdigest()


def name_of(kind: Any) -> str:
    """The name of a class or function with that of its module, see :func:`_place`."""
    return f"{_place(kind.__module__)}.{kind.__qualname__}"


@cache
def _place(module: str) -> str:
    """A module's name; of one's own the last part, the same for a script and for its import."""
    if installed(module):
        return module
    if module == "__main__" and (file := getattr(sys.modules[module], "__file__", None)):
        return Path(file).stem
    return module.rpartition(".")[2].removeprefix(LOADED)


def _signature(code: CodeType) -> tuple[Any, ...]:
    """The names by which a function is called or finds what its closure holds."""
    own = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    own += bool(code.co_flags & inspect.CO_VARKEYWORDS)
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    return counts, code.co_varnames[:own], code.co_freevars


def _defaults(function: FunctionType) -> dict[str, Any]:
    """A function's default values by the names of its parameters."""
    code, values = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    return dict(zip(names, values, strict=True)) | (function.__kwdefaults__ or {})


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


def _bytes(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()

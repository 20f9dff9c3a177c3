"""What a setting is, in words that change when it changes, also in place or in another process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Their code belongs to the installed versions.
_LIBRARIES = "builtins", "torch"


def state_of(value: Any, opaque: Callable[[Any], object] = lambda value: "") -> str:
    """SHA-256 of a value and all that it holds: attributes, code, closures, tensors.

    Of a function it includes the code, the closure, and the numbers, texts and functions of its own
    module that it uses. ``opaque`` describes what shows none of that, such as a generator of random
    numbers; in one process, ``id`` can tell two of them apart.
    """
    return _State(opaque).of(value)


class _State:
    def __init__(self, opaque: Callable[[Any], object]) -> None:
        self.opaque = opaque
        self._known: dict[int, tuple[Any, str]] = {}  # with the value, so that no id is used again
        self._open: set[int] = set()

    def of(self, value: Any) -> str:
        if id(value) in self._known:
            return self._known[id(value)][1]
        if id(value) in self._open:
            return "within itself"
        self._open.add(id(value))
        found = hashlib.sha256(repr((self._kind(value), self._parts(value))).encode()).hexdigest()
        self._open.discard(id(value))
        self._known[id(value)] = value, found
        return found

    def _parts(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return repr(value)
        if isinstance(value, Tensor):
            return _bytes(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()), (
                str(value.dtype),
                tuple(value.shape),
            )
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            return _bytes(np.asarray(value)), str(value.dtype), np.shape(value)
        if isinstance(value, Mapping):
            return sorted((self.of(key), self.of(held)) for key, held in value.items())
        if isinstance(value, list | tuple):
            return [self.of(one) for one in value]
        if isinstance(value, set | frozenset):
            return sorted(self.of(one) for one in value)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return self.of(value.__func__), self.of(value.__self__)
        if isinstance(value, partial):
            return self.of(value.func), self.of(value.args), self.of(value.keywords)
        if isinstance(value, CodeType):
            return value.co_code, value.co_names, [self.of(one) for one in value.co_consts]
        if isinstance(value, type):
            return self._methods(value)
        if hasattr(value, "__dict__"):
            return self._methods(type(value)), self.of(vars(value))
        text = repr(value)
        return self.opaque(value) if " at 0x" in text else text

    @staticmethod
    def _kind(value: Any) -> str:
        kind = value if isinstance(value, type) else type(value)
        return f"{kind.__module__}.{kind.__qualname__}"

    def _function(self, value: FunctionType) -> Any:
        used = {name: value.__globals__.get(name) for name in value.__code__.co_names}
        used = {
            name: held
            for name, held in used.items()
            if isinstance(held, bool | int | float | str)
            or (isinstance(held, FunctionType) and held.__globals__ is value.__globals__)
        }
        cells = [_content(cell) for cell in value.__closure__ or ()]
        held = value.__code__, value.__defaults__, value.__kwdefaults__, used, cells
        return [self.of(one) for one in held]

    def _methods(self, kind: type) -> list[tuple[str, str]]:
        own = [base for base in kind.__mro__ if base.__module__.split(".")[0] not in _LIBRARIES]
        return [
            (name, self.of(held))
            for base in own
            for name, held in sorted(vars(base).items())
            if isinstance(held, FunctionType)
            or (isinstance(held, bool | int | float | str) and not name.startswith("__"))
        ]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


def _bytes(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()

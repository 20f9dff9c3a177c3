"""In every test, the core is held to the shapes that its annotations name.

jaxtyping's own option for pytest also wraps the functions inside functions, anew at each call, and
that takes longer than scoring a small network. No shape is named there.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

MODULES = ("influence_ssl._gradients", "influence_ssl._layers")


def hold(owner: ModuleType | type, module: ModuleType) -> None:
    """Wrap what of a module or of a class in it is written in the module's file."""
    from beartype import beartype
    from jaxtyping import jaxtyped

    for name, value in vars(owner).copy().items():
        if inspect.isclass(value) and value.__module__ == module.__name__:
            hold(value, module)
            jaxtyped(value, typechecker=beartype)
        function = value.fget if isinstance(value, property) else value
        function = getattr(function, "__func__", function)
        if inspect.isfunction(function) and function.__code__.co_filename == module.__file__:
            setattr(owner, name, jaxtyped(value, typechecker=beartype))


class Loader(SourceFileLoader):
    """Wraps a module's functions before others can import them."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        hold(module, module)


class Finder(MetaPathFinder):
    """Finds :data:`MODULES` alone."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in MODULES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(name, spec.loader.path)
        return spec


def install() -> None:
    """From now on; none of the modules may have been imported before."""
    if known := sys.modules.keys() & set(MODULES):
        raise RuntimeError(f"imported before their shapes could be held: {', '.join(known)}")
    sys.meta_path.insert(0, Finder())

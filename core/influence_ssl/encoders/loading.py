"""Encoders by name, with their weights, for the command line."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from influence_ssl._layers import refuse_lazy
from influence_ssl._state import LOADED
from influence_ssl.encoders.builtin import LIMITS, from_package
from influence_ssl.encoders.checkpoints import kind, read_tensors
from influence_ssl.encoders.parts import Part, few, find_part
from influence_ssl.encoders.zoo import from_zoo
from influence_ssl.errors import (
    InfluenceOSError,
    InfluenceTypeError,
    InfluenceValueError,
    described,
)

if TYPE_CHECKING:
    from influence_ssl.files.images import Preprocess


class Loaded(NamedTuple):
    """An encoder, its preprocessing (``None``: RGB in [0, 1]), and the origin of its weights.

    ``untrained``: an encoder by name was given no weights. ``part``: the prefix of the encoder's
    names in a training checkpoint, empty if they have none. ``left``: heads in the checkpoint that
    were not loaded. ``limits``: the limitations of a built-in encoder.
    """

    module: nn.Module
    preprocess: Preprocess | None
    untrained: bool
    part: str = ""
    left: tuple[str, ...] = ()
    limits: str = ""


def load_encoder(
    spec: str, weights: str | None = None, seed: int = 0, part: str | None = None
) -> Loaded:
    """The encoder behind ``timm:NAME``, ``torchvision:NAME``, a function or a built-in name.

    The built-in encoder is ``builtin:cifar-simclr``. A function, ``package.module:function`` or
    ``file.py:function``, is called without arguments, after ``torch.manual_seed(seed)``. It returns
    an ``nn.Module`` or a pair (module, preprocess), where preprocess maps a PIL image in mode RGB
    to the tensor that the encoder receives.

    ``weights`` is a file that :func:`~influence_ssl.encoders.checkpoints.read_tensors` reads. The
    encoder's part of it is loaded (:func:`~influence_ssl.encoders.parts.find_part`); ``part``
    restricts the choice to names that begin with it. ``"pretrained"`` loads the weights that timm
    or torchvision offer, and downloads them if they are not cached. ``untrained`` is set if an
    encoder by name was given no weights. Raises :class:`InfluenceError`.
    """
    if not isinstance(spec, str):
        raise InfluenceTypeError(
            f"an encoder is named by a string, such as 'timm:resnet18', instead of {spec!r:.60}."
        )
    pretrained = weights == "pretrained"
    if part is not None and (weights is None or pretrained):
        raise InfluenceValueError("--weights-part requires --weights FILE; give a file.")
    own = from_package(spec)
    if own is not None:
        if weights is not None:
            raise InfluenceValueError(f"--weights: {spec} has its own weights; leave it out.")
        return Loaded(*own, untrained=False, limits=LIMITS)
    named = from_zoo(spec, pretrained, seed)
    if named is None and pretrained:
        raise InfluenceValueError(
            "--weights pretrained requires timm:NAME or torchvision:NAME; give a file."
        )
    module, preprocess, dropped = _from_function(spec, seed) if named is None else named
    refuse_lazy(module)
    taken = Part("", {})
    if weights is not None and not pretrained:
        taken = _load_weights(module, Path(weights), dropped, part)
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor) and not tensor.isfinite().all():
            raise InfluenceValueError(
                f"the encoder's {name!r} has NaN or infinite values; use another checkpoint."
            )
    untrained = named is not None and weights is None
    return Loaded(module, preprocess, untrained, taken.prefix, tuple(taken.left))


def _from_function(spec: str, seed: int) -> tuple[nn.Module, Preprocess | None, tuple[str, ...]]:
    function = import_function(spec, "--encoder")
    torch.manual_seed(seed)
    try:
        made = function()
    except (Exception, SystemExit) as error:
        raise InfluenceValueError(f"--encoder {spec!r} fails: {described(error)}.") from error
    module, preprocess = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module) or not (preprocess is None or callable(preprocess)):
        raise InfluenceTypeError(
            f"--encoder {spec!r} returns {kind(made)}; it must return an nn.Module or a pair "
            "(nn.Module, preprocess)."
        )
    return module, preprocess, ()


class _AsItStands(SourceFileLoader):
    """Runs a file's source, and neither reads nor leaves a compiled copy.

    Python takes a copy for the file's if both have the size and the second of their last change.
    """

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def import_function(spec: str, option: str) -> Callable[..., Any]:
    """The function behind ``package.module:function`` or ``file.py:function``.

    The file's folder, or else the working directory, is put first on Python's path. ``option``
    names the argument in the :class:`InfluenceError` for a spec that cannot be resolved.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise InfluenceValueError(
            f"{option} {spec!r}: give package.module:function or file.py:function."
        )
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise InfluenceOSError(f"{option} {spec!r}: there is no file {place!r}.")
    # As `python file.py` and `python -m module` do, so that neighbouring modules are found.
    folder = str(Path(place).resolve().parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        if is_file:
            loader = _AsItStands(f"{LOADED}{Path(place).stem}", str(Path(place).absolute()))
            found = importlib.util.spec_from_loader(loader.name, loader)
            assert found is not None
            module = sys.modules[found.name] = importlib.util.module_from_spec(found)
            loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise InfluenceValueError(
            f"{option} {spec!r}: {place} cannot be imported: {described(error)}."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        own = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        ]
        raise InfluenceValueError(
            f"{option} {spec!r}: {place} has no function {name!r}; it has: {few(own) or 'none'}."
        )
    return function


def source_code(spec: str) -> bytes:
    """The files behind a spec of :func:`import_function`: the one named, and that of the code.

    The two differ if a module imports its function, or creates an object of another module's class
    and calls it.
    """
    found = import_function(spec, "")
    code = inspect.unwrap(found)
    if not (inspect.isroutine(code) or inspect.isclass(code)):
        code = type(code)
    place = spec.rpartition(":")[0]
    named = place if place.endswith(".py") else getattr(sys.modules[place], "__file__", None)
    files = sorted({str(Path(f).resolve()) for f in (named, _file_of(code)) if f is not None})
    return b"".join(Path(file).read_bytes() for file in files)


def _file_of(code: Any) -> str | None:
    try:
        return inspect.getsourcefile(code)
    except TypeError:  # built into Python
        return None


def _load_weights(
    module: nn.Module, path: Path, dropped: tuple[str, ...], wanted: str | None
) -> Part:
    tensors = read_tensors(path)
    part = find_part(module, tensors, str(path), dropped, wanted)
    # Only counters of batches may be missing, which nothing in eval mode reads.
    module.load_state_dict({own: tensors[name] for own, name in part.names.items()}, strict=False)
    return part

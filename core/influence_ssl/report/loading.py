"""Encoders by name, with their weights: what the command line can say instead of an object."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from influence_ssl.errors import InfluenceOSError, InfluenceTypeError, InfluenceValueError
from influence_ssl.report.zoo import from_zoo

if TYPE_CHECKING:
    from influence_ssl.images import Preprocess


# Under what key a whole training's checkpoint holds its encoder: solo-learn today, and before 2022.
_PARTS = ("backbone.", "encoder.")


class Loaded(NamedTuple):
    """An encoder, its preprocessing (``None``: RGB in [0, 1]), and where its weights are from.

    ``untrained``: an encoder by name was given none; ``part``: the prefix of those keys of a
    training's checkpoint that are the encoder's, empty where all of them are.
    """

    module: nn.Module
    preprocess: Preprocess | None
    untrained: bool
    part: str = ""


def load_encoder(spec: str, weights: str | None = None, seed: int = 0) -> Loaded:
    """The encoder behind ``timm:NAME``, ``torchvision:NAME`` or a function.

    A function, ``package.module:function`` or ``file.py:function``, is called without arguments,
    after ``torch.manual_seed(seed)``, and returns an ``nn.Module`` or a pair (module, preprocess),
    where preprocess maps a PIL image in mode RGB to the tensor that the encoder receives.
    ``weights`` is a ``.safetensors`` file or a ``state_dict`` saved by ``torch.save``, alone or
    under the key ``state_dict`` or ``model``; its keys must be those of the module, of which timm's
    and torchvision's classifiers are left out. Of a whole training, such as solo-learn's
    ``.ckpt``, the keys that begin with ``backbone.`` (or ``encoder.``) are taken, and projection,
    classifier and momentum network are left. ``"pretrained"`` takes those that timm or
    torchvision offer, from the network where they are not cached. ``untrained`` says that neither
    was given for an encoder by name. Raises :class:`InfluenceError`.
    """
    pretrained = weights == "pretrained"
    named = from_zoo(spec, pretrained, seed)
    if named is None and pretrained:
        raise InfluenceValueError(
            "--weights pretrained belongs to timm:NAME and torchvision:NAME; give a file."
        )
    module, preprocess, dropped = _from_function(spec, seed) if named is None else named
    part = ""
    if weights is not None and not pretrained:
        part = _load_weights(module, Path(weights), dropped)
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor) and not tensor.isfinite().all():
            raise InfluenceValueError(
                f"the encoder's {name!r} has NaN or infinite values; use another checkpoint."
            )
    return Loaded(module, preprocess, named is not None and weights is None, part)


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
            f"--encoder {spec!r} returns {_kind(made)}; it must return an nn.Module or a pair "
            "(nn.Module, preprocess)."
        )
    return module, preprocess, ()


def import_function(spec: str, option: str) -> Callable[..., Any]:
    """The function behind ``package.module:function`` or ``file.py:function``.

    A file's folder, or else the working directory, goes first on Python's path. ``option`` names
    the argument in the :class:`InfluenceError` of a spec that leads nowhere.
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
            found = importlib.util.spec_from_file_location(f"_loaded_{Path(place).stem}", place)
            assert found is not None
            assert found.loader is not None
            module = sys.modules[found.name] = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
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
            f"{option} {spec!r}: {place} has no function {name!r}; it has: {_few(own) or 'none'}."
        )
    return function


def source_code(spec: str) -> bytes:
    """The files behind a spec of :func:`import_function`: the one named, and that of the code.

    The two differ where a module imports its function, or where it makes an object of another
    module's class and calls that.
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


def _load_weights(module: nn.Module, path: Path, dropped: tuple[str, ...]) -> str:
    own = module.state_dict()
    state = _read_state(path)
    prefix = _part(state, own)
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    state = {k: v for k, v in state.items() if not k.startswith(dropped)}
    shapes = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in state.keys() & own.keys()
        if state[name].shape != own[name].shape
    ]
    problems = [f"other shapes: {_few(sorted(shapes))}"] if shapes else []
    if not shapes:
        result = module.load_state_dict(state, strict=False)
        if result.missing_keys:
            problems.append(f"missing keys: {_few(result.missing_keys)}")
        if result.unexpected_keys:
            problems.append(f"foreign keys: {_few(result.unexpected_keys)}")
    if problems:
        raise InfluenceValueError(
            f"--weights {str(path)!r} does not fit the encoder: {'; '.join(problems)}; save the "
            "state_dict of this very module, or load it in the encoder's function."
        )
    return prefix


def _part(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The prefix of the encoder's keys in ``state``; empty where it holds some as they are."""
    for prefix in ("", *_PARTS):
        if any(prefix + name in state for name in own):
            return prefix
    return ""


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InfluenceOSError(f"--weights {str(path)!r}: there is no such file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: object = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise InfluenceValueError(
            f"--weights {str(path)!r} needs safetensors; pip install 'influence-ssl[report]'."
        ) from error
    except PermissionError as error:
        raise InfluenceOSError(f"--weights {str(path)!r}: {error.strerror}.") from error
    # The readers of foreign bytes raise whatever they stumble over.
    except Exception as error:
        what = "is not a checkpoint"
        if "GLOBAL" in str(error):
            what = "holds Python objects besides tensors, which could run any code"
        raise InfluenceValueError(
            f"--weights {str(path)!r} {what}; give a .safetensors file or what "
            "torch.save(encoder.state_dict(), FILE) wrote."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not (isinstance(state, Mapping) and state
            and all(isinstance(value, Tensor) for value in state.values())):  # fmt: skip
        raise InfluenceValueError(
            f"--weights {str(path)!r} holds {_kind(state)}, not a state_dict; give what "
            "torch.save(encoder.state_dict(), FILE) wrote."
        )
    return dict(state)


def described(error: BaseException) -> str:
    """An error's type and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"


def _few(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + rest


def _kind(value: object) -> str:
    if isinstance(value, tuple):
        return f"a tuple ({', '.join(type(part).__name__ for part in value)})"
    return f"a {type(value).__name__}"

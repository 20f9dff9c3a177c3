"""Encoders of timm and torchvision by name, without their classifier and with preprocessing."""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from influence_ssl.errors import InfluenceError, InfluenceOSError, InfluenceValueError

if TYPE_CHECKING:
    from influence_ssl.files.images import Preprocess

_HEADS = ("fc", "classifier", "head", "heads")


class Named(NamedTuple):
    """An encoder (B, 3, H, W) -> (B, D), its preprocessing, the prefixes of its classifier."""

    module: nn.Module
    preprocess: Preprocess
    dropped: tuple[str, ...]


def from_zoo(spec: str, pretrained: bool, seed: int) -> Named | None:
    """The encoder behind ``timm:NAME`` or ``torchvision:NAME[.WEIGHTS]``; ``None`` for others.

    timm's classifier is removed by ``num_classes=0``, torchvision's by replacing its last layer
    with ``nn.Identity``. The preprocessing is that of evaluation: timm's data config of the model,
    or the transforms of torchvision's weights (the default, or WEIGHTS). Only ``pretrained`` uses
    the network; otherwise the weights are random from ``seed``.
    """
    library, _, name = spec.partition(":")
    make = {"timm": _timm, "torchvision": _torchvision}.get(library)
    if make is None:
        return None
    torch.manual_seed(seed)
    # An unreachable hub logs each attempt.
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(name, pretrained)
    except InfluenceError:
        raise
    except ImportError as error:
        raise InfluenceValueError(
            f"--encoder {spec!r} needs {library}; pip install 'influence-ssl[report]'."
        ) from error
    # A download may fail in any way.
    except Exception as error:
        if not pretrained:
            raise InfluenceValueError(
                f"--encoder {spec!r} fails: {type(error).__name__}: {' '.join(str(error).split())}."
            ) from error
        raise InfluenceOSError(
            f"--weights pretrained: the weights of {spec!r} are not in the local cache and "
            "cannot be downloaded; download them elsewhere and give --weights FILE."
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def _timm(name: str, pretrained: bool) -> Named:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    plain, _, tag = name.partition(".")
    if not name.startswith("hf-hub:") and not timm.is_model(plain):
        raise _unknown("timm", plain, timm.list_models(), "timm.list_models()")
    if tag and name not in timm.list_pretrained(f"{plain}.*"):
        raise _unknown("timm", name, timm.list_pretrained(f"{plain}.*"), "timm.list_pretrained()")
    module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    config = resolve_model_data_config(module)
    own: Any = module.pretrained_cfg
    heads = own.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    return Named(module, create_transform(**config, is_training=False), _prefixes(heads))


def _torchvision(name: str, pretrained: bool) -> Named:
    from torchvision import models

    plain, _, tag = name.partition(".")
    known = models.list_models(module=models)
    if plain not in known:
        raise _unknown("torchvision", plain, known, "torchvision.models.list_models()")
    choices = models.get_model_weights(plain)
    if tag and tag not in choices.__members__:
        raise _unknown("torchvision", name, [f"{plain}.{key}" for key in choices.__members__])
    weights = choices[tag or "DEFAULT"]
    module = models.get_model(plain, weights=weights if pretrained else None)
    head = next(key for key in _HEADS if hasattr(module, key))
    dropped = _behead(module, head)
    transforms: Callable[..., Any] = weights.transforms()
    return Named(module, transforms, _prefixes([dropped]))


def _behead(module: nn.Module, head: str) -> str:
    """Replace the classifier's last layer with weights by the identity; returns its name."""
    # Layers before it, such as ConvNeXt's last normalisation, belong to the representation.
    last = [
        name
        for name, part in module.named_modules()
        if name.split(".")[0] == head and isinstance(part, nn.Linear | nn.Conv2d)
    ][-1]
    parent, _, own = last.rpartition(".")
    setattr(module.get_submodule(parent), own, nn.Identity())
    return last


def _prefixes(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def _unknown(
    library: str, name: str, known: Sequence[str], where: str | None = None
) -> InfluenceValueError:
    close = difflib.get_close_matches(name, known, 4) or list(known)[:4]
    rest = f"; all names: python -c 'import {library}; print({where})'" if where else ""
    return InfluenceValueError(
        f"--encoder '{library}:{name}': {library} has no such model; similar names: "
        f"{', '.join(close) or 'none'}{rest}."
    )

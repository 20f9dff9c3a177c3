"""A fitted curvature and everything it was fitted for, in memory and in a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from influence_ssl import _embeddings
from influence_ssl._embeddings import Embedding
from influence_ssl._kept import Embedded
from influence_ssl._layers import Layer
from influence_ssl._store import Probe
from influence_ssl.curvature import (
    EmpiricalFisher,
    ExactHessian,
    Fitted,
    Identity,
    LoGra,
    Relative,
)
from influence_ssl.errors import (
    InfluenceError,
    InfluenceOSError,
    InfluenceTypeError,
    InfluenceValueError,
)
from influence_ssl.errors import described as named
from influence_ssl.files.writing import replacing
from influence_ssl.objectives import Invariance, Objective, Supervised
from influence_ssl.perturbations import GaussianNoise

Projections = dict[str, tuple[Tensor | None, Tensor | None]]

_FORMAT = 3
_WORDS, _TENSORS = "fit.json", "fit.safetensors"
_SETTINGS: dict[str, Callable[..., Any]] = {
    kind.__name__: kind
    for kind in (
        EmpiricalFisher, ExactHessian, GaussianNoise, Identity, Invariance, LoGra, Relative,
        Supervised,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """A fitted curvature, and what it was fitted for, which later calls must match."""

    form: Callable[[Tensor], Tensor]
    n: int
    objective: Objective
    settings: dict[str, Any]
    origin: dict[str, str]
    projections: Projections
    probe: Probe
    kept: Embedded | None


def projections(layers: list[Layer]) -> Projections:
    """Each layer's two projections by its name."""
    return {layer.name: (layer.left, layer.right) for layer in layers}


def project(known: Projections, layers: list[Layer]) -> None:
    """Set known projections, on each layer's device and in at least float32."""
    for layer in layers:
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        left, right = (
            None if side is None else side.to(layer.weight.device, dtype)
            for side in known.get(layer.name, (None, None))
        )
        layer.left, layer.right = left, right


def write(folder: Path, fit: Fit, settings: dict[str, Any]) -> None:
    """Save a fit and replace an earlier one; ``settings`` are the scorer's arguments."""
    if not isinstance(fit.form, Fitted):
        raise InfluenceTypeError(
            f"curvature={settings['curvature']!r} cannot be saved; its fit must return an "
            "influence_ssl.curvature.Fitted."
        )
    tensors: dict[str, Tensor] = {"probe index": fit.probe.index}
    tensors["probe gradients"] = fit.probe.gradients
    tensors |= {f"probe batch {n}": part for n, part in enumerate(fit.probe.batch)}
    for name, sides in fit.projections.items():
        for side, matrix in zip(("left", "right"), sides, strict=True):
            if matrix is not None:
                tensors[f"{side} {name}"] = matrix
    blocks = []
    for number, (columns, block) in enumerate(fit.form.blocks):
        words: dict[str, Any] = {"kind": type(block).__name__}
        words["columns"] = [columns.start, columns.stop]
        # Every block is a dataclass, which the type of a callable cannot say.
        for field in dataclasses.fields(block):  # type: ignore[arg-type]
            value = getattr(block, field.name)
            if isinstance(value, Tensor):
                tensors[f"block {number} {field.name}"] = value
            else:
                words[field.name] = value
        blocks.append(words)
    kept = None
    if fit.kept is not None:
        tensors["kept"] = torch.cat(fit.kept.parts, 1)
        tensors["kept index"] = torch.from_numpy(fit.kept.index)
        kept = {"names": None if fit.kept.names is None else list(fit.kept.names)}
    content = save({name: x.detach().cpu().contiguous() for name, x in tensors.items()})
    described_fit = {
        "format": _FORMAT,
        "tensors": hashlib.sha256(content).hexdigest(),
        "settings": {name: described(value) for name, value in settings.items()},
        "n": fit.n,
        "origin": fit.origin,
        "provenance": fit.form.provenance,
        "layers": list(fit.projections),
        "blocks": blocks,
        "kept": kept,
    }
    # The words come last, with the hash of the tensors: half a fit is no fit.
    for name, data in ((_TENSORS, content), (_WORDS, json.dumps(described_fit, indent=1).encode())):
        with replacing(folder / name, parents=True) as temporary:
            temporary.write_bytes(data)


def read(folder: Path, device: torch.device) -> tuple[dict[str, Any], Fit]:
    """A saved fit on ``device``, without its settings and objective, and these as described."""
    try:
        words = json.loads((folder / _WORDS).read_text(encoding="utf-8"))
        content = (folder / _TENSORS).read_bytes()
    except OSError as error:
        raise InfluenceOSError(
            f"{str(folder)!r} holds no saved fit: {error.strerror or error}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InfluenceValueError(f"{str(folder / _WORDS)!r} is damaged; save it again.") from error
    try:
        if words["format"] != _FORMAT:
            raise InfluenceValueError(
                f"{str(folder)!r} was saved in format {words['format']!r}, but this version reads "
                f"{_FORMAT}; fit and save again."
            )
        if hashlib.sha256(content).hexdigest() != words["tensors"]:
            raise InfluenceValueError(
                f"{str(folder / _TENSORS)!r} is damaged or belongs to another fit; save it again."
            )
        tensors = load(content)
        blocks = [_block(number, x, tensors, device) for number, x in enumerate(words["blocks"])]
        form = Fitted(blocks, words["provenance"])
        count = sum(name.startswith("probe batch ") for name in tensors)
        batch = tuple(tensors[f"probe batch {n}"] for n in range(count))
        fit = Fit(
            form=form,
            n=words["n"],
            objective=Invariance(),
            settings={},
            origin=words["origin"],
            projections={
                name: (tensors.get(f"left {name}"), tensors.get(f"right {name}"))
                for name in words["layers"]
            },
            probe=Probe(batch, tensors["probe index"], tensors["probe gradients"]),
            kept=_kept(words["kept"], tensors, form, device),
        )
        return words["settings"], fit
    except InfluenceError:
        raise
    # Modified words may fail in any way.
    except Exception as error:
        raise foreign(folder, error) from error


def foreign(folder: Path, error: Exception) -> InfluenceValueError:
    """The error for a folder whose content :func:`write` did not write."""
    what = f"{str(folder)!r} is not a fit that this package saved ({named(error)})"
    return InfluenceValueError(f"{what}; fit and save again.")


def _block(
    number: int, words: dict[str, Any], tensors: dict[str, Tensor], device: torch.device
) -> tuple[slice, Embedding]:
    kinds = {"Same", "Triangular", "Spectral", "Dual"}
    if words["kind"] not in kinds:
        raise KeyError(words["kind"])
    kind = getattr(_embeddings, words["kind"])
    found = {}
    for field in dataclasses.fields(kind):
        name = f"block {number} {field.name}"
        found[field.name] = tensors[name].to(device) if name in tensors else words[field.name]
    start, stop = words["columns"]
    return slice(start, stop), kind(**found)


def _kept(
    words: dict[str, Any] | None, tensors: dict[str, Tensor], form: Fitted, device: torch.device
) -> Embedded | None:
    if words is None:
        return None
    index: np.ndarray = tensors["kept index"].numpy()
    return Embedded([tensors["kept"].to(device)], index, words["names"], form.signs)


def described(value: Any) -> Any:
    """A setting in JSON: a data class of this package by its fields, one's own by its name."""
    kind = type(value).__name__
    if _SETTINGS.get(kind) is type(value):
        fields = {f.name: described(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"own": any(map(_is_own, fields.values())), "type": kind, "fields": fields}
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [described(x) for x in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return {"own": True, "type": kind}


def _is_own(words: Any) -> bool:
    return isinstance(words, dict) and words["own"]


def made(words: Any, name: str, given: Any) -> Any:
    """The setting behind :func:`described`, or ``given`` if no file holds it."""
    if _is_own(words):
        if given is None:
            raise InfluenceTypeError(
                f"the fit used your own {name} ({words['type']}), which the folder does not hold; "
                f"call InfluenceScorer.load(folder, encoder, {name}=...)."
            )
        return given
    found = _made(words)
    if given is not None and given != found:
        raise InfluenceValueError(
            f"{name}={given!r} differs from the fit's, {found!r}; leave it out, or fit again."
        )
    return found


def _made(words: Any) -> Any:
    if isinstance(words, dict):
        return _SETTINGS[words["type"]](**{n: _made(x) for n, x in words["fields"].items()})
    return words

"""How far two passes of the same example may differ by rounding alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from influence_ssl._gradients import Capture
from influence_ssl.objectives import Batch, Encode, Index

# If rounding alone changes a gradient by more, the encoder is refused.
_MOST = 1e-2


@dataclass(frozen=True)
class Rounding:
    """Relative tolerances of values and gradients, and of gradients relative to all of them.

    ``unit``: the relative rounding of a coarser type to which the encoder casts. ``most``: how much
    rounding may change a layer's gradient. ``layers``: the tolerance of each layer's gradient, if
    it was measured.
    """

    values: float
    gradients: float
    floor: float
    unit: float = 0.0
    most: float = _MOST
    layers: tuple[float, ...] = ()

    def of_layer(self, n: int) -> float:
        """The relative tolerance of layer n's gradient."""
        return self.layers[n] if self.layers else self.gradients


_DOUBLE = Rounding(1e-6, 1e-6, 1e-10)
_ROUNDINGS = {torch.float64: _DOUBLE, torch.float32: Rounding(1e-2, 1e-2, 1e-5)}
_COARSE = Rounding(0.2, 0.2, 1e-2)
# For passes in double precision in which the encoder itself casts to another type.
_UNIT = torch.finfo(torch.float32).eps
_WITHIN = {torch.float32: Rounding(1e-5, 1e-2, 1e-5, unit=_UNIT, most=0.2)}
_WITHIN_COARSE = Rounding(2e-2, 0.2, 1e-2)


def usual(dtype: torch.dtype) -> Rounding:
    """The tolerances of passes in ``dtype``."""
    return _ROUNDINGS.get(dtype, _COARSE)


def near(x: Tensor, y: Tensor, share: float, floor: float = 0.0) -> bool:
    scale = torch.maximum(x.norm(), y.norm())
    return x.shape == y.shape and bool((x - y).norm() <= share * scale + floor + 1e-30)


class _Casts(TorchDispatchMode):
    """Records the coarser types to which an encoder casts double-precision values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        doubles = any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in args)
        if doubles and isinstance(output, Tensor) and output.is_floating_point():
            self.found |= {output.dtype} - {torch.float64}
        return output


def of_casts(capture: Capture, batch: Batch, index: Index) -> Rounding | None:
    """The tolerances of a pass in double precision that casts to a coarser type; else ``None``."""
    if capture.dtype != torch.float64:
        return None
    with _Casts() as casts:
        capture.losses(batch, index, 0, lambda x: capture.encode(x.to(capture.dtype).clone(), 1))
    if not casts.found:
        return None
    return _WITHIN.get(max(casts.found, key=lambda dtype: torch.finfo(dtype).eps), _WITHIN_COARSE)


def of_noise(capture: Capture, rounding: Rounding, batch: Batch, index: Index) -> Rounding:
    """The tolerances widened to what rounding does to each layer's gradient.

    It does much if views nearly coincide, or if the encoder itself computes in a coarser type. It
    is measured by brightening the images by a few units in the last place, of that type if any.
    """
    brighter = 1 + 4 * max(torch.finfo(capture.dtype).eps, rounding.unit)

    def objective(encode: Encode, *rest: Any) -> Tensor:
        return capture.objective(lambda x: encode(x.to(capture.dtype) * brighter), *rest)

    _, before = capture.seen(batch, index)
    _, after = replace(capture, objective=objective).seen(batch, index)
    whole = float(sum(g.square().sum() for g in before)) ** 0.5
    least = rounding.floor * whole + 1e-30
    pairs = zip(before, after, strict=True)
    noise = [float((x - y).norm() / (x.norm() + least)) for x, y in pairs]
    layers = tuple(max(rounding.gradients, min(rounding.most, 100 * one)) for one in noise)
    return replace(rounding, gradients=max(layers), layers=layers)

r"""Second moments of each layer's inputs and output gradients, for K-FAC and PCA.

With a_{it} the input of example i at position t (pixels and views, T of them) and δ_{it} the
gradient at the output there,

.. math:: A = \tfrac1n\sum_{it} a_{it}a_{it}^\top,\qquad
          S = \tfrac1{nT}\sum_{it} \delta_{it}\delta_{it}^\top,\qquad
          \tfrac1n\sum_i \mathrm{vec}(G_i)\mathrm{vec}(G_i)^\top \approx S\otimes A .

Source: Martens and Grosse 2015; for convolutions Grosse and Martens 2016 (arXiv:1602.01407).
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from influence_ssl.errors import InfluenceValueError
from influence_ssl.objectives import Objective


class Factors(NamedTuple):
    """A (I, I) and S (O, O) of one layer."""

    inputs: Float[Tensor, "i i"]
    outputs: Float[Tensor, "o o"]


def kronecker_factors(
    encoder: nn.Module, images: Tensor, objective: Objective, seed: int = 0, batch_size: int = 64
) -> dict[str, Factors]:
    """The factors of every ``Conv2d`` and ``Linear`` that is called, by name, from one draw.

    Raises :class:`InfluenceValueError` for a grouped convolution or a padding other than
    zeros, for which no factors are available here.
    """
    a: dict[str, Tensor] = {}
    s: dict[str, Tensor] = {}
    positions: dict[str, int] = {}

    def forward(name: str, module: nn.Module, inputs: Tensor, output: Tensor) -> None:
        columns = _columns(name, module, inputs.detach())
        a[name] = a.get(name, torch.zeros(())) + columns.T @ columns
        positions[name] = positions.get(name, 0) + len(columns)
        output.register_hook(lambda delta: backward(name, module, delta))

    def backward(name: str, module: nn.Module, delta: Tensor) -> None:
        rows = delta.movedim(1, -1) if isinstance(module, nn.Conv2d) else delta
        rows = rows.reshape(-1, rows.shape[-1])
        s[name] = s.get(name, torch.zeros(())) + rows.T @ rows

    own = copy.deepcopy(encoder).eval().requires_grad_(False)
    for name, module in own.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda m, x, y, name=name: forward(name, m, x[0], y))
    for index in torch.arange(len(images)).split(batch_size):
        batch = (images[index],)
        losses = objective(lambda x: own(x.detach().requires_grad_()), batch, index, 0, seed)
        losses.sum().backward()
    n = len(images)
    return {name: Factors(a[name] / n, s[name] / positions[name]) for name in a}


def _columns(name: str, module: nn.Module, inputs: Tensor) -> Float[Tensor, "t i"]:
    """The inputs of each output position, one position per row."""
    if isinstance(module, nn.Conv2d):
        if module.groups > 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise InfluenceValueError(
                f"{name}: no Kronecker factors of a convolution in groups or with a padding that "
                "is not a number of zeros; compare on another encoder"
            )
        inputs = F.unfold(
            inputs, module.kernel_size, module.dilation, module.padding, module.stride
        ).movedim(1, -1)
    return inputs.reshape(-1, inputs.shape[-1])

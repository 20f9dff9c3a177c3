r"""The exact empirical-Fisher score of a fitted set from its n × n Gram matrix, at any damping.

With G (n, p) the gradients, :math:`H=G^\top G/n` and :math:`K=GG^\top`,

.. math:: g_i^\top (H+\lambda\mathbf I)^{-1} g_i = n\,\big[K(K+n\lambda\mathbf I)^{-1}\big]_{ii} .

The core's ``EmpiricalFisher`` computes the same at one damping. Here K serves all dampings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from influence_ssl.curvature import Gradients

COLUMNS = 65_536


def products(g: Float[Tensor, "b p"], h: Float[Tensor, "n p"]) -> Float64[Tensor, "b n"]:
    """g_i·h_j in double precision, on the CPU."""
    found = torch.zeros(len(g), len(h), dtype=torch.float64)
    for left, right in zip(g.split(COLUMNS, dim=1), h.split(COLUMNS, dim=1), strict=True):
        found += (left.double() @ right.double().T).cpu()
    return found


class Gram:
    """A recorder instead of a curvature: ``fit`` keeps K and scores squared norms like Identity."""

    def __init__(self) -> None:
        self.matrix: Float64[Tensor, "n n"] = torch.zeros(0, 0, dtype=torch.float64)

    def project(self, layers: list[Any]) -> None:
        """Keep the full space."""

    def fit(self, gradients: Gradients) -> Any:
        """K (n, n), in double precision."""
        rows = torch.cat(list(gradients))
        self.matrix = products(rows, rows)
        return lambda g: g.double().square().sum(1)

    @property
    def mean_eigenvalue(self) -> float:
        """tr(H)/n, the mean of the n non-zero eigenvalues (n < p), which is the unit of λ."""
        return float(self.matrix.trace()) / len(self.matrix) ** 2

    def magnitude(self, λ: float) -> Float64[np.ndarray, " n"]:
        """−I of each fitted example."""
        e, u = torch.linalg.eigh(self.matrix)
        n, e = len(e), e.clamp(min=0)
        return (n * (u.square() * (e / (e + n * λ))).sum(1)).numpy()

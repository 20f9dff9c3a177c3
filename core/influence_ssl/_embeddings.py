r"""φ with :math:`\varphi(g)\cdot\varphi(h) = g^\top (H+\lambda\mathbf I)^{-1} h` of a curvature.

The self-score is then :math:`-|\varphi(g_i)|^2` and the influence of one example on another is
:math:`-\varphi(g_q)\cdot\varphi(g_i)`. If H + λI is indefinite, the product is
:math:`\sum_j s_j \varphi_j(g)\varphi_j(h)` with signs s.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

COLUMNS = 16_384
"""How many columns are converted to float64 at once."""


class Embedding(ABC):
    """The map g ↦ φ(g) of one block."""

    signs: Tensor | None = None

    @abstractmethod
    def __call__(self, g: Float[Tensor, "b k"]) -> Float[Tensor, "b m"]:
        """φ of each row."""

    def form(self, g: Float[Tensor, "b k"]) -> Float64[Tensor, " b"]:
        """gᵀ(H + λI)⁻¹g of each row."""
        squares = self(g).double().square()
        return (squares if self.signs is None else squares * self.signs).sum(1)


@dataclass(frozen=True)
class Same(Embedding):
    """φ(g) = g, without curvature."""

    def __call__(self, g: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        return g


@dataclass(frozen=True)
class Triangular(Embedding):
    """φ(g) = L⁻¹g with H + λI = LLᵀ; ``inverse`` is L⁻¹ (k, k), lower triangular.

    It has the gradients' own precision, because rounding the factor loses no more than rounding
    them did.
    """

    inverse: Float[Tensor, "k k"]

    def __call__(self, g: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        parts = [(part, slice(part.stop)) for part in stripes(len(self.inverse))]
        return torch.cat([g[:, upto] @ self.inverse[part, upto].T for part, upto in parts], 1)


@dataclass(frozen=True)
class Spectral(Embedding):
    """φ(g) = |E + λ|^(-1/2) Vᵀg with H = VEVᵀ.

    ``vectors`` V (k, m); ``scale`` |E + λ|^(-1/2) and ``signs``, those of E + λ, (m,).
    """

    vectors: Float64[Tensor, "k m"]
    scale: Float64[Tensor, " m"]
    signs: Float64[Tensor, " m"] | None = None

    def __call__(self, g: Float[Tensor, "b k"]) -> Float64[Tensor, "b m"]:
        return g.double() @ self.vectors * self.scale


@dataclass(frozen=True)
class Dual(Embedding):
    r"""The same for n < k: H = GᵀG/n has the eigenvectors :math:`v = G^\top u / \sqrt{n e}`.

    ``rows`` G (n, k), ``vectors`` u (n, m) and ``values`` e (m,) of GGᵀ/n. φ(g) is
    :math:`Vᵀg / \sqrt{e+\lambda}`, followed by :math:`(g - VVᵀg)/\sqrt\lambda` where λ > 0: what
    lies outside the span of the fitted gradients is damped by λ alone.
    """

    rows: Float[Tensor, "n k"]
    vectors: Float64[Tensor, "n m"]
    values: Float64[Tensor, " m"]
    damping: float

    def __call__(self, g: Float[Tensor, "b k"]) -> Float64[Tensor, "b m+k"]:
        inside, outside = self._parts(g)
        if outside is None:
            return inside
        return torch.cat([inside, outside / math.sqrt(self.damping)], 1)

    def form(self, g: Float[Tensor, "b k"]) -> Float64[Tensor, " b"]:
        inside, outside = self._parts(g)
        found = inside.square().sum(1)
        return found if outside is None else found + outside.square().sum(1) / self.damping

    def _parts(self, g: Tensor) -> tuple[Tensor, Tensor | None]:
        n, e = len(self.rows), self.values
        # In float64, because the smallest e divide by far less than the largest.
        along = products(g, self.rows) @ self.vectors
        inside = along / (n * e * (e + self.damping)).sqrt()
        if self.damping == 0:
            return inside, None
        # The residual itself, not a difference of squares, keeps this exact where it vanishes.
        weights = (along / (n * e)) @ self.vectors.T
        within = torch.cat([weights @ rows.double() for rows in self.rows.split(COLUMNS, 1)], 1)
        return inside, g.double() - within


def products(g: Float[Tensor, "b k"], h: Float[Tensor, "n k"]) -> Float64[Tensor, "b n"]:
    """g_i·h_j in float64, without a copy of all of g and h in it."""
    found = torch.zeros(len(g), len(h), dtype=torch.float64, device=g.device)
    for left, right in zip(g.split(COLUMNS, 1), h.split(COLUMNS, 1), strict=True):
        found += left.double() @ right.double().T
    return found


def stripes(k: int) -> list[slice]:
    """Where the rows of a triangular matrix are cut, so that half of its products are left out."""
    return [slice(start, min(start + 512, k)) for start in range(0, k, 512)]

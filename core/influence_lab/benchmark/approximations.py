"""K-FAC, EK-FAC, the diagonal, a global projection, and LoGra with other projections."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from influence_lab.benchmark.factors import Factors
from influence_ssl import EmpiricalFisher, LoGra
from influence_ssl.curvature import Gradients, Layer

Form = Callable[[Tensor], Tensor]


class FullSpace:
    """A curvature without projections."""

    def project(self, layers: list[Layer]) -> None:
        """Keep the full space."""


class ScaledLoGra(LoGra):
    r"""LoGra with projections that preserve the mean squared length of a gradient.

    A random subspace of r of O rows and r of I columns holds :math:`r^2/(OI)` of |G|² on average.
    Multiplying P and Q by :math:`\sqrt{O/r}` and :math:`\sqrt{I/r}` compensates for this. λ is
    then in the units of the full space, and a joint covariance weights the layers as the full one
    does.
    """

    def project(self, layers: list[Layer]) -> None:
        super().project(layers)
        for layer in layers:
            if layer.left is not None and layer.right is not None:
                layer.left *= math.sqrt(layer.out_features / len(layer.left))
                layer.right *= math.sqrt(layer.in_features / len(layer.right))


@dataclass(frozen=True)
class PCALoGra(LoGra):
    """LoGra on the leading eigenvectors of each layer's second moments, LogIX's ``pca``.

    The subspace contains most of each gradient, so lengths and λ need no correction.
    """

    factors: dict[str, Factors] = field(default_factory=dict)

    def project(self, layers: list[Layer]) -> None:
        assert self.rank is not None
        for layer in layers:
            rank = min(self.rank, layer.out_features, layer.in_features)
            a, s = self.factors[layer.name]
            dtype = torch.promote_types(layer.weight.dtype, torch.float32)
            layer.left = torch.linalg.eigh(s.double()).eigenvectors[:, -rank:].T.to(dtype)
            layer.right = torch.linalg.eigh(a.double()).eigenvectors[:, -rank:].T.to(dtype)


class KFAC(FullSpace):
    r"""One block per layer, :math:`H_l \approx S\otimes A`; source as in :mod:`.factors`.

    In the eigenvectors U of S and V of A, with eigenvalues s and a, a gradient's form is
    :math:`\sum_{oi} (U^\top G V)_{oi}^2 / (s_o a_i + \lambda)`.
    """

    def __init__(self, factors: dict[str, Factors], damping: float) -> None:
        self.factors = factors
        self.damping = damping

    def fit(self, gradients: Gradients) -> Form:
        blocks = [_Rotated(layer, self.factors[layer.name]) for layer in gradients.layers]
        return self._form(gradients, blocks, [block.product for block in blocks])

    def _form(
        self, gradients: Gradients, blocks: list[_Rotated], values: list[Float[Tensor, "o i"]]
    ) -> Form:
        sizes = [layer.size for layer in gradients.layers]

        def form(g: Float[Tensor, "b p"]) -> Float64[Tensor, " b"]:
            total = torch.zeros(len(g), dtype=torch.float64)
            for block, value, part in zip(blocks, values, g.split(sizes, 1), strict=True):
                squares = block(part).square() / (value + self.damping)
                total += squares.sum((1, 2), dtype=torch.float64)
            return total

        return form


class EKFAC(KFAC):
    r"""K-FAC's eigenvectors with the gradients' own second moments along them.

    The eigenvalue at (o, i) is :math:`\frac1n\sum_j (U^\top G_j V)_{oi}^2`. Source: George et al.
    2018, arXiv:1806.03884; for influence Grosse et al. 2023, arXiv:2308.03296.
    """

    def fit(self, gradients: Gradients) -> Form:
        blocks = [_Rotated(layer, self.factors[layer.name]) for layer in gradients.layers]
        sizes = [layer.size for layer in gradients.layers]
        values = [torch.zeros_like(block.product) for block in blocks]
        for g in gradients:
            for block, value, part in zip(blocks, values, g.split(sizes, 1), strict=True):
                value += block(part).square().sum(0) / gradients.n
        return self._form(gradients, blocks, values)


class DiagonalFisher(FullSpace):
    r"""The empirical Fisher's diagonal: :math:`\sum_w g_w^2 / (\overline{g_w^2} + \lambda)`."""

    def __init__(self, damping: float) -> None:
        self.damping = damping

    def fit(self, gradients: Gradients) -> Form:
        diagonal = sum(g.square().sum(0) / gradients.n for g in gradients)
        return lambda g: (g.square() / (diagonal + self.damping)).sum(1, dtype=torch.float64)


class GlobalProjection(FullSpace):
    r"""One random projection of the whole gradient to ``dimension`` numbers, as in TRAK.

    Each weight is added, with a random sign, to one of the numbers (a count sketch). Like TRAK's
    dense signs, this preserves inner products on average, at the cost of one addition per weight.
    Sources: Park et al. 2023, arXiv:2303.14186; Charikar, Chen and Farach-Colton 2002.
    """

    def __init__(self, dimension: int, damping: float, seed: int = 0) -> None:
        self.dimension = dimension
        self.damping = damping
        self.seed = seed

    def fit(self, gradients: Gradients) -> Form:
        generator = torch.Generator().manual_seed(self.seed)
        p = sum(layer.size for layer in gradients.layers)
        places = torch.randint(self.dimension, (p,), generator=generator)
        signs = torch.randint(2, (p,), generator=generator) * 2 - 1

        def sketch(g: Float[Tensor, "b p"]) -> Float[Tensor, "b d"]:
            return g.new_zeros(len(g), self.dimension).index_add_(1, places, g * signs)

        fitted = EmpiricalFisher(self.damping).fit(_Sketched(gradients, sketch, self.dimension))
        return lambda g: fitted(sketch(g))


class Stored:
    """A curvature that receives gradients rounded to ``dtype``, as if stored in it."""

    def __init__(self, inner: LoGra, dtype: torch.dtype) -> None:
        self.inner = inner
        self.dtype = dtype

    def project(self, layers: list[Layer]) -> None:
        self.inner.project(layers)

    def fit(self, gradients: Gradients) -> Form:
        fitted = self.inner.fit(_Sketched(gradients, self._round, None))
        return lambda g: fitted(self._round(g))

    def _round(self, g: Tensor) -> Tensor:
        return g.to(self.dtype).to(g.dtype)


class _Sketched:
    """Gradients with each batch transformed, as one layer if the dimension changes."""

    def __init__(self, inner: Gradients, transform: Form, dimension: int | None) -> None:
        self.n, self.device = inner.n, inner.device
        self.layers: list[Any] = inner.layers
        if dimension is not None:
            self.layers = [Layer("sketch", [], 1, dimension)]
        self.inner = inner
        self.transform = transform

    def __iter__(self) -> Any:
        return (self.transform(g) for g in self.inner)

    def hessian(self) -> Tensor:
        return self.inner.hessian()


class _Rotated:
    """vec(G) ↦ UᵀGV of one layer, and K-FAC's eigenvalues there."""

    def __init__(self, layer: Layer, factors: Factors) -> None:
        self.shape = layer.shape
        a, self.v = torch.linalg.eigh(factors.inputs)
        s, self.u = torch.linalg.eigh(factors.outputs)
        self.product = s.clamp(min=0)[:, None] * a.clamp(min=0)

    def __call__(self, g: Float[Tensor, "b oi"]) -> Float[Tensor, "b o i"]:
        return self.u.T @ g.unflatten(1, self.shape) @ self.v

r"""Curvatures: g ↦ gᵀ(H + λI)⁻¹g.

A curvature has two methods. ``project(layers)`` sets each layer's projections (``left``, ``right``)
before any gradient is computed. ``fit(gradients)`` receives the gradients of the fitted data set
and returns a function that maps a batch of gradients (B, k) to the quadratic forms (B,) in float64.
That function has a dictionary ``provenance`` and, if embeddings are needed, a method
``embed(gradients)`` that returns φ (B, m).

``gradients`` has the attributes ``n`` and ``layers``, iterates over batches (B, k) in which the
layers' projected gradients are concatenated, and can form the exact Hessian. With several
processes, each iterates over its own share of the n gradients, and
:func:`~influence_ssl.processes.total` adds the shares up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from numbers import Integral
from typing import Any, Protocol

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from influence_ssl._embeddings import (
    Dual,
    Embedding,
    Same,
    Spectral,
    Triangular,
    products,
    stripes,
)
from influence_ssl._layers import Layer
from influence_ssl._memory import free_memory
from influence_ssl._numbers import plain, refuse_no_number
from influence_ssl.errors import InfluenceTypeError, InfluenceValueError
from influence_ssl.processes import first, gather, total

CHUNK, CHUNK_BYTES = 1024, 2**29
"""The most gradients, and bytes, that a curvature receives at a time: adding a small product to a
large matrix costs more than the product."""


class Gradients(Protocol):
    """The view of a data set that :meth:`fit` receives."""

    n: int
    layers: list[Layer]
    device: torch.device

    def __iter__(self) -> Iterator[Tensor]: ...

    def hessian(self) -> Tensor: ...


class Curvature(Protocol):
    """The interface that the scorer expects of a curvature."""

    def project(self, layers: list[Layer]) -> None: ...

    def fit(self, gradients: Gradients) -> Callable[[Tensor], Tensor]: ...


@dataclass(frozen=True)
class Relative:
    r"""Damping relative to the curvature: :math:`\lambda = c\,\mathrm{tr}(H_b)/\min(n, k_b)`.

    This is c times the mean non-zero eigenvalue of each block b of dimension k_b (LogIX's rule if
    c = 0.1 and n ≥ k). A block with zero trace gets λ = 0.
    """

    c: float

    def __post_init__(self) -> None:
        plain(self)
        refuse_no_number(self, "c")
        if not (math.isfinite(self.c) and self.c >= 0):
            raise InfluenceValueError(f"Relative: c={self.c} must be finite and at least 0.")


Damping = float | Relative


@dataclass
class Fitted:
    """A fitted curvature, as an embedding per block of columns."""

    blocks: list[tuple[slice, Embedding]]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __call__(self, gradients: Float[Tensor, "b k"]) -> Float64[Tensor, " b"]:
        """gᵀ(H + λI)⁻¹g for each row."""
        forms = [block.form(gradients[:, columns]) for columns, block in self.blocks]
        return torch.stack(forms).sum(0)

    def embed(self, gradients: Float[Tensor, "b k"]) -> Float[Tensor, "b m"]:
        """φ of each row, with the blocks concatenated."""
        return torch.cat([block(gradients[:, columns]) for columns, block in self.blocks], 1)

    @property
    def signs(self) -> Float64[Tensor, " m"] | None:
        """The signs in φ's products, for the single block of an indefinite Hessian."""
        return self.blocks[0][1].signs


@dataclass(frozen=True)
class LoGra:
    r"""Empirical Fisher of low-rank projected gradients, block by block.

    With :math:`\tilde g_i = \mathrm{vec}(P G_i Q^\top)` for each layer, it computes

    .. math:: \tilde g_i^\top
              \Big(\tfrac1n\sum_j \tilde g_j \tilde g_j^\top + \lambda\mathbf I\Big)^{-1}
              \tilde g_i .

    ``rank`` r: P is r × O and Q is r × I, with orthonormal rows drawn at random from ``seed`` and
    the layer's position. Each layer clips r to min(O, I); ``None`` is the full space. ``joint``:
    one block over all layers, or one block per layer as in LogIX (``False``). Memory: k² numbers
    per block of dimension k = Σ r². Source: Choe et al. 2024, arXiv:2405.13954.
    """

    rank: int | None = 16
    joint: bool = False
    damping: Damping = Relative(0.1)
    seed: int = 0

    def __post_init__(self) -> None:
        plain(self)
        if self.rank is not None and (not isinstance(self.rank, Integral) or self.rank < 1):
            raise InfluenceValueError(f"LoGra: rank={self.rank!r} must be None or an integer ≥ 1.")
        if not isinstance(self.joint, int):
            raise InfluenceTypeError(f"LoGra: joint={self.joint!r:.60} must be True or False.")
        if not isinstance(self.seed, Integral):
            raise InfluenceTypeError(f"LoGra: seed={self.seed!r:.60} must be an integer.")
        _check(self.damping, "LoGra")

    def project(self, layers: list[Layer]) -> None:
        for number, layer in enumerate(layers if self.rank else []):
            assert self.rank is not None
            generator = torch.Generator().manual_seed((self.seed * 100_003 + number) % (2**63 - 1))
            rank = min(self.rank, layer.out_features, layer.in_features)
            layer.left = _orthonormal(rank, layer.out_features, generator, layer.weight)
            layer.right = _orthonormal(rank, layer.in_features, generator, layer.weight)

    def fit(self, gradients: Gradients) -> Fitted:
        shapes = [(layer.out_features, layer.in_features) for layer in gradients.layers]
        free, widest = free_memory(gradients.device), max(min(shape) for shape in shapes)

        def fits(rank: int | None) -> bool:
            sizes = [o * i if rank is None else min(rank, o, i) ** 2 for o, i in shapes]
            return _empirical_fisher_bytes(gradients.n, self._merged(sizes)) <= free

        if not fits(self.rank):
            ranks = range(min(self.rank or widest, widest), 0, -1)
            raise InfluenceValueError(
                f"LoGra: rank={self.rank} with joint={self.joint} does not fit into memory; "
                f"the largest rank that does is {next(filter(fits, ranks), None)}."
            )
        sizes = self._merged([layer.size for layer in gradients.layers])
        fitted = _fit_empirical_fisher(gradients, sizes, self.damping)
        fitted.provenance["ranks"] = {layer.name: list(layer.shape) for layer in gradients.layers}
        return fitted

    def _merged(self, sizes: list[int]) -> list[int]:
        return [sum(sizes)] if self.joint else sizes


class _FullSpace:
    """A curvature without projections."""

    def project(self, layers: list[Layer]) -> None:
        """Keep the full space."""


@dataclass(frozen=True)
class EmpiricalFisher(_FullSpace):
    r"""Exact empirical Fisher over all of θ, from all per-example gradients; for small models.

    .. math:: g_i^\top\Big(\tfrac1n\sum_j g_j g_j^\top + \lambda\mathbf I\Big)^{-1} g_i ,

    which is n times the ridge leverage of example i, so the magnitudes of the fitted set sum to
    n × the effective dimension tr(H(H+λI)⁻¹). H is formed in the p × p space of the weights or the
    n × n space of the examples, whichever is smaller. Memory: p² or n·p + n² numbers.
    """

    damping: Damping = Relative(0.1)

    def __post_init__(self) -> None:
        plain(self)
        _check(self.damping, "EmpiricalFisher")

    def fit(self, gradients: Gradients) -> Fitted:
        size = sum(layer.size for layer in gradients.layers)
        n, free = gradients.n, free_memory(gradients.device)
        while n and _empirical_fisher_bytes(n, [size]) > free:
            n = n * 9 // 10
        if n < gradients.n:
            raise InfluenceValueError(
                f"EmpiricalFisher: {gradients.n} gradients of {size} weights do not fit into "
                f"memory; the largest number that does is {n}. Use LoGra for more."
            )
        return _fit_empirical_fisher(gradients, [size], self.damping)


@dataclass(frozen=True)
class ExactHessian(_FullSpace):
    r"""Exact mean Hessian of the same loss, :math:`H = \frac1n\sum_j\nabla^2 L_j`; small models.

    ``damping`` is λ itself. At λ = 0, a singular H is inverted on its range (the pseudo-inverse,
    which is the limit λ → 0 of Theorem 1). H may be indefinite, so scores may have either sign;
    none is clipped.
    Memory and cost: p² numbers and p backward passes.
    """

    damping: Damping = 0.0

    def __post_init__(self) -> None:
        plain(self)
        if isinstance(self.damping, Relative):
            raise InfluenceTypeError(
                "ExactHessian: damping must be a float, because the trace of an indefinite Hessian "
                "sets no scale."
            )
        _check(self.damping, "ExactHessian")

    def fit(self, gradients: Gradients) -> Fitted:
        size = sum(layer.size for layer in gradients.layers)
        largest = math.isqrt(int(free_memory(gradients.device) / 32))
        if size > largest:
            raise InfluenceValueError(
                f"ExactHessian: the Hessian of {size} weights does not fit into memory; the "
                f"largest number that does is {largest}. Choose fewer `layers`, or LoGra."
            )
        hessian = gradients.hessian()
        precision = torch.finfo(hessian.dtype).eps
        e, v = _eigen(hessian.double())
        assert not isinstance(self.damping, Relative)
        if self.damping == 0:
            kept = e.abs() > e.abs().max() * size * precision
            e, v = e[kept], v[:, kept]
        shifted = e + self.damping
        signs = shifted.sign() if (shifted < 0).any() else None
        return Fitted(
            [(slice(0, size), Spectral(v, shifted.abs().rsqrt(), signs))],
            {"damping": [float(self.damping)], "negative eigenvalues": int((e < 0).sum())},
        )


@dataclass(frozen=True)
class Identity(_FullSpace):
    r"""No curvature: the squared gradient norm :math:`|g_i|^2` over all of θ."""

    def fit(self, gradients: Gradients) -> Fitted:
        size = sum(layer.size for layer in gradients.layers)
        return Fitted([(slice(0, size), Same())])


def _check(damping: Damping, owner: str) -> None:
    if isinstance(damping, Relative):
        return
    if isinstance(damping, bool) or not isinstance(damping, int | float):
        raise InfluenceTypeError(f"{owner}: damping={damping!r} must be a number or Relative(c).")
    if not (math.isfinite(damping) and damping >= 0):
        raise InfluenceValueError(f"{owner}: damping={damping} must be finite and at least 0.")


def _orthonormal(
    rank: int, width: int, generator: torch.Generator, like: Tensor
) -> Float[Tensor, "r w"]:
    """An orthonormal basis, as rows, of a uniformly random subspace; at least float32."""
    gaussian = torch.randn(width, rank, generator=generator, dtype=torch.float64, device="cpu")
    rows = torch.linalg.qr(gaussian).Q.T.contiguous()
    return rows.to(like.device, torch.promote_types(like.dtype, torch.float32))


def _empirical_fisher_bytes(n: int, sizes: list[int]) -> float:
    """Peak in float64: all covariances, four copies to invert the largest, and n × n Grams."""
    small, wide = [k for k in sizes if k <= n], [k for k in sizes if k > n]
    primal = sum(8.0 * k * k for k in small) + 32.0 * max(small, default=0) ** 2
    return primal + sum(12.0 * n * k + 24.0 * n * n for k in wide)


def _fit_empirical_fisher(gradients: Gradients, sizes: list[int], damping: Damping) -> Fitted:
    n, ends = gradients.n, accumulate(sizes)
    blocks = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    options: dict[str, Any] = {"dtype": torch.float64, "device": gradients.device}
    covariances = [torch.zeros(k if k <= n else 0, k, **options) for k in sizes]
    rows: list[list[Tensor]] = [[] for _ in blocks]
    for batch in gradients:
        for block, k, covariance, found in zip(blocks, sizes, covariances, rows, strict=True):
            g = batch[:, block]
            if k <= n:  # its lower half, all that is read of a symmetric matrix
                for part in stripes(k):
                    covariance[part, : part.stop] += g[:, part].T @ g[:, : part.stop]
            else:
                found.append(g)
    fitted = Fitted([], {"damping": [], "effective dimension": []})
    for block, k in zip(blocks, sizes, strict=True):
        h, found = covariances.pop(0), rows.pop(0)
        g = gather(torch.cat([batch[:0, block], *found]))
        h = total(h).div_(n) if k <= n else products(g, g).div_(n)
        mean = float(h.trace()) / min(n, k)
        λ = damping.c * mean if isinstance(damping, Relative) else float(damping)
        embedding, dimension = _primal(h, λ, batch.dtype) if k <= n else _dual(g, h, λ)
        fitted.blocks.append((block, embedding))
        fitted.provenance["damping"].append(λ)
        fitted.provenance["effective dimension"].append(dimension)
    return fitted


def _primal(h: Float64[Tensor, "k k"], λ: float, dtype: torch.dtype) -> tuple[Embedding, float]:
    """The embedding from H itself, summed in ``dtype``, and tr(H(H + λI)⁻¹)."""
    if λ > 0:
        h.diagonal().add_(λ)
        factor, failed = torch.linalg.cholesky_ex(h)
        h.diagonal().sub_(λ)
        if not first(failed):
            identity = torch.eye(len(h), dtype=h.dtype, device=h.device)
            inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
            dimension = len(h) - λ * float(inverse.norm()) ** 2
            return Triangular(inverse.to(dtype)), dimension
    e, v = _eigen(h)
    if λ > 0:
        e = e.clamp(min=0)
    else:
        kept = e > e.max().clamp(min=0) * len(h) * torch.finfo(dtype).eps
        e, v = e[kept], v[:, kept]
    return Spectral(v, (e + λ).rsqrt()), float((e / (e + λ)).sum())


def _eigen(h: Float64[Tensor, "k k"]) -> tuple[Float64[Tensor, " k"], Float64[Tensor, "k k"]]:
    """Eigenvalues and eigenvectors; every process uses those of the first.

    The sign of an eigenvector is arbitrary, as is the basis of equal eigenvalues. If two processes
    chose differently, products of their φ would be meaningless.
    """
    e, v = torch.linalg.eigh(h)
    return first(e), first(v)


def _dual(
    g: Float[Tensor, "n k"], gram: Float64[Tensor, "n n"], λ: float
) -> tuple[Embedding, float]:
    """The same for n < k, from the Gram matrix over n, which is exact but for float64's rounding.

    Without damping, a direction is also left out where the gradients' own rounding errors, of some
    ten units in the last place and independent, would have brought it about.
    """
    e, u = _eigen(gram)
    rounding = torch.finfo(gram.dtype).eps
    if λ == 0:
        rounding = max(rounding, (10 * torch.finfo(g.dtype).eps) ** 2)
    kept = e > e.max().clamp(min=0) * max(g.shape) * rounding
    e, u = e[kept], u[:, kept]
    return Dual(g, u, e, λ), float((e / (e + λ)).sum())

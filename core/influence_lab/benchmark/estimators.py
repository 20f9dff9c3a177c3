r"""Alternatives for one score from several draws: other draws, and other averages.

The library draws independently and averages scores, which estimates
:math:`E[g^\top(H+\lambda\mathbf I)^{-1}g]`, the influence of a random draw's loss. This module adds
noise in opposite pairs, for the same quantity, and the loss averaged over draws. The gradient of
the latter is the mean gradient :math:`\bar g`. Its score
:math:`\bar g^\top(\bar H+\lambda\mathbf I)^{-1}\bar g`, the influence of the expected loss, is a
different quantity, without the variation between the gradients of the draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from influence_ssl import GaussianNoise, Invariance
from influence_ssl.objectives import Batch, Encode, Index


@dataclass(frozen=True)
class Antithetic(GaussianNoise):
    """Noise in opposite pairs: draw 2k adds μ + ση, draw 2k + 1 adds μ − ση with the same η."""

    def __call__(
        self, x: Float[Tensor, "b *shape"], index: Int64[Tensor, " b"], draw: int, seed: int
    ) -> Float[Tensor, "b *shape"]:
        x_hat = super().__call__(x, index, draw // 2, seed)
        return 2 * (x + self.mean) - x_hat if draw % 2 else x_hat


@dataclass(frozen=True)
class MeanLoss:
    """The cosine distance averaged over ``count`` draws, an objective.

    The clean images go through the encoder once: (count + 1) / 2 passes over pairs.
    """

    count: int
    perturbation: Callable[..., Tensor] = GaussianNoise()  # noqa: RUF009 (frozen, so all may share it)

    def __call__(
        self, encode: Encode, batch: Batch, index: Index, draw: int, seed: int
    ) -> Float[Tensor, " b"]:
        draws = range(self.count * draw, self.count * (draw + 1))
        copies = [self.perturbation(batch[0], index, one, seed) for one in draws]
        clean, *perturbed = encode(torch.cat([batch[0], *copies])).chunk(self.count + 1)
        losses = [self._loss(torch.cat([clean, z]), batch, index) for z in perturbed]
        return torch.stack(losses).mean(0)

    @staticmethod
    def _loss(both: Tensor, batch: Batch, index: Index) -> Tensor:
        """The library's loss for given representations."""
        return Invariance(lambda x, *_: x)(lambda _: both, batch, index, 0, 0)


@dataclass(frozen=True)
class Estimator:
    """One way to spend ``draws`` draws: their objective, and whether gradients are averaged."""

    antithetic: bool
    gradients: bool
    draws: int

    @property
    def name(self) -> str:
        """Unique; the key in the record."""
        what = "gradients" if self.gradients else "scores"
        noise = "opposite pairs" if self.antithetic else "independent"
        return f"{what} averaged, {noise}, {self.draws}"

    @property
    def passes(self) -> float:
        """Passes of the network over pairs."""
        return (self.draws + 1) / 2 if self.gradients else self.draws

    @property
    def settings(self) -> dict[str, object]:
        """Arguments of a scorer."""
        noise = Antithetic() if self.antithetic else GaussianNoise()
        if self.gradients:
            return {"objective": MeanLoss(self.draws, noise)}
        return {"objective": Invariance(noise), "draws": self.draws}


ESTIMATORS = [
    Estimator(antithetic, gradients, draws)
    for gradients in (False, True)
    for antithetic in (False, True)
    for draws in (2, 3, 4)
    if not (antithetic and draws % 2)
]

"""Perturbations: x ↦ x̂, seeded per example.

A perturbation is any callable ``p(x, index, draw, seed) -> x̂`` with x (B, ...) and index an int64
CPU tensor (B,). x̂ has the shape of x. The randomness of example i must depend only on (seed, i,
draw), so that no score depends on batch size, order or sharding. :func:`example_generator` provides
such randomness.

A perturbation may have a method ``ahead(shape, index, draw, seed, pinned)``. Threads call it while
the device computes on earlier batches. It returns the same perturbation with the random numbers of
these examples drawn.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from influence_ssl._numbers import plain, refuse_no_number
from influence_ssl._seeds import example_seed, example_seeds
from influence_ssl.errors import InfluenceTypeError, InfluenceValueError


def example_generator(seed: int, index: int | Tensor, draw: int) -> torch.Generator:
    """The random generator of one example in one draw, determined by (seed, index, draw).

    NumPy's ``SeedSequence`` hashes the three numbers, so that neighbours get independent streams.
    PyTorch uses 32 bits of the hash; among 100,000 examples, about one pair shares its noise.
    """
    try:
        numbers = [operator.index(number) for number in (seed, index, draw)]
    except TypeError as error:
        raise InfluenceTypeError(
            f"example_generator: seed={seed!r:.60}, index={index!r:.60} and draw={draw!r:.60} must "
            "be integers, as a perturbation gets them for each image."
        ) from error
    if min(numbers) < 0:
        raise InfluenceValueError(f"example_generator: {min(numbers)} is negative; count from 0.")
    return torch.Generator().manual_seed(example_seed(*numbers))


@dataclass(frozen=True)
class GaussianNoise:
    r"""Additive noise :math:`\hat x = x + \mu + \sigma\eta,\ \eta \sim \mathcal N(0, I)`.

    The paper's perturbation (section 4, :math:`\mathcal N(0.05, 0.2)`); ``std`` is the standard
    deviation, in the units of the tensor that the encoder receives. Noise is drawn in float32 on
    the CPU and then cast, so that it depends on neither dtype nor device.
    """

    mean: float = 0.05
    std: float = 0.2

    def __post_init__(self) -> None:
        plain(self)
        refuse_no_number(self, "mean", "std")
        if not math.isfinite(self.mean):
            raise InfluenceValueError(f"GaussianNoise: mean={self.mean} is not finite.")
        if not (math.isfinite(self.std) and self.std >= 0):
            raise InfluenceValueError(f"GaussianNoise: std={self.std} must be finite and ≥ 0.")

    def __call__(
        self, x: Float[Tensor, "b *shape"], index: Int64[Tensor, " b"], draw: int, seed: int
    ) -> Float[Tensor, "b *shape"]:
        noise = self._noise(x.shape, index, draw, seed)
        return x + noise.to(x.device, x.dtype, non_blocking=True)

    def ahead(
        self, shape: Sequence[int], index: Tensor, draw: int, seed: int, pinned: bool = False
    ) -> Self:
        """The same perturbation with the noise of these examples (B, ...) drawn already.

        Asked for other examples, it draws theirs. ``pinned``: in memory that a card can fetch.
        """
        found = copy.copy(self)
        noise = self._noise(shape, index, draw, seed, pinned)
        object.__setattr__(found, "_drawn", (noise, index.tolist(), draw, seed))
        return found

    def _noise(
        self, shape: Sequence[int], index: Tensor, draw: int, seed: int, pinned: bool = False
    ) -> Tensor:
        numbers = index.tolist()
        drawn = vars(self).get("_drawn")
        if drawn is not None:
            noise, known, *rest = drawn
            if noise.shape == shape and known == numbers and rest == [draw, seed]:
                return noise
        noise = torch.empty(*shape, dtype=torch.float32, device="cpu", pin_memory=pinned)
        generator = torch.Generator()
        for row, number in zip(noise.unbind(), example_seeds(seed, numbers, draw), strict=True):
            row.normal_(generator=generator.manual_seed(number))
        return noise.mul_(self.std).add_(self.mean)

"""The distance of each image from the others, by representation and without influence."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from influence_ssl.analysis.neighbours import Neighbours, nearest, unit

NEIGHBOURS = 10


class Distances(NamedTuple):
    """``density`` (N,): mean cosine distance to the ten nearest others; ``mahalanobis`` (N,):
    √((z − mean)ᵀ (C + ρ tr(C)/d I)⁻¹ (z − mean)), C the covariance of all, ρ = 0.1."""

    density: Float64[np.ndarray, " n"]
    mahalanobis: Float64[np.ndarray, " n"]
    neighbours: Neighbours


def distances(z: Float[Tensor, "n d"], ridge: float = 0.1) -> Distances:
    """Both measures for each row of ``z``, and the neighbours behind the first."""
    near = nearest(unit(z), NEIGHBOURS)
    centred = z.double() - z.double().mean(0)
    covariance = centred.T @ centred / len(z)
    covariance += torch.eye(len(covariance), device=z.device) * (
        ridge * covariance.trace() / len(covariance) + 1e-300
    )
    solved = torch.linalg.solve(covariance, centred.T).T
    far = (centred * solved).sum(1).clamp(min=0).sqrt()
    return Distances(near.distance.astype(np.float64), far.cpu().numpy(), near)

"""Nearest neighbours among representations, by cosine."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

_ROWS = 512


class Neighbours(NamedTuple):
    """The k nearest other rows of each row, nearest first, and their cosine similarities.

    Similarities have five decimals: float32 rounding decides what lies beyond, and would order
    exact copies differently on another processor.
    """

    place: Int64[np.ndarray, "n k"]
    similarity: Float32[np.ndarray, "n k"]

    @property
    def distance(self) -> Float32[np.ndarray, " n"]:
        """Mean cosine distance to the k nearest rows."""
        return 1 - self.similarity.mean(1)

    def purity(
        self, labels: Int64[np.ndarray, " n"], own: Int64[np.ndarray, " m"] | None = None
    ) -> Float64[np.ndarray, " m"]:
        """The share of each row's k nearest that have its label; ``own``: labels of the queries."""
        own = labels if own is None else own
        return (labels[self.place] == own[:, None]).mean(1)


def unit(z: Float[Tensor, "n d"] | Float[np.ndarray, "n d"]) -> Float32[Tensor, "n d"]:
    """Rows scaled to length 1; a zero row stays zero."""
    rows = torch.as_tensor(z)
    return (rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)).float()


def nearest(
    z: Float32[Tensor, "n d"] | Float32[np.ndarray, "n d"],
    k: int = 1,
    rows: Int64[np.ndarray, " m"] | None = None,
) -> Neighbours:
    """The k nearest rows by cosine among all others, for each row or only for ``rows``.

    ``z`` has :func:`unit` rows; k is at most n − 1. For k = 1, the first of equally near rows is
    returned. Cost: m n d multiplications, in blocks, so that no n x n matrix is formed.
    """
    bank = torch.as_tensor(z)
    asked = torch.arange(len(bank)) if rows is None else torch.as_tensor(rows)
    places, similarities = [], []
    for part in asked.to(bank.device).split(_ROWS):
        cosine = bank[part] @ bank.T
        cosine[torch.arange(len(part)), part] = -torch.inf
        # topk guarantees no order among equal values, but the maximum alone is the first.
        found = cosine.max(1, keepdim=True) if k == 1 else cosine.topk(min(k, len(bank) - 1), 1)
        places.append(found.indices)
        similarities.append(found.values.round(decimals=5))
    return Neighbours(torch.cat(places).cpu().numpy(), torch.cat(similarities).cpu().numpy())

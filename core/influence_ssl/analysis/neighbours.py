"""Nearest neighbours among representations, by cosine: exact in blocks, or by an index of many."""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

EXACT = 100_000
"""Among at most so many rows, every row is compared with every other."""

PROBED = 128
"""The number of the index's cells in which the neighbours of a row are sought."""

_ROWS = 512
_ENTRIES = 2**26
_LISTS = 4
_SAMPLE = 64


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

    For each of more than :data:`EXACT` rows on a CPU, and if the extra ``index`` is installed, an
    index finds almost all of them at a cost that grows with n^1.5: the rows are divided into 4 √n
    cells by k-means, and each is compared only with those in the :data:`PROBED` nearest cells.
    """
    bank = torch.as_tensor(z)
    if rows is None and _by_index(bank):
        return indexed(bank, min(k, len(bank) - 1))
    asked = torch.arange(len(bank)) if rows is None else torch.as_tensor(rows)
    places, similarities = [], []
    for part in asked.to(bank.device).split(max(1, min(_ROWS, _ENTRIES // max(1, len(bank))))):
        cosine = bank[part] @ bank.T
        cosine[torch.arange(len(part)), part] = -torch.inf
        # topk guarantees no order among equal values, but the maximum alone is the first.
        found = cosine.max(1, keepdim=True) if k == 1 else cosine.topk(min(k, len(bank) - 1), 1)
        places.append(found.indices)
        similarities.append(found.values.round(decimals=5))
    return Neighbours(torch.cat(places).cpu().numpy(), torch.cat(similarities).cpu().numpy())


def indexed(bank: Float32[Tensor, "n d"], k: int) -> Neighbours:
    """Almost all of the k nearest rows, from the index that :func:`nearest` describes.

    k is at most n − 1. The seed of k-means is fixed, and equally near rows are sorted, so that
    neither a second run nor another number of threads changes anything. Needs the extra ``index``.
    """
    import faiss

    n, d = bank.shape
    values = bank.contiguous().numpy()
    cells = round(_LISTS * n**0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.max_points_per_centroid, index.nprobe = 0, _SAMPLE, PROBED
    index.train(values)
    index.add(values)
    similarity, place = index.search(values, k + 1)
    # The row itself, or the last one found if as many copies of the row came before it.
    own = place == np.arange(n)[:, None]
    own[~own.any(1), -1] = True
    place, similarity = place[~own].reshape(n, k), similarity[~own].reshape(n, k)
    # Where the probed cells hold fewer than k rows, all are compared.
    few = np.flatnonzero((place < 0).any(1))
    if len(few):
        place[few], similarity[few] = nearest(bank, k, few)
    similarity = torch.from_numpy(similarity).round(decimals=5).numpy()
    order = np.lexsort((place, -similarity), axis=1)
    return Neighbours(np.take_along_axis(place, order, 1), np.take_along_axis(similarity, order, 1))


def forecast(z: Float[Tensor, "n d"], searches: int) -> str | None:
    """For more than :data:`EXACT` rows on a CPU, a line that says how their neighbours are found:
    by the index, or without it in about how many minutes for so many searches of all rows.

    One block is timed for this.
    """
    n = len(z)
    if n <= EXACT or z.device.type != "cpu":
        return None
    if _by_index(z):
        return f"neighbours among {n} images: by an index, which misses a few of them"
    rows, start = unit(z), time.perf_counter()
    nearest(rows, 5, np.arange(min(n, _ROWS)))
    minutes = searches * (time.perf_counter() - start) * n / _ROWS / 60
    faster = "" if _MACOS else "; faster with an index: pip install 'influence-ssl[index]'"
    return f"comparing {n} images with one another takes about {max(1, minutes):.0f} min{faster}"


# Beside PyTorch, faiss crashes on macOS, because each brings its own OpenMP.
_MACOS = sys.platform == "darwin"


def _by_index(bank: Tensor) -> bool:
    return (
        len(bank) > EXACT
        and bank.device.type == "cpu"
        and not _MACOS
        and importlib.util.find_spec("faiss") is not None
    )

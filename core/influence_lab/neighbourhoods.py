"""Who stands beside whom: nearest neighbours, label purity, silhouettes, pixel twins."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from sklearn.metrics import silhouette_samples
from torch import Tensor

from . import results
from .agreement import Estimate, mean
from .datasets import Images
from .datasets.base import cache_root
from .files import replacing
from .probes import extract

K = 10
_ROWS = 512
_COARSE = 8
_CANDIDATE = 0.9
# Below this many images a pass of the encoder costs less than the file.
_CACHED_FROM = 5000


class Neighbours(NamedTuple):
    """The k nearest other rows of each row, the nearest first, and their cosine similarities."""

    index: Int64[np.ndarray, "n k"]
    similarity: Float32[np.ndarray, "n k"]

    @property
    def distance(self) -> Float32[np.ndarray, " n"]:
        """Mean cosine distance to the k nearest."""
        return 1 - self.similarity.mean(1)

    def purity(
        self, labels: Int64[np.ndarray, " n"], own: Int64[np.ndarray, " m"] | None = None
    ) -> Float64[np.ndarray, " m"]:
        """The share of each row's k nearest with its label; ``own``: labels of the queries."""
        own = labels if own is None else own
        return (labels[self.index] == own[:, None]).mean(1)


def unit(z: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Rows of length 1; a zero row stays zero."""
    return np.asarray(z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12), np.float32)


def nearest(
    z: Float32[np.ndarray, "n d"], k: int = K, rows: Int64[np.ndarray, " m"] | None = None
) -> Neighbours:
    """The k nearest by cosine among all other rows, of each row or of ``rows`` alone.

    ``z`` has unit rows; k is cut to n − 1. Cost: m n d multiplications, in blocks.
    """
    bank = torch.from_numpy(z)
    asked = torch.arange(len(z)) if rows is None else torch.from_numpy(rows)
    found = []
    for part in asked.split(_ROWS):
        cosine = bank[part] @ bank.T
        cosine[torch.arange(len(part)), part] = -torch.inf
        found.append(cosine.topk(min(k, len(z) - 1), dim=1))
    index, similarity = (torch.cat([getattr(f, what) for f in found]).numpy()
                         for what in ("indices", "values"))  # fmt: skip
    return Neighbours(index, similarity)


def structure(
    z: Float32[np.ndarray, "n d"], labels: Int64[np.ndarray, " n"], k: int = K
) -> dict[str, Estimate]:
    r"""How clearly a set of representations falls into its classes, and how tight it is.

    - ``purity``: mean share of an image's k nearest *of the set* that have its label;
    - ``silhouette``: mean of (b − a) / max(a, b), a the mean cosine distance to its own class and b
      to the nearest other class (Rousseeuw 1987);
    - ``distance``: mean cosine distance to the k nearest of the set.

    Bootstrap intervals over the images, with each image's neighbours kept.
    """
    near = nearest(z, k)
    silhouette = silhouette_samples(z.astype(np.float64), labels, metric="cosine")
    values = {"purity": near.purity(labels), "silhouette": silhouette, "distance": near.distance}
    return {what: mean(numbers.astype(np.float64)) for what, numbers in values.items()}


def features(encoder: Any, images: Images, cache: Path | None = None) -> Float32[np.ndarray, "n d"]:
    """Representations of all images as unit rows, kept in the user's cache for large sets."""
    sha = hashlib.sha256(images.digest.encode())
    for name, value in encoder.state_dict().items():
        sha.update(name.encode() + value.cpu().numpy().tobytes())
    folder = cache_root() / "features" if cache is None else cache
    path = folder / f"{images.name}-{sha.hexdigest()[:16]}.npy"
    if path.is_file():
        return np.load(path)
    z = unit(extract(encoder, images.tensor()).numpy())
    if len(images) >= _CACHED_FROM:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, z)
    return z


def recorded_features(
    profile: str, method: str, seed: int, images: Images, root: Path | None = None
) -> Float32[np.ndarray, "n d"] | None:
    """:func:`features` of a recorded encoder; ``None`` where there is none."""
    encoder = results.load_encoder(profile, method, seed, root)
    return None if encoder is None else features(encoder, images)


def pixel_twin(pixels: UInt8[np.ndarray, "n h w c"]) -> Float64[np.ndarray, " n"]:
    """Each image's largest correlation of all pixels with another image; 0 below about 0.9.

    Pairs are first sought among 8 x 8 averages, whose correlation has to be 0.9: where the pixels'
    correlation is 0.95, what averaging takes away is too little to bring it below.
    """
    rows = torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)
    coarse = _standardised(torch.nn.functional.adaptive_avg_pool2d(rows, _COARSE))
    best = torch.zeros(len(rows), dtype=torch.float64)
    for start in range(0, len(rows), _ROWS):
        rough = coarse[start : start + _ROWS] @ coarse[start:].T
        a, b = torch.nonzero(rough.triu(1) >= _CANDIDATE, as_tuple=True)
        for one, other in zip((a + start).split(8192), (b + start).split(8192), strict=True):
            pair = _standardised(rows[one]) * _standardised(rows[other])
            for end in (one, other):
                best.scatter_reduce_(0, end, pair.sum(1).double(), "amax")
    return best.numpy()


def _standardised(pictures: Float[Tensor, "n c h w"]) -> Float32[Tensor, "n p"]:
    flat = pictures.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    # A blank picture correlates with nothing.
    return flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-6)

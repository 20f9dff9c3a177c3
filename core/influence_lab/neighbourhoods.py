"""Who stands beside whom: nearest neighbours, label purity, silhouettes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from sklearn.metrics import silhouette_samples

from influence_ssl.files.writing import replacing

from . import results
from .agreement import Estimate, mean
from .datasets import Images
from .datasets.base import cache_root
from .probes import extract

K = 10
_ROWS = 512
# Below this many images a pass of the encoder costs less than the file.
_CACHED_FROM = 5000


class Neighbours(NamedTuple):
    """Places of the k nearest other rows of each row, nearest first, and cosine similarities."""

    place: Int64[np.ndarray, "n k"]
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
        return (labels[self.place] == own[:, None]).mean(1)


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
    place, similarity = (torch.cat([getattr(f, what) for f in found]).numpy()
                         for what in ("indices", "values"))  # fmt: skip
    return Neighbours(place, similarity)


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
        with replacing(path, parents=True) as temporary, temporary.open("wb") as file:
            np.save(file, z)
    return z


def recorded_features(
    profile: str, method: str, seed: int, images: Images, root: Path | None = None
) -> Float32[np.ndarray, "n d"] | None:
    """:func:`features` of a recorded encoder; ``None`` where there is none."""
    encoder = results.load_encoder(profile, method, seed, root)
    return None if encoder is None else features(encoder, images)

"""Properties of sets of representations: neighbourhood purity, silhouettes; and features."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from sklearn.metrics import silhouette_samples

from influence_lab.datasets import Images
from influence_lab.datasets.base import cache_root
from influence_lab.measures.agreement import Estimate, mean
from influence_lab.pretrain.probes import extract
from influence_lab.records import results
from influence_ssl.analysis.neighbours import nearest, unit
from influence_ssl.files.writing import replacing

K = 10
# Below this many images, a pass of the encoder costs less than reading the file.
_CACHED_FROM = 5000


def structure(
    z: Float32[np.ndarray, "n d"], labels: Int64[np.ndarray, " n"], k: int = K
) -> dict[str, Estimate]:
    r"""The separation of classes in a set of representations, and its tightness.

    - ``purity``: mean share of an image's k nearest *of the set* that have its label;
    - ``silhouette``: mean of (b − a) / max(a, b), a the mean cosine distance to its own class and b
      to the nearest other class (Rousseeuw 1987);
    - ``distance``: mean cosine distance to the k nearest of the set.

    Bootstrap intervals are over the images, with each image's neighbours fixed.
    """
    near = nearest(z, k)
    silhouette = silhouette_samples(z.astype(np.float64), labels, metric="cosine")
    values = {"purity": near.purity(labels), "silhouette": silhouette, "distance": near.distance}
    return {what: mean(numbers.astype(np.float64)) for what, numbers in values.items()}


def features(encoder: Any, images: Images, cache: Path | None = None) -> Float32[np.ndarray, "n d"]:
    """Representations of all images as unit rows, cached for large sets."""
    sha = hashlib.sha256(images.digest.encode())
    for name, value in encoder.state_dict().items():
        sha.update(name.encode() + value.cpu().numpy().tobytes())
    folder = cache_root() / "features" if cache is None else cache
    path = folder / f"{images.name}-{sha.hexdigest()[:16]}.npy"
    if path.is_file():
        return np.load(path)
    z = unit(extract(encoder, images.tensor())).numpy()
    if len(images) >= _CACHED_FROM:
        with replacing(path, parents=True) as temporary, temporary.open("wb") as file:
            np.save(file, z)
    return z


def recorded_features(
    profile: str, method: str, seed: int, images: Images, root: Path | None = None
) -> Float32[np.ndarray, "n d"] | None:
    """:func:`features` of a recorded encoder, or ``None`` if there is none."""
    encoder = results.load_encoder(profile, method, seed, root)
    return None if encoder is None else features(encoder, images)

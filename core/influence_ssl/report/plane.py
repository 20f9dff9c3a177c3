"""Representations on two axes: the principal components with the most variance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from influence_ssl.errors import InfluenceValueError


class Plane(NamedTuple):
    """Coordinates (N, 2), and each axis's share of the variance."""

    points: Float64[np.ndarray, "n 2"]
    shares: tuple[float, float]


def plane(z: Float[np.ndarray, "n d"]) -> Plane:
    """The first two principal components of f(x)/‖f(x)‖, as similarity compares them.

    The entry of largest absolute value in each component is positive, so that equal representations
    give equal maps. Raises :class:`InfluenceValueError` if the representations have fewer than two
    dimensions.
    """
    if z.shape[1] < 2:
        raise InfluenceValueError("a map needs representations of two dimensions or more.")
    rows = z.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    rows -= rows.mean(0)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    axes = vectors[:, [-1, -2]]
    axes *= np.sign(axes[np.abs(axes).argmax(0), [0, 1]])
    total = max(float(values.sum()), 1e-300)
    return Plane(rows @ axes, (float(values[-1]) / total, float(values[-2]) / total))

"""The 1,797 handwritten digits that scikit-learn ships."""

from __future__ import annotations

import numpy as np

from influence_lab.datasets.base import Images


def load_digits() -> Images:
    """Real 8 x 8 grey images as (N, 8, 8, 1) uint8; the source's 0 to 16 scaled to 0 to 255."""
    from sklearn.datasets import load_digits as source

    bunch = source()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    names = tuple(f"digit-{i:04d}" for i in range(len(pixels)))
    classes = tuple(str(i) for i in range(10))
    return Images("digits", pixels, bunch.target.astype(np.int64), names, classes)

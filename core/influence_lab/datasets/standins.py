"""Substitutes for the paper's data where it is unavailable, always named as such."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from influence_lab.datasets.base import Grouped, Images
from influence_lab.datasets.cifar import load_cifar10
from influence_lab.datasets.scenes import GROUPS, make_scenes
from influence_ssl.errors import InfluenceValueError

FINER = 10
GRID = 4


def standin_cifar100(split: str, root: str | Path | None = None) -> Images:
    """For CIFAR-100: real CIFAR-10 images under ten pseudo-classes per class.

    Each class's training images are grouped by k-means of :func:`descriptor`, whose centres start
    at the means of ten equal groups by brightness, so that no randomness is involved. Test
    images get the nearest centre of their class. The images are those of CIFAR-10, and a score that
    ignores labels cannot tell the difference.
    """
    train = load_cifar10("train", root)
    images = train if split == "train" else load_cifar10(split, root)
    labels = finer(train, images)
    classes = tuple(f"{name} {k}" for name in train.classes for k in range(FINER))
    name = f"{train.name} under {len(classes)} pseudo-classes, a stand-in for CIFAR-100"
    return Images(name, images.images, labels, images.names, classes)


def finer(train: Images, images: Images) -> Int64[np.ndarray, " n"]:
    """Labels of ``images`` in ten pseudo-classes per class, determined by ``train`` alone."""
    from sklearn.cluster import KMeans  # slow to import, and every chapter has data

    labels = np.empty(len(images), np.int64)
    for number, name in enumerate(train.classes):
        own = descriptor(train.images[train.labels == number])
        if len(own) < FINER:
            raise InfluenceValueError(
                f"{train.name}: {len(own)} training images of class {name!r}; {FINER} "
                f"pseudo-classes need at least {FINER}"
            )
        groups = np.array_split(own[np.argsort(own.mean(1), kind="stable")], FINER)
        start = np.stack([group.mean(0) for group in groups])
        means = KMeans(FINER, init=start, n_init=1, max_iter=100).fit(own)
        asked = images.labels == number
        if asked.any():
            labels[asked] = number * FINER + means.predict(descriptor(images.images[asked]))
    return labels


def descriptor(pixels: UInt8[np.ndarray, "n h w c"]) -> Float64[np.ndarray, "n d"]:
    """Mean colours in [0, 1] of the cells of a 4 x 4 grid."""
    n, height, width, channels = pixels.shape
    cells = pixels[:, : height // GRID * GRID, : width // GRID * GRID].reshape(
        n, GRID, height // GRID, GRID, width // GRID, channels
    )
    return cells.mean((2, 4), dtype=np.float64).reshape(n, -1) / 255


def standin_fairface(n: int = 512, seed: int = 0) -> Grouped:
    """For FairFace: ``scenes``, of which 15 % belong to the group *night*: planted, and darker."""
    scenes = make_scenes(n, seed)
    return Grouped(scenes.images, {"light": np.array(GROUPS)[scenes.group]}, stand_in=True)

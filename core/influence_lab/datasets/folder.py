"""Any folder or zip of images, read as the command ``influence-ssl`` reads it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from influence_lab.datasets.base import Grouped, Images
from influence_lab.datasets.reading import square
from influence_ssl.files.images import ImageFiles, to_tensor


def load_folder(source: str | Path, size: int | None = None) -> Grouped:
    """Images of a folder, a zip or a CSV (:class:`influence_ssl.files.images.ImageFiles`).

    Classes are the top-level folders, in alphabetical order; images outside them form a class with
    an empty name. Images are converted to RGB. ``size`` cuts each to its largest centred square and
    resizes it to that width; without it, all must have one size. Unreadable images are left out; a
    line on the terminal counts and names them. Raises :class:`InfluenceError` as the reader does.
    """
    source = Path(source)

    def prepare(image: Image.Image) -> Tensor:
        return to_tensor(image if size is None else square(image, size))

    found = ImageFiles(source, prepare if size else None).readable()
    pixels = np.stack([_pixels(found.image(k), size) for k in range(len(found))])
    tops = [name.split("/")[0] if "/" in name else "" for name in found.names]
    classes = tuple(sorted(set(tops)))
    labels = np.array([classes.index(top) for top in tops], np.int64)
    images = Images(source.name, pixels, labels, found.names, classes)
    grouped = Grouped(images, {"class": np.array(tops)}, (), tuple(found.skipped))
    if line := grouped.left_out():
        print(line, file=sys.stderr)
    return grouped


def _pixels(image: Image.Image, size: int | None) -> np.ndarray:
    return np.array(image if size is None else square(image, size))

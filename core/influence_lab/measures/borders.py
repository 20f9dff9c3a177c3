"""The border of an image: whether it is uniform, white or black, or coloured.

Pixels are in [0, 1]. The border is the outer three pixels on every side: 348 of 1,024 pixels of a
32 x 32 image, which show the background if the object is centred.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, UInt8

WIDTH = 3
UNIFORM = 0.1
WHITE, BLACK = 0.8, 0.2
_ROWS = 4096

MEASURES = {
    "border deviation": "spread of the border",
    "border extremeness": "border far from mid-grey",
    "border colour": "colour of the border",
    "image colour": "colour of the image",
}


def border(images: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n p 3"]:
    """The outer :data:`WIDTH` pixels of every side, each pixel once."""
    inside = np.zeros(images.shape[1:3], bool)
    inside[WIDTH:-WIDTH, WIDTH:-WIDTH] = True
    return images[:, ~inside]


def measures(images: UInt8[np.ndarray, "n h w 3"]) -> dict[str, Float64[np.ndarray, " n"]]:
    """The paper's descriptions of influential images, as four numbers per image.

    - ``border deviation``: the root of the variance of the border's pixels, mean over the channels;
    - ``border extremeness``: |2 b − 1| with b the mean of the border: 1 for white and for black;
    - ``border colour``, ``image colour``: the mean of a pixel's largest minus its smallest channel,
      0 for greys.

    In addition, ``border brightness`` is b itself, which distinguishes white from black.
    """
    parts = [_measures(images[k : k + _ROWS]) for k in range(0, len(images), _ROWS)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def uniform(found: dict[str, Float64[np.ndarray, " n"]]) -> Bool[np.ndarray, " n"]:
    """A mask of the images with a uniform border, that is, a deviation below :data:`UNIFORM`."""
    return found["border deviation"] < UNIFORM


def white_or_black(found: dict[str, Float64[np.ndarray, " n"]]) -> Bool[np.ndarray, " n"]:
    """A mask of the images with a uniform border brighter than 0.8 or darker than 0.2."""
    brightness = found["border brightness"]
    return uniform(found) & ((brightness > WHITE) | (brightness < BLACK))


def _measures(images: np.ndarray) -> dict[str, np.ndarray]:
    edge = border(images) / 255.0
    brightness = edge.mean((1, 2))
    return {
        "border deviation": np.sqrt(edge.var(1).mean(1)),
        "border extremeness": abs(2 * brightness - 1),
        "border colour": (edge.max(2) - edge.min(2)).mean(1),
        "image colour": (images.max(3) / 255.0 - images.min(3) / 255.0).mean((1, 2)),
        "border brightness": brightness,
    }

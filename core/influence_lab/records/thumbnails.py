"""The images of a gallery, recorded row by row as one small JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from influence_ssl.files.writing import replacing


def sheet(images: UInt8[np.ndarray, "n h w 3"], columns: int) -> UInt8[np.ndarray, "a b 3"]:
    """The images side by side, ``columns`` per row; an incomplete last row is filled with white."""
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    full = np.full((rows * columns, height, width, 3), 255, np.uint8)
    full[:n] = images
    grid = full.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * height, columns * width, 3)


def save_sheet(
    images: UInt8[np.ndarray, "n h w 3"], columns: int, path: Path, quality: int = 90
) -> None:
    """Write :func:`sheet` as a JPEG, whole or not at all.

    JPEG without subsampled colour works on cells of 8 x 8 pixels, so images whose sides are
    multiples of 8 do not affect one another.
    """
    with replacing(path, parents=True) as temporary:
        Image.fromarray(sheet(images, columns)).save(
            temporary, format="JPEG", quality=quality, optimize=True, subsampling=0
        )


def load_sheet(path: Path, columns: int) -> UInt8[np.ndarray, "n s s 3"]:
    """The square images of a recorded sheet, in order, including white ones at its end."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    side = pixels.shape[1] // columns
    grid = pixels.reshape(-1, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(-1, side, side, 3)

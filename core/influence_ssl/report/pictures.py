"""Small pictures of the images that a report shows, and the similarity of two of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from PIL import Image
from PIL.Image import Resampling

from influence_ssl.errors import InfluenceError, InfluenceValueError
from influence_ssl.files.images import ImageFiles, pixel_digest

SIDE = 128
_TINY = 48
_GREY = 64
_CELLS = 16
_SCALES = (0.95, 0.9, 0.85, 0.8)
_POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
_ABSENT, _CHANGED = "not there", "no longer the image that was scored"


class Pictures:
    """Thumbnails as data URIs by name; ``failed`` lists those that could not be shown, and why.

    ``digests`` by image name: the pixels must still have this digest
    (:func:`~influence_ssl.files.images.pixel_digest`). ``files`` by image name: the SHA-256 that
    the file must still have; an empty one is not checked. ``whence`` states the names' origin,
    ``bits`` those in use of 16-bit images (:class:`~influence_ssl.files.images.ImageFiles`).
    Raises :class:`InfluenceError` if ``source`` holds none of the images, or if all that it holds
    under their names are others.
    """

    def __init__(
        self,
        source: Path,
        names: Iterable[str],
        digests: Mapping[str, str] | None = None,
        whence: str = "of the score file",
        files: Mapping[str, str] | None = None,
        bits: int | None = None,
    ) -> None:
        wanted = list(dict.fromkeys(names))
        images = ImageFiles(source, bits=bits)
        position = {name: k for k, name in enumerate(images.names)}
        self.uris: dict[str, tuple[str, int, int]] = {}
        self._grey: dict[str, Image.Image] = {}
        self.failed: list[list[str]] = []
        if wanted and not any(name in position for name in wanted):
            raise InfluenceValueError(
                f"--images {str(source)!r} holds none of the images {whence}, for "
                f"instance {wanted[0]!r}; give the folder, zip or CSV that was scored."
            )
        for name in wanted:
            if name not in position:
                self.failed.append([name, _ABSENT])
                continue
            k, known = position[name], (files or {}).get(name)
            try:
                # Another file is not decoded: what it holds is of no interest.
                image = images.image(k) if not known or images.digest(k) == known else None
            except InfluenceError as error:
                self.failed.append([name, " ".join(str(error).split())])
                continue
            if image is None or (digests is not None and pixel_digest(image) != digests[name]):
                self.failed.append([name, _CHANGED])
                continue
            self._grey[name] = image.convert("L").resize((_GREY, _GREY), Resampling.BOX)
            self.uris[name] = _thumbnail(image)
        changed = [name for name, why in self.failed if why == _CHANGED]
        if changed and all(why in (_ABSENT, _CHANGED) for _, why in self.failed) and not self.uris:
            raise InfluenceValueError(
                f"--images {str(source)!r} holds other images under the names of those {whence}, "
                f"for instance {changed[0]!r}; give the folder, zip or CSV that was scored."
            )

    def likeness(self, names: list[str]) -> float | None:
        """The lowest, over images, of the pixel correlation with the most similar other image.

        Pixel correlation of two images: Pearson's, of their grey values averaged over 16 x 16
        cells, at its largest over crops of one of the two (sides from 1 down to 0.8, five positions
        each way). None where fewer than two of the images could be read.
        """
        views = [_views(self._grey[name]) for name in names if name in self._grey]
        if len(views) < 2:
            return None
        whole = np.stack([view[0] for view in views])
        cropped = np.stack([(view @ whole.T).max(0) for view in views])
        found = np.maximum(cropped, cropped.T)
        np.fill_diagonal(found, -1)
        return float(found.max(1).min())


def _views(grey: Image.Image) -> Float64[np.ndarray, "views cells"]:
    """The whole image and its crops as centred unit vectors; the whole one first."""
    boxes = [(0.0, 0.0, float(_GREY), float(_GREY))]
    for side in (scale * _GREY for scale in _SCALES):
        starts = [position * (_GREY - side) for position in _POSITIONS]
        boxes += [(x, y, x + side, y + side) for y in starts for x in starts]
    found = np.stack(
        [
            np.asarray(grey.resize((_CELLS, _CELLS), Resampling.BOX, box), dtype=np.float64).ravel()
            for box in boxes
        ]
    )
    found -= found.mean(1, keepdims=True)
    # An image of one colour has no pattern to correlate.
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def _thumbnail(image: Image.Image) -> tuple[str, int, int]:
    """(data URI, width, height), never enlarged; small images without loss."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Resampling.LANCZOS)
    kind = "png" if max(small.size) <= _TINY else "jpeg"
    file = io.BytesIO()
    small.save(file, kind, **({"optimize": True} if kind == "png" else {"quality": 82}))
    code = base64.b64encode(file.getvalue()).decode("ascii")
    return f"data:image/{kind};base64,{code}", small.width, small.height

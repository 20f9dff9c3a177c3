"""Image files as a data set: a folder, a zip or a CSV of paths, read lazily.

The command and the lab share this reader. An image becomes RGB: grey values are repeated, palettes
are looked up, an alpha channel is dropped, 16-bit grey keeps its upper 8 bits, an animation gives
its first frame. Orientation tags are not applied; torchvision and timm do not apply them either.
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from influence_ssl.errors import InfluenceOSError, InfluenceTypeError, InfluenceValueError
from influence_ssl.report.sources import EXTENSIONS, one_line, open_source

try:
    from PIL import Image, UnidentifiedImageError
except ModuleNotFoundError as error:
    raise ImportError(
        "reading image files needs Pillow; pip install 'influence-ssl[report]'."
    ) from error

# The formats behind EXTENSIONS. Pillow's others stay closed: EPS, for one, starts Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")
_CHUNK = 256
_THREADS = min(8, os.cpu_count() or 1)
THUMBNAIL = 32

Preprocess = Callable[[Image.Image], Tensor]


class Skipped(NamedTuple):
    """An image that could not be read, and why."""

    name: str
    reason: str


def to_tensor(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """The default preprocessing: float32 in [0, 1], RGB first, the image's own size."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous() / 255.0


class Images(Dataset[tuple[Tensor]]):
    """A map-style data set of image files; item k is ``(preprocess(image k),)``.

    ``source`` is one of

    - a folder: all images below it, by extension (:data:`EXTENSIONS`), hidden ones left out,
      sorted by name;
    - a zip: the same, read in place, nothing is extracted;
    - a CSV: one path per row, in the order of its rows, relative to the CSV's folder; the column is
      ``path``, ``file``, ``filename`` or ``image``, or the first where there is no header.

    ``preprocess`` maps a PIL image in mode RGB to the tensor that the encoder receives.

    ``names[k]`` is the image's path below the folder or in the zip, or as it stands in the CSV;
    ``index[k]`` its position in the listing, which does not change when other images are skipped.
    ``ignored`` counts the files without an image's extension. After :meth:`readable`, ``skipped``,
    ``sha256[k]`` (of the file), ``thumbnails[k]`` (grey, 32 x 32, uint8) and ``shape`` are known as
    well. Data loader workers may share it.

    Raises :class:`InfluenceError` if the source is missing, unsafe, or holds no images; items of
    images that cannot be read raise :class:`InfluenceOSError`.
    """

    def __init__(self, source: str | Path, preprocess: Preprocess | None = None) -> None:
        self.source = Path(source)
        self.preprocess = to_tensor if preprocess is None else preprocess
        self._files, names, self.ignored = open_source(self.source)
        if not names:
            raise InfluenceValueError(
                f"no images in {str(self.source)!r}; it must hold files that end in "
                f"{' '.join(sorted(EXTENSIONS))}."
            )
        self._rows = list(range(len(names)))
        self.names = tuple(names)
        self.index = torch.arange(len(names))
        self.skipped: tuple[Skipped, ...] = ()
        self.sha256: tuple[str, ...] = ()
        self.thumbnails = np.zeros((0, THUMBNAIL, THUMBNAIL), np.uint8)
        self.shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, k: int) -> tuple[Tensor]:
        return (self._tensor(k, self.image(k)),)

    def __getitems__(self, rows: list[int]) -> list[tuple[Tensor]]:
        """Several items, decoded in parallel."""
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self.__getitem__, rows))

    def image(self, k: int) -> Image.Image:
        """Image k as PIL image in mode RGB, before preprocessing."""
        return self._load(k)[1]

    def readable(self, strict: bool = False, progress: bool = False) -> Images:
        """The data set without the images that cannot be read, after trying each of them once.

        Every image is decoded and preprocessed, so that nothing of this comes up hours into a run.
        ``strict`` raises :class:`InfluenceOSError` at the first unreadable image instead of adding
        it to ``skipped``. Always an error: mixed sizes, a decompression bomb (more pixels than
        ``PIL.Image.MAX_IMAGE_PIXELS``), and a preprocessing that fails, is random, or returns
        anything but a finite floating-point tensor.
        """
        kept: list[int] = []
        digests: list[str] = []
        thumbnails: list[np.ndarray] = []
        skipped: list[Skipped] = []
        first: tuple[str, tuple[int, ...]] | None = None
        bar = tqdm(total=len(self), desc="reading", unit="image", disable=not progress)
        with ThreadPoolExecutor(_THREADS) as pool, bar:
            for start in range(0, len(self), _CHUNK):
                chunk = range(start, min(start + _CHUNK, len(self)))
                for k, found in zip(chunk, pool.map(self._inspect, chunk), strict=True):
                    bar.update()
                    if isinstance(found, Skipped):
                        if strict:
                            raise _Unreadable(found, self.source)
                        skipped.append(found)
                        continue
                    digest, shape, thumbnail = found
                    if first is None:
                        first = (self.names[k], shape)
                        self._refuse_random(k)
                    elif shape != first[1]:
                        raise InfluenceValueError(self._mixed(first, (self.names[k], shape)))
                    kept.append(k)
                    digests.append(digest)
                    thumbnails.append(thumbnail)
        if first is None:
            raise InfluenceOSError(
                f"none of the {len(self)} images in {str(self.source)!r} can be read; the first: "
                f"{skipped[0].name!r}: {skipped[0].reason}."
            )
        subset = copy.copy(self)
        subset._rows = [self._rows[k] for k in kept]
        subset.names = tuple(self.names[k] for k in kept)
        subset.index = self.index[kept]
        subset.skipped = self.skipped + tuple(skipped)
        subset.sha256 = tuple(digests)
        subset.thumbnails = np.stack(thumbnails)
        subset.shape = first[1]
        return subset

    def _load(self, k: int) -> tuple[bytes, Image.Image]:
        row, name, limit = self._rows[k], self.names[k], Image.MAX_IMAGE_PIXELS
        try:
            # No file need be larger than the largest permitted bitmap at four bytes per pixel.
            if limit is not None and self._files.size(row) > 4 * limit:
                raise Image.DecompressionBombError
            data = self._files.read(row)
            return data, decode(data)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise InfluenceValueError(
                f"the image {name!r} is too large, maybe a decompression bomb: it unpacks to more "
                f"than {limit:,} pixels (PIL.Image.MAX_IMAGE_PIXELS); remove it or make it smaller."
            ) from error
        # A decoder that meets foreign bytes may raise anything.
        except Exception as error:
            raise _Unreadable(Skipped(name, reason(error)), self.source) from error

    def _inspect(self, k: int) -> Skipped | tuple[str, tuple[int, ...], np.ndarray]:
        try:
            data, image = self._load(k)
        except _Unreadable as error:
            return error.skipped
        tensor = self._tensor(k, image)
        if not tensor.isfinite().all():
            raise InfluenceValueError(
                f"preprocess gives NaN or infinite values for {self.names[k]!r}; "
                "mend the preprocess (a standard deviation of zero?) or remove the image."
            )
        side = (THUMBNAIL, THUMBNAIL)
        thumbnail = np.asarray(image.convert("L").resize(side, Image.Resampling.BOX))
        return hashlib.sha256(data).hexdigest(), tuple(tensor.shape), thumbnail

    def _tensor(self, k: int, image: Image.Image) -> Tensor:
        try:
            tensor = self.preprocess(image)
        except Exception as error:
            raise InfluenceValueError(
                f"preprocess fails on {self.names[k]!r} ({image.width} x {image.height} pixels): "
                f"{type(error).__name__}: {one_line(error)}."
            ) from error
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            what = f"{tensor.dtype} tensor" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InfluenceTypeError(
                f"preprocess turns {self.names[k]!r} into a {what}; "
                "it must return a floating-point tensor."
            )
        return tensor

    def _refuse_random(self, k: int) -> None:
        tensors = [self[k][0] for _ in range(4)]
        if not all(torch.equal(tensors[0], other) for other in tensors[1:]):
            raise InfluenceValueError(
                f"preprocess is random: {self.names[k]!r} comes out different each time; "
                "use the preprocessing of evaluation, not the augmentation of training."
            )

    def _mixed(self, *images: tuple[str, tuple[int, ...]]) -> str:
        # Width and height are what a user sees of a file; a preprocess may change both.
        own = self.preprocess is to_tensor
        (a, first), (b, second) = (
            (name, f"{shape[2]} x {shape[1]} pixels" if own else f"a tensor {shape}")
            for name, shape in images
        )
        return (
            f"images of mixed sizes in {str(self.source)!r}: {a!r} is {first}, {b!r} is {second}; "
            "resize them, or let the encoder's function return (module, preprocess) with a "
            "preprocess that brings them to one size."
        )


class _Unreadable(InfluenceOSError):
    def __init__(self, skipped: Skipped, source: Path) -> None:
        self.skipped = skipped
        super().__init__(
            f"cannot read the image {skipped.name!r} in {str(source)!r}: {skipped.reason}; "
            "repair or remove it, or read without strict, which skips and lists it."
        )


def decode(data: bytes) -> Image.Image:
    """The image in a file's bytes, in mode RGB; raises whatever a decoder of foreign bytes does."""
    Image.init()
    image: Image.Image = Image.open(
        io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN]
    )
    limit = Image.MAX_IMAGE_PIXELS
    # Pillow only warns up to twice its limit.
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError
    if image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit grey values have no fixed range, save it with 8 or 16 bits")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def reason(error: Exception) -> str:
    """Why :func:`decode` or the reading before it failed, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return one_line(error) or type(error).__name__

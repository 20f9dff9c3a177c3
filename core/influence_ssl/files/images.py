"""Image files as a data set: a folder, a zip or a CSV of paths, read lazily.

The command and the lab share this reader. :mod:`influence_ssl.files.decoding` describes how images
other than plain 8-bit RGB are converted. If 16-bit files do not declare how many bits are in use,
one number holds for the whole data set: the smallest of 8, 10, 12, 14 and 16 bits that holds the
largest value in any of them. No image's contrast therefore depends on its own largest value.

Pillow decodes every image when it is first read. Later, a faster decoder is used for the images for
which it then gave the same pixels. It is given only bytes with the digest of that first reading, so
that no result depends on which decoder was used.

What the first reading found is kept where memory allows, and nothing is read again.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from influence_ssl._memory import free_memory
from influence_ssl.ahead import in_threads, readers
from influence_ssl.errors import (
    InfluenceOSError,
    InfluenceTypeError,
    InfluenceValueError,
    one_line,
    path_of,
)
from influence_ssl.files.decoding import (
    DEPTHS,
    Image,
    TooLarge,
    decode,
    decode_jpeg,
    reason,
    rotated,
)
from influence_ssl.files.looks import Looks, Shrunk, looks_of, shrunk
from influence_ssl.files.sources import EXTENSIONS, counted, open_source
from influence_ssl.processes import place

_CPU = torch.device("cpu")
_CHECKED = 16
_AT_ONCE = 256  # pictures whose looks are measured together
THUMBNAIL = 32

# One lock per process, because a forked worker's copy might never be released.
_TURNS: dict[int, threading.RLock] = {}

Preprocess = Callable[[Image.Image], Tensor]


class Skipped(NamedTuple):
    """An image that could not be read, and why."""

    name: str
    reason: str


class _Facts(NamedTuple):
    """What is remembered of every image."""

    sha256: str
    pixels: str
    shape: tuple[int, ...]
    thumbnail: np.ndarray
    kinds: tuple[str, ...]
    rotated: bool
    content: bytes
    jpeg: bool


class _Inspected(NamedTuple):
    """What reading one image reveals: its item, too, as pixels where the preprocessing is ours."""

    facts: _Facts
    item: np.ndarray | Tensor
    small: Shrunk


def to_tensor(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """The default preprocessing: float32 in [0, 1], RGB first, the image's own size."""
    return _scaled(np.array(image.convert("RGB"))[None])[0]


def _scaled(
    pixels: UInt8[np.ndarray, "b height width 3"],
) -> Float[Tensor, "b 3 height width"]:
    rows = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return rows.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def pixel_digest(image: Image.Image) -> str:
    """SHA-256 of an image's size and pixels in mode RGB, whatever the file format."""
    found = hashlib.sha256(f"{image.width} x {image.height}\n".encode())
    found.update(image.tobytes())
    return found.hexdigest()


class ImageFiles(Dataset[tuple[Tensor]]):
    """A map-style data set of image files; item k is ``(preprocess(image k),)``.

    ``source`` is one of

    - a folder: all images in it and its subfolders, by extension (:data:`EXTENSIONS`), sorted by
      name; hidden files are left out;
    - a single image;
    - a zip: treated like a folder and read in place, without extraction;
    - a CSV, separated by commas, semicolons or tabs: one path per row, in the order of its rows,
      relative to the CSV's folder. The paths are in the first existing column of ``path``,
      ``image_path``, ``filepath``, ``file``, ``file_name``, ``filename`` and ``image``; without a
      header, they are in the first column.

    Links to folders are followed, each folder once.

    ``preprocess`` maps a PIL image in mode RGB to the tensor that the encoder receives. Unless it
    consists only of torchvision's and timm's transforms, it is called for one image at a time and
    its result is copied, because it may reuse one buffer for all images.

    ``bits`` are those in use of 16-bit images that do not declare them; by default, they are found
    by reading all images.

    ``names[k]`` is the image's path below the folder or in the zip, or as written in the CSV.
    ``index[k]`` is its position in the listing, which does not change when other images are
    skipped. ``ignored`` counts the files that were not read, by extension. :meth:`readable` adds
    ``skipped``, ``sha256[k]`` (of the file), ``pixels[k]`` (:func:`pixel_digest`),
    ``thumbnails[k]`` (grey, 32 x 32, uint8), ``looks[k]``
    (:class:`~influence_ssl.files.looks.Looks`: size, bytes, brightness and so on), ``shape``,
    ``converted`` (the number of images other than plain 8-bit RGB, by kind) and ``rotated`` (the
    number of images with an EXIF rotation tag, which is not applied). It keeps all items if they
    fit into a quarter of the free memory, of which processes that share the work take equal parts.
    Threads and data loader workers may share the data set; a copy for another process keeps none.

    Raises :class:`InfluenceError` if the source is missing, unsafe or without images. What is read
    again but cannot be, or has changed since :meth:`readable`, raises :class:`InfluenceOSError`.
    """

    read_by_threads = True

    def __init__(
        self, source: str | Path, preprocess: Preprocess | None = None, bits: int | None = None
    ) -> None:
        self.source = path_of(source, "source")
        self.preprocess = to_tensor if preprocess is None else preprocess
        self._files, names, self.ignored = open_source(self.source)
        if not names:
            raise InfluenceValueError(
                f"no images in {str(self.source)!r}; it must hold files that end in "
                f"{' '.join(sorted(EXTENSIONS))}"
                f"{f' (it holds {counted(self.ignored)})' if self.ignored else ''}."
            )
        self._rows = list(range(len(names)))
        self.names = tuple(names)
        self.index = torch.arange(len(names))
        self.skipped: tuple[Skipped, ...] = ()
        self.sha256: tuple[str, ...] = ()
        self.pixels: tuple[str, ...] = ()
        self.thumbnails = np.zeros((0, THUMBNAIL, THUMBNAIL), np.uint8)
        self.looks: tuple[Looks, ...] = ()
        self.shape: tuple[int, ...] | None = None
        self.converted: dict[str, int] = {}
        self.rotated = 0
        self._jpeg: tuple[bool, ...] = ()  # whether decode_jpeg gives the pixels that Pillow gives
        # Of all images that are listed, and so the same for the readable ones among them.
        self._bits: list[int] = [] if bits is None else [bits]
        self._apart = not _keeps_nothing(self.preprocess)
        # Pixels, which the default preprocessing makes larger, or else tensors; none if not kept.
        self._items: list[np.ndarray | Tensor] = []

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_items": []}

    def __getitem__(self, k: int) -> tuple[Tensor]:
        if (kept := self.kept_batch([k])) is not None:
            return (kept[0],)
        # Only a preprocess that is not known could look at more of an image than its pixels.
        pixels = None if self._apart else self._fast(k)
        image = self.image(k) if pixels is None else Image.fromarray(pixels)
        return (self._tensor(k, image),)

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[Tensor]]:
        """Several items, with the bits that each has alone.

        The default preprocessing converts them together: for small images, one by one, that is
        mostly Python code, which one thread at a time can run.
        """
        if (kept := self.kept_batch(rows)) is not None:
            return [(x,) for x in kept]
        if self.preprocess is not to_tensor:
            return [self[k] for k in rows]
        found = ((k, self._fast(k)) for k in rows)
        pixels = [np.asarray(self.image(k)) if fast is None else fast for k, fast in found]
        if len({one.shape for one in pixels}) > 1:
            return [(_scaled(np.array(one)[None])[0],) for one in pixels]
        return [(x,) for x in _scaled(np.stack(pixels))]

    def kept_batch(self, rows: Sequence[int]) -> Tensor | None:
        """Several items as one tensor, if :meth:`readable` has kept them; nothing is read."""
        if not self._items:
            return None
        items = [self._items[k] for k in rows]
        tensors = [item for item in items if isinstance(item, Tensor)]
        return torch.stack(tensors) if tensors else _scaled(np.stack(items))

    def image(self, k: int) -> Image.Image:
        """Image k as PIL image in mode RGB, before preprocessing."""
        return self._load(k)[1]

    def digest(self, k: int) -> str:
        """SHA-256 of the file of image k as it is now."""
        return hashlib.sha256(self._read(k)).hexdigest()

    @property
    def bits(self) -> int | None:
        """The bits in use of 16-bit images that do not declare them; None before one was read."""
        return self._bits[0] if self._bits else None

    def readable(
        self, strict: bool = False, progress: bool = False, workers: int | None = None
    ) -> ImageFiles:
        """The data set without its unreadable images, after each image has been tried once.

        Every image is decoded and preprocessed, so that no problem appears hours into a run.
        ``strict`` raises :class:`InfluenceOSError` at the first unreadable image instead of adding
        it to ``skipped``. An image with more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels is never
        decoded and counts as unreadable. Mixed sizes are always an error, as is a preprocessing
        that fails, is random, depends on earlier images, or returns anything other than a finite
        floating-point tensor. ``workers`` is the number of threads that read; ``None`` means one
        per processor, at most eight, and none if the first image is small.
        """
        kept: list[int] = []
        items: list[np.ndarray | Tensor] = []
        keep = False
        inspected: list[_Facts] = []
        looks: list[Looks] = []
        waiting: list[Shrunk] = []
        skipped: list[Skipped] = []
        checked = set(np.linspace(0, len(self) - 1, _CHECKED).astype(int).tolist())
        first: tuple[str, tuple[int, ...]] | None = None
        look = partial(self._inspect, checked)
        head = look(0)
        if workers is None and isinstance(head, _Inspected):
            most = readers(math.prod(head.facts.shape))
            workers = most if most > 1 else 0  # one thread would be ahead of nothing
        bar = tqdm(total=len(self), desc="reading", unit="image", disable=not progress)
        with closing(in_threads(look, range(1, len(self)), workers)) as rest, bar:
            for k, found in enumerate(chain([head], rest)):
                bar.update()
                if isinstance(found, Skipped):
                    if strict:
                        raise _Unreadable(found, self.source)
                    skipped.append(found)
                    continue
                facts = found.facts
                if first is None:
                    first = (self.names[k], facts.shape)
                    self._refuse_random(k)
                    keep = len(self) * found.item.nbytes < free_memory(_CPU) / 4 / place()[1]
                elif facts.shape != first[1]:
                    raise InfluenceValueError(self._mixed(first, (self.names[k], facts.shape)))
                kept.append(k)
                inspected.append(facts)
                if keep:
                    items.append(found.item)
                waiting.append(found.small)
                if len(waiting) == _AT_ONCE:
                    looks += looks_of(waiting)
                    waiting.clear()
        if first is None:
            raise InfluenceOSError(
                f"none of the {len(self)} images in {str(self.source)!r} can be read; the first is "
                f"{skipped[0].name!r}: {skipped[0].reason}."
            )
        pairs = zip(kept, inspected, strict=True)
        self._refuse_memory({k: found.content for k, found in pairs if found.content})
        subset = copy.copy(self)
        subset._rows = [self._rows[k] for k in kept]
        subset.names = tuple(self.names[k] for k in kept)
        subset.index = self.index[kept]
        subset.skipped = self.skipped + tuple(skipped)
        subset.sha256 = tuple(found.sha256 for found in inspected)
        subset.pixels = tuple(found.pixels for found in inspected)
        subset.thumbnails = np.stack([found.thumbnail for found in inspected])
        subset.looks = (*looks, *looks_of(waiting))
        subset.shape = first[1]
        counts = Counter(kind for found in inspected for kind in found.kinds)
        subset.converted = dict(counts.most_common())
        subset.rotated = sum(found.rotated for found in inspected)
        subset._jpeg = tuple(found.jpeg for found in inspected)
        subset._items = items
        return subset

    def _fast(self, k: int) -> UInt8[np.ndarray, "height width 3"] | None:
        """The pixels of :meth:`image` k, if the faster decoder is known to give the same."""
        return decode_jpeg(self._read(k)) if self._jpeg and self._jpeg[k] else None

    def _load(self, k: int) -> tuple[bytes, Image.Image, tuple[str, ...]]:
        data = self._read(k)
        try:
            decoded = decode(data)
            bits = self._common_bits() if decoded.undeclared else 16
            return data, *decoded.rgb(bits)
        # Decoders of unknown bytes may raise anything.
        except Exception as error:
            raise self._unreadable(k, error) from error

    def _read(self, k: int) -> bytes:
        row, limit = self._rows[k], Image.MAX_IMAGE_PIXELS
        try:
            # No file need be larger than the largest permitted bitmap at four channels of 16 bits.
            if limit is not None and self._files.size(row) > 8 * limit:
                raise TooLarge("its file could hold")
            data = self._files.read(row)
        except Exception as error:  # a damaged zip may raise anything
            raise self._unreadable(k, error) from error
        if self.sha256 and hashlib.sha256(data).hexdigest() != self.sha256[k]:
            raise InfluenceOSError(
                f"the image {self.names[k]!r} in {str(self.source)!r} has changed since it was "
                "first read; start again, and leave the images as they are meanwhile."
            )
        return data

    def _unreadable(self, k: int, error: Exception) -> _Unreadable:
        return _Unreadable(Skipped(self.names[k], reason(error)), self.source)

    def _common_bits(self) -> int:
        """The bits in use of 16-bit images that do not declare them, found by reading all."""
        with _turn():
            if not self._bits:
                with closing(in_threads(self._needed_bits, range(len(self)))) as needed:
                    self._bits.append(max(min(DEPTHS), *needed))
        return self._bits[0]

    def _needed_bits(self, k: int) -> int:
        try:
            decoded = decode(self._read(k))
        except Exception:  # reported when the image itself is read
            return 0
        return decoded.needed() if decoded.undeclared else 0

    def _inspect(self, checked: set[int], k: int) -> Skipped | _Inspected:
        try:
            data, image, kinds = self._load(k)
        except _Unreadable as error:
            return error.skipped
        fast, pixels = decode_jpeg(data), np.asarray(image)
        if self.preprocess is to_tensor:  # whose results are finite, and larger than the pixels
            item: np.ndarray | Tensor = pixels
            shape: tuple[int, ...] = (3, *pixels.shape[:2])
        else:
            item = self._finite(k, image)
            shape = tuple(item.shape)
        side = (THUMBNAIL, THUMBNAIL)
        thumbnail = np.asarray(image.convert("L").resize(side, Image.Resampling.BOX))
        content = b""
        if k in checked:
            content = _content(item if isinstance(item, Tensor) else to_tensor(image))
        facts = _Facts(
            hashlib.sha256(data).hexdigest(),
            pixel_digest(image),
            shape,
            thumbnail,
            kinds,
            rotated(data),
            content,
            fast is not None and np.array_equal(fast, pixels),
        )
        return _Inspected(facts, item, shrunk(image, len(data)))

    def _finite(self, k: int, image: Image.Image) -> Tensor:
        tensor = self._tensor(k, image)
        # A sum shows such a value in a fraction of the time. It may also overflow.
        if not (tensor.sum().isfinite() or tensor.isfinite().all()):
            raise InfluenceValueError(
                f"preprocess returns NaN or infinite values for {self.names[k]!r}; fix it (does it "
                "divide by a standard deviation of zero?) or remove the image."
            )
        return tensor.contiguous()

    def _tensor(self, k: int, image: Image.Image) -> Tensor:
        try:
            with _turn() if self._apart else nullcontext():
                tensor = self.preprocess(image)
                if self._apart and isinstance(tensor, Tensor):
                    # The next call may write to the same memory.
                    tensor = tensor.clone()
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
        tensors = [self._tensor(k, self.image(k)) for _ in range(4)]
        if not all(torch.equal(tensors[0], other) for other in tensors[1:]):
            raise InfluenceValueError(
                f"preprocess is random: {self.names[k]!r} differs each time; use "
                "the evaluation preprocessing instead of the training augmentation."
            )

    def _refuse_memory(self, contents: dict[int, bytes]) -> None:
        # In two orders, so that each comes after two others.
        for k in (*reversed(contents), *contents):
            if _content(self._tensor(k, self.image(k))) != contents[k]:
                raise InfluenceValueError(
                    f"preprocess is random or depends on earlier images: {self.names[k]!r} differs "
                    "when it is read again; let the result depend only on the image itself."
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
            "preprocess that resizes them."
        )


class _Unreadable(InfluenceOSError):
    def __init__(self, skipped: Skipped, source: Path) -> None:
        self.skipped = skipped
        super().__init__(
            f"cannot read the image {skipped.name!r} in {str(source)!r}: {skipped.reason}; "
            "repair or remove it, or read without strict, which skips and lists it."
        )


def _turn() -> AbstractContextManager[object]:
    """One thread of this process at a time."""
    return _TURNS.setdefault(os.getpid(), threading.RLock())


def _content(tensor: Tensor) -> bytes:
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(data.numpy().data).digest()


def _keeps_nothing(preprocess: object) -> bool:
    """Whether it consists only of this package's, torchvision's and timm's transforms, which keep
    no state between calls."""
    if preprocess is to_tensor:
        return True
    named = preprocess if hasattr(preprocess, "__name__") else type(preprocess)
    module = str(getattr(named, "__module__", ""))
    # A Lambda is whatever its function is.
    if hasattr(preprocess, "lambd"):
        return False
    if isinstance(preprocess, nn.Sequential):
        return all(map(_keeps_nothing, preprocess))
    if not module.startswith(("torchvision.transforms.", "timm.data.")):
        return False
    return all(map(_keeps_nothing, getattr(preprocess, "transforms", ())))

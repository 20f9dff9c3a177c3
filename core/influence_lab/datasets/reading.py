"""Image files as one array, decoded once and then read from the user's cache directory."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from influence_lab.datasets.base import cache_root
from influence_ssl.errors import InfluenceError, InfluenceOSError
from influence_ssl.files.decoding import BACKGROUND, DEPTHS, decode, reason
from influence_ssl.files.writing import replacing

Pixels = UInt8[np.ndarray, "h w 3"]
Unreadable = tuple[str, str]

_MANY = 5000


def square(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square of the image, ``size`` pixels wide, smoothed where it shrinks."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def try_rgb(path: Path, size: int | None = None) -> Pixels | str:
    """The image file as RGB, or the reason why it cannot be read.

    Decoded as in :mod:`influence_ssl.files.decoding`, with all 16 bits in use; ``size`` makes it a
    :func:`square` of that width.
    """
    try:
        image, _ = decode(path.read_bytes()).rgb()
    # Decoders of unknown bytes may raise anything.
    except Exception as error:
        return reason(error)
    return np.array(image if size is None else square(image, size))


def read_rgb(path: Path) -> Pixels:
    """Like :func:`try_rgb`, but raises :class:`InfluenceOSError` if there is no complete image."""
    found = try_rgb(path)
    if isinstance(found, str):
        raise InfluenceOSError(f"{path}: not a readable image ({found}); unpack the data set again")
    return found


def read_all(
    what: str,
    folder: Path,
    files: Sequence[Path],
    read: Callable[[Path], Pixels | str],
) -> tuple[UInt8[np.ndarray, "n h w 3"], tuple[Unreadable, ...]]:
    """(pixels of the readable files, the others), in the order of ``files``; cached.

    ``read`` returns the pixels of one file, all of one size, or the reason for failure. The cache
    is reused until ``what``, the files' names, sizes or dates, or the rules for conversion to RGB
    change.
    """
    # Files that were read under another rule are read again.
    key = hashlib.sha256(f"{folder.resolve()}\0{BACKGROUND}\0{DEPTHS}".encode())
    for path in files:
        try:
            stat = path.stat()
        except OSError as error:
            raise InfluenceOSError(
                f"{path}: cannot be read ({error.strerror}); unpack the data set again"
            ) from error
        key.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    cache = cache_root() / "datasets" / f"{what}-{key.hexdigest()[:16]}.npy"
    others = cache.with_suffix(".json")
    if cache.is_file():
        found = json.loads(others.read_text()) if others.is_file() else []
        return np.load(cache), tuple((name, why) for name, why in found)
    if len(files) > _MANY:
        print(f"reading {len(files):,} images of {folder} once …", file=sys.stderr)
    with ThreadPoolExecutor() as pool:
        names = [path.relative_to(folder).as_posix() for path in files]
        pixels, unreadable = _collect(names, pool.map(read, files))
    # A cache that cannot be written only costs time.
    try:
        if unreadable:
            with replacing(others, parents=True) as temporary:
                temporary.write_text(json.dumps(unreadable))
        with replacing(cache, parents=True) as temporary, temporary.open("wb") as file:
            np.save(file, pixels)
    except InfluenceError as error:
        print(f"not cached: {error}", file=sys.stderr)
    return pixels, unreadable


def _collect(
    names: list[str], results: Iterator[Pixels | str]
) -> tuple[UInt8[np.ndarray, "n h w 3"], tuple[Unreadable, ...]]:
    # Filled in place: a list of all images and their stack would need the memory twice.
    pixels, count, unreadable = np.zeros((0, 0, 0, 3), np.uint8), 0, []
    for name, found in zip(names, results, strict=True):
        if isinstance(found, str):
            unreadable.append((name, found))
            continue
        if count == 0:
            pixels = np.empty((len(names), *found.shape), np.uint8)
        pixels[count] = found
        count += 1
    return pixels[:count], tuple(unreadable)

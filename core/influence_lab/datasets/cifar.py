"""CIFAR-10 from torchvision's on-disk format or from a folder of images, cached as one array."""

from __future__ import annotations

import hashlib
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from influence_ssl.errors import InfluenceError, InfluenceOSError, InfluenceValueError

from ..files import replacing
from .base import Images, cache_root, data_root

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
SIZE = 32
BATCHES = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
WAY_OUT = (
    "put CIFAR-10 there (torchvision.datasets.CIFAR10(root, download=True) fetches it) "
    "or set INFLUENCE_SSL_DATA to the folder that holds it"
)


def load_cifar10(split: str, root: str | Path | None = None) -> Images:
    """CIFAR-10's 50,000 training or 10,000 test images.

    Below ``root`` (:func:`.base.data_root` by default) these are looked for, in this order:

    - ``cifar-10-batches-py/`` with the pickled batches, as torchvision unpacks them;
    - ``cifar10/{train,test}/<class>/NNNN.jpg`` (or png), classes in alphabetical order. The
      decoded images are kept in the user's cache directory as one file, which is used again for
      as long as no file of the folder changes its name, size or date.

    The number of images is whatever stands on the disk. Raises :class:`InfluenceOSError` where
    neither is found, and :class:`InfluenceError` for a file that is not what it should be.
    """
    root = data_root() if root is None else Path(root)
    batches, folder = root / "cifar-10-batches-py", root / "cifar10" / split
    if batches.is_dir():
        return _from_batches(batches, split)
    if folder.is_dir():
        return _from_folder(folder)
    raise InfluenceOSError(f"{root}: no CIFAR-10 found; {WAY_OUT}")


def _from_batches(folder: Path, split: str) -> Images:
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    names: list[str] = []
    for batch in BATCHES[split]:
        content = _unpickle(folder / batch)
        data = content["data"]
        pixels.append(data.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1))
        labels += content["labels"]
        names += content.get("filenames") or [f"{batch}/{i:05d}" for i in range(len(data))]
    return Images(
        "cifar10", np.concatenate(pixels), np.array(labels, np.int64), tuple(names), CLASSES
    )


class _Batch(pickle.Unpickler):
    """Reads the four types that a CIFAR batch consists of and refuses code of any other kind."""

    ALLOWED = ("_reconstruct", "ndarray", "dtype", "_codecs")

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("_codecs", "encode") or (
            module.split(".")[0] == "numpy" and name in self.ALLOWED
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickle(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            content = _Batch(file, encoding="latin1").load()
        data, labels = content["data"], content["labels"]
        if data.dtype != np.uint8 or data.shape != (len(labels), 3 * SIZE * SIZE):
            raise ValueError(f"its data has shape {data.shape} and type {data.dtype}")
    except OSError as error:
        raise InfluenceOSError(f"{path}: cannot be read ({error.strerror}); {WAY_OUT}") from error
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise InfluenceValueError(f"{path}: not a CIFAR-10 batch ({error}); {WAY_OUT}") from error
    return content


def _from_folder(folder: Path) -> Images:
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not classes:
        raise InfluenceValueError(f"{folder}: no class folders in it; {WAY_OUT}")
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(
            path for path in (folder / name).iterdir()
            if path.suffix.lower() in (".jpg", ".jpeg", ".png")
        )  # fmt: skip
        files += found
        labels += [label] * len(found)
    if not files:
        raise InfluenceValueError(f"{folder}: no .jpg or .png image in its class folders")
    names = tuple(str(path.relative_to(folder)) for path in files)
    pixels = _cached(folder, files)
    return Images("cifar10", pixels, np.array(labels, np.int64), names, classes)


def _cached(folder: Path, files: list[Path]) -> np.ndarray:
    key = hashlib.sha256(str(folder.resolve()).encode())
    for path in files:
        stat = path.stat()
        key.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    cache = cache_root() / "datasets" / f"cifar10-{folder.name}-{key.hexdigest()[:16]}.npy"
    if cache.is_file():
        return np.load(cache)
    if len(files) > 5000:
        print(f"reading {len(files):,} images of {folder} once …", file=sys.stderr)
    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(_read, files)))
    # A cache that cannot be written costs time and nothing else.
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache) as temporary, temporary.open("wb") as file:
            np.save(file, pixels)
    except InfluenceError as error:
        print(f"not cached: {error}", file=sys.stderr)
    return pixels


def _read(path: Path) -> np.ndarray:
    """One image as (32, 32, 3); grey and RGBA files become RGB."""
    try:
        with Image.open(path) as image:
            image.load()
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise InfluenceOSError(
            f"{path}: not a readable image ({error}); unpack the data set again"
        ) from error
    if pixels.shape != (SIZE, SIZE, 3):
        height, width = pixels.shape[:2]
        raise InfluenceValueError(
            f"{path}: {width} x {height} pixels where CIFAR-10 has {SIZE} x {SIZE}; "
            "check that the folder is CIFAR-10"
        )
    return pixels

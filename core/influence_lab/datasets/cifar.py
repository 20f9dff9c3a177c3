"""CIFAR-10 and CIFAR-100 from torchvision's on-disk format or from a folder of images."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from influence_lab.datasets.base import Images, data_root
from influence_lab.datasets.reading import Pixels, read_all, read_rgb
from influence_ssl.errors import InfluenceOSError, InfluenceValueError

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
SIZE = 32
LOSSY = (".jpg", ".jpeg")
EXTENSIONS = (*LOSSY, ".png")
# After this many seconds without a byte from the server, the network counts as unavailable.
PATIENCE = 30


@dataclass(frozen=True)
class _Kind:
    """One of the two data sets: its names, the folder that torchvision unpacks, and its contents.

    ``title`` is the name of the published pixels, :attr:`copies` that of their JPEG copies.
    """

    name: str
    title: str
    packed: str
    batches: Mapping[str, tuple[str, ...]]
    labels: str

    @property
    def copies(self) -> str:
        return f"{self.title} (JPEG copies)"

    @property
    def way_out(self) -> str:
        return (
            f"influence-lab download {self.name} fetches it, or set INFLUENCE_SSL_DATA to the "
            "folder that holds it"
        )


CIFAR10 = _Kind(
    "cifar10", "CIFAR-10", "cifar-10-batches-py",
    {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}, "labels",
)  # fmt: skip
CIFAR100 = _Kind(
    "cifar100", "CIFAR-100", "cifar-100-python",
    {"train": ("train",), "test": ("test",)}, "fine_labels",
)  # fmt: skip


def load_cifar10(split: str, root: str | Path | None = None) -> Images:
    """CIFAR-10's 50,000 training or 10,000 test images.

    The following are searched below ``root`` (default: :func:`.base.data_root`), in this order:

    - ``cifar-10-batches-py/`` with the pickled batches, as torchvision unpacks them;
    - ``cifar10/{train,test}/<class>/NNNN.jpg`` (or png), classes in alphabetical order. The
      decoded images are cached as one file in the user's cache directory, which is reused until a
      file in the folder changes its name, size or date.

    The name of the result identifies the pixels: ``CIFAR-10``, or ``CIFAR-10 (JPEG copies)`` for a
    folder of JPEG files, which differ from the published pixels. All images on the disk are read.
    Raises :class:`InfluenceOSError` if neither is found, and :class:`InfluenceError` for a file
    with unexpected content.
    """
    return _load(CIFAR10, split, root)


def load_cifar100(split: str, root: str | Path | None = None) -> Images:
    """CIFAR-100's 50,000 training or 10,000 test images with their 100 fine labels.

    Like :func:`load_cifar10`, from ``cifar-100-python/`` (``train``, ``test`` and, for the names of
    the classes, ``meta``) or ``cifar100/{train,test}/<class>/``.
    """
    return _load(CIFAR100, split, root)


def download(name: str, root: str | Path | None = None) -> str:
    """Let torchvision fetch ``cifar10`` or ``cifar100`` if it is absent; returns a message.

    Raises :class:`InfluenceOSError` if the download fails.
    """
    from torchvision import datasets

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    root = data_root() if root is None else Path(root)
    if place := _complete(kind, root):
        return f"{kind.title} is already in {place}"
    source: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        source(root, download=True)
    # No network, a firewall, a wrong checksum or a full disk: OSError or RuntimeError.
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InfluenceOSError(
            f"{kind.title} cannot be downloaded from {source.url} ({reason}); where there is a "
            f"network, get {source.filename} and unpack it in {root}"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
    return f"{kind.title} is in {root / kind.packed}"


def _complete(kind: _Kind, root: Path) -> Path | None:
    """The folder that has both splits; ``None`` also if unpacking was interrupted."""
    packed, folders = root / kind.packed, root / kind.name
    batches = [name for split in kind.batches.values() for name in split]
    batches += ["meta"] if kind is CIFAR100 else []
    if all((packed / name).is_file() for name in batches):
        return packed
    return folders if all((folders / split).is_dir() for split in kind.batches) else None


def _load(kind: _Kind, split: str, root: str | Path | None) -> Images:
    root = data_root() if root is None else Path(root)
    batches, folder = root / kind.packed, root / kind.name / split
    if batches.is_dir():
        return _from_batches(kind, batches, split)
    if folder.is_dir():
        return _from_folder(kind, folder)
    raise InfluenceOSError(f"{root}: no {kind.title} found; {kind.way_out}")


def _from_batches(kind: _Kind, folder: Path, split: str) -> Images:
    classes = CLASSES if kind is CIFAR10 else _class_names(kind, folder / "meta")
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    names: list[str] = []
    for batch in kind.batches[split]:
        content = _batch(kind, folder / batch, len(classes))
        data = content["data"]
        pixels.append(data.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1))
        labels += content[kind.labels]
        names += content.get("filenames") or [f"{batch}/{i:05d}" for i in range(len(data))]
    return Images(
        kind.title, np.concatenate(pixels), np.array(labels, np.int64), tuple(names), classes
    )


class _Plain(pickle.Unpickler):
    """Reads the four types that CIFAR's files contain and rejects any other."""

    ALLOWED = ("_reconstruct", "ndarray", "dtype", "_codecs")

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("_codecs", "encode") or (
            module.split(".")[0] == "numpy" and name in self.ALLOWED
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickle(kind: _Kind, path: Path, what: str) -> Any:
    try:
        with path.open("rb") as file:
            return _Plain(file, encoding="latin1").load()
    except OSError as error:
        raise InfluenceOSError(
            f"{path}: cannot be read ({error.strerror}); {kind.way_out}"
        ) from error
    # Unknown bytes may make an unpickler raise anything.
    except Exception as error:
        raise InfluenceValueError(
            f"{path}: not a {kind.title} {what} ({error}); {kind.way_out}"
        ) from error


def _batch(kind: _Kind, path: Path, classes: int) -> dict[str, Any]:
    content = _unpickle(kind, path, "batch")
    try:
        data, labels = content["data"], content[kind.labels]
        if data.dtype != np.uint8 or data.shape != (len(labels), 3 * SIZE * SIZE):
            raise ValueError(f"its data has shape {data.shape} and type {data.dtype}")
        if not all(0 <= label < classes for label in labels):
            raise ValueError(f"its labels are not 0 to {classes - 1}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InfluenceValueError(
            f"{path}: not a {kind.title} batch ({error}); {kind.way_out}"
        ) from error
    return content


def _class_names(kind: _Kind, path: Path) -> tuple[str, ...]:
    content = _unpickle(kind, path, "list of classes")
    names = content.get("fine_label_names") if isinstance(content, dict) else None
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise InfluenceValueError(
            f"{path}: not a {kind.title} list of classes (no list fine_label_names in it); "
            f"{kind.way_out}"
        )
    return tuple(names)


def _from_folder(kind: _Kind, folder: Path) -> Images:
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not classes:
        raise InfluenceValueError(f"{folder}: no class folders in it; {kind.way_out}")
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in EXTENSIONS)
        files += found
        labels += [label] * len(found)
    if not files:
        raise InfluenceValueError(f"{folder}: no .jpg or .png image in its class folders")

    def read(path: Path) -> Pixels:
        pixels = read_rgb(path)
        if pixels.shape != (SIZE, SIZE, 3):
            height, width = pixels.shape[:2]
            raise InfluenceValueError(
                f"{path}: {width} x {height} pixels where {kind.title} has {SIZE} x {SIZE}; "
                f"check that the folder is {kind.title}"
            )
        return pixels

    names = tuple(str(path.relative_to(folder)) for path in files)
    pixels, _ = read_all(f"{kind.name}-{folder.name}", folder, files, read)
    lossy = any(path.suffix.lower() in LOSSY for path in files)
    title = kind.copies if lossy else kind.title
    return Images(title, pixels, np.array(labels, np.int64), names, classes)

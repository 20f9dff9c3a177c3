"""A data set in memory: uint8 images, labels, names, and a hash that identifies them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Images:
    """Images (N, H, W, C) uint8, labels (N,) int64, one name each, and the names of the classes."""

    name: str
    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        self.images.setflags(write=False)
        self.labels.setflags(write=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Item ``index``: the image (C, H, W) as float32 in [0, 1], and its label."""
        image = torch.from_numpy(self.images[index].astype(np.float32) / 255)
        return image.permute(2, 0, 1), int(self.labels[index])

    def tensor(self) -> torch.Tensor:
        """All images as one uint8 tensor (N, C, H, W)."""
        return torch.from_numpy(self.images.transpose(0, 3, 1, 2).copy())

    def subset(self, index: np.ndarray) -> Images:
        """The images at ``index``, in that order."""
        index = np.asarray(index)
        names = tuple(self.names[i] for i in index)
        return Images(self.name, self.images[index], self.labels[index], names, self.classes)

    @property
    def digest(self) -> str:
        """SHA-256 of shape, pixels and labels: the same for every on-disk form of one data set."""
        sha = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        sha.update(np.ascontiguousarray(self.images).tobytes())
        sha.update(np.ascontiguousarray(self.labels, dtype=np.int64).tobytes())
        return sha.hexdigest()


@dataclass(frozen=True)
class Grouped:
    """Images with their attributes, and the parts of the data set that could not be loaded.

    ``attributes`` maps a name, such as ``race``, to one text per image (N,). ``missing`` holds
    files that are listed but not on disk, and ``unreadable`` files that are not images, with the
    reason. Both are left out of ``images``. ``stand_in``: the images are not those of the paper.
    """

    images: Images
    attributes: dict[str, np.ndarray]
    missing: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    stand_in: bool = False

    def left_out(self) -> str:
        """One line that counts and names the images left out, or an empty text."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing):,} missing ({few(self.missing)})")
        if self.unreadable:
            named = [f"{name}: {why}" for name, why in self.unreadable]
            parts.append(f"{len(self.unreadable):,} unreadable ({few(named)})")
        total = len(self.images) + len(self.missing) + len(self.unreadable)
        text = " and ".join(parts)
        return f"{self.images.name}: of {total:,} images {text}, left out" if parts else ""


def few(names: Sequence[str]) -> str:
    """The first four names, and the number of further ones."""
    rest = f" and {len(names) - 4:,} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + rest


def data_root() -> Path:
    """The folder of data sets: ``INFLUENCE_SSL_DATA``, or ``data`` in the working directory."""
    return Path(os.environ.get("INFLUENCE_SSL_DATA") or "data")


def cache_root() -> Path:
    """The folder of caches and runs: ``influence-ssl`` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "influence-ssl"

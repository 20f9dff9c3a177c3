"""A data set in memory: uint8 images, labels, names, and a hash that identifies them."""

from __future__ import annotations

import hashlib
import os
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


def data_root() -> Path:
    """Where data sets stand: ``INFLUENCE_SSL_DATA``, or ``data`` in the working directory."""
    return Path(os.environ.get("INFLUENCE_SSL_DATA") or "data")


def cache_root() -> Path:
    """Where caches and runs stand: ``influence-ssl`` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "influence-ssl"

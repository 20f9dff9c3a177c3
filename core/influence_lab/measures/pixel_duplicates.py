"""Near duplicates by pixels alone: correlation, perceptual hashes, and groups from both.

This is strict and fast, for unmodified 32 x 32 images. For folders of images, with crops and an
encoder, use :mod:`influence_ssl.analysis.duplicates`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

PIXELS = 0.95
BITS = 4
RULES = ("pixels", "pixels or hash")
_ROWS = 1024
_COARSE = 8


class Found(NamedTuple):
    """The pixel comparison of n images.

    ``correlation`` and ``bits``: the largest correlation with another image and the smallest
    distance of the hashes; ``group``: 0 … G − 1, equal for images that a chain of pairs with
    correlation ≥ 0.95 or distance ≤ 4 connects, the largest group first.
    """

    correlation: Float64[np.ndarray, " n"]
    bits: Int64[np.ndarray, " n"]
    group: Int64[np.ndarray, " n"]

    def truth(self, rule: str) -> Bool[np.ndarray, " n"]:
        """The near duplicates by one of :data:`RULES`."""
        pixels = self.correlation >= PIXELS
        return pixels if rule == "pixels" else pixels | (self.bits <= BITS)

    def sizes(self) -> Int64[np.ndarray, " g"]:
        """The size of each image's group; 1 for images without a duplicate."""
        return np.bincount(self.group)

    def largest(self, count: int, each: int) -> Int64[np.ndarray, " k"]:
        """``count`` images from the largest groups, at most ``each`` per group."""
        order = np.argsort(self.group, kind="stable")
        place = np.arange(len(order)) - np.searchsorted(self.group[order], self.group[order])
        return order[place < each][:count]


def find(pixels: UInt8[np.ndarray, "n h w 3"]) -> Found:
    """Compare all pairs of images, by Pearson's correlation of all pixels and by hash."""
    n = len(pixels)
    rows = pixels.reshape(n, -1).astype(np.float32)
    rows -= rows.mean(1, keepdims=True)
    # A blank image correlates with nothing.
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    signs = perceptual_hashes(Image.fromarray(picture) for picture in pixels)
    correlation, bits, pairs = np.empty(n), np.empty(n, np.int64), []
    for start in range(0, n, _ROWS):
        part = slice(start, start + _ROWS)
        own = np.arange(len(rows[part])), np.arange(n)[part]
        like, apart = rows[part] @ rows.T, (64 - signs[part] @ signs.T) / 2
        like[own], apart[own] = -1, 65
        correlation[part], bits[part] = like.max(1), apart.min(1)
        a, b = np.nonzero((like >= PIXELS) | (apart <= BITS))
        pairs.append((a + start, b))
    a, b = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
    _, label = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(n, n)))
    by_size = np.argsort(-np.bincount(label), kind="stable")
    return Found(correlation, bits, np.argsort(by_size, kind="stable")[label])


def pixel_twins(
    pixels: UInt8[np.ndarray, "n h w 3"],
) -> tuple[Bool[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """A mask of the images with a twin (pixel correlation of 0.95 or more), and the groups.

    This is :func:`find` with the rule "pixels", fast enough for 50,000 images. Images connected by
    a chain of twins have the same number in the second array. Candidate pairs are those whose 8 x 8
    averages correlate by at least 0.90; averaging removes noise and preserves similarity.
    """
    rows = torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)
    n, coarse = len(rows), _standardised(torch.nn.functional.adaptive_avg_pool2d(rows, _COARSE))
    ends = []
    for start in range(0, n, _ROWS):
        rough = coarse[start : start + _ROWS] @ coarse[start:].T
        pairs = torch.nonzero(rough.triu(1) >= PIXELS - 0.05) + start
        for part in pairs.split(8192):
            one, other = (_standardised(rows[end]) for end in part.T)
            ends.append(part[(one * other).sum(1) >= PIXELS])
    a, b = torch.cat(ends).T.numpy() if ends else np.empty((2, 0), np.int64)
    _, group = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(n, n)), False)
    return np.bincount(group)[group] > 1, group.astype(np.int64)


def perceptual_hashes(images: Iterable[Image.Image]) -> Float32[np.ndarray, "n 64"]:
    """64 bits of each image as ±1, so that two differ in (64 − their product) / 2 of them.

    The DCT of the grey 32 x 32 image, its 8 x 8 lowest frequencies, each against their median
    (Zauner 2010, Implementation and benchmarking of perceptual image hash functions).
    """
    bits = []
    for image in images:
        grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS))
        low = dctn(grey.astype(np.float64), norm="ortho")[:8, :8].ravel()
        bits.append(low > np.median(low))
    return np.where(np.stack(bits), 1, -1).astype(np.float32)


def _standardised(pictures: Float[Tensor, "n c h w"]) -> Float32[Tensor, "n p"]:
    flat = pictures.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    # A blank picture correlates with nothing.
    return flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-6)

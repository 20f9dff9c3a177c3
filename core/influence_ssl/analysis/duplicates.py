"""Likely duplicates, found without any influence: by representations, by pixels, by both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from tqdm import tqdm

from influence_ssl.analysis.neighbours import nearest, unit

# Measured on 10,000 CIFAR-10 test images with planted copies, re-encodings and crops
# (`influence_lab.experiments.duplicates`): each keeps unrelated images out.
ALIGNED = 0.95  # the pixels agree once one of the two is cropped,
WHITENED = 0.4  # and the encoder sees the same thing;
PIXELS = 0.98  # or the pixels alone;
REPRESENTATION = 0.95  # or the whitened representation alone.

_FEW = 16
_CANDIDATES = 5
_ROWS = 512
RIDGE = 0.1
_COARSE = 8
_FINE = 16
_SCALES = (1.0, 0.95, 0.9, 0.85, 0.8)
_SHIFTS = 5


class Group(NamedTuple):
    """Likely duplicates of one another, and why.

    ``members`` are positions. ``reasons`` names the rules that hold for at least one of its pairs;
    ``pixels`` is the lowest aligned pixel correlation, ``representation`` the lowest whitened
    cosine, of the pairs that hold the group together (1 for copies of a file).
    """

    members: list[int]
    reasons: list[str]
    pixels: float
    representation: float


def duplicate_groups(
    z: Float[Tensor, "n d"],
    thumbnails: UInt8[np.ndarray, "n h w"],
    sha256: Sequence[str],
    progress: bool = False,
) -> list[Group]:
    """Likely duplicates: connected components of the pairs for which one of these holds.

    - ``"same file"``: equal SHA-256;
    - ``"pixels and representation"``: aligned pixel correlation ≥ 0.95 and whitened cosine ≥ 0.4;
    - ``"pixels"``: aligned pixel correlation ≥ 0.98;
    - ``"representation"``: whitened cosine ≥ 0.95, in 16 dimensions or more; in fewer, unrelated
      images come that close by chance.

    Whitened cosine: the representations are centred, rotated to their principal axes and divided by
    (eigenvalue + 0.1 × mean eigenvalue)^½, so that directions all images share do not count; in
    networks that are not trained the plain cosine of any two images is close to 1. Aligned pixel
    correlation: Pearson's correlation of the grey thumbnails at 16 x 16, at its largest over crops
    of one of the two (scales 1 to 0.8, five positions each way). Candidates are each image's five
    nearest by whitened cosine and by correlation of the 8 x 8 thumbnails, so that time grows as N²
    in matrix products alone. Groups are sorted by their first member.
    """
    n = len(sha256)
    if n < 2:
        return []
    white = whitened(z)
    alone = REPRESENTATION if z.shape[1] >= _FEW else torch.inf
    grey = torch.from_numpy(thumbnails).to(white)
    coarse = unit(_centred(torch.nn.functional.adaptive_avg_pool2d(grey, _COARSE).flatten(1)))
    k = min(_CANDIDATES, n - 1)
    near = torch.cat([_places(white, k), _places(coarse, k)], 1)
    here = torch.arange(n)[:, None].expand_as(near)
    pairs = torch.stack([torch.minimum(here, near), torch.maximum(here, near)], 2).flatten(0, 1)
    pairs = torch.unique(pairs, dim=0).to(white.device)
    cosine = torch.cat([(white[a] * white[b]).sum(1) for a, b in _columns(pairs)])
    rough = torch.cat([(coarse[a] * coarse[b]).sum(1) for a, b in _columns(pairs)])
    # Cheap bounds first: a crop moves the coarse thumbnail, but never this far.
    kept = (cosine >= WHITENED) & (rough >= 0.3) | (rough >= 0.8) | (cosine >= alone)
    pairs, cosine = pairs[kept], cosine[kept]
    kept = (_aligned(grey, pairs, _COARSE, progress) >= 0.9) | (cosine >= alone)
    pairs, cosine = pairs[kept], cosine[kept]
    aligned = _aligned(grey, pairs, _FINE)
    rules = {
        "pixels and representation": (aligned >= ALIGNED) & (cosine >= WHITENED),
        "pixels": aligned >= PIXELS,
        "representation": cosine >= alone,
    }
    edges: list[tuple[int, int, str, float, float]] = []
    for reason, holds in rules.items():
        found = zip(
            pairs[holds].tolist(), aligned[holds].tolist(), cosine[holds].tolist(), strict=True
        )
        edges += [(a, b, reason, p, c) for (a, b), p, c in found]
    first: dict[str, int] = {}
    for i, digest in enumerate(sha256):
        if first.setdefault(digest, i) != i:
            edges.append((first[digest], i, "same file", 1.0, 1.0))
    return _components(n, edges)


def _components(n: int, edges: list[tuple[int, int, str, float, float]]) -> list[Group]:
    ends = np.array([edge[:2] for edge in edges], dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(ends.shape[1]), tuple(ends)), shape=(n, n))
    _, label = connected_components(graph, directed=False)
    groups: dict[int, Group] = {}
    for a, b, reason, pixels, cosine in edges:
        known = groups.get(label[a], Group([], [], 1.0, 1.0))
        groups[label[a]] = Group(
            sorted({*known.members, a, b}),
            sorted({*known.reasons, reason}),
            min(known.pixels, pixels),
            min(known.representation, cosine),
        )
    return sorted(groups.values(), key=lambda group: group.members[0])


def _aligned(
    grey: Float32[Tensor, "n h w"],
    pairs: Int64[Tensor, "e 2"],
    cells: int,
    progress: bool = False,
) -> Float32[Tensor, " e"]:
    """The largest correlation over crops of the one image or of the other, for each pair."""
    if not len(pairs):
        return torch.empty(0, device=grey.device)
    windows = _windows(grey.shape[-1], cells, grey.device)
    whole = windows[0][0]
    base = unit(_centred((whole @ grey @ whole.T).flatten(1)))
    best = torch.full((len(pairs),), -1.0, device=grey.device)
    for cropped, other in ((0, 1), (1, 0)):
        order = pairs[:, cropped].argsort()
        with tqdm(total=len(pairs), desc="compare", unit="pair", disable=not progress) as bar:
            for part in order.split(_ROWS):
                # Crops are made once for each image, however many pairs it stands in.
                images, place = pairs[part, cropped].unique(return_inverse=True)
                crops = torch.cat([_crops(grey[images], window) for window in windows], 1)
                crops = crops - crops.mean(2, keepdim=True)
                crops /= crops.norm(dim=2, keepdim=True).clamp(min=1e-6)
                target = base[pairs[part, other]]
                found = torch.stack([crops[place[i]] @ target[i] for i in range(len(part))])
                best[part] = torch.maximum(best[part], found.amax(1))
                bar.update(len(part) / 2)
    return best


def _crops(
    grey: Float32[Tensor, "n h w"], window: Float32[Tensor, "m s h"]
) -> Float32[Tensor, "n mm ss"]:
    rows = torch.einsum("ash,nhw->nasw", window, grey)
    return torch.einsum("nasw,btw->nabst", rows, window).flatten(3).flatten(1, 2)


def _windows(side: int, cells: int, device: torch.device) -> list[Float32[Tensor, "m s h"]]:
    """For each scale the matrices that average a window of a row into cells, by area."""
    found = []
    for scale in _SCALES:
        length = side * scale
        shifts = np.linspace(0, side - length, 1 if scale == 1 else _SHIFTS)
        edges = shifts[:, None] + np.linspace(0, length, cells + 1)
        low, high = edges[:, :-1, None], edges[:, 1:, None]
        cell = np.arange(side)
        overlap = np.clip(np.minimum(high, cell + 1) - np.maximum(low, cell), 0, None)
        found.append(torch.from_numpy(overlap / (length / cells)).float().to(device))
    return found


def whitened(z: Float[Tensor, "n d"]) -> Float32[Tensor, "n d"]:
    """Unit rows of (z − mean)(C + :data:`RIDGE` × mean eigenvalue × I)^(-1/2), C their covariance,
    up to a rotation."""
    centred = z.double() - z.double().mean(0)
    n, d = z.shape
    if n < d:  # the directions that have any variance, without a d x d matrix
        _, size, rows = torch.linalg.svd(centred, full_matrices=False)
        values, axes = size.square() / n, rows.T
    else:
        values, axes = torch.linalg.eigh(centred.T @ centred / n)
        values = values.clamp(min=0)
    scale = (values + RIDGE * values.sum() / d).clamp(min=1e-300).rsqrt()
    return unit((centred @ (axes * scale)).float())


def _centred(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return rows - rows.mean(1, keepdim=True)


def _places(rows: Float32[Tensor, "n d"], k: int) -> Int64[Tensor, "n k"]:
    return torch.from_numpy(nearest(rows, k).place)


def _columns(pairs: Int64[Tensor, "e 2"]) -> Iterator[tuple[Tensor, Tensor]]:
    for part in pairs.split(65_536):
        yield part[:, 0], part[:, 1]

"""Likely duplicates, without influence: proposed by coarse views, confirmed in full detail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from tqdm import tqdm

from influence_ssl.analysis.neighbours import nearest, unit
from influence_ssl.analysis.registration import Agreement, agreement

SUPPORT = 0.4
"""The whitened cosine at or above which representations confirm the pixels."""

SPREAD = 0.25
"""How many tiles a difference must at least be spread over, for each of the pictures' contents."""

_EQUAL = 0.002
_FLAT = 4.0
_PLAUSIBLE = 0.9
_DOUBTFUL = 0.2
_TURNED = 0.9
_CANDIDATES = 5
_MEMBERS = 64
_ROWS = 512
_CROPPED = 2**13
_VALUES = 2**21
RIDGE = 0.1
_COARSE = 8
_FINE = 16
_SCALES = (1.0, 0.95, 0.9, 0.85, 0.8)
_SHIFTS = 5
_MIDDLE = 64
_SIDES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_KEPT = 512

SAME, BOTH, ALONE, TURNED = (
    "same file", "pixels and representation", "pixels alone", "pixels, turned or mirrored",
)  # fmt: skip


class Limits(NamedTuple):
    """The criteria for two pictures to be duplicates, chosen on one half of the planted benchmark.

    The colours in full detail have a correlation of at least ``pixels``, and no tile is less
    similar than ``worst``. 1 − correlation is at most ``gap`` times that of either with a picture
    known to be different. The whitened cosine of the representations is at least ``veto``.
    """

    pixels: float = 0.95
    worst: float = 0.3
    gap: float = 0.5
    veto: float = 0.0


LIMITS = Limits()


class Images(Protocol):
    """The interface that :func:`duplicate_groups` expects of a data set of image files."""

    @property
    def sha256(self) -> Sequence[str]: ...

    @property
    def thumbnails(self) -> UInt8[np.ndarray, "n h w"]: ...

    def image(self, k: int) -> Image.Image: ...


class Group(NamedTuple):
    """Likely duplicates of one another, with the reasons.

    ``members`` are positions. ``reasons`` lists what holds for at least one pair. ``pixels`` is the
    lowest correlation in full detail over all pairs, and ``representation`` their lowest whitened
    cosine (1 for copies of a file).
    """

    members: list[int]
    reasons: list[str]
    pixels: float
    representation: float


def confirmed(provenance: dict[str, Any]) -> dict[int, bool]:
    """For each group in a file's provenance, whether files or representations confirm the pixels
    of every pair."""
    known = provenance.get("duplicate groups", [])
    reasons = [set(group.get("reasons", [])) for group in known]
    return {k: bool(found) and found <= {SAME, BOTH} for k, found in enumerate(reasons)}


class _Pairs(NamedTuple):
    """Pairs of rows (e, 2), the turn that brings the second to the first, and how they agree."""

    ends: Int64[Tensor, "e 2"]
    turn: Int64[Tensor, " e"]
    cosine: Float32[Tensor, " e"]
    apart: Float32[Tensor, " e"]
    same: Float32[Tensor, " e"]

    def rows(self, kept: Tensor) -> _Pairs:
        return _Pairs(*(column[kept] for column in self))


def duplicate_groups(
    z: Float[Tensor, "n d"], images: Images, progress: bool = False
) -> list[Group]:
    """Groups of likely duplicates: all pairs are copies of one file or meet these criteria.

    - Aligned in full detail (up to 256 x 256, in colour; one may be a crop of the other, rotated or
      mirrored), they have a correlation of at least 0.95, and no tile has a structural similarity
      below 0.3. A bird in only one of two skies is therefore detected. From 64 pixels on, their
      difference is not confined to one place, such as the number of an invoice: it is spread over
      at least a quarter as many tiles as the pictures' contents.
    - 1 − correlation is at most half of that of either with any picture that full detail shows to
      be different. Forms filled in on one template are all similar, but a copy is much more so.
    - The whitened cosine of their representations is at least 0, unless the pixels are equal
      (correlation 0.998) or one picture is rotated or mirrored, which may change its
      representation. At :data:`SUPPORT` or above it confirms the pixels (``"pixels and
      representation"``) if 1 − cosine is also at most half of that of a member with any look-alike
      outside the group; otherwise, the group rests on ``"pixels alone"``.

    Groups are formed by complete linkage, so a chain of pairs is not enough. Pictures with a
    standard deviation below four grey levels show too little to compare; among them, only copies of
    a file are found.

    Whitened cosine: the representations are centred, rotated to their principal axes and divided by
    (eigenvalue + 0.1 × mean eigenvalue)^½, so that directions shared by all images do not count. In
    untrained networks, the plain cosine of any two images is close to 1.

    Candidates are each image's five nearest by whitened cosine, by correlation of the 8 x 8
    thumbnails, and by the part of their cosine transform that rotations and mirroring leave
    unchanged. Copies of a file count as one image here. Only matrix products take time of order N².
    Groups are sorted by their first member.
    """
    return Search(z, images, progress).groups()


class Search:
    """Compared pairs, from which groups under any :class:`Limits` follow."""

    def __init__(self, z: Float[Tensor, "n d"], images: Images, progress: bool = False) -> None:
        copies: dict[str, list[int]] = {}
        for i, digest in enumerate(images.sha256):
            copies.setdefault(digest, []).append(i)
        self.files = list(copies.values())
        self.rows = rows = [members[0] for members in self.files]
        self.images, self.progress = images, progress
        self.white = whitened(z[torch.tensor(rows, device=z.device)])
        self.grey = torch.from_numpy(images.thumbnails[rows]).to(self.white)
        self.coarse = unit(_centred(F.adaptive_avg_pool2d(self.grey, _COARSE).flatten(1)))
        self._detail = lru_cache(_KEPT)(self._read)
        self.pairs = self._compared(self._proposed())
        self._known = {tuple(pair) for pair in self.pairs.ends.tolist()}
        self._more = self.pairs.rows(self.pairs.ends[:, 0] < 0)

    def groups(self, limits: Limits = LIMITS) -> list[Group]:
        """The groups under these limits, as :func:`duplicate_groups` describes them."""
        whole = []
        for group in self._among_files(limits):
            members = sorted(k for i in group.members for k in self.files[i])
            again = [SAME] if any(len(self.files[i]) > 1 for i in group.members) else []
            if len(members) > 1:
                whole.append(group._replace(members=members, reasons=[*again, *group.reasons]))
        return sorted(whole, key=lambda group: group.members[0])

    def _among_files(self, limits: Limits) -> list[Group]:
        pairs = self.pairs
        outsider = self._outsiders(pairs, limits)
        edges = pairs.rows(_hold(pairs, outsider, limits))
        n = len(self.rows)
        label = _components(n, edges.ends)
        sizes = np.bincount(label)
        # Of small components every pair is compared; of large ones those that were proposed.
        open_ = [
            np.flatnonzero(label == c) for c in np.flatnonzero((sizes > 2) & (sizes <= _MEMBERS))
        ]
        missing = [
            (int(a), int(b))
            for members in open_
            for i, a in enumerate(members)
            for b in members[i + 1 :]
            if (int(a), int(b)) not in self._known
        ]
        if missing:
            found = self._compared(torch.tensor(missing, device=edges.ends.device))
            self._more = _both(self._more, found)
            self._known.update(missing)
        more = self._more.rows(_hold(self._more, outsider, limits))
        inside = torch.from_numpy(label).to(more.ends.device)[more.ends]
        groups = _cliques(n, _both(edges, more.rows(inside[:, 0] == inside[:, 1])))
        return self._doubted(groups, limits)

    def _doubted(self, groups: list[Group], limits: Limits) -> list[Group]:
        """The groups, on pixels alone where a look-alike of another group is nearly as close by
        representation."""
        pairs = _both(self.pairs, self._more)
        place = torch.empty(len(self.rows), dtype=torch.int64)
        for k, group in enumerate(groups):
            place[group.members] = k
        ends = place.to(pairs.ends.device)[pairs.ends]
        other = ends[:, 0] != ends[:, 1]
        nearest = torch.full((len(groups),), -1.0, device=pairs.cosine.device)
        for end in (0, 1):
            nearest.scatter_reduce_(0, ends[other, end], pairs.cosine[other], "amax")
        found = []
        for group, cosine in zip(groups, nearest.tolist(), strict=True):
            if BOTH in group.reasons and 1 - group.representation > limits.gap * (1 - cosine):
                group = group._replace(reasons=sorted({*group.reasons, ALONE} - {BOTH}))
            found.append(group)
        return found

    def _proposed(self) -> Int64[Tensor, "e 2"]:
        n = len(self.rows)
        k = min(_CANDIDATES, n - 1)
        if k < 1:
            return torch.empty((0, 2), dtype=torch.int64, device=self.white.device)
        views = self.white, self.coarse, _unturned(self.coarse)
        near = torch.cat([torch.from_numpy(nearest(view, k).place) for view in views], 1)
        here = torch.arange(n)[:, None].expand_as(near)
        pairs = torch.stack([torch.minimum(here, near), torch.maximum(here, near)], 2)
        return torch.unique(pairs.flatten(0, 1), dim=0).to(self.white.device)

    def _compared(self, ends: Int64[Tensor, "e 2"]) -> _Pairs:
        """All pairs that coarse views do not rule out, with their agreement in full detail."""
        cosine = torch.cat([(self.white[a] * self.white[b]).sum(1) for a, b in _columns(ends)])
        square = self.coarse.unflatten(1, (_COARSE, _COARSE))
        rough = torch.stack(
            [
                torch.cat(
                    [
                        (self.coarse[a] * _turn(square[b], turn).flatten(1)).sum(1)
                        for a, b in _columns(ends)
                    ]
                )
                for turn in range(8)
            ],
            1,
        )
        # A symmetric picture is like its mirror image, and not turned.
        straight = rough[:, 0]
        best, turn = rough.max(1)
        turn = torch.where((best >= _TURNED) & (best > straight + 0.02), turn, 0)
        # Cheap bounds first: a crop moves the coarse thumbnail, but never this far.
        kept = (turn > 0) | (cosine >= SUPPORT) & (straight >= 0.3) | (straight >= 0.8)
        ends, turn, cosine = ends[kept], turn[kept], cosine[kept]
        for cells in (_COARSE, _FINE):
            alike, first, window = _aligned(self.grey, ends, turn, cells, self.progress)
            kept = alike >= _PLAUSIBLE
            ends, turn, cosine = ends[kept], turn[kept], cosine[kept]
            first, window = first[kept], window[kept]
        apart = torch.ones(len(ends), device=ends.device)
        same = torch.full_like(apart, -1)
        look = torch.arange(len(ends), device=ends.device)
        # Each comparison costs more than the last and covers only the pairs that it left open.
        for side in (0, _MIDDLE, _SIDES[-1]):
            found = self._agree(ends[look], turn[look], first[look], window[look], side)
            apart[look] = 1 - found.correlation
            seen = found.contrast >= _FLAT
            if side == _SIDES[-1]:
                seen &= found.spread >= SPREAD
            same[look] = torch.where(seen, found.worst, -1)
            look = look[(apart[look] <= 1 - _PLAUSIBLE) & (same[look] >= _DOUBTFUL)]
        return _Pairs(ends, turn, cosine, apart, same)

    def _agree(
        self, ends: Tensor, turn: Tensor, first: Tensor, window: Tensor, finest: int
    ) -> Agreement:
        """The agreement of each pair, on pictures up to ``finest`` pixels wide (0: thumbnails)."""
        if not len(ends):
            empty = torch.empty(0, device=ends.device)
            return Agreement(empty, empty, empty, empty)
        side = self.grey.shape[-1]
        found, place = [], []
        bar = tqdm(
            total=len(ends), desc="verify", unit="pair", disable=not (self.progress and finest)
        )
        sides = torch.full((len(ends),), side)
        if finest:
            sides = torch.tensor([self._side(a, b) for a, b in ends.tolist()]).clamp(max=finest)
        with bar:
            for size in sides.unique().tolist():
                here = torch.nonzero(sides == size).flatten()
                for part in here.split(max(1, _VALUES // (3 * size * size))):
                    one, other = (
                        self._pictures(ends[part, end], size, finest > 0) for end in (0, 1)
                    )
                    for t in turn[part].unique().tolist():
                        which = turn[part] == t
                        other[which] = _turn(other[which], t)
                    cropped = first[part].view(-1, 1, 1, 1)
                    source = torch.where(cropped, one, other)
                    target = torch.where(cropped, other, one)
                    found.append(agreement(source, target, window[part]))
                    place.append(part)
                    bar.update(len(part))
        order = torch.cat(place).argsort()
        return Agreement(*(torch.cat(c)[order] for c in zip(*found, strict=True)))

    def _side(self, a: int, b: int) -> int:
        return min(len(self._detail(a)), len(self._detail(b)))

    def _pictures(self, rows: Tensor, side: int, detail: bool) -> Float32[Tensor, "e c s s"]:
        if not detail:
            return self.grey[rows][:, None]
        found = []
        for row in rows.tolist():
            picture = torch.from_numpy(self._detail(row)).to(self.grey).permute(2, 0, 1)[None]
            if picture.shape[-1] != side:
                picture = F.interpolate(picture, (side, side), mode="bilinear", antialias=True)
            found.append(picture)
        return torch.cat(found)

    def _read(self, row: int) -> UInt8[np.ndarray, "s s 3"]:
        image = self.images.image(self.rows[row])
        side = max([s for s in _SIDES if s <= min(image.size)], default=_SIDES[0])
        small = image.resize((side, side), Image.Resampling.BILINEAR)
        return np.asarray(small.convert("RGB")).copy()

    def _outsiders(self, pairs: _Pairs, limits: Limits) -> Float32[Tensor, " n"]:
        """The distance from each image to the nearest one known to be different."""
        found = torch.full((len(self.rows),), 1 - _PLAUSIBLE, device=pairs.apart.device)
        other = (pairs.apart > 1 - limits.pixels) | (pairs.same < limits.worst)
        for end in (0, 1):
            found.scatter_reduce_(0, pairs.ends[other, end], pairs.apart[other], "amin")
        return found


def _both(one: _Pairs, other: _Pairs) -> _Pairs:
    return _Pairs(*(torch.cat(columns) for columns in zip(one, other, strict=True)))


def _hold(pairs: _Pairs, outsider: Float32[Tensor, " n"], limits: Limits) -> Tensor:
    nearer = outsider[pairs.ends].amin(1)
    equal = (pairs.apart <= _EQUAL) & (pairs.same >= 0.9)
    seen = (pairs.cosine >= limits.veto) | (pairs.turn > 0) | equal
    alike = (pairs.apart <= 1 - limits.pixels) & (pairs.same >= limits.worst)
    return alike & seen & (pairs.apart <= limits.gap * nearer)


def _components(n: int, ends: Int64[Tensor, "e 2"]) -> Int64[np.ndarray, " n"]:
    a, b = ends.cpu().numpy().T
    graph = coo_array((np.ones(len(a)), (a, b)), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _cliques(n: int, edges: _Pairs) -> list[Group]:
    """Groups in which an edge joins every pair, and every other image alone."""
    ends, apart = edges.ends.cpu().numpy(), edges.apart.cpu().numpy().astype(np.float64)
    cluster = _complete_linkage(n, ends, np.minimum(apart, 0.5).clip(0))
    joined: dict[int, list[int]] = {}
    for e, (c, d) in enumerate(cluster[ends].tolist()):
        if c == d:
            joined.setdefault(c, []).append(e)
    found, grouped = [], np.zeros(n, bool)
    for held in joined.values():
        kept = np.unique(ends[held])
        grouped[kept] = True
        turned = {TURNED} if any(edges.turn[e] > 0 for e in held) else set()
        straight = [float(edges.cosine[e]) for e in held if edges.turn[e] == 0]
        names = {BOTH if cosine >= SUPPORT else ALONE for cosine in straight} | turned
        found.append(
            Group(
                kept.tolist(),
                sorted(names),
                1 - float(apart[held].max()),
                min(float(edges.cosine[e]) for e in held),
            )
        )
    return found + [Group([int(i)], [], 1.0, 1.0) for i in np.flatnonzero(~grouped)]


def _complete_linkage(
    n: int, ends: Int64[np.ndarray, "e 2"], far: Float64[np.ndarray, " e"]
) -> Int64[np.ndarray, " n"]:
    """The cluster of each of n images, by complete linkage among pairs that have an edge.

    The distance of two clusters is the largest over all pairs, and infinite if one has no edge.
    This is the nearest-neighbour chain of F. Murtagh (The Computer Journal 26, 1983), as in SciPy,
    down to the order among equals, with memory for the edges alone instead of all n² pairs.
    """
    near: list[dict[int, float]] = [{} for _ in range(n)]
    for (a, b), distance in zip(ends.tolist(), far.tolist(), strict=True):
        near[a][b] = near[b][a] = distance
    into = np.arange(n)
    for start in range(n):
        chain: list[int] = []
        while near[start]:
            chain = chain or [start]
            x, before = chain[-1], chain[-2] if len(chain) > 1 else -1
            # Of equally near clusters the one before, so that the chain ends, else the first.
            y = min(near[x], key=lambda other: (near[x][other], other != before, other))
            if y != before:
                chain.append(y)
                continue
            del chain[-2:]
            low, high = min(x, y), max(x, y)
            one, other = near[low], near[high]
            near[low], near[high], into[low] = {}, {}, high
            for k in one.keys() | other.keys():
                near[k].pop(low, None)
                near[k].pop(high, None)
                if k in one and k in other:
                    near[k][high] = near[high][k] = max(one[k], other[k])
    for i in reversed(range(n)):
        into[i] = into[into[i]]
    return into


def _turn(pictures: Tensor, turn: int) -> Tensor:
    """One of the eight rotations and mirrorings of (..., s, s); 0 is the identity."""
    found = torch.rot90(pictures, turn % 4, (-2, -1))
    return found.flip(-1) if turn >= 4 else found


def _unturned(coarse: Float32[Tensor, "n c"]) -> Float32[Tensor, "n c"]:
    """The part of a square picture's cosine transform that rotations and mirroring leave unchanged:
    mirroring changes signs, and a rotation exchanges rows and columns."""
    size = np.abs(
        dctn(coarse.cpu().unflatten(1, (_COARSE, _COARSE)).numpy(), axes=(1, 2), norm="ortho")
    )
    high, low = np.maximum(size, size.swapaxes(1, 2)), np.minimum(size, size.swapaxes(1, 2))
    above = np.triu(np.ones((_COARSE, _COARSE), bool))
    return torch.from_numpy(np.where(above, high, low)).flatten(1).to(coarse)


def _aligned(
    grey: Float32[Tensor, "n h w"],
    pairs: Int64[Tensor, "e 2"],
    turn: Int64[Tensor, " e"],
    cells: int,
    progress: bool = False,
) -> tuple[Float32[Tensor, " e"], Tensor, Float32[Tensor, "e 4"]]:
    """For each pair, the largest correlation over crops of either image, whether the first one is
    cropped, and the window."""
    windows, boxes = _windows(grey.shape[-1], cells, grey.device)
    value = torch.full((2, len(pairs)), -1.0, device=grey.device)
    where = torch.zeros((2, len(pairs)), dtype=torch.int64, device=grey.device)
    if not len(pairs):
        return value[0], where[0] == 0, boxes[where[0]]
    # Each picture is cropped once for all its pairs. The second of a pair is turned to the first.
    ends = torch.stack([8 * pairs[:, 0], 8 * pairs[:, 1] + turn])
    pictures, place = ends.unique(return_inverse=True)

    def read(part: Tensor) -> Tensor:
        found = grey[part // 8]
        for t in (part % 8).unique().tolist():
            found[part % 8 == t] = _turn(found[part % 8 == t], t)
        return found

    whole = windows[0][0]
    base = torch.cat(
        [
            unit(_centred((whole @ read(part) @ whole.T).flatten(1)))
            for part in pictures.split(_ROWS)
        ]
    )
    source, target = place.flatten(), place.flip(0).flatten()
    # Pictures with equally many pairs are compared together, which needs little padding.
    degree, rank = source.bincount().sort(descending=True)
    order = rank.argsort()[source].argsort()
    last = degree.cumsum(0)
    begin = 0
    with tqdm(total=len(pictures), desc="compare", unit="image", disable=not progress) as bar:
        while begin < len(pictures):
            most = int(degree[begin])
            end = min(len(pictures), begin + max(1, _CROPPED // max(most, cells * cells)))
            own = degree[begin:end]
            first = last[begin:end] - own
            held = order[first[0] : last[end - 1]]
            row = torch.arange(len(own), device=grey.device).repeat_interleave(own)
            column = torch.arange(len(held), device=grey.device) + first[0] - first[row]
            others = grey.new_zeros((len(own), most, cells * cells))
            others[row, column] = base[target[held]]
            cropped = read(pictures[rank[begin:end]])
            crops = torch.cat([_crops(cropped, window) for window in windows], 1)
            crops -= crops.mean(2, keepdim=True)
            crops /= crops.norm(dim=2, keepdim=True).clamp(min=1e-6)
            best, window = (others @ crops.mT).max(2)
            value.view(-1)[held] = best[row, column]
            where.view(-1)[held] = window[row, column]
            bar.update(end - begin)
            begin = end
    second = value[1] > value[0]
    return value.amax(0), ~second, boxes[torch.where(second, where[1], where[0])]


def _crops(
    grey: Float32[Tensor, "n h w"], window: Float32[Tensor, "m s h"]
) -> Float32[Tensor, "n mm ss"]:
    rows = torch.einsum("ash,nhw->nasw", window, grey)
    return torch.einsum("nasw,btw->nabst", rows, window).flatten(3).flatten(1, 2)


def _windows(
    side: int, cells: int, device: torch.device
) -> tuple[list[Float32[Tensor, "m s h"]], Float32[Tensor, "k 4"]]:
    """For each scale, the matrices that average a window of a row into cells by area, and the
    windows, (scale, scale, shift x, shift y) with the whole from -1 to 1."""
    found, boxes = [], []
    for scale in _SCALES:
        length = side * scale
        shifts = np.linspace(0, side - length, 1 if scale == 1 else _SHIFTS)
        edges = shifts[:, None] + np.linspace(0, length, cells + 1)
        low, high = edges[:, :-1, None], edges[:, 1:, None]
        cell = np.arange(side)
        overlap = np.clip(np.minimum(high, cell + 1) - np.maximum(low, cell), 0, None)
        found.append(torch.from_numpy(overlap / (length / cells)).float().to(device))
        centre = (2 * shifts + length) / side - 1
        boxes += [(scale, scale, x, y) for y in centre for x in centre]
    return found, torch.tensor(np.array(boxes), dtype=torch.float32, device=device)


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


def _columns(pairs: Int64[Tensor, "e 2"]) -> Iterator[tuple[Tensor, Tensor]]:
    for part in pairs.split(65_536):
        yield part[:, 0], part[:, 1]

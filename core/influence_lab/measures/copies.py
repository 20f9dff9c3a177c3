"""How well a method finds planted copies: precision, recall and AUROC from its pairs of images.

A pair is (i, j) with i < j. The intervals draw groups of images with replacement instead of pairs,
because a method that takes ten pictures for copies of one another makes one mistake and not 45.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from influence_lab.measures.agreement import CONFIDENCE, Estimate, bootstrap
from influence_lab.measures.detection import auroc

Pair = tuple[int, int]


class Ranking(NamedTuple):
    """Pairs ``ends`` (e, 2), in any order, with how alike the method calls them, ``likeness`` (e,).

    Pairs that are not listed count as less alike than all others.
    """

    ends: Int64[np.ndarray, "e 2"]
    likeness: Float64[np.ndarray, " e"]

    def above(self, threshold: float) -> set[Pair]:
        """The pairs with at least this likeness."""
        return pairs(self.ends[self.likeness >= threshold].tolist())


def pairs(groups: Iterable[Collection[int]]) -> set[Pair]:
    """All pairs of members of the same group."""
    return {
        pair
        for group in groups
        for pair in itertools.combinations(sorted({int(member) for member in group}), 2)
    }


def precision(found: set[Pair], truth: Collection[Pair]) -> Estimate | None:
    """The share of ``found`` in ``truth``; ``None`` if nothing is found."""
    return _share(found, truth, found)


def recall(found: set[Pair], truth: Collection[Pair]) -> Estimate | None:
    """The share of ``truth`` in ``found``; ``None`` if nothing is to be found."""
    return _share(found, truth, truth)


def groups(found: Collection[Pair]) -> int:
    """The number of groups that chains of pairs connect."""
    return len(set(_labels(found, found).tolist()))


def best_threshold(sets: Iterable[tuple[Ranking, Collection[Pair]]]) -> float:
    """The likeness at which the pairs of all sets together have the largest F1; ``inf`` without one
    true pair. Of equal thresholds, the strictest."""
    values, hits, wanted = [np.empty(0)], [np.empty(0)], 0
    for ranking, truth in sets:
        wanted += len(truth)
        ends, place = np.unique(np.sort(ranking.ends, axis=1), axis=0, return_inverse=True)
        # A method may list a pair twice, once from each end.
        likeness = np.full(len(ends), -np.inf)
        np.maximum.at(likeness, place.ravel(), ranking.likeness)
        n = int(ends.max(initial=0)) + 1
        true = [i * n + j for i, j in truth if j < n]
        values.append(likeness)
        hits.append(np.isin(ends[:, 0] * n + ends[:, 1], true).astype(np.float64))
    value, hit = np.concatenate(values), np.concatenate(hits)
    order = np.argsort(-value, kind="stable")
    value, right = value[order], np.cumsum(hit[order])
    f1 = 2 * right / (np.arange(1, len(value) + 1) + wanted)
    last = np.r_[value[1:] != value[:-1], True][: len(value)]
    if not len(value) or f1[last].max() == 0:
        return float("inf")
    return float(value[last][np.argmax(f1[last])])


def image_auroc(ranking: Ranking, n: int, truth: Mapping[Pair, str]) -> Estimate:
    """The AUROC of each image's likeness to the image most like it, for images with a planted copy.

    An original and its copy count as one piece of evidence. Images in no listed pair are the least
    alike.
    """
    nearest = np.full(n, -np.inf)
    for end in (0, 1):
        np.maximum.at(nearest, ranking.ends[:, end], ranking.likeness)
    listed = nearest[np.isfinite(nearest)]
    nearest[~np.isfinite(nearest)] = (listed.min() if len(listed) else 0) - 1
    inside = np.array(sorted(truth), np.int64).reshape(-1, 2)
    outside = np.setdiff1d(np.arange(n), inside)
    group = np.repeat(np.arange(len(inside)), 2)
    return auroc(nearest[inside.ravel()], nearest[outside], group)


def _share(found: set[Pair], truth: Collection[Pair], base: Collection[Pair]) -> Estimate | None:
    """|found ∩ truth| / |base|; the groups of ``base`` are drawn for the interval.

    Where every group agrees, the bootstrap would have no width; the bound is then Clopper and
    Pearson's for as many agreeing trials as there are groups.
    """
    if not base:
        return None
    known = set(truth)
    label = _labels(base, found | known)
    _, group = np.unique(label, return_inverse=True)
    size = np.bincount(group).astype(np.float64)
    hits = np.bincount(group, [pair in known and pair in found for pair in base])
    number = len(size)
    if hits.sum() in (0, size.sum()):
        reach = ((1 - CONFIDENCE) / 2) ** (1 / number)
        return Estimate(1.0, reach, 1.0) if hits.sum() else Estimate(0.0, 0.0, 1 - reach)
    return bootstrap(lambda weights, a, b: (weights @ a) / (weights @ b), hits, size, n=number)


def _labels(of: Collection[Pair], edges: Collection[Pair]) -> Int64[np.ndarray, " p"]:
    """For each pair in ``of``, the number of the group in which ``edges`` connect its images."""
    if not edges:
        return np.empty(0, np.int64)
    a, b = np.array(sorted(edges), np.int64).T
    n = int(b.max()) + 1
    graph = coo_array((np.ones(len(a)), (a, b)), shape=(n, n))
    label = connected_components(graph, directed=False)[1].astype(np.int64)
    return label[[pair[0] for pair in of]] if of else np.empty(0, np.int64)

"""How well a number finds the images that one looks for: AUROC, precision, shares, Cliff's delta.

Every function returns an :class:`.agreement.Estimate` with a 95 % interval.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int64

from influence_ssl.report.statistics import wilson

from .agreement import Estimate, Ranked, bootstrap


def auroc(
    key: Float[np.ndarray, " n"],
    truth: Bool[np.ndarray, " n"],
    group: Int64[np.ndarray, " n"] | None = None,
    seed: int = 0,
) -> Estimate:
    r"""The chance that an image of ``truth`` has a larger ``key`` than one outside; ties count ½.

    :math:`(\sum_{i\in T} r_i - m(m+1)/2) / (m (n-m))` with mid-ranks r and m images in T (Mann and
    Whitney 1947). Percentile bootstrap; with ``group`` whole groups are drawn, since near
    duplicates of one another score alike and are no independent evidence. NaN where all images or
    none are of ``truth``.
    """

    def area(weights: np.ndarray, ranked: Ranked) -> np.ndarray:
        inside = weights * truth
        m = inside.sum(1)
        # The sum counts each pair within T once, half to either side: m²/2 in all.
        with np.errstate(invalid="ignore"):
            return ((inside * ranked.ranks(weights)).sum(1) - m**2 / 2) / (m * (weights.sum(1) - m))

    return bootstrap(area, Ranked(key), n=len(key), group=group, seed=seed)


def cliffs_delta(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " m"], seed: int = 0) -> Estimate:
    """P(x > y) − P(x < y) of two samples: 0 for equal ones, ±1 where they do not overlap.

    Twice the AUROC minus 1 (Cliff 1993, Dominance statistics).
    """
    both = np.concatenate([x, y])
    found = auroc(both, np.arange(len(both)) < len(x), seed=seed)
    return Estimate(*(2 * number - 1 for number in found))


def share(hits: int, n: int) -> Estimate:
    """``hits`` of ``n``, with Wilson's score interval."""
    return Estimate(hits / n, *wilson(hits, n))


def share_difference(one: tuple[int, int], other: tuple[int, int]) -> Estimate:
    """The difference of two independent shares, (hits, n) each, with Newcombe's interval.

    Method 10 of Newcombe (1998), Interval estimation for the difference between independent
    proportions: it combines Wilson's limits of the two.
    """
    a, b = share(*one), share(*other)
    gap = a.value - b.value
    down = np.hypot(a.value - a.low, b.high - b.value)
    up = np.hypot(a.high - a.value, b.value - b.low)
    return Estimate(gap, float(gap - down), float(gap + up))


def precision_at(key: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"], k: int) -> Estimate:
    """The share of ``truth`` among the k images with the largest ``key``; ties by index."""
    first = np.argsort(-key, kind="stable")[:k]
    return share(int(truth[first].sum()), len(first))

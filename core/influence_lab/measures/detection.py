"""How well a number detects target images: AUROC, precision, shares, Cliff's delta.

Every function returns an :class:`.agreement.Estimate` with a 95 % interval.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.stats import rankdata

from influence_lab.measures.agreement import CONFIDENCE, Estimate, around
from influence_ssl.analysis.shares import wilson

_TAIL = (1 - CONFIDENCE) / 2


def auroc(
    inside: Float[np.ndarray, " m"],
    outside: Float[np.ndarray, " n"],
    group: Int64[np.ndarray, " m"] | None = None,
) -> Estimate:
    r"""The probability that a value of ``inside`` exceeds one of ``outside``; ties count half.

    With ranks r among both samples and s among its own,
    :math:`V_i = (r_i - s_i) / n` for i inside and likewise outside, AUROC = mean V, and
    :math:`\mathrm{var} = \mathrm{var}(V^{in})/m + \mathrm{var}(V^{out})/n` (DeLong, DeLong and
    Clarke-Pearson 1988). With ``group``, values of one group (near duplicates, whose scores are
    similar) count as one piece of evidence, and the first variance is that of the groups' sums
    (Obuchowski 1997). The 95 % interval is clipped to [0, 1]. If the samples do not overlap, the
    variance is 0 and uninformative; the bound is then Clopper and Pearson's for as many agreeing
    trials as the smaller sample has values (groups). NaN if a sample has fewer than 2 values; no
    interval if ``inside`` is a single group.
    Time: (m + n) log(m + n).
    """
    m, n = len(inside), len(outside)
    if min(m, n) < 2:
        return Estimate(float("nan"), float("nan"), float("nan"))
    ranks = rankdata(np.concatenate([inside, outside]))
    within = (ranks[:m] - rankdata(inside)) / n
    without = 1 - (ranks[m:] - rankdata(outside)) / m
    value = float(within.mean())
    _, member = np.unique(np.arange(m) if group is None else group, return_inverse=True)
    sums = np.bincount(member, within - value)
    pieces = len(sums)
    if pieces < 2:
        return Estimate(value, float("nan"), float("nan"))
    if value in (0.0, 1.0):
        reach = _TAIL ** (1 / min(pieces, n))
        return Estimate(value, reach, 1.0) if value else Estimate(value, 0.0, 1 - reach)
    several = pieces / (pieces - 1)
    error = np.sqrt(several * (sums**2).sum() / m**2 + without.var(ddof=1) / n)
    found = around(value, float(error))
    return Estimate(value, max(0.0, found.low), min(1.0, found.high))


def cliffs_delta(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " m"]) -> Estimate:
    """P(x > y) − P(x < y) of two samples: 0 if they are equal, ±1 if they do not overlap.

    Twice the AUROC minus 1 (Cliff 1993, Dominance statistics).
    """
    return Estimate(*(2 * number - 1 for number in auroc(x, y)))


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

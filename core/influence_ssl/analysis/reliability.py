"""How far two rankings agree, and how far a ranking would agree with one made again."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64
from scipy.stats import spearmanr


def spearman(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation with mid-ranks for ties, over rows where both are finite.

    NaN where fewer than two rows are left or one side is constant.
    """
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(spearmanr(x, y).statistic)


def spearman_brown(one: float, draws: int) -> float:
    r"""Reliability of a mean of ``draws`` from that of one: :math:`m r / (1 + (m - 1) r)`.

    Exact for Pearson's correlation of means of independent draws with equal variances (Spearman
    1910, Brown 1910), an approximation for rank correlations.
    """
    return draws * one / (1 + (draws - 1) * one)


def reliability(per_draw: Float64[np.ndarray, "draws n"]) -> float | None:
    """Estimated rank correlation of two independent runs of m draws each; ``None`` for one draw,
    and where a draw's scores are all equal.

    :func:`spearman_brown` of the mean Spearman correlation of two draws. Encoder, images and
    projections are the same in both runs, the noise alone is new.
    """
    draws = len(per_draw)
    if draws < 2:
        return None
    pairs = [(a, b) for a in range(draws) for b in range(a)]
    r = float(np.mean([spearman(per_draw[a], per_draw[b]) for a, b in pairs]))
    if not np.isfinite(r):
        return None
    return spearman_brown(r, draws) if r > 0 else r

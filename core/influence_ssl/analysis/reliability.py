"""Agreement of two rankings, and the expected agreement of a ranking with its repetition."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64
from scipy.stats import spearmanr


def spearman(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation with mid-ranks for ties, over rows in which both are finite.

    NaN if fewer than two rows remain or one side is constant.
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
    or if all scores of a draw are equal.

    It is :func:`spearman_brown` of the mean Spearman correlation of two draws. Encoder, images and
    projections are the same in both runs; only the noise differs.
    """
    draws = len(per_draw)
    if draws < 2:
        return None
    pairs = [(a, b) for a in range(draws) for b in range(a)]
    r = float(np.mean([spearman(per_draw[a], per_draw[b]) for a, b in pairs]))
    if not np.isfinite(r):
        return None
    return spearman_brown(r, draws) if r > 0 else r

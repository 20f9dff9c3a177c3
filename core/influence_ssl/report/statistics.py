"""Intervals and exact tests for small tables, in NumPy alone.

The command installs without SciPy; the tests hold these functions against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64

# Two tables whose probabilities differ by rounding alone count as equally likely.
_TIE = 1 + 1e-7


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""Wilson's score interval of a share :math:`p = s / n`.

    With z the normal quantile of (1 + confidence) / 2:
    :math:`\left(p + \frac{z^2}{2n} \pm z\sqrt{\frac{p(1-p)}{n} + \frac{z^2}{4n^2}}\right)
    / \left(1 + \frac{z^2}{n}\right)`; (0, 1) for no trials.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22
    (1927).
    """
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = successes / trials, 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2)) / scale
    # At the ends the interval touches 0 or 1, which rounding would miss.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def fisher_exact(drawn: int, draws: int, marked: int, total: int) -> float:
    """Two-sided p-value of Fisher's exact test.

    Of ``total`` images ``marked`` carry a label and ``draws`` are at the top, ``drawn`` of them
    with the label. Where label and score have nothing to do with each other, that number is
    hypergeometric. p is the probability of all numbers that are no likelier than the one found.
    """
    low, high = max(0, draws + marked - total), min(draws, marked)
    counts = np.arange(low, high + 1)
    logs = _log_binomial(marked, counts) + _log_binomial(total - marked, draws - counts)
    # Normalised by their own sum, so that the rounding of large factorials cancels.
    odds = np.exp(logs - logs.max())
    probability = odds / odds.sum()
    return min(1.0, float(probability[probability <= probability[drawn - low] * _TIE].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    r"""Holm's step-down correction: :math:`\tilde p_{(i)} = \max_{j \le i} (m - j + 1)\, p_{(j)}`.

    Capped at 1, in the order given. S. Holm, A simple sequentially rejective multiple test
    procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(corrected, 1).tolist()


def spearman(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation with mid-ranks for ties, over rows where both are finite.

    NaN where fewer than two rows are left or one side is constant.
    """
    both = np.isfinite(x) & np.isfinite(y)
    a, b = _mid_ranks(x[both]), _mid_ranks(y[both])
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def reliability(per_draw: Float64[np.ndarray, "draws n"]) -> float | None:
    r"""Estimated rank correlation of two independent runs of m draws each; ``None`` for one draw,
    and where a draw's scores are all equal.

    :math:`m r / (1 + (m - 1) r)` (Spearman–Brown), with r the mean Spearman correlation of two
    draws. Encoder, images and projections are the same in both runs, the noise alone is new.
    """
    draws = len(per_draw)
    if draws < 2:
        return None
    pairs = [(a, b) for a in range(draws) for b in range(a)]
    r = float(np.mean([spearman(per_draw[a], per_draw[b]) for a, b in pairs]))
    if not np.isfinite(r):
        return None
    return draws * r / (1 + (draws - 1) * r) if r > 0 else r


def _mid_ranks(x: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _log_binomial(n: int, k: np.ndarray) -> Float64[np.ndarray, " m"]:
    return np.array(
        [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k.tolist()]
    )

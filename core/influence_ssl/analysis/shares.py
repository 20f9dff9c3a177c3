"""Shares of a label among chosen images: intervals and exact tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.stats


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (JASA 22, 1927); (0, 1) for no trials."""
    if trials == 0:
        return 0.0, 1.0
    found = scipy.stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def fisher_exact(drawn: int, draws: int, marked: int, total: int) -> float:
    """Two-sided p-value of Fisher's exact test.

    Of ``total`` images, ``marked`` carry the label and ``draws`` are at the top, of which ``drawn``
    carry the label.
    """
    table = [[drawn, draws - drawn], [marked - drawn, total - marked - draws + drawn]]
    return float(scipy.stats.fisher_exact(table).pvalue)


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

"""Rank correlations by hand; reliability against simulated runs."""

import math

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from influence_ssl.analysis.reliability import reliability, spearman, spearman_brown


def test_spearman_correlates_mid_ranks_of_finite_rows() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 200).astype(float), rng.normal(size=200)
    assert spearman(x, x + y) == pytest.approx(np.corrcoef(rankdata(x), rankdata(x + y))[0, 1])
    y[3] = math.nan
    known = np.arange(200) != 3
    expected = np.corrcoef(rankdata(x[known]), rankdata(y[known]))[0, 1]
    assert spearman(x, y) == pytest.approx(expected)
    assert math.isnan(spearman(x, np.ones(200)))


def test_spearman_brown_predicts_means_of_parallel_draws() -> None:
    """Simulated: true scores and independent noise of equal variance, 20,000 examples."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=20_000)
    a, b = (truth + rng.normal(0, 1.5, (8, 20_000)) for _ in range(2))
    one = np.corrcoef(a[0], b[0])[0, 1]
    for draws in (2, 4, 8):
        measured = np.corrcoef(a[:draws].mean(0), b[:draws].mean(0))[0, 1]
        assert measured == pytest.approx(spearman_brown(one, draws), abs=0.02)
    assert spearman_brown(one, 1) == one


def test_reliability_is_the_correlation_of_two_runs() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000)
    a, b = (truth + 0.8 * rng.normal(size=(4, 4000)) for _ in range(2))
    found = spearmanr(a.mean(0), b.mean(0)).statistic
    assert reliability(a) == pytest.approx(found, abs=0.02)
    assert reliability(a[:1]) is None
    assert reliability(np.ones((2, 9))) is None

"""Correlations and their intervals against SciPy, brute force and known coverage."""

import numpy as np
import pytest
import scipy.stats

from influence_lab.measures import agreement
from influence_lab.measures.agreement import Estimate, around, average, gap


@pytest.fixture(scope="module")
def columns():
    rng = np.random.default_rng(0)
    x = rng.normal(size=80)
    return x.round(1), (x + rng.normal(size=80)).round(1), rng.normal(size=80)


def test_the_interval_by_formula_is_that_of_the_bootstrap():
    rng = np.random.default_rng(5)
    x = rng.normal(size=4000)
    for weight in (0.3, 1.0, 4.0):
        y = weight * x + rng.normal(size=4000)
        found, expected = agreement.rank_correlation(x, y), agreement.spearman(x, y)
        assert found.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
        assert tuple(found) == pytest.approx(tuple(expected), abs=0.004)


def test_the_interval_of_pearson_s_correlation_holds_for_heavy_tails():
    """Fisher's formula, for normal variables alone, is far too narrow for these."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=4000)
    for weight in (0.3, 1.0, 4.0):
        y = weight * x + rng.normal(size=4000)
        for a, b in ((x, y), (np.exp(x), np.exp(y / (1 + weight)))):
            found, expected = agreement.linear_correlation(a, b), agreement.pearson(a, b)
            assert found.value == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
            half = (expected.high - expected.low) / 2
            assert tuple(found) == pytest.approx(tuple(expected), abs=0.25 * half)
    assert np.isnan(agreement.linear_correlation(x, np.ones(4000))).all()
    assert agreement.linear_correlation(x, 3 * x) == (1, 1, 1)
    assert agreement.linear_correlation(x, -x / 7) == (-1, -1, -1)


def test_correlations_are_scipys(columns):
    x, y, _ = columns
    assert len(np.unique(x)) < len(x), "ties are part of the test"
    found = agreement.spearman(x, y)
    assert found.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
    assert agreement.pearson(x, y).value == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    assert agreement.mean(x).value == pytest.approx(x.mean())


def test_resamples_are_ranked_anew(columns):
    """The interval against a plain bootstrap that repeats images and asks SciPy each time."""
    x, y, _ = columns
    rng = np.random.default_rng(1)
    plain = []
    for _ in range(1000):
        rows = rng.integers(80, size=80)
        plain.append(scipy.stats.spearmanr(x[rows], y[rows]).statistic)
    found = agreement.spearman(x, y)
    assert [found.low, found.high] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.03)
    weights = np.bincount(rng.integers(80, size=80), minlength=80)
    rows = np.repeat(np.arange(80), weights)
    ranked = [agreement.Ranked(v).ranks(weights[None].astype(float))[0][rows] for v in (x, y)]
    for ranks, v in zip(ranked, (x, y), strict=True):
        shifted = ranks - scipy.stats.rankdata(v[rows])
        np.testing.assert_allclose(shifted, shifted[0], atol=1e-12)


def test_intervals_cover_the_truth():
    """The correlation of 95 % of 60 samples of 200 pairs; 48 is five standard errors below."""
    hits = 0
    truth = 6 / np.pi * np.arcsin(0.7 / 2)  # Spearman's of a normal pair with correlation 0.7
    for seed in range(60):
        x, noise = np.random.default_rng(seed).normal(size=(2, 200))
        found = agreement.spearman(x, 0.7 * x + np.sqrt(1 - 0.49) * noise)
        hits += found.low <= truth <= found.high
    assert hits >= 48


def test_a_difference_is_taken_on_the_same_images(columns):
    x, y, z = columns
    found = agreement.difference((x, y), (x, z))
    expected = scipy.stats.spearmanr(x, y).statistic - scipy.stats.spearmanr(x, z).statistic
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low > 0
    same = agreement.difference((x, y), (x, y))
    assert same == pytest.approx((0, 0, 0), abs=1e-12)


def test_overlap_of_what_is_known():
    rng = np.random.default_rng(0)
    x = rng.normal(size=4000)
    assert agreement.overlap(x, x).value == pytest.approx(1)
    assert agreement.overlap(x, x + 20).value == 0
    one_apart = 2 * scipy.stats.norm.cdf(-0.5)
    assert agreement.overlap(x, rng.normal(1, 1, 4000)).value == pytest.approx(one_apart, abs=0.03)


def test_constant_scores_have_no_correlation():
    assert np.isnan(agreement.spearman(np.ones(20), np.arange(20.0)).value)
    # 0.1 has no exact mean.
    assert np.isnan(agreement.pearson(np.full(1000, 0.1), np.arange(1000.0))).all()


def test_a_record_keeps_four_digits():
    found = {"a": {"b": Estimate(1 / 3, 0.1, 2 / 3)}}
    assert agreement.rounded(found) == {"a": {"b": [0.3333, 0.1, 0.6667]}}
    assert str(Estimate(1 / 3, 0.1, 2 / 3)) == "0.333 [0.100, 0.667]"


def test_gaps_and_averages_have_the_errors_of_independent_estimates():
    a, b = around(2.0, 0.3), around(1.5, 0.4)
    assert gap(a, b) == pytest.approx(around(0.5, 0.5))
    assert average([a, b]) == pytest.approx(around(1.75, 0.25))


@pytest.mark.parametrize("count", [1, 2])
def test_partial_is_the_correlation_of_residuals(count):
    rng = np.random.default_rng(0)
    given = rng.normal(size=(count, 800))
    x, y = given.sum(0) + rng.normal(size=800), given.sum(0) + rng.normal(size=800)
    ranks = np.stack([np.ones(800), *(scipy.stats.rankdata(v) for v in given)], 1)
    columns = np.stack([scipy.stats.rankdata(v) for v in (x, y)], 1)
    left = columns - ranks @ np.linalg.lstsq(ranks, columns, rcond=None)[0]
    found = agreement.partial_spearman(x, y, *given)
    assert found.value == pytest.approx(np.corrcoef(left.T)[0, 1], abs=1e-10)
    assert found.low < 0 < found.high
    assert scipy.stats.spearmanr(x, y).statistic > 0.3

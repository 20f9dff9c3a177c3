"""AUROC against scikit-learn, its interval against simulation; shares against published values."""

import numpy as np
import pytest
from scipy.stats import binomtest, mannwhitneyu, norm
from sklearn.metrics import roc_auc_score

from influence_lab.measures.detection import (
    auroc,
    cliffs_delta,
    precision_at,
    share,
    share_difference,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("digits", [0, 1, 8])
def test_the_area_is_scikit_learns(digits):
    """With many ties, with some, with none."""
    inside, outside = RNG.normal(0.4, 1, 60).round(digits), RNG.normal(0, 1, 300).round(digits)
    truth = np.r_[np.ones(60), np.zeros(300)]
    expected = roc_auc_score(truth, np.r_[inside, outside])
    assert auroc(inside, outside).value == pytest.approx(expected, abs=1e-12)
    assert auroc(-inside, -outside).value == pytest.approx(1 - expected, abs=1e-12)


def test_the_interval_is_as_wide_as_repetitions_spread():
    found = [
        auroc(RNG.normal(0.8, 1.5, 40), RNG.normal(0, 1, 160)) for _ in range(400)
    ]  # fmt: skip
    spread = np.std([one.value for one in found])
    width = np.mean([one.high - one.low for one in found]) / (2 * 1.96)
    assert width == pytest.approx(spread, rel=0.12)
    # P(x > y) of two normal variables: their difference is normal as well.
    truth = norm.cdf(0.8 / np.hypot(1.5, 1))
    covered = np.mean([one.low < truth < one.high for one in found])
    assert 0.91 < covered < 0.99


def test_groups_are_one_piece_of_evidence():
    """Every value twice: the area stays, and so does the interval, if the copies are grouped."""
    inside, outside = RNG.normal(0.5, 1, 50), RNG.normal(0, 1, 400)
    once, twice = auroc(inside, outside), np.repeat(inside, 2)
    grouped = auroc(twice, outside, np.repeat(np.arange(50), 2))
    assert grouped == pytest.approx(once, abs=1e-9)
    alone = auroc(twice, outside)
    assert alone.value == pytest.approx(once.value)
    assert alone.high - alone.low < 0.8 * (once.high - once.low)
    assert auroc(inside, outside, RNG.permutation(50)) == pytest.approx(once, abs=1e-9)


def test_separated_samples_end_at_one_and_single_values_have_no_area():
    x, y = np.array([3.0, 4.0, 5.0]), np.array([1.0, 2.0])
    # Two agreeing trials of two: p² = 0.025 at the lower end.
    low = binomtest(2, 2).proportion_ci().low
    assert auroc(x, y) == pytest.approx((1.0, low, 1.0))
    assert auroc(y, x) == pytest.approx((0.0, 0.0, 1 - low))
    grouped = auroc(np.repeat(x, 3), np.repeat(y, 9), np.repeat([0, 1, 2], 3))
    assert grouped.low == pytest.approx(binomtest(3, 3).proportion_ci().low)
    one = auroc(RNG.normal(0, 1, 20), RNG.normal(0, 1, 80), np.zeros(20, int))
    assert np.isfinite(one.value)
    assert np.isnan(one[1:]).all()
    assert np.isnan(auroc(np.array([3.0]), np.array([1.0, 2.0]))).all()


def test_cliffs_delta_is_from_mann_whitney():
    x, y = RNG.integers(0, 9, 80).astype(float), RNG.integers(2, 11, 120).astype(float)
    u = mannwhitneyu(x, y).statistic
    found = cliffs_delta(x, y)
    assert found.value == pytest.approx(2 * u / (80 * 120) - 1, abs=1e-12)
    assert found.low < found.value < found.high < 0
    assert cliffs_delta(x + 20, y).value == 1.0 > cliffs_delta(x + 20, y).low


def test_shares_have_the_published_intervals():
    """Wilson's of Newcombe (1998a), Table I, and method 10 of Newcombe (1998b), Table II."""
    assert tuple(share(81, 263)) == pytest.approx((0.3080, 0.2553, 0.3662), abs=6e-5)
    assert tuple(share(15, 148)) == pytest.approx((0.1014, 0.0624, 0.1605), abs=6e-5)
    assert tuple(share(0, 20)) == pytest.approx((0.0, 0.0, 0.1611), abs=6e-5)
    assert tuple(share(1, 29)) == pytest.approx((0.0345, 0.0061, 0.1718), abs=6e-5)
    assert tuple(share_difference((56, 70), (48, 80))) == pytest.approx(
        (0.2, 0.0524, 0.3339), abs=6e-5
    )
    assert tuple(share_difference((10, 10), (0, 10))) == pytest.approx((1, 0.6075, 1), abs=6e-5)


def test_precision_takes_the_largest_keys_and_the_first_of_ties():
    key = np.array([1.0, 3, 2, 3, 0])
    truth = np.array([False, True, False, False, True])
    assert precision_at(key, truth, 1).value == 1.0
    assert precision_at(key, truth, 3).value == pytest.approx(1 / 3)
    assert precision_at(key, truth, 9).value == pytest.approx(2 / 5)

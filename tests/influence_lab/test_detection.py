"""AUROC, shares and partial correlations against scikit-learn, SciPy and published values."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from influence_lab.agreement import bootstrap, partial_spearman
from influence_lab.detection import auroc, cliffs_delta, precision_at, share, share_difference

RNG = np.random.default_rng(0)
KEY = RNG.integers(0, 20, 600).astype(float)
TRUTH = RNG.random(600) < 0.05 + 0.01 * KEY


def test_auroc_is_scikit_learns_with_ties():
    assert auroc(KEY, TRUTH).value == pytest.approx(roc_auc_score(TRUTH, KEY), abs=1e-12)
    assert auroc(-KEY, TRUTH).value == pytest.approx(1 - roc_auc_score(TRUTH, KEY), abs=1e-12)
    # Drawing an image twice is the same as having it twice.
    weights = RNG.multinomial(600, np.full(600, 1 / 600))
    again = np.repeat(np.arange(600), weights)
    found = auroc(KEY[again], TRUTH[again])
    assert found.value == pytest.approx(roc_auc_score(TRUTH, KEY, sample_weight=weights))


def test_aurocs_interval_is_hanley_and_mcneils():
    """Their standard error (1982) for normal scores, within what 1,000 resamples allow."""
    key = RNG.normal(size=2000)
    truth = np.arange(2000) < 200
    key[truth] += 0.7
    a, low, high = auroc(key, truth)
    q1, q2 = a / (2 - a), 2 * a**2 / (1 + a)
    variance = a * (1 - a) + 199 * (q1 - a**2) + 1799 * (q2 - a**2)
    error = np.sqrt(variance / (200 * 1800))
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.12)


def test_groups_that_score_alike_widen_the_interval():
    group = np.repeat(np.arange(150), 4)
    truth, key = np.repeat(RNG.random(150) < 0.2, 4), np.repeat(RNG.normal(size=150), 4)
    alone, together = auroc(key, truth), auroc(key, truth, group)
    assert alone.value == together.value
    assert together.high - together.low == pytest.approx(2 * (alone.high - alone.low), rel=0.15)


def test_a_group_of_each_image_changes_nothing():
    def mean(weights, v):
        return weights @ v / weights.sum(1)

    assert bootstrap(mean, KEY, n=600) == bootstrap(mean, KEY, n=600, group=np.arange(600))


def test_cliffs_delta_is_from_mann_whitney():
    x, y = RNG.integers(0, 9, 80).astype(float), RNG.integers(2, 11, 120).astype(float)
    u = mannwhitneyu(x, y).statistic
    found = cliffs_delta(x, y)
    assert found.value == pytest.approx(2 * u / (80 * 120) - 1, abs=1e-12)
    assert found.low < found.value < found.high < 0
    assert tuple(cliffs_delta(x + 20, y)) == (1.0, 1.0, 1.0)


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


@pytest.mark.parametrize("count", [1, 2])
def test_partial_is_the_correlation_of_residuals(count):
    given = RNG.normal(size=(count, 800))
    x, y = given.sum(0) + RNG.normal(size=800), given.sum(0) + RNG.normal(size=800)
    ranks = np.stack([np.ones(800), *(rankdata(v) for v in given)], 1)
    left = [
        rankdata(v) - ranks @ np.linalg.lstsq(ranks, rankdata(v), rcond=None)[0] for v in (x, y)
    ]
    found = partial_spearman(x, y, *given)
    assert found.value == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-10)
    assert found.low < 0 < found.high
    assert spearmanr(x, y).statistic > 0.3

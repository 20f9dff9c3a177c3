"""AUROC against scikit-learn, its interval against the bootstrap, gaps against simulation."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from influence_lab.agreement import Estimate
from influence_lab.separation import around, average, delong, gap

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("digits", [0, 1, 8])
def test_the_area_is_scikit_learns(digits):
    """With many ties, with some, with none."""
    inside, outside = RNG.normal(0.4, 1, 60).round(digits), RNG.normal(0, 1, 300).round(digits)
    truth = np.r_[np.ones(60), np.zeros(300)]
    expected = roc_auc_score(truth, np.r_[inside, outside])
    assert delong(inside, outside).value == pytest.approx(expected, abs=1e-12)
    assert delong(-inside, -outside).value == pytest.approx(1 - expected, abs=1e-12)


def test_the_interval_is_as_wide_as_repetitions_spread():
    found = [
        delong(RNG.normal(0.8, 1.5, 40), RNG.normal(0, 1, 160)) for _ in range(400)
    ]  # fmt: skip
    spread = np.std([one.value for one in found])
    width = np.mean([one.high - one.low for one in found]) / (2 * 1.96)
    assert width == pytest.approx(spread, rel=0.12)
    # P(x > y) of two normal variables: their difference is normal as well.
    from scipy.stats import norm

    truth = norm.cdf(0.8 / np.hypot(1.5, 1))
    covered = np.mean([one.low < truth < one.high for one in found])
    assert 0.91 < covered < 0.99


def test_groups_are_one_piece_of_evidence():
    """Every value twice: the area stays, and so does the interval, if the copies are grouped."""
    inside, outside = RNG.normal(0.5, 1, 50), RNG.normal(0, 1, 400)
    once, twice = delong(inside, outside), np.repeat(inside, 2)
    grouped = delong(twice, outside, np.repeat(np.arange(50), 2))
    assert grouped == pytest.approx(once, abs=1e-9)
    alone = delong(twice, outside)
    assert alone.value == pytest.approx(once.value)
    assert alone.high - alone.low < 0.8 * (once.high - once.low)
    assert delong(inside, outside, RNG.permutation(50)) == pytest.approx(once, abs=1e-9)


def test_separated_samples_end_at_one_and_single_values_have_no_area():
    assert delong(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == Estimate(1.0, 1.0, 1.0)
    assert np.isnan(delong(np.array([3.0]), np.array([1.0, 2.0]))).all()


def test_gaps_and_averages_have_the_errors_of_independent_estimates():
    a, b = around(2.0, 0.3), around(1.5, 0.4)
    assert gap(a, b) == pytest.approx(around(0.5, 0.5))
    assert average([a, b]) == pytest.approx(around(1.75, 0.25))

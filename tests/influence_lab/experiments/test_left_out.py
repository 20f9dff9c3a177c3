"""The estimator of leave-out effects: closed forms, known reliabilities, known correlations."""

from itertools import combinations

import numpy as np
import pytest

from influence_lab.experiments import left_out
from influence_lab.experiments.left_out import LeftOut, detectable, memorisation, reliability
from influence_lab.measures.agreement import partial_spearman
from influence_lab.measures.agreement import spearman as ordinary
from influence_ssl import InfluenceError


def every_half(n):
    """All sets of n / 2 of n images, as rows of booleans."""
    chosen = [np.isin(np.arange(n), rows) for rows in combinations(range(n), n // 2)]
    return np.array(chosen)


def random_halves(t, n, rng):
    return rng.permuted(np.tile(np.arange(n) < n // 2, (t, 1)), axis=1)


def invented(t, n, noise, seed=0):
    """Losses whose true memorisation is standard normal, each with an error of size ``noise``."""
    rng = np.random.default_rng(seed)
    truth, inside = rng.normal(size=n), random_halves(t, n, rng)
    values = rng.normal(size=n) - inside * truth + rng.normal(0, noise, (t, n))
    return values, inside, truth


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(left_out, "RESAMPLES", 200)


def test_the_estimate_is_the_closed_form_of_a_linear_learner():
    """A learner that keeps the mean of its images, with loss −x_i mean(S)."""
    n = 8
    x = np.random.default_rng(0).normal(size=n)
    inside = every_half(n)
    values = -(inside @ x / (n // 2))[:, None] * x
    others = (x.sum() - x) / (n - 1)
    found = memorisation(values, inside, np.ones((1, len(values))))[0]
    assert found == pytest.approx(x * (x - others) / (n // 2), rel=1e-12)


def test_a_training_counted_twice_is_two_trainings():
    values, inside, _ = invented(10, 6, 1.0)
    twice = np.r_[0, 0, 1:10]
    weights = np.ones((1, 10))
    weights[0, 0] = 2
    expected = memorisation(values[twice], inside[twice], np.ones((1, 11)))
    assert memorisation(values, inside, weights) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("noise", [1.0, 5.0, 10.0])
def test_the_reliability_is_that_of_the_errors(noise):
    t, n = 200, 1500
    values, inside, _ = invented(t, n, noise)
    # Two means of t / 2 errors each; rank correlations of normal numbers are a little smaller.
    expected = 1 / (1 + 4 * noise**2 / t)
    assert reliability(values, inside) == pytest.approx(expected, abs=0.08)


def test_halves_of_other_trainings_are_not_reliable():
    values, inside, _ = invented(200, 1500, 1.0)
    assert reliability(values, inside) > 0.9
    assert abs(reliability(values, np.roll(inside, 1, axis=0))) < 0.15


@pytest.mark.parametrize("noise", [0.5, 5.0])
def test_a_corrected_correlation_is_that_with_the_truth(few_resamples, noise):
    expected, observed, corrected, held = [], [], [], []
    for seed in range(10):
        values, inside, truth = invented(200, 300, noise, seed)
        number = truth + np.random.default_rng([seed, 5]).normal(0, 1.5, 300)
        found = LeftOut(values, inside)
        corrected.append(found.correlation(number[None]).estimate)
        expected.append(ordinary(number, truth).value)
        observed.append(ordinary(number, found.estimate).value)
        held.append(corrected[-1].low < expected[-1] < corrected[-1].high)
    mean = np.mean([one.value for one in corrected])
    assert mean == pytest.approx(np.mean(expected), abs=0.05)
    assert sum(held) >= 9
    if noise > 1:  # a reliability of 2 / 3
        assert np.mean(observed) < np.mean(expected) - 0.06


def test_errors_of_the_trainings_widen_the_interval(few_resamples):
    widths = []
    for noise in (0.1, 4.0):
        values, inside, truth = invented(100, 200, noise)
        found = LeftOut(values, inside).correlation(truth[None])
        widths.append(found.estimate.high - found.estimate.low)
        # The estimate and its reliability come from the same resample of trainings.
        assert np.nanmedian(found.samples) == pytest.approx(1, abs=0.08)
    assert widths[1] > 3 * widths[0]


def test_what_cannot_be_told_has_no_number(few_resamples):
    rng = np.random.default_rng(3)
    inside = random_halves(40, 60, rng)
    found = LeftOut(rng.normal(size=(40, 60)), inside)
    assert np.isnan(found.correlation(rng.normal(size=(1, 60))).estimate).all()


def test_several_rows_are_averaged_and_differences_are_paired(few_resamples):
    values, inside, truth = invented(200, 100, 1.0)
    found, other = LeftOut(values, inside), np.random.default_rng(8).normal(size=100)
    both = found.correlation(np.stack([truth, other]))
    alone = [found.correlation(row[None]) for row in (truth, other)]
    assert both.value == pytest.approx((alone[0].value + alone[1].value) / 2)
    assert (alone[0] - alone[0]).estimate == (0, 0, 0)
    assert (alone[0] - alone[1]).estimate.low > 0.5


def test_without_errors_the_partial_correlation_is_the_usual_one(few_resamples):
    values, inside, truth = invented(300, 150, 1e-6)
    rng = np.random.default_rng(2)
    given = truth + rng.normal(size=150)
    number = given + rng.normal(size=150)
    found = LeftOut(values, inside).partial(number, given)
    assert found.value == pytest.approx(partial_spearman(number, truth, given).value, abs=1e-3)


def test_the_power_is_as_stated():
    n, noise, t = 100, 8.0, 200
    reliable = 1 / (1 + 4 * noise**2 / t)
    rho = detectable(n, reliable)
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2000, n))
    number = rho * truth + np.sqrt(1 - rho**2) * rng.normal(size=truth.shape)
    estimate = truth + rng.normal(0, np.sqrt(1 / reliable - 1), truth.shape)
    seen = left_out.rank_correlation(number, estimate)
    z = np.arctanh(seen) * np.sqrt((n - 3) / 1.06)
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.8, abs=0.05)
    assert np.isnan(detectable(n, 0.0))


def test_an_image_that_every_training_saw_is_named():
    inside = np.ones((4, 3), bool)
    inside[:2, :2] = False
    with pytest.raises(InfluenceError, match="image 2: all or none of 4 training runs saw it"):
        LeftOut(np.zeros((4, 3)), inside)

"""Shares and their tests against the formulas and the laws that they come from."""

import math

import numpy as np
import pytest
import scipy.stats

from influence_ssl.analysis.shares import fisher_exact, holm, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (57, 4321)])
def test_wilson_s_ends_solve_its_equation(successes: int, trials: int) -> None:
    """|p − s| = z √(p(1 − p)/n) at both ends p; the share itself lies between them."""
    share, low_high = successes / trials, wilson(successes, trials)
    for end in low_high:
        reach = 1.959963984540054 * math.sqrt(end * (1 - end) / trials)
        assert abs(end - share) == pytest.approx(reach, abs=1e-9)
    assert low_high[0] <= share <= low_high[1]


def test_of_no_trials_everything_is_possible() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_fisher_adds_up_what_is_no_likelier() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        total = int(rng.integers(2, 300))
        marked, draws = int(rng.integers(0, total + 1)), int(rng.integers(0, total + 1))
        found = int(rng.hypergeometric(marked, total - marked, draws))
        law = scipy.stats.hypergeom(total, marked, draws).pmf(np.arange(draws + 1))
        expected = law[law <= law[found] * (1 + 1e-7)].sum()
        assert fisher_exact(found, draws, marked, total) == pytest.approx(expected, rel=1e-8)


def test_fisher_far_out_in_the_tail() -> None:
    expected = scipy.stats.hypergeom.pmf(100, 50_000, 500, 100)
    assert fisher_exact(100, 100, 500, 50_000) == pytest.approx(expected, rel=1e-6)


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []

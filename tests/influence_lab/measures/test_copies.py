"""Pairs against a brute-force count over all pairs of images."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_auc_score

from influence_lab.measures import copies
from influence_lab.measures.copies import Ranking

N = 40


@pytest.fixture(scope="module")
def drawn() -> tuple[Ranking, dict[tuple[int, int], str]]:
    """A method that ranks 200 pairs with ties and from both ends, and twelve planted copies."""
    rng = np.random.default_rng(0)
    truth = {(k, 28 + k): "crop" for k in range(12)}
    every = list(itertools.combinations(range(N), 2))
    chosen = {every[k] for k in rng.permutation(len(every))[:200]} | set(list(truth)[:9])
    ends = np.array(sorted(chosen))
    likeness = rng.normal(size=len(ends)) + np.array([1.5 * (tuple(e) in truth) for e in ends])
    flipped = ends[:, ::-1]  # a method may list a pair from both ends
    values = likeness.round(1)
    return Ranking(np.concatenate([ends, flipped]), np.r_[values, -values]), truth


def matrix(pairs) -> np.ndarray:
    """One cell for each pair of images."""
    found = np.zeros((N, N), bool)
    for i, j in pairs:
        found[i, j] = found[j, i] = True
    return np.triu(found, 1)


def test_groups_become_all_pairs_of_their_members():
    found = copies.pairs([[3, 1], [7, 5, 6], np.array([1, 3]), [2, 2]])
    assert found == {(1, 3), (5, 6), (5, 7), (6, 7)}
    assert copies.groups(found) == 2
    assert copies.groups(set()) == 0


def test_shares_are_those_of_all_pairs(drawn):
    ranking, truth = drawn
    planted = matrix(truth)
    for threshold in (-0.5, 0.5, 1.5):
        own = ranking.above(threshold)
        found = matrix(own)
        hits = (found & planted).sum()
        assert 0 < hits < found.sum()
        assert copies.precision(own, truth).value == pytest.approx(hits / found.sum())
        assert copies.recall(own, truth).value == pytest.approx(hits / planted.sum())
    assert copies.precision(set(), truth) is None
    assert copies.recall({(0, 1)}, {}) is None


def test_intervals_count_groups_and_not_pairs():
    """Ten pictures taken for copies of one another are one mistake, with the copies beside it."""
    truth = {(2 * k, 2 * k + 1): "jpeg" for k in range(20)}
    wrong = copies.pairs([range(100, 110)])
    found = {*list(truth)[:10], *wrong}
    low, high = copies.precision(found, truth)[1:]
    # The one large group is missing from a draw with probability (10/11)^11, about a third.
    assert high == 1
    assert low < 10 / 55
    low, high = copies.recall(found, truth)[1:]
    share = np.random.default_rng(0).binomial(20, 0.5, 20_000) / 20
    assert [low, high] == pytest.approx(np.quantile(share, [0.025, 0.975]), abs=0.051)
    # Clopper and Pearson's bound for twenty of twenty.
    assert copies.recall(set(truth), truth) == pytest.approx((1, 0.025 ** (1 / 20), 1))


def test_the_threshold_has_the_largest_f1_of_all(drawn):
    ranking, truth = drawn
    planted, values = matrix(truth), np.full((N, N), -np.inf)
    for (i, j), value in zip(ranking.ends, ranking.likeness, strict=True):
        values[min(i, j), max(i, j)] = max(values[min(i, j), max(i, j)], value)
    cells = np.triu_indices(N, 1)
    listed = values[cells]
    listed[np.isinf(listed)] = -99
    precision, recall, at = precision_recall_curve(planted[cells], listed)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    best = copies.best_threshold([(ranking, truth)])
    assert best == pytest.approx(at[np.flatnonzero(f1[:-1] == f1[:-1].max())[-1]])
    # A set of different pictures that look alike can only raise it.
    alike = Ranking(np.array(list(itertools.combinations(range(30), 2))), np.full(435, best))
    assert copies.best_threshold([(ranking, truth), (alike, {})]) > best
    assert copies.best_threshold([(alike, {})]) == np.inf
    assert copies.best_threshold([]) == np.inf


def test_the_area_is_that_of_the_nearest_other_image(drawn):
    ranking, truth = drawn
    nearest = np.full(N, -99.0)
    for (i, j), value in zip(ranking.ends, ranking.likeness, strict=True):
        nearest[i], nearest[j] = max(nearest[i], value), max(nearest[j], value)
    wanted = np.isin(np.arange(N), list(itertools.chain(*truth)))
    found = copies.image_auroc(ranking, N, truth)
    assert found.value == pytest.approx(roc_auc_score(wanted, nearest))
    assert found.low < found.value < found.high

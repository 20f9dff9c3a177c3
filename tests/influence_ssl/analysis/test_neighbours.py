"""Neighbours against scikit-learn, ties by hand."""

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from influence_ssl.analysis.neighbours import nearest, unit

RNG = np.random.default_rng(0)
Z = unit(RNG.normal(size=(700, 12)))
LABELS = RNG.integers(3, size=700)


def test_neighbours_are_scikit_learns() -> None:
    distance, index = NearestNeighbors(n_neighbors=11, metric="cosine").fit(Z).kneighbors(Z)
    found = nearest(Z, 10)
    np.testing.assert_array_equal(found.place, index[:, 1:])
    np.testing.assert_allclose(found.distance, distance[:, 1:].mean(1), atol=1e-5)
    chosen = np.array([3, 699, 40])
    some = nearest(Z.numpy(), 10, chosen)
    np.testing.assert_array_equal(some.place, index[chosen, 1:])
    np.testing.assert_array_equal(some.purity(LABELS, LABELS[chosen]), found.purity(LABELS)[chosen])
    assert nearest(Z[:4], 10).place.shape == (4, 3)


def test_of_equally_near_ones_a_single_neighbour_is_the_first() -> None:
    z = unit(torch.tensor([[0.0, 1], [2, 0], [3, 0], [1, 0], [0, 0]]))
    assert nearest(z).place[:, 0].tolist() == [1, 2, 1, 1, 0]
    assert unit(z)[-1].tolist() == [0, 0]


def test_copies_are_equally_similar_whatever_the_rounding() -> None:
    torch.manual_seed(0)
    once = torch.nn.functional.normalize(torch.randn(200, 129), dim=1)
    # The same rows, summed in another order, as another processor would.
    order = torch.randperm(129)
    found = nearest(torch.cat([once, once])), nearest(torch.cat([once, once])[:, order])
    assert all((one.similarity == 1).all() for one in found)

"""Neighbours against scikit-learn, ties by hand, and the index against comparing all rows."""

import sys

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from influence_ssl.analysis import neighbours
from influence_ssl.analysis.neighbours import forecast, indexed, nearest, unit

with_index = pytest.mark.skipif(sys.platform == "darwin", reason="faiss crashes beside PyTorch")

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


@pytest.fixture(scope="module")
def many() -> torch.Tensor:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(100, 12))
    return unit(centres[rng.integers(100, size=6000)] + 0.3 * rng.normal(size=(6000, 12)))


@with_index
def test_the_index_finds_almost_all_of_scikit_learns_neighbours(
    many: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, exact = NearestNeighbors(n_neighbors=6, metric="cosine").fit(many).kneighbors(many)
    found, sure = indexed(many, 5), nearest(many, 5)
    hits = (exact[:, 1:, None] == found.place[:, None]).any(2)
    assert hits.mean() > 0.99
    whole = hits.all(1)
    np.testing.assert_allclose(found.similarity[whole], sure.similarity[whole], atol=2e-5)
    assert (np.diff(found.similarity, axis=1) <= 0).all()
    assert not (found.place == np.arange(6000)[:, None]).any()
    # Fewer cells are cheaper and lose neighbours: what is measured above can fail.
    monkeypatch.setattr(neighbours, "PROBED", 1)
    fewer = indexed(many, 5)
    assert (exact[:, 1:, None] == fewer.place[:, None]).any(2).mean() < 0.9


@with_index
def test_the_index_depends_on_no_thread_and_no_run(many: torch.Tensor) -> None:
    import faiss

    threads = faiss.omp_get_max_threads()
    try:
        found = []
        for number in (1, 2, 3, 1):
            faiss.omp_set_num_threads(number)
            found.append(indexed(many, 5))
    finally:
        faiss.omp_set_num_threads(threads)
    for other in found[1:]:
        np.testing.assert_array_equal(other.place, found[0].place)
        np.testing.assert_array_equal(other.similarity, found[0].similarity)


@with_index
def test_the_index_finds_copies_and_rows_with_few_in_the_cells_around() -> None:
    once = unit(np.random.default_rng(2).normal(size=(300, 12)))
    found = indexed(once.repeat(8, 1), 5)
    rows = np.arange(2400)
    assert (found.similarity == 1).all()
    assert (found.place % 300 == rows[:, None] % 300).all()
    assert (np.diff(np.sort(found.place, axis=1)) > 0).all()
    assert not (found.place == rows[:, None]).any()
    # As many as there are: no set of cells holds them.
    every = indexed(once, 299)
    assert (np.sort(np.c_[every.place, np.arange(300)], axis=1) == np.arange(300)).all()


def test_more_rows_than_the_limit_are_searched_by_the_index_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact, installed = nearest(Z, 3), [object()]
    marked = neighbours.Neighbours(np.zeros((700, 3), np.int64), np.ones((700, 3), np.float32))
    monkeypatch.setattr(neighbours, "indexed", lambda *_: marked)
    monkeypatch.setattr(neighbours, "_MACOS", False)
    monkeypatch.setattr(neighbours.importlib.util, "find_spec", lambda _: installed[0])
    assert nearest(Z, 3) is not marked
    assert forecast(Z, 4) is None
    monkeypatch.setattr(neighbours, "EXACT", 699)
    assert nearest(Z, 3) is marked
    np.testing.assert_array_equal(nearest(Z, 3, np.arange(9)).place, exact.place[:9])
    assert forecast(Z, 4) == "neighbours among 700 images: by an index, which misses a few of them"
    installed[0] = None
    np.testing.assert_array_equal(nearest(Z, 3).place, exact.place)
    wait = "comparing 700 images with one another takes about 1 min"
    assert forecast(Z, 4) == f"{wait}; faster with an index: pip install 'influence-ssl[index]'"
    monkeypatch.setattr(neighbours, "_MACOS", True)
    assert forecast(Z, 4) == wait


def test_a_block_is_smaller_where_there_are_more_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, sizes, matmul = nearest(Z, 3), [], torch.Tensor.__matmul__
    monkeypatch.setattr(neighbours, "_ENTRIES", 7000)
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: sizes.append(len(a)) or matmul(a, b)
    )
    np.testing.assert_array_equal(nearest(Z, 3).place, exact.place)
    assert sizes == [10] * 70

"""What check costs: the common number of images, and copies among composed images."""

import sys

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from influence_lab.datasets.base import Images
from influence_lab.experiments import check_cost
from influence_ssl.analysis import neighbours
from influence_ssl.errors import InfluenceValueError


def test_the_share_is_that_of_equally_many_images():
    record = {
        "check": {"10": {"cpu": 1.0}, "2000": {"cpu": 3.0}, "10000": {"cpu": 50.0}},
        "score": {"10": {"cpu": 2.0}, "2000": {"cpu": 12.0}},
    }
    assert check_cost.share(record) == (2000, 0.25)
    with pytest.raises(InfluenceValueError, match="not recorded for equally many"):
        check_cost.share({"check": {"10": {"cpu": 1.0}}})


@pytest.fixture
def blots(monkeypatch):
    blurred = gaussian_filter(np.random.default_rng(0).normal(size=(120, 32, 32, 3)), (0, 2, 2, 0))
    pixels = (128 + 400 * blurred).clip(0, 255).astype(np.uint8)
    images = Images("blots", pixels, np.zeros(120, np.int64), (), ())
    monkeypatch.setattr(check_cost, "load", lambda *_: images)
    monkeypatch.setattr(check_cost, "ROWS", 500)
    monkeypatch.setattr(check_cost, "PLANTED", 0.04)


def test_copies_are_found_among_images_composed_of_two_halves(blots):
    # 96 of 240 images, the other split's copies among them, 96 composed ones and 8 JPEGs.
    found = check_cost.groups(200)
    assert found["copies"] == 8
    assert found["recall"][0] == 1
    assert found["bytes"] >= found["bytes before"] > 1e6
    assert check_cost.same_file(40)["members"] == 41


@pytest.mark.skipif(sys.platform == "darwin", reason="faiss crashes beside PyTorch")
def test_the_index_finds_the_same_copies_where_it_probes_every_cell(blots, monkeypatch):
    by_blocks, by_index = check_cost.groups(200), check_cost.index(200)
    assert (by_index["pairs"], by_index["recall"]) == (by_blocks["pairs"], by_blocks["recall"])
    assert list(by_index["views"]) == list(check_cost.VIEWS)
    share = {name: view["recall"] for name, view in by_index["views"].items()}
    # Some pictures occur three times, and either copy is the nearest image.
    assert share.pop("representation") > 0.9
    assert min(share.values()) == 1
    monkeypatch.setattr(neighbours, "PROBED", 1)
    assert max(view["recall"] for view in check_cost.index(200)["views"].values()) < 0.99


def test_shared_neighbours_by_hand():
    exact, found = np.array([[1, 2], [0, 3], [4, 5]]), np.array([[2, 1], [3, 7], [0, 1]])
    assert check_cost.shared(exact, found) == 0.5

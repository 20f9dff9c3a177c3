"""Two processes that share the images return the scores of one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import two_scorers

from influence_ssl import _store


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder that two Gloo processes wrote, started as a user starts them."""
    folder = tmp_path_factory.mktemp("pair")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         two_scorers.__file__, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def read(folder: Path, rank: int):
    return torch.load(folder / f"rank-{rank}.pt", weights_only=False)


@pytest.mark.parametrize("name", two_scorers.SETTINGS)
def test_two_processes_return_the_scores_of_one(pair, name):
    alone = two_scorers.scores(name)
    for rank in (0, 1):
        values, error, index = read(pair, rank)[0][name]
        np.testing.assert_allclose(values, alone.values, rtol=1e-8)
        np.testing.assert_allclose(error, alone.standard_error, rtol=1e-7)
        np.testing.assert_array_equal(index, alone.index)


@pytest.mark.parametrize("turned", ["", ", turned"])
@pytest.mark.parametrize("name", two_scorers.SETTINGS)
def test_two_processes_return_the_influence_of_one(pair, name, turned):
    """Also where the second process's eigenvectors have the other sign."""
    alone = two_scorers.influences(name)
    for rank in (0, 1):
        values, index, queries = read(pair, rank)[5][name + turned]
        scale = abs(alone.values).max()
        np.testing.assert_allclose(values, alone.values, rtol=1e-8, atol=1e-9 * scale)
        np.testing.assert_array_equal(index, alone.index)
        assert queries == alone.queries == list(range(37, 45))


def test_one_process_goes_on_with_the_influence_where_two_stopped(pair, monkeypatch):
    """One batch of the training images and one of the queries are lost; both are made."""
    alone = two_scorers.influences("joint").values
    np.testing.assert_allclose(read(pair, 0)[5]["stored"][0], alone, rtol=1e-8, atol=1e-9)
    # 37 images make ten batches in each of two draws, and 8 queries two more.
    assert len(list((pair / "traced").glob("*-*.safetensors"))) == 2 * (10 + 2)
    for name in ("1-36-*.safetensors", "0-4-*.safetensors"):
        next((pair / "traced").glob(name)).unlink()
    made = []
    write = _store._write
    monkeypatch.setattr(_store, "_write", lambda *x: (made.append(1), write(*x)))
    found = two_scorers.influences("joint", pair / "traced").values
    assert len(made) == 2
    np.testing.assert_allclose(found, alone, rtol=1e-8, atol=1e-9)


def test_a_curvature_fitted_by_two_scores_other_images(pair):
    alone = two_scorers.fitted()
    for rank in (0, 1):
        values, _, index = read(pair, rank)[0]["fitted"]
        np.testing.assert_allclose(values, alone.values, rtol=1e-8)
        np.testing.assert_array_equal(index, range(50, 55))


def test_one_process_goes_on_where_two_stopped(pair, monkeypatch):
    """20 batches, of which each process kept its own; one of each is lost, and both are made."""
    for rank in (0, 1):
        assert read(pair, rank)[1] == 20, "all batches of all draws, none twice"
    for name in ("0-0-*.safetensors", "1-36-*.safetensors"):
        (lost,) = (pair / "store").glob(name)
        lost.unlink()
    made = []
    write = _store._write
    monkeypatch.setattr(_store, "_write", lambda *x: (made.append(1), write(*x)))
    found = two_scorers.scores("joint", pair / "store")
    assert len(made) == 2
    np.testing.assert_allclose(found.values, read(pair, 0)[0]["kept"][0], rtol=1e-8)


def test_more_processes_than_images_are_refused(pair):
    assert "2 processes share 1 images; start at most 1." in read(pair, 0)[2]


def test_an_error_in_one_process_stops_the_other_at_once(pair):
    """It would wait for half an hour otherwise; the group works on afterwards."""
    own = "image 36 has NaN or infinite values; repair or drop it."
    assert read(pair, 1)[3] == own
    assert read(pair, 0)[3] == f"process 1 stopped: InfluenceValueError: {own}"
    assert read(pair, 0)[4]
    assert read(pair, 1)[4]

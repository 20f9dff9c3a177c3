"""Probes against slow references."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from influence_lab.pretrain.probes import extract, knn_accuracy, knn_predict, linear_accuracy
from influence_lab.pretrain.resnets import cifar_resnet18
from influence_ssl import InfluenceError


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6))
    labels, truth = rng.integers(4, size=150), rng.integers(4, size=50)
    bank = centres[labels] + rng.normal(size=(150, 6))
    queries = centres[truth] + rng.normal(size=(50, 6))
    return [torch.from_numpy(a) for a in (bank, labels, queries, truth)]


@pytest.mark.parametrize("k", [1, 7, 200])
def test_knn_is_the_loop_over_all_pairs(points, k):
    bank, labels, queries, truth = points
    expected = []
    for query in queries.numpy():
        cosines = [
            float(query @ row) / math.sqrt(query @ query) / math.sqrt(row @ row)
            for row in bank.numpy()
        ]
        nearest = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]
        votes = [0.0] * 4
        for i in nearest:
            votes[int(labels[i])] += math.exp(cosines[i] / 0.1)
        expected.append(votes.index(max(votes)))
    found = knn_predict(bank, labels, queries, k, chunk=11)
    assert found.tolist() == expected
    share = np.mean([e == t for e, t in zip(expected, truth.tolist(), strict=True)])
    assert knn_accuracy(bank, labels, queries, truth, k) == share


def test_knn_refuses_labels_of_another_number(points):
    with pytest.raises(InfluenceError, match="149 for 150"):
        knn_predict(points[0], points[1][:-1], points[2])


def test_linear_probe_finds_scikit_learns_optimum(points):
    bank, labels, queries, truth = (p.float() if p.is_floating_point() else p for p in points)
    mean, std = bank.mean(0), bank.std(0)
    # scikit-learn minimises the sum of losses / C + |w|²/2; ours is the mean + decay/2 |w|².
    peer = LogisticRegression(C=1 / (1e-2 * len(bank)), max_iter=1000, tol=1e-8)
    peer.fit(((bank - mean) / std).numpy(), labels.numpy())
    expected = peer.score(((queries - mean) / std).numpy(), truth.numpy())
    assert linear_accuracy(bank, labels, queries, truth, decay=1e-2) == pytest.approx(expected)


def test_extract_runs_in_eval_mode_and_restores_the_mode():
    torch.manual_seed(0)
    encoder = cifar_resnet18(4, num_classes=3).train()
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    together = extract(encoder, images)
    alone = torch.cat([extract(encoder, image[None]) for image in images])
    torch.testing.assert_close(together, alone)
    assert together.shape == (5, 32)
    assert encoder.training

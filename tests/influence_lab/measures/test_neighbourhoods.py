"""Purity, silhouettes and distances of sets against brute force."""

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score

from influence_lab.datasets import make_scenes
from influence_lab.measures import neighbourhoods as nb
from influence_lab.pretrain.probes import extract
from influence_lab.pretrain.resnets import cifar_resnet18
from influence_ssl.analysis.neighbours import unit

RNG = np.random.default_rng(0)
Z = unit(RNG.normal(size=(700, 12))).numpy()
LABELS = RNG.integers(3, size=700)


def test_structure_is_what_loops_find():
    z, labels = Z[:80], LABELS[:80]
    pure, far = [], []
    for i in range(80):
        away = 1 - z.astype(np.float64) @ z[i].astype(np.float64)
        away[i] = np.inf
        ten = np.argsort(away)[:10]
        pure.append(np.mean(labels[ten] == labels[i]))
        far.append(away[ten].mean())
    found = nb.structure(z, labels)
    assert found["purity"].value == pytest.approx(np.mean(pure))
    assert found["distance"].value == pytest.approx(np.mean(far), abs=1e-6)
    expected = silhouette_score(z.astype(np.float64), labels, metric="cosine")
    assert found["silhouette"].value == pytest.approx(expected)
    for estimate in found.values():
        assert estimate.low < estimate.value < estimate.high


def test_structure_sees_planted_classes():
    centres = unit(RNG.normal(size=(3, 12))).numpy()
    z = unit(centres[LABELS] + 0.1 * RNG.normal(size=(700, 12))).numpy()
    found = nb.structure(z, LABELS)
    assert found["purity"].value > 0.99
    assert found["silhouette"].value > 0.7
    assert nb.structure(z, RNG.permutation(LABELS))["purity"].high < 0.45


def test_features_are_kept_and_belong_to_their_weights(tmp_path, monkeypatch):
    images = make_scenes(40).images
    monkeypatch.setattr(nb, "_CACHED_FROM", 40)
    torch.manual_seed(0)
    encoders = [cifar_resnet18(4).eval() for _ in range(2)]
    first, second = (nb.features(encoder, images, tmp_path) for encoder in encoders)
    plain = extract(encoders[0], images.tensor())
    np.testing.assert_allclose(first, torch.nn.functional.normalize(plain).numpy(), atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 2
    assert np.abs(first - second).max() > 0.01
    monkeypatch.setattr(nb, "extract", None)
    np.testing.assert_array_equal(nb.features(encoders[0], images, tmp_path), first)

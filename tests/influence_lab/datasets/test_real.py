"""The recorded encoder on real CIFAR-10, wherever the images are found."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from influence_lab.datasets import data_root, load
from influence_lab.pretrain.probes import extract, knn_accuracy
from influence_lab.pretrain.resnets import normalise
from influence_lab.records import results
from influence_ssl import InfluenceScorer

PROFILE = "cpu"

pytestmark = pytest.mark.skipif(
    not any((data_root() / name).is_dir() for name in ("cifar10", "cifar-10-batches-py")),
    reason="no real CIFAR-10 under data/",
)


@pytest.fixture(scope="module")
def test_images():
    return load("cifar10", "test")


@pytest.fixture(scope="module")
def encoder():
    found = results.load_encoder(PROFILE, "simclr", 0)
    assert found is not None, "book/results/cpu/simclr-0 is missing"
    return found


def test_values_do_not_depend_on_batch_size_or_order(test_images, encoder):
    chosen = np.random.default_rng(0).permutation(len(test_images))[:320]
    images = normalise(test_images.subset(chosen).tensor())
    whole = InfluenceScorer(encoder, batch_size=160, progress=False).score(images, index=chosen)
    assert np.isfinite(whole.values).all()
    assert (whole.values <= 0).all()
    small = InfluenceScorer(encoder, batch_size=60, progress=False).score(images, index=chosen)
    np.testing.assert_allclose(small.values, whole.values, rtol=1e-4)
    assert spearmanr(small.values, whole.values).statistic >= 0.9999
    back = InfluenceScorer(encoder, batch_size=160, progress=False).score(
        images.flip(0), index=chosen[::-1].copy()
    )
    np.testing.assert_allclose(back.values[::-1], whole.values, rtol=1e-4)


def test_the_recorded_accuracy_is_found_again_on_a_part(test_images, encoder):
    """Nearest neighbours within the test images: less data than the record's, so less accurate."""
    part = test_images.subset(np.random.default_rng(1).permutation(len(test_images))[:3000])
    features = extract(encoder, part.tensor())
    truth = torch.from_numpy(part.labels.copy())
    found = knn_accuracy(features[:2000], truth[:2000], features[2000:], truth[2000:])
    recorded = results.load_run(PROFILE, "simclr", 0)["accuracy"]["knn"]
    assert 0.45 < found < recorded


def test_recorded_encoders_are_trained():
    """60 % is asked of label-free encoders. Labels must give more than the best of those.

    BYOL ends below, for the reason that the encoders' chapter gives, and far above the baselines.
    """
    runs = {m: results.load_run(PROFILE, m, 0) for m in ("simclr", "byol", "barlow", "supervised")}
    found = {m: run["accuracy"]["knn"] for m, run in runs.items() if run is not None}
    assert all(run["test images"] == 10_000 for run in runs.values() if run is not None)
    free = [share for method, share in found.items() if method != "supervised"]
    assert all(share >= (0.55 if m == "byol" else 0.60) for m, share in found.items())
    assert found["supervised"] > max(free) + 0.1
    baselines = results.load_record(PROFILE, "baselines")
    assert min(free) > baselines["raw pixels"] + 0.15


@pytest.mark.skipif(
    (data_root() / "cifar-10-batches-py").is_dir(),
    reason="recorded from the folder of JPEGs, whose pixels differ from the batches'",
)
def test_recorded_data_is_the_data_found(test_images):
    scores = results.load_scores(PROFILE, "simclr", 0, "test")
    assert scores.provenance["data_sha256"] == test_images.digest

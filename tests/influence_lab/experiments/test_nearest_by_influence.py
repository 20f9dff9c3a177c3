"""The nearest image by influence: brute force, planted copies, and the record of scenes."""

import shutil

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from influence_lab.cli import main
from influence_lab.datasets import make_scenes
from influence_lab.experiments import nearest_by_influence as traced
from influence_lab.measures.pixel_duplicates import RULES, Found, find
from influence_lab.pretrain.resnets import normalise
from influence_lab.pretrain.views import SharedNoise
from influence_lab.records import results
from influence_ssl import GaussianNoise, InfluenceScorer, Invariance

SCENES = make_scenes(200, seed=3)
ENCODER = results.load_encoder("tiny", "simclr", 0)
INDEX = np.arange(200)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    images = normalise(SCENES.images.tensor())
    folder = tmp_path_factory.mktemp("store")
    return traced.embeddings(ENCODER, images, INDEX, SharedNoise(), folder)


@pytest.mark.parametrize("cosine", [False, True])
def test_the_nearest_is_that_of_brute_force(cosine, monkeypatch):
    monkeypatch.setattr(traced, "_ROWS", 7)
    rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).double()
    found = traced.nearest(rows)[cosine]
    for i, row in enumerate(rows):
        value = [
            -np.inf if j == i else float(row @ x / (row.norm() * x.norm() if cosine else 1))
            for j, x in enumerate(rows)
        ]
        assert found.place[i] == int(np.argmax(value))
        assert found.value[i] == pytest.approx(max(value))


def test_embeddings_are_those_of_the_public_calls(shared):
    phi, gradients = shared
    images = normalise(SCENES.images.tensor())
    scorer = InfluenceScorer(ENCODER, Invariance(SharedNoise()), progress=False)
    scorer.fit(images, keep=True)
    expected = scorer.influence(images, index=INDEX).values
    found = (-phi @ phi.T).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * abs(expected).max())
    norm = scorer.score(images).gradient_norm
    np.testing.assert_allclose(gradients.norm(dim=1), norm, rtol=1e-4)


def test_an_exact_copy_is_nearest_where_noise_is_shared(shared):
    """Its influence is then the self-influence, and no cosine is larger."""
    copies = np.flatnonzero(SCENES.is_kind("exact duplicate"))
    assert len(copies) >= 5
    found = find(SCENES.images.images)
    for vectors in shared:
        _, near = traced.nearest(vectors)
        assert near.value[copies] == pytest.approx(1, abs=1e-4)
        assert (found.group[near.place] == found.group)[copies].all()
    images = normalise(SCENES.images.tensor())
    own = InfluenceScorer(ENCODER, Invariance(GaussianNoise()), progress=False).embed(images)
    assert (traced.nearest(own)[1].value[copies] < 0.999).all()


def test_a_share_counts_images_and_resamples_groups():
    hit, group = np.array([1.0, 1, 1, 1, 0, 0, 1]), np.array([0, 0, 0, 0, 1, 1, 2])
    found = traced.share(hit, group)
    assert found.value == pytest.approx(5 / 7)
    rng, drawn = np.random.default_rng(1), []
    for _ in range(4000):
        chosen = rng.integers(0, 3, 3)
        rows = np.concatenate([hit[group == g] for g in chosen])
        drawn.append(rows.mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)


def test_a_share_of_none_or_all_has_an_exact_bound():
    group = np.array([0, 0, 1, 2, 3])
    low, high = binomtest(0, 4).proportion_ci(method="exact")
    assert traced.share(np.zeros(5), group) == pytest.approx((0, low, high))
    low, high = binomtest(4, 4).proportion_ci(method="exact")
    assert traced.share(np.ones(5), group) == pytest.approx((1, low, high))


def test_quality_asks_the_near_duplicates():
    correlation = np.array([0.99, 0.99, 0.2, 0.97, 0.97, 0.1])
    found = Found(correlation, np.full(6, 9), np.array([0, 0, 2, 1, 1, 3]))
    value = np.array([0.9, 0.8, 0.85, 0.7, 0.95, 0.1])
    row = traced.quality(found, value, np.array([1, 2, 0, 4, 3, 0]))["pixels"]
    assert row["same group"].value == pytest.approx(3 / 4)
    assert row["auroc"].value == pytest.approx(roc_auc_score(correlation > 0.9, value))
    assert "same group" not in traced.quality(found, value)["pixels"]


def test_rounding_is_that_of_the_products():
    phi = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    found = traced.rounding(phi)
    assert [row["bytes per image"] for row in found.values()] == [64, 32, 32]
    assert found["float32"]["nearest kept"] == 1
    lowest = {kind: row["lowest rank correlation"] for kind, row in found.items()}
    assert 1 >= lowest["float32"] >= lowest["float16"] > lowest["bfloat16"] > 0.99


def test_reproduce_records_draws_and_leaves_no_gradients(tmp_path, monkeypatch, capsys):
    for method, seed in (("simclr", 0), ("byol", 1)):
        place = results.folder_of("tiny", method, 0, tmp_path)
        place.mkdir(parents=True)
        tracked = results.folder_of("tiny", "simclr", seed)
        shutil.copy(tracked / "encoder.safetensors", place)
    runs, out = tmp_path / "runs", tmp_path / "figure.svg"
    arguments = ["reproduce", "nearest", "--profile", "tiny", "--results", str(tmp_path)]
    assert main([*arguments, "--runs", str(runs), "--out", str(out)]) == 0
    assert "by influence is of the same group: SimCLR 0." in capsys.readouterr().out
    assert out.read_text().lstrip().startswith("<?xml")
    assert not list(runs.rglob("*.safetensors"))
    record = results.load_record("tiny", "nearest", tmp_path)
    images = make_scenes().images
    found = find(images.images)
    truth = found.truth("pixels or hash")
    assert record["near duplicates"]["pixels or hash"] == truth.sum()
    answers = record["methods"]["simclr"]
    scorer = InfluenceScorer(ENCODER, progress=False).fit(normalise(images.tensor()), keep=True)
    influence = scorer.influence(normalise(images.tensor()), index=range(len(images))).values
    score = np.diag(influence).copy()
    np.fill_diagonal(influence, np.inf)
    row = answers["noise of its own"]["influence"]["pixels or hash"]
    hit = found.group[influence.argmin(1)] == found.group
    assert row["same group"][0] == pytest.approx(hit[truth].mean(), abs=1e-3)
    assert row["auroc"][0] == pytest.approx(roc_auc_score(truth, -influence.min(1)), abs=1e-3)
    row = answers["noise of its own"]["self-score"]["pixels or hash"]
    assert row["auroc"][0] == pytest.approx(roc_auc_score(truth, score), abs=1e-3)
    shared = answers["one noise for all"]["influence, cosine"][RULES[0]]
    own = answers["noise of its own"]["influence, cosine"][RULES[0]]
    assert shared["same group"][0] > own["same group"][0]
    with monkeypatch.context() as patch:  # recorded encoders are not asked again
        patch.setattr(traced, "measure", lambda *_: pytest.fail("asked again"))
        assert main([*arguments, "--runs", str(runs), "--out", str(out)]) == 0
    rows = traced.table(record)
    assert next(iter(rows)).startswith("influence")
    assert all(set(row) == {"simclr", "byol"} for row in rows.values())
    assert len(traced.figure(record).axes) == 2

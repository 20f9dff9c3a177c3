"""Recorded vectors, and the experiments on how stable a score is, end to end at profile tiny."""

import json
import shutil

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from influence_lab.cli import main
from influence_lab.experiments import families, noise, scored, stability
from influence_lab.experiments.task import Task
from influence_lab.pretrain.resnets import normalise
from influence_lab.records import results
from influence_lab.records.keys import described, key
from influence_lab.records.recording import data_for
from influence_lab.records.vectors import Vectors
from influence_ssl import (
    GaussianNoise,
    Identity,
    InfluenceError,
    InfluenceScorer,
    Invariance,
    LoGra,
)  # fmt: skip

MAGNITUDE = np.exp(np.random.default_rng(0).normal(7, 1.2, 5000))


def test_vectors_come_back_in_order_and_value(tmp_path):
    vectors = Vectors(tmp_path / "vectors.npz", {"data": "a"})
    with_zeros = np.where(np.arange(5000) % 4 == 0, 0.0, MAGNITUDE)
    vectors.add("plain", MAGNITUDE, seconds=1.0)
    vectors.add("zeros", with_zeros)
    vectors.add("constant", np.full(5000, 3.0))
    again = Vectors(tmp_path / "vectors.npz", {"data": "a"})
    np.testing.assert_allclose(again["plain"], MAGNITUDE, rtol=2e-3)
    assert spearmanr(again["plain"], MAGNITUDE).statistic > 0.99999
    np.testing.assert_array_equal(again["zeros"] == 0, with_zeros == 0)
    np.testing.assert_allclose(again["constant"], 3.0)
    assert again.notes["plain"] == {"seconds": 1.0}
    assert "other" not in again
    again.add("plain", 2 * MAGNITUDE)
    once_more = Vectors(tmp_path / "vectors.npz")
    np.testing.assert_allclose(once_more["plain"], 2 * MAGNITUDE, rtol=2e-3)
    np.testing.assert_allclose(once_more["constant"], 3.0)
    assert (tmp_path / "vectors.npz").stat().st_size < 3 * 9000


def test_vectors_of_something_else_are_refused(tmp_path):
    Vectors(tmp_path / "v.npz", {"data": "a", "curvature": "b"}).add("x", np.ones(3))
    with pytest.raises(InfluenceError, match=r"made from another curvature; remove the file"):
        Vectors(tmp_path / "v.npz", {"data": "a", "curvature": "c"})
    with pytest.raises(InfluenceError, match="not all values are finite"):
        Vectors(tmp_path / "v.npz").add("y", np.array([1.0, np.nan, 2.0]))
    assert list(Vectors(tmp_path / "v.npz").notes) == ["x"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A recorded tiny encoder without what was made from it."""
    root = tmp_path_factory.mktemp("results")
    place = results.folder_of("tiny", "simclr", 0, root)
    place.mkdir(parents=True)
    shutil.copy(results.folder_of("tiny", "simclr", 0) / "encoder.safetensors", place)
    return root


@pytest.fixture(scope="module")
def first(root):
    return scored.Scored(Task("fig-2", "tiny", root=root), "simclr", 0)


@pytest.fixture(scope="module")
def images():
    return normalise(data_for("tiny", "train").tensor())


def test_one_pass_gives_the_score_and_its_rivals(first, images):
    encoder = results.load_encoder("tiny", "simclr", 0)
    objective = Invariance(GaussianNoise())
    found = first.with_rivals(GaussianNoise(), 3)
    plain = InfluenceScorer(encoder, objective, seed=3, progress=False).score(images)
    np.testing.assert_allclose(found["score"], plain.magnitude, rtol=3e-3)
    with torch.no_grad():
        loss = objective(encoder, (images,), torch.arange(len(images)), 0, 3).numpy()
    np.testing.assert_allclose(found["loss"], loss, rtol=3e-3)
    whole = InfluenceScorer(encoder, objective, Identity(), seed=3, progress=False).score(images)
    np.testing.assert_allclose(first.squared_norm(GaussianNoise(), 3), whole.magnitude, rtol=3e-3)
    # Projections are orthonormal: they shorten each gradient, and nearly keep their order.
    assert (found["gradient norm"] ** 2 <= whole.magnitude * 1.01).all()
    assert spearmanr(found["gradient norm"], whole.magnitude).statistic > 0.95


def test_what_is_recorded_is_not_made_again(first, root, monkeypatch):
    before = first.score(GaussianNoise(), 3)
    monkeypatch.setattr(InfluenceScorer, "score", None)
    again = scored.Scored(Task("fig-2", "tiny", root=root), "simclr", 0)
    np.testing.assert_array_equal(again.score(GaussianNoise(), 3), before)
    with pytest.raises(TypeError):
        again.score(GaussianNoise(), 4)


def test_the_fixed_set_is_fixed_and_keeps_its_indices():
    _, index = scored.images_of("tiny")
    np.testing.assert_array_equal(index, np.arange(512))
    of_cifar = scored.fixed_set(50_000)
    assert len(np.unique(of_cifar)) == 5000
    assert of_cifar[:3].tolist() == sorted(of_cifar.tolist())[:3]


def test_averages_of_single_draws_are_scores_of_several(first, images):
    """The scorer fits one curvature on all draws, the experiment one on each."""
    separate = np.mean([first.score(GaussianNoise(), seed) for seed in (0, 3)], 0)
    encoder = results.load_encoder("tiny", "simclr", 0)
    joint = [
        InfluenceScorer(encoder, draws=2, seed=seed, progress=False).score(images).magnitude
        for seed in (0, 1)
    ]
    between = spearmanr(*joint).statistic
    assert spearmanr(separate, joint[1]).statistic == pytest.approx(between, abs=0.03)


def test_measure_recovers_planted_reliabilities():
    """True scores, an encoder's own part and noise, of known variances: 1, 0.5, 1."""
    rng = np.random.default_rng(0)
    truth, own, others = rng.normal(size=(3, 2000)) * np.array([[1], [0.5**0.5], [0.5**0.5]])

    def run(part):
        return [truth + part + rng.normal(size=2000) for _ in range(8)]

    a, b, other = run(own), run(own), run(others)
    found = stability.measure(a, b, other)
    for draws in stability.DRAWS:
        at = {reading: found[reading][str(draws)]["pearson"] for reading in stability.READINGS}
        total = 1.5 + 1 / draws
        assert at["noise"].value == pytest.approx(1.5 / total, abs=0.04)
        # These noises are independent in both, which the recorded ones with equal seeds are not.
        assert at["training"].value == pytest.approx(1 / total, abs=0.04)
        assert at["both"].value == pytest.approx(1 / total, abs=0.04)
    assert set(stability.measure(a, b, None)) == {"noise"}


def test_recorded_vectors_serve_without_the_second_encoder(tmp_path):
    """As on a clone, where the weights of a second seed are not tracked; no reading is lost."""
    for seed in (0, 1):
        place = results.folder_of("tiny", "simclr", seed, tmp_path)
        shutil.copytree(results.folder_of("tiny", "simclr", seed), place)
    (place / "encoder.safetensors").unlink()
    where = ["--results", str(tmp_path), "--out", str(tmp_path / "figure.svg")]
    assert main(["reproduce", "fig-2", "--profile", "tiny", *where]) == 0
    made, tracked = (results.load_record("tiny", "stability", root) for root in (tmp_path, None))
    assert "both" in made["methods"]["simclr"]["score"]
    assert made["methods"] == tracked["methods"]
    second = scored.Scored(Task("fig-2", "tiny", root=tmp_path), "simclr", 1)
    with pytest.raises(InfluenceError, match="pretrain simclr --profile tiny --seed 1"):
        second.score(GaussianNoise(), 99)


def test_recorded_vectors_are_found_whatever_a_setting_is_printed_as(monkeypatch):
    """As after a new argument, which enters every repr."""
    for kind in (GaussianNoise, LoGra):
        monkeypatch.setattr(kind, "__repr__", lambda self: f"{type(self).__name__}(new=None)")
    one = scored.Scored(Task("fig-2", "tiny"), "simclr", 0)
    monkeypatch.setattr(scored, "InfluenceScorer", None)
    assert len(one.score(GaussianNoise(), 0)) == 512
    assert key("score", GaussianNoise(0.01, 0.2), 0) in one.vectors
    assert key("score", GaussianNoise(0.01, 0.2), 99) not in one.vectors


def test_a_perturbation_without_a_description_is_refused_by_name():
    class Other(GaussianNoise):
        pass

    with pytest.raises(InfluenceError, match=r"Other\(mean=0.05, std=0.2\) has no description"):
        described(Other())


def test_the_vectors_of_every_record_are_named_by_their_settings():
    for path in sorted(results.results_root().glob("*/*-?/vectors.npz")):
        vectors = Vectors(path)
        assert vectors.origin["curvature"] == described(LoGra()), path
        assert all(len(vectors[name]) == len(vectors[next(iter(vectors.notes))])
                   for name in vectors.notes), path  # fmt: skip
    largest = scored.vectors_of("cpu", "simclr", 0)
    for family in families.FAMILIES.values():
        assert all(key("score", family.perturbation, noise) in largest for noise in (0, 1))


def test_tracked_vectors_belong_to_the_tracked_encoders():
    import hashlib

    for path in sorted(results.results_root().glob("*/*/vectors.npz")):
        vectors = Vectors(path)
        encoder = path.with_name("encoder.safetensors")
        if encoder.is_file():
            digest = hashlib.sha256(encoder.read_bytes()).hexdigest()
            assert vectors.origin["encoder_sha256"] == digest, path


def test_figures_are_drawn_from_records():
    profile, record = results.largest_record("noise")
    assert len(noise.figure_11(record["cells"]).axes) == 2
    grid = noise.recorded(profile)
    assert set(grid) == {(mu, sigma) for mu in noise.MEANS for sigma in noise.DEVIATIONS}
    (panel,) = noise.figure_10(grid).axes
    drawn = {line.get_label(): line.get_ydata() for line in panel.lines}
    for mu in noise.MEANS:
        medians = [np.median(np.log(grid[mu, sigma])) for sigma in noise.DEVIATIONS]
        np.testing.assert_allclose(drawn[f"μ = {mu}"], medians)


def test_families_are_the_papers_rows():
    assert [family.paper for family in families.FAMILIES.values()] == [
        0.7197, 0.7234, 0.7422, 0.7447, 0.9509, 0.9745,
    ]  # fmt: skip
    assert json.dumps(sorted(families.COLOURS)) == json.dumps(sorted(list(families.FAMILIES)[:4]))

"""Figures 5 and 13 to 16: borders by loops, δ by SciPy, planted backgrounds, the record again."""

import json
import shutil

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, spearmanr
from sklearn.metrics import roc_auc_score
from torch.utils.data import TensorDataset

from influence_lab.cli import main
from influence_lab.datasets import Images, make_scenes
from influence_lab.experiments import galleries, scored
from influence_lab.experiments.claims import INCONCLUSIVE, NOT_TESTED, REPRODUCED
from influence_lab.experiments.task import Task
from influence_lab.measures import borders
from influence_lab.pretrain.probes import extract
from influence_lab.pretrain.resnets import normalise
from influence_lab.records import results
from influence_lab.records.keys import key
from influence_lab.records.recording import data_for, score_and_record
from influence_lab.records.thumbnails import load_sheet
from influence_ssl import GaussianNoise, InfluenceScorer, Supervised

SCENES = make_scenes()
PIXELS = SCENES.images.images


def test_measures_are_those_of_a_loop_over_the_border():
    looks = borders.measures(PIXELS[:20])
    for k, picture in enumerate(PIXELS[:20] / 255):
        edge = [
            picture[i, j] for i in range(32) for j in range(32) if min(i, j) < 3 or max(i, j) >= 29
        ]
        assert len(edge) == 348
        edge = np.array(edge)
        expected = {
            "border deviation": np.sqrt(np.mean([edge[:, c].var() for c in range(3)])),
            "border extremeness": abs(2 * edge.mean() - 1),
            "border colour": np.mean([max(p) - min(p) for p in edge]),
            "image colour": np.mean([max(p) - min(p) for p in picture.reshape(-1, 3)]),
            "border brightness": edge.mean(),
        }
        assert {name: v[k] for name, v in looks.items()} == pytest.approx(expected)


def test_white_and_black_are_told_from_uniform():
    pictures = np.stack([np.full((32, 32, 3), v, np.uint8) for v in (250, 5, 128, 250)])
    pictures[3, :16] = 0
    looks = borders.measures(pictures)
    assert borders.uniform(looks).tolist() == [True, True, True, False]
    assert borders.white_or_black(looks).tolist() == [True, True, False, False]


def test_planted_flat_backgrounds_have_little_deviation():
    looks = borders.measures(PIXELS)
    flat = SCENES.is_kind("uniform")
    assert roc_auc_score(flat, -looks["border deviation"]) > 0.9
    assert roc_auc_score(SCENES.is_kind("outlier"), looks["border deviation"]) > 0.99


def test_a_comparison_is_scipys_and_counts_by_hand():
    looks = borders.measures(PIXELS)
    key = -looks["border deviation"] + 0.02 * np.random.default_rng(0).normal(size=512)
    found = galleries.compare(key, looks, 64)
    order = np.argsort(key)
    drawn = galleries.sample(512, 64)
    assert len(np.unique(drawn)) == 64
    for end, rows in (("highest", order[::-1][:64]), ("lowest", order[:64])):
        for name in borders.MEASURES:
            u = mannwhitneyu(looks[name][rows], looks[name][drawn]).statistic
            delta = found[end]["delta"][name][0]
            assert delta == pytest.approx(2 * u / 64**2 - 1, abs=1e-4)
        low = looks["border deviation"][rows] < 0.1
        assert found[end]["uniform"] == [low.sum(), low[:12].sum()]
    assert found["highest"]["delta"]["border deviation"][2] < -0.5
    assert found["lowest"]["delta"]["border deviation"][1] > 0.5


@pytest.fixture(scope="module")
def made(made_again):
    """Figure 13 at profile tiny, with the tracked SimCLR encoder and a supervised one."""
    root = made_again("galleries")
    return root, results.load_record("tiny", "galleries", root)


def test_sheets_show_the_ends_of_the_order(made):
    root, record = made
    encoder = results.load_encoder("tiny", "simclr", 0)
    score = (
        InfluenceScorer(encoder, progress=False).score(normalise(SCENES.images.tensor())).magnitude
    )
    for result, rows in (("fig-13", np.argsort(-score)), ("fig-14", np.argsort(score))):
        shown = load_sheet(galleries.path_of(result, "tiny", root), 8)
        assert len(shown) == record["extent"] == 64
        first = abs(shown[:1].astype(float) - PIXELS).mean((1, 2, 3))
        assert first[rows[0]] == first.min()
    top = load_sheet(galleries.path_of("fig-5", "tiny", root), galleries.TOP)
    assert len(top) == 24
    low = borders.measures(PIXELS[np.argsort(-score)[:12]])
    assert (
        record["methods"]["simclr"]["score"]["highest"]["uniform"][1] == borders.uniform(low).sum()
    )


def test_the_explanation_is_scipys(made):
    encoder = results.load_encoder("tiny", "simclr", 0)
    score = (
        InfluenceScorer(encoder, progress=False).score(normalise(SCENES.images.tensor())).magnitude
    )
    norm = extract(encoder, SCENES.images.tensor()).norm(dim=1).numpy()
    found = made[1]["explained"]["simclr"]
    assert found["score and small norm"][0] == pytest.approx(
        spearmanr(score, -norm).statistic, abs=2e-3
    )
    uniformity = -borders.measures(PIXELS)["border deviation"]
    assert found["score and uniformity"][0] == pytest.approx(
        spearmanr(score, uniformity).statistic, abs=2e-3
    )


def test_supervised_galleries_are_by_the_labels(made):
    root, record = made
    encoder = results.load_encoder("tiny", "supervised", 0, root)
    items = TensorDataset(
        normalise(SCENES.images.tensor()), torch.from_numpy(SCENES.images.labels.copy())
    )
    score = InfluenceScorer(encoder, Supervised(), progress=False).score(items).magnitude
    everything = scored.Selection(data_for("tiny", "train"), np.arange(512), "all")
    task = Task("fig-15", "tiny", runs=root / "runs", root=root)
    found = scored.Scored(task, "supervised", 0, everything).with_labels()
    np.testing.assert_allclose(found, score, rtol=0.02)
    assert spearmanr(found, score).statistic > 0.9999
    shown = load_sheet(galleries.path_of("fig-15", "tiny", root), 8)
    first = abs(shown[:1].astype(float) - PIXELS).mean((1, 2, 3))
    assert first[score.argmax()] == first.min()
    assert galleries.LABELLED in record["methods"]["supervised"]
    assert galleries.LABELLED not in record["methods"]["simclr"]
    assert scored.Scored(task, "simclr", 0, everything).with_labels() is None


def test_the_score_of_all_images_is_the_recorded_one(made, tmp_path):
    root = tmp_path / "results"
    shutil.copytree(made[0] / "tiny" / "simclr-0", root / "tiny" / "simclr-0")
    task = Task("fig-5", "tiny", runs=tmp_path / "runs", root=root)
    images = data_for("tiny", "train")
    fresh = scored.whole(task, "simclr", images)
    recorded = score_and_record("simclr", "tiny", 0, "train", progress=False, root=root)
    np.testing.assert_array_equal(scored.whole(task, "simclr", images), recorded.magnitude)
    np.testing.assert_allclose(fresh, recorded.magnitude, rtol=0.02)
    # Of other images there is no record.
    other = images.subset(np.arange(511, -1, -1))
    elsewhere = Task("fig-5", "tiny", runs=tmp_path / "other", root=root)
    assert not np.array_equal(scored.whole(elsewhere, "simclr", other), recorded.magnitude)


def test_cifar100_is_taken_where_it_is_found(made, tmp_path, monkeypatch):
    monkeypatch.setenv("INFLUENCE_SSL_DATA", str(tmp_path))
    monkeypatch.setattr(galleries, "data_for", lambda profile, split: f"{profile} {split}")
    monkeypatch.setattr(galleries, "load", lambda name, split: f"{name} {split}")
    assert galleries.images_for("cpu") == "cpu train"
    (tmp_path / "cifar-100-python").mkdir()
    assert galleries.images_for("cpu") == "cifar100 train"
    assert galleries.images_for("tiny") == "tiny train"


def test_it_is_a_stand_in_unless_data_and_encoders_are_cifar100s(made, tmp_path, monkeypatch):
    s = SCENES.images
    named = Images("CIFAR-100", s.images, s.labels, s.names, s.classes)
    monkeypatch.setattr(galleries, "images_for", lambda profile: named)
    root = tmp_path / "results"
    shutil.copytree(made[0] / "tiny" / "simclr-0", root / "tiny" / "simclr-0")
    where = ["--results", str(root), "--runs", str(tmp_path), "--out", str(tmp_path / "f.svg")]
    run = root / "tiny" / "simclr-0" / "run.json"
    for data, expected in (("scenes train", True), ("CIFAR-100 train", False)):
        content = json.loads(run.read_text())
        content["provenance"]["data"] = f"{data} (512 images)"
        run.write_text(json.dumps(content))
        assert main(["reproduce", "fig-5", "--profile", "tiny", *where]) == 0
        assert results.load_record("tiny", "galleries", root)["stand-in"] is expected


def test_loss_and_norm_need_no_gradients(tmp_path):
    everything = scored.Selection(data_for("tiny", "train"), np.arange(512), "all")
    task = Task("fig-5", "tiny", runs=tmp_path)
    one = scored.Scored(task, "simclr", 0, everything)
    found = one.without_gradients(GaussianNoise(), 0)
    norm = extract(one.encoder, SCENES.images.tensor()).norm(dim=1).numpy()
    np.testing.assert_allclose(found["norm"], norm, rtol=1e-3)
    whole_pass = scored.vectors_of("tiny", "simclr", 0)[key("loss", GaussianNoise(), 0)]
    np.testing.assert_allclose(found["loss"], whole_pass, rtol=3e-3)


def test_what_is_not_recorded_says_so(made, tmp_path):
    figure = galleries.figure_sheet("fig-15", "tiny", tmp_path)
    assert [t.get_text() for t in figure.axes[0].texts] == ["supervised: not recorded yet"]
    assert galleries.contact_sheet("fig-15", "tiny", tmp_path).axes
    root, record = made
    data = galleries.contact_sheet("fig-13", "tiny", root).data
    assert data == galleries.path_of("fig-13", "tiny", root).read_bytes()
    titles = [part.get_suptitle() for part in galleries.figure_5("tiny", record, root).subfigs]
    hits = record["methods"]["simclr"]["score"]["lowest"]["uniform"][1]
    assert titles[1] == f"lowest: {hits} of 12 with a uniform border"
    assert len(galleries.figure_deltas(record).axes[0].get_yticklabels()) == 6


def test_claims_are_of_cifar100_alone(made, tmp_path):
    record = json.loads(json.dumps(made[1]))
    top = record["methods"]["simclr"]["score"]
    top["highest"]["uniform"], top["highest"]["white or black"] = [60, 12], [30, 6]
    record["sample"] = {"uniform": 10, "white or black": 2}
    top["lowest"]["delta"]["image colour"] = [0.1, -0.05, 0.25]
    labelled = record["methods"]["supervised"][galleries.LABELLED]["highest"]["delta"]
    labelled["border deviation"] = [0.0, -0.14, 0.14]
    lowest = record["methods"]["supervised"][galleries.LABELLED]["lowest"]["delta"]
    lowest["border deviation"] = [0.0, -0.14, 0.14]
    free = record["methods"]["supervised"]["score"]["highest"]["delta"]
    free["border deviation"] = [0.0, -0.15, 0.1]

    def verdicts(stand_in):
        record["stand-in"] = stand_in
        (tmp_path / "cpu").mkdir(exist_ok=True)
        (tmp_path / "cpu" / "galleries.json").write_text(json.dumps(record))
        return {row.id: row.verdict for row in galleries.claims(tmp_path)}

    assert set(verdicts(True).values()) == {NOT_TESTED}
    assert verdicts(False) == {
        "fig-5-uniform": REPRODUCED,
        "fig-13-white-or-black": REPRODUCED,
        "fig-14-colour": INCONCLUSIVE,
        "fig-15-labels": REPRODUCED,
        "fig-15-label-free": INCONCLUSIVE,
        "fig-16-labels": REPRODUCED,
    }


def test_tracked_sheets_are_small():
    for path in results.results_root().glob("*/fig-*.jpg"):
        assert path.stat().st_size <= 150_000, path

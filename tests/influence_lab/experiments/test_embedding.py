"""Figure 3: subsets and their controls, purity by brute force, the record made again."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from influence_lab.experiments import embedding
from influence_lab.experiments.claims import INCONCLUSIVE, NOT_TESTED, REPRODUCED
from influence_lab.measures.neighbourhoods import features
from influence_lab.records import results
from influence_lab.records.recording import data_for
from influence_ssl.analysis.neighbours import unit

RNG = np.random.default_rng(5)


def test_controls_have_the_classes_of_their_sets():
    order, labels = RNG.permutation(1000), RNG.integers(4, size=1000)
    labels[order[:100]] = np.where(np.arange(100) < 70, 2, labels[order[:100]])
    found = embedding.subsets(order, labels, 200)
    assert set(found["lowest"]) == set(order[:200])
    assert found["highest"].tolist() == order[:-201:-1].tolist()
    for name in ("lowest", "highest"):
        control = found[f"classes of the {name}"]
        assert len(np.unique(control)) == 200
        counts = [np.bincount(labels[index], minlength=4) for index in (found[name], control)]
        np.testing.assert_array_equal(*counts)
    assert len(set(found["random"]) & set(order[:200])) < 80
    assert embedding.sizes(50_000) == (2000, 1000)
    assert embedding.sizes(512) == (102, 51)


def test_planted_structure_is_measured():
    """The lowest in pure clumps, the highest without any class, all equally many."""
    labels = RNG.integers(5, size=600)
    centres = unit(RNG.normal(size=(5, 16))).numpy()
    noise = np.geomspace(0.02, 3, 600)[:, None] * RNG.normal(size=(600, 16))
    z = unit(centres[labels] + noise).numpy()
    found = next(iter(embedding.measure(z, labels, np.arange(600)).values()))
    assert found["lowest"]["purity"].value > 0.99
    assert found["highest"]["purity"].high < 0.4
    assert {name for name in embedding.CLAIMS if embedding.gap_of(found, name).low > 0} == {
        "separated",
        "separated-beyond",
        "silhouette",
        "silhouette-beyond",
        "intermingled",
        "tight",
        "dispersed",
        "caption",
    }
    cosine = z.astype(np.float64) @ z.T.astype(np.float64)
    np.fill_diagonal(cosine, -1)
    ten = np.argsort(cosine, 1)[:, -10:]
    pure = (labels[ten] == labels[:, None]).mean(1)
    assert found["lowest"]["purity in all"] == pytest.approx(pure[:120].mean())
    share = np.bincount(labels[-120:]) / 120
    assert found["highest"]["chance"] == pytest.approx((share**2).sum())
    assert found["highest"]["largest class"] == share.max()


@pytest.fixture(scope="module")
def root(made_again):
    return made_again("embedding")


def test_the_map_keeps_neighbours_and_says_who_is_who(root):
    found = embedding.load_map("tiny", "simclr", 0, root)
    images = data_for("tiny", "train")
    z = features(results.load_encoder("tiny", "simclr", 0), images)
    places = found.place.astype(np.float64)
    kept = trustworthiness(z[found.image], places, n_neighbors=10, metric="cosine")
    rng = np.random.default_rng(0)
    chance = trustworthiness(z[found.image], rng.permutation(places), n_neighbors=10)
    assert kept > 0.9
    assert chance < 0.6
    np.testing.assert_array_equal(found.label, images.labels[found.image])
    order = results.load_scores("tiny", "simclr", 0, "train", root).order("lowest")
    for name, index in embedding.subsets(order, images.labels, 102).items():
        if name in embedding.PANELS:
            assert set(found.image[found.of(name)].tolist()) == set(index.tolist())


def test_tracked_maps_are_small_and_of_the_recorded_methods():
    for profile in ("tiny", "cpu"):
        record = results.load_record(profile, "embedding")
        for method in record["methods"] if record else ():
            path = results.folder_of(profile, method, 0) / "map.npz"
            assert path.stat().st_size < 60_000
            assert len(embedding.load_map(profile, method).image) <= 6000


def test_the_figure_has_a_row_for_each_method_and_says_what_is_missing(root):
    maps = {"simclr": embedding.load_map("tiny", "simclr", 0, root), "byol": None}
    figure = embedding.figure_3(maps, ["a", "b", "c", "d"])
    assert len(figure.axes) == 6
    assert [len(axis.collections) for axis in figure.axes] == [2, 2, 2, 0, 0, 0]
    assert {t.get_text() for axis in figure.axes[3:] for t in axis.texts} == {"not\nrecorded\nyet"}
    plt.close(figure)


def test_verdicts_follow_the_gaps(tmp_path):
    def row(center):
        what = ("purity", "silhouette", "distance")
        return {name: [center, center - 0.01, center + 0.01] for name in what}

    centers = {"lowest": 0.6, "highest": 0.5, "random": 0.55,
               "classes of the highest": 0.52, "classes of the lowest": 0.65}  # fmt: skip
    sets = {name: row(center) for name, center in centers.items()}
    both_sizes = {"2000": sets, "1000": sets}
    record = {"methods": {"simclr": both_sizes}, "provenance": {"data": "some"}}
    results.save_json(tmp_path / "tiny" / "embedding.json", record)
    assert {row.verdict for row in embedding.claims(tmp_path)} == {NOT_TESTED}
    results.save_json(tmp_path / "cpu" / "embedding.json", record)
    verdicts = {row.id: row.verdict for row in embedding.claims(tmp_path)}
    assert verdicts["fig-3-simclr-separated"] == REPRODUCED
    assert verdicts["fig-3-simclr-silhouette"] == REPRODUCED
    # 0.6 − 0.65 is less than 0.5 − 0.52: the lowest are less pure than their classes are.
    assert verdicts["fig-3-simclr-separated-beyond"] == INCONCLUSIVE
    sets["classes of the lowest"] = row(0.54)
    beyond = embedding.gap_of(sets, "separated-beyond")
    assert beyond == pytest.approx((0.08, 0.06, 0.10))
    assert verdicts["fig-3-simclr-intermingled"] == REPRODUCED
    # More distant than random images, and the highest less; but by one encoder alone.
    assert verdicts["fig-3-simclr-tight"] == INCONCLUSIVE
    assert verdicts["fig-3-simclr-dispersed"] == INCONCLUSIVE
    # The caption compares the two ends: the highest, at 0.5, are less distant than the lowest.
    assert verdicts["fig-3-simclr-caption"] == INCONCLUSIVE
    assert embedding.gap_of(sets, "caption").value == pytest.approx(-0.1)
    assert verdicts["fig-3-byol-tight"] == NOT_TESTED


def test_the_caption_is_held_to_2_000_images_and_the_text_to_1_000(tmp_path):
    def sets(low, high):
        centers = {"lowest": low, "highest": high, "random": 0.5,
                   "classes of the highest": 0.5, "classes of the lowest": 0.5}  # fmt: skip
        what = ("purity", "silhouette", "distance")
        return {name: {key: [mid, mid, mid] for key in what} for name, mid in centers.items()}

    def gaps():
        return {row.id[len("fig-3-simclr-"):]: [one.value for one in row.found]
                for row in embedding.claims(tmp_path) if "simclr" in row.id}  # fmt: skip

    # In the order of numbers, whatever that of the file.
    found = {"1000": sets(0.7, 0.5), "2000": sets(0.3, 0.9)}
    record = {"methods": {"simclr": found}, "provenance": {"data": "some"}}
    results.save_json(tmp_path / "cpu" / "embedding.json", record)
    first = gaps()
    assert first["caption"] == pytest.approx([0.6])
    assert first["tight"] == pytest.approx([0.2])
    assert first["dispersed"] == pytest.approx([0.4])
    assert first["separated"] == first["silhouette"] == pytest.approx([0.2])
    assert first["intermingled"] == pytest.approx([0])
    # The other pre-training's ranking, at the same sizes.
    again = {"1000": sets(0.6, 0.5), "2000": sets(0.3, 0.4)}
    seeds = {"methods": {"simclr": [{"structure": found}, {"structure": again}]}}
    results.save_json(tmp_path / "cpu" / "both-seeds.json", seeds)
    both = gaps()
    assert both["caption"] == pytest.approx([0.6, 0.1])
    assert both["separated"] == pytest.approx([0.2, 0.1])
    words = {row.id: row.words for row in embedding.claims(tmp_path)}
    assert "2,000 images each" in words["fig-3-simclr-caption"]
    assert "1,000 images each" in words["fig-3-simclr-silhouette"]

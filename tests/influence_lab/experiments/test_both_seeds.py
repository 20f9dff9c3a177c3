"""Both pre-trainings asked alike: neighbours by loops, noise by hand, the record, its rows."""

import shutil

import numpy as np
import pytest
import torch

from influence_lab.experiments import both_seeds, claims, concept, embedding
from influence_lab.experiments.claims import CONTRADICTED, INCONCLUSIVE, NOT_TESTED, REPRODUCED
from influence_lab.experiments.task import Task
from influence_lab.measures.neighbourhoods import nearest, unit
from influence_lab.pretrain.resnets import CIFAR10_MEAN, CIFAR10_STD
from influence_lab.pretrain.views import PixelNoise
from influence_lab.records import results
from influence_ssl import GaussianNoise


def test_noise_on_pixels_is_noise_before_normalisation():
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CIFAR10_MEAN, CIFAR10_STD))
    pixels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([3, 0, 7, 1])
    expected = (GaussianNoise(0.05, 0.2)(pixels, index, 2, 5) - mean) / std
    found = PixelNoise(0.05, 0.2)((pixels - mean) / std, index, 2, 5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert "0.247" in repr(PixelNoise())


def test_shares_of_neighbours_are_those_of_loops():
    rng = np.random.default_rng(0)
    n = 400
    z = unit(rng.normal(size=(n, 6))).numpy()
    labels, uniform, score = rng.integers(3, size=n), rng.random(n) < 0.3, rng.random(n)
    found = both_seeds.bridges(score, nearest(z, 10), labels, uniform)
    cosine = z @ z.T
    np.fill_diagonal(cosine, -2)
    ten = np.argsort(-cosine, axis=1)[:, :10]
    order = np.argsort(score)
    low, high = np.quantile(score, [1 / 3, 2 / 3])
    sets = {
        "highest": order[::-1][: n // 8],
        "lowest": order[: n // 8],
        "plain": [i for i in range(n) if uniform[i] and low < score[i] < high],
    }
    for name, rows in sets.items():
        beside = np.mean([np.mean([uniform[j] for j in ten[i]]) for i in rows])
        other = np.mean([np.mean([labels[j] != labels[i] for j in ten[i]]) for i in rows])
        assert found["uniform"][name].value == pytest.approx(beside)
        assert found["another class"][name].value == pytest.approx(other)
    share = [np.mean([uniform[ten[i]].mean() for i in range(n) if uniform[i] == u]) for u in (1, 0)]
    assert found["drawn together"].value == pytest.approx(share[0] - share[1])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    shutil.copytree(results.results_root() / "tiny", root / "tiny")
    (root / "tiny" / "both-seeds.json").unlink(missing_ok=True)
    line = both_seeds.reproduce(Task("both-seeds", "tiny", root=root, runs=root / "runs"))
    return root, line


def test_the_record_of_scenes_is_made_again(made):
    root, line = made
    again = results.load_record("tiny", "both-seeds", root)
    tracked = results.load_record("tiny", "both-seeds")
    assert again["methods"].keys() == tracked["methods"].keys() == {"simclr"}
    assert line.startswith("rank correlation of two pre-trainings")
    for kind in ("concept", "looks"):
        new, old = (record["methods"]["simclr"][0][kind] for record in (again, tracked))
        assert new.keys() == old.keys()
        for name, numbers in new.items():
            np.testing.assert_allclose(numbers, old[name], atol=0.02, err_msg=name)


def test_structures_are_those_of_figure_3_and_follow_their_ranking(made):
    """The first seed's are the numbers of the record of Figure 3, made by another command."""
    root, _ = made
    for profile, place in (("tiny", root), ("cpu", None)):
        record = results.load_record(profile, "both-seeds", place)
        for method, sizes in results.load_record(profile, "embedding")["methods"].items():
            if method not in both_seeds.SELF:
                continue
            first, *again = (one["structure"] for one in record["methods"][method])
            assert len(again) == (profile == "cpu")
            assert list(first) == list(sizes)
            for size, sets in sizes.items():
                for name, row in first[size].items():
                    numbers = [sets[name][what] for what in row]
                    np.testing.assert_allclose(list(row.values()), numbers, atol=2e-3)
                for other in again:
                    assert first[size]["random"] == other[size]["random"]
                    assert first[size]["lowest"] != other[size]["lowest"]


def test_score_and_loss_are_measured_on_the_same_images(made):
    root, _ = made
    found = results.load_record("tiny", "both-seeds", root)["by loss"]["simclr"]
    assert found.keys() == {"score", "loss"}
    # Scenes are all in the fixed set.
    own = results.load_record("tiny", "both-seeds", root)["methods"]["simclr"][0]["structure"]
    for size, sets in own.items():
        assert found["score"][size]["random"] == found["loss"][size]["random"] == sets["random"]
        assert found["score"][size]["lowest"] != found["loss"][size]["lowest"]


def test_rows_take_both_seeds(tmp_path):
    """BYOL's atypical images: 0.496 [0.484, 0.508] with one seed and 0.519 with the other."""
    record = results.load_record("cpu", "both-seeds")
    results.save_json(tmp_path / "cpu" / "both-seeds.json", record)
    rows = {row.id: row for row in both_seeds.claims(tmp_path)}
    seeds = record["methods"]["byol"]
    assert len(seeds) == 2
    natural = rows["natural-byol"]
    assert [one.value for one in natural.found] == [
        one["looks"]["uniform, lowest minus random"][0] for one in seeds
    ]
    for one in rows.values():
        if one.verdict == CONTRADICTED:
            assert max(len(one.found), one.encoders or 0) > 1
    cars = rows["fig-12-cars"]
    assert [int(one.value) for one in cars.found] == [one["duplicates"]["cars"] for one in seeds]
    record["methods"]["byol"] = seeds[:1]
    results.save_json(tmp_path / "cpu" / "both-seeds.json", record)
    one = {row.id: row for row in both_seeds.claims(tmp_path)}["fig-12-cars"]
    assert one.verdict == INCONCLUSIVE
    assert cars.verdict == CONTRADICTED


def test_galleries_of_other_data_are_stand_ins(tmp_path):
    record = results.load_record("cpu", "both-seeds")
    results.save_json(tmp_path / "cpu" / "both-seeds.json", record)
    rows = {row.id: row for row in both_seeds.claims(tmp_path)}
    assert rows["fig-14-easier"].verdict == rows["fig-15-noise"].verdict == NOT_TESTED
    # The same numbers under a sentence about no data set in particular.
    assert rows["fig-14-easier"].found == rows["clear-simclr"].found
    assert rows["clear-simclr"].verdict in (REPRODUCED, INCONCLUSIVE)


def test_the_order_of_duplicates_is_that_of_counts():
    assert both_seeds.pairwise_hits((18, 10, 3)) == [((18, 18), (10, 18)), ((10, 18), (3, 18))]


def test_the_ledger_finds_the_second_seed(tmp_path):
    record = {"methods": {"byol": [{"concept": {}}, {"concept": {"atypical": [0.519, 0.5, 0.53]}}]}}
    results.save_json(tmp_path / "cpu" / "both-seeds.json", record)
    first = claims.Estimate(0.496, 0.484, 0.508)
    found = claims.both(first, "cpu", "byol", "concept", "atypical", root=tmp_path)
    assert [one.value for one in found] == [0.496, 0.519]
    assert claims.verdict(found, claims.above(0.5)) == INCONCLUSIVE
    assert claims.both(None, "cpu", "byol", "concept", "atypical", root=tmp_path) is None
    assert claims.both(first, "cpu", "simclr", "concept", "atypical", root=tmp_path) == [first]


def test_a_row_says_that_both_rankings_share_the_first_encoder_s_neighbours():
    """Rows of two pre-trainings that a ranking and pixels alone decide share nothing."""
    shared = ("hard-negative", "atypical", "bridges-", "clear-", "easier", "fig-3-")
    rows = [one for module in (both_seeds, concept, embedding) for one in module.claims()]
    said = {one.id: "neighbours under the first run" in one.model for one in rows if one.found}
    assert {name for name, says in said.items() if says} == {
        name for name in said if any(part in name for part in shared)
    }
    assert len(said) > sum(said.values()) > 30

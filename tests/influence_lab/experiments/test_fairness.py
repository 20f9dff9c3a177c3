"""Figures 7 and 8: statistics against brute force, and the whole way on FairFace's real format."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from itertools import combinations

import faces
import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from influence_lab.cli import main
from influence_lab.datasets import standin_fairface
from influence_lab.datasets.fairface import load_fairface
from influence_lab.experiments import claims, fairness, group_shares
from influence_lab.experiments.claims import INCONCLUSIVE, NOT_TESTED, REPRODUCED
from influence_lab.experiments.task import Task
from influence_lab.pretrain.resnets import LargeResNet18, normalise
from influence_lab.pretrain.settings import fairface_settings
from influence_lab.records import results
from influence_ssl import InfluenceError, InfluenceScorer


def test_the_test_of_unevenness_is_exact():
    """Against all 4 of 9 images, each selection equally likely."""
    group = np.repeat([0, 1, 2], [4, 3, 2])
    sizes = np.bincount(group)
    expected = 4 * sizes / 9

    def statistic(counts):
        return ((counts - expected) ** 2 / expected).sum()

    every = [np.bincount(group[list(c)], minlength=3) for c in combinations(range(9), 4)]
    for top in ([4, 0, 0], [2, 1, 1], [1, 1, 2]):
        reached = np.mean([statistic(c) >= statistic(np.array(top)) - 1e-9 for c in every])
        assert group_shares.uneven(np.array(top), sizes) == pytest.approx(reached, abs=0.005)


def test_with_two_groups_unevenness_is_the_hypergeometric_test():
    found = group_shares.uneven(np.array([75, 25]), np.array([1747, 301]))
    law = hypergeom(2048, 301, 100)
    counts = np.arange(101)
    far = abs(counts - law.mean()) >= abs(25 - law.mean()) - 1e-9
    assert found == pytest.approx(law.pmf(counts)[far].sum(), abs=0.001)


def test_looks_are_those_of_the_pixels():
    grouped = standin_fairface(60)
    pixels = grouped.images.images.copy()
    pixels[0] = 128
    pixels[1] = pixels[1] // 2 + pixels[1, :, ::-1] // 2  # its own mirror image, to rounding
    images = type(grouped.images)("x", pixels, grouped.images.labels.copy(), (), ())
    found = group_shares.appearance(images)
    assert found["brightness"][0] == pytest.approx(128 / 255)
    assert found["contrast"][0] == pytest.approx(0)
    assert found["symmetry"][0] == 1.0
    assert found["symmetry"][1] > 0.999
    grey = pixels[5].mean(2)
    by_hand = np.corrcoef(grey.ravel(), grey[:, ::-1].ravel())[0, 1]
    assert found["symmetry"][5] == pytest.approx(by_hand)


def test_planted_groups_come_out():
    """A ranking that puts the night first, and one that knows nothing of it."""
    grouped = standin_fairface(512)
    night = grouped.attributes["light"] == "night"
    rng = np.random.default_rng(0)
    planted = group_shares.groups(grouped, rng.random(512) + night)["columns"][0]
    (row,) = (r for r in planted["values"] if r["value"] == "night")
    assert (row["in_top"], row["images"], planted["top"]) == (night.sum(), night.sum(), 100)
    assert planted["p_uneven"] < 1e-4
    chance = [
        group_shares.groups(grouped, rng.random(512))["columns"][0]["p_uneven"] for _ in range(60)
    ]
    assert np.mean(np.array(chance) < 0.05) < 0.15


def test_highest_and_lowest_are_those_of_the_magnitudes():
    magnitude = np.array([3.0, 1.0, 3.0, 7.0, 0.5])
    assert group_shares.first(magnitude, 3).tolist() == [3, 0, 2]
    assert group_shares.first(-magnitude, 2).tolist() == [4, 1]
    assert [group_shares.top_of(n) for n in (60, 512, 86_744)] == [12, 100, 100]


def test_settings_are_those_of_the_text():
    paper = fairface_settings("paper")
    assert (paper.method, paper.epochs, paper.stem) == ("byol", 200, "large")
    assert paper.augmentation.crop == fairness.FAIRFACE_SIZES["paper"] == 224
    assert fairface_settings("gpu").augmentation.crop == fairness.FAIRFACE_SIZES["gpu"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The recorded tiny encoder, and everything else made again from it."""
    root = tmp_path_factory.mktemp("results")
    place = results.folder_of("tiny", fairness.NAME, 0, root)
    place.mkdir(parents=True)
    tracked = results.folder_of("tiny", fairness.NAME, 0)
    shutil.copy(tracked / "encoder.safetensors", place)
    out = root / "figure.svg"
    assert main(["reproduce", "fig-8", "--profile", "tiny", "--results", str(root),
                 "--out", str(out)]) == 0  # fmt: skip
    assert out.read_text().lstrip().startswith("<?xml")
    return root


def test_the_recorded_result_is_made_again(recorded):
    old, new = (results.load_record("tiny", "fairness", root) for root in (None, recorded))
    for kind in fairness.RANKINGS:
        one, other = (
            {row["value"]: row["in_top"] for row in r["rankings"][kind]["columns"][0]["values"]}
            for r in (old, new)
        )
        # Another processor's rounding may swap neighbours at the edge of the top.
        assert other["night"] == pytest.approx(one["night"], abs=1)
    for which in ("highest", "lowest"):
        assert len(set(old["shown"][which]["names"]) & set(new["shown"][which]["names"])) >= 9
        assert new["appearance"][which]["symmetry"] == pytest.approx(
            old["appearance"][which]["symmetry"], abs=0.02
        )
    old_pictures, new_pictures = (fairness.pictures_of("tiny", root) for root in (None, recorded))
    assert new_pictures["highest"].shape == old_pictures["highest"].shape == (10, 32, 32, 3)


def test_the_record_is_what_the_scorer_says(recorded):
    """Without its own way of handing over the images one by one."""
    grouped = fairness.people("tiny")
    encoder = results.load_encoder("tiny", fairness.NAME, 0)
    magnitude = InfluenceScorer(encoder, progress=False).score(
        normalise(grouped.images.tensor())
    ).magnitude  # fmt: skip
    order = np.argsort(-magnitude, kind="stable")
    record = results.load_record("tiny", "fairness", recorded)
    names = [grouped.images.names[i] for i in order[:10]]
    assert len(set(record["shown"]["highest"]["names"]) & set(names)) >= 9
    counted = Counter(grouped.attributes["light"][order[:100]])
    rows = record["rankings"]["score"]["columns"][0]["values"]
    for row in rows:
        assert row["in_top"] == pytest.approx(counted[row["value"]], abs=1)


def test_both_figures_share_one_scoring(recorded, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fairness, "score", None)
    before = results.load_record("tiny", "fairness", recorded)
    out = tmp_path / "seven.svg"
    assert main(["reproduce", "fig-7", "--profile", "tiny", "--results", str(recorded),
                 "--out", str(out)]) == 0  # fmt: skip
    assert out.is_file()
    assert "among the 100 highest: day" in capsys.readouterr().out
    after = results.load_record("tiny", "fairness", recorded)
    assert before == after


def test_claims_on_the_stand_in_are_not_tested(recorded):
    rows = {row.id: row for row in fairness.claims(recorded)}
    assert {row.verdict for row in rows.values()} == {NOT_TESTED}
    assert rows["fig-8-black"].ours == ""
    assert rows["fig-8-uneven"].ours
    assert len(rows) == len(fairness.claims(recorded / "nothing")) == 11


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """FairFace's format under data/, and a training short enough for a test."""
    home = tmp_path_factory.mktemp("home")
    folder = faces.write(home / "data" / "fairface", n=140)
    (folder / "train" / "7.jpg").unlink()
    (folder / "train" / "9.jpg").write_bytes((folder / "train" / "9.jpg").read_bytes()[:200])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFLUENCE_SSL_DATA", str(home / "data"))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        short = fairface_settings("tiny")
        patch.setattr(fairness, "fairface_settings", lambda profile: short)
        where = ["--profile", "gpu", "--results", str(home / "results"), "--runs",
                 str(home / "runs"), "--out", str(home / "eight.svg")]  # fmt: skip
        assert main(["reproduce", "fig-8", *where]) == 0
    return home


def test_fairface_in_its_own_format_goes_all_the_way(real):
    record = results.load_record("gpu", "fairness", real / "results")
    assert record["images"] == 138
    assert not record["stand in"]
    assert (record["left out"]["missing"], record["left out"]["unreadable"]) == (1, 1)
    assert "train/7.jpg" in record["left out"]["in words"]
    assert "train/9.jpg" in record["left out"]["in words"]
    columns = {c["column"]: c for c in record["rankings"]["score"]["columns"]}
    assert set(columns) == {"race", "gender", "age"}
    race = columns["race"]
    assert [row["value"] for row in race["values"]] == sorted(r["value"] for r in race["values"])
    assert sum(row["in_top"] for row in race["values"]) == record["top"] == 27
    # Six of 138 shown, races of the names that the CSV gives.
    table = {f"train/{k}.jpg": faces.VALUES["race"][k % 7] for k in range(1, 141)}
    for which in ("highest", "lowest"):
        extremes = record["shown"][which]
        assert [table[name] for name in extremes["names"]] == extremes["groups"]
    assert fairness.pictures_of("gpu", real / "results")["highest"].shape == (10, 64, 64, 3)
    assert record["provenance"]["data"].startswith("FairFace (padding 0.25, 64 pixels) train (138")
    training = json.loads((real / "results/gpu/fairface-byol-0/training.json").read_text())
    assert training["settings"]["method"] == "byol"


def test_claims_on_fairface_are_decided(real):
    rows = {row.id: row for row in fairness.claims(real / "results")}
    record = results.load_record("gpu", "fairness", real / "results")
    race = record["rankings"]["score"]["columns"][0]["values"]
    for value in race:
        name = f"fig-8-{value['value'].lower().replace(' ', '-')}"
        if value["value"] in fairness.RACES:
            low, high = (end / value["base_rate"] for end in value["interval"])
            more = value["value"] in ("Black", "Middle Eastern")
            holds = low > 1 if more else high < 1
            assert rows[name].verdict == (REPRODUCED if holds else INCONCLUSIVE)
            assert math.isclose(float(rows[name].ours), value["ratio"], abs_tol=1e-3)
    ratio = {v["value"]: v["share"] / v["base_rate"] for v in race}
    asian = (ratio["East Asian"], ratio["Southeast Asian"])
    steps = [min(ratio["Black"], ratio["Middle Eastern"]) - ratio["White"]]
    steps += [ratio["White"] - one for one in asian]
    assert rows["fig-8-white"].found[0].value in [pytest.approx(step) for step in steps]
    assert all(row.verdict != NOT_TESTED for row in rows.values())
    assert all(line["ours"] != "–" for line in claims.lines(rows.values()))


def test_chance_is_a_draw_without_replacement():
    """Against counts of simulated draws; the table has 86,744 rows."""
    assert sum(fairness.FAIRFACE.values()) == 86_744
    counts = list(fairness.FAIRFACE.values())
    drawn = np.random.default_rng(0).multivariate_hypergeometric(counts, 100, 20_000)
    found = fairness.by_chance(100)
    for column, (mean, low, high) in zip(drawn.T, found.values(), strict=True):
        assert mean == pytest.approx(column.mean(), abs=0.15)
        assert np.mean(column < low) < 0.03
        assert np.mean(column > high) < 0.03
        assert np.mean((column >= low) & (column <= high)) == pytest.approx(0.96, abs=0.02)


def test_figures_have_seven_groups(real):
    record = results.load_record("gpu", "fairness", real / "results")
    axis = fairness.figure_8(record).axes[0]
    assert len(axis.patches) == 7
    shares = [round(bar.get_width(), 6) for bar in axis.patches]
    assert shares == sorted(shares)
    seven = fairness.figure_7(record, fairness.pictures_of("gpu", real / "results"))
    titles = [axis.get_title() for part in seven.subfigs for axis in part.axes]
    assert len(titles) == 20
    assert titles[0].replace("\n", " ") == record["shown"]["highest"]["groups"][0].replace("_", " ")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda root: None, r"no fairface_label_train\.csv in .*github\.com/joojs/fairface"),
        (lambda root: shutil.rmtree(faces.write(root, 3)), "no folder fairface-img-margin025"),
    ],
)
def test_what_is_missing_is_said(make, says, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INFLUENCE_SSL_DATA", str(tmp_path))
    make(tmp_path)
    arguments = ["--profile", "gpu", "--results", str(tmp_path), "--runs", str(tmp_path)]
    assert main(["reproduce", "fig-7", *arguments]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    with pytest.raises(InfluenceError, match=says):
        load_fairface()


def test_one_missing_data_set_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    made = []

    def fake(task):
        if task.result in ("fig-7", "fig-8"):
            raise InfluenceError("no faces")
        made.append(task.result)
        return "done"

    monkeypatch.setattr("influence_lab.experiments.catalogue.reproduce", fake)
    assert main(["reproduce", "all", "--profile", "gpu"]) == 1
    shown = capsys.readouterr()
    assert "fig-9" in made
    assert "fig-7, profile gpu: not made: no faces" in shown.out
    assert "fig-7, fig-8 could not be made" in shown.err
    assert main(["reproduce", "fig-8"]) == 1


def test_larger_images_train_the_larger_stem(tmp_path):
    """Profile paper's code path, in small."""
    grouped = standin_fairface(64)
    short = replace(fairface_settings("tiny"), stem="large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fairness, "fairface_settings", lambda profile: short)
        task = Task("fig-8", "tiny", root=tmp_path / "results", runs=tmp_path / "runs")
        ranked = fairness.rankings(task, grouped.images)
    encoder = results.load_encoder("tiny", fairness.NAME, 0, tmp_path / "results")
    assert isinstance(encoder, LargeResNet18)
    assert encoder.conv1.weight.shape == (4, 3, 7, 7)
    assert all(torch.isfinite(torch.from_numpy(values)).all() for values in ranked.values())

"""Trainings on random halves: together as alone, resumed as whole, measured as the core does."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from devices import Asked
from sklearn.neighbors import NearestNeighbors

from influence_lab.cli import main
from influence_lab.datasets import Images
from influence_lab.experiments import left_out, memorisation, memorisation_effects, small_encoders
from influence_lab.experiments import predictors as candidates
from influence_lab.experiments.memorisation import (
    DRAWS,
    MEASURED,
    NEIGHBOURS,
    PLANS,
    QUANTITIES,
    REGIMES,
    Measurement,
    Plan,
    Pool,
    Study,
    half,
)
from influence_lab.experiments.predictors import Predictors, of_encoder, of_pixels
from influence_lab.experiments.small_encoders import (
    AlignmentOfViews,
    Recipe,
    SmallEncoder,
    View,
    _Trained,
    train_together,
    training_views,
)
from influence_lab.experiments.task import Task
from influence_lab.pretrain.losses import nt_xent
from influence_lab.pretrain.optim import learning_rate
from influence_lab.records import results
from influence_ssl import InfluenceError, InfluenceScorer, Invariance
from influence_ssl.encoders.resnet import CIFAR10_MEAN, CIFAR10_STD

SMALL = Recipe(noise=True, width=4, hidden=8, output=4, epochs=5, batch=8)
PLAN = Plan(pool=64, queries=10, trainings=24, together=12, references=4, epochs=1)
COLOURED = replace(PLAN, together=24, references=1, data="cifar10", regimes=("crops",))


@pytest.fixture(params=[(1, 8, 8), (3, 32, 32)], ids=["grey", "colour"])
def images(request):
    return torch.rand(24, *request.param, generator=torch.Generator().manual_seed(0))


def weights(encoder):
    return torch.cat([p.detach().flatten() for p in encoder.parameters()])


def trained_alone(recipe, images, rows, seed):
    """The textbook loop."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _Trained(recipe, tuple(images.shape[1:])).to(images.dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    views = [batch[0] for batch in training_views(recipe, images, rows[None], [generator])]
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=recipe.weight_decay)
    for step, batch in enumerate(views):
        optimiser.param_groups[0]["lr"] = learning_rate(
            step, len(views), len(views) // 10, recipe.lr, 0.0
        )
        optimiser.zero_grad()
        a, b = net(batch.to(images.dtype)).chunk(2)
        nt_xent(a, b, recipe.temperature).backward()
        optimiser.step()
    return net.encoder


@pytest.mark.parametrize("noise", [False, True])
def test_encoders_trained_together_are_those_trained_alone(images, noise):
    recipe, exact = replace(SMALL, noise=noise, flips=not noise), images.double()
    members = [np.arange(16), np.arange(8, 24), np.arange(0, 16)]
    together = train_together(recipe, exact, members, [5, 9, 7])
    for encoder, rows, seed in zip(together, members, [5, 9, 7], strict=True):
        alone = trained_alone(recipe, exact, rows, seed)
        torch.testing.assert_close(weights(encoder), weights(alone), rtol=1e-7, atol=1e-9)
    assert not torch.allclose(weights(together[0]), weights(together[2]))


def test_a_training_is_a_function_of_its_images_and_its_seed(images):
    rows = [np.arange(8), np.arange(8, 16)]
    first, again = (train_together(SMALL, images, rows, [1, 2]) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(weights(one), weights(other))
    changed = images.clone()
    changed[:8] = 1 - changed[:8]
    left = train_together(SMALL, changed, rows, [1, 2])
    assert not torch.allclose(weights(left[0]), weights(first[0]))
    assert torch.equal(weights(left[1]), weights(first[1]))


@pytest.mark.parametrize("drawn", [1, 2 * 16 * 64 * 3, 2**22])
def test_each_epoch_visits_every_image_once_in_both_views(monkeypatch, drawn):
    """Also where the views of an epoch, or of three, are drawn at a time."""
    monkeypatch.setattr(small_encoders, "DRAWN_AT_ONCE", drawn)
    shades = torch.arange(16.0).view(16, 1, 1, 1).expand(-1, 1, 8, 8)
    members = np.stack([np.arange(16), np.arange(15, -1, -1)])
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    views = list(training_views(replace(SMALL, noise=False), shades, members, generators))
    views = torch.stack(views)
    assert views.shape == (10, 2, 16, 1, 8, 8)
    for shown in views.mean((3, 4, 5)).round().long().unbind(1):
        assert torch.equal(shown[:, :8], shown[:, 8:])
        for epoch in shown[:, :8].reshape(5, 16):
            assert sorted(epoch.tolist()) == list(range(16))
        assert len({tuple(row.tolist()) for row in shown}) == 10


def test_flips_mirror_half_of_the_views_and_change_no_crop():
    """A ramp from left to right falls in a mirrored view, and rises in any crop."""
    ramp = torch.arange(32.0).expand(200, 3, 32, 32).contiguous()
    plain, flipped = (View(replace(SMALL, noise=False, flips=flips)) for flips in (False, True))
    index = torch.arange(200)
    crops, views = (view(ramp, index, 0, 0) for view in (plain, flipped))
    mirrored = views[..., 0].mean((1, 2)) > views[..., -1].mean((1, 2))
    assert 70 < mirrored.sum() < 130
    assert torch.equal(torch.where(mirrored.view(-1, 1, 1, 1), views.flip(3), views), crops)
    assert (crops[..., 0].mean((1, 2)) < crops[..., -1].mean((1, 2))).all()


@pytest.mark.parametrize(("side", "count"), [(8, 2), (16, 2), (32, 3), (64, 4)])
def test_convolutions_halve_the_sides_down_to_four(side, count):
    encoder = SmallEncoder(2, (3, side, side))
    seen = []
    for convolution in encoder.convolutions:
        convolution.register_forward_hook(lambda _module, _x, y: seen.append(tuple(y.shape[1:])))
    z = encoder(torch.rand(5, 3, side, side))
    assert z.shape == (5, encoder.num_features) == (5, 2 * seen[-1][0])
    assert seen[-1] == (2 ** (count), 4, 4)
    assert len(seen) == count
    for one, other in itertools.pairwise(seen):
        assert other == (2 * one[0], one[1] // 2, one[2] // 2)


@pytest.mark.parametrize("shape", [(1, 8, 16), (3, 28, 28), (1, 4, 4), (1, 24, 24)])
def test_other_sides_are_refused(shape):
    with pytest.raises(InfluenceError, match="square images with a side of 8, 16, 32 and so on"):
        SmallEncoder(2, shape)


def test_sets_of_different_sizes_and_small_ones_are_refused(images):
    for rows in ([np.arange(8), np.arange(9)], [np.arange(7)]):
        with pytest.raises(InfluenceError, match="give sets of one size, at least a batch"):
            train_together(SMALL, images, rows, [0] * len(rows))


def test_a_training_that_diverges_is_named(images):
    wild = replace(SMALL, lr=1e30)
    with pytest.raises(InfluenceError, match="seed 4: the weights are not finite; lower"):
        train_together(wild, images, [np.arange(8)], [4])


def test_tensors_of_a_device_meet_no_others_and_are_asked_for_nothing(images):
    """Training asks once at its end and measuring once, whatever the number of epochs."""
    pool, counts = Pool(PLAN, 0), []
    for epochs in (1, 3):
        recipe = replace(SMALL, flips=True, epochs=epochs)
        with Asked() as asked:
            rows = [np.arange(8), np.arange(8, 16)]
            encoders = train_together(recipe, images.to("meta"), rows, [1, 2])
            assert {p.device.type for one in encoders for p in one.parameters()} == {"meta"}
            if images.shape[1] == 1:
                assert Measurement(pool, recipe, "meta")(encoders).shape == (2, 3, 74)
        assert not asked.mixed
        counts.append(asked.counts)
    assert counts[0] == counts[1]
    assert 0 < sum(counts[0].values()) <= 2


def test_views_of_an_example_do_not_depend_on_its_batch(images):
    index, view = torch.arange(24), View(SMALL)
    whole = view(images, index, 3, 1)
    back = view(images.flip(0), index.flip(0), 3, 1).flip(0)
    assert torch.equal(whole, back)
    assert not torch.equal(whole, view(images, index, 4, 1))
    encoder = SmallEncoder(4, tuple(images.shape[1:]))
    scores = [
        InfluenceScorer(
            encoder, AlignmentOfViews(SMALL), batch_size=size, draws=2, progress=False
        ).score(images)
        for size in (5, 24)
    ]
    assert scores[0].values == pytest.approx(scores[1].values, rel=1e-3)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    found = Study(PLAN, Task("memorisation", "tiny", root=folder, runs=folder))
    memorisation.carry_out(found, progress=False)
    return found


def test_a_stopped_experiment_goes_on_to_the_same_record(study, tmp_path):
    task = Task("memorisation", "tiny", root=tmp_path, runs=tmp_path)
    first = Study(PLAN, task)
    assert first.advance()
    done = {regime: len(values) for regime, values in first.trainings.values.items()}
    assert sorted(done.values()) == [0, 12]
    memorisation.carry_out(Study(PLAN, task), progress=False)
    resumed = Study(PLAN, task)
    assert not resumed.advance()
    for regime in REGIMES:
        values = resumed.trainings.values[regime]
        assert values.shape == (24, 3, 74)
        assert np.array_equal(values, study.trainings.values[regime])


def test_another_plan_or_seed_does_not_mix_with_a_record(study):
    task = study.task
    with pytest.raises(InfluenceError, match=r"npz: was made with another plan and recipes; move"):
        Study(replace(PLAN, epochs=2), task)
    with pytest.raises(InfluenceError, match="another seed; move"):
        Study(PLAN, replace(task, seed=1))
    assert len(Study(replace(PLAN, trainings=99), task).missing()) == 2


def test_the_recorded_trainings_are_those_of_the_plans(monkeypatch):
    """Plan, recipes and seed are the file's; of other data, the data alone are another."""
    plan, task = PLANS["digits"]["cpu"], Task("memorisation", "cpu")
    assert Study(plan, task).recorded == list(REGIMES)
    monkeypatch.setattr(memorisation, "load", coloured)
    with pytest.raises(InfluenceError, match="npz: was made with another data_sha256; move"):
        Study(plan, task)


def coloured(name, split="train"):
    """As many random images as the plan takes, in CIFAR-10's form."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (90, 32, 32, 3), dtype=np.uint8)
    return Images("squares", pixels, rng.integers(0, 3, 90), ("",) * 90, tuple("abc"))


def test_colours_have_a_record_of_their_own_with_the_regimes_of_the_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(memorisation, "load", coloured)
    monkeypatch.setattr(left_out, "RESAMPLES", 20)
    monkeypatch.setattr(candidates, "DRAWS", 1)
    monkeypatch.setattr(memorisation, "PLANS", {"cifar10": {"tiny": COLOURED}})
    arguments = ["reproduce", "memorisation-cifar10", "--profile", "tiny", "--runs", str(tmp_path)]
    out = tmp_path / "figure.svg"
    assert main([*arguments, "--results", str(tmp_path), "--out", str(out)]) == 0
    found = json.loads((tmp_path / "tiny/memorisation-cifar10.json").read_text())
    assert found["trainings"] == {"crops": 24}
    assert list(found["power"]) == list(found["predictors"]) == ["crops"]
    assert found["provenance"]["data"] == "squares train (64 images, and 10 outside the pool)"
    task = Task("memorisation-cifar10", "tiny", root=tmp_path, runs=tmp_path)
    one = Study(COLOURED, task)
    assert not one.advance()
    both = Study(replace(COLOURED, regimes=tuple(REGIMES)), task)
    assert both.missing() == ["crops and noise"]
    assert both.trainings.values["crops"].shape == (24, 3, 74)
    assert all(recipe.flips for recipe in one.recipes.values())
    shade = one.pool.images.mean((0, 2, 3))
    raw = torch.from_numpy(one.pool.part.images.mean((0, 1, 2)) / 255)
    mean, std = (torch.tensor(row) for row in (CIFAR10_MEAN, CIFAR10_STD))
    torch.testing.assert_close(shade, ((raw - mean) / std).float(), rtol=1e-3, atol=1e-4)


def test_two_processes_are_not_at_the_same_trainings(study):
    lock = memorisation.run_folder("memorisation", "tiny", 0, study.task.runs) / "trainings.lock"
    with (
        memorisation.locked(lock, wait=False),
        pytest.raises(InfluenceError, match="another process works on these training runs"),
    ):
        memorisation.carry_out(study, progress=False)


def test_halves_are_known_from_their_numbers(study):
    inside = study.inside("crops")
    assert (inside.sum(1) == 32).all()
    assert np.array_equal(np.flatnonzero(inside[7]), half(0, 7, 64))
    assert len({tuple(row) for row in inside}) == 24
    assert not np.array_equal(half(0, 7, 64), half(1, 7, 64))


def test_what_is_measured_is_the_core_s_loss_and_the_neighbours_labels(monkeypatch):
    pool = Pool(PLAN, 0)
    recipe = REGIMES["crops and noise"]
    torch.manual_seed(1)
    encoders = [SmallEncoder(4), SmallEncoder(4)]
    measurement = Measurement(pool, recipe)
    found = measurement(encoders).astype(np.float64)
    monkeypatch.setattr(memorisation, "MEASURED_AT_ONCE", 1)
    assert measurement(encoders) == pytest.approx(found, rel=1e-3, abs=1e-3)
    index, labels = torch.arange(74), pool.part.labels
    objectives = (Invariance(), DRAWS["noise"]), (AlignmentOfViews(recipe), DRAWS["alignment"])
    for encoder, rows in zip(encoders, found, strict=True):
        with torch.no_grad():
            for row, (objective, draws) in zip(rows, objectives, strict=False):
                drawn = [objective(encoder, (pool.images,), index, d, MEASURED)
                         for d in range(draws)]  # fmt: skip
                assert row == pytest.approx(torch.stack(drawn).mean(0).numpy(), rel=2e-3)
            z = encoder(pool.images).numpy()
        near = NearestNeighbors(n_neighbors=NEIGHBOURS + 1, metric="cosine").fit(z[:64])
        for i, places in enumerate(near.kneighbors(z, return_distance=False)):
            others = [place for place in places if place != i][:NEIGHBOURS]
            assert rows[2, i] == pytest.approx((labels[others] != labels[i]).mean(), abs=1e-3)


def test_predictors_are_per_encoder_and_of_other_draws_than_the_truth(study):
    encoders, recipe = study.references("crops")[:2], study.recipes["crops"]
    images, labels = study.pool.images[:64], study.pool.part.labels[:64]
    made = [of_encoder(encoder, recipe, images, labels, seed)
            for seed, encoder in enumerate(encoders)]  # fmt: skip
    found = {name: np.stack([one[name] for one in made]) for name in made[0]}
    assert set(QUANTITIES) <= set(found)
    assert all(np.isfinite(rows).all() for rows in (*found.values(), *of_pixels(images).values()))
    truth = Measurement(study.pool, recipe)(encoders)[:, :2, :64].astype(np.float64)
    for kind, measured in zip(("noise loss", "alignment loss"), truth[0], strict=True):
        assert np.corrcoef(found[kind][0], measured)[0, 1] > 0.2
        assert not np.allclose(found[kind][0], measured, rtol=0.01)
    # Each value is the exact leverage times n: together, the effective dimension of at most n.
    assert (found["noise score, exact Fisher"].mean(1) < 4 * 64).all()


def test_numbers_of_encoders_are_recorded_one_by_one(study, tmp_path, monkeypatch):
    own = shutil.ignore_patterns("memorisation-predictors.npz")
    shutil.copytree(study.folder, tmp_path / "tiny", ignore=own)
    again, seen = Study(PLAN, replace(study.task, root=tmp_path)), []

    def numbers(encoder, recipe, images, labels, seed):
        if len(seen) == 6:
            raise KeyboardInterrupt
        seen.append((recipe.noise, seed))
        return {"noise loss": np.full(len(images), 10.0 * recipe.noise + seed)}

    monkeypatch.setattr(Study, "references", lambda self, regime: [None] * 4)
    monkeypatch.setattr(candidates, "of_encoder", numbers)
    with pytest.raises(KeyboardInterrupt):
        Predictors(again).complete()
    resumed = Predictors(again)
    assert [resumed.done(regime) for regime in REGIMES] == [4, 2]
    del seen[:4]
    resumed.complete()
    assert seen == [(True, seed) for seed in range(4)]
    for regime, first in zip(REGIMES, (0, 10), strict=True):
        rows = Predictors(again).rows[regime]
        assert rows["noise loss"][:, 0].tolist() == [first + seed for seed in range(4)]
        assert rows["pixel mean"].shape == (1, 64)


def test_encoders_are_averaged_in_disjoint_groups():
    rows = np.arange(32.0).reshape(16, 2)
    assert np.array_equal(memorisation_effects.averaged(rows, 1), rows)
    fours = memorisation_effects.averaged(rows, 4)
    assert np.array_equal(fours, rows.reshape(4, 4, 2).mean(1))
    assert np.array_equal(memorisation_effects.averaged(rows[:1], 16), rows[:1])


def test_reproduce_records_power_and_draws(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memorisation, "PLANS", {"digits": {"tiny": PLAN}})
    monkeypatch.setattr(left_out, "RESAMPLES", 40)
    monkeypatch.setattr(candidates, "DRAWS", 1)
    out, root = tmp_path / "figure.svg", study.task.root
    arguments = ["reproduce", "memorisation", "--profile", "tiny", "--results", str(root)]
    here = results.device_name("cpu")
    monkeypatch.setattr(results, "device_name", lambda device: f"another {device}")
    assert main([*arguments, "--runs", str(root), "--out", str(out)]) == 0
    assert "memorisation of the noise loss, crops: score" in capsys.readouterr().out
    assert out.read_text().lstrip().startswith("<?xml")
    text = (root / "tiny" / "memorisation.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["trainings"] == dict.fromkeys(REGIMES, 24)
    assert found["provenance"]["device"] == f"{here}; another cpu"
    for regime in REGIMES:
        for quantity in QUANTITIES:
            assert found["power"][regime][quantity].keys() >= {"reliability", "detectable"}
            rows = found["predictors"][regime][quantity]
            assert rows["noise score, LoGra"].keys() >= {"1", "4", "given the loss"}
            assert rows["pixel mean"].keys() >= {"1", "minus the loss"}
    assert main(["reproduce", "memorisation", "--profile", "paper"]) == 1
    assert "no plan for profile paper; use one of tiny" in capsys.readouterr().err

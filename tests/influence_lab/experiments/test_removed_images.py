"""The losses of the images that Figure 6 removes: as defined, and effects by least squares."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from influence_lab.datasets import make_scenes
from influence_lab.experiments import removed_images as ri
from influence_lab.experiments.removal import NOTHING, Plan, Training, kept, name_of
from influence_lab.experiments.removal_losses import DRAWS, LOSSES, PoolLosses, image_losses
from influence_lab.pretrain.resnets import cifar_resnet18, normalise, representation
from influence_lab.pretrain.settings import Augmentation
from influence_lab.records import results
from influence_ssl import GaussianNoise, InfluenceError, Invariance, Scores

STEP = 1 / 12  # half a step of the recorded log losses
STILL = Augmentation(
    crop=32, flip=0.0, jitter=0.0, grey=0.0, blur=0.0, solarise=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def scene():
    torch.manual_seed(0)
    return cifar_resnet18(4, num_classes=4).eval(), make_scenes(24, 3).images


def test_noise_and_label_losses_are_the_library_s_and_pytorch_s(scene):
    encoder, images = scene
    index = np.arange(100, 124)
    found = image_losses(encoder, images, index, Augmentation())
    x, rows = normalise(images.tensor()), torch.from_numpy(index)
    with torch.no_grad():
        noise = [
            Invariance(GaussianNoise())(representation(encoder), (x,), rows, draw, 0)
            for draw in range(DRAWS)
        ]
        label = F.cross_entropy(
            encoder(x), torch.from_numpy(images.labels.copy()), reduction="none"
        )
    assert found["noise"] == pytest.approx(torch.stack(noise).mean(0).numpy(), abs=1e-5)
    assert found["label"] == pytest.approx(label.numpy(), abs=1e-5)
    assert set(found) == set(LOSSES)
    assert set(image_losses(cifar_resnet18(4).eval(), images, index, STILL)) == {
        "noise", "alignment",
    }  # fmt: skip


def test_alignment_compares_two_views_by_the_given_augmentation(scene):
    """Crops and mirrors leave a plain image as it is; another hue or a real image's crop do not."""
    encoder, images = scene
    colours = np.random.default_rng(0).integers(0, 256, (24, 1, 1, 3), np.uint8)
    plain = replace(images, images=np.broadcast_to(colours, images.images.shape).copy())
    crop = replace(STILL, flip=0.5, least_scale=0.2)
    jitter = replace(crop, jitter=1.0)

    def alignment(images, views):
        return image_losses(encoder, images, np.arange(24), views)["alignment"]

    assert np.abs(alignment(plain, crop)).max() < 1e-5
    assert alignment(plain, jitter).mean() > 1e-3
    assert alignment(images, crop).mean() > 1e-3
    assert np.array_equal(alignment(images, crop), alignment(images, crop))


def test_the_record_keeps_names_and_refuses_other_data(tmp_path):
    path = tmp_path / "losses.npz"
    losses = PoolLosses(path, {"data": "a", "pool": 3})
    losses.add("b-run", {"noise": np.array([1, 2, 3], np.float32)})
    losses.add("a-run", {"noise": np.ones(3, np.float32), "label": np.zeros(3, np.float32)})
    losses.add("c-run", {"noise": np.array([1e-3, 2, 20], np.float32)})
    again = PoolLosses(path, {"data": "a", "pool": 3})
    assert list(again.rows) == ["a-run", "b-run", "c-run"]
    assert again.rows["b-run"]["noise"] == pytest.approx([1, 2, 3], rel=0.09)
    assert again.rows["a-run"]["label"] == pytest.approx([1e-6] * 3, rel=1e-6)
    assert again.rows["c-run"]["noise"] == pytest.approx([1e-3, 2, 20], rel=0.09)
    read = {name: {k: v.tolist() for k, v in row.items()} for name, row in again.rows.items()}
    again.write()
    for name, row in PoolLosses(path).rows.items():
        for kind, values in row.items():
            assert values.tolist() == pytest.approx(read[name][kind], rel=0, abs=0)
    with pytest.raises(InfluenceError, match=r"losses.npz: was made with another data; move"):
        PoolLosses(path, {"data": "b", "pool": 3})
    before = path.read_bytes()
    with pytest.raises(InfluenceError, match="d-run: not all losses are finite"):
        again.add("d-run", {"noise": np.array([1, np.nan, 3], np.float32)})
    assert path.read_bytes() == before


def by_least_squares(log_loss, out, counts):
    """m with a dummy for every image and run, each image as often as it is counted."""
    t, p = out.shape
    rows, target = [], []
    for i in np.repeat(np.arange(p), counts):
        for run in range(t):
            row = np.zeros(1 + p + t)
            row[[0, 1 + i, 1 + p + run]] = out[run, i], 1, 1
            rows.append(row)
            target.append(log_loss[run, i])
    return np.linalg.lstsq(np.array(rows), np.array(target), rcond=None)[0][0]


@pytest.mark.parametrize("seed", range(4))
def test_the_effect_is_that_of_least_squares_with_dummies(seed):
    rng = np.random.default_rng(seed)
    log_loss, out = rng.normal(size=(4, 9)), rng.random((4, 9)) < 0.4
    counts = rng.multinomial(9, np.full(9, 1 / 9), 3)
    found = ri.left_out_effect(log_loss, out, counts.astype(np.float64))
    expected = [by_least_squares(log_loss, out, row) for row in counts]
    assert found == pytest.approx(expected, rel=1e-9)
    plain = by_least_squares(log_loss, out, np.ones(9, int))
    assert ri.left_out_effect(log_loss, out) == pytest.approx([plain], rel=1e-9)


def test_a_planted_effect_is_found_where_images_and_encoders_differ_more():
    rng = np.random.default_rng(0)
    out = rng.random((6, 4000)) < 0.4
    noise = rng.normal(size=out.shape) * 0.1
    hard, bad = 3 * rng.normal(size=4000), 2 * rng.normal(size=(6, 1))
    found = ri.estimated(0.05 * out + hard + bad + noise, out)
    assert found.low < 0.05 < found.high
    assert found.high - found.low < 0.02
    nothing = ri.estimated(hard + bad + noise, out)
    assert nothing.low < 0 < nothing.high
    assert np.isnan(ri.left_out_effect(noise, np.zeros_like(out)))[0]


def test_absolute_effects_are_least_squares_on_the_losses_themselves(tmp_path, monkeypatch):
    plan = Plan(pool=40, amounts=(10,), epochs=1, seeds=(0, 42), methods=("simclr",))
    magnitude = np.random.default_rng(1).permutation(60) + 1.0
    made = Scores(-magnitude, np.full(60, np.nan), np.arange(60), None, {})
    scores, pool = results.compress(made, {}), plan.indices(60)
    path, rng = tmp_path / "tiny" / "removal-losses.npz", np.random.default_rng(2)
    losses = PoolLosses(path, {})
    for run in plan.trainings():
        losses.add(name_of(run), {"noise": rng.random(40).astype(np.float32) + 1})
    monkeypatch.setitem(ri.PLANS, "tiny", plan)
    monkeypatch.setattr(results, "load_scores", lambda *_, **__: scores)
    found = ri.in_absolute_terms("tiny", "simclr", "noise", tmp_path)
    trial = [run for run in plan.trainings() if run.order in (NOTHING, "random")]
    stored = PoolLosses(path).rows
    values = np.array([stored[name_of(run)]["noise"] for run in trial], np.float64)
    out = np.array([~np.isin(pool, kept(run, scores, pool)) for run in trial])
    decile = ri.deciles(magnitude[pool])
    for d, one in enumerate(found):
        own = decile == d
        expected = by_least_squares(values[:, own], out[:, own], np.ones(own.sum(), int))
        assert one.value == pytest.approx(expected, rel=1e-6, nan_ok=True)
    monkeypatch.setattr(results, "load_scores", lambda *_, **__: None)
    assert ri.in_absolute_terms("tiny", "simclr", "noise", tmp_path) is None


def test_panels_groups_and_deciles_by_hand(tmp_path):
    plan = Plan(pool=40, amounts=(10,), epochs=1, seeds=(0, 42), methods=("simclr",))
    magnitude = np.random.default_rng(1).permutation(60) + 1.0
    made = Scores(-magnitude, np.full(60, np.nan), np.arange(60), None, {})
    scores, pool = results.compress(made, {}), plan.indices(60)
    losses = PoolLosses(tmp_path / "x.npz", {})
    rng = np.random.default_rng(2)
    for run in plan.trainings():
        out = ~np.isin(pool, kept(run, scores, pool))
        # An encoder that is worse for all images is none of removal's doing.
        values = np.exp(np.where(out, 0.5, 0.0) + (run.order == "highest") * (out + 0.7))
        losses.add("-".join(map(str, run)), {"noise": values.astype(np.float32)})
    losses.add("simclr-random-10-42", {"noise": rng.random(40).astype(np.float32) + 1})
    whole = ri.panel(losses, plan, scores, "simclr", "noise")
    assert whole.log_loss.shape == whole.out.shape == (8, 40)
    assert whole.out.sum(1).tolist() == [0, 10, 10, 10] * 2
    first = ri.as_a_group(whole, "highest", 10)[0]
    assert first == pytest.approx(1.5, abs=STEP)
    assert ri.as_a_group(whole, "lowest", 10)[0] == pytest.approx(0.5, abs=STEP)
    highest = whole.out[whole.runs.index(Training("simclr", "highest", 10, 0))]
    assert set(np.flatnonzero(highest)) == set(np.argsort(whole.magnitude)[-10:])
    assert (ri.deciles(whole.magnitude)[highest] >= 7).all()
    random_42 = whole.runs.index(Training("simclr", "random", 10, 42))
    seen, change = ~whole.out[random_42], 1.5 * highest - whole.log_loss[random_42]
    expected = change[highest & seen].mean() - change[~highest & seen].mean()
    assert ri.as_a_group(whole, "highest", 10)[1] == pytest.approx(expected, abs=STEP)
    empty = ri.panel(PoolLosses(tmp_path / "none.npz"), plan, scores, "simclr", "noise")
    assert ri.by_decile(empty) is None
    assert ri.at_random(empty) is None

"""The families of Table 4: what they depend on, and their pixels against torchvision."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as vision
from scipy.stats import pearsonr, spearmanr

from influence_lab.datasets import make_scenes
from influence_lab.experiments import families, scored
from influence_lab.experiments.claims import (
    CONTRADICTED,
    INCONCLUSIVE,
    REPRODUCED,
    sentences,
)
from influence_lab.measures.agreement import Estimate, around
from influence_lab.pretrain import views
from influence_lab.pretrain.resnets import normalise
from influence_lab.pretrain.settings import Augmentation
from influence_lab.pretrain.views import ALWAYS, Augmented
from influence_lab.records.keys import key
from influence_ssl import Identity, InfluenceError, InfluenceScorer, Invariance
from influence_ssl.encoders.loading import import_function
from influence_ssl.perturbations import example_generator

FAMILIES = ("flip_grey_blur", "flip_jitter_grey", "flip_jitter_blur", "flip_blur", "crop")
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


@pytest.fixture(scope="module")
def pixels():
    return make_scenes(40, 0).images.tensor().float() / 255


@pytest.mark.parametrize("name", [*FAMILIES, "gaussian"])
def test_a_view_depends_on_seed_index_and_draw_alone(name, pixels):
    family = import_function(f"influence_lab.pretrain.views:{name}", "--perturbation")
    x, index = normalise((255 * pixels).byte()), torch.arange(40) * 7
    whole = family(x, index, 1, 3)
    assert whole.shape == x.shape
    assert whole.isfinite().all()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(family(x[order], index[order], 1, 3), whole[order])
    assert torch.equal(family(x[5:6], index[5:6], 1, 3), whole[5:6])
    assert torch.equal(family(x.double(), index, 1, 3).float(), whole)
    for other in ((index + 1, 1, 3), (index, 2, 3), (index, 1, 4)):
        assert (family(x, *other) - whole).abs().amax((1, 2, 3)).gt(1e-3).sum() > 10


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_works_on_pixels_whatever_the_normalisation(name, pixels):
    """n(a(u)) for two normalisations n gives the same pixels a(u)."""
    steps = getattr(views, name).steps
    plain = Augmented(*steps, **PLAIN)(pixels, torch.arange(40), 0, 0)
    mean, std = (0.3, 0.5, 0.7), (0.2, 2.0, 0.1)
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    other = Augmented(*steps, mean=mean, std=std)((pixels - m) / s, torch.arange(40), 0, 0)
    torch.testing.assert_close(other * s + m, plain, atol=2e-5, rtol=0)
    assert plain.min() >= -1e-6
    assert plain.max() <= 1 + 1e-6


def uniform(generator, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(1, generator=generator).item()


@pytest.mark.parametrize(("settings", "share"), [(ALWAYS, 1.0), (Augmentation(), 0.2)])
def test_flip_grey_and_blur_are_torchvisions(pixels, settings, share):
    """Each example's draws in their order: grey, blur and its deviation, flip."""
    family = Augmented("flip", "grey", "blur", settings=settings, **PLAIN)
    found = family(pixels, torch.arange(40), 2, 9)
    seen = set()
    for i, image in enumerate(pixels):
        draws = example_generator(9, i, 2)
        grey, blur = uniform(draws) < share, uniform(draws) < share
        expected = vision.rgb_to_grayscale(image, 3) if grey else image
        if blur:
            expected = vision.gaussian_blur(expected, [7, 7], [uniform(draws, 0.1, 2.0)])
        flip = uniform(draws) < 0.5
        expected = vision.horizontal_flip(expected) if flip else expected
        torch.testing.assert_close(found[i], expected, atol=1e-4, rtol=0)
        seen.add((grey, blur, flip))
    assert len(seen) >= (2 if share == 1 else 6)


def test_jitter_is_torchvisions(pixels):
    """Probability, three strengths, turn of the hue, order of the four; then grey and flip."""
    family = Augmented("flip", "jitter", "grey", settings=Augmentation(), **PLAIN)
    found = family(pixels, torch.arange(40), 0, 1)
    for i, image in enumerate(pixels):
        draws = example_generator(1, i, 0)
        jitter = uniform(draws) < 0.8
        bright, contrast, saturation = (uniform(draws, 0.2, 1.8) for _ in range(3))
        turn = uniform(draws, -0.2, 0.2)
        parts = [
            lambda u, f=bright: vision.adjust_brightness(u, f),
            lambda u, f=contrast: vision.adjust_contrast(u, f),
            lambda u, f=saturation: vision.adjust_saturation(u, f),
            lambda u, f=turn: vision.adjust_hue(u, f),
        ]
        order = torch.randperm(4, generator=draws).tolist()
        expected = image
        for step in order if jitter else ():
            expected = parts[step](expected)
        if uniform(draws) < 0.2:
            expected = vision.rgb_to_grayscale(expected, 3)
        if uniform(draws) < 0.5:
            expected = vision.horizontal_flip(expected)
        # torchvision rounds its grey weights in the fourth digit.
        torch.testing.assert_close(found[i], expected, atol=2e-3, rtol=0)


def test_a_crop_of_a_ramp_is_a_ramp_of_the_boxs_width():
    """A linear ramp in x, cropped to a share w of its width, rises w times as fast."""
    ramp = ((torch.arange(32) + 0.5) / 32).expand(1, 3, 32, 32).contiguous()
    x = ramp.expand(50, 3, 32, 32)
    found = Augmented("crop", **PLAIN)(x, torch.arange(50), 0, 0)
    # The middle: at the edges of a box at the edge, the border's own pixel is repeated.
    slopes = (found[:, 0, 16, 20] - found[:, 0, 16, 11]) / 9 * 32
    for i, slope in enumerate(slopes.tolist()):
        draws = example_generator(0, i, 0)
        area = uniform(draws, 0.08, 1.0)
        shape = math.exp(uniform(draws, math.log(3 / 4), math.log(4 / 3)))
        assert slope == pytest.approx(min(1.0, math.sqrt(area * shape)), abs=1e-5)
    assert slopes.std() > 0.1


def test_an_image_left_alone_scores_exactly_zero(pixels):
    """Half of the images are not flipped, and come back bit for bit (four standard errors)."""
    flip = Augmented("flip")
    x = normalise((255 * pixels).byte()).repeat(10, 1, 1, 1)
    same = (flip(x, torch.arange(400), 0, 0) == x).flatten(1).all(1).numpy()
    assert abs(same.mean() - 0.5) < 4 * math.sqrt(0.25 / 400)
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2), torch.nn.ReLU(), torch.nn.Flatten())
    scores = InfluenceScorer(encoder, Invariance(flip), Identity(), progress=False).score(x)
    np.testing.assert_array_equal(scores.magnitude == 0, same)


def test_an_order_between_encoders_needs_every_pair(monkeypatch):
    """By hand: what a pair's best loses by is its least lead, and all pairs decide together."""
    crops, verdicts = {"": (0.9, 0.95), "-pearson": (0.7, 0.9)}, {}

    def pair(crop):
        others = {name: Estimate(0.8, 0.79, 0.81) for name in families.FAMILIES}
        return others | {"crop": around(crop, 0.001)}

    def across(profile, root=None, statistic=""):
        return dict(zip(("a b", "a c"), map(pair, crops[statistic]), strict=True))

    def between(one, other, profile, root=None, statistic=""):
        return pair(crops[statistic][1]) if other == families.AGAIN else {}

    monkeypatch.setattr(families, "across", across)
    monkeypatch.setattr(families, "between", between)
    rows = {row.id: row for row in families.claims()}
    for kind in ("across", "training"):
        for name in (f"table-4-crop-flips-{kind}", f"table-4-gaussian-first-{kind}"):
            verdicts[name] = [rows[name + suffix].verdict for suffix in families.STATISTICS]
    assert verdicts == {
        "table-4-crop-flips-across": [REPRODUCED, INCONCLUSIVE],
        "table-4-gaussian-first-across": [CONTRADICTED, INCONCLUSIVE],
        "table-4-crop-flips-training": [REPRODUCED, REPRODUCED],
        "table-4-gaussian-first-training": [CONTRADICTED, CONTRADICTED],
    }
    leads = rows["table-4-gaussian-first-across"].found
    assert [one.value for one in leads] == pytest.approx([-0.1, -0.15])


def test_the_paper_s_order_is_tested_between_two_runs_of_one_method_as_its_numbers_are():
    listed = {one.id: one for one in sentences() if one.display == "paper-table-4"}
    tested = {test for one in listed.values() for test in one.tests}
    assert tested
    assert all(test.endswith("-training-pearson") for test in tested)


def test_a_number_is_not_contradicted_where_the_paper_does_not_state_what_it_compares():
    rows = {row.id: row for row in families.claims()}
    for suffix in families.STATISTICS:
        for name in families.FAMILIES:
            row = rows[f"table-4-{name}-training{suffix}"]
            assert row.verdict == INCONCLUSIVE
            assert ("strengths" in row.why) == (name != "gaussian")
            assert "whose scores are correlated" in row.why
        assert len(rows[f"table-4-gaussian-training{suffix}"].found) == 2


def test_two_draws_of_the_noise_give_the_printed_number_for_one_of_the_methods():
    rows = {row.id: row for row in families.claims()}
    names = [key("score", families.FAMILIES["gaussian"].perturbation, seed) for seed in (0, 1)]
    verdicts = {}
    for method in families.OTHERS:
        vectors = scored.vectors_of("cpu", method, 0)
        (found,) = rows[f"table-4-gaussian-again-pearson-{method}"].found
        assert found.value == pytest.approx(pearsonr(*(vectors[name] for name in names)).statistic)
        verdicts[method] = rows[f"table-4-gaussian-again-pearson-{method}"].verdict
    assert verdicts == {"simclr": INCONCLUSIVE, "byol": INCONCLUSIVE, "barlow": REPRODUCED}


def test_both_statistics_are_taken_between_the_recorded_scores():
    first, second = (scored.vectors_of("cpu", m, 0) for m in ("simclr", "barlow"))
    name = key("score", families.FAMILIES["crop"].perturbation, 0)
    x, y = first[name], second[name]
    expected = {"": spearmanr(x, y).statistic, "-pearson": pearsonr(x, y).statistic}
    for suffix, value in expected.items():
        found = families.between(("simclr", 0), ("barlow", 0), "cpu", statistic=suffix)
        assert found["crop"].value == pytest.approx(value)
    assert "crop" not in families.between(("simclr", 0), ("simclr", 1), "cpu")
    assert set(families.between(("simclr", 0), families.AGAIN, "cpu")) == set(families.FAMILIES)


def test_unknown_steps_are_named_and_repr_is_the_constructor():
    with pytest.raises(InfluenceError, match="one or more of crop, flip"):
        Augmented("flip", "solarise")
    with pytest.raises(InfluenceError, match="one or more"):
        Augmented()
    family = Augmented("flip", "blur", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert repr(eval(repr(family))) == repr(family)
    assert "blur=1.0" in repr(family)
    assert "jitter=0.0" in repr(family)

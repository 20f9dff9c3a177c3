"""Linear datamodeling scores: brute force, a linear truth, and the record of a few trainings."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from influence_lab.cli import main
from influence_lab.experiments import datamodels, memorisation
from influence_lab.experiments.datamodels import (
    COSINE,
    GRADIENTS,
    INFLUENCE,
    NT_XENT,
    PAIRS,
    QUANTITIES,
    all_pairs,
    linear_datamodeling_score,
    of_encoder,
    ridge,
)
from influence_lab.experiments.memorisation import Plan, Study
from influence_lab.experiments.predictors import DRAWS
from influence_lab.experiments.small_encoders import (
    AlignmentOfViews,
    NTXentOfViews,
    Recipe,
    SmallEncoder,
    View,
)
from influence_lab.experiments.task import Task
from influence_ssl import GaussianNoise

PLAN = Plan(pool=64, queries=10, trainings=56, together=28, references=2, epochs=1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_score_is_the_mean_rank_correlation(rng):
    predicted, losses = rng.normal(size=(2, 5, 40)), rng.normal(size=(5, 40))
    predicted += losses
    found = linear_datamodeling_score(predicted, losses)
    pairs = ((row, y) for one in predicted for row, y in zip(one, losses, strict=True))
    every = [spearmanr(row, y).statistic for row, y in pairs]
    assert found.value == pytest.approx(np.mean(every))
    low, high = found.estimate[1:]
    drawn = []
    for _ in range(400):
        t, q = rng.integers(0, 40, 40), rng.integers(0, 5, 5)
        rows = [spearmanr(one[k, t], losses[k, t]).statistic for one in predicted for k in q]
        drawn.append(np.mean(rows))
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.04)


def test_a_linear_truth_is_predicted_wholly(rng):
    inside = np.array([rng.permutation(16) < 8 for _ in range(120)])
    effects = rng.normal(size=(3, 16))
    losses = effects @ inside.T + 5
    score = linear_datamodeling_score((effects @ inside.T)[None], losses)
    assert score.value == pytest.approx(1)
    found = ridge(inside[:80], losses[:, :80])
    model = linear_datamodeling_score((found @ inside[80:].T)[None], losses[:, 80:])
    assert model.value > 0.99
    noise = rng.normal(size=(3, 80)) * 100
    weak = ridge(inside[:80], noise)
    assert abs(weak).max() < abs(np.linalg.lstsq(inside[:80] - 0.5, noise.T, rcond=None)[0]).max()


def test_all_pairs_of_draws_are_averaged(rng):
    queries, kept = (torch.from_numpy(rng.normal(size=(n, DRAWS, 5))) for n in (3, 6))
    expected = [
        [np.mean([-float(q[a] @ i[b]) for a in range(DRAWS) for b in range(DRAWS)]) for i in kept]
        for q in queries
    ]
    stored = [x.flatten(1) / DRAWS**0.5 for x in (queries, kept)]
    np.testing.assert_allclose(all_pairs(*stored), expected, rtol=1e-10)


def test_numbers_of_an_encoder_are_those_of_autograd():
    """Products of gradients: the training images' of two views, the queries' of the noise."""
    torch.manual_seed(0)
    encoder = SmallEncoder(4).double()
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    recipe = Recipe(noise=False)
    found = of_encoder(encoder, recipe, images, 9, 3)
    noise, index = GaussianNoise(), torch.arange(12) + 10_000

    weights = list(encoder.parameters())

    def gradients(losses):
        rows = (torch.autograd.grad(loss, weights, retain_graph=True) for loss in losses)
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])

    expected = 0
    for draw in range(DRAWS):
        views = AlignmentOfViews(recipe)(encoder, (images[:9],), torch.arange(9), draw, 3)
        noisy = noise(images, index, draw, 3)
        losses = 1 - torch.cosine_similarity(encoder(images), encoder(noisy))
        expected = expected - gradients(losses) @ gradients(views).T / DRAWS
    rows = found["noise loss"]
    scale = float(abs(expected).max())
    np.testing.assert_allclose(rows[GRADIENTS], expected, rtol=1e-6, atol=1e-8 * scale)
    z = encoder(images).detach()
    cosine = torch.cosine_similarity(z[:, None], z[None, :9], dim=2)
    np.testing.assert_allclose(rows[COSINE], -cosine, rtol=1e-9)
    assert set(found) == set(QUANTITIES)
    assert not np.allclose(rows[PAIRS], rows[INFLUENCE], rtol=0.01)
    assert np.corrcoef(rows[PAIRS].ravel(), rows[INFLUENCE].ravel())[0, 1] > 0.3
    assert not np.allclose(rows[NT_XENT], rows[INFLUENCE], rtol=0.01)


def test_nt_xent_is_the_cross_entropy_of_the_pair_among_the_bank():
    """Example by example, and of whichever examples are in the batch."""
    torch.manual_seed(0)
    encoder, recipe = SmallEncoder(4).double(), Recipe(noise=False, temperature=0.5)
    images = torch.rand(5, 1, 8, 8).double()
    bank = torch.nn.functional.normalize(torch.randn(5, encoder.num_features).double(), dim=1)
    index = torch.tensor([3, 0, 4])
    found = NTXentOfViews(recipe, bank)(encoder, (images[index],), index, 1, 7)
    for row, i in enumerate(index.tolist()):
        one, two = (View(recipe)(images[i : i + 1], index[row : row + 1], 2 + k, 7) for k in (0, 1))
        others = torch.cat([encoder(two), bank[[j for j in range(5) if j != i]]])
        logits = torch.cosine_similarity(encoder(one), others)[None] / 0.5
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0]))
        assert found[row].item() == pytest.approx(expected.item())
    alone = NTXentOfViews(recipe, bank)(encoder, (images[4:],), index[2:], 1, 7)
    torch.testing.assert_close(alone, found[2:])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("datamodels")
    study = Study(PLAN, Task("memorisation", "tiny", root=root, runs=root))
    memorisation.carry_out(study, progress=False)
    return root


def test_reproduce_scores_draws_and_goes_on(trained, monkeypatch, capsys):
    """Draws and intervals have tests of their own; few of them are enough here."""
    monkeypatch.setattr(datamodels, "DRAWS", 1)
    monkeypatch.setattr(datamodels, "RESAMPLES", 20)
    monkeypatch.setattr(datamodels, "SIZES", (1, 2))
    monkeypatch.setattr(datamodels, "GROUP", 1)
    monkeypatch.setattr(memorisation, "PLANS", {"digits": {"tiny": PLAN}})
    out = trained / "figure.svg"
    arguments = ["reproduce", "datamodels", "--profile", "tiny", "--results", str(trained)]
    arguments += ["--runs", str(trained), "--out", str(out)]
    assert main(arguments) == 0
    assert "crops and noise: influence" in capsys.readouterr().out
    assert out.read_text().lstrip().startswith("<?xml")
    text = (trained / "tiny" / "datamodels.json").read_text()
    record = json.loads(text, parse_constant=pytest.fail)
    assert record["held out"] == {"crops": 24, "crops and noise": 24}
    study = Study(PLAN, Task("datamodels", "tiny", root=trained, runs=trained))
    losses = study.trainings.values["crops"][32:, 1, 64:].T.astype(float)
    made = datamodels.numbers(study, "crops")["alignment loss"][INFLUENCE][:, 64:]
    predicted = made.mean(0) @ study.inside("crops")[32:].T
    expected = np.mean([spearmanr(*rows).statistic for rows in zip(predicted, losses, strict=True)])
    found = record["regimes"]["crops"]["alignment loss"]["outside the pool"]
    assert found["scores"][INFLUENCE]["2"][0] == pytest.approx(expected, abs=1e-3)
    assert found["scores"][INFLUENCE].keys() == {"1", "2"}
    assert found["ridge"].keys() == {"25"}
    gap = found["differences"]["influence minus gradients"]["2"][0]
    assert gap == pytest.approx(expected - found["scores"][GRADIENTS]["2"][0], abs=1e-3)
    # Once more, from what is kept: no encoder is trained.
    monkeypatch.setattr(Study, "references", lambda *_: pytest.fail("trained again"))
    assert main(arguments) == 0
    monkeypatch.setattr(datamodels, "GROUP", 2)
    assert main(arguments) == 1
    assert "was made with another encoders" in capsys.readouterr().err


def test_too_few_trainings_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memorisation, "PLANS", {"digits": {"tiny": PLAN}})
    arguments = ["reproduce", "datamodels", "--profile", "tiny", "--results", str(tmp_path)]
    assert main([*arguments, "--runs", str(tmp_path)]) == 1
    refused = "contains 0 training runs of a regime; first run influence-lab reproduce memorisation"
    assert refused in capsys.readouterr().err

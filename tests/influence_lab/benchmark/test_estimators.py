"""Other ways to spend draws, against gradients and noise taken apart by hand."""

import pytest
import torch
from torch import nn

from influence_lab.benchmark.estimators import ESTIMATORS, Antithetic, Estimator, MeanLoss
from influence_ssl import EmpiricalFisher, GaussianNoise, InfluenceScorer


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5))
    return net.double()


@pytest.fixture
def images():
    return torch.randn(12, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_opposite_draws_cancel_and_pairs_are_independent(images):
    noise, index = Antithetic(0.05, 0.2), torch.arange(len(images))
    drawn = [noise(images, index, draw, 7) - images - 0.05 for draw in range(4)]
    torch.testing.assert_close(drawn[0], -drawn[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(drawn[2], -drawn[3], rtol=0, atol=1e-12)
    plain = GaussianNoise(0.05, 0.2)
    for pair in (0, 1):
        torch.testing.assert_close(drawn[2 * pair] + images + 0.05, plain(images, index, pair, 7))
    assert abs(torch.corrcoef(torch.stack([drawn[0].flatten(), drawn[2].flatten()]))[0, 1]) < 0.1


@pytest.mark.parametrize("draw", [0, 2])
def test_the_mean_loss_has_the_mean_gradient(encoder, images, draw):
    """By autograd alone: one draw after the other, each with its own two passes."""
    index = torch.arange(len(images))
    objective = MeanLoss(3)
    losses = objective(encoder, (images,), index, draw, 5)
    weight = encoder[0].weight
    found = torch.autograd.grad(losses[4], weight)[0]
    mean = torch.zeros_like(weight)
    for one in range(3 * draw, 3 * draw + 3):
        noisy = GaussianNoise()(images, index, one, 5)
        distance = 1 - torch.cosine_similarity(encoder(images[4:5]), encoder(noisy[4:5]))
        mean += torch.autograd.grad(distance.sum(), weight)[0] / 3
    torch.testing.assert_close(found, mean)


def test_scores_of_a_mean_loss_are_those_of_mean_gradients(encoder, images):
    settings = {"curvature": EmpiricalFisher(0.1), "progress": False}
    found = InfluenceScorer(encoder, MeanLoss(2), **settings).score(images).magnitude
    index, weights = torch.arange(len(images)), [encoder[0].weight, encoder[3].weight]
    rows = []
    for i in range(len(images)):
        row = torch.zeros(sum(weight.numel() for weight in weights), dtype=torch.float64)
        for draw in (0, 1):
            noisy = GaussianNoise()(images, index, draw, 0)
            distance = 1 - torch.cosine_similarity(encoder(images[[i]]), encoder(noisy[[i]]))
            parts = torch.autograd.grad(distance.sum(), weights)
            row += torch.cat([part.flatten() for part in parts]) / 2
        rows.append(row)
    g = torch.stack(rows)
    curvature = g.T @ g / len(g) + 0.1 * torch.eye(g.shape[1])
    expected = (g * torch.linalg.solve(curvature, g.T).T).sum(1)
    torch.testing.assert_close(torch.from_numpy(found), expected)


def test_passes_count_the_images_that_the_encoder_sees(encoder, images):
    for one in ESTIMATORS:
        seen = []
        hook = encoder.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(len(x[0])))
        draws, objective = one.settings.get("draws", 1), one.settings["objective"]
        for draw in range(draws):
            objective(encoder, (images,), torch.arange(len(images)), draw, 0)
        hook.remove()
        assert sum(seen) / (2 * len(images)) == one.passes
    assert len({one.name for one in ESTIMATORS}) == len(ESTIMATORS)
    assert Estimator(True, False, 2).passes == 2

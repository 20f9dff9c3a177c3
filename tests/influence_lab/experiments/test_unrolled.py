"""Derivatives through a training against trainings with moved weights, and the record."""

import json

import pytest
import torch
from torch import nn

from influence_lab.cli import main
from influence_lab.experiments import unrolled
from influence_lab.experiments.unrolled import EXACT, LIBRARY, UNROLLED, Plan, Training


@pytest.fixture(params=["linear", "convolutional"])
def training(request):
    views = torch.rand(4, 2, 6, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    return Training(unrolled.encoders()[request.param], views, rate=0.5)


def final(training, w):
    *_, θ = training.path(w)
    return θ


def test_the_loss_is_the_trainings_own(training):
    """With equal weights it is the NT-Xent that the book's encoders are trained with."""
    from influence_lab.pretrain.losses import nt_xent

    one, two = training.views[0]
    found = training.loss(training.start, torch.ones(6).double(), training.views[0])
    a, b = (training.encode(training.start, x) for x in (one, two))
    expected = nt_xent(a, b, unrolled.RECIPE.temperature)
    torch.testing.assert_close(found, expected)


def test_replaying_gives_the_derivative_of_retraining(training):
    λ = torch.randn(3, len(training.start), generator=torch.Generator().manual_seed(1)).double()
    found, step = training.replayed(λ), 1e-5
    for i in range(6):
        moved = torch.zeros(6).double()
        moved[i] = step
        slope = (final(training, 1 + moved) - final(training, 1 - moved)) / (2 * step)
        torch.testing.assert_close(found[:, i], λ @ slope, rtol=1e-5, atol=1e-8)


def test_a_weight_of_zero_is_a_training_without_the_image(training):
    w = torch.tensor([1, 1e-13, 1, 1, 1e-13, 1]).double()
    kept = torch.tensor([[0, 2, 3, 5], [0, 1, 2, 3]])
    found = training.retrained(kept)
    torch.testing.assert_close(found[0], final(training, w), rtol=1e-7, atol=1e-9)
    assert not torch.allclose(found[1], found[0])


def test_the_exact_influence_is_the_derivative_of_a_minimum():
    """Of a strictly convex loss: its minimiser moves with w as the implicit derivative says."""

    class Quadratic(Training):
        def loss(self, θ, w, views):
            target = views[0].flatten(1)[:, : len(θ)]
            return (w * (θ - target).square().sum(1)).sum() / w.sum()

    views = torch.rand(1, 2, 5, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    training = Quadratic(nn.Linear(3, 1, bias=False).double(), views, 0.1)
    target = views[0, 0].flatten(1)[:, :3]
    λ = torch.eye(3).double()
    found = unrolled.influences(training, target.mean(0), λ)
    least = min(unrolled.DAMPING)
    expected = (target - target.mean(0)).T / 5
    torch.testing.assert_close(torch.from_numpy(found[least]), expected, rtol=2 * least, atol=0)


def test_reproduce_compares_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(unrolled, "PLANS", {"tiny": Plan(8, 3, 4, 24, (0.01,))})
    monkeypatch.setattr(unrolled, "DAMPING", (0.1, float("inf")))
    out = tmp_path / "figure.svg"
    arguments = ["reproduce", "unrolled", "--profile", "tiny", "--results", str(tmp_path)]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "linear, steps of 0.01: unrolled training" in capsys.readouterr().out
    assert out.read_text().lstrip().startswith("<?xml")
    record = json.loads(
        (tmp_path / "tiny" / "unrolled.json").read_text(), parse_constant=pytest.fail
    )
    assert record["encoders"].keys() == {"linear", "convolutional"}
    for answers in record["encoders"].values():
        (shares,) = answers.values()
        assert [found["left out"] for found in shares.values()] == [1, 4]
        # Few small steps are smooth in the weights: the derivative predicts most of it.
        assert shares["0.05"]["scores"][UNROLLED][0] > 0.6
        assert shares["0.05"]["scores"].keys() == {UNROLLED, EXACT, LIBRARY}
    assert main([*arguments[:3], "gpu", *arguments[4:]]) == 1
    assert "unrolled: no plan for profile gpu" in capsys.readouterr().err

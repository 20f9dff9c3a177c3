"""Losses and LARS against those of lightly, an independent library."""

import pytest
import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.utils.lars import LARS as TheirLARS

from influence_lab.pretrain.losses import barlow_twins, byol_regression, nt_xent
from influence_lab.pretrain.optim import LARS


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(0)
    # lightly's Barlow Twins adds 1e-5 to variances, which these make negligible.
    a = 1000 * torch.randn(24, 10, generator=generator, dtype=torch.float64)
    b = a + 500 * torch.randn(24, 10, generator=generator, dtype=torch.float64)
    return a.requires_grad_(), b.requires_grad_()


def agree(ours, theirs, views):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    for mine, other in zip(
        torch.autograd.grad(ours, views), torch.autograd.grad(theirs, views), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
def test_nt_xent(views, temperature):
    agree(nt_xent(*views, temperature), NTXentLoss(temperature)(*views), views)


def test_byol(views):
    agree(byol_regression(*views), 2 + 2 * NegativeCosineSimilarity()(*views), views)


@pytest.mark.parametrize("off_diagonal", [0.0051, 0.1])
def test_barlow_twins(views, off_diagonal):
    agree(barlow_twins(*views, off_diagonal), BarlowTwinsLoss(off_diagonal)(*views), views)


def test_lars_without_clip():
    torch.manual_seed(0)
    start, gradients = torch.randn(6, 5).double(), torch.randn(4, 6, 5).double()
    ends = []
    for kind, name in ((LARS, "eta"), (TheirLARS, "trust_coefficient")):
        weight = torch.nn.Parameter(start.clone())
        optimiser = kind([weight], lr=0.3, momentum=0.9, weight_decay=0.01, **{name: 0.02})
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimiser.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=0)

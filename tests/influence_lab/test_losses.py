"""Losses, optimiser and schedule against slow float64 computations from the papers' formulas."""

import math

import numpy as np
import pytest
import torch

from influence_lab.losses import barlow_twins, byol_regression, nt_xent
from influence_lab.pretrain.optim import LARS, learning_rate, momentum_of_target


@pytest.fixture
def views():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(7, 5))
    return a, a + 0.3 * rng.normal(size=(7, 5))


def tensors(views):
    return [torch.from_numpy(v) for v in views]


def test_nt_xent_is_the_sum_of_equation_1(views):
    z = np.concatenate(views)
    z = z / np.sqrt((z**2).sum(1, keepdims=True))
    n, temperature = 7, 0.2
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = sum(math.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(z[i] @ z[j] / temperature) / others)
    ours = nt_xent(*tensors(views), temperature)
    assert abs(float(ours) - total / (2 * n)) < 1e-12


def test_byol_is_the_squared_distance_of_unit_vectors(views):
    p, z = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in views)
    assert abs(float(byol_regression(*tensors(views))) - ((p - z) ** 2).sum(1).mean()) < 1e-12


def test_barlow_twins_is_the_sum_over_the_correlation_matrix(views):
    a, b = views
    total = 0.0
    for i in range(5):
        for j in range(5):
            c = np.corrcoef(a[:, i], b[:, j])[0, 1]
            total += (1 - c) ** 2 if i == j else 0.0051 * c**2
    assert abs(float(barlow_twins(*tensors(views), 0.0051)) - total) < 1e-12


def test_lars_follows_its_formula_for_three_steps():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    bias = torch.nn.Parameter(torch.randn(4, dtype=torch.float64))
    optimiser = LARS([weight, bias], lr=0.3, momentum=0.9, weight_decay=0.1, eta=0.02)
    w, b = weight.detach().numpy().copy(), bias.detach().numpy().copy()
    mw, mb = np.zeros_like(w), np.zeros_like(b)
    for step in range(3):
        weight.grad = torch.full_like(weight, step + 1.0)
        bias.grad = torch.full_like(bias, step - 1.0)
        optimiser.step()
        g = np.full_like(w, step + 1.0)
        trust = 0.02 * np.linalg.norm(w) / (np.linalg.norm(g) + 0.1 * np.linalg.norm(w))
        mw = 0.9 * mw + trust * (g + 0.1 * w)
        mb = 0.9 * mb + (step - 1.0)
        w, b = w - 0.3 * mw, b - 0.3 * mb
    np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-12)
    np.testing.assert_allclose(bias.detach().numpy(), b, rtol=1e-12, atol=1e-15)


def test_schedules_at_their_ends():
    rates = [learning_rate(s, 100, 10, 0.4, 0.003) for s in range(101)]
    assert rates[0] == 0.003
    assert rates[10] == 0.4 == max(rates)
    assert rates[5] == pytest.approx((0.4 + 0.003) / 2)
    assert rates[55] == pytest.approx(0.2)
    assert rates[100] == pytest.approx(0, abs=1e-15)
    assert momentum_of_target(0, 100, 0.99) == pytest.approx(0.99)
    assert momentum_of_target(50, 100, 0.99) == pytest.approx(0.995)
    assert momentum_of_target(100, 100, 0.99) == 1.0

"""Losses, optimiser and schedule against slow float64 computations from the papers' formulas."""

import math

import numpy as np
import pytest
import torch

from influence_lab.pretrain.losses import barlow_twins, byol_regression, nt_xent
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


def lars_by_hand(weights, gradients, rates, decay, clip):
    """solo-learn's rules in plain loops: weights and momenta after each gradient and rate."""
    weights = [w.copy() for w in weights]
    momenta = [np.zeros_like(w) for w in weights]
    for step, rate in enumerate(rates):
        for w, m, g in zip(weights, momenta, gradients[step], strict=True):
            length = math.sqrt(sum(float(x) ** 2 for x in w.ravel()))
            slope = math.sqrt(sum(float(x) ** 2 for x in g.ravel()))
            update = g
            if w.ndim > 1 and length != 0 and slope != 0:
                local = 0.02 * length / (slope + decay * length + 1e-8)
                if clip:
                    local = min(local / rate, 1) if rate else 1
                update = local * (g + decay * w)
            m *= 0.9
            m += update
            w -= rate * m
    return weights


@pytest.mark.parametrize("clip", [False, True])
def test_lars_follows_its_rules_step_by_step(clip):
    rng = np.random.default_rng(0)
    shapes = [(4, 3), (4,), (2, 3, 3, 3), (5, 2), (3, 3)]
    weights = [rng.normal(size=shape) for shape in shapes]
    weights[3][:] = 0
    rates = [0.0, 0.3, 1e-4, 0.5]
    # Large and small gradients, so that the clip takes hold in some steps and not in others.
    sizes = [1.0, 1e-3, 1e-3, 10.0]
    gradients = [[size * rng.normal(size=shape) for shape in shapes] for size in sizes]
    for step in gradients:
        step[4][:] = 0
    parameters = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in weights]
    optimiser = LARS(parameters, lr=1.0, momentum=0.9, weight_decay=0.1, eta=0.02, clip=clip)
    for rate, step in zip(rates, gradients, strict=True):
        optimiser.param_groups[0]["lr"] = rate
        for p, g in zip(parameters, step, strict=True):
            p.grad = torch.from_numpy(g)
        optimiser.step()
    expected = lars_by_hand(weights, gradients, rates, 0.1, clip)
    other = lars_by_hand(weights, gradients, rates, 0.1, not clip)
    for p, e in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), e, rtol=1e-12, atol=1e-15)
    assert not np.allclose(expected[0], other[0])
    np.testing.assert_array_equal(expected[4], weights[4])


def test_lars_takes_a_closure_as_every_optimiser_does():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimiser = LARS([weight], lr=0.1)

    def closure():
        optimiser.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss.detach()

    assert float(optimiser.step(closure)) == 4
    assert float(optimiser.step(closure)) < 4


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

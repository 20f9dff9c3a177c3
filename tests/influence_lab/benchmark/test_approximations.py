"""Each approximation of the benchmark against dense matrices and plain autograd, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

from influence_lab.benchmark import timing
from influence_lab.benchmark.approximations import (
    EKFAC,
    KFAC,
    DiagonalFisher,
    GlobalProjection,
    PCALoGra,
    ScaledLoGra,
    Stored,
)
from influence_lab.benchmark.exact import Gram
from influence_lab.benchmark.factors import kronecker_factors
from influence_ssl import (
    EmpiricalFisher,
    GaussianNoise,
    InfluenceError,
    InfluenceScorer,
    Invariance,
    LoGra,
    Relative,
)

N, λ = 30, 0.01


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.tanh_(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = Net().double()
    net.norm.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture(scope="module")
def images():
    scale = torch.linspace(0.3, 2, N, dtype=torch.float64)[:, None, None, None]
    return scale * torch.randn(
        N, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture(scope="module")
def pieces(net, images):
    """Per image and layer: its gradient (O, I), and input and output gradient per position."""
    noisy = GaussianNoise()(images, torch.arange(N), 0, 0)
    found = {"conv": [], "head": []}
    for pair in zip(images, noisy, strict=True):
        before = net.conv(torch.stack(pair)).detach().requires_grad_()
        features = torch.tanh(net.norm(before)).mean((2, 3))
        out = net.head(features)
        loss = 1 - F.cosine_similarity(out[:1], out[1:], eps=0.0).sum()
        at_conv, at_head = torch.autograd.grad(loss, [before, out])
        padded = F.pad(torch.stack(pair), (1, 1, 1, 1))
        places = [(v, r, c) for v in (0, 1) for r in range(3) for c in range(3)]
        a = torch.stack(
            [padded[v, :, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3].flatten() for v, r, c in places]
        )
        d = torch.stack([at_conv[v, :, r, c] for v, r, c in places])
        found["conv"].append((a, d))
        found["head"].append((features.detach(), at_head))
    return found


@pytest.fixture(scope="module")
def gradients(pieces):
    return {name: torch.stack([d.T @ a for a, d in rows]) for name, rows in pieces.items()}


@pytest.fixture(scope="module")
def factors(net, images):
    return kronecker_factors(net, images, Invariance(), batch_size=7)


def magnitude(net, images, curvature):
    return (
        InfluenceScorer(net, curvature=curvature, batch_size=8, progress=False)
        .score(images)
        .magnitude
    )


def dense(blocks, gradients):
    """Σ over layers of gᵀ(M + λI)⁻¹g with an explicit inverse."""
    total = np.zeros(N)
    for name, matrix in blocks.items():
        g = gradients[name].flatten(1)
        inverse = torch.linalg.inv(matrix + λ * torch.eye(len(matrix)).double())
        total += torch.einsum("ni,ij,nj->n", g, inverse, g).numpy()
    return total


def test_the_gram_is_the_core_s_exact_fisher_at_every_damping(net, images):
    gram = Gram()
    magnitude(net, images, gram)
    for c in (0.01, 1.0):
        exact = InfluenceScorer(net, curvature=EmpiricalFisher(Relative(c)), progress=False).score(
            images
        )
        damping = c * gram.mean_eigenvalue
        assert exact.provenance["damping"] == pytest.approx([damping])
        np.testing.assert_allclose(gram.magnitude(damping), exact.magnitude, rtol=1e-8)


def test_factors_are_those_of_explicit_loops(pieces, factors):
    for name, rows in pieces.items():
        a = sum(torch.outer(x, x) for inputs, _ in rows for x in inputs) / N
        positions = sum(len(inputs) for inputs, _ in rows)
        s = sum(torch.outer(x, x) for _, deltas in rows for x in deltas) / positions
        torch.testing.assert_close(factors[name].inputs, a)
        torch.testing.assert_close(factors[name].outputs, s)


def test_k_fac_is_a_kronecker_product(net, images, gradients, factors):
    blocks = {name: torch.kron(f.outputs, f.inputs) for name, f in factors.items()}
    found = magnitude(net, images, KFAC(factors, λ))
    np.testing.assert_allclose(found, dense(blocks, gradients), rtol=1e-8)


def test_ek_fac_has_the_true_diagonal_in_the_eigenvectors(net, images, gradients, factors):
    blocks = {}
    for name, f in factors.items():
        basis = torch.kron(*(torch.linalg.eigh(m).eigenvectors for m in (f.outputs, f.inputs)))
        g = gradients[name].flatten(1)
        true = basis.T @ (g.T @ g / N) @ basis
        blocks[name] = basis @ torch.diag(true.diagonal()) @ basis.T
    found = magnitude(net, images, EKFAC(factors, λ))
    np.testing.assert_allclose(found, dense(blocks, gradients), rtol=1e-8)


def test_the_diagonal(net, images, gradients):
    blocks = {name: torch.diag((g.flatten(1) ** 2).mean(0)) for name, g in gradients.items()}
    found = magnitude(net, images, DiagonalFisher(λ))
    np.testing.assert_allclose(found, dense(blocks, gradients), rtol=1e-8)


@pytest.mark.parametrize("joint", [True, False])
def test_logra_on_leading_eigenvectors(net, images, gradients, factors, joint):
    short = {}
    for name, f in factors.items():
        rank = min(3, len(f.inputs), len(f.outputs))
        p, q = (torch.linalg.svd(m).U[:, :rank] for m in (f.outputs, f.inputs))
        short[name] = (p.T @ gradients[name] @ q).flatten(1)
    if joint:
        short = {"all": torch.cat(list(short.values()), 1)}
    blocks = {name: g.T @ g / N for name, g in short.items()}
    found = magnitude(net, images, PCALoGra(3, joint, λ, factors=factors))
    np.testing.assert_allclose(found, dense(blocks, short), rtol=1e-7)


def test_scaled_projections_keep_lengths_on_average(net, images, gradients):
    """At any rank, over seeds; and at full rank exactly, as nothing is lost then."""
    exact = sum((g**2).sum((1, 2)) for g in gradients.values()).mean()
    huge = 1e9  # then the form is |g|² / λ
    lengths = [
        huge * magnitude(net, images, ScaledLoGra(2, damping=huge, seed=seed)).mean()
        for seed in range(60)
    ]
    assert np.mean(lengths) == pytest.approx(float(exact), rel=0.15)
    full = magnitude(net, images, ScaledLoGra(rank=None, joint=True, damping=λ))
    np.testing.assert_allclose(full, magnitude(net, images, EmpiricalFisher(λ)), rtol=1e-8)


def test_a_wide_sketch_is_nearly_exact_and_a_narrow_one_is_not(net, images):
    exact = magnitude(net, images, EmpiricalFisher(λ))
    wide = magnitude(net, images, GlobalProjection(200_000, λ))
    np.testing.assert_allclose(wide, exact, rtol=2e-2)
    narrow = magnitude(net, images, GlobalProjection(3, λ))
    assert spearmanr(narrow, exact).statistic < spearmanr(wide, exact).statistic
    other = magnitude(net, images, GlobalProjection(3, λ, seed=1))
    assert np.abs(other / narrow - 1).max() > 0.1


def test_stored_gradients_are_rounded_and_nothing_else(net, images):
    plain = magnitude(net, images, LoGra(rank=2))
    same = magnitude(net, images, Stored(LoGra(rank=2), torch.float64))
    np.testing.assert_array_equal(same, plain)
    half = magnitude(net, images, Stored(LoGra(rank=2), torch.bfloat16))
    assert 1e-4 < np.abs(half / plain - 1).max() < 0.1


def test_no_factors_of_groups(images):
    net = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Flatten()).double()
    with pytest.raises(InfluenceError, match=r"^0: no Kronecker factors of a convolution in group"):
        kronecker_factors(net, images, Invariance())


def test_ratios_are_those_of_known_work(monkeypatch):
    now = 0.0

    def busy(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(timing, "CLOCKS", {"wall": lambda: now, "cpu": lambda: now})
    unit = {"only": lambda: busy(2.0)}
    found = timing.summary(timing.ratios(lambda: busy(6.0), unit, rounds=5, slow_rounds=5))
    assert found["cpu"] == pytest.approx(3)
    assert found["quartiles"] == pytest.approx([3, 3])
    assert found["rounds"] == 5

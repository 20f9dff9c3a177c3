"""Every estimator against a closed form, brute-force autograd, or a peer library; in float64."""

import numpy as np
import pytest
import torch
from nets import (
    Kept,
    Residual,
    Sequence,
    Windows,
    brute_force_gradients,
    build,
    images,
    quadratic,
    relative,
    weights,
)
from torch import nn

from influence_ssl import (
    EmpiricalFisher,
    ExactHessian,
    GaussianNoise,
    Identity,
    InfluenceError,
    InfluenceScorer,
    Invariance,
    LoGra,
    Relative,
    Supervised,
)

NOISE = GaussianNoise(0.05, 0.2)
NETS = [(Residual, {}), (Sequence, {}), (Windows, {}), (Windows, {"example_first": False})]


def score(net, x, curvature, objective=None, **settings):
    return InfluenceScorer(net, objective, curvature, progress=False, **settings).score(x)


def perturbed(x, draw=0, seed=0):
    return NOISE(x, torch.arange(len(x)), draw, seed)


def linear_problem(k, d, n, seed):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Linear(d, k, bias=False).double()
    net.weight.data = torch.randn(k, d, generator=generator, dtype=torch.float64)
    delta = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return net, net.weight.detach().numpy(), x, delta


@pytest.mark.parametrize(("k", "d"), [(1, 1), (1, 4), (3, 4), (4, 3), (5, 5)])
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("eps", [0.1, 10.0])
def test_theorem_1(k, d, damping, eps):
    """One example: −4ε⁴|δ|²|Wδ|²/(λ + 2ε²|δ|²), the paper's Theorem 1 for any |δ|."""
    net, w, x, delta = linear_problem(k, d, 1, seed=k + 10 * d)
    objective = Invariance(lambda x, index, draw, seed: x + eps * delta[index], "squared")
    found = score(net, x, ExactHessian(damping), objective).values
    s, u = (delta[0] ** 2).sum().item(), ((w @ delta[0].numpy()) ** 2).sum()
    np.testing.assert_allclose(found, -4 * eps**4 * s * u / (damping + 2 * eps**2 * s), rtol=1e-10)


@pytest.mark.parametrize(("k", "d", "n"), [(1, 4, 7), (3, 4, 7), (4, 6, 3), (2, 1, 5)])
@pytest.mark.parametrize("damping", [0.0, 0.05])
def test_theorem_1_with_the_hessian_of_the_data_set(k, d, n, damping):
    """−4ε⁴|Wδ_i|² δ_iᵀ(2ε²Σ + λI)⁺δ_i, with Σ the mean of δδᵀ."""
    eps = 0.7
    net, w, x, delta = linear_problem(k, d, n, seed=n)
    objective = Invariance(lambda x, index, draw, seed: x + eps * delta[index], "squared")
    found = score(net, x, ExactHessian(damping), objective, batch_size=2).values
    delta = delta.numpy()
    sigma = delta.T @ delta / n
    inverse = np.linalg.pinv(2 * eps**2 * sigma + damping * np.eye(d), rcond=1e-12)
    leverage = np.einsum("ni,ij,nj->n", delta, inverse, delta)
    np.testing.assert_allclose(
        found, -4 * eps**4 * ((delta @ w.T) ** 2).sum(1) * leverage, rtol=1e-10
    )


@pytest.mark.parametrize(("kind", "arguments"), NETS)
@pytest.mark.parametrize("damping", [0.01, Relative(0.1)])
def test_empirical_fisher_is_brute_force(kind, arguments, damping):
    net, x = build(kind, **arguments), images()
    g = np.concatenate(brute_force_gradients(net, x, perturbed(x)), 1)
    value = relative(g, 0.1) if isinstance(damping, Relative) else damping
    expected = -quadratic(g, value)
    found = score(net, x, EmpiricalFisher(damping), batch_size=4)
    np.testing.assert_allclose(found.values, expected, rtol=1e-8)
    dimension = found.provenance["effective dimension"][0]
    np.testing.assert_allclose(found.magnitude.sum(), len(x) * dimension, rtol=1e-8)
    np.testing.assert_allclose(
        score(net, x, LoGra(rank=None, joint=True, damping=damping)).values, expected, rtol=1e-8
    )


@pytest.mark.parametrize(("kind", "arguments"), NETS)
@pytest.mark.parametrize("damping", [0.01, Relative(0.1)])
def test_full_rank_logra_is_the_block_diagonal_empirical_fisher(kind, arguments, damping):
    net, x = build(kind, **arguments), images(40)
    blocks = brute_force_gradients(net, x, perturbed(x))
    values = [relative(g, 0.1) if isinstance(damping, Relative) else damping for g in blocks]
    expected = -sum(quadratic(g, value) for g, value in zip(blocks, values, strict=True))
    found = score(net, x, LoGra(rank=None, damping=damping), batch_size=7).values
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_empirical_fisher_in_the_space_of_the_weights():
    """n > p, so that H itself is inverted; the fit is on other images than the scores."""
    net, train, other = build(Windows), images(200, seed=2), images(6, seed=3)
    g = np.concatenate(brute_force_gradients(net, train, perturbed(train)), 1)
    t = np.concatenate(brute_force_gradients(net, other, perturbed(other)), 1)
    for curvature, value in ((EmpiricalFisher(0.02), 0.02), (EmpiricalFisher(0.0), 0.0)):
        inverse = np.linalg.pinv(g.T @ g / 200 + value * np.eye(g.shape[1]), rcond=1e-11)
        scorer = InfluenceScorer(net, curvature=curvature, progress=False).fit(train)
        expected = -np.einsum("ni,ij,nj->n", t, inverse, t)
        np.testing.assert_allclose(scorer.score(other).values, expected, rtol=1e-7)


@pytest.mark.parametrize("damping", [0.02, 0.0])
def test_a_matrix_that_is_computed_in_stripes(damping):
    """600 weights: more than the 512 rows at a time of which only the lower half is formed."""
    torch.manual_seed(0)
    net, x = nn.Linear(24, 25, bias=False).double(), torch.randn(700, 24, dtype=torch.float64)
    g = np.concatenate(brute_force_gradients(net, x, perturbed(x)), 1)
    inverse = np.linalg.pinv(g.T @ g / 700 + damping * np.eye(600), rcond=1e-11)
    expected = -np.einsum("ni,ij,nj->n", g, inverse, g)
    for curvature in (EmpiricalFisher(damping), LoGra(rank=None, damping=damping)):
        np.testing.assert_allclose(score(net, x, curvature).values, expected, rtol=1e-6)


def of_differences(delta, damping, curvature=EmpiricalFisher, **options):
    """Scores in single precision of |Wδ|² for a random linear W, of which H is singular or not."""
    torch.manual_seed(0)
    net = nn.Linear(delta.shape[1], 3, bias=False)
    objective = Invariance(lambda x, index, draw, seed: x + delta[index], "squared")
    found = score(net, torch.zeros_like(delta), curvature(damping=damping, **options), objective)
    return net.weight.detach().double(), found


@pytest.mark.parametrize("damping", [Relative(0.1), Relative(1e-4), 0.0])
@pytest.mark.parametrize("options", [{}, {"curvature": LoGra, "rank": None}])
def test_few_images_of_many_weights_in_single_precision(options, damping):
    """n (K(K + nλI)⁻¹)_ii with K = GGᵀ. Most of each gradient's length is common to all."""
    generator = torch.Generator().manual_seed(1)
    common, own = (torch.randn(n, 5_000, generator=generator) for n in (1, 30))
    delta = common + 0.1 * own
    w, found = of_differences(delta, damping, **options)
    d, z = delta.double(), delta.double() @ w.T
    k = (4 * (z @ z.T) * (d @ d.T)).numpy()
    lam = damping.c * np.trace(k) / 30**2 if isinstance(damping, Relative) else damping
    expected = 30 * np.diag(k @ np.linalg.inv(k + 30 * lam * np.eye(30)))
    np.testing.assert_allclose(found.magnitude, expected, rtol=1e-3)
    dimension = found.provenance["effective dimension"]
    np.testing.assert_allclose(found.magnitude.mean(), dimension, rtol=1e-3)


def test_many_images_without_damping_in_single_precision():
    """The smallest eigenvalue that is not 0 is a thousandth of the largest."""
    generator = torch.Generator().manual_seed(1)
    delta = torch.randn(20_000, 6, generator=generator) * torch.tensor([1, 1, 1, 0.2, 0.2, 0.2])
    w, found = of_differences(delta, 0.0)
    d = delta.double()
    g = 2 * ((d @ w.T)[:, :, None] * d[:, None]).flatten(1).numpy()
    inverse = np.linalg.pinv(g.T @ g / len(g), rcond=1e-9)
    expected = np.einsum("ni,ij,nj->n", g, inverse, g)
    np.testing.assert_allclose(found.magnitude, expected, rtol=1e-2)


def test_other_images_where_examples_are_fewer_than_weights():
    """A new gradient has a part outside the fitted span, which meets the damping alone."""
    net, train, other = build(Residual), images(5, seed=2), images(4, seed=3)
    g = np.concatenate(brute_force_gradients(net, train, perturbed(train)), 1)
    t = np.concatenate(brute_force_gradients(net, other, perturbed(other)), 1)
    inverse = np.linalg.inv(g.T @ g / 5 + 1e-3 * np.eye(g.shape[1]))
    scorer = InfluenceScorer(net, curvature=EmpiricalFisher(1e-3), progress=False).fit(train)
    expected = -np.einsum("ni,ij,nj->n", t, inverse, t)
    np.testing.assert_allclose(scorer.score(other).values, expected, rtol=1e-8)


@pytest.mark.parametrize("joint", [True, False])
def test_logra_is_the_fisher_of_projected_gradients(joint):
    """P G Qᵀ formed from brute-force weight gradients and the very projections of the scorer."""
    net, x = build(Residual), images(30)
    curvature = LoGra(rank=3, joint=joint, damping=0.02, seed=5)
    scorer = InfluenceScorer(net, curvature=curvature, progress=False)
    kept = Kept(curvature)
    InfluenceScorer(net, curvature=kept, progress=False).fit(x)
    layers = {layer.name: layer for layer in kept.layers}
    order = [n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    projected = {}
    for name, g in zip(order, brute_force_gradients(net, x, perturbed(x)), strict=True):
        left, right = layers[name].left.numpy(), layers[name].right.numpy()
        np.testing.assert_allclose(left @ left.T, np.eye(len(left)), atol=1e-12)
        np.testing.assert_allclose(right @ right.T, np.eye(len(right)), atol=1e-12)
        g = g.reshape(len(x), left.shape[1], right.shape[1])
        projected[name] = np.einsum("ro,noi,ci->nrc", left, g, right).reshape(len(x), -1)
    blocks = [np.concatenate(list(projected.values()), 1)] if joint else projected.values()
    rows = torch.cat(list(scorer.gradients(x)))
    side_by_side = np.concatenate([projected[name] for name in layers], 1)
    np.testing.assert_allclose(rows, side_by_side, rtol=1e-8, atol=1e-14)
    expected = -sum(quadratic(g, 0.02) for g in blocks)
    np.testing.assert_allclose(scorer.score(x).values, expected, rtol=1e-8)
    ranks = scorer.score(x).provenance["ranks"]
    assert ranks["depthwise"] == [3, 3]
    assert ranks["stem"] == [3, 3]


def test_identity_is_the_squared_gradient_norm():
    net, x = build(Sequence), images()
    g = np.concatenate(brute_force_gradients(net, x, perturbed(x)), 1)
    np.testing.assert_allclose(score(net, x, Identity()).magnitude, (g**2).sum(1), rtol=1e-8)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_cosine_does_not_depend_on_the_length_of_representations(scale):
    """Nor does its gradient; the squares of these lengths are 0 or infinite."""

    class Scaled(Windows):
        def forward(self, x):
            return scale * super().forward(x)

    x = images()
    expected = np.concatenate(brute_force_gradients(build(Windows), x, perturbed(x)), 1)
    found = score(build(Scaled), x, Identity())
    np.testing.assert_allclose(found.magnitude, (expected**2).sum(1), rtol=1e-8)


def test_several_draws_average_scores_under_one_curvature():
    net, x = build(Windows), images(12)
    per_draw = [
        np.concatenate(brute_force_gradients(net, x, perturbed(x, draw, seed=4)), 1)
        for draw in range(3)
    ]
    g = np.concatenate(per_draw)
    h = np.linalg.inv(g.T @ g / 36 + 0.01 * np.eye(g.shape[1]))
    expected = np.stack([-np.einsum("ni,ij,nj->n", d, h, d) for d in per_draw])
    found = score(net, x, EmpiricalFisher(0.01), draws=3, seed=4)
    np.testing.assert_allclose(found.values, expected.mean(0), rtol=1e-8)
    np.testing.assert_allclose(found.standard_error, expected.std(0, ddof=1) / 3**0.5, rtol=1e-7)


def test_supervised_gradients_against_brute_force():
    net, x = build(Residual), images(8)
    y = torch.arange(8) % 5
    net.eval()
    rows = []
    for image, label in zip(x, y, strict=True):
        loss = nn.functional.cross_entropy(net(image[None]), label[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights(net))]))
    expected = -quadratic(torch.stack(rows).numpy(), 0.1)
    data = torch.utils.data.TensorDataset(x, y)
    found = score(net, data, EmpiricalFisher(0.1), Supervised(), batch_size=3).values
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # curvlinops' own
def test_hessian_and_fisher_against_curvlinops():
    """The mean Hessian and the empirical Fisher of a small network, as another library has them."""
    from curvlinops import EFLinearOperator, HessianLinearOperator

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    net = net.double().eval()
    x, y = torch.randn(11, 4, dtype=torch.float64), torch.arange(11) % 3
    arguments = (net, nn.CrossEntropyLoss(), list(net.parameters()), [(x, y)])
    identity = torch.eye(21, dtype=torch.float64)
    hessian = (HessianLinearOperator(*arguments) @ identity).detach()
    fisher = (EFLinearOperator(*arguments) @ identity).detach()
    data = torch.utils.data.TensorDataset(x, y)
    rows = []
    for a, b in zip(x, y, strict=True):
        loss = nn.functional.cross_entropy(net(a[None]), b[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights(net))]))
    g = torch.stack(rows)
    for curvature, h in ((ExactHessian(0.3), hessian), (EmpiricalFisher(0.3), fisher)):
        inverse = torch.linalg.inv(h + 0.3 * identity)
        expected = -torch.einsum("ni,ij,nj->n", g, inverse, g)
        found = score(net, data, curvature, Supervised(), batch_size=4).values
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-8)


@pytest.mark.parametrize("curvature", [LoGra(), Identity(), ExactHessian(0.1)])
def test_a_network_of_parametrised_weights_alone(curvature):
    """It scores like the plain weights; only their exact Hessian is refused, in words."""
    torch.manual_seed(3)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double(), images(6, size=2)
    expected = score(net, x, curvature).values
    nn.utils.parametrizations.weight_norm(net[1])
    if isinstance(curvature, ExactHessian):
        with pytest.raises(InfluenceError, match=r"layer '1' .* recomputes its weight .*=\['-1'\]"):
            score(net, x, curvature)
    else:
        np.testing.assert_allclose(score(net, x, curvature).values, expected, rtol=1e-9)


class InPlace(nn.Sequential):
    def forward(self, x):
        return super().forward(x.sub_(0.5))


def test_exact_hessian_of_an_encoder_that_works_in_place():
    x, y = images(6, size=2).flatten(1), torch.arange(6) % 3
    torch.manual_seed(3)
    net, plain = InPlace(nn.Linear(12, 3)).double(), nn.Sequential(nn.Linear(12, 3)).double()
    plain.load_state_dict(net.state_dict())
    before = x.clone()
    pairs = [(net, x), (plain, x - 0.5)]
    found, expected = (
        score(f, torch.utils.data.TensorDataset(z, y), ExactHessian(0.1), Supervised()).values
        for f, z in pairs
    )
    assert torch.equal(x, before)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_exact_hessian_of_the_cosine_vanishes_on_the_own_example():
    """The cosine is 0-homogeneous in W, so gᵀH⁺g = 0 with the example's own exact Hessian."""
    torch.manual_seed(3)
    net = nn.Linear(4, 3, bias=False).double()
    x = torch.randn(1, 4, dtype=torch.float64)
    found = score(net, x, ExactHessian(0.0)).values
    fisher = score(net, x, EmpiricalFisher(0.0)).values
    np.testing.assert_allclose(found, 0, atol=1e-12)
    np.testing.assert_allclose(fisher, -1, rtol=1e-8)

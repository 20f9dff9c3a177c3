"""Influence of training images on queries, against explicit matrices, refits and closed forms."""

import numpy as np
import pytest
import torch
from nets import Residual, Sequence, brute_force_gradients, build, images
from torch import nn
from torchvision.transforms import v2

from influence_ssl import (
    Alignment,
    EmpiricalFisher,
    ExactHessian,
    GaussianNoise,
    Identity,
    Influence,
    InfluenceError,
    InfluenceScorer,
    Invariance,
    LoGra,
    Supervised,
)

CURVATURES = {
    "logra": LoGra(3),
    "joint": LoGra(3, joint=True),
    "full": LoGra(None),
    "pseudo-inverse": LoGra(3, damping=0.0),
    "dual": EmpiricalFisher(),
    "dual, pseudo-inverse": EmpiricalFisher(damping=0.0),
    "identity": Identity(),
}


def scorer_of(net, **settings):
    return InfluenceScorer(net, progress=False, **settings)


def explicit(net, x, y, damping):
    """−G_q(H + λI)⁻¹G_iᵀ with dense matrices; queries have indices after the training images'."""
    n, q = len(x), len(y)
    noise = GaussianNoise()
    g = np.hstack(brute_force_gradients(net, x, noise(x, torch.arange(n), 0, 0)))
    h = np.hstack(brute_force_gradients(net, y, noise(y, torch.arange(n, n + q), 0, 0)))
    hessian = g.T @ g / n
    λ = damping * np.trace(hessian) / min(g.shape)
    return -h @ np.linalg.solve(hessian + λ * np.eye(len(hessian)), g.T)


@pytest.mark.parametrize("kind", [Residual, Sequence])
def test_influence_is_the_bilinear_form_of_brute_force_gradients(kind):
    net, x, y = build(kind), images(14), images(20)[14:]
    expected = explicit(net, x, y, 0.1)
    scorer = scorer_of(net, curvature=EmpiricalFisher(), batch_size=4)
    found = scorer.fit(x, keep=True).influence(y)
    np.testing.assert_allclose(found.values, expected, rtol=1e-7, atol=1e-9 * abs(expected).max())
    assert found.index.tolist() == list(range(14))
    assert found.queries == list(range(14, 20))
    assert (found.positions == np.arange(14)).all()


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("curvature", CURVATURES.values(), ids=CURVATURES)
def test_the_diagonal_is_the_self_score(curvature, dtype, draws):
    net, x = build(Residual).to(dtype), images(12).to(dtype)
    scorer = scorer_of(net, curvature=curvature, draws=draws, batch_size=5).fit(x, keep=True)
    scores = scorer.score(x).values
    found = scorer.influence(x, index=range(12)).values
    tight = 1e-10 if dtype == torch.float64 else 2e-5
    np.testing.assert_allclose(np.diag(found), scores, rtol=tight)
    np.testing.assert_allclose(found, found.T, atol=tight * abs(found).max())
    phi = scorer.embed(x).double()
    np.testing.assert_allclose(-phi.square().sum(1), scores, rtol=tight)
    np.testing.assert_allclose(-phi @ phi.T, found, atol=tight * abs(found).max())


def test_an_indefinite_hessian_has_influence_but_no_embedding():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    x = images(5, size=2)
    scorer = scorer_of(net, curvature=ExactHessian(damping=1e-3)).fit(x, keep=True)
    assert scorer.score(x).provenance["negative eigenvalues"] > 0
    found = scorer.influence(x, index=range(5)).values
    np.testing.assert_allclose(np.diag(found), scorer.score(x).values, rtol=1e-9)
    with scorer._gradients(x, None, "test") as gradients:
        hessian, g = gradients.hessian().numpy(), torch.cat(list(gradients)).numpy()
    expected = -g @ np.linalg.solve(hessian + 1e-3 * np.eye(len(hessian)), g.T)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8 * abs(expected).max())
    with pytest.raises(InfluenceError, match="indefinite"):
        scorer.embed(x)


def test_ridge_regression_is_refitted_exactly():
    """d L_q / d w_i by refits with image i's weight a little up and down, each in closed form."""
    rng = np.random.default_rng(0)
    n, p, λ, step = 20, 4, 0.3, 1e-5
    x, y = rng.normal(size=(n, p)), rng.normal(size=n)
    query, target = rng.normal(size=(3, p)), rng.normal(size=3)

    def loss_after(i, weight):
        w = np.full(n, 1 / n)
        w[i] += weight
        θ = np.linalg.solve((x.T * w) @ x + λ * np.eye(p), (x.T * w) @ y)
        return 0.5 * (query @ θ - target) ** 2

    both = [[loss_after(i, sign * step) for i in range(n)] for sign in (1, -1)]
    exact = ((np.array(both[0]) - np.array(both[1])) / (2 * step)).T
    model = nn.Linear(p, 1, bias=False).double()
    θ = np.linalg.solve(x.T @ x / n + λ * np.eye(p), x.T @ y / n)
    model.weight.data = torch.from_numpy(θ[None])
    objective = Supervised(lambda output, y: 0.5 * (output[:, 0] - y).square())
    data, queries = (
        [(torch.from_numpy(a), float(b)) for a, b in zip(*pair, strict=True)]
        for pair in ((x, y), (query, target))
    )
    scorer = scorer_of(model, objective=objective, curvature=ExactHessian(damping=λ))
    found = scorer.fit(data, keep=True).influence(queries).values
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-8)


def test_a_linear_network_has_the_closed_form():
    """L = |Wd|² with d = x̂ − x: I = −4 (d_iᵀ(2S + λ)⁻¹d_q)(d_iᵀWᵀW d_q), S the mean of ddᵀ."""
    rng = torch.Generator().manual_seed(0)
    x, steps = torch.randn(9, 4, generator=rng).double(), torch.randn(12, 4, generator=rng).double()
    net = nn.Linear(4, 3, bias=False).double()
    objective = Invariance(lambda x, index, draw, seed: x + 0.1 * steps[index], distance="squared")
    scorer = scorer_of(net, objective=objective, curvature=ExactHessian(damping=0.01))
    found = scorer.fit(x, keep=True).influence(x[:3], index=range(9, 12)).values
    d, w = 0.1 * steps, net.weight.detach()
    hessian = 2 * d[:9].T @ d[:9] / 9 + 0.01 * torch.eye(4, dtype=torch.float64)
    inner = torch.linalg.solve(hessian, d[:9].T)
    expected = -4 * (d[9:] @ inner) * (d[9:] @ w.T @ w @ d[:9].T)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_influence_depends_on_neither_batch_order_nor_pairs_of_calls():
    net, x, y = build(Residual), images(16), images(24)[16:]
    settings = {"curvature": LoGra(3), "draws": 2}
    whole = scorer_of(net, batch_size=32, **settings).fit(x, keep=True).influence(y).values
    for batch_size in (1, 5):
        scorer = scorer_of(net, batch_size=batch_size, **settings).fit(x, keep=True)
        np.testing.assert_allclose(scorer.influence(y).values, whole, rtol=1e-8, atol=1e-9)
        later = scorer.influence(y[4:], index=range(20, 24)).values
        np.testing.assert_allclose(later, whole[4:], rtol=1e-8, atol=1e-9)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    scorer = scorer_of(net, **settings).fit(x[order], index=order, keep=True)
    found = scorer.influence(y, index=range(16, 24)).values
    np.testing.assert_allclose(found, whole[:, order], rtol=1e-8, atol=1e-9)


def test_a_stored_fit_goes_on_and_gives_the_same(tmp_path):
    net, x, y = build(Residual), images(12), images(16)[12:]
    expected = scorer_of(net).fit(x, keep=True).influence(y).values
    for _ in range(2):
        scorer = scorer_of(net, store=tmp_path, batch_size=4).fit(x, keep=True)
        np.testing.assert_allclose(scorer.influence(y).values, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("top", [1, 3, 6, 40])
def test_top_takes_both_ends_in_order(top):
    net, x, y = build(Sequence), images(11), images(15)[11:]
    names = [f"image-{i}.png" for i in range(11)]
    scorer = scorer_of(net).fit(x, index=range(100, 111), names=names, keep=True)
    whole, found = scorer.influence(y), scorer.influence(y, top=top)
    for row, values, places in zip(whole.values, found.values, found.positions, strict=True):
        order = np.argsort(row, kind="stable")
        kept = [*order[: min(top, 11)], *order[max(top, 11 - top) :]]
        assert places.tolist() == kept
        np.testing.assert_array_equal(values, row[kept])
    table = scorer.influence(y, names=["a", "b", "c", "d"], top=top).to_pandas()
    assert table["query"].tolist()[: len(kept)] == ["a"] * len(kept)
    assert table["name"].tolist() == [names[i] for i in found.positions.ravel()]
    assert table["index"].tolist() == (found.positions.ravel() + 100).tolist()
    assert table["rank"].tolist() == list(range(1, len(kept) + 1)) * 4


def test_groups_add_up():
    net, x, y = build(Sequence), images(11), images(15)[11:]
    scorer = scorer_of(net).fit(x, keep=True)
    label = np.array(["b", "a", "c"])[np.arange(11) % 3]
    whole, found = scorer.influence(y).values, scorer.influence(y, group=label)
    assert found.names == ["b", "a", "c"]
    expected = np.stack([whole[:, label == name].sum(1) for name in found.names], 1)
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)
    best = scorer.influence(y, group=label, top=1)
    assert best.positions[:, 0].tolist() == expected.argmin(1).tolist()
    assert best.positions[:, 1].tolist() == expected.argmax(1).tolist()


def test_the_query_s_objective_may_be_another():
    net, x, y = build(Sequence), images(12), images(16)[12:]
    scorer = scorer_of(net, curvature=EmpiricalFisher()).fit(x, keep=True)
    found = scorer.influence(y, objective=Invariance(distance="squared")).values
    g = torch.from_numpy(np.hstack(brute_force_gradients(net, x, noisy(x, range(12))))).double()
    q = gradients_of(net, y, lambda z, w: (z - w).square().sum())
    hessian = g.T @ g / 12
    λ = 0.1 * hessian.trace() / min(g.shape)
    expected = -q @ torch.linalg.solve(hessian + λ * torch.eye(len(hessian)), g.T)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8 * abs(expected).max())
    # The other way round, the fitted images' objective is named at the fit.
    other = scorer_of(net, curvature=EmpiricalFisher(), objective=Invariance(distance="squared"))
    other.fit(x, objective=Invariance(), keep=True)
    np.testing.assert_allclose(other.influence(y).values, found, rtol=1e-9)
    # The training images' own objective must still be the fitted one.
    scorer.objective = Invariance(distance="squared")
    with pytest.raises(InfluenceError, match="objective changed since fit"):
        scorer.influence(y)


def noisy(x, index):
    return GaussianNoise()(x, torch.tensor(list(index)), 0, 0)


def gradients_of(net, y, distance):
    rows, parameters = [], [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for clean, other in zip(y, noisy(y, range(12, 16)), strict=True):
        loss = distance(net.eval()(clean[None]), net(other[None]))
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows)


AUGMENT = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomResizedCrop(8, (0.3, 1), antialias=True)])


def test_alignment_is_the_distance_of_two_seeded_views():
    net, x = build(Sequence), images(10)
    before = torch.random.get_rng_state()
    found = scorer_of(net, objective=Alignment(AUGMENT), draws=2, batch_size=4).score(x)
    assert torch.equal(torch.random.get_rng_state(), before)
    again = scorer_of(net, objective=Alignment(AUGMENT), draws=2).score(x[3:7], index=range(3, 7))
    np.testing.assert_allclose(again.loss, found.loss[3:7], rtol=1e-9)
    seen = []

    def watched(image):
        seen.append(AUGMENT(image))
        return seen[-1]

    one = scorer_of(net, objective=Alignment(watched)).score(x[:2])
    first, second = torch.stack(seen[-4:-2]), torch.stack(seen[-2:])
    assert not torch.equal(first, second)
    with torch.no_grad():
        losses = 1 - torch.cosine_similarity(net.eval()(first), net(second))
    np.testing.assert_allclose(one.loss, losses, rtol=1e-9)


def test_alignment_refuses_what_it_cannot_use():
    net, x = build(Sequence), images(4)
    with pytest.raises(InfluenceError, match="augment is a str"):
        Alignment("flip")
    with pytest.raises(InfluenceError, match="Alignment: distance='l1' is unknown"):
        Alignment(AUGMENT, "l1")
    with pytest.raises(InfluenceError, match="views of the shapes"):
        scorer_of(net, objective=Alignment(lambda x: x[:, : int(torch.randint(4, 8, ()))])).score(x)


def test_bad_requests_are_one_line_each(monkeypatch):
    net, x = build(Sequence), images(8)
    scorer = scorer_of(net)
    with pytest.raises(InfluenceError, match="no training images are kept; call fit"):
        scorer.influence(x)
    with pytest.raises(InfluenceError, match="no training images are kept; call fit"):
        scorer.fit(x).influence(x)
    scorer.fit(x, keep=True)
    for top in (0, -1, 1.5, "all"):
        with pytest.raises(InfluenceError, match=r"top=.* must be None or an integer ≥ 1"):
            scorer.influence(x, top=top)
    with pytest.raises(InfluenceError, match="group holds 3 labels for 8 training images"):
        scorer.influence(x, group=[1, 2, 3])
    with pytest.raises(InfluenceError, match="names holds 2, not one for each image"):
        scorer.influence(x, names=["a", "b"])
    with pytest.raises(InfluenceError, match="names holds 2, not one for each image"):
        scorer.fit(x, names=["a", "b"], keep=True)
    with pytest.raises(InfluenceError, match=r"the suffix must be one of \.csv, \.parquet"):
        scorer.influence(x).save("influence.npz")
    monkeypatch.setattr("influence_ssl.influence.free_memory", lambda device: 1000.0)
    with monkeypatch.context() as patch:
        patch.setattr("influence_ssl.scorer.refuse_too_large", lambda *_: None)
        with pytest.raises(InfluenceError, match="give top=20, or fewer queries at a time"):
            scorer.influence(x)
    with pytest.raises(InfluenceError, match=r"more than half of the 0\.0 GB that are free"):
        scorer.fit(x, keep=True)


class FormsAlone(LoGra):
    def fit(self, gradients):
        return lambda g: g.double().square().sum(1)


def test_a_curvature_of_forms_alone_scores_and_says_that_it_has_no_embedding():
    net, x = build(Sequence), images(8)
    assert len(scorer_of(net, curvature=FormsAlone(2)).score(x)) == 8
    with pytest.raises(InfluenceError, match="gives scores alone"):
        scorer_of(net, curvature=FormsAlone(2)).embed(x)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_are_saved_with_their_provenance(tmp_path, suffix):
    import pandas

    net, x, y = build(Sequence), images(8), images(10)[8:]
    found = scorer_of(net).fit(x, names=list("abcdefgh"), keep=True).influence(y, top=2)
    assert isinstance(found, Influence)
    assert len(found) == 2
    path = tmp_path / f"influence{suffix}"
    found.save(path)
    read = pandas.read_csv(path, comment="#") if suffix == ".csv" else pandas.read_parquet(path)
    assert read["name"].tolist() == found.to_pandas()["name"].tolist()
    np.testing.assert_array_equal(read["influence"], found.values.ravel())
    assert b"fitted gradients" in path.read_bytes()

"""Influence of training images on queries, against explicit matrices, refits and closed forms."""

from dataclasses import dataclass

import numpy as np
import pandas
import pytest
import torch
from nets import Residual, Sequence, Windows, brute_force_gradients, build, images
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
from influence_ssl._kept import Embedded
from influence_ssl.influence import products

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


def tanh_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.Tanh(), nn.Linear(2, 2)).double()


def test_an_indefinite_hessian_has_influence_but_no_embedding():
    net, x = tanh_net(), images(5, size=2)
    scorer = scorer_of(net, curvature=ExactHessian(damping=1e-3)).fit(x, keep=True)
    assert scorer.score(x).provenance["negative eigenvalues"] > 0
    found = scorer.influence(x, index=range(5)).values
    np.testing.assert_allclose(np.diag(found), scorer.score(x).values, rtol=1e-9)
    g = torch.cat(list(scorer.gradients(x))).numpy()
    shapes = {f"{i}.weight": net[i].weight for i in (1, 3)}

    def mean_loss(theta):
        parts = theta.split([weight.numel() for weight in shapes.values()])
        named = {n: p.view_as(w) for (n, w), p in zip(shapes.items(), parts, strict=True)}
        z, noisy = (torch.func.functional_call(net, named, (v,)) for v in (x, x_hat))
        return (1 - torch.cosine_similarity(z, noisy, eps=0.0)).mean()

    x_hat = GaussianNoise()(x, torch.arange(5), 0, 0)
    theta = torch.cat([weight.detach().flatten() for weight in shapes.values()])
    hessian = torch.autograd.functional.hessian(mean_loss, theta).numpy()
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


def test_names_of_pandas_are_taken_in_order():
    net, x = build(Sequence), images(5)
    names = pandas.Series(list("vwxyz"), [7, 1, 0, 3, 2])
    found = InfluenceScorer(net, progress=False).fit(x, names=names, keep=True).influence(x[:1])
    assert found.to_pandas()["name"].tolist() == list("vwxyz")


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


@pytest.mark.parametrize("kind", [torch.tensor, list, lambda label: [*torch.tensor(label)]])
def test_labels_of_groups_may_be_tensors(kind):
    net, x, y = build(Sequence), images(11), images(13)[11:]
    scorer, label = scorer_of(net).fit(x, keep=True), [2, 0, 1, 0, 0, 2, 1, 1, 1, 0, 2]
    found = scorer.influence(y, group=kind(label))
    assert found.names == ["2", "0", "1"]
    expected = scorer.influence(y, group=np.array(label)).values
    np.testing.assert_array_equal(found.values, expected)


def test_images_without_a_label_are_one_group():
    scorer = scorer_of(build(Sequence)).fit(images(6), keep=True)
    for missing in (np.array([0, np.nan, 1] * 2), [0.0, float("nan"), 1.0, 0.0, float("nan"), 1.0]):
        assert scorer.influence(images(2), group=missing).names == ["0.0", "nan", "1.0"]


def test_objectives_that_hold_tensors_are_compared(tmp_path):
    """``==`` of two data classes with tensors has no answer."""

    @dataclass
    class Along:
        step: torch.Tensor

        def __call__(self, x, index, draw, seed):
            return x + self.step

    net, x = build(Sequence), images(6)
    step = torch.tensor([0.1, 0.2, 0.3], dtype=x.dtype).view(3, 1, 1)
    scorer = scorer_of(net, objective=Invariance(Along(step))).fit(x, keep=True)
    scorer.save(tmp_path)
    expected = scorer.influence(x).values
    again = scorer.influence(x, objective=Invariance(Along(step.clone()))).values
    np.testing.assert_array_equal(again, expected)
    other = Invariance(Along(2 * step))
    assert not np.allclose(scorer.influence(x, objective=other).values, expected)
    with pytest.raises(InfluenceError, match="uses another objective"):
        scorer_of(net, objective=Invariance(Along(step))).fit(x, objective=other).save(tmp_path)


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


def test_each_seed_and_each_draw_of_alignment_has_its_own_views():
    net, x = build(Sequence), images(6)
    one, both, other = (
        scorer_of(net, objective=Alignment(AUGMENT), draws=draws, seed=seed).score(x).loss
        for draws, seed in ((1, 0), (2, 0), (1, 1))
    )
    assert not np.isclose(one, both).any()  # the mean of two draws
    assert not np.isclose(one, other).any()


def test_an_augmentation_may_work_in_place():
    net, x = build(Sequence), images(6)
    before = x.clone()
    found, expected = (
        scorer_of(net, objective=Alignment(augment)).score(x).values
        for augment in (
            lambda one: one.mul_(1 + torch.rand(())).add_(0.1),
            lambda one: one * (1 + torch.rand(())) + 0.1,
        )
    )
    np.testing.assert_array_equal(found, expected)
    assert torch.equal(x, before)


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
    with pytest.raises(InfluenceError, match="no training images were kept; call fit"):
        scorer.influence(x)
    with pytest.raises(InfluenceError, match="no training images were kept; call fit"):
        scorer.fit(x).influence(x)
    scorer.fit(x, keep=True)
    for top in (0, -1, 1.5, "all"):
        with pytest.raises(InfluenceError, match=r"top=.* must be None or an integer ≥ 1"):
            scorer.influence(x, top=top)
    with pytest.raises(InfluenceError, match="group holds 3 labels for 8 training images"):
        scorer.influence(x, group=[1, 2, 3])
    with pytest.raises(InfluenceError, match="names holds 2 names; give one per image"):
        scorer.influence(x, names=["a", "b"])
    with pytest.raises(InfluenceError, match="names holds 2 names; give one per image"):
        scorer.fit(x, names=["a", "b"], keep=True)
    with pytest.raises(InfluenceError, match=r"the suffix must be one of \.csv, \.parquet"):
        scorer.influence(x).save("influence.npz")
    with pytest.raises(InfluenceError, match="keep='half' must be True, False"):
        scorer.fit(x, keep="half")
    with monkeypatch.context() as patch:
        patch.setattr("influence_ssl.influence.free_memory", lambda device: 1000.0)
        with pytest.raises(InfluenceError, match="give top=20, or fewer queries at a time"):
            scorer.influence(x)
    monkeypatch.setattr("influence_ssl._kept.free_memory", lambda device: 1000.0)
    with pytest.raises(InfluenceError, match=r"more than half of the 0\.0 GB that are free"):
        scorer.fit(x, keep=True)


def test_few_groups_of_many_images_need_memory_for_the_groups_alone(monkeypatch):
    net, x = build(Sequence), images(8)
    scorer = scorer_of(net).fit(x, keep=True)
    whole = scorer.influence(x).values
    monkeypatch.setattr("influence_ssl.influence.free_memory", lambda device: 1000.0)
    found = scorer.influence(x, group=[0, 1] * 4).values
    expected = np.stack([whole[:, ::2].sum(1), whole[:, 1::2].sum(1)], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * abs(whole).max())


def test_what_cannot_be_asked_is_refused_before_any_pass(monkeypatch):
    net, x = build(Sequence), images(8)
    scorer = scorer_of(net).fit(x, keep=True)
    monkeypatch.setattr(scorer, "_gradients", lambda *_: pytest.fail("a pass was begun"))
    for request, message in (
        ({"top": 0}, "top=0 must be None or an integer ≥ 1"),
        ({"group": [1, 2]}, "group holds 2 labels for 8 training images"),
        ({"normalise": "l2"}, "normalise='l2' must be None or one of 'cosine', 'centred'"),
        ({"normalise": "cosine", "group": [0] * 8}, "applies to single images, and a sum of"),
    ):
        with pytest.raises(InfluenceError, match=message):
            scorer.influence(x, **request)
    with pytest.raises(InfluenceError, match="subtracts the mean over queries; give at least"):
        scorer.influence(x[:1], normalise="centred")
    hessian = scorer_of(tanh_net(), curvature=ExactHessian(damping=1e-3))
    with pytest.raises(InfluenceError, match="H \\+ λI is indefinite and defines no length"):
        hessian.fit(images(5, size=2), keep=True).influence(x, normalise="cosine")


def test_queries_without_a_length_are_refused_in_words():
    net, x = build(Sequence), images(8)
    with pytest.raises(InfluenceError, match="images is a generator, which lacks a length"):
        scorer_of(net).fit(x, keep=True).influence(image for image in x)


@pytest.mark.parametrize("draws", [1, 3])
def test_normalised_values_are_those_of_the_plain_ones(draws):
    """cos = I_qi / √(I_qq I_ii) needs no φ; the centred value is I_qi minus its mean over q."""
    net, x, y = build(Residual), images(12), images(17)[12:]
    scorer = scorer_of(net, curvature=EmpiricalFisher(), draws=draws).fit(x, keep=True)
    plain = scorer.influence(y)
    own = [-scorer.score(x).values, -scorer.score(y, index=range(12, 17)).values]
    expected = plain.values / np.sqrt(own[1][:, None] * own[0])
    found = scorer.influence(y, normalise="cosine")
    np.testing.assert_allclose(found.values, expected, rtol=1e-8, atol=1e-10)
    itself = scorer.influence(x, index=range(12), normalise="cosine").values
    np.testing.assert_allclose(np.diag(itself), -1, rtol=1e-9)
    assert abs(itself).max() <= 1 + 1e-9
    centred = scorer.influence(y, normalise="centred")
    expected = plain.values - plain.values.mean(0)
    scale = abs(plain.values).max()
    np.testing.assert_allclose(centred.values, expected, rtol=1e-8, atol=1e-10 * scale)
    label = np.arange(12) % 3
    groups = scorer.influence(y, normalise="centred", group=label).values
    sums = np.stack([expected[:, label == k].sum(1) for k in range(3)], 1)
    np.testing.assert_allclose(groups, sums, rtol=1e-8, atol=1e-9 * scale)
    assert [f.provenance["normalise"] for f in (plain, found)] == [None, "cosine"]


def test_a_zero_gradient_has_the_cosine_zero():
    net, x = build(Sequence), images(6)
    same = Invariance(lambda x, index, draw, seed: x + 0.1 * (index != 2).view(-1, 1, 1, 1))
    scorer = scorer_of(net, objective=same).fit(x, keep=True)
    found = scorer.influence(x, index=range(6), normalise="cosine").values
    assert (found[2] == 0).all()
    assert (found[:, 2] == 0).all()
    np.testing.assert_allclose(np.diag(found)[[0, 1, 3, 4, 5]], -1, rtol=1e-9)


@pytest.mark.parametrize("top", [1, 3, 15, 40])
def test_ties_go_to_the_first_images_whatever_the_blocks(top, monkeypatch):
    """Small whole numbers, whose products are exact and often equal, in parts and in blocks."""
    rng = torch.Generator().manual_seed(0)
    phi, asked = (torch.randint(-2, 3, (1, n, 3), generator=rng).double() for n in (40, 5))
    kept = Embedded([phi[:, :13], phi[:, 13:]], np.arange(40), None, None)
    queries = Embedded([asked], np.arange(40, 45), None, None)
    whole = -(asked[0] @ phi[0].T).numpy()
    assert len(np.unique(whole)) < 25
    for entries in (5 * 7, 2**25):
        monkeypatch.setattr("influence_ssl.influence._ENTRIES", entries)
        np.testing.assert_array_equal(products(queries, kept, None, None, None, {}).values, whole)
        found = products(queries, kept, top, None, None, {})
        for row, values, places in zip(whole, found.values, found.positions, strict=True):
            order = np.argsort(row, kind="stable")
            expected = [*order[: min(top, 40)], *order[max(top, 40 - top) :]]
            assert places.tolist() == expected
            np.testing.assert_array_equal(values, row[expected])


@pytest.mark.parametrize("draws", [1, 2])
def test_embeddings_in_a_store_give_the_same_and_go_with_the_fit(tmp_path, draws):
    net, x, y = build(Residual), images(12), images(16)[12:]
    scorer = scorer_of(net, draws=draws).fit(x, keep=True)
    expected = scorer.influence(y)
    stored = scorer_of(net, draws=draws, store=tmp_path, batch_size=5).fit(x, keep=True)
    (path,) = tmp_path.glob("phi-*")
    assert path.stat().st_size == stored.fit_.kept.bytes == scorer.fit_.kept.bytes
    found = stored.influence(y)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-8, atol=1e-9)
    stored.save(tmp_path / "fit")
    loaded = InfluenceScorer.load(tmp_path / "fit", net, progress=False).influence(y)
    np.testing.assert_allclose(loaded.values, expected.values, rtol=1e-8, atol=1e-9)
    del stored
    assert not list(tmp_path.glob("phi-*"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("store", [False, True])
def test_half_precision_rounds_and_halves(tmp_path, capsys, dtype, store):
    net, x, y = build(Residual).float(), images(12).float(), images(16)[12:].float()
    where = tmp_path if store else None
    whole = scorer_of(net).fit(x, keep=True)
    half = InfluenceScorer(net, store=where).fit(x, keep=dtype)
    kind = str(dtype).removeprefix("torch.")
    assert f"GB of {kind} in {tmp_path if store else 'memory'}" in capsys.readouterr().err
    phi, asked = whole.fit_.kept.phi, whole.embed(y, index=range(12, 16))
    assert half.fit_.kept.bytes == 2 * phi.numel()
    found = half.influence(y)
    expected = -asked @ phi.to(dtype).to(asked.dtype).T
    # A number that stands between two neighbours may be rounded either way.
    tight = torch.finfo(dtype).eps
    np.testing.assert_allclose(found.values, expected, atol=tight * abs(expected).max())
    assert found.provenance["embeddings"] == {"dtype": kind, "bytes": half.fit_.kept.bytes}
    half.save(tmp_path / "fit")
    loaded = InfluenceScorer.load(tmp_path / "fit", net, progress=False).influence(y)
    np.testing.assert_allclose(loaded.values, found.values, rtol=1e-4, atol=1e-5)


def test_a_range_too_small_is_refused():
    """Gradients without curvature may be as small as they like."""
    net, x = build(Sequence), images(6)
    small = Invariance(
        lambda x, index, draw, seed: x + 1e-4 * GaussianNoise()(x, index, draw, seed)
    )
    scorer = scorer_of(net, objective=small, curvature=Identity())
    with pytest.raises(InfluenceError, match="φ of some images exceeds its range"):
        scorer.fit(x, keep=torch.float16)
    assert scorer.fit(x, keep=torch.bfloat16).influence(x).values.any()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    net, x = build(Sequence), images(6)
    usage = type("Usage", (), {"free": 10})()
    monkeypatch.setattr("influence_ssl._kept.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(InfluenceError, match=r"GB are free in store .*; use another folder"):
        scorer_of(net, store=tmp_path).fit(x, keep=True)
    assert not list(tmp_path.glob("phi-*"))


class FormsAlone(LoGra):
    def fit(self, gradients):
        return lambda g: g.double().square().sum(1)


def test_a_curvature_of_forms_alone_scores_and_says_that_it_has_no_embedding():
    net, x = build(Sequence), images(8)
    assert len(scorer_of(net, curvature=FormsAlone(2)).score(x)) == 8
    with pytest.raises(InfluenceError, match="gives only scores"):
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


UNGROUPED = {
    "lists": [[1], [2], [3], [1], [2], [3]],
    "one row per image": np.zeros((6, 2)),
    "one row per image in a list": list(torch.zeros(6, 2)),
    "a missing value of pandas": pandas.array(["a", None, *"bbbb"], dtype="string"),
}


@pytest.mark.parametrize("case", UNGROUPED)
def test_labels_that_are_no_plain_values(case):
    scorer = scorer_of(build(Windows)).fit(images(6), keep=True)
    with pytest.raises(InfluenceError, match="group must hold one plain label per training image"):
        scorer.influence(images(2), group=UNGROUPED[case])


@pytest.mark.parametrize(
    ("group", "named"),
    [([1, "1", 2, 2, 2, 2], "1 and '1'"), (["nan", *[np.nan] * 5], "'nan' and nan")],
)
def test_labels_of_one_name_are_refused_and_equal_ones_are_one_group(group, named):
    scorer = scorer_of(build(Windows)).fit(images(6), keep=True)
    with pytest.raises(InfluenceError, match=f"group holds {named}, two labels of one name; give"):
        scorer.influence(images(2), group=group)
    found = scorer.influence(images(2), group=[1, 1.0, np.int64(1), 2, (3, 4), (3, 4)])
    assert found.names == ["1", "2", "(3, 4)"]

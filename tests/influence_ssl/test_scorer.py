"""Invariance to how the work is cut, and the untouched encoder."""

import os

import numpy as np
import pytest
import torch
from nets import Residual, Sequence, Windows, brute_force_gradients, build, images, score
from torch import nn
from torch.nn.utils import parametrizations

import influence_ssl
from influence_ssl import (
    Alignment,
    ExactHessian,
    GaussianNoise,
    Identity,
    InfluenceError,
    InfluenceScorer,
    Invariance,
    LoGra,
)


class Counted(torch.utils.data.Dataset):
    """A map-style data set that counts how often each item is read."""

    def __init__(self, x):
        self.x, self.reads = x, np.zeros(len(x), int)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.reads[i] += 1
        return self.x[i], f"image-{i}"


@pytest.mark.parametrize(("side", "most"), [(8, 256), (128, 64), (512, 8)])
def test_large_images_come_in_small_batches(side, most):
    """What the encoder sees at once: both views of each image."""
    seen = []
    net = nn.Sequential(nn.Conv2d(3, 2, 8, side // 4), nn.Flatten(), nn.LazyLinear(4))
    x = torch.rand(1, 3, side, side).expand(2 * most + 1, -1, -1, -1)
    net(x[:1])
    net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0]) // 2))
    score(net, x)
    assert max(seen) == most


def test_values_do_not_depend_on_batch_order_or_subset():
    net, x = build(Residual).float(), images(60).float()
    whole = score(net, x, batch_size=60)
    for batch_size in (1, 7, 256):
        np.testing.assert_allclose(score(net, x, batch_size=batch_size).values, whole.values,
                                   rtol=1e-4)  # fmt: skip
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    again = InfluenceScorer(net, batch_size=16, progress=False).score(x[shuffled], index=shuffled)
    np.testing.assert_allclose(again.values, whole.values[shuffled], rtol=1e-4)
    assert (again.index == shuffled.numpy()).all()
    scorer = InfluenceScorer(net, progress=False).fit(x)
    some = scorer.score(x[10:20], index=range(10, 20))
    np.testing.assert_allclose(some.values, whole.values[10:20], rtol=1e-4)


def test_a_data_set_and_a_tensor_score_the_same_and_are_read_once():
    net, x = build(Sequence), images(20)
    data = Counted(x)
    np.testing.assert_array_equal(score(net, data, batch_size=6).values,
                                  score(net, x, batch_size=6).values)  # fmt: skip
    # Some are read again: the first two to check the encoder, eight to check the data set.
    assert (data.reads == 1).sum() == 11
    in_one_line = influence_ssl.score(net, x, batch_size=6, progress=False)
    np.testing.assert_array_equal(in_one_line.values, score(net, x, batch_size=6).values)


class Several(Counted):
    """A data set that reads several items at once, some too many or too few."""

    extra = 0

    def __getitems__(self, rows):
        return [self[i] for i in range(rows[0], rows[-1] + 1 + self.extra * (len(rows) == 4))]


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_items_that_are_read_at_once_must_be_as_many_as_asked_for(extra):
    net, x = build(Sequence), images(20)
    data = Several(x)
    data.extra = extra
    if extra:
        with pytest.raises(ValueError, match=r"zip\(\) argument 2 is (longer|shorter)"):
            score(net, data, batch_size=4)
    else:
        expected = score(net, x, batch_size=4).values
        np.testing.assert_array_equal(score(net, data, batch_size=4).values, expected)


class Counting:
    """A perturbation that counts its calls and stops the run at one of them."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, index, draw, seed):
        self.calls += 1
        if str(self.calls) == os.environ.get("STOP"):  # which is no part of its state
            raise KeyboardInterrupt
        return x + 0.1 * (1 + draw) * x.square()


def test_a_stopped_run_goes_on_from_its_store(tmp_path, monkeypatch):
    """16 batches, stopped in the sixth: five are kept, not run again, and nothing changes.

    Opening the store costs one call per draw, of two images.
    """
    net, x = build(Sequence), images(40)
    settings = {"batch_size": 5, "draws": 2}
    whole = Counting()
    expected = score(net, x, objective=Invariance(whole), **settings)
    settings["store"] = tmp_path
    monkeypatch.setenv("STOP", str(whole.calls - 10 + 2))
    with pytest.raises(KeyboardInterrupt):
        score(net, x, objective=Invariance(Counting()), **settings)
    monkeypatch.delenv("STOP")
    assert len(list(tmp_path.glob("*-*.safetensors"))) == 5
    rest = Counting()
    found = score(net, x, objective=Invariance(rest), **settings)
    assert rest.calls == whole.calls - 5 + 2
    np.testing.assert_array_equal(found.values, expected.values)


def test_a_store_knows_its_images_and_mends_a_damaged_file(tmp_path):
    net, x, y = build(Sequence), images(12), images(24)[12:]
    expected = InfluenceScorer(net, progress=False).fit(x).score(y)
    store = tmp_path / "not" / "made" / "yet"
    stored = InfluenceScorer(net, progress=False, batch_size=4, store=store)
    np.testing.assert_allclose(stored.fit(x).score(y).values, expected.values, rtol=1e-9)
    assert len(list(store.glob("*-*.safetensors"))) == 6
    for path, size in zip(
        sorted(store.glob("*-*.safetensors")), (0, 100, 150, 0, 100, 150), strict=True
    ):
        path.write_bytes(path.read_bytes()[:size])
    np.testing.assert_allclose(stored.fit(x).score(y).values, expected.values, rtol=1e-9)
    # The same images under other indices have other noise.
    other = stored.score(x, index=range(100, 112)).values
    np.testing.assert_allclose(other, InfluenceScorer(net, progress=False).fit(x).score(
        x, index=range(100, 112)).values, rtol=1e-9)  # fmt: skip


def test_a_parametrised_weight_scores_like_the_plain_weight_it_stands_for():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.GELU(), nn.Flatten(), nn.LazyLinear(5)).double()
    x = images(20)
    net(x)
    expected = score(net, x)
    parametrizations.weight_norm(net[0])
    np.testing.assert_allclose(score(net, x).values, expected.values, rtol=1e-9)


def test_a_perturbation_may_work_in_place():
    net, x = build(Residual), images(12)

    def added(x, index, draw, seed):
        return x + index[:, None, None, None] / 50

    def in_place(x, index, draw, seed):
        return x.add_(index[:, None, None, None] / 50)

    before = x.clone()
    found = score(net, x, objective=Invariance(in_place)).values
    np.testing.assert_array_equal(found, score(net, x, objective=Invariance(added)).values)
    assert torch.equal(x, before)


def test_gradients_that_do_not_fit_are_computed_again(monkeypatch):
    net, x = build(Sequence), images(20)
    kept = score(net, x, draws=2)
    monkeypatch.setattr("influence_ssl._passes.free_memory", lambda device: 0)
    np.testing.assert_array_equal(score(net, x, draws=2).values, kept.values)


def test_precision_and_grad_mode_of_the_caller_do_not_matter():
    net, x = build(Windows), images(20)
    expected = score(net, x)
    with torch.no_grad():
        np.testing.assert_array_equal(score(net, x).values, expected.values)
    with torch.inference_mode():
        inside = score(net, images(20))
    np.testing.assert_array_equal(inside.values, expected.values)


def test_fit_keeps_the_curvature():
    net, x = build(Sequence), images(30)
    scorer = InfluenceScorer(net, progress=False)
    alone = scorer.score(x[:10])
    assert not hasattr(scorer, "fit_")
    scorer.fit(x)
    assert scorer.score(x[:10]).provenance["fitted gradients"] == 30
    assert not np.allclose(scorer.score(x[:10]).values, alone.values)


def test_a_zero_gradient_scores_zero():
    net, x = build(Windows), images(6)
    found = score(net, x, objective=Invariance(GaussianNoise(0, 0)))
    np.testing.assert_array_equal(found.values, 0)


def test_provenance_names_what_is_left_out():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(4, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            tokens = self.embed(x)
            return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)

    torch.manual_seed(0)
    found = score(Attention(), torch.randn(8, 5, 4)).provenance
    assert list(found["layers"]) == ["embed"]
    assert set(found["left out"]) == {
        "embed.bias", "attention.in_proj_weight", "attention.in_proj_bias",
        "attention.out_proj.weight", "attention.out_proj.bias",
    }  # fmt: skip


def test_modules_that_share_a_weight_make_one_layer():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x).tanh())

    torch.manual_seed(0)
    net, x = Tied().double(), torch.randn(9, 5, dtype=torch.float64)
    noisy = x + 0.3
    expected = []
    for clean, other in zip(x, noisy, strict=True):
        z, z_hat = net(clean[None]), net(other[None])
        (g,) = torch.autograd.grad((z - z_hat).square().sum(), [net.first.weight])
        expected.append(-g.square().sum().item())
    objective = Invariance(lambda x, index, draw, seed: x + 0.3, "squared")
    found = score(net, x, objective=objective, curvature=Identity())
    assert list(found.provenance["layers"]) == ["first"]
    np.testing.assert_allclose(found.values, expected, rtol=1e-10)


def snapshot(net):
    state = {name: value.clone() for name, value in net.state_dict().items()}
    flags = {name: (p.requires_grad, p.grad) for name, p in net.named_parameters()}
    modes = [module.training for module in net.modules()]
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for m in net.modules()
    ]
    return state, flags, modes, hooks


@pytest.mark.parametrize("trouble", [None, RuntimeError("in the middle"), KeyboardInterrupt()])
@pytest.mark.parametrize(("kind", "curvature"), [(Residual, LoGra()), (Windows, ExactHessian(0.1))])
def test_the_encoder_is_left_as_it_was_found(trouble, kind, curvature):
    net, x = build(kind), images(20)
    next(net.children()).eval()
    next(net.parameters()).requires_grad_(False)
    if isinstance(curvature, LoGra):  # torch.func refuses a buffer that counts
        net.register_buffer("seen", torch.zeros(()))
        net.register_forward_hook(lambda module, *_: module.seen.add_(1) and None)
    before = snapshot(net)
    calls = 0

    def perturbation(x, index, draw, seed):
        nonlocal calls
        calls += 1
        if trouble is not None and calls == 10:  # after the checks
            raise trouble
        return x + 0.1 * x.square()

    scorer = InfluenceScorer(net, Invariance(perturbation), curvature, batch_size=4, progress=False)
    original = x.clone()
    if trouble is None:
        scorer.score(x)
    else:
        with pytest.raises((InfluenceError, KeyboardInterrupt)) as caught:
            scorer.score(x)
        assert trouble in (caught.value, caught.value.__cause__)
    after = snapshot(net)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:] == after[1:]
    assert torch.equal(x, original)


def test_an_encoder_that_works_in_place_leaves_the_images_alone():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(12, 4)

        def forward(self, x):
            return self.head(x.sub_(0.5).flatten(1))

    torch.manual_seed(0)
    x = torch.randn(6, 3, 2, 2)
    original = x.clone()
    net = InPlace()
    score(net, x)
    assert torch.equal(x, original)
    # An objective that does not encode the images themselves first leaves that to the scorer.
    settings = {"objective": Alignment(lambda one: one + 0.1 * torch.randn(3, 2, 2)), "draws": 2}
    found = InfluenceScorer(net, progress=False, **settings).score(x, representations=True)
    assert torch.equal(x, original)
    np.testing.assert_array_equal(found.values, score(net, x, **settings).values)
    expected = net.head((x - 0.5).flatten(1)).detach()
    np.testing.assert_allclose(found.representations, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("batch_size", [5, 32])
def test_scores_carry_what_the_pass_computed(tmp_path, stored, batch_size):
    """Against plain forward passes and against the squared norm that is its own curvature."""
    net, x = build(Sequence), images(12)
    settings = {"draws": 2, "batch_size": batch_size, "store": tmp_path if stored else None}
    scorer = InfluenceScorer(net, curvature=LoGra(None), progress=False, **settings)
    for _ in range(1 + stored):  # the second time from the store
        scorer.score(x)  # what this one stores lacks the representations
        found = scorer.score(x, representations=True)
        with torch.no_grad():
            z = net.eval()(x)
            noisy = [net(GaussianNoise()(x, torch.arange(12), draw, 0)) for draw in (0, 1)]
        losses = [1 - torch.cosine_similarity(z, w) for w in noisy]
        np.testing.assert_allclose(found.loss, sum(losses) / 2, rtol=1e-9)
        np.testing.assert_allclose(found.representations, z.float(), rtol=1e-6)
        norms = np.sqrt(-score(net, x, curvature=Identity(), draws=2).per_draw).mean(0)
        np.testing.assert_allclose(found.gradient_norm, norms, rtol=1e-9)
        np.testing.assert_allclose(found.per_draw.mean(0), found.values, rtol=1e-12)
        np.testing.assert_allclose(
            found.per_draw.std(0, ddof=1) / np.sqrt(2), found.standard_error, rtol=1e-9
        )
    assert scorer.score(x).representations is None


def test_representations_are_f_of_x_also_where_the_objective_never_encodes_x():
    net, x = build(Sequence), images(12)

    def two_views(encode, batch, index, draw, seed):
        z, w = encode(torch.cat([batch[0] + 0.1, batch[0] - 0.1])).chunk(2)
        return (z - w).square().sum(1)

    found = InfluenceScorer(net, two_views, progress=False).score(x, representations=True)
    with torch.no_grad():
        np.testing.assert_allclose(found.representations, net.eval()(x).float(), rtol=1e-6)


def test_gradients_are_those_of_autograd_draw_by_draw():
    net, x = build(Sequence), images(12)
    scorer = InfluenceScorer(net, curvature=Identity(), draws=2, batch_size=5, progress=False)
    expected = [
        np.hstack(brute_force_gradients(net, x, GaussianNoise()(x, torch.arange(12), draw, 0)))
        for draw in (0, 1)
    ]
    for _ in range(2):  # the second time after a fit
        found = torch.cat(list(scorer.gradients(x)))
        np.testing.assert_allclose(found, np.vstack(expected), rtol=1e-8, atol=1e-14)
        scorer.fit(x)


def test_code_between_two_batches_of_gradients_runs_in_its_own_modes():
    net, x = build(Residual).train(), images(1100)
    scorer = InfluenceScorer(net, curvature=LoGra(rank=2), progress=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rows = scorer.gradients(x)
        first = next(rows)
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
        assert first.dtype == next(rows).dtype == torch.float64
        rows.close()  # before the end
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert net.training
    assert all(p.requires_grad for p in net.parameters())


def test_scores_between_two_batches_of_gradients_change_nothing():
    net, x = build(Sequence), images(40)
    scorer = InfluenceScorer(net, batch_size=4, progress=False)
    expected, values = torch.cat(list(scorer.gradients(x))), score(net, x).values
    rows = scorer.gradients(x)
    first = next(rows)
    np.testing.assert_array_equal(score(net, x).values, values)
    assert torch.equal(torch.cat([first, *rows]), expected)
    np.testing.assert_array_equal(score(net, x).values, values)


def test_a_scorer_says_what_it_is():
    net, x = build(Sequence), images(12)
    scorer = InfluenceScorer(net, curvature=LoGra(rank=2), dtype=torch.float32, progress=False)
    settings = f"Sequence, objective={Invariance()!r}, curvature={LoGra(rank=2)!r}, draws=1, seed=0"
    assert repr(scorer) == f"InfluenceScorer({settings}, dtype=torch.float32; not fitted)"
    assert repr(scorer.fit(x)).endswith("; fitted on 12 gradients)")

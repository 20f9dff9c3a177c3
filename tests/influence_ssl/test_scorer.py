"""Invariance to how the work is cut, the untouched encoder, and the errors."""

import threading

import numpy as np
import pytest
import torch
from nets import Residual, Sequence, Windows, build, images
from torch import nn

import influence_ssl
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


def score(net, x, **settings):
    return InfluenceScorer(net, progress=False, **settings).score(x)


def ranks_agree(a, b):
    order = [np.argsort(np.argsort(s.values)) for s in (a, b)]
    return np.corrcoef(*order)[0, 1]


class Counted(torch.utils.data.Dataset):
    """A map-style data set that counts how often each item is read."""

    def __init__(self, x):
        self.x, self.reads = x, np.zeros(len(x), int)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.reads[i] += 1
        return self.x[i], f"image-{i}"


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
    # The first two are read again, to check the encoder.
    assert data.reads[3:].max() == 1
    in_one_line = influence_ssl.score(net, x, batch_size=6, progress=False)
    np.testing.assert_array_equal(in_one_line.values, score(net, x, batch_size=6).values)


class Counting:
    """A perturbation that counts its calls and stops the run at one of them."""

    def __init__(self, stop=None):
        self.calls, self.stop = 0, stop

    def __call__(self, x, index, draw, seed):
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        return x + 0.1 * (1 + draw) * x.square()


def test_a_stopped_run_goes_on_from_its_store(tmp_path):
    """16 batches, stopped in the sixth: five are kept, not run again, and nothing changes."""
    net, x = build(Sequence), images(40)
    settings = {"batch_size": 5, "draws": 2}
    whole = Counting()
    expected = score(net, x, objective=Invariance(whole), **settings)
    settings["store"] = tmp_path
    with pytest.raises(KeyboardInterrupt):
        score(net, x, objective=Invariance(Counting(stop=whole.calls - 10)), **settings)
    assert len(list(tmp_path.iterdir())) == 5
    rest = Counting()
    found = score(net, x, objective=Invariance(rest), **settings)
    assert rest.calls == whole.calls - 5
    np.testing.assert_array_equal(found.values, expected.values)


def test_gradients_that_do_not_fit_are_computed_again(monkeypatch):
    net, x = build(Sequence), images(20)
    kept = score(net, x, draws=2)
    monkeypatch.setattr("influence_ssl.scorer.free_memory", lambda device: 0)
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
    assert not hasattr(scorer, "fitted_")
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
    before = snapshot(net)
    calls = 0

    def perturbation(x, index, draw, seed):
        nonlocal calls
        calls += 1
        if trouble is not None and calls == 6:
            raise trouble
        return x + 0.1 * x.square()

    scorer = InfluenceScorer(net, Invariance(perturbation), curvature, batch_size=4, progress=False)
    original = x.clone()
    if trouble is None:
        scorer.score(x)
    else:
        with pytest.raises(type(trouble)):
            scorer.score(x)
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
    score(InPlace(), x)
    assert torch.equal(x, original)


class Mixing(nn.Module):
    """Subtracts the batch mean after its first layer: a score would depend on the company."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 6), nn.Linear(6, 4)

    def forward(self, x):
        h = self.first(x.flatten(1))
        return self.second(h - h.mean(0) * (len(h) > 2))


def test_a_little_mixing_is_found_in_float32_too():
    """A coupling of 1e-4 drowns in no rounding: the check runs in float64."""

    class Coupled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(12, 6), nn.Linear(6, 4)

        def forward(self, x):
            h = self.first(x.flatten(1))
            return self.second(h + 1e-4 * h.mean(0))

    torch.manual_seed(0)
    with pytest.raises(InfluenceError, match="the input of layer 'second' depends on"):
        score(Coupled(), X)


class Standardised(nn.Conv2d):
    """A convolution by a function of its weight, as in weight standardisation."""

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.linear = function, nn.Linear(12, 4)

    def forward(self, x):
        return self.function(self.linear, x.flatten(1))


def standardised():
    return nn.Sequential(Standardised(3, 4, 1), nn.Flatten(), nn.Linear(16, 4))


X = images(6, size=2).float()
BAD_ENCODERS = {
    "calls no Conv2d or Linear": nn.Sequential(nn.Flatten(), nn.LayerNorm(12)),
    "has no floating-point weights": nn.Flatten(),
    r"must return \(B, D\)": Lambda(lambda linear, x: linear(x)[:, :, None]),
    "returned a tuple": Lambda(lambda linear, x: (linear(x), x)),
    "the input of layer 'second' depends on the other images": Mixing(),
    "layer '0' does not compute a plain Standardised": standardised(),
    "representation of the clean image 0 is zero": Lambda(lambda linear, x: linear(x) * 0),
    "representation of the clean image 0 is not finite": Lambda(lambda linear, x: linear(x) / 0),
    "depends on the other images of the batch or on chance": Lambda(
        lambda linear, x: linear(nn.functional.dropout(x, 0.5))
    ),
}


@pytest.mark.parametrize("message", BAD_ENCODERS)
def test_unusable_encoders(message):
    torch.manual_seed(0)
    with pytest.raises(InfluenceError, match=message) as caught:
        score(BAD_ENCODERS[message], X)
    assert "\n" not in str(caught.value)


def test_windows_that_do_not_keep_examples_together_are_refused():
    with pytest.raises(InfluenceError, match="layer 'mix' depends on the other images"):
        score(build(Windows, example_first=False), images())


def test_a_layer_whose_rows_do_not_divide_is_refused_or_left_out():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd, self.head = nn.Linear(12, 12), nn.Linear(12, 4)

        def forward(self, x):
            x = x.flatten(1)
            return self.head(x + self.odd(torch.cat([x, x[:1]]))[:-1])

    torch.manual_seed(0)
    with pytest.raises(InfluenceError, match="layer 'odd' receives"):
        score(Odd(), images(7, size=2).float())
    assert len(score(Odd(), images(7, size=2).float(), layers=["head"])) == 7


class Ragged:
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return torch.zeros(3, 2, 2 + (i == 2))


def spoiled(value):
    x = X.clone()
    x[4, 0, 1, 1] = value
    return x


BAD_IMAGES = {
    "images is empty": X[:0],
    "image 2 has shape": Ragged(),
    "image 4 has NaN or infinite": spoiled(float("nan")),
    "image 4 has NaN or infinite values": spoiled(float("inf")),
    "images are torch.uint8": X.byte(),
    "without a length": iter([X]),
    "item 0 of the data set begins with a str": ["a.png"],
}


@pytest.mark.parametrize("message", BAD_IMAGES)
def test_unusable_images(message):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with pytest.raises(InfluenceError, match=message) as caught:
        score(net, BAD_IMAGES[message], batch_size=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoGra(rank=0), "rank=0 must be a positive integer"),
        (lambda: LoGra(damping=-1.0), "damping=-1.0 must be finite and at least 0"),
        (lambda: EmpiricalFisher(float("nan")), "damping=nan"),
        (lambda: EmpiricalFisher("0.1"), "damping='0.1' must be a number"),
        (lambda: ExactHessian(-0.1), "damping=-0.1"),
        (lambda: ExactHessian(Relative(0.1)), "must be a float"),
        (lambda: Relative(-1), "c=-1 must be finite"),
        (lambda: GaussianNoise(std=-0.1), "std=-0.1"),
        (lambda: Invariance(distance="dot"), "distance='dot' is unknown"),
        (lambda: Invariance(0.2), "perturbation is a float"),
        (lambda: Supervised("hinge"), "loss='hinge' is unknown"),
        (lambda: InfluenceScorer(lambda x: x), "encoder is a function"),
        (lambda: InfluenceScorer(build(Windows), draws=0), "draws=0 must be an integer"),
        (lambda: InfluenceScorer(build(Windows), dtype=torch.int8), "floating-point type"),
    ],
)
def test_bad_arguments_are_refused_at_construction(make, message):
    with pytest.raises(InfluenceError, match=message):
        make()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["hed"]}, "'hed' is not a Conv2d or Linear of the encoder; these are: stem"),
        ({"layers": ["norm"]}, "'norm' is not a Conv2d or Linear"),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used"),
        ({"objective": Supervised()}, "needs labels"),
        (
            {"objective": lambda encode, batch, *_: encode(batch[0]).sum()[None]},
            "must return one loss for each",
        ),
        ({"objective": Invariance(lambda x, *_: x[:, :2])}, "must keep the shape"),
    ],
)
def test_settings_that_do_not_fit_the_encoder(settings, message):
    with pytest.raises(InfluenceError, match=message):
        score(build(Residual), images(4), **settings)


def test_a_named_layer_that_is_never_called():
    net = build(Residual)
    net.spare = nn.Linear(2, 2).double()
    with pytest.raises(InfluenceError, match="'spare' is never called"):
        score(net, images(4), layers=["head", "spare"])
    assert len(score(net, images(4), layers=["head"])) == 4


@pytest.mark.parametrize(
    ("curvature", "message"),
    [
        (LoGra(rank=8, joint=True), r"the largest rank that does is [1-7]\."),
        (LoGra(rank=None), "the largest rank that does is"),
        (EmpiricalFisher(), "the largest number that does is"),
        (ExactHessian(), "the largest number that does is"),
    ],
)
def test_too_little_memory_names_the_largest_that_fits(monkeypatch, curvature, message):
    monkeypatch.setattr("influence_ssl.curvature.free_memory", lambda device: 24.0 * 40**2)
    with pytest.raises(InfluenceError, match=message):
        score(build(Residual), images(60), curvature=curvature)


def test_two_scorers_may_run_in_two_threads():
    x = images(40)
    expected = [score(build(Windows, seed=s), x).values for s in (0, 1)]
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda s=s: found.update({s: score(build(Windows, s), x).values}))
        for s in (0, 1)
    ]
    torch.manual_seed(0)
    for thread in threads:
        thread.start()
        thread.join()
    for s in (0, 1):
        np.testing.assert_array_equal(found[s], expected[s])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cuda_agrees_with_the_cpu(dtype):
    net, x = build(Residual), images(100)
    expected, found = score(net, x), score(net, x, device="cuda", dtype=dtype)
    assert next(net.parameters()).device.type == "cpu"
    assert ranks_agree(expected, found) >= 0.999
    if dtype == torch.float64:
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-8)

"""Every fast path against its slow twin."""

import copy

import numpy as np
import pytest
import torch
from nets import Kept, Residual, brute_force_gradients, build, images
from torch import nn
from torch.nn.utils import prune

from influence_ssl import (
    GaussianNoise,
    Identity,
    InfluenceError,
    InfluenceScorer,
    Invariance,
    LoGra,
    Supervised,
)
from influence_ssl._checks import prepare
from influence_ssl._gradients import Capture, untouched


def pass_of(net, x, rank=3):
    """Whether batch norm was folded, the gradients, and autograd's of the original weights."""
    curvature = Kept(LoGra(rank))
    InfluenceScorer(net, curvature=curvature, progress=False).fit(x)
    exact = copy.deepcopy(net).double()
    x_hat = GaussianNoise()(x, torch.arange(len(x)), 0, 0)
    names = [n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    brute = brute_force_gradients(exact, x.double(), x_hat.double())
    found = dict(zip(names, map(torch.from_numpy, brute), strict=True))
    slow = []
    for layer in curvature.layers:
        g = found[layer.name].unflatten(1, (layer.out_features, layer.in_features))
        slow.append(layer.left.double() @ g @ layer.right.double().T)
    folded = any(layer.scale is not None for layer in curvature.layers)
    return folded, curvature.rows, torch.cat([g.flatten(1) for g in slow], 1)


@pytest.mark.parametrize("rank", [2, 8])
def test_folded_batch_norm_gives_the_gradients_of_the_original_weights(rank):
    net, x = build(Residual), images(12)
    nn.init.normal_(net.norm.weight), nn.init.normal_(net.norm.bias)
    folded, fast, slow = pass_of(net, x, rank)
    assert folded
    np.testing.assert_allclose(fast, slow, rtol=1e-8, atol=1e-12)


class Side(nn.Module):
    """Batch norm with a small weight behind a convolution that a weak side path reads too."""

    def __init__(self, γ=1.0, side=1.0):
        super().__init__()
        self.conv, self.norm, self.side = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), side
        self.head = nn.Linear(4, 6)
        nn.init.constant_(self.norm.weight, γ)

    def forward(self, x):
        x = self.conv(x)
        return self.head((self.norm(x) + self.side * x).mean((2, 3)))


@pytest.mark.parametrize(("γ", "side"), [(1.0, 1.0), (0.003, 1e-4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batch_norm_whose_input_is_used_elsewhere_is_not_folded(γ, side, dtype):
    net, x = build(Side, γ=γ, side=side).to(dtype), images().to(dtype)
    folded, fast, slow = pass_of(net, x)
    assert not folded
    loose = 1e-9 if dtype == torch.float64 else 1e-3
    np.testing.assert_allclose(fast, slow, rtol=loose, atol=loose * float(slow.abs().max()))


def pruned(conv):
    prune.random_unstructured(conv, "weight", 0.3)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm, pruned])
def test_a_weight_that_is_made_in_a_hook_scores_as_the_plain_one(wrap):
    """Folding cannot take it, and must not fail for it."""
    net, x = build(Residual), images(12)
    wrap(net.stem)
    net.eval()
    net(x[:1])
    plain = build(Residual)
    plain.load_state_dict(net.state_dict(), strict=False)
    plain.stem.weight.data = net.stem.weight.detach().clone()
    settings = {"curvature": LoGra(rank=3), "progress": False}
    expected = InfluenceScorer(plain, **settings).score(x).values
    np.testing.assert_allclose(InfluenceScorer(net, **settings).score(x).values, expected, 1e-9)


@pytest.mark.parametrize("rank", [2, 8, None])
def test_products_in_bfloat16_lose_less_than_the_pass_in_bfloat16_does(rank):
    """Rounding products moves the gradients far less than rounding activations."""
    net, x, found = build(Residual), images(12), []
    curvature = Identity() if rank is None else LoGra(rank)
    for dtype, products in (
        (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ):  # fmt: skip
        own, index = Capture(net, [], Invariance(), 0), torch.arange(len(x))
        with untouched(net):
            first, device = ((x[:2],), index[:2]), torch.device("cpu")
            capture, _ = prepare(own, None, curvature.project, *first, device, dtype)
            assert capture.products in (torch.bfloat16, torch.float64)
            capture.products = products
            found.append(capture.flat((x,), index, 0))
    fast, slow, exact = found
    assert fast.dtype == torch.float32
    assert 0 < (fast - slow).norm() <= 0.2 * (slow - exact).norm()


def test_float16_does_not_lose_small_gradients():
    """δ = 1e-4 and a = 1e-4 are numbers of float16, their product is none."""
    layer = nn.Linear(3, 2, bias=False).half()
    x, y = torch.full((4, 3), 1e-4).half(), torch.zeros(4)
    objective = Supervised(loss=lambda output, _: 1e-4 * output.sum(1))
    scorer = InfluenceScorer(layer, objective, Identity(), progress=False)
    found = scorer.score(torch.utils.data.TensorDataset(x, y)).magnitude
    np.testing.assert_allclose(found, 6 * 1e-16, rtol=5e-3)


@pytest.mark.parametrize("joint", [False, True])
def test_the_forms_in_single_precision_are_those_in_double(joint):
    """More images than directions, so that the covariance itself is factorised."""
    net, x = build(Residual), images(150)
    settings = {"curvature": LoGra(rank=3, joint=joint), "progress": False}
    single = InfluenceScorer(net, dtype=torch.float32, **settings).score(x)
    double = InfluenceScorer(net, **settings).score(x)
    np.testing.assert_allclose(single.values, double.values, rtol=2e-3)


def test_the_curvature_does_not_see_how_gradients_are_gathered():
    """Of 1,400 gradients it gets 950 and 450, twice 700, or 1,000 and 400."""
    net, x, rows, found = build(Residual), images(700), [], []
    for step in (250, 700, 50):
        settings = {"curvature": LoGra(rank=2), "draws": 2, "batch_size": step, "progress": False}
        scorer = InfluenceScorer(net, **settings)
        rows.append([len(g) for g in scorer.gradients(x)])
        found.append(scorer.score(x).values)
    assert rows == [[950, 450], [700, 700], [1000, 400]]
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=1e-9)


def test_an_image_whose_gradient_is_not_finite_is_named_at_the_end_of_the_pass():
    def objective(encode, batch, index, draw, seed):
        z = encode(batch[0])
        return torch.where(index == 7, torch.nan, 1.0) * z.square().sum(1)

    with pytest.raises(InfluenceError, match="the gradient of image 7 is not finite"):
        InfluenceScorer(build(Residual), objective, batch_size=3, progress=False).score(images(12))


@pytest.mark.parametrize(("free", "said"), [(1e12, "score (0.0 GB kept)"), (0, "two passes")])
def test_the_progress_bar_says_what_is_kept(monkeypatch, capsys, free, said):
    monkeypatch.setattr("influence_ssl._passes.free_memory", lambda device: free)
    InfluenceScorer(build(Residual), batch_size=3).score(images(12))
    assert said in capsys.readouterr().err

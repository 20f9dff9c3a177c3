"""Every fast path against its slow twin."""

import copy

import numpy as np
import pytest
import torch
from nets import Residual, build, images
from torch import nn

from influence_ssl import Identity, InfluenceError, InfluenceScorer, LoGra, Supervised
from influence_ssl.gradients import fold_batch_norm


def captures(net, x, rank=3):
    """The capture of the scorer, batch norm folded, and the plain one that it was made from."""
    scorer = InfluenceScorer(net, curvature=LoGra(rank=rank), progress=False)
    with scorer._gradients(x, None, "test") as gradients:
        folded = gradients.capture
        plain = scorer._capture(copy.deepcopy(net).eval().requires_grad_(False), gradients.examples)
        index = torch.arange(len(x))
        yield from ((c, c.flat((x,), index, 0)) for c in (folded, plain))


@pytest.mark.parametrize("rank", [2, 8])
def test_folded_batch_norm_gives_the_gradients_of_the_original_weights(rank):
    net, x = build(Residual), images(12)
    nn.init.normal_(net.norm.weight), nn.init.normal_(net.norm.bias)
    (folded, fast), (plain, slow) = captures(net, x, rank)
    assert type(folded.encoder.norm) is nn.Identity
    assert type(plain.encoder.norm) is nn.BatchNorm2d
    np.testing.assert_allclose(fast, slow, rtol=1e-10, atol=1e-14)


def test_batch_norm_whose_input_is_used_elsewhere_is_not_folded():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return (x + self.norm(x)).mean((2, 3))

    (_, fast), (plain, slow) = captures(build(Twice), images())
    assert fold_batch_norm(plain, images(2)) is plain
    np.testing.assert_array_equal(fast, slow)


@pytest.mark.parametrize("rank", [2, 8, None])
def test_products_in_bfloat16_lose_less_than_the_pass_in_bfloat16_does(rank):
    """Rounding products moves the gradients far less than rounding activations."""
    net, x, found = build(Residual), images(12), []
    curvature = Identity() if rank is None else LoGra(rank)
    for dtype, products in (
        (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ):  # fmt: skip
        scorer = InfluenceScorer(net, curvature=curvature, dtype=dtype, progress=False)
        with scorer._gradients(x, None, "test") as gradients:
            assert gradients.capture.products in (torch.bfloat16, torch.float64)
            gradients.capture.products = products
            found.append(gradients.capture.flat((x,), torch.arange(len(x)), 0))
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


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_curvature_does_not_see_how_gradients_are_gathered(monkeypatch, chunk):
    net, x = build(Residual), images(30)
    settings = {"curvature": LoGra(rank=2), "draws": 2, "batch_size": 3, "progress": False}
    expected = InfluenceScorer(net, **settings).score(x)
    monkeypatch.setattr("influence_ssl._passes._CHUNK", chunk)
    found = InfluenceScorer(net, **settings).score(x)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-9)


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

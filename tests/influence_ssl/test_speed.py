"""Every fast path against its slow twin."""

import copy

import numpy as np
import pytest
import torch
from nets import Residual, build, images
from torch import nn

from influence_ssl import InfluenceScorer, LoGra
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

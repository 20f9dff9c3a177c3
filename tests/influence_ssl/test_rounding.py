"""How far two passes may differ by rounding, against autograd and the precision of the types."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_ssl import Invariance
from influence_ssl._gradients import Capture
from influence_ssl._layers import Layer
from influence_ssl._rounding import Rounding, near, of_casts, of_noise, usual

INDEX = torch.arange(1)
TYPES = (torch.float64, torch.float32, torch.bfloat16)


class Through(nn.Module):
    """A linear layer behind casts to other types."""

    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        self.dtypes = dtypes
        self.linear = nn.Linear(6, 4, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        for dtype in self.dtypes:
            x = x.to(dtype).to(x.dtype) + x
        return self.linear(x)


def capture(net: Any, objective: Any) -> Capture:
    layer = Layer("linear", [net.linear], 4, 6)
    return Capture(net, [layer], objective, 0)


def test_a_coarser_type_may_differ_by_more_and_always_by_more_than_it_rounds() -> None:
    fine, single, coarse = map(usual, TYPES)
    for a, b in ((fine, single), (single, coarse)):
        assert a.values < b.values
        assert a.gradients < b.gradients
        assert a.floor < b.floor
    for dtype, rounding in zip(TYPES, (fine, single, coarse), strict=True):
        assert rounding.values > torch.finfo(dtype).eps


def test_the_coarsest_cast_of_an_encoder_gives_the_tolerances() -> None:
    image = torch.rand(1, 6, dtype=torch.float64)

    def found(net: nn.Module) -> Rounding | None:
        return of_casts(capture(net, Invariance()), (image,), INDEX)

    single, coarse = found(Through(torch.float32)), found(Through(torch.bfloat16))
    assert single is not None
    assert coarse is not None
    assert torch.finfo(torch.float32).eps < single.values < usual(torch.float32).values
    assert torch.finfo(torch.bfloat16).eps < coarse.values < usual(torch.bfloat16).values
    assert found(Through(torch.bfloat16, torch.float32)) == coarse
    assert found(Through(torch.float32, torch.bfloat16)) == coarse
    assert found(Through()) is None
    assert found(Through(torch.int64)) is None
    assert found(Through(torch.float32, torch.int64)) == single
    # A pass in single precision already has the tolerances of single precision.
    assert found(Through(torch.bfloat16).float()) is None


def apart(distance: float) -> Any:
    """One minus the cosine between an image and its copy, so far apart."""

    def objective(encode: Any, batch: Any, *_: Any) -> Tensor:
        (x,) = batch
        step = torch.linspace(-1, 1, 6, dtype=x.dtype)
        return 1 - F.cosine_similarity(encode(x), encode(x + distance * step))

    return objective


@pytest.mark.parametrize(("distance", "widened"), [(0.5, "no"), (1e-4, "some"), (1e-8, "most")])
def test_views_that_nearly_coincide_widen_the_tolerance_by_what_rounding_does(
    distance: float, widened: str
) -> None:
    """By a hundred times the change that a few units in the last place cause, up to a percent."""
    net, x = Through(), torch.rand(1, 6, dtype=torch.float64)
    own = capture(net, apart(distance))
    before = usual(torch.float64)

    def gradient(image: Tensor) -> Tensor:
        def bright(x: Tensor) -> Tensor:
            return net(x if image is x0 else x * (1 + 4 * torch.finfo(torch.float64).eps))

        return torch.autograd.grad(apart(distance)(bright, (x,)).sum(), net.linear.weight)[0]

    x0 = x
    plain, bright = gradient(x), gradient(x.clone())
    noise = 100 * float((plain - bright).norm() / plain.norm())
    found = of_noise(own, before, (x,), INDEX)
    assert replace(found, gradients=before.gradients, layers=()) == before
    assert found.layers == (found.gradients,)
    if widened == "no":
        assert noise < before.gradients == found.gradients
    elif widened == "most":
        assert noise > 0.01 == found.gradients
    else:
        # Rounding itself varies between orders of summation, its size does not.
        assert before.gradients < found.gradients < 0.01
        assert noise / 30 < found.gradients < noise * 30


@pytest.mark.parametrize(("distance", "widened"), [(0.5, "no"), (1e-3, "some"), (1e-7, "most")])
def test_casts_within_widen_it_by_what_rounding_does_in_their_type(
    distance: float, widened: str
) -> None:
    """By a hundred times the change that a few units in its last place cause, up to a fifth."""
    net, x = Through(torch.float32), torch.rand(1, 6, dtype=torch.float64)
    own = capture(net, apart(distance))
    before = of_casts(own, (x,), INDEX)
    assert before is not None
    if widened == "some":
        before = replace(before, gradients=1e-9)  # what double precision does is below that

    def gradient(bright: float) -> Tensor:
        loss = apart(distance)(lambda x: net(x * bright), (x,))
        return torch.autograd.grad(loss.sum(), net.linear.weight)[0]

    plain, bright = gradient(1.0), gradient(1 + 4 * torch.finfo(torch.float32).eps)
    noise = 100 * float((plain - bright).norm() / plain.norm())
    found = of_noise(own, before, (x,), INDEX)
    assert replace(found, gradients=before.gradients, layers=()) == before
    if widened == "no":
        assert noise < before.gradients == found.gradients
    elif widened == "most":
        assert noise > 0.2 == found.gradients
    else:
        assert before.gradients < found.gradients < 0.2
        assert noise / 30 < found.gradients < noise * 30


def test_a_layer_that_rounding_does_not_touch_keeps_its_tolerance() -> None:
    """One layer sees nearly coinciding views, the other sees them far apart."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4, bias=False, dtype=torch.float64)
            self.other = nn.Linear(6, 4, bias=False, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.linear(x[:, :6]), 1e6 * self.other(x[:, 6:])], 1)

    net, x = Two(), torch.rand(1, 12, dtype=torch.float64)
    step = torch.cat([torch.full((6,), 1e-13), torch.linspace(-1, 1, 6)]).double()

    def objective(encode: Any, batch: Any, *_: Any) -> Tensor:
        (a, b), (c, d) = (encode(y).split(4, 1) for y in (batch[0], batch[0] + step))
        return 1e26 * (a - c).square().sum(1) + 1e-12 * (b - d).square().sum(1)

    layers = [Layer(name, [getattr(net, name)], 4, 6) for name in ("linear", "other")]
    before = usual(torch.float64)
    found = of_noise(Capture(net, layers, objective, 0), before, (x,), INDEX)
    assert [found.of_layer(n) for n in (0, 1)] == [found.gradients, before.gradients]
    assert found.gradients > 100 * before.gradients
    assert [before.of_layer(n) for n in (0, 1)] == 2 * [before.gradients]


def test_near_measures_by_the_longer_of_the_two() -> None:
    one, two = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.4])
    assert near(one, two, 0.08)
    assert near(two, one, 0.08)
    assert not near(one, two, 0.06)
    assert near(one, two, 0.0, floor=0.41)
    assert not near(one, two, 0.0, floor=0.39)
    assert near(torch.zeros(3), torch.zeros(3), 0.0)
    assert not near(torch.zeros(3), torch.zeros(1, 3), 1.0)
    assert not near(torch.tensor([torch.nan]), torch.tensor([torch.nan]), 1.0)

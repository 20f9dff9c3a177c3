"""Where two examples in a batch differ from the same examples alone, case by case."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence_ssl import Invariance
from influence_ssl._differences import differences
from influence_ssl._gradients import Capture, Seen
from influence_ssl._layers import Layer
from influence_ssl._plain import Alone
from influence_ssl._rounding import Rounding


def batch_of_two(**changed: Any) -> tuple[Capture, list[Alone], Seen, list[Tensor]]:
    """A pass of two examples in one view through two layers, and each example alone."""
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    layers = [Layer("0", [net[0]], 2, 3), Layer("1", [net[1]], 2, 2)]
    x, y, z = torch.rand(2, 3), torch.rand(2, 2), torch.rand(2, 2)
    gradients = [torch.rand(2, 2, 3), torch.rand(2, 2, 2)]
    exact = {n: g[0].clone() for n, g in enumerate(gradients)}
    alone = [
        Alone(
            given=[x[i : i + 1]],
            outputs=[z[i : i + 1]],
            calls=[(0, x[i : i + 1], 1), (1, y[i : i + 1], 1)],
            losses=[torch.ones(1)],
            exact=exact if i == 0 else {},
        )
        for i in range(2)
    ]
    seen = Seen([x], [z], [(0, x, 2), (1, y, 2)], {0, 1}, losses=[torch.ones(2)])
    for name, value in changed.items():
        setattr(seen, name, value)
    return Capture(net, layers, Invariance(), 0), alone, seen, gradients


def found(case: tuple[Any, ...], rounding: Rounding | None = None) -> list[tuple[str, int]]:
    return differences(*case, rounding or Rounding(1e-6, 1e-6, 0.0))


def test_equal_passes_do_not_differ() -> None:
    assert found(batch_of_two()) == []


@pytest.mark.parametrize(
    ("what", "kind"), [("given", "given"), ("outputs", "output"), ("losses", "loss")]
)
def test_each_kind_of_difference_is_named(what: str, kind: str) -> None:
    case = batch_of_two()
    values = getattr(case[2], what)
    values[0] = values[0] * torch.tensor([1.0, 1.1]).view(2, *[1] * (values[0].ndim - 1))
    assert found(case) == [(kind, 0)]
    case = batch_of_two()
    getattr(case[2], what).append(getattr(case[2], what)[0])  # one call more than alone
    assert found(case) == [(kind, 0), (kind, 0)]
    case = batch_of_two()
    values = getattr(case[2], what)
    values[:] = [torch.cat([values[0], values[0][:1]])]  # rows that no two examples share
    assert found(case) == [(kind, 0), (kind, 0)]


def test_a_call_that_the_gradient_does_not_reach_may_differ() -> None:
    case = batch_of_two()
    case[2].calls[1] = (1, torch.rand(2, 2), 2)
    assert found(case) == [("input", 1), ("input", 1)]
    case[2].reached.remove(1)
    assert found(case) == []
    case[2].calls.reverse()
    assert ("calls", 0) in found(case)


def test_gradients_count_relative_to_their_own_layer_and_to_all_layers() -> None:
    case = batch_of_two()
    *_, gradients = case
    gradients[1][1] *= 2  # of the second example, whose gradient alone is not formed
    assert found(case) == []
    gradients[1][0] *= 1e-5
    case[1][0].exact[1] = gradients[1][0] * 2
    gap = float(gradients[1][0].norm())
    whole = float(sum(g[0].square().sum() for g in gradients)) ** 0.5
    assert found(case) == [("gradient", 1)]
    assert found(case, Rounding(1e-6, 0.51, 0.0)) == []
    assert found(case, Rounding(1e-6, 0.49, 0.0)) == [("gradient", 1)]
    assert found(case, Rounding(1e-6, 0.49, 0.0, layers=(1e-6, 0.51))) == []
    assert found(case, Rounding(1e-6, 0.51, 0.0, layers=(0.51, 0.49))) == [("gradient", 1)]
    assert found(case, Rounding(1e-6, 1e-6, 1.1 * gap / whole)) == []
    assert found(case, Rounding(1e-6, 1e-6, 0.9 * gap / whole)) == [("gradient", 1)]


def test_layers_whose_rows_are_not_shared_equally_are_reported() -> None:
    assert found(batch_of_two(odd={1: "an error"})) == [("odd", 1)]

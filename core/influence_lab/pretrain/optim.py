"""LARS and the warm-up-and-cosine schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

EPSILON = 1e-8


class LARS(torch.optim.Optimizer):
    r"""SGD with momentum whose step is proportional to each weight's norm (You et al. 2017).

    For a weight matrix or kernel :math:`w` with gradient :math:`g`

    .. math:: s = \frac{\eta\,|w|}{|g| + \beta |w| + 10^{-8}},\qquad
              m \leftarrow \mu m + s\,(g + \beta w),\qquad w \leftarrow w - \gamma m

    with weight decay :math:`\beta`, momentum :math:`\mu`, rate :math:`\gamma`. With ``clip``
    :math:`\min(s/\gamma, 1)` stands for :math:`s`: a step is then the smaller of LARS's, whatever
    the rate, and plain SGD's. Parameters of one dimension (biases, normalisation), and weights that
    are zero or have a zero gradient, get plain SGD with momentum and no weight decay. The rules are
    those of solo-learn with ``exclude_bias_n_norm``, and ``clip`` is its ``clip_lr``.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.02,
        clip: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta}
        super().__init__(parameters, defaults)
        self.clip = clip

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient; what ``closure`` returns, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if p.ndim > 1:
                    weight, gradient = p.norm(), update.norm()
                    decay = group["weight_decay"]
                    scale = group["eta"] * weight / (gradient + decay * weight + EPSILON)
                    if self.clip:
                        scale = (scale / group["lr"]).clamp(max=1)
                    usual = (weight > 0) & (gradient > 0)
                    update = torch.where(usual, (update + decay * p) * scale, update)
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].mul_(group["momentum"]).add_(update)
                p.sub_(state["momentum"], alpha=group["lr"])
        return loss


def learning_rate(step: int, steps: int, warmup: int, peak: float, start: float) -> float:
    """The rate at ``step`` of ``steps``: linear from ``start`` to ``peak``, then a cosine to 0."""
    if step < warmup:
        return start + (peak - start) * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def momentum_of_target(step: int, steps: int, base: float) -> float:
    """BYOL's target momentum: 1 − (1 − base)(cos(π step / steps) + 1) / 2 (Grill et al. 2020)."""
    return 1 - (1 - base) * (math.cos(math.pi * step / steps) + 1) / 2

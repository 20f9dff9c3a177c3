"""Batch norm in eval mode, folded into the preceding convolution: a faster pass, the same θ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from influence_ssl._layers import Layer

Pairs = list[tuple[str, str]]
Before = list[tuple[Layer, Any, nn.Parameter, nn.Parameter | None, Any]]


@contextmanager
def watched(encoder: nn.Module) -> Iterator[Pairs]:
    """The pairs of names (convolution, batch norm) in which the latter takes the former's output.

    Only modules without hooks and with a plain parameter as weight count.
    """
    pairs: Pairs = []
    outputs: dict[int, tuple[Tensor, str]] = {}  # each is kept, so that its id stays its own
    names: dict[nn.Module, str] = {m: name for name, m in encoder.named_modules()}

    def follow(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            outputs[id(output)] = output, names[module]
        elif inputs and id(inputs[0]) in outputs:
            pair = outputs[id(inputs[0])][1], names[module]
            if pair not in pairs:
                pairs.append(pair)

    with ExitStack() as hooks:
        for module in names:
            plain = type(module) is nn.Conv2d and module._parameters.get("weight") is not None
            if type(module) is nn.BatchNorm2d:
                plain = module.affine and module.track_running_stats
            if plain and not module._forward_pre_hooks and "forward" not in vars(module):
                hooks.enter_context(module.register_forward_hook(follow))
        yield pairs


@torch.no_grad()
def fold(encoder: nn.Module, layers: list[Layer], pairs: Pairs) -> Before:
    r"""Fold in place the pairs whose convolution is a layer; :func:`unfold` undoes the result.

    In eval mode batch norm is y = s ⊙ Wa + c, which a convolution with weight s ⊙ W and bias c
    gives at once. As :math:`\partial L/\partial(Wa) = s\odot\partial L/\partial y`, the
    projection P takes s, and θ stays the original W. Nothing is folded where one pair cannot be.
    """
    alone = {x.name: x for x in layers if len(x.modules) == 1 and x.left is not None}
    before: Before = []
    try:
        for name, norm_name in pairs:
            layer = alone.get(name)
            norm: Any = encoder.get_submodule(norm_name)
            if layer is None or layer.scale is not None or norm.__class__ is nn.Identity:
                continue
            convolution: Any = layer.modules[0]
            before.append((layer, convolution, convolution.weight, convolution.bias, norm))
            working = torch.promote_types(convolution.weight.dtype, torch.float32)
            parts = norm.running_mean, norm.running_var, norm.weight, norm.bias
            mean, variance, γ, β = (part.to(working) for part in parts)
            layer.scale = γ * (variance + norm.eps).rsqrt()
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight, convolution.bias, mean, variance, norm.eps, γ, β
            )
            norm.__class__ = nn.Identity
    except Exception:  # folding only saves time: what cannot be folded runs unfolded
        unfold(before)
        return []
    return before


def unfold(before: Before) -> None:
    """Undo what :func:`fold` did."""
    for layer, convolution, weight, bias, norm in before:
        convolution.weight, convolution.bias, layer.scale = weight, bias, None
        norm.__class__ = nn.BatchNorm2d

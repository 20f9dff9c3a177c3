r"""Per-example gradients of a loss with respect to layer weights, projected; none is ever summed.

For a ``Linear`` or ``Conv2d`` layer with weight W (O, I), where I counts the inputs of one output
(channels per group × kernel area), the gradient of example i is a sum over positions t (pixels,
tokens, views, repeated calls) of the layer's input a and the gradient δ at its output:

.. math:: G_i = \sum_t \delta_{it}\, a_{it}^\top \in \mathbb R^{O \times I}.

With a projection on each side (LoGra, Choe et al. 2024, arXiv:2405.13954),

.. math:: P\, G_i\, Q^\top = \sum_t (P \delta_{it})(Q a_{it})^\top \in \mathbb R^{r \times r},

so a is projected in the forward pass, δ in the backward pass, and no weight gradient is formed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from influence_ssl.errors import InfluenceTypeError, InfluenceValueError
from influence_ssl.objectives import Batch, Encode, Index

Objective = Callable[[Encode, Batch, Tensor, int, int], Tensor]


@dataclass
class Layer:
    """One weight of θ: the modules that use it, its shape as (O, I), its two projections.

    ``left`` is P (r, O), ``right`` is Q (r, I); ``None`` stands for the identity. ``scale`` s (O,)
    is there where the modules hold s ⊙ W, see :func:`fold_batch_norm`.
    """

    name: str
    modules: list[nn.Conv2d | nn.Linear]
    out_features: int
    in_features: int
    left: Tensor | None = None
    right: Tensor | None = None
    scale: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The weight itself."""
        return self.modules[0].weight

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the projected gradient."""
        rows = self.out_features if self.left is None else self.left.shape[0]
        columns = self.in_features if self.right is None else self.right.shape[0]
        return rows, columns

    @property
    def size(self) -> int:
        """Number of entries of the projected gradient."""
        return self.shape[0] * self.shape[1]

    def project(self, gradient: Float[Tensor, "o *i"]) -> Float[Tensor, "r c"]:
        """P G Qᵀ of a weight gradient that autograd formed, for the check."""
        gradient = gradient.flatten(1).to(torch.promote_types(gradient.dtype, torch.float32))
        gradient = gradient if self.left is None else self.left @ gradient
        return gradient if self.right is None else gradient @ self.right.T

    def inputs(self, module: nn.Module, a: Tensor) -> Float[Tensor, "n g t i"]:
        """Q a at each position: (rows, groups, positions, r or I)."""
        if isinstance(module, nn.Linear):
            a = a.reshape(a.shape[0], 1, -1, a.shape[-1])
            return a if self.right is None else a @ self.right.to(a.dtype).T
        assert isinstance(module, nn.Conv2d)
        n, g, padding = a.shape[0], module.groups, module.padding
        if module.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            a = F.pad(a, module._reversed_padding_repeated_twice, mode=mode)
            padding = (0, 0)
        if g > 1:
            a = a.reshape(n * g, a.shape[1] // g, *a.shape[2:])
        kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
        if self.right is None:
            columns = F.unfold(a, kernel, dilation, padding, stride)
        else:
            filters = self.right.to(a.dtype).reshape(-1, a.shape[1], *kernel)
            columns = F.conv2d(a, filters, None, stride, padding, dilation).flatten(2)
        return columns.transpose(1, 2).unflatten(0, (n, g))

    def contract(
        self, module: nn.Module, columns: Float[Tensor, "n g t i"], delta: Tensor
    ) -> Float[Tensor, "n r c"]:
        """Σ_t (P δ_t)(Q a_t)ᵀ for each row."""
        n, g, positions, _ = columns.shape
        if not isinstance(module, nn.Linear):
            delta = delta.flatten(2).transpose(1, 2)
        # P mixes the groups, which have their own inputs: last there, else where it is cheaper.
        delta = delta.reshape(n, positions, g, -1).transpose(1, 2)
        left = self.left if self.left is None or self.scale is None else self.left * self.scale
        if left is not None and g == 1 and positions < self.out_features:
            delta, left = delta @ left.to(delta.dtype).T, None
        gradient = (delta.transpose(2, 3) @ columns).flatten(1, 2)
        return gradient if left is None else left.to(gradient.dtype) @ gradient


def called_layers(
    encoder: nn.Module, run: Callable[[], object], names: list[str] | None
) -> list[Layer]:
    """The Conv2d and Linear weights that a forward pass uses, in the order of the first call.

    ``names`` restricts them; each must then be a Conv2d or Linear that the pass calls. Modules
    that share one weight make one layer.
    """
    modules = dict(encoder.named_modules())
    for name in names or []:
        if not isinstance(modules.get(name), (nn.Conv2d, nn.Linear)):
            known = [n for n, m in modules.items() if isinstance(m, (nn.Conv2d, nn.Linear))]
            raise InfluenceValueError(
                f"layers: {name!r} is not a Conv2d or Linear of the encoder; "
                f"these are: {', '.join(known[:20])}{' …' if len(known) > 20 else ''}."
            )
    layers: dict[int, Layer] = {}
    called: set[str] = set()

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        called.add(name)
        # A parametrised module makes a new weight tensor on each access: then it is its own key.
        weight = module._parameters.get("weight")
        key = id(module if weight is None else weight)
        if key not in layers:
            layers[key] = Layer(name, [], module.weight.shape[0], module.weight[0].numel())
        if module not in layers[key].modules:
            layers[key].modules.append(module)

    with ExitStack() as hooks:
        for name, module in modules.items():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and (names is None or name in names):
                hooks.enter_context(module.register_forward_pre_hook(partial(record, name)))
        run()
    if silent := sorted(set(names or []) - called):
        raise InfluenceValueError(
            f"layers: {silent[0]!r} is never called in the encoder's forward pass; leave it out."
        )
    if not layers:
        raise InfluenceTypeError(
            "the encoder calls no Conv2d or Linear module, so θ is empty; "
            "influence is defined over the weights of such modules."
        )
    return list(layers.values())


@dataclass
class Capture:
    """Runs an objective and collects the projected per-example gradients of its layers."""

    encoder: nn.Module
    layers: list[Layer]
    objective: Objective
    seed: int

    def __post_init__(self) -> None:
        parameter = next((p for p in self.encoder.parameters() if p.is_floating_point()), None)
        if parameter is None:
            raise InfluenceTypeError("the encoder has no floating-point weights.")
        self.device, self.dtype = parameter.device, parameter.dtype
        self.working = torch.promote_types(self.dtype, torch.float32)
        # bfloat16 has float32's range, so products may stay in it; in float16 they would underflow.
        self.products = self.dtype if self.dtype == torch.bfloat16 else self.working

    def losses(self, batch: Batch, index: Index, draw: int, encode: Encode) -> Float[Tensor, " b"]:
        """The objective's losses (B,), checked."""
        batch = tuple(part.to(self.device, non_blocking=True) for part in batch)
        losses = self.objective(encode, batch, index, draw, self.seed)
        if losses.shape != index.shape:
            raise InfluenceValueError(
                f"the objective returned shape {tuple(losses.shape)} for {len(index)} examples; "
                "it must return one loss for each."
            )
        return losses

    def encode(self, x: Tensor, examples: int) -> Float[Tensor, "rows d"]:
        """f(x) for v views of ``examples`` examples, checked, in float32 at least."""
        z = self.encoder(x.to(self.dtype))
        if not isinstance(z, Tensor):
            raise InfluenceTypeError(
                f"the encoder returned a {type(z).__name__}; wrap it so that it returns one "
                "tensor (B, D)."
            )
        if z.ndim != 2 or z.shape[0] != x.shape[0] or x.shape[0] % examples:
            raise InfluenceValueError(
                f"the encoder maps {tuple(x.shape)} to {tuple(z.shape)}; it must return (B, D)."
            )
        return z.to(self.working)

    def gradients(
        self, batch: Batch, index: Index, draw: int, calls: list[tuple[str, Tensor]] | None = None
    ) -> list[Float[Tensor, "b r c"]]:
        """P G_i Qᵀ of each layer, (B, r, c), in the order of ``layers``.

        ``calls`` takes (layer's name, its projected inputs (B, ...)) of each call.
        """
        b = len(index)
        sums: list[Tensor | None] = [None] * len(self.layers)
        leaves: list[Tensor] = []
        views = 1

        def encode(x: Tensor) -> Tensor:
            nonlocal views
            views = max(1, x.shape[0] // b)
            # The leaf makes autograd reach each layer's output while no weight asks for a gradient;
            # the clone keeps an encoder that works in place away from the caller's images.
            x = x.detach().to(self.dtype)
            if x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            leaves.append(x.requires_grad_())
            return self.encode(x.clone(), b)

        def add(number: int, rows: Tensor) -> None:
            if rows.shape[0] % (views * b):
                raise InfluenceValueError(
                    f"layer {self.layers[number].name!r} receives {rows.shape[0]} rows for {b} "
                    "examples, so examples cannot be told apart; leave it out with `layers`."
                )
            rows = rows.reshape(views, b, -1, *rows.shape[1:]).sum((0, 2), dtype=self.working)
            known = sums[number]
            sums[number] = rows if known is None else known + rows

        def hook(
            number: int, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
        ) -> None:
            layer, a = self.layers[number], inputs[0]
            with torch.no_grad():
                columns = layer.inputs(module, a.detach().to(self.products))
            if calls is not None:
                known = columns.shape[0] % (views * b) == 0
                seen = columns.reshape(views, b, -1)[0] if known else columns.new_zeros(b, 1)
                calls.append((layer.name, seen))
            if output.requires_grad:
                output.register_hook(
                    lambda delta: add(
                        number, layer.contract(module, columns, delta.to(self.products))
                    )
                )

        with ExitStack() as hooks:
            for number, layer in enumerate(self.layers):
                for module in layer.modules:
                    hooks.enter_context(module.register_forward_hook(partial(hook, number)))
            total = self.losses(batch, index, draw, encode).sum()
            if total.requires_grad and leaves:
                torch.autograd.grad(total, leaves, allow_unused=True)
        zeros = partial(torch.zeros, b, dtype=self.working, device=self.device)
        found = zip(self.layers, sums, strict=True)
        return [zeros(*layer.shape) if rows is None else rows for layer, rows in found]

    def flat(self, batch: Batch, index: Index, draw: int) -> Float[Tensor, "b k"]:
        """All layers' projected gradients side by side."""
        return torch.cat([g.flatten(1) for g in self.gradients(batch, index, draw)], 1)


def check_encoder(capture: Capture, batch: Batch, index: Index) -> None:
    """Refuse an encoder whose per-example gradients cannot be trusted.

    Runs the first one or two examples alone and together. (1) The captured gradients must sum to
    autograd's weight gradient, which finds layers that compute something else than their class.
    (2) Each example must look the same alone and in company, which finds encoders that mix
    examples; the first layer whose input differs is named.
    """
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-2}.get(capture.dtype, 0.2)

    def differ(x: Tensor, y: Tensor) -> bool:
        scale = torch.maximum(x.norm(), y.norm())
        return x.shape != y.shape or not bool((x - y).norm() <= tolerance * scale + 1e-30)

    expected: list[tuple[str, Tensor]] = []
    together = capture.gradients(batch, index, 0, expected)
    for i in range(len(index)):
        calls: list[tuple[str, Tensor]] = []
        part = tuple(values[i : i + 1] for values in batch)
        alone = capture.gradients(part, index[i : i + 1], 0, calls)
        mixed = [] if len(calls) == len(expected) else ["the encoder"]
        for (name, inputs), (_, reference) in zip(calls, expected, strict=False):
            if differ(inputs[0], reference[i]):
                mixed.append(f"the input of layer {name!r}")
        for layer, gradient, reference in zip(capture.layers, alone, together, strict=True):
            if differ(gradient[0], reference[i]):
                mixed.append(f"the gradient of layer {layer.name!r}")
        if mixed:
            raise InfluenceValueError(
                f"{mixed[0]} depends on the other images of the batch or on chance, so a score "
                "would not belong to one example; give an encoder that maps each image on its own."
            )
    # A parametrised weight is no parameter: its gradient is that of its current value.
    layers = enumerate(capture.layers)
    plain = {n: x.weight for n, x in layers if "weight" in x.modules[0]._parameters}
    if not plain:
        return
    for weight in plain.values():
        weight.requires_grad_()
    losses = capture.losses(batch, index, 0, lambda x: capture.encode(x, len(index)))
    if not losses.requires_grad:
        raise InfluenceValueError(
            "the losses have no gradient: the encoder or the objective runs under torch.no_grad or "
            "detaches what it returns; let autograd through."
        )
    found = torch.autograd.grad(losses.sum(), [*plain.values()], allow_unused=True)
    for (n, weight), exact in zip(plain.items(), found, strict=True):
        weight.requires_grad_(False)
        layer = capture.layers[n]
        exact = layer.project(torch.zeros_like(weight) if exact is None else exact)
        # Two examples may cancel; their own size is what rounding is measured by.
        slack = tolerance * together[n].norm() + 1e-30
        if not bool((together[n].sum(0) - exact).norm() <= slack):
            raise InfluenceValueError(
                f"layer {layer.name!r} does not compute a plain {type(layer.modules[0]).__name__} "
                "of inputs that come from the image, so its gradient cannot be captured; "
                "leave it out with `layers`."
            )


@torch.no_grad()
def fold_batch_norm(capture: Capture, images: Tensor) -> Capture:
    r"""The same on a copy of the encoder, with batch norm folded into the convolutions before it.

    In eval mode batch norm is y = s ⊙ Wa + c, which a convolution with weight s ⊙ W and bias c
    gives at once. As :math:`\partial L/\partial(Wa) = s\odot\partial L/\partial y`, the
    projection P takes s, and θ stays the original W. ``capture`` itself comes back where there is
    nothing to fold, or where the representations of ``images`` change by more than rounding.
    """
    try:
        encoder, layers = copy.deepcopy((capture.encoder, capture.layers))
    except (RuntimeError, TypeError):  # what cannot be copied runs as it is
        return capture
    owners: dict[Any, Layer] = {x.modules[0]: x for x in layers if len(x.modules) == 1}
    outputs: dict[int, tuple[Tensor, nn.Module]] = {}  # each is kept, so that its id stays its own
    pairs: dict[Any, Layer] = {}

    def follow(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            outputs[id(output)] = output, module
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in outputs:
            layer = owners.get(outputs[id(inputs[0])][1])
            if module.affine and module.track_running_stats and layer and layer.left is not None:
                pairs[module] = layer

    images = images.to(capture.device, capture.dtype)
    with ExitStack() as hooks:
        for module in encoder.modules():
            if type(module) in (nn.Conv2d, nn.BatchNorm2d):
                hooks.enter_context(module.register_forward_hook(follow))
        expected = encoder(images.clone())
    for norm, layer in pairs.items():
        convolution: Any = layer.modules[0]
        norm.to(capture.working)
        layer.scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps,
            norm.weight, norm.bias,
        )  # fmt: skip
        norm.__class__ = nn.Identity
    slack = torch.finfo(capture.dtype).eps ** 0.5 * expected.norm()
    if not pairs or not bool((encoder(images.clone()) - expected).norm() <= slack):
        return capture
    return Capture(encoder, layers, capture.objective, capture.seed)


@contextmanager
def untouched(encoder: nn.Module) -> Iterator[None]:
    """Eval mode, no weight gradients; everything as before at the end, whatever happens."""
    modes = [(module, module.training) for module in encoder.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in encoder.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in encoder.buffers()]
    try:
        encoder.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for buffer, value in buffers:
            buffer.data.copy_(value)

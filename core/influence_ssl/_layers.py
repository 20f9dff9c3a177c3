"""The layers of θ: their modules, and the gradient of each from inputs and deltas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.parameter import is_lazy

from influence_ssl.errors import InfluenceValueError

KINDS = (nn.Conv2d, nn.Linear)
# So many bytes of unprojected gradients at a time, where a layer needs them.
_BYTES = 2**27


@dataclass
class Layer:
    """One weight of θ: the modules that use it, its shape as (O, I) and its two projections.

    ``left`` is P (r, O), ``right`` is Q (r, I); ``None`` stands for the identity. ``scale`` s (O,)
    is set if the modules hold s ⊙ W, see :func:`influence_ssl._folding.fold`. ``own_forward``: the
    modules compute something other than their class does, so autograd forms their weight gradients.
    ``examples_last``: rows are ordered (positions, examples), as in sequence-first transformers,
    instead of (examples, positions).
    """

    name: str
    modules: list[nn.Conv2d | nn.Linear]
    out_features: int
    in_features: int
    left: Tensor | None = None
    right: Tensor | None = None
    scale: Tensor | None = None
    own_forward: bool = False
    examples_last: bool = False

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
        """P G Qᵀ of a weight gradient that autograd formed."""
        gradient = gradient.flatten(1).to(torch.promote_types(gradient.dtype, torch.float32))
        gradient = gradient if self.left is None else self.left @ gradient
        return gradient if self.right is None else gradient @ self.right.T

    @property
    def linear(self) -> bool:
        """Whether the weight is one of Linear, not of Conv2d."""
        return isinstance(self.modules[0], nn.Linear)

    def rows(self, x: Tensor) -> int:
        """Over how many rows the examples are spread in a module's input."""
        if x.ndim < (2 if self.linear else 4):
            return 1
        return x.numel() // x.shape[-1] if self.linear and self.examples_last else x.shape[0]

    def arranged(self, x: Tensor, n: int) -> Tensor:
        """A module's input or delta with the n examples (of all views) along the first axis."""
        if x.ndim < (2 if self.linear else 4):
            return x[None]  # one example without an axis of its own
        if not self.examples_last or self.rows(x) % n:
            return x
        if self.linear:
            return x.reshape(-1, n, x.shape[-1]).transpose(0, 1)
        return x.unflatten(0, (-1, n)).transpose(0, 1).flatten(0, 1)

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

    def differentiated(
        self,
        module: nn.Module,
        a: Float[Tensor, "b m ..."],
        arguments: Callable[[Tensor], tuple[tuple[Any, ...], dict[str, Any]]],
        delta: Float[Tensor, "b m ..."],
    ) -> Float[Tensor, "b r c"]:
        """P G_i Qᵀ of a module that has a ``forward`` of its own: autograd forms each G_i.

        a holds each example's m rows of the input; ``arguments`` gives a call's arguments.
        """
        bare, weight = _Bare(module), self.weight.detach()

        def gradient(a: Tensor, delta: Tensor) -> Tensor:
            def forward(weight: Tensor) -> Tensor:
                # A copy: what a module does to its input in place, autograd allows on no other.
                return functional_call(bare, {"module.weight": weight}, *arguments(a.clone()))

            return self.project(vjp(forward, weight)[1](delta)[0])

        chunk = max(1, _BYTES // (weight.numel() * weight.element_size()))
        try:
            return vmap(gradient, chunk_size=chunk)(a, delta)
        except RuntimeError:  # an operation that vmap does not know: one example after the other
            return torch.stack([gradient(*pair) for pair in zip(a, delta, strict=True)])


class _Bare(nn.Module):
    """A module's ``forward`` without its hooks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.module.forward(*args, **kwargs)


def refuse_lazy(encoder: nn.Module) -> None:
    """Raise for an encoder with weights that its first call would make, as of ``LazyLinear``."""
    for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers()):
        if is_lazy(tensor):
            raise InfluenceValueError(
                f"{name!r} of the encoder has no values yet, because its lazy layer has never been "
                "called; call the encoder once on an image first."
            )


def has_own_forward(module: nn.Conv2d | nn.Linear) -> bool:
    """Whether a module has its own ``forward``, as ``Conv2dSame`` or ``ScaledStdConv2d`` do."""
    kind: Any = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    methods = ("forward",) if kind is nn.Linear else ("forward", "_conv_forward")
    return any(name in vars(module) for name in methods) or any(
        getattr(type(module), name) is not getattr(kind, name) for name in methods
    )


def selected(encoder: nn.Module, names: Sequence[str] | None) -> dict[str, Any]:
    """The Conv2d and Linear modules that ``names`` admits, by name; ``None`` admits all.

    ``names`` are the modules to keep or, if all have a leading ``-``, to leave out. ``-NAME``
    leaves out a module and everything below it. If no module has that full name, ``NAME`` matches a
    part of names between dots, so that ``-mlp`` leaves out ``blocks.3.mlp.fc1``.
    """
    known = {n: m for n, m in encoder.named_modules() if isinstance(m, KINDS)}
    if names is None:
        return known
    out = [name[1:] for name in names if name.startswith("-")]
    if out and len(out) < len(names):
        raise InfluenceValueError(
            f"layers={list(names)!r} mixes names to keep and names to leave out; give all names "
            "a leading - or none."
        )
    dropped: set[str] = set()
    for name in out:
        below = [n for n in known if n == name or n.startswith(f"{name}.")]
        below = below or [n for n in known if f".{name}." in f".{n}."]
        if not below:
            raise InfluenceValueError(
                f"layers: '-{name}' leaves out nothing, because no Conv2d or Linear of the encoder "
                f"is named {name!r} or lies below it; the encoder has: {_listed(known)}."
            )
        dropped.update(below)
    if dropped == set(known) and dropped:
        raise InfluenceValueError(
            f"layers={list(names)!r} leaves out every Conv2d and Linear of the encoder; keep at "
            "least one."
        )
    if out:
        return {n: m for n, m in known.items() if n not in dropped}
    for name in names:
        if name not in known:
            raise InfluenceValueError(
                f"layers: {name!r} is not a Conv2d or Linear of the encoder; "
                f"the encoder has: {_listed(known)}."
            )
    return {n: m for n, m in known.items() if n in names}


def _listed(names: dict[str, Any]) -> str:
    return f"{', '.join([*names][:20])}{' …' if len(names) > 20 else ''}"


def moved(layers: list[Layer], source: nn.Module, target: nn.Module) -> list[Layer]:
    """The same layers in a copy of their encoder, projections in the copy's device and dtype."""
    names = {module: name for name, module in source.named_modules()}
    modules: dict[str, Any] = dict(target.named_modules())
    found = []
    for layer in layers:
        own = [modules[names[module]] for module in layer.modules]
        like = own[0].weight
        dtype = torch.promote_types(like.dtype, torch.float32)
        left, right = (
            side if side is None else side.to(like.device, dtype)
            for side in (layer.left, layer.right)
        )
        found.append(replace(layer, modules=own, left=left, right=right))
    return found

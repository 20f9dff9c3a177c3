r"""Projected per-example gradients of a loss with respect to layer weights, never summed.

For a ``Linear`` or ``Conv2d`` layer with weight W (O, I), where I counts the inputs of one output
(channels per group × kernel area), the gradient of example i is a sum over positions t (pixels,
tokens, views, repeated calls) of the layer's input a and the gradient δ at its output:

.. math:: G_i = \sum_t \delta_{it}\, a_{it}^\top \in \mathbb R^{O \times I}.

With a projection on each side (LoGra, Choe et al. 2024, arXiv:2405.13954),

.. math:: P\, G_i\, Q^\top = \sum_t (P \delta_{it})(Q a_{it})^\top \in \mathbb R^{r \times r},

so a is projected in the forward pass, δ in the backward pass, and no weight gradient is formed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from influence_ssl._layers import Layer, refuse_lazy
from influence_ssl.errors import InfluenceTypeError, InfluenceValueError
from influence_ssl.objectives import Batch, Encode, Index, Objective


@dataclass
class Seen:
    """What a pass over B examples sees, for the checks; v views of them in each call of encode.

    ``given`` and ``outputs``: the encoder's inputs and outputs (v·B, ...); ``calls``: a layer's
    number, its inputs as they come, and v·B; ``reached``: which of these the gradient comes to;
    ``projected``: bytes of what is kept of these; ``losses``: (B,) once; ``odd``: errors of layers
    whose rows the examples do not share equally.
    """

    given: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    calls: list[tuple[int, Tensor, int]] = field(default_factory=list)
    reached: set[int] = field(default_factory=set)
    projected: int = 0
    losses: list[Tensor] = field(default_factory=list)
    odd: dict[int, str] = field(default_factory=dict)


@dataclass
class Capture:
    """Runs an objective and collects the projected per-example gradients of its layers.

    ``silent``: modules that count as layers where they are called, which an image did not. ``rows``
    are those per example of each call of each layer in the pass that was checked. ``layout`` is the
    memory format of the encoder's images.
    """

    encoder: nn.Module
    layers: list[Layer]
    objective: Objective
    seed: int
    silent: dict[str, nn.Module] = field(default_factory=dict)
    rows: list[list[int]] = field(default_factory=list)
    layout: torch.memory_format = torch.contiguous_format

    def __post_init__(self) -> None:
        known = (p for p in self.encoder.parameters() if not is_lazy(p) and p.is_floating_point())
        if (parameter := next(known, None)) is None:
            refuse_lazy(self.encoder)
            raise InfluenceTypeError("the encoder has no floating-point weights.")
        self.device, self.dtype = parameter.device, parameter.dtype
        self.working = torch.promote_types(self.dtype, torch.float32)
        # bfloat16 has float32's range, so products may stay in it; in float16 they would underflow.
        self.products = self.dtype if self.dtype == torch.bfloat16 else self.working

    def losses(self, batch: Batch, index: Index, draw: int, encode: Encode) -> Float[Tensor, " b"]:
        """The objective's losses (B,), checked."""
        if not getattr(self.objective, "on_host", False):
            batch = tuple(map(self._moved, batch))
        try:
            losses = self.objective(encode, batch, index, draw, self.seed)
        except RuntimeError as error:
            if "not have been used in the graph" not in str(error):
                raise
            raise InfluenceValueError(
                "the objective asks for a gradient with respect to its images, but encode detaches "
                "them; compute what needs that gradient beforehand and look it up by index."
            ) from error
        if not isinstance(losses, Tensor):
            raise InfluenceTypeError(
                f"the objective returned a {type(losses).__name__}; it must return a tensor (B,), "
                "one loss per example."
            )
        if losses.shape != index.shape:
            raise InfluenceValueError(
                f"the objective returned shape {tuple(losses.shape)} for {len(index)} examples; "
                "it must return one loss per example."
            )
        return losses

    def _moved(self, x: Tensor) -> Tensor:
        """``x`` on the encoder's device, without waiting for what that is doing."""
        if self.device.type == "cuda" and x.device.type == "cpu" and not x.is_pinned():
            x = x.pin_memory()  # from other memory the copy would wait
        return x.to(self.device, non_blocking=True)

    def encode(self, x: Tensor, examples: int) -> Float[Tensor, "rows d"]:
        """f(x) for v views of ``examples`` examples, checked, in at least float32."""
        z = self.encoder(self._moved(x).to(self.dtype))
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

    def encode_from(self, leaves: list[Tensor], x: Tensor, examples: int) -> Tensor:
        """:meth:`encode` of a new leaf of autograd's graph, which joins ``leaves``.

        The leaf makes autograd reach each layer's output while no weight asks for a gradient; the
        clone keeps an encoder that works in place away from the caller's images.
        """
        x = self._moved(x.detach()).to(self.dtype)
        if x.ndim == 4:
            x = x.contiguous(memory_format=self.layout)
        leaves.append(x.requires_grad_())
        return self.encode(x.clone(), examples)

    def gradients(
        self, batch: Batch, index: Index, draw: int, seen: Seen | None = None
    ) -> list[Float[Tensor, "b r c"]]:
        """P G_i Qᵀ of each layer, (B, r, c), in the order of ``layers``.

        ``seen`` takes what the checks ask for. Raises :class:`InfluenceValueError` where examples
        cannot be told apart or where the examples decide which layers are called.
        """
        b = len(index)
        sums: list[Tensor | None] = [None] * len(self.layers)
        counts: list[list[int]] = [[] for _ in self.layers]
        leaves: list[Tensor] = []
        anchors: list[Tensor] = []
        views, forward = 1, True

        def encode(x: Tensor) -> Tensor:
            nonlocal views
            views = max(1, x.shape[0] // b)
            z = self.encode_from(leaves, x, b)
            if seen is not None:
                seen.given.append(leaves[-1].detach())
                seen.outputs.append(z.detach())
            return z

        def hook(
            number: int,
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            output: Tensor,
        ) -> Tensor | None:
            if not forward:  # checkpointing runs a layer again in the backward pass
                return None
            layer, n = self.layers[number], views * b
            a, rest = taken(layer.name, args, kwargs, output)
            rows, shape = layer.rows(a), (views, b, -1)
            call = 0 if seen is None else len(seen.calls)
            if seen is not None:
                seen.calls.append((number, a.detach().clone(), n))
            a = self._columns(layer, module, a, views, b)
            if seen is not None:
                seen.projected += a.numel() * a.element_size()
            anchored = None
            if torch.is_grad_enabled() and not output.requires_grad:
                # What comes from a detached tensor: autograd must be made to go this far.
                anchors.append(output.new_zeros(()).requires_grad_())
                output = anchored = output + anchors[-1]

            def backward(delta: Tensor) -> None:
                if seen is not None:
                    seen.reached.add(call)
                if rows % n:
                    error = (
                        f"layer {layer.name!r} receives {rows} rows for {b} examples, so examples "
                        f"cannot be told apart; leave it out with layers=['-{layer.name}']."
                    )
                    if seen is None:
                        raise InfluenceValueError(error)
                    seen.odd[number] = error
                    return
                counts[number].append(rows // n)
                delta = layer.arranged(delta.detach(), n)
                if layer.own_forward:
                    delta = delta.reshape(*shape, *delta.shape[1:]).transpose(0, 1).flatten(1, 2)
                    found = layer.differentiated(module, a, rest, delta).to(self.working)
                else:
                    found = layer.contract(module, a, delta.to(self.products))
                    found = found.reshape(*shape, *found.shape[1:]).sum((0, 2), dtype=self.working)
                known = sums[number]
                sums[number] = found if known is None else known + found

            if output.requires_grad:
                output.register_hook(backward)
            return anchored

        with ExitStack() as hooks:
            for number, layer in enumerate(self.layers):
                for module in layer.modules:
                    hooks.enter_context(
                        module.register_forward_hook(partial(hook, number), with_kwargs=True)
                    )
            for name, other in self.silent.items():
                hooks.enter_context(other.register_forward_pre_hook(partial(refuse_routing, name)))
            losses = self.losses(batch, index, draw, encode)
            forward = False
            if losses.requires_grad and leaves:
                differentiate(losses.sum(), [*leaves, *anchors])
        if seen is None:
            self._compare(counts)
        else:
            seen.losses, self.rows = [losses.detach()], counts
        zeros = partial(torch.zeros, b, dtype=self.working, device=self.device)
        found = zip(self.layers, sums, strict=True)
        return [zeros(*layer.shape) if rows is None else rows for layer, rows in found]

    def _columns(self, layer: Layer, module: nn.Module, a: Tensor, views: int, b: int) -> Tensor:
        """What of a layer's input its gradients need: Q a, or a copy sorted by examples."""
        rows, a = layer.rows(a), layer.arranged(a.detach(), views * b)
        if not layer.own_forward:
            with torch.no_grad():
                return layer.inputs(module, a.to(self.products))
        if rows % (views * b):
            return a
        # A copy, as the encoder may work in place later.
        return a.reshape(views, b, -1, *a.shape[1:]).transpose(0, 1).flatten(1, 2).clone()

    def _compare(self, counts: list[list[int]]) -> None:
        """Refuse an encoder that calls layers on other rows than in the pass that was checked."""
        for layer, first, now in zip(self.layers, self.rows, counts, strict=True):
            if sorted(first) != sorted(now):
                raise InfluenceValueError(
                    f"layer {layer.name!r} is called {_times(first)} for the first images and "
                    f"{_times(now)} for later ones: {_ROUTED}"
                    f"leave it out with layers=['-{layer.name}']."
                )

    def seen(self, batch: Batch, index: Index) -> tuple[Seen, list[Tensor]]:
        """The gradients of the first draw, and what their pass showed."""
        seen = Seen()
        return seen, self.gradients(batch, index, 0, seen)

    def flat(self, batch: Batch, index: Index, draw: int) -> Float[Tensor, "b k"]:
        """The projected gradients of all layers, concatenated."""
        return torch.cat([g.flatten(1) for g in self.gradients(batch, index, draw)], 1)


def _times(rows: list[int]) -> str:
    """Rows of each call in words."""
    return f"on {' + '.join(map(str, rows))} rows per image" if rows else "not at all"


_ROUTED = "the layers that the encoder calls depend on the image, so θ differs between images; "


def refuse_routing(name: str, *_: object) -> None:
    """Raise the error for a layer that only some images reach."""
    raise InfluenceValueError(
        f"layer {name!r} is called for this image but was not for an earlier one: {_ROUTED}"
        f"leave it out with layers=['-{name}']."
    )


def taken(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
) -> tuple[Tensor, Callable[[Tensor], tuple[tuple[Any, ...], dict[str, Any]]]]:
    """A layer's input, and a function that puts another input into the call's arguments."""
    if not isinstance(output, Tensor):
        raise InfluenceTypeError(
            f"layer {name!r} returns a {type(output).__name__} instead of a tensor; leave it out "
            f"with layers=['-{name}']."
        )
    if args:
        rest = args[1:]
        return args[0], lambda a: ((a, *rest), kwargs)
    key = next(k for k, value in kwargs.items() if isinstance(value, Tensor))
    others = {k: value for k, value in kwargs.items() if k != key}
    return kwargs[key], lambda a: ((), {**others, key: a})


def differentiate(total: Tensor, leaves: list[Tensor]) -> list[Tensor | None]:
    """Autograd's gradients, ``None`` for what the total does not depend on."""
    try:
        return list(torch.autograd.grad(total, leaves, allow_unused=True))
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise InfluenceValueError(
            "the encoder checkpoints its activations with use_reentrant=True, which allows no "
            "gradient of single tensors; give use_reentrant=False, or switch checkpointing off."
        ) from None


_busy: dict[int, tuple[int, int]] = {}  # module's id: its thread, how often it is in use there
_lock = threading.Lock()


@contextmanager
def _one_thread(encoder: nn.Module) -> Iterator[None]:
    """Refuse modules in use by another thread, whose hooks and modes they carry."""
    modules, here = [*encoder.modules()], threading.get_ident()
    with _lock:
        if any(_busy.get(id(module), (here, 0))[0] != here for module in modules):
            raise InfluenceValueError(
                "another thread is scoring with this encoder; give each thread its own copy, "
                "copy.deepcopy(encoder), or score one after the other."
            )
        for module in modules:
            _busy[id(module)] = here, _busy.get(id(module), (here, 0))[1] + 1
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                _, uses = _busy.pop(id(module))
                if uses > 1:
                    _busy[id(module)] = here, uses - 1


_eager = ExitStack()  # what ends PyTorch's eager stance, which is one for all threads
_scoring = 0  # how many calls need it


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Run code that ``torch.compile`` compiled as it is written.

    Compiled code ignores hooks that were added after its compilation.
    """
    global _scoring
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled; to import it takes seconds
        yield
        return
    with _lock:
        if _scoring == 0:
            _eager.enter_context(torch.compiler.set_stance("force_eager"))
        _scoring += 1
    try:
        yield
    finally:
        with _lock:
            _scoring -= 1
            if _scoring == 0:
                _eager.close()


def refuse_unusable(encoder: nn.Module) -> None:
    """Raise for an encoder whose weights have no gradients that could be captured."""
    refuse_lazy(encoder)
    for name, module in encoder.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            named = f"layer {name!r} of the encoder" if name else "the encoder"
            raise InfluenceTypeError(
                f"{named} is a TorchScript module, whose layers cannot be hooked; give the module "
                "from before torch.jit.script or torch.jit.trace."
            )
        if ".quantized." in type(module).__module__:
            raise InfluenceTypeError(
                f"layer {name!r} of the encoder is quantised ({type(module).__name__}), and "
                "integers have no gradients; give the encoder from before the quantisation."
            )
    for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers()):
        if tensor.is_inference():
            raise InfluenceValueError(
                f"{name!r} of the encoder was created under torch.inference_mode, which excludes "
                "it from autograd; build or load the encoder outside that mode."
            )


@contextmanager
def untouched(encoder: nn.Module) -> Iterator[Callable[[], None]]:
    """Eval mode, no weight gradients; everything as before at the end, whatever happens.

    It yields a function that restores the buffers at once. Raises :class:`InfluenceError` for an
    encoder that is in use in another thread, quantised, scripted, without values as yet, or made
    under ``torch.inference_mode``.
    """
    refuse_unusable(encoder)
    modes = [(module, module.training) for module in encoder.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in encoder.parameters()]
    # A forward pass may change a buffer or put another in its place.
    buffers = [(module, dict(module._buffers)) for module in encoder.modules()]
    values = [(buffer, buffer.clone()) for buffer in encoder.buffers()]

    def restore() -> None:
        for module, own in buffers:
            module._buffers.clear()
            module._buffers.update(own)
        for buffer, value in values:
            buffer.data.copy_(value)

    with _one_thread(encoder), _uncompiled():
        try:
            encoder.eval()
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            with torch.inference_mode(False), torch.enable_grad():
                yield restore
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            restore()

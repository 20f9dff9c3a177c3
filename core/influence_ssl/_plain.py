"""The plain pass of one example: which modules it calls, which make θ, and autograd's gradients.

What the pass that captures a batch finds is held against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from influence_ssl._gradients import Capture, Seen, differentiate, refuse_routing, taken
from influence_ssl._layers import Layer, has_own_forward, selected
from influence_ssl.errors import InfluenceTypeError, InfluenceValueError
from influence_ssl.objectives import Batch, Index

Project = Callable[[list[Layer]], None]


@dataclass
class _Call:
    """A call of a module that may be a layer; ``node`` locates the input in the graph."""

    name: str
    inputs: Tensor
    views: int
    node: Any


@dataclass
class Alone(Seen):
    """The plain pass of one example; ``exact`` holds autograd's gradients by layer number."""

    exact: dict[int, Tensor] = field(default_factory=dict)


def first_pass(
    capture: Capture, names: Sequence[str] | None, project: Project, batch: Batch, index: Index
) -> tuple[Capture, Alone]:
    """The plain pass of one example, and the capture with the layers that it calls."""
    chosen = selected(capture.encoder, names)
    with _weights(chosen.values()) as weights:
        seen, calls, leaves, losses = _passed(capture, chosen, batch, index)
        layers = _layers(capture, names, chosen, calls, leaves, batch, index)
        if not losses.requires_grad:
            raise InfluenceValueError(
                "the losses have no gradient: the encoder or the objective runs under "
                "torch.no_grad or detaches what it returns; let autograd through."
            )
        every = {id(weight): weight for own in weights.values() for weight in own}
        found = dict(zip(every, differentiate(losses.sum(), list(every.values())), strict=True))
    project(layers)
    for n, layer in enumerate(layers):
        own = weights[layer.modules[0]]
        parts = [part for weight in own if (part := found[id(weight)]) is not None]
        seen.exact[n] = layer.project(sum(parts, torch.zeros_like(own[0])))
    called = {call.name for call in calls}
    silent = {name: module for name, module in chosen.items() if name not in called}
    seen.calls = _of_layers(layers, chosen, calls)
    return replace(capture, layers=layers, silent=silent), seen


def later_pass(capture: Capture, batch: Batch, index: Index) -> Alone:
    """Another example's pass, whose gradients need no check of their own."""
    modules: dict[str, Any] = dict(capture.encoder.named_modules())
    chosen = {name: modules[name] for name in capture.silent}
    chosen |= {n: m for n, m in modules.items() if any(m in x.modules for x in capture.layers)}
    seen, calls, *_ = _passed(capture, chosen, batch, index)
    for call in calls:
        if call.name in capture.silent:
            refuse_routing(call.name)
    seen.calls = _of_layers(capture.layers, chosen, calls)
    return seen


def _passed(
    capture: Capture, chosen: dict[str, Any], batch: Batch, index: Index
) -> tuple[Alone, list[_Call], list[Tensor], Tensor]:
    """One example's pass through the encoder, the modules' calls, the leaves and the loss."""
    seen = Alone()
    leaves: list[Tensor] = []
    calls: list[_Call] = []
    views = 1

    def encode(x: Tensor) -> Tensor:
        nonlocal views
        views = max(1, x.shape[0])
        z = capture.encode_from(leaves, x, 1)
        seen.given.append(leaves[-1].detach())
        seen.outputs.append(z.detach())
        return z

    def record(name: str, module: nn.Module, args: Any, kwargs: Any, output: object) -> None:
        a, _ = taken(name, args, kwargs, output)
        calls.append(_Call(name, a.detach().clone(), views, a.grad_fn))

    with ExitStack() as hooks:
        for name, module in chosen.items():
            hooks.enter_context(
                module.register_forward_hook(partial(record, name), with_kwargs=True)
            )
        losses = capture.losses(batch, index, 0, encode)
    seen.losses = [losses.detach()]
    return seen, calls, leaves, losses


@contextmanager
def _weights(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, list[Tensor]]]:
    """Each module's weight, for which autograd forms gradients within the block.

    It is one parameter, or the tensors that take its place: a parametrisation makes a new one at
    each access, a hook such as that of pruning or of the older ``weight_norm`` at each call. Their
    gradients add up to that of the weight.
    """
    found: dict[nn.Module, list[Tensor]] = {}

    def see(module: nn.Module, weight: Tensor | None) -> None:
        if weight is not None and not any(weight is x for x in found.setdefault(module, [])):
            found[module].append(weight.requires_grad_())

    def made(module: nn.Module, _: nn.Module, args: Any, weight: Tensor) -> None:
        see(module, weight)

    def called(module: Any, args: Any) -> None:
        see(module, module.weight)

    try:
        with ExitStack() as hooks:
            for module in modules:
                called(module, ())
                if is_parametrized(module, "weight"):
                    origin: Any = module.parametrizations
                    hooks.enter_context(origin.weight.register_forward_hook(partial(made, module)))
                elif module._parameters.get("weight") is None:
                    hooks.enter_context(module.register_forward_pre_hook(called))
            yield found
    finally:
        for weight in (weight for own in found.values() for weight in own if weight.is_leaf):
            weight.requires_grad_(False)


def _of_layers(
    layers: list[Layer], chosen: dict[str, Any], calls: list[_Call]
) -> list[tuple[int, Tensor, int]]:
    """The calls of layers: number, input, views."""
    numbers: dict[nn.Module, int] = {m: n for n, x in enumerate(layers) for m in x.modules}
    found = ((chosen[call.name], call) for call in calls)
    return [(numbers[m], call.inputs, call.views) for m, call in found if m in numbers]


def _layers(
    capture: Capture,
    names: Sequence[str] | None,
    chosen: dict[str, Any],
    calls: list[_Call],
    leaves: list[Tensor],
    batch: Batch,
    index: Index,
) -> list[Layer]:
    """The layers behind the calls, in the order of the first call, without constant inputs.

    Modules that share one weight form one layer.
    """
    constant = _constant(capture, chosen, calls, leaves, batch, index)
    if names is not None and not any(name.startswith("-") for name in names):
        if silent := sorted(set(names) - {call.name for call in calls}):
            raise InfluenceValueError(
                f"layers: {silent[0]!r} is never called in the encoder's forward pass; "
                "leave it out."
            )
        if asked := sorted(constant):
            raise InfluenceValueError(
                f"layers: the inputs of {asked[0]!r} do not depend on the image, so it has no "
                "per-image gradient; leave it out."
            )
    layers: dict[int, Layer] = {}
    for call in calls:
        if call.name in constant:
            continue
        module = chosen[call.name]
        weight = module._parameters.get("weight")
        own = has_own_forward(module)
        if weight is None and own:
            raise InfluenceTypeError(
                f"layer {call.name!r} ({type(module).__name__}) has its own forward and a weight "
                "that is recomputed in each pass, so its gradient cannot be captured; leave it out "
                f"with layers=['-{call.name}']."
            )
        # A parametrised module makes a new weight tensor on each access: then it is its own key.
        key = id(module if weight is None else weight)
        if key not in layers:
            layers[key] = Layer(call.name, [], module.weight.shape[0], module.weight[0].numel())
        if module not in layers[key].modules:
            layers[key].modules.append(module)
        layers[key].own_forward |= own
    if not layers:
        where = "has inputs that depend on the image" if constant else "is called by the encoder"
        raise InfluenceTypeError(
            f"no Conv2d or Linear module {where}, so θ is empty; influence is "
            "defined over the weights of such modules."
        )
    return list(layers.values())


def _constant(
    capture: Capture,
    chosen: dict[str, Any],
    calls: list[_Call],
    leaves: list[Tensor],
    batch: Batch,
    index: Index,
) -> set[str]:
    """The modules whose inputs do not depend on the image, as with a bias over positions.

    Autograd does not lead from them to the image. The same holds behind ``detach``, so a second
    image, half as bright, must also yield the same inputs.
    """
    known: dict[Any, bool] = {}
    fed = {call.name for call in calls if _reaches(call.node, leaves, known)}
    suspects = {call.name for call in calls} - fed
    if not suspects:
        return set()
    again: list[tuple[str, Tensor]] = []

    def record(name: str, module: nn.Module, args: Any, kwargs: Any, output: object) -> None:
        again.append((name, taken(name, args, kwargs, output)[0].detach().clone()))

    with ExitStack() as hooks, torch.no_grad():
        for name in suspects:
            hooks.enter_context(
                chosen[name].register_forward_hook(partial(record, name), with_kwargs=True)
            )
        capture.losses(batch, index, 0, lambda x: capture.encode(x.to(capture.dtype) * 0.5, 1))
    before = [(call.name, call.inputs) for call in calls if call.name in suspects]
    changed = {n for (n, a), (_, b) in zip(before, again, strict=False) if not torch.equal(a, b)}
    return suspects - changed


def _reaches(node: Any, leaves: list[Tensor], known: dict[Any, bool]) -> bool:
    """Whether autograd's graph leads from a node to one of the leaves."""
    stack = [] if node is None else [node]
    while stack:
        top = stack.pop()
        parents = [parent for parent, _ in top.next_functions if parent is not None]
        if hasattr(top, "variable"):
            known[top] = any(top.variable is leaf for leaf in leaves)
        elif unknown := [parent for parent in parents if parent not in known]:
            stack += [top, *unknown]
        else:
            known[top] = any(known[parent] for parent in parents)
    return node is not None and known[node]

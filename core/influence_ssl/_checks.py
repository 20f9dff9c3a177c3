"""Which layers make θ, and the proof that their per-example gradients can be trusted.

The first one or two examples run alone, in a plain pass in which autograd forms the weight
gradients of the first. Then they run together, in the pass that captures; a single example runs
beside itself. Both passes run in double precision, so that differences reveal errors and not
rounding. The encoder's inputs and outputs, the inputs of each layer and the gradient of each layer
must be equal.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import TorchDispatchMode

from influence_ssl._folding import Before, Pairs, fold, unfold, watched
from influence_ssl._gradients import Capture, Seen, differentiate, refuse_routing, taken
from influence_ssl._layers import Layer, has_own_forward, moved, selected
from influence_ssl.errors import InfluenceError, InfluenceTypeError, InfluenceValueError
from influence_ssl.objectives import Batch, Encode, Index

_Difference = tuple[str, int]
Project = Callable[[list[Layer]], None]


def prepare(
    own: Capture,
    names: Sequence[str] | None,
    project: Project,
    batch: Batch,
    index: Index,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Capture, Capture]:
    """The capture of an encoder on a device and in a dtype, checked on the first one or two images.

    It comes with the capture that was checked, in float64 if the encoder allows it. Batch norm is
    folded if that changes no gradient. Raises :class:`InfluenceError` if the gradients cannot be
    trusted. The encoder of ``own`` is left unchanged.
    """
    settings = names, project, batch, index
    copies = _has_copies(own, batch, index)
    try:
        encoder = own.encoder
        if own.dtype != torch.float64 and copies:
            encoder = _copy(encoder, torch.Tensor.double)
        private = encoder is not own.encoder
        checked = _laid_out(replace(own, encoder=encoder), batch, index)
        checked, pairs = _checked(checked, private, *settings)
    except InfluenceError:
        raise
    except Exception:  # an encoder or device without doubles, or an error that will recur
        checked, pairs = _checked(_laid_out(own, batch, index), False, *settings)
    encoder = own.encoder
    if (device, dtype) != (own.device, own.dtype):
        if not copies:
            raise InfluenceValueError(
                f"device={str(device)!r}, dtype={dtype}: the encoder cannot be copied there, "
                "because a copy fails or returns something else, for instance where a hook refers "
                "to the original; move it with encoder.to(device, dtype), and leave both out."
            )
        encoder = copy.deepcopy(encoder).to(device, dtype)
    elif pairs:  # other modules, in which folding puts other weights
        encoder = _copy(encoder, lambda x: x)
    layers = moved(checked.layers, checked.encoder, encoder)
    fold(encoder, layers, pairs)
    silent = {name: encoder.get_submodule(name) for name in checked.silent}
    capture = replace(own, encoder=encoder, layers=layers, silent=silent, rows=checked.rows)
    return replace(capture, layout=checked.layout), checked


def _has_copies(own: Capture, batch: Batch, index: Index) -> bool:
    """Whether a copy of the encoder behaves like the encoder itself.

    A hook that writes into a variable of its own still writes into the original's.
    """
    try:
        twin = _copy(own.encoder, lambda x: x)
    except Exception:  # for instance because the encoder holds a lock or an activation
        return False
    # An encoder that fails itself is left to the check, which tells what is wrong.
    ours, theirs = (_outputs(x, batch, index) for x in (own, replace(own, encoder=twin)))
    return not ours or _alike(own, ours, theirs)


def _laid_out(capture: Capture, batch: Batch, index: Index) -> Capture:
    """The capture with the channels last in memory, which is faster, where that changes nothing.

    An encoder that calls ``view`` on a feature map fails on it, some only in the backward pass; one
    that reads strides differs.
    """
    plain = _outputs(capture, batch, index)
    faster = replace(capture, layout=torch.channels_last)
    same = plain and _alike(capture, plain, _outputs(faster, batch, index))
    return faster if same else capture


def _outputs(capture: Capture, batch: Batch, index: Index) -> list[Tensor]:
    """What the encoder returns for the images at half their brightness, up to its first error.

    A zero comes last if the backward pass succeeds too.
    """
    found: list[Tensor] = []
    leaves: list[Tensor] = []

    def encode(x: Tensor) -> Tensor:
        z = capture.encode_from(leaves, x * 0.5, len(index))
        found.append(z.detach())
        return z

    with suppress(Exception):  # the check runs into the error again and tells what is wrong
        losses = capture.losses(batch, index, 0, encode)
        if losses.requires_grad:
            differentiate(losses.sum(), leaves)
        found.append(losses.new_zeros(()))
    return found


def _alike(capture: Capture, ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether two encoders in the capture's dtype returned the same up to rounding."""
    share = _ROUNDINGS.get(capture.dtype, _COARSE).values
    pairs = zip(ours, theirs, strict=False)
    return len(ours) == len(theirs) and all(_near(x, y, share) for x, y in pairs)


def _copy(encoder: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy whose floating-point parameters and buffers are what ``convert`` makes of them."""
    known: dict[int, Any] = {}
    for tensor in (*encoder.parameters(), *encoder.buffers()):
        if tensor.is_floating_point():
            found = convert(tensor.detach())
            parameter = isinstance(tensor, nn.Parameter)
            known[id(tensor)] = nn.Parameter(found, requires_grad=False) if parameter else found
    return copy.deepcopy(encoder, known)


@dataclass
class _Call:
    """A call of a module that may be a layer; ``node`` locates the input in the graph."""

    name: str
    inputs: Tensor
    views: int
    node: Any


@dataclass
class _Alone(Seen):
    """The plain pass of one example; ``exact`` holds autograd's gradients by layer number."""

    exact: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Rounding:
    """Relative tolerances of values and gradients, and of gradients relative to all of them."""

    values: float
    gradients: float
    floor: float


_DOUBLE = _Rounding(1e-6, 1e-6, 1e-10)
_ROUNDINGS = {torch.float64: _DOUBLE, torch.float32: _Rounding(1e-2, 1e-2, 1e-5)}
_COARSE = _Rounding(0.2, 0.2, 1e-2)
# If rounding alone changes a gradient by more, the encoder is refused.
_MOST = 1e-2
# For passes in double precision in which the encoder itself casts to another type.
_WITHIN = {torch.float32: _Rounding(1e-5, 1e-2, 1e-5)}
_WITHIN_COARSE = _Rounding(2e-2, 0.2, 1e-2)


def _checked(
    capture: Capture,
    private: bool,
    names: Sequence[str] | None,
    project: Project,
    batch: Batch,
    index: Index,
) -> tuple[Capture, Pairs]:
    """The capture with its layers, and the pairs to fold; ``capture.encoder`` is as before.

    ``private``: the encoder is a private copy and may be modified in between.
    """
    one, *others = [
        (tuple(part[i : i + 1] for part in batch), index[i : i + 1]) for i in range(len(index))
    ]
    with watched(capture.encoder) as pairs:
        capture, first = _first(capture, names, project, *one)
    alone = [first, *(_alone(capture, *other) for other in others)]
    if not others:  # beside itself, because one image alone does not show the order of the rows
        alone, index = [first, first], index.repeat(2)
        batch = tuple(torch.cat([part, part]) for part in batch)
    rounding = _ROUNDINGS.get(capture.dtype, _COARSE)
    loosened = measured = reordered = False
    while True:
        if rows := _folded(capture, private, alone, pairs, batch, index, rounding):
            return replace(capture, rows=rows), pairs
        seen, gradients = _together(capture, batch, index)
        found = _differences(capture, alone, seen, gradients, rounding)
        if not found:
            return capture, []
        if not loosened and capture.dtype == torch.float64 and (low := _lowest(capture, *one)):
            rounding, loosened = _WITHIN.get(low, _WITHIN_COARSE), True
        elif not measured and {kind for kind, _ in found} <= {"gradient", "loss"}:
            share = max(rounding.gradients, min(_MOST, 100 * _noise(capture, rounding, *one)))
            rounding, measured = replace(rounding, gradients=share), True
        elif not reordered and _reorder(capture, alone, seen, found, rounding):
            reordered = True
        elif len(index) > 1 + len(others) and {kind for kind, _ in found} <= {"gradient", "loss"}:
            # Views that coincide leave nothing but rounding, which a batch of two changes.
            alone, (batch, index) = [first], one
        else:
            _refuse(capture, found, seen, rounding, *one)


def _passed(
    capture: Capture, chosen: dict[str, Any], batch: Batch, index: Index
) -> tuple[_Alone, list[_Call], list[Tensor], Tensor]:
    """One example's pass through the encoder, the modules' calls, the leaves and the loss."""
    seen = _Alone()
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


def _first(
    capture: Capture, names: Sequence[str] | None, project: Project, batch: Batch, index: Index
) -> tuple[Capture, _Alone]:
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


def _alone(capture: Capture, batch: Batch, index: Index) -> _Alone:
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


def _together(capture: Capture, batch: Batch, index: Index) -> tuple[Seen, list[Tensor]]:
    seen = Seen()
    return seen, capture.gradients(batch, index, 0, seen)


def _folded(
    capture: Capture,
    private: bool,
    alone: list[_Alone],
    pairs: Pairs,
    batch: Batch,
    index: Index,
    rounding: _Rounding,
) -> list[list[int]] | None:
    """The rows of each layer, if the encoder passes the check with batch norm folded."""
    if not pairs or capture.dtype == torch.float16:  # whose range a folded weight may leave
        return None
    before: Before = []
    try:
        encoder = capture.encoder if private else copy.deepcopy(capture.encoder)
        folded = replace(
            capture, encoder=encoder, layers=moved(capture.layers, capture.encoder, encoder),
            silent={name: encoder.get_submodule(name) for name in capture.silent},
        )  # fmt: skip
        before = fold(encoder, folded.layers, pairs)
        if not before:
            return None
        seen, gradients = _together(folded, batch, index)
        differences = _differences(capture, alone, seen, gradients, rounding)
        return None if differences else folded.rows
    except Exception:  # folding only saves time: an encoder on which it fails runs unfolded
        return None
    finally:
        unfold(before)


def _near(x: Tensor, y: Tensor, share: float, floor: float = 0.0) -> bool:
    scale = torch.maximum(x.norm(), y.norm())
    return x.shape == y.shape and bool((x - y).norm() <= share * scale + floor + 1e-30)


def _differences(
    capture: Capture,
    alone: list[_Alone],
    seen: Seen,
    gradients: list[Tensor],
    rounding: _Rounding,
) -> list[_Difference]:
    """Where examples in a batch differ from the same examples alone, as (kind, number).

    Kinds: ``given`` and ``output`` of a call of encode; ``odd``, ``input`` and ``gradient`` of a
    layer; ``loss`` and ``calls``.
    """
    found: list[_Difference] = [("odd", number) for number in seen.odd]
    b = len(alone)

    def compare(
        kind: str, i: int, ours: Sequence[Tensor], theirs: Sequence[Tensor], share: float
    ) -> None:
        if len(ours) != len(theirs):
            found.append((kind, 0))
        for n, (x, y) in enumerate(zip(ours, theirs, strict=False)):
            if len(x) % b or not _near(x.unflatten(0, (-1, b))[:, i], y, share):
                found.append((kind, n))

    for i, one in enumerate(alone):
        compare("given", i, seen.given, one.given, rounding.values)
        compare("output", i, seen.outputs, one.outputs, rounding.values)
        if [n for n, *_ in seen.calls] != [n for n, *_ in one.calls]:
            found.append(("calls", 0))
        for n, ours, theirs in _inputs(capture, i, one, seen, b, False):
            if not _near(ours, theirs, rounding.values):
                found.append(("input", n))
        compare("loss", i, seen.losses, one.losses, rounding.gradients)
    whole = float(sum(g[0].square().sum() for g in gradients)) ** 0.5
    for n, exact in alone[0].exact.items():
        if not _near(gradients[n][0], exact, rounding.gradients, rounding.floor * whole):
            found.append(("gradient", n))
    return found


def _inputs(
    capture: Capture, i: int, alone: _Alone, seen: Seen, b: int, examples_last: bool
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The layer of each call with example i's share of its inputs, in a batch and alone.

    Calls that no gradient reaches contribute nothing, and their inputs may belong to no image. In
    DoRA's norms of ``lora_B(lora_A(identity))``, which are detached, they are rows of an identity.
    """
    pairs = zip(seen.calls, alone.calls, strict=False)
    for call, ((n, ours, rows), (_, theirs, own)) in enumerate(pairs):
        if call not in seen.reached:
            continue
        layer = capture.layers[n]
        last = examples_last or layer.examples_last
        yield n, _share(layer, ours, rows, b, i, last), _share(layer, theirs, own, 1, 0, last)


def _share(layer: Layer, a: Tensor, n: int, b: int, i: int, examples_last: bool) -> Tensor:
    """Example i's share of a layer's input, of b examples in n / b views."""
    rows = a.flatten(0, -2) if layer.linear and a.ndim > 1 else a
    if len(rows) % n:
        return rows.new_zeros(0)
    if examples_last:
        return rows.unflatten(0, (-1, n // b, b))[:, :, i].transpose(0, 1).flatten()
    return rows.unflatten(0, (n // b, b, -1))[:, i].flatten()


def _reorder(
    capture: Capture,
    alone: list[_Alone],
    seen: Seen,
    found: list[_Difference],
    rounding: _Rounding,
) -> bool:
    """Whether all layers whose inputs differ take the examples last; if so, mark them."""
    b, kinds = len(alone), {kind for kind, _ in found}
    layers = {n for kind, n in found if kind in ("odd", "input")}
    if not layers or kinds & {"given", "output", "calls", "loss"}:
        return False
    for i, one in enumerate(alone):
        for n, ours, theirs in _inputs(capture, i, one, seen, b, True):
            if n in layers and not _near(ours, theirs, rounding.values):
                return False
    for n in layers:
        capture.layers[n].examples_last = True
    return True


class _Casts(TorchDispatchMode):
    """Records the coarser types to which an encoder casts double-precision values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        doubles = any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in args)
        if doubles and isinstance(output, Tensor) and output.is_floating_point():
            self.found |= {output.dtype} - {torch.float64}
        return output


def _lowest(capture: Capture, batch: Batch, index: Index) -> torch.dtype | None:
    """The coarsest type to which a pass in double precision casts, if there is any."""
    with _Casts() as casts:
        capture.losses(batch, index, 0, lambda x: capture.encode(x.to(capture.dtype).clone(), 1))
    return max(casts.found, key=lambda dtype: torch.finfo(dtype).eps, default=None)


def _noise(capture: Capture, rounding: _Rounding, batch: Batch, index: Index) -> float:
    """The relative change of a layer's gradient due to rounding, large if views nearly coincide.

    It is measured by brightening the images by a few units in the last place.
    """
    brighter = 1 + 4 * torch.finfo(capture.dtype).eps

    def objective(encode: Encode, *rest: Any) -> Tensor:
        return capture.objective(lambda x: encode(x.to(capture.dtype) * brighter), *rest)

    _, before = _together(capture, batch, index)
    _, after = _together(replace(capture, objective=objective), batch, index)
    whole = float(sum(g.square().sum() for g in before)) ** 0.5
    least = rounding.floor * whole + 1e-30
    pairs = zip(before, after, strict=True)
    return max(float((x - y).norm() / (x.norm() + least)) for x, y in pairs)


def _refuse(
    capture: Capture,
    found: list[_Difference],
    seen: Seen,
    rounding: _Rounding,
    batch: Batch,
    index: Index,
) -> None:
    """Raise the error that names the cause of the first difference."""
    kinds: dict[str, int] = {}
    for kind, n in found:
        kinds.setdefault(kind, n)
    # Two passes of the same example tell randomness from dependence on the batch.
    (first, _), (second, _) = (_together(capture, batch, index) for _ in range(2))

    def by_chance(kind: str) -> bool:
        one, two = ([*getattr(x, kind)] for x in (first, second))
        same = len(one) == len(two)
        return not (
            same and all(_near(x, y, rounding.values) for x, y in zip(one, two, strict=True))
        )

    if "given" in kinds:
        perturbation = getattr(capture.objective, "perturbation", None)
        what = ("objective", capture.objective) if perturbation is None else (
            "perturbation", perturbation,
        )  # fmt: skip
        named = f"{what[0]} {' '.join(repr(what[1]).split()):.80}"
        if by_chance("given"):
            raise InfluenceValueError(
                f"{named} returns different values for image {int(index[0])} at each call, so its "
                "score would be random; draw the randomness from (seed, index, draw) only, as "
                "influence_ssl.perturbations.example_generator does."
            )
        raise InfluenceValueError(
            f"{named} returns values for image {int(index[0])} that depend on the other images, so "
            "a score would not belong to one image; compute each row from its own image only."
        )
    if "output" in kinds and by_chance("outputs"):
        raise InfluenceValueError(
            f"{_where(capture, kinds)} is random, because two passes over one image differ; switch "
            "off dropout and sampling in the encoder's forward."
        )
    if "output" in kinds:
        raise InfluenceValueError(
            f"{_where(capture, kinds)} depends on the other images in the batch, so a score would "
            "not belong to one example; give an encoder that maps each image separately."
        )
    if "calls" in kinds:
        raise InfluenceValueError(
            "the encoder calls its layers in another order or more often for two images than for "
            "one, for instance because it processes them one by one, so examples cannot be told "
            "apart; give an encoder that processes the whole batch at once."
        )
    if "loss" in kinds:
        raise InfluenceValueError(
            "the objective's loss of one example depends on the other images in the batch, though "
            "its representation does not; give an objective that does not compare examples."
        )
    if "odd" in kinds:
        raise InfluenceValueError(seen.odd[kinds["odd"]])
    layer = capture.layers[kinds["input"] if "input" in kinds else kinds["gradient"]]
    way_out = f"leave it out with layers=['-{layer.name}']."
    if "input" in kinds:
        raise InfluenceValueError(
            f"layer {layer.name!r} receives its rows in an order that is neither images first nor "
            f"images last, so examples cannot be told apart; {way_out}"
        )
    raise InfluenceValueError(
        f"layer {layer.name!r} ({type(layer.modules[0]).__name__}): autograd's gradient of its "
        "weight differs from what its calls yield, for instance because the weight is used without "
        "calling the module, the module changes its input in place, or a hook changes its output; "
        f"{way_out}"
    )


def _where(capture: Capture, kinds: dict[str, int]) -> str:
    """The place of the first difference, in words."""
    if "input" in kinds:
        return f"the input of layer {capture.layers[kinds['input']].name!r}"
    return "the encoder's representation of an image"

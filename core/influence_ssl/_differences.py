"""Where examples in a batch differ from the same examples alone, and the error that says why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from influence_ssl._gradients import Capture, Seen
from influence_ssl._layers import Layer
from influence_ssl._plain import Alone
from influence_ssl._rounding import Rounding, near
from influence_ssl.errors import InfluenceValueError
from influence_ssl.objectives import Batch, Index

Difference = tuple[str, int]


def differences(
    capture: Capture,
    alone: list[Alone],
    seen: Seen,
    gradients: list[Tensor],
    rounding: Rounding,
) -> list[Difference]:
    """Where examples in a batch differ from the same examples alone, as (kind, number).

    Kinds: ``given`` and ``output`` of a call of encode; ``odd``, ``input`` and ``gradient`` of a
    layer; ``loss`` and ``calls``.
    """
    found: list[Difference] = [("odd", number) for number in seen.odd]
    b = len(alone)

    def compare(
        kind: str, i: int, ours: Sequence[Tensor], theirs: Sequence[Tensor], share: float
    ) -> None:
        if len(ours) != len(theirs):
            found.append((kind, 0))
        for n, (x, y) in enumerate(zip(ours, theirs, strict=False)):
            if len(x) % b or not near(x.unflatten(0, (-1, b))[:, i], y, share):
                found.append((kind, n))

    for i, one in enumerate(alone):
        compare("given", i, seen.given, one.given, rounding.values)
        compare("output", i, seen.outputs, one.outputs, rounding.values)
        if [n for n, *_ in seen.calls] != [n for n, *_ in one.calls]:
            found.append(("calls", 0))
        for n, ours, theirs in _inputs(capture, i, one, seen, b, False):
            if not near(ours, theirs, rounding.values):
                found.append(("input", n))
        compare("loss", i, seen.losses, one.losses, rounding.gradients)
    whole = float(sum(g[0].square().sum() for g in gradients)) ** 0.5
    for n, exact in alone[0].exact.items():
        if not near(gradients[n][0], exact, rounding.of_layer(n), rounding.floor * whole):
            found.append(("gradient", n))
    return found


def _inputs(
    capture: Capture, i: int, alone: Alone, seen: Seen, b: int, examples_last: bool
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


def reorder(
    capture: Capture,
    alone: list[Alone],
    seen: Seen,
    found: list[Difference],
    rounding: Rounding,
) -> bool:
    """Whether all layers whose inputs differ take the examples last; if so, mark them."""
    b, kinds = len(alone), {kind for kind, _ in found}
    layers = {n for kind, n in found if kind in ("odd", "input")}
    if not layers or kinds & {"given", "output", "calls", "loss"}:
        return False
    for i, one in enumerate(alone):
        for n, ours, theirs in _inputs(capture, i, one, seen, b, True):
            if n in layers and not near(ours, theirs, rounding.values):
                return False
    for n in layers:
        capture.layers[n].examples_last = True
    return True


def refuse(
    capture: Capture,
    found: list[Difference],
    seen: Seen,
    rounding: Rounding,
    batch: Batch,
    index: Index,
) -> None:
    """Raise the error that names the cause of the first difference."""
    kinds: dict[str, int] = {}
    for kind, n in found:
        kinds.setdefault(kind, n)
    # Two passes of the same example tell randomness from dependence on the batch.
    (first, _), (second, _) = (capture.seen(batch, index) for _ in range(2))

    def by_chance(kind: str) -> bool:
        one, two = ([*getattr(x, kind)] for x in (first, second))
        same = len(one) == len(two)
        return not (
            same and all(near(x, y, rounding.values) for x, y in zip(one, two, strict=True))
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

"""The proof that the per-example gradients of an encoder can be trusted.

The first one or two examples run alone, in a plain pass that finds the layers and in which autograd
forms the weight gradients of the first. Then they run together, in the pass that captures; a single
example runs beside itself. Both passes run in double precision, so that differences reveal errors
and not rounding. The encoder's inputs and outputs, the inputs of each layer and the gradient of
each layer must be equal.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from influence_ssl._differences import differences, refuse, reorder
from influence_ssl._folding import Before, Pairs, fold, unfold, watched
from influence_ssl._gradients import Capture, differentiate
from influence_ssl._layers import moved
from influence_ssl._plain import Alone, Project, first_pass, later_pass
from influence_ssl._rounding import Rounding, near, of_casts, of_noise, usual
from influence_ssl.errors import InfluenceError, InfluenceValueError
from influence_ssl.objectives import Batch, Index


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
        try:
            checked, pairs = _checked(_laid_out(own, batch, index), False, *settings)
        except Exception as error:
            if not isinstance(error, InfluenceError):
                error.add_note(f"in a first pass over images of shape {tuple(batch[0].shape[1:])}")
            raise
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
    share = usual(capture.dtype).values
    pairs = zip(ours, theirs, strict=False)
    return len(ours) == len(theirs) and all(near(x, y, share) for x, y in pairs)


def _copy(encoder: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy whose floating-point parameters and buffers are what ``convert`` makes of them."""
    known: dict[int, Any] = {}
    for tensor in (*encoder.parameters(), *encoder.buffers()):
        if tensor.is_floating_point():
            found = convert(tensor.detach())
            parameter = isinstance(tensor, nn.Parameter)
            known[id(tensor)] = nn.Parameter(found, requires_grad=False) if parameter else found
    return copy.deepcopy(encoder, known)


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
        capture, first = first_pass(capture, names, project, *one)
    alone = [first, *(later_pass(capture, *other) for other in others)]
    if not others:  # beside itself, because one image alone does not show the order of the rows
        alone, index = [first, first], index.repeat(2)
        batch = tuple(torch.cat([part, part]) for part in batch)
    rounding = usual(capture.dtype)
    loosened = measured = reordered = False
    while True:
        if rows := _folded(capture, private, alone, pairs, batch, index, rounding):
            return replace(capture, rows=rows), pairs
        seen, gradients = capture.seen(batch, index)
        found = differences(capture, alone, seen, gradients, rounding)
        if not found:
            return capture, []
        if not loosened and (coarse := of_casts(capture, *one)):
            rounding, loosened = coarse, True
        elif not measured and {kind for kind, _ in found} <= {"gradient", "loss"}:
            rounding, measured = of_noise(capture, rounding, *one), True
        elif not reordered and reorder(capture, alone, seen, found, rounding):
            reordered = True
        elif len(index) > 1 + len(others) and {kind for kind, _ in found} <= {"gradient", "loss"}:
            # Views that coincide leave nothing but rounding, which a batch of two changes.
            alone, (batch, index) = [first], one
        else:
            refuse(capture, found, seen, rounding, *one)


def _folded(
    capture: Capture,
    private: bool,
    alone: list[Alone],
    pairs: Pairs,
    batch: Batch,
    index: Index,
    rounding: Rounding,
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
        seen, gradients = folded.seen(batch, index)
        differing = differences(capture, alone, seen, gradients, rounding)
        return None if differing else folded.rows
    except Exception:  # folding only saves time: an encoder on which it fails runs unfolded
        return None
    finally:
        unfold(before)

"""Objectives: the loss of one example, whose gradient is g_i.

An objective is a callable ``objective(encode, batch, index, draw, seed) -> losses (B,)``. ``batch``
is a tuple that begins with the images (B, ...). ``encode`` runs the encoder on B rows, or on v·B
rows that stack v views of the batch as ``torch.cat`` does. It returns at least float32 and may be
called several times. The batch is on the encoder's device. An objective with ``on_host = True``
gets it where it was read instead, and ``encode`` moves what it is given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from influence_ssl._numbers import is_one_of
from influence_ssl._seeds import example_seeds
from influence_ssl.errors import (
    InfluenceError,
    InfluenceTypeError,
    InfluenceValueError,
    described,
)
from influence_ssl.perturbations import GaussianNoise

Encode = Callable[[Tensor], Tensor]
Batch = tuple[Tensor, ...]  # images, and labels where there are any
Index = Int64[Tensor, " b"]
Objective = Callable[[Encode, Batch, Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Invariance:
    r"""Label-free loss: the distance between the representations of x and its perturbed copy.

    .. math:: L_i = d\big(f(x_i), f(\hat x_i)\big),\qquad \hat x_i = p(x_i)

    ``distance="cosine"``: :math:`1 - \cos(z, \hat z)`, the paper's Equation 6.
    ``distance="squared"``: :math:`|z - \hat z|^2`, the paper's Theorem 1.
    A callable maps (z, ẑ), both (B, D), to (B,). The gradient flows through both f(x) and f(x̂).
    """

    perturbation: Callable[..., Tensor] = GaussianNoise()  # noqa: RUF009 (frozen, so all may share it)
    distance: str | Callable[[Tensor, Tensor], Tensor] = "cosine"

    def __post_init__(self) -> None:
        if not callable(self.perturbation):
            raise InfluenceTypeError(
                f"Invariance: perturbation is a {type(self.perturbation).__name__}; give a "
                "callable p(x, index, draw, seed) such as GaussianNoise(0.05, 0.2)."
            )
        _check_distance(self.distance, "Invariance")

    def __call__(
        self, encode: Encode, batch: Batch, index: Index, draw: int, seed: int
    ) -> Float[Tensor, " b"]:
        x = batch[0]
        x_hat = _tensor(  # of a clone, as the perturbation may work in place
            "perturbation",
            "it is called as p(x, index, draw, seed) and must return a tensor of x's shape.",
            self.perturbation, x.clone(), index, draw, seed,
        )  # fmt: skip
        if x_hat.shape != x.shape:
            raise InfluenceValueError(
                f"perturbation {self.perturbation!r} maps shape {tuple(x.shape)} to "
                f"{tuple(x_hat.shape)}; it must keep the shape."
            )
        return _distances(encode, x, x_hat, self.distance, index, ("clean", "perturbed"))

    def ahead(
        self, shape: Sequence[int], index: Index, draw: int, seed: int, pinned: bool = False
    ) -> Self:
        """The same objective with the perturbation's random numbers drawn, if it can do that."""
        if not hasattr(self.perturbation, "ahead"):
            return self
        found = copy.copy(self)
        drawn = self.perturbation.ahead(shape, index, draw, seed, pinned)
        object.__setattr__(found, "perturbation", drawn)
        return found


@dataclass(frozen=True)
class Alignment:
    r"""The loss that self-supervised training minimises: the distance between two augmented views.

    .. math:: L_i = d\big(f(a_1(x_i)), f(a_2(x_i))\big)

    with two random augmentations a₁, a₂ of example i. ``augment`` maps one image (...) to a view;
    all views have one shape. It draws its randomness from PyTorch's global generator, as the
    transforms of ``torchvision.transforms.v2`` do. Use the augmentation with which the encoder was
    trained. The randomness of each view depends only on (seed, i, draw, view). ``distance`` is as
    in :class:`Invariance`. Source: Wang and Isola 2020, arXiv:2005.10242.
    """

    augment: Callable[[Tensor], Tensor]
    distance: str | Callable[[Tensor, Tensor], Tensor] = "cosine"

    on_host: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not callable(self.augment):
            raise InfluenceTypeError(
                f"Alignment: augment is a {type(self.augment).__name__}; give a callable that maps "
                "one image to a random view of it, such as a torchvision.transforms.v2.Compose."
            )
        _check_distance(self.distance, "Alignment")

    def __call__(
        self, encode: Encode, batch: Batch, index: Index, draw: int, seed: int
    ) -> Float[Tensor, " b"]:
        # On the CPU, so that the numbers do not depend on the device; the caller's generator is
        # left unchanged.
        images = batch[0].cpu()
        with torch.random.fork_rng(devices=[]):
            views = [
                self._view(x, number)
                for view in (0, 1)
                for x, number in zip(
                    images, example_seeds(seed, index.tolist(), draw, view), strict=True
                )
            ]
        if len(shapes := {tuple(view.shape) for view in views}) > 1:
            raise InfluenceValueError(
                f"Alignment: augment returns views of the shapes {sorted(shapes)[:3]}; it must "
                "return views of one shape."
            )
        first, second = torch.stack(views).chunk(2)
        words = "first augmented", "second augmented"
        return _distances(encode, first, second, self.distance, index, words)

    def _view(self, x: Tensor, seed: int) -> Tensor:
        torch.random.default_generator.manual_seed(seed)
        rule = "it is called with one image and must return a view of it as a tensor."
        return _tensor("Alignment: augment", rule, self.augment, x.clone())


def _tensor(named: str, rule: str, function: Callable[..., Any], *arguments: object) -> Tensor:
    """What a function of the user's returns; its errors and another type name the function."""
    try:
        found = function(*arguments)
    except (InfluenceError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InfluenceValueError(
            f"{named} {_shown(function)} fails with {described(error)}; {rule}"
        ) from error
    if not isinstance(found, Tensor):
        raise InfluenceTypeError(
            f"{named} {_shown(function)} returns a {type(found).__name__}; {rule}"
        )
    return found


def _shown(function: object) -> str:
    return f"{' '.join(repr(function).split()):.80}"


def _check_distance(distance: object, owner: str) -> None:
    if not callable(distance) and not is_one_of(distance, ("cosine", "squared")):
        raise InfluenceValueError(
            f"{owner}: distance={distance!r} is unknown; give 'cosine', 'squared' or a callable "
            "(z, z_hat) -> (B,)."
        )


def _distances(
    encode: Encode,
    x: Tensor,
    x_hat: Tensor,
    distance: str | Callable[[Tensor, Tensor], Tensor],
    index: Index,
    words: tuple[str, str],
) -> Float[Tensor, " b"]:
    """d(f(x), f(x̂)) of each example; ``words`` names the two in error messages."""
    z, z_hat = encode(torch.cat([x, x_hat])).chunk(2)
    for representation, which in zip((z, z_hat), words, strict=True):
        _refuse(~representation.isfinite().all(1), index, which, "not finite")
    if distance == "squared":
        return (z - z_hat).square().sum(1)
    if callable(distance):
        return distance(z, z_hat)
    units = []
    for representation, which in zip((z, z_hat), words, strict=True):
        # Divide by the largest entry first, so that |z|² neither under- nor overflows.
        largest = representation.detach().abs().amax(1, keepdim=True)
        _refuse(largest[:, 0] == 0, index, which, "zero, where the cosine is undefined")
        scaled = representation / largest
        units.append(scaled / scaled.norm(dim=1, keepdim=True))
    # Equal to 1 - cos for unit vectors, without its cancellation where the views nearly agree.
    return 0.5 * (units[0] - units[1]).square().sum(1)


@dataclass(frozen=True)
class Supervised:
    r"""Supervised loss :math:`L_i = \ell(f(x_i), y_i)` of items ``(x, y)``, for comparison.

    ``loss="cross_entropy"`` expects logits (B, C) and integer labels. A callable maps (output, y)
    to (B,).
    """

    loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy"

    def __post_init__(self) -> None:
        if not callable(self.loss) and not is_one_of(self.loss, ["cross_entropy"]):
            raise InfluenceValueError(
                f"Supervised: loss={self.loss!r} is unknown; give 'cross_entropy' or a callable "
                "(output, y) -> (B,)."
            )

    def __call__(
        self, encode: Encode, batch: Batch, index: Index, draw: int, seed: int
    ) -> Float[Tensor, " b"]:
        if len(batch) < 2:
            raise InfluenceTypeError(
                "Supervised needs labels: give a data set whose items are (x, y)."
            )
        output = encode(batch[0])
        _refuse(~output.isfinite().all(1), index, "clean", "not finite")
        labels = batch[1].to(output.device)
        if callable(self.loss):
            return self.loss(output, labels)
        # Labels come as bytes and as columns (B, 1), too; class probabilities stay as they are.
        whole = not labels.is_floating_point()
        if (len(labels.flatten()) != len(output)) if whole else (labels.shape != output.shape):
            raise InfluenceValueError(
                f"Supervised: labels of shape {tuple(labels.shape)} and {labels.dtype} do not fit "
                f"logits of shape {tuple(output.shape)}; give one integer per image, the number of "
                "its class (labels.long(), one_hot.argmax(1)), or floating-point probabilities of "
                "all classes."
            )
        if whole:
            labels, classes = labels.long().flatten(), output.shape[1]
            # PyTorch leaves out the images with the label -100.
            outside = (labels >= classes) | ((labels < 0) & (labels != -100))
            if outside.device.type == "cpu" and outside.any():  # as in _refuse
                raise InfluenceValueError(
                    f"Supervised: image {int(index[outside][0])} has the label "
                    f"{int(labels[outside][0])}, but the classes of its {classes} logits are 0 to "
                    f"{classes - 1}."
                )
        return F.cross_entropy(output, labels, reduction="none")


def _refuse(bad: Tensor, index: Index, which: str, what: str) -> None:
    # To ask another device is to wait for it; there the scorer finds the NaN that comes of it.
    if bad.device.type == "cpu" and bad.any():
        i = int(index[bad][0])
        raise InfluenceValueError(
            f"the representation of the {which} image {i} is {what}; "
            "check this image and the encoder's weights."
        )

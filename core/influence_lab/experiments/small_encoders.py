"""Small SimCLR encoders of small images, several trained at once.

Each encoder has its own images, initialisation and augmentations, all functions of one seed. One
tensor per parameter contains the weights of all encoders. One vectorised step then costs less than
the same steps in sequence, which spend their time starting small kernels. No layer mixes encoders
or images, and AdamW works element by element, so an encoder does not depend on the others trained
beside it, except for rounding.

Everything is computed on the device of the images. Random numbers are drawn on the CPU, so they are
the same for every device, and no step runs a loop over the encoders.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from influence_lab.pretrain.augment import cropped, random_boxes
from influence_lab.pretrain.losses import nt_xent
from influence_lab.pretrain.optim import learning_rate
from influence_lab.pretrain.settings import Augmentation
from influence_ssl import GaussianNoise, Invariance
from influence_ssl.errors import InfluenceValueError
from influence_ssl.perturbations import example_generator

# The convolutions halve the image's sides until they are this long.
SIDE = 4
# A training draws its numbers for as many epochs at a time, and all trainings together make their
# views for as many steps at a time, as keep the views below this many numbers.
DRAWN_AT_ONCE = 2**22


class SmallEncoder(nn.Module):
    """Convolutions of 3 x 3 and a linear layer, for images of one ``shape`` (C, H, W).

    Each convolution halves the sides, down to 4 x 4; where a single one would do, as for 8 x 8, one
    that keeps the size comes first. The first has ``width`` channels and each further one twice
    as many as the one before it, and the representation twice as many as the last. There are no
    biases or normalisation layers, so the layers' weights are the only parameters.
    """

    def __init__(self, width: int, shape: tuple[int, int, int] = (1, 8, 8)) -> None:
        super().__init__()
        channels, side, other = shape
        halvings = (side // SIDE).bit_length() - 1
        if side != other or halvings < 1 or side != SIDE << halvings:
            raise InfluenceValueError(
                f"shape={tuple(shape)}: the encoder takes square images with a side of "
                f"{2 * SIDE}, {4 * SIDE}, {8 * SIDE} and so on; resize or crop them"
            )
        strides = [2] * halvings if halvings > 1 else [1, 2]
        convolutions = []
        for stride in strides:
            convolutions.append(nn.Conv2d(channels, width, 3, stride, 1, bias=False))
            channels, width = width, 2 * width
        self.num_features = width
        self.convolutions = nn.ModuleList(convolutions)
        self.linear = nn.Linear(channels * SIDE * SIDE, self.num_features, bias=False)
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The representation."""
        for convolution in self.convolutions:
            x = torch.relu(convolution(x))
        return self.linear(x.flatten(1))


@dataclass(frozen=True)
class Recipe:
    """The training settings: AdamW with a cosine schedule after warm-up for a tenth of the epochs.

    ``flips`` decides whether each view is randomly mirrored after its crop, and ``noise`` whether
    Equation 6's noise follows.
    """

    noise: bool
    width: int = 8
    hidden: int = 64
    output: int = 32
    epochs: int = 150
    batch: int = 32
    lr: float = 5e-3
    weight_decay: float = 1e-4
    temperature: float = 0.2
    least_scale: float = 0.5
    flips: bool = False


class _Draws(NamedTuple):
    """What makes a view of each image: its box, whether it is mirrored, and its noise."""

    boxes: Float[Tensor, "*n 2 3"]
    flips: Bool[Tensor, "*n"] | None
    noise: Float[Tensor, "*n c h w"] | None


def _draws(recipe: Recipe, n: int, shape: torch.Size, generator: torch.Generator) -> _Draws:
    """Of n views, in float32 on the CPU."""
    crop = Augmentation(crop=shape[-1], least_scale=recipe.least_scale)
    return _Draws(
        random_boxes(n, crop, generator, generator.device),
        torch.rand(n, generator=generator) < 0.5 if recipe.flips else None,
        torch.randn((n, *shape), generator=generator) if recipe.noise else None,
    )


def _each(change: Callable[..., Tensor], *draws: _Draws) -> _Draws:
    """``change`` applied to the boxes of all draws, to their flips and to their noise."""
    first = draws[0]
    return _Draws(
        change([one.boxes for one in draws]),
        None if first.flips is None else change([one.flips for one in draws]),
        None if first.noise is None else change([one.noise for one in draws]),
    )


def _views(x: Float[Tensor, "n c h w"], draws: _Draws) -> Float[Tensor, "n c h w"]:
    x = cropped(x, draws.boxes, x.shape[-1])
    if draws.flips is not None:
        x = torch.where(draws.flips.view(-1, 1, 1, 1), x.flip(3), x)
    if draws.noise is not None:
        noise = GaussianNoise()
        x = x + noise.mean + noise.std * draws.noise
    return x


def training_views(
    recipe: Recipe,
    images: Float[Tensor, "n c h w"],
    members: Int64[np.ndarray, "k m"],
    generators: Sequence[torch.Generator],
) -> Iterator[Float[Tensor, "k v c h w"]]:
    """The batches of k runs, one row of ``members`` and one generator each, in float32.

    A batch is ``batch`` first views of each run, then the second ones. Each epoch visits a run's
    images in a new order; images that do not fill a batch are left out.
    """
    k, m = members.shape
    shape, batch, device = images.shape[1:], recipe.batch, images.device
    used = m // batch * batch
    orders = torch.stack([
        torch.stack([torch.randperm(m, generator=one)[:used] for _ in range(recipe.epochs)])
        for one in generators
    ])  # fmt: skip
    visited = torch.from_numpy(members).gather(1, orders.flatten(1)).unflatten(1, (-1, batch))
    epochs = max(1, DRAWN_AT_ONCE // (2 * used * shape.numel()))
    at_once = max(1, DRAWN_AT_ONCE // (2 * k * batch * shape.numel()))
    for first in visited.split(epochs * used // batch, 1):
        steps = first.shape[1]

        def by_step(runs: Sequence[Tensor], steps: int = steps) -> Float[Tensor, "s k 2 b *rest"]:
            two = torch.stack(list(runs)).to(device)
            return two.unflatten(0, (k, 2)).unflatten(2, (steps, batch)).movedim(2, 0)

        draws = _each(by_step, *(
            _draws(recipe, steps * batch, shape, one) for one in generators for _ in range(2)
        ))  # fmt: skip
        index = first.movedim(1, 0).to(device)[:, :, None].expand(-1, -1, 2, -1)
        for start in range(0, steps, at_once):
            part = slice(start, start + at_once)
            x = images[index[part].flatten()].float()
            views = _views(x, _each(lambda one, part=part: one[0][part].flatten(0, 3), draws))
            yield from views.view(-1, k, 2 * batch, *shape)


class _Trained(nn.Module):
    """An encoder with SimCLR's two-layer projection."""

    def __init__(self, recipe: Recipe, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.encoder = SmallEncoder(recipe.width, shape)
        self.projector = nn.Sequential(
            nn.Linear(self.encoder.num_features, recipe.hidden),
            nn.ReLU(),
            nn.Linear(recipe.hidden, recipe.output),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.projector(self.encoder(x))


def train_together(
    recipe: Recipe,
    images: Float[Tensor, "n c h w"],
    members: Sequence[Int64[np.ndarray, " m"]],
    seeds: Sequence[int],
) -> list[SmallEncoder]:
    """One encoder per entry of ``members``, trained on those images with that entry of ``seeds``.

    All entries have the same number m ≥ ``recipe.batch`` of images. Training runs in the dtype and
    on the device of ``images``; weights and views are drawn in float32.
    """
    sizes = {len(rows) for rows in members}
    if len(sizes) != 1 or min(sizes) < recipe.batch:
        raise InfluenceValueError(
            f"members: sets of {sorted(sizes)} images; give sets of one size, at least a batch "
            f"({recipe.batch})"
        )
    channels, height, width = images.shape[1:]
    nets = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nets.append(_Trained(recipe, (channels, height, width)))
    generators = [torch.Generator().manual_seed(seed + 1) for seed in seeds]
    views = training_views(recipe, images, np.stack(members), generators)
    weights, _ = stack_module_state([net.to(images.device, images.dtype) for net in nets])
    skeleton = copy.deepcopy(nets[0]).to("meta")
    optimiser = torch.optim.AdamW(
        list(weights.values()), recipe.lr, weight_decay=recipe.weight_decay
    )

    def loss(weights: dict[str, Tensor], batch: Tensor) -> Tensor:
        a, b = functional_call(skeleton, weights, (batch,)).chunk(2)
        return nt_xent(a, b, recipe.temperature)

    steps = recipe.epochs * (min(sizes) // recipe.batch)
    for step, batch in enumerate(views):
        rate = learning_rate(step, steps, steps // 10, recipe.lr, 0.0)
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad()
        vmap(loss)(weights, batch.to(images.dtype)).sum().backward()
        optimiser.step()
    finite = torch.stack([value.isfinite().flatten(1).all(1) for value in weights.values()]).all(0)
    if not finite.all():
        raise InfluenceValueError(
            f"training with seed {seeds[finite.tolist().index(False)]}: the weights are not "
            f"finite; lower the learning rate ({recipe.lr})"
        )
    for k, net in enumerate(nets):
        net.load_state_dict({name: value[k].detach() for name, value in weights.items()})
    return [net.encoder.eval() for net in nets]


@dataclass(frozen=True)
class View:
    """One random view per example, drawn as in training; a perturbation for the core."""

    recipe: Recipe

    def __call__(
        self, x: Float[Tensor, "b c h w"], index: Int64[Tensor, " b"], draw: int, seed: int
    ) -> Float[Tensor, "b c h w"]:
        draws = [
            _draws(self.recipe, 1, x.shape[1:], example_generator(seed, i, draw))
            for i in index.tolist()
        ]
        together = _each(lambda parts: torch.cat(list(parts)).to(x.device), *draws)
        return _views(x.float(), together).to(x.dtype)


@dataclass(frozen=True)
class AlignmentOfViews:
    r"""The training's invariance per example: :math:`1 - \cos(f(v_1), f(v_2))` of two views.

    An objective for the core; example i's views depend only on (seed, i, draw).
    """

    recipe: Recipe

    def __call__(
        self,
        encode: Callable[[Tensor], Tensor],
        batch: tuple[Tensor, ...],
        index: Int64[Tensor, " b"],
        draw: int,
        seed: int,
    ) -> Float[Tensor, " b"]:
        view = View(self.recipe)
        one, two = (view(batch[0], index, 2 * draw + k, seed) for k in (0, 1))
        return Invariance(lambda *_: two)(encode, (one,), index, draw, seed)


@dataclass(frozen=True, eq=False)
class NTXentOfViews:
    r"""SimCLR's loss per example with fixed negatives.

    .. math::
        -\log\frac{\exp(z_1^\top z_2/\tau)}
        {\exp(z_1^\top z_2/\tau) + \sum_{j\ne i}\exp(z_1^\top b_j/\tau)},

    with the unit representations z of two views of example i and ``bank``, one b for each image by
    its index. In training, the negatives are the other images in the batch, so one example's loss
    depends on these as well; with a bank through which no gradient flows, it does not.
    """

    recipe: Recipe
    bank: Float[Tensor, "n d"]

    def __call__(
        self,
        encode: Callable[[Tensor], Tensor],
        batch: tuple[Tensor, ...],
        index: Int64[Tensor, " b"],
        draw: int,
        seed: int,
    ) -> Float[Tensor, " b"]:
        view = View(self.recipe)
        views = [view(batch[0], index, 2 * draw + k, seed) for k in (0, 1)]
        one, two = F.normalize(encode(torch.cat(views)), dim=1).chunk(2)
        own = (index[:, None] == torch.arange(len(self.bank))).to(one.device)
        negatives = (one @ self.bank.to(one).T).masked_fill(own, -torch.inf)
        logits = torch.cat([(one * two).sum(1, keepdim=True), negatives], 1)
        return -(logits / self.recipe.temperature).log_softmax(1)[:, 0]

"""Small SimCLR encoders of small images, several trained at once.

Each encoder has its own images, initialisation and augmentations, all functions of one seed. One
tensor per parameter contains the weights of all encoders. One vectorised step then costs less than
the same steps in sequence, which spend their time starting small kernels. No layer mixes encoders
or images, and AdamW works element by element, so an encoder does not depend on the others trained
beside it, except for rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from influence_lab.pretrain.augment import mirrored, random_resized_crop
from influence_lab.pretrain.losses import nt_xent
from influence_lab.pretrain.optim import learning_rate
from influence_lab.pretrain.settings import Augmentation
from influence_ssl import GaussianNoise, Invariance
from influence_ssl.errors import InfluenceValueError
from influence_ssl.perturbations import example_generator

# The convolutions halve the image's sides until they are this long.
SIDE = 4
# A training draws the views of as many epochs at a time as keep them below this many numbers.
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


def training_views(
    recipe: Recipe, images: Float[Tensor, "n c h w"], generator: torch.Generator
) -> Iterator[Float[Tensor, "v c h w"]]:
    """The batches of one run, drawn in float32: ``batch`` first views, then the second ones.

    Each epoch visits the images in a new order; images that do not fill a batch are left out.
    """
    used = len(images) // recipe.batch * recipe.batch
    orders = [torch.randperm(len(images), generator=generator)[:used] for _ in range(recipe.epochs)]
    shape = images.shape[1:]
    epochs = max(1, DRAWN_AT_ONCE // (2 * used * shape.numel()))
    for first in range(0, recipe.epochs, epochs):
        x = images[torch.cat(orders[first : first + epochs])].float()
        views = torch.stack([_view(recipe, x, generator) for _ in range(2)])
        yield from views.view(2, -1, recipe.batch, *shape).transpose(0, 1).flatten(1, 2)


def _view(recipe: Recipe, x: Tensor, generator: torch.Generator) -> Tensor:
    crop = Augmentation(crop=x.shape[-1], least_scale=recipe.least_scale)
    x = random_resized_crop(x, crop, generator)
    if recipe.flips:
        x = mirrored(x, 0.5, generator)
    if recipe.noise:
        noise = GaussianNoise()
        x = x + noise.mean + noise.std * torch.randn(x.shape, generator=generator)
    return x


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

    All entries have the same number m ≥ ``recipe.batch`` of images. Training runs in the dtype of
    ``images``; weights and views are drawn in float32.
    """
    sizes = {len(rows) for rows in members}
    if len(sizes) != 1 or min(sizes) < recipe.batch:
        raise InfluenceValueError(
            f"members: sets of {sorted(sizes)} images; give sets of one size, at least a batch "
            f"({recipe.batch})"
        )
    channels, height, width = images.shape[1:]
    nets, views = [], []
    for rows, seed in zip(members, seeds, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nets.append(_Trained(recipe, (channels, height, width)))
        generator = torch.Generator().manual_seed(seed + 1)
        views.append(training_views(recipe, images[torch.from_numpy(rows)], generator))
    weights, _ = stack_module_state([net.to(images.dtype) for net in nets])
    skeleton = copy.deepcopy(nets[0]).to("meta")
    optimiser = torch.optim.AdamW(
        list(weights.values()), recipe.lr, weight_decay=recipe.weight_decay
    )

    def loss(weights: dict[str, Tensor], batch: Tensor) -> Tensor:
        a, b = functional_call(skeleton, weights, (batch,)).chunk(2)
        return nt_xent(a, b, recipe.temperature)

    steps = recipe.epochs * (min(sizes) // recipe.batch)
    for step, batches in enumerate(zip(*views, strict=True)):
        rate = learning_rate(step, steps, steps // 10, recipe.lr, 0.0)
        optimiser.param_groups[0]["lr"] = rate
        batch = torch.stack(batches).to(images.dtype)
        optimiser.zero_grad()
        vmap(loss)(weights, batch).sum().backward()
        optimiser.step()
    encoders = []
    for k, net in enumerate(nets):
        net.load_state_dict({name: value[k].detach() for name, value in weights.items()})
        if not all(p.isfinite().all() for p in net.parameters()):
            raise InfluenceValueError(
                f"training with seed {seeds[k]}: the weights are not finite; lower the learning "
                f"rate ({recipe.lr})"
            )
        encoders.append(net.encoder.eval())
    return encoders


@dataclass(frozen=True)
class View:
    """One random view per example, drawn as in training; a perturbation for the core."""

    recipe: Recipe

    def __call__(
        self, x: Float[Tensor, "b c h w"], index: Int64[Tensor, " b"], draw: int, seed: int
    ) -> Float[Tensor, "b c h w"]:
        views = [
            _view(self.recipe, image[None], example_generator(seed, i, draw))
            for image, i in zip(x.float(), index.tolist(), strict=True)
        ]
        return torch.cat(views).to(x.dtype)


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
        own = index[:, None] == torch.arange(len(self.bank))
        negatives = (one @ self.bank.to(one).T).masked_fill(own, -torch.inf)
        logits = torch.cat([(one * two).sum(1, keepdim=True), negatives], 1)
        return -(logits / self.recipe.temperature).log_softmax(1)[:, 0]

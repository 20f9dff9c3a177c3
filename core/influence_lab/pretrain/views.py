"""The perturbation families of the paper's Table 4, each seeded per example, and a shared noise.

The paper names the families, "Random Flip + Grayscale + Gauss Blur" and so on, without strengths.
Only what it calls random is random here: a flip has probability 1/2, while the other steps always
happen. Their strengths are those of Table 1, as in pre-training
(:mod:`influence_lab.pretrain.augment`). ``influence-ssl score --perturbation
influence_lab.pretrain.views:crop`` selects a family by its name in this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from influence_lab.pretrain.augment import random_resized_crop, recolour_and_flip
from influence_lab.pretrain.resnets import CIFAR10_MEAN, CIFAR10_STD
from influence_lab.pretrain.settings import Augmentation
from influence_ssl import GaussianNoise
from influence_ssl.errors import InfluenceValueError
from influence_ssl.perturbations import example_generator

STEPS = ("crop", "flip", "jitter", "grey", "blur")
ALWAYS = Augmentation(jitter=1.0, grey=1.0, blur=1.0)


class Augmented:
    r"""One random augmentation of each image, :math:`\hat x = n(a(n^{-1}(x)))`.

    ``steps`` (of :data:`STEPS`) are what a does, in the order crop, jitter, grey, blur, flip, with
    the strengths and probabilities of ``settings`` (``Augmentation()`` has all those of Table 1).
    n(u) = (u − mean) / std per channel is the normalisation of the tensor that the encoder
    receives, so that a works on pixels in [0, 1]. A crop is enlarged to the width of the image,
    which must be square. Each example is computed separately in float32 and then cast, so the
    result depends on neither dtype nor batch. An image that no drawn step changes is returned bit
    for bit, so its score is exactly 0. Raises :class:`InfluenceValueError` for an unknown step.
    """

    def __init__(
        self,
        *steps: str,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
        settings: Augmentation = ALWAYS,
    ) -> None:
        unknown = [step for step in steps if step not in STEPS]
        if unknown or not steps:
            raise InfluenceValueError(
                f"Augmented: steps {steps}: give one or more of {', '.join(STEPS)}"
            )
        self.steps = steps
        self.mean = tuple(mean)
        self.std = tuple(std)
        left_out: dict[str, Any] = {step: 0.0 for step in STEPS[1:] if step not in steps}
        self.settings = replace(settings, solarise=0.0, **left_out)

    def __call__(
        self, x: Float[Tensor, "b 3 h w"], index: Int64[Tensor, " b"], draw: int, seed: int
    ) -> Float[Tensor, "b 3 h w"]:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        pixels = x.detach().to("cpu", torch.float32) * std + mean
        changed = x.clone()
        for row, i in enumerate(index.tolist()):
            before = pixels[row : row + 1]
            after = self._view(before, example_generator(seed, i, draw))
            if not torch.equal(before, after):
                changed[row] = ((after[0] - mean) / std).to(x.device, x.dtype)
        return changed

    def _view(
        self, pixels: Float[Tensor, "1 3 h w"], generator: torch.Generator
    ) -> Float[Tensor, "1 3 c c"]:
        if "crop" in self.steps:
            settings = replace(self.settings, crop=pixels.shape[-1])
            pixels = random_resized_crop(pixels, settings, generator)
        return recolour_and_flip(pixels, self.settings, generator)

    def __repr__(self) -> str:
        steps = ", ".join(repr(step) for step in self.steps)
        return f"Augmented({steps}, mean={self.mean}, std={self.std}, settings={self.settings})"


class SharedNoise:
    r"""One draw of :class:`GaussianNoise` for all: :math:`\hat x_i = x_i + \mu + \sigma\eta`.

    Equal images get equal views and therefore equal gradients, unlike with independent noise.
    """

    def __init__(self, mean: float = 0.05, std: float = 0.2) -> None:
        self.noise = GaussianNoise(mean, std)

    def __call__(
        self, x: Float[Tensor, "b *shape"], index: Int64[Tensor, " b"], draw: int, seed: int
    ) -> Float[Tensor, "b *shape"]:
        blank = torch.zeros_like(x[:1])
        return x + self.noise(blank, torch.zeros(1, dtype=torch.int64), draw, seed)

    def __repr__(self) -> str:
        return f"SharedNoise(mean={self.noise.mean}, std={self.noise.std})"


class PixelNoise:
    r"""Noise on pixels in [0, 1], before normalisation: :math:`\hat x = x + (\mu + \sigma\eta)/s`.

    s are the deviations that the encoder's input is divided by. The standard normal numbers are
    those of :class:`GaussianNoise`, so that the two differ only in the units.
    """

    def __init__(
        self, mean: float = 0.05, std: float = 0.2, scale: Sequence[float] = CIFAR10_STD
    ) -> None:
        self.noise = GaussianNoise(mean, std)
        self.scale = tuple(scale)

    def __call__(
        self, x: Float[Tensor, "b 3 h w"], index: Int64[Tensor, " b"], draw: int, seed: int
    ) -> Float[Tensor, "b 3 h w"]:
        noise = self.noise(torch.zeros_like(x), index, draw, seed)
        return x + noise / torch.tensor(self.scale, dtype=x.dtype, device=x.device).view(3, 1, 1)

    def __repr__(self) -> str:
        return f"PixelNoise(mean={self.noise.mean}, std={self.noise.std}, scale={self.scale})"


flip_grey_blur = Augmented("flip", "grey", "blur")
flip_jitter_grey = Augmented("flip", "jitter", "grey")
flip_jitter_blur = Augmented("flip", "jitter", "blur")
flip_blur = Augmented("flip", "blur")
crop = Augmented("crop")
gaussian = GaussianNoise()

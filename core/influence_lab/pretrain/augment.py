"""Augmentation of whole batches on the device, one random draw per example.

The order is solo-learn's: crop and resize, colour jitter, grey, blur, solarise, flip. Values stay
in [0, 1]; normalisation comes after. All random numbers come from one generator, so a generator's
state decides the batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from influence_lab.pretrain.settings import Augmentation

GREY = (0.299, 0.587, 0.114)
BLUR_SIGMA = (0.1, 2.0)
BLUR_RADIUS = 3


def augment(
    images: Float[Tensor, "b 3 h w"], settings: Augmentation, generator: torch.Generator
) -> Float[Tensor, "b 3 c c"]:
    """One random view of each image, ``settings.crop`` pixels wide; input and output in [0, 1]."""
    return recolour_and_flip(random_resized_crop(images, settings, generator), settings, generator)


def recolour_and_flip(
    x: Float[Tensor, "b 3 h w"], settings: Augmentation, generator: torch.Generator
) -> Float[Tensor, "b 3 h w"]:
    """All of :func:`augment` but the crop, each step with its own probability."""
    x = colour_jitter(x, settings, generator)
    x = torch.where(_chosen(x, settings.grey, generator), _grey(x), x)
    if settings.blur:
        chosen = _chosen(x, settings.blur, generator).flatten().nonzero().flatten()
        x = x.index_copy(0, chosen, _blur(x[chosen], generator))
    if settings.solarise:
        chosen = _chosen(x, settings.solarise, generator)
        x = torch.where(chosen & (x >= 0.5), 1 - x, x)
    return mirrored(x, settings.flip, generator)


def mirrored(
    x: Float[Tensor, "b c h w"], probability: float, generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Each image with this probability swapped left for right."""
    return torch.where(_chosen(x, probability, generator), x.flip(3), x)


def _uniform(
    n: int, low: float, high: float, device: torch.device, generator: torch.Generator
) -> Tensor:
    draws = torch.rand(n, generator=generator, device=generator.device)
    return (low + (high - low) * draws).to(device)


def _chosen(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    return (_uniform(len(x), 0, 1, x.device, generator) < probability).view(-1, 1, 1, 1)


def random_resized_crop(
    x: Float[Tensor, "b 3 h w"], settings: Augmentation, generator: torch.Generator
) -> Float[Tensor, "b 3 c c"]:
    """The crop of each image to a box of its own (:func:`random_boxes`), resized."""
    return cropped(x, random_boxes(len(x), settings, generator, x.device), settings.crop)


def random_boxes(
    n: int, settings: Augmentation, generator: torch.Generator, device: torch.device
) -> Float[Tensor, "n 2 3"]:
    """Boxes of random area (share of the image, uniform) and shape (3:4 to 4:3, log-uniform).

    Each is the matrix that maps the crop's coordinates to the image's. A box longer than the image
    is cut to it, which keeps the draw instead of repeating it.
    """
    area = _uniform(n, settings.least_scale, settings.greatest_scale, device, generator)
    shape = _uniform(n, math.log(3 / 4), math.log(4 / 3), device, generator).exp()
    width, height = (area * shape).sqrt().clamp(max=1), (area / shape).sqrt().clamp(max=1)
    left = (1 - width) * _uniform(n, 0, 1, device, generator)
    top = (1 - height) * _uniform(n, 0, 1, device, generator)
    boxes = torch.zeros(n, 2, 3, device=device)
    boxes[:, 0, 0], boxes[:, 0, 2] = width, 2 * left + width - 1
    boxes[:, 1, 1], boxes[:, 1, 2] = height, 2 * top + height - 1
    return boxes


def cropped(
    x: Float[Tensor, "b ch h w"], boxes: Float[Tensor, "b 2 3"], side: int
) -> Float[Tensor, "b ch c c"]:
    """Each image within its box, ``side`` pixels wide.

    Bilinear sampling without a lower resolution's smoothing, at the centres of the crop's pixels.
    """
    grid = F.affine_grid(boxes, [len(x), 3, side, side], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def colour_jitter(
    x: Float[Tensor, "b 3 h w"], settings: Augmentation, generator: torch.Generator
) -> Float[Tensor, "b 3 h w"]:
    """Brightness, contrast, saturation (factor 1 ± strength) and hue (turn of ± strength).

    As torchvision's ``ColorJitter``, except that the order of the four is drawn once per batch.
    """
    if not settings.jitter:
        return x
    chosen, original = _chosen(x, settings.jitter, generator), x

    def factor(strength: float) -> Tensor:
        low = max(0.0, 1 - strength)
        return _uniform(len(x), low, 1 + strength, x.device, generator).view(-1, 1, 1, 1)

    bright, contrast, saturation = map(
        factor, (settings.brightness, settings.contrast, settings.saturation)
    )
    turn = _uniform(len(x), -settings.hue, settings.hue, x.device, generator).view(-1, 1, 1)
    order = torch.randperm(4, generator=generator, device=generator.device).tolist()
    for step in order:
        if step == 0:
            x = (x * bright).clamp(0, 1)
        elif step == 1:
            mean = _grey(x).mean((1, 2, 3), keepdim=True)
            x = (mean + (x - mean) * contrast).clamp(0, 1)
        elif step == 2:
            grey = _grey(x)
            x = (grey + (x - grey) * saturation).clamp(0, 1)
        else:
            x = turn_hue(x, turn)
    return torch.where(chosen, x, original)


def _grey(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    red, green, blue = x.unbind(1)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue).unsqueeze(1)


def turn_hue(x: Float[Tensor, "b 3 h w"], turn: Float[Tensor, "b 1 1"]) -> Float[Tensor, "b 3 h w"]:
    """Every pixel's hue moved by ``turn`` (1: the whole circle), value and saturation kept."""
    high, low = x.amax(1), x.amin(1)
    spread = high - low
    red, green, blue = x.unbind(1)
    safe = torch.where(spread > 0, spread, 1)
    hue = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * turn
    # Each channel is a trapezium in the hue: high, falling, low, rising (Foley and van Dam).
    channels = []
    for offset in (5, 3, 1):
        k = (offset + hue).remainder(6)
        channels.append(high - spread * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def _blur(x: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Gaussian blur with a standard deviation of 0.1 to 2 pixels, seven taps, reflected edges."""
    n, channels, height, width = x.shape
    if n == 0:
        return x
    sigma = _uniform(n, *BLUR_SIGMA, x.device, generator).view(-1, 1)
    taps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=x.device)
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = F.pad(x, [BLUR_RADIUS] * 4, mode="reflect").reshape(
        1, n * channels, *(size + 2 * BLUR_RADIUS for size in (height, width))
    )
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=n * channels)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=n * channels)
    return flat.view(n, channels, height, width)

"""Agreement of two pictures, which are first aligned and then compared tile by tile."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float32
from torch import Tensor

# The noise floor of a tile's variance: SSIM's (0.03 × 255)², Wang et al. 2004.
_FLOOR = 58.5
_COARSEST = 16
_FINEST = 64
_COMMON = 0.95
_STEPS = 4
_TILES = 16
_SMALLEST = 4
_GAIN = 1.1
_NOISE = 4.0

Pictures = Float32[Tensor, "e c s s"]
"""Pairs' pictures, with values from 0 to 255."""

Window = Float32[Tensor, "e 4"]
"""(scale x, scale y, shift x, shift y): maps a position u in [-1, 1]² of a picture into another."""


class Agreement(NamedTuple):
    """The agreement of pairs.

    ``correlation`` is Pearson's over all colours of the common area, ``worst`` the lowest
    structural similarity of a tile, ``contrast`` the smaller standard deviation of the two, in grey
    levels. ``spread`` is (Σr)² / Σr² divided by (Σv)² / Σv², with r the variance of a tile's
    difference and v the sum of its two variances: about 1 if the pictures differ wherever they show
    something, near 0 if they differ in one place. It is 1 if the contrasts differ by over a tenth,
    if no tile's difference has a standard deviation of two grey levels, or below 64 pixels.
    """

    correlation: Float32[Tensor, " e"]
    worst: Float32[Tensor, " e"]
    contrast: Float32[Tensor, " e"]
    spread: Float32[Tensor, " e"]


def agreement(source: Pictures, target: Pictures, start: Window) -> Agreement:
    """Align ``source`` with ``target``, beginning at ``start``, and compare them.

    The window is refined from coarse to fine. Each step solves the linear least-squares problem
    target ≈ α (source + its gradient · change of the window) + β (Lucas and Kanade 1981, with gain
    and offset). The start or the refined window counts, whichever has the higher correlation. A
    tile's structural similarity is (2 cov + C) / (var + var' + C), summed over colours, with
    C = (0.03 × 255)², after global brightness and contrast were equalised. Tiles have a sixteenth
    of the side, or four pixels, and overlap by half.
    """
    side = min(source.shape[-1], _FINEST)
    small = [F.adaptive_avg_pool2d(picture, side) for picture in (source, target)]
    better = refined(source, target, start)
    found = [_correlation(*_common(small[0], small[1], window)) for window in (start, better)]
    higher = (found[1] > found[0])[:, None]
    return _compare(source, target, torch.where(higher, better, start))


def refined(source: Pictures, target: Pictures, window: Window) -> Window:
    """The window near ``window`` that makes ``source`` most similar to ``target``."""
    grey = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    # Finer than that, a window is known to a fraction of a pixel already.
    sides = [min(source.shape[-1], _FINEST)]
    while sides[0] >= 2 * _COARSEST:
        sides.insert(0, sides[0] // 2)
    for side in sides:
        below, above = (F.adaptive_avg_pool2d(picture, side) for picture in grey)
        slopes = _slopes(below)
        for _ in range(_STEPS):
            window = window + _step(torch.cat([below, slopes], 1), above, window)
    return window


def _slopes(grey: Float32[Tensor, "e 1 s s"]) -> Float32[Tensor, "e 2 s s"]:
    """Differences to the right and downwards, per unit of position."""
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    right = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return torch.cat([right, down], 1) * (grey.shape[-1] / 4)


def _step(below: Tensor, above: Tensor, window: Window) -> Window:
    u, v = _places(window, above.shape[-1])
    warped = F.grid_sample(below, v, padding_mode="border", align_corners=False)
    value, right, down = warped.flatten(2).unbind(1)
    x, y = u.flatten(0, 1).unbind(1)
    inside = (v.abs() <= 1).all(3).flatten(1).float()
    columns = torch.stack([right * x, down * y, right, down, value, torch.ones_like(value)], 2)
    weighed = columns * inside[..., None]
    normal = weighed.mT @ columns
    size = normal.diagonal(dim1=1, dim2=2)
    normal = normal + torch.diag_embed(1e-4 * size + 1e-6)
    answer = torch.linalg.solve(normal, (weighed.mT @ above.flatten(2).mT)).squeeze(2)
    gain = answer[:, 4:5]
    # Where the pictures have nothing in common, no step; and never a long one.
    return torch.where(gain > 0.2, answer[:, :4] / gain.clamp(min=0.2), 0).clamp(-0.1, 0.1)


def _places(window: Window, side: int) -> tuple[Tensor, Tensor]:
    line = (2 * torch.arange(side, device=window.device) + 1) / side - 1
    u = torch.stack(torch.meshgrid(line, line, indexing="xy"), 2)
    return u, window[:, None, None, :2] * u + window[:, None, None, 2:]


def _common(source: Pictures, target: Pictures, window: Window) -> tuple[Tensor, Tensor, Tensor]:
    """Both pictures without their means, 0 outside the common area, and that area."""
    _, v = _places(window, target.shape[-1])
    warped = F.grid_sample(source, v, "bicubic", "border", align_corners=False).clamp(0, 255)
    inside = (v.abs() <= 1).all(3)[:, None].float()
    share = inside.mean((2, 3), keepdim=True).clamp(min=1e-6)
    a, b = (x - (x * inside).mean((2, 3), keepdim=True) / share for x in (warped, target))
    return a * inside, b * inside, inside


def _correlation(a: Tensor, b: Tensor, inside: Tensor) -> Float32[Tensor, " e"]:
    aa, bb, ab = ((p * q).mean((1, 2, 3)) for p, q in ((a, a), (b, b), (a, b)))
    # What lies outside of the source was not compared.
    enough = inside.mean((1, 2, 3)) >= _COMMON
    return torch.where(enough, ab / (aa * bb).clamp(min=1e-12).sqrt(), -1)


def _compare(source: Pictures, target: Pictures, window: Window) -> Agreement:
    a, b, inside = _common(source, target, window)
    side = a.shape[-1]
    correlation = _correlation(a, b, inside)
    aa, bb = ((x * x).mean((1, 2, 3)) for x in (a, b))
    a = a * (bb / aa.clamp(min=1e-6)).sqrt()[:, None, None, None]
    # Interpolated pictures are a little softer than others.
    if side >= 4 * _TILES:
        a, b = _softer(a), _softer(b)
    filled = _tiled(inside, side).clamp(min=1e-6)
    ma, mb = (_tiled(x, side) / filled for x in (a, b))
    va, vb, cov = (
        (_tiled(p * q, side) / filled - m * n).mean(1)
        for p, q, m, n in ((a, a, ma, ma), (b, b, mb, mb), (a, b, ma, mb))
    )
    similarity = (2 * cov + _FLOOR) / (va + vb + _FLOOR)
    outside = filled[:, 0] < 0.5
    similarity = similarity.masked_fill(outside, 1)
    difference = a - b
    means = _tiled(difference, side) / filled
    varies = (_tiled(difference.square(), side) / filled - means.square()).mean(1)
    varies = varies.masked_fill(outside, 0).flatten(1).clamp(min=0)
    spread = _count(varies) / _count((va + vb).masked_fill(outside, 0).flatten(1))
    # A brighter copy may differ where it is clipped, and one saved twice in a few blocks.
    clipped = (bb / aa.clamp(min=1e-6)).log().abs() > 2 * math.log(_GAIN)
    unsure = clipped | (varies.amax(1) < _NOISE) | (side < 4 * _TILES)
    spread = torch.where(unsure, 1, spread)
    return Agreement(
        correlation, similarity.flatten(1).amin(1), torch.minimum(aa, bb).sqrt(), spread
    )


def _count(tiles: Float32[Tensor, "e t"]) -> Float32[Tensor, " e"]:
    """The number of tiles that share a total: all of them if they are equal, 1 if one has it."""
    return tiles.sum(1).square() / tiles.square().sum(1).clamp(min=1e-12)


def _tiled(pictures: Tensor, side: int) -> Tensor:
    """Means over tiles that overlap by half."""
    half = max(_SMALLEST, side // _TILES) // 2
    count = side // half
    cut = pictures[..., : count * half, : count * half].unflatten(-1, (count, half))
    rows = cut.mean(-1).unflatten(-2, (count, half)).mean(-2)
    rows = (rows[..., 1:, :] + rows[..., :-1, :]) / 2
    return (rows[..., 1:] + rows[..., :-1]) / 2


def _softer(pictures: Tensor) -> Tensor:
    """Means over 3 x 3 pixels."""
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    wide = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    return (wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:]) / 9

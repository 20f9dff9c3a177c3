"""Scenes: small procedural images with planted special cases, so that claims can be tested.

Every image shows one shape (its class) on a background. Which images are duplicates of others,
which have a uniform background, which are outliers, and which belong to the small group is decided
here and returned with the images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from influence_lab.datasets.base import Images
from influence_ssl.errors import InfluenceValueError

SIZE = 32
CLASSES = ("disc", "square", "triangle", "cross")
GROUPS = ("day", "night")
KINDS = ("ordinary", "uniform", "outlier", "exact duplicate", "near duplicate")
# Shares of the whole; the rest is ordinary.
SHARES = {"uniform": 0.1, "outlier": 0.05, "exact duplicate": 0.05, "near duplicate": 0.05}
NIGHT_SHARE = 0.15
NEAR_NOISE = 4
NIGHT_LIGHT = 0.45


@dataclass(frozen=True)
class Scenes:
    """Images with their planted truth, one entry per image.

    ``kind`` indexes :data:`KINDS`, ``group`` indexes :data:`GROUPS`, and ``source`` is the image
    from which a duplicate was made (−1 for all others).
    """

    images: Images
    kind: np.ndarray
    group: np.ndarray
    source: np.ndarray

    def is_kind(self, kind: str) -> np.ndarray:
        """A mask (N,) of the images of one of :data:`KINDS`."""
        return self.kind == KINDS.index(kind)


def make_scenes(n: int = 512, seed: int = 0) -> Scenes:
    """``n`` scenes (n ≥ 20), determined by ``seed``; about 0.2 ms each.

    - *ordinary*: a shape with random position, size and colour on a rippled background;
    - *uniform*: the same on one flat colour;
    - *outlier*: no shape, random coloured blocks;
    - *exact duplicate*: the pixels, class and group of an ordinary scene;
    - *near duplicate*: an ordinary scene moved by one pixel, ±4 levels of noise added.

    15 % of the ordinary and uniform scenes and outliers are of the group *night*: the same, darker.
    """
    if n < 20:
        raise InfluenceValueError(f"n={n}: at least 20 scenes are needed to plant every kind")
    rng = np.random.default_rng([seed, n])
    kind = np.zeros(n, np.int64)
    special = np.concatenate(
        [np.full(max(1, round(n * share)), KINDS.index(name)) for name, share in SHARES.items()]
    )
    kind[rng.permutation(n)[: len(special)]] = special
    label = rng.integers(len(CLASSES), size=n)
    group = np.zeros(n, np.int64)
    group[rng.permutation(n)[: round(n * NIGHT_SHARE)]] = GROUPS.index("night")
    source = np.full(n, -1, np.int64)
    # No scene is copied twice, so that each duplicate has exactly one original.
    copies = np.flatnonzero(kind >= KINDS.index("exact duplicate"))
    source[copies] = rng.permutation(np.flatnonzero(kind == 0))[: len(copies)]
    label[copies], group[copies] = label[source[copies]], group[source[copies]]
    pixels = np.zeros((n, SIZE, SIZE, 3), np.uint8)
    for i in np.flatnonzero(source < 0):
        own = np.random.default_rng([seed, n, int(i)])
        picture = _draw(own, KINDS[kind[i]], CLASSES[label[i]])
        light = NIGHT_LIGHT if group[i] == GROUPS.index("night") else 1.0
        pixels[i] = np.rint(255 * light * picture)
    for i in copies:
        pixels[i] = pixels[source[i]]
        if KINDS[kind[i]] == "near duplicate":
            pixels[i] = _near(pixels[i], np.random.default_rng([seed, n, int(i)]))
    names = tuple(f"scene-{i:04d}" for i in range(n))
    images = Images("scenes", pixels, label.astype(np.int64), names, CLASSES)
    return Scenes(images, kind, group, source)


def make_lookalikes(n: int, seed: int, chosen: np.ndarray) -> Images:
    """The scenes ``chosen`` of ``make_scenes(n, seed)``, drawn again with the next class's shape.

    Background, position, size, colour and light are those of the original, so the pair differs only
    in its class: hard negatives by construction. Originals must be ordinary or uniform.
    """
    scenes = make_scenes(n, seed)
    label = (scenes.images.labels[chosen] + 1) % len(CLASSES)
    pixels = np.zeros((len(chosen), SIZE, SIZE, 3), np.uint8)
    for place, i in enumerate(chosen):
        kind = KINDS[scenes.kind[i]]
        if kind not in ("ordinary", "uniform"):
            raise InfluenceValueError(f"scene {i} is an {kind}; choose ordinary or uniform ones")
        own = np.random.default_rng([seed, n, int(i)])
        light = NIGHT_LIGHT if scenes.group[i] == GROUPS.index("night") else 1.0
        pixels[place] = np.rint(255 * light * _draw(own, kind, CLASSES[label[place]]))
    names = tuple(f"lookalike-{i:04d}" for i in chosen)
    return Images("scenes", pixels, label, names, CLASSES)


def _draw(rng: np.random.Generator, kind: str, shape: str) -> np.ndarray:
    """One picture (32, 32, 3) in [0, 1]."""
    if kind == "outlier":
        blocks = rng.random((8, 8, 3))
        return blocks.repeat(SIZE // 8, 0).repeat(SIZE // 8, 1)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    background = 0.25 + 0.5 * rng.random(3)
    picture = np.broadcast_to(background, (SIZE, SIZE, 3)).copy()
    if kind == "ordinary":
        angle, waves, phase = rng.random() * np.pi, rng.uniform(1, 5), rng.random() * 2 * np.pi
        ripple = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) + phase)
        picture += 0.2 * ripple[..., None] * rng.random(3)
    centre, radius = rng.uniform(0.35, 0.65, 2), rng.uniform(0.18, 0.3)
    colour = (background + rng.uniform(0.3, 0.7, 3)) % 1.0
    picture[_mask(shape, x - centre[0], y - centre[1], radius)] = colour
    return picture.clip(0, 1)


def _mask(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    if shape == "disc":
        return x**2 + y**2 <= radius**2
    inside = np.maximum(abs(x), abs(y)) <= radius
    if shape == "square":
        return inside
    if shape == "triangle":
        return (abs(y) <= radius) & (2 * abs(x) <= y + radius)
    return inside & (np.minimum(abs(x), abs(y)) <= radius / 3)


def _near(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    moved = np.roll(pixels, rng.choice([-1, 1]), axis=int(rng.integers(2)))
    noise = rng.integers(-NEAR_NOISE, NEAR_NOISE + 1, pixels.shape)
    return np.clip(moved.astype(np.int64) + noise, 0, 255).astype(np.uint8)

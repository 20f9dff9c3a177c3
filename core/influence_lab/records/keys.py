"""Settings as plain dictionaries, which identify recorded results.

A ``repr`` changes whenever a class gets a new argument, and recorded vectors would no longer be
found. Here the settings of each class are listed one by one, so that a new argument enters a
description only if it differs from the value behind all earlier records.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from influence_lab.pretrain.views import Augmented, PixelNoise, SharedNoise
from influence_ssl import GaussianNoise, LoGra, Relative
from influence_ssl.errors import InfluenceTypeError

Settings = dict[str, Any]


def _noise(noise: GaussianNoise) -> Settings:
    return {"mean": noise.mean, "std": noise.std}


def _shared_noise(shared: SharedNoise) -> Settings:
    return _noise(shared.noise)


def _pixel_noise(one: PixelNoise) -> Settings:
    return {**_noise(one.noise), "scale": list(one.scale)}


def _augmented(one: Augmented) -> Settings:
    strengths = (
        "least_scale", "greatest_scale", "flip", "jitter", "brightness", "contrast", "saturation",
        "hue", "grey", "blur",
    )  # fmt: skip
    return {
        "steps": list(one.steps),
        "mean": list(one.mean),
        "std": list(one.std),
        **{name: getattr(one.settings, name) for name in strengths},
    }


def _logra(curvature: LoGra) -> Settings:
    damping = curvature.damping
    return {
        "rank": curvature.rank,
        "joint": curvature.joint,
        "damping": {"relative": damping.c} if isinstance(damping, Relative) else damping,
        "seed": curvature.seed,
    }


_KNOWN: dict[type, Callable[[Any], Settings]] = {
    GaussianNoise: _noise,
    SharedNoise: _shared_noise,
    PixelNoise: _pixel_noise,
    Augmented: _augmented,
    LoGra: _logra,
}


def described(part: object) -> Settings:
    """A perturbation or curvature as JSON values: its kind and all its settings.

    Raises :class:`InfluenceTypeError` for a class that is not described here.
    """
    settings = _KNOWN.get(type(part))
    if settings is None:
        raise InfluenceTypeError(
            f"{part!r} has no description by which its scores could be recorded; add its class to "
            "influence_lab.records.keys."
        )
    return {"kind": type(part).__name__, **settings(part)}


def key(quantity: str, perturbation: object | None = None, noise: int | None = None) -> str:
    """The name of a recorded vector: its settings as JSON, always in the same order.

    ``quantity`` is what was measured (``score``, ``loss``), ``noise`` the seed of the perturbation.
    """
    settings: Settings = {"quantity": quantity}
    if perturbation is not None:
        settings["perturbation"] = described(perturbation)
    if noise is not None:
        settings["noise seed"] = noise
    return json.dumps(settings)

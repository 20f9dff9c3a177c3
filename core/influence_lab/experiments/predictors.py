"""Numbers per image that might predict memorisation, from encoders trained on the whole pool.

The seeds of noise and views differ from those of the measured truth and between encoders, so an
average over encoders averages both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from influence_lab.experiments.small_encoders import AlignmentOfViews, Recipe, SmallEncoder
from influence_ssl import EmpiricalFisher, Identity, InfluenceScorer, Invariance, LoGra
from influence_ssl.analysis.neighbours import nearest, unit

DRAWS = 4
NEIGHBOURS = 5

Rows = Float64[np.ndarray, "k n"]
Objective = Callable[..., Tensor]


def predictors(
    encoders: Sequence[SmallEncoder],
    recipe: Recipe,
    images: Float[Tensor, "n c h w"],
    labels: Int64[np.ndarray, " n"],
) -> dict[str, Rows]:
    """All numbers by name: one row per encoder, or a single row if no encoder is needed.

    Each is large for images with much expected memorisation: score magnitudes, losses, gradient
    norms, distances.
    """
    objectives: dict[str, Objective] = {
        "noise": Invariance(),
        "alignment": AlignmentOfViews(recipe),
    }
    rows: dict[str, list[np.ndarray]] = {}
    for seed, encoder in enumerate(encoders):
        for name, values in _of_encoder(encoder, objectives, images, labels, seed).items():
            rows.setdefault(name, []).append(values)
    found = {name: np.stack(values) for name, values in rows.items()}
    return found | {name: value[None] for name, value in of_pixels(images).items()}


def _of_encoder(
    encoder: SmallEncoder,
    objectives: dict[str, Objective],
    images: Tensor,
    labels: Int64[np.ndarray, " n"],
    seed: int,
) -> dict[str, Float64[np.ndarray, " n"]]:
    found = {}
    for kind, objective in objectives.items():

        def magnitude(
            curvature: Any,
            draws: int = DRAWS,
            store: str | None = None,
            objective: Objective = objective,
        ) -> Float64[np.ndarray, " n"]:
            scorer = InfluenceScorer(
                encoder, objective, curvature, draws=draws, seed=seed, store=store, progress=False
            )
            return scorer.score(images).magnitude

        found[f"{kind} score, LoGra"] = magnitude(LoGra())
        found[f"{kind} score, LoGra, one draw"] = magnitude(LoGra(), 1)
        with tempfile.TemporaryDirectory() as store:  # the same gradients for both
            found[f"{kind} score, exact Fisher"] = magnitude(EmpiricalFisher(), store=store)
            found[f"{kind} gradient norm"] = np.sqrt(magnitude(Identity(), store=store))
        found[f"{kind} loss"] = losses(encoder, objective, images, seed)
    with torch.no_grad():
        near = nearest(unit(encoder(images)), NEIGHBOURS)
    found["disagreement"] = 1 - near.purity(labels)
    found["kNN distance"] = near.distance.astype(np.float64)
    return found


def losses(
    encoder: SmallEncoder, objective: Objective, images: Tensor, seed: int
) -> Float64[np.ndarray, " n"]:
    """The mean loss of each image over :data:`DRAWS` draws."""
    index = torch.arange(len(images))
    with torch.no_grad():
        drawn = [objective(encoder, (images,), index, draw, seed) for draw in range(DRAWS)]
    return torch.stack(drawn).double().mean(0).numpy()


def of_pixels(images: Float[Tensor, "n c h w"]) -> dict[str, Float64[np.ndarray, " n"]]:
    """Mean and deviation of an image's pixels, and its distance to the nearest other images."""
    flat = images.flatten(1).double().numpy()
    near = nearest(unit(flat - flat.mean(0)), NEIGHBOURS)
    return {
        "pixel kNN distance": near.distance.astype(np.float64),
        "pixel mean": flat.mean(1),
        "pixel deviation": flat.std(1),
    }

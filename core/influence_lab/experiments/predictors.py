"""Numbers per image that might predict memorisation, from encoders trained on the whole pool.

The seeds of noise and views differ from those of the measured truth and between encoders, so an
average over encoders averages both. The numbers are recorded encoder by encoder, so an interrupted
run can resume.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from influence_lab.experiments.memorisation import Study, refuse_another
from influence_lab.experiments.small_encoders import AlignmentOfViews, Recipe, SmallEncoder
from influence_ssl import EmpiricalFisher, Identity, InfluenceScorer, Invariance, LoGra
from influence_ssl.analysis.neighbours import nearest, unit
from influence_ssl.files.writing import replacing

DRAWS = 4
NEIGHBOURS = 5

Rows = Float64[np.ndarray, "k n"]
Objective = Callable[..., Tensor]


class Predictors:
    """The numbers of a study's reference encoders, in one file beside its training runs.

    They are kept because their encoders are not. A file with another plan, recipe, seed or data is
    refused with an :class:`InfluenceValueError`.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.path = study.folder / f"{study.name}-predictors.npz"
        self.origin = study.trainings.origin | {
            "references": study.plan.references, "draws": DRAWS,
        }  # fmt: skip
        self.devices: list[str] = []
        self._arrays: dict[str, np.ndarray] = {}
        if self.path.is_file():
            with np.load(self.path, allow_pickle=False) as file:
                arrays = dict(file)
            written = json.loads(str(arrays.pop("written")))
            refuse_another(self.path, self.origin, written)
            self.devices, self._arrays = written["devices"], arrays

    def done(self, regime: str) -> int:
        """The number of reference encoders of a regime whose numbers are recorded."""
        return len(self._arrays.get(f"{regime}: noise loss", ()))

    def complete(self) -> None:
        """Compute and record what is missing in the regimes with training runs."""
        study, n = self.study, self.study.plan.pool
        images, labels = study.images[:n], study.pool.part.labels[:n]
        for regime in study.recorded:
            if self.done(regime) == study.plan.references:
                continue
            # All of them again: an encoder depends on those beside it by rounding.
            encoders, recipe = study.references(regime), study.recipes[regime]
            for seed in range(self.done(regime), len(encoders)):
                found = of_encoder(encoders[seed], recipe, images, labels, seed)
                if seed == 0:
                    found |= of_pixels(study.pool.images[:n])
                self._add(regime, found)

    def _add(self, regime: str, found: dict[str, Float64[np.ndarray, " n"]]) -> None:
        for name, values in found.items():
            row, before = values[None].astype(np.float32), self._arrays.get(f"{regime}: {name}")
            rows = row if before is None else np.concatenate([before, row])
            self._arrays[f"{regime}: {name}"] = rows
        self.devices = list(dict.fromkeys([*self.devices, self.study.device]))
        written = np.array(json.dumps(self.origin | {"devices": self.devices}))
        with replacing(self.path, parents=True) as temporary, temporary.open("wb") as stream:
            arrays: dict[str, Any] = {"written": written, **self._arrays}
            np.savez_compressed(stream, **arrays)

    @property
    def rows(self) -> dict[str, dict[str, Rows]]:
        """The recorded numbers by regime and name.

        One row per encoder, or a single row if no encoder is needed. Each is large for images with
        much expected memorisation: score magnitudes, losses, gradient norms, distances.
        """
        numbers: dict[str, dict[str, Rows]] = {}
        for key, rows in self._arrays.items():
            regime, name = key.split(": ")
            numbers.setdefault(regime, {})[name] = rows.astype(np.float64)
        return numbers


def of_encoder(
    encoder: SmallEncoder,
    recipe: Recipe,
    images: Float[Tensor, "n c h w"],
    labels: Int64[np.ndarray, " n"],
    seed: int,
) -> dict[str, Float64[np.ndarray, " n"]]:
    """The numbers that an encoder gives, by name, for images on its device."""
    objectives: dict[str, Objective] = {
        "noise": Invariance(),
        "alignment": AlignmentOfViews(recipe),
    }
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
    return torch.stack(drawn).double().mean(0).cpu().numpy()


def of_pixels(images: Float[Tensor, "n c h w"]) -> dict[str, Float64[np.ndarray, " n"]]:
    """Mean and deviation of an image's pixels, and its distance to the nearest other images."""
    flat = images.flatten(1).double().numpy()
    near = nearest(unit(flat - flat.mean(0)), NEIGHBOURS)
    return {
        "pixel kNN distance": near.distance.astype(np.float64),
        "pixel mean": flat.mean(1),
        "pixel deviation": flat.std(1),
    }

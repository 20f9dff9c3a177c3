r"""The losses of the pool's images in every run of Figure 6, and their record.

A run measures all images of the pool, those that it was trained on and those that were removed, so
that :mod:`.removed_images` can compare them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from influence_lab.datasets import Images
from influence_lab.pretrain.augment import augment
from influence_lab.pretrain.resnets import CifarResNet18, normalise, standardise
from influence_lab.pretrain.settings import Augmentation
from influence_ssl import GaussianNoise
from influence_ssl.errors import InfluenceValueError
from influence_ssl.files.writing import replacing

DRAWS, BATCH = 2, 500
LOSSES = {"noise": "noise loss", "alignment": "alignment loss", "label": "cross-entropy"}


@torch.no_grad()
def image_losses(
    encoder: CifarResNet18, images: Images, index: Int64[np.ndarray, " n"], views: Augmentation
) -> dict[str, Float32[np.ndarray, " n"]]:
    """Each image's own losses, for an encoder in eval mode; keys of :data:`LOSSES`.

    ``noise`` is the cosine distance between the representations of an image and its noisy copy
    (Equation 6), ``alignment`` that between two views by ``views``, each the mean over
    :data:`DRAWS` draws. ``label`` is the cross-entropy of the encoder's classifier, if it has one.
    ``index`` (n,) seeds the noise. All draws are the same for every encoder.
    """
    device = next(encoder.parameters()).device
    noise = GaussianNoise()
    found: dict[str, list[Tensor]] = {name: [] for name in LOSSES}
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        pixels = torch.from_numpy(images.images[part].transpose(0, 3, 1, 2).copy()).to(device)
        rows = torch.from_numpy(index[part])
        x = normalise(pixels)
        z = encoder.features(x)
        apart, noisy = [], []
        for draw in range(DRAWS):
            noisy.append(_distance(z, encoder.features(noise(x, rows, draw, 0))))
            generator = torch.Generator().manual_seed(start * DRAWS + draw)
            first, second = (
                encoder.features(standardise(255 * augment(pixels / 255, views, generator)))
                for _ in range(2)
            )
            apart.append(_distance(first, second))
        found["noise"].append(torch.stack(noisy).mean(0))
        found["alignment"].append(torch.stack(apart).mean(0))
        if encoder.fc is not None:
            labels = torch.from_numpy(images.labels[part].copy()).to(device)
            found["label"].append(F.cross_entropy(encoder.fc(z), labels, reduction="none"))
    return {name: torch.cat(parts).float().cpu().numpy() for name, parts in found.items() if parts}


def _distance(z: Float[Tensor, "b d"], other: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
    return 1 - F.cosine_similarity(z, other)


# A byte k is the loss SMALLEST exp(k / STEPS), so that a loss is rounded by at most 9 %, where two
# runs with the same images differ by 25 to 55 %. 84 runs in float16 would take 4 MB.
SMALLEST, STEPS = 1e-6, 6


def _to_bytes(losses: Float32[np.ndarray, " n"]) -> UInt8[np.ndarray, " n"]:
    steps = np.rint(STEPS * np.log(np.maximum(losses.astype(np.float64), SMALLEST) / SMALLEST))
    return np.minimum(steps, 255).astype(np.uint8)


def _from_bytes(steps: UInt8[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    return (SMALLEST * np.exp(steps.astype(np.float64) / STEPS)).astype(np.float32)


class PoolLosses:
    """The record: the losses of all pool images in each measured run, in one file.

    ``origin`` (JSON values: data, pool, draws) is that of every run. A file with another one raises
    an :class:`InfluenceValueError`. :attr:`rows` maps a run's name to its losses by name, rounded
    to sixths of their natural logarithm, from 1e-6 up.
    """

    def __init__(self, path: Path, origin: dict[str, Any] | None = None) -> None:
        self.path, self.origin = path, origin
        self.rows: dict[str, dict[str, Float32[np.ndarray, " n"]]] = {}
        if not path.is_file():
            return
        with np.load(path, allow_pickle=False) as file:
            written = json.loads(str(file["written"]))
            for name, columns in written["runs"].items():
                values = map(_from_bytes, file[name])
                self.rows[name] = dict(zip(columns, values, strict=True))
        if origin is not None and origin != written["origin"]:
            other = [k for k, v in origin.items() if written["origin"].get(k) != v]
            raise InfluenceValueError(
                f"{path}: was made with another {' and '.join(other)}; move the file away to begin "
                "anew"
            )
        self.origin = written["origin"]

    def add(self, name: str, losses: dict[str, Float32[np.ndarray, " n"]]) -> None:
        """Add or replace the losses of run ``name``, and write the file whole or not at all."""
        if not all(np.isfinite(values).all() for values in losses.values()):
            raise InfluenceValueError(f"{self.path}: {name}: not all losses are finite")
        self.rows[name] = losses
        self.write()

    def write(self) -> None:
        """Write the file, its runs in the order of their names."""
        self.rows = dict(sorted(self.rows.items()))
        runs = {name: list(row) for name, row in self.rows.items()}
        written = np.array(json.dumps({"origin": self.origin, "runs": runs}))
        arrays: dict[str, Any] = {
            name: np.stack([_to_bytes(losses) for losses in row.values()])
            for name, row in self.rows.items()
        }
        with replacing(self.path, parents=True) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, written=written, **arrays)

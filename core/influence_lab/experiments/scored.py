"""One fixed set of training images under one recorded encoder: score vectors, made once each.

The experiments on stability ask for many scores of the same images. The set is 5,000 training
images (all of a smaller data set), the same for every encoder, and the curvature is fitted on them.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from influence_ssl import Identity, InfluenceScorer, Invariance, LoGra
from influence_ssl.errors import InfluenceValueError
from influence_ssl.report.recording import Recorder

from .. import results
from ..datasets import Images
from ..encoders import normalise, representation
from ..tasks import data_for
from ..vectors import Vectors
from . import Task

SUBSET = 5000
RIVALS = ("loss", "gradient norm")


def fixed_set(n: int) -> Int64[np.ndarray, " m"]:
    """The indices, ascending, of the images that are scored, of n."""
    return np.sort(np.random.default_rng(0).permutation(n)[:SUBSET])


@cache
def images_of(profile: str) -> tuple[Images, Int64[np.ndarray, " m"]]:
    """The profile's training images and the indices of the fixed set."""
    images = data_for(profile, "train")
    return images, fixed_set(len(images))


def vectors_of(profile: str, method: str, seed: int, root: Path | None = None) -> Vectors:
    """The recorded vectors of an encoder; empty where there are none."""
    return Vectors(results.folder_of(profile, method, seed, root) / "vectors.npz")


def one_pass(
    scorer: InfluenceScorer, images: Tensor, index: Int64[np.ndarray, " n"]
) -> dict[str, Float64[np.ndarray, " n"]]:
    """The score of one draw, the loss and the norm of the projected gradient; alters ``scorer``."""
    with tempfile.TemporaryDirectory() as store:
        recorder = Recorder(Path(store), torch.from_numpy(index), 1)
        scorer.store = Path(store)
        scorer.objective = recorder.objective(scorer.objective)
        scorer.curvature = recorder.curvature(scorer.curvature)
        scores = scorer.score(images, index)
        return {
            "score": scores.magnitude,
            "loss": recorder.losses(),
            "gradient norm": recorder.gradient_norms(),
        }


class Scored:
    """Scores of the fixed set with one recorded encoder; what is recorded is not made again.

    Raises :class:`InfluenceValueError` where the encoder is not recorded, or where the recorded
    vectors are of another encoder or other images.
    """

    def __init__(self, task: Task, method: str, seed: int) -> None:
        encoder = results.load_encoder(task.profile, method, seed, task.root)
        if encoder is None:
            raise InfluenceValueError(
                f"{task.profile}/{method}-{seed}: no recorded encoder; first run influence-lab "
                f"pretrain {method} --profile {task.profile} --seed {seed}"
            )
        self.encoder = representation(encoder)
        self.device = task.device
        images, self.index = images_of(task.profile)
        self.images = normalise(images.subset(self.index).tensor())
        folder = results.folder_of(task.profile, method, seed, task.root)
        weights = (folder / "encoder.safetensors").read_bytes()
        origin = {
            "data": f"{images.name} train, {len(self.index):,} of {len(images):,} images",
            "data_sha256": images.digest,
            "encoder_sha256": hashlib.sha256(weights).hexdigest(),
            "curvature": repr(LoGra()),
        }
        self.vectors = Vectors(folder / "vectors.npz", origin)

    def score(self, perturbation: Callable[..., Tensor], noise: int) -> Float64[np.ndarray, " n"]:
        """Magnitudes under one draw of the perturbation, seed ``noise``."""
        name = f"score, {perturbation!r}, {noise}"
        if name not in self.vectors:
            begin = time.perf_counter()
            scores = self._scorer(Invariance(perturbation), noise).score(self.images, self.index)
            self._add(name, scores.magnitude, begin)
        return self.vectors[name]

    def with_rivals(
        self, perturbation: Callable[..., Tensor], noise: int
    ) -> dict[str, Float64[np.ndarray, " n"]]:
        """The score, the loss and the norm of the projected gradient, from one pass."""
        names = {kind: f"{kind}, {perturbation!r}, {noise}" for kind in ("score", *RIVALS)}
        if not all(name in self.vectors for name in names.values()):
            begin = time.perf_counter()
            scorer = self._scorer(Invariance(perturbation), noise)
            found = one_pass(scorer, self.images, self.index)
            for kind, name in names.items():
                if name not in self.vectors:
                    self._add(name, found[kind], begin)
                    begin = time.perf_counter()
        return {kind: self.vectors[name] for kind, name in names.items()}

    def squared_norm(
        self, perturbation: Callable[..., Tensor], noise: int
    ) -> Float64[np.ndarray, " n"]:
        """|g_i|² of the whole gradient; several times the cost of a score."""
        name = f"squared norm, {perturbation!r}, {noise}"
        if name not in self.vectors:
            begin = time.perf_counter()
            scorer = self._scorer(Invariance(perturbation), noise)
            scorer.curvature = Identity()
            self._add(name, scorer.score(self.images, self.index).magnitude, begin)
        return self.vectors[name]

    def _scorer(self, objective: Invariance, noise: int) -> InfluenceScorer:
        return InfluenceScorer(
            self.encoder, objective, seed=noise, device=self.device, progress=sys.stderr.isatty()
        )

    def _add(self, name: str, magnitude: Float64[np.ndarray, " n"], begin: float) -> None:
        note = {"code": results.code_version(), "device": results.device_name(self.device)}
        seconds = round(time.perf_counter() - begin, 1)
        self.vectors.add(name, magnitude, seconds=seconds, **note)


def available(task: Task, runs: list[tuple[str, int]]) -> dict[tuple[str, int], Scored]:
    """Those of ``runs``, (method, seed), whose encoders are recorded; raises where none is."""
    found = {
        run: Scored(task, *run)
        for run in runs
        if results.load_encoder(task.profile, *run, task.root) is not None
    }
    if not found:
        Scored(task, *runs[0])
    return found


def provenance(task: Task, scored: list[Scored]) -> dict[str, Any]:
    """Where a record's numbers come from; seconds are those of all vectors of these encoders."""
    images, index = images_of(task.profile)
    seconds = sum(note["seconds"] for one in scored for note in one.vectors.notes.values())
    return results.provenance(
        task.command, task.profile, task.seed,
        f"{images.name} train, {len(index):,} of {len(images):,} images", images.digest,
        results.device_name(task.device), seconds,
    )  # fmt: skip

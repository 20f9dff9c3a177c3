"""One fixed set of training images with one recorded encoder: score vectors, each computed once.

The experiments on stability need many scores of the same images. The set is 5,000 training images
(all of a smaller data set), the same for every encoder, and the curvature is fitted on them.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.utils.data import TensorDataset

from influence_lab.datasets import Images
from influence_lab.experiments.task import Task
from influence_lab.pretrain import run_folder
from influence_lab.pretrain.resnets import CifarResNet18, normalise, representation
from influence_lab.records import results
from influence_lab.records.keys import described, key
from influence_lab.records.recording import data_for
from influence_lab.records.vectors import Vectors
from influence_ssl import GaussianNoise, Identity, InfluenceScorer, Invariance, LoGra, Supervised
from influence_ssl.errors import InfluenceValueError
from influence_ssl.scorer import Dataset

SUBSET = 5000
RIVALS = ("loss", "gradient norm")


def fixed_set(n: int) -> Int64[np.ndarray, " m"]:
    """The indices, ascending, of the scored images among n."""
    return np.sort(np.random.default_rng(0).permutation(n)[:SUBSET])


@cache
def images_of(profile: str) -> tuple[Images, Int64[np.ndarray, " m"]]:
    """The profile's training images and the indices of the fixed set."""
    images = data_for(profile, "train")
    return images, fixed_set(len(images))


def vectors_of(profile: str, method: str, seed: int, root: Path | None = None) -> Vectors:
    """The recorded vectors of an encoder; empty if there are none."""
    return Vectors(results.folder_of(profile, method, seed, root) / "vectors.npz")


def score_with_rivals(
    scorer: InfluenceScorer, images: Tensor | Dataset, index: Int64[np.ndarray, " n"]
) -> dict[str, Float64[np.ndarray, " n"]]:
    """The score's magnitude and its :data:`RIVALS`, from one pass of ``scorer``."""
    scores = scorer.score(images, index)
    assert scores.loss is not None
    assert scores.gradient_norm is not None
    return {
        "score": scores.magnitude,
        "loss": scores.loss,
        "gradient norm": scores.gradient_norm,
    }


@dataclass(frozen=True)
class Selection:
    """Some images of a data set instead of the fixed set, and their name (``automobile``)."""

    images: Images
    index: Int64[np.ndarray, " m"]
    name: str


class Scored:
    """Scores of the fixed set with one recorded encoder; recorded vectors are not recomputed.

    The vectors of a ``selection`` are kept with the run (``task.runs``), outside the source tree.

    Recorded vectors can be used without the weights, which are not tracked for every seed. Raises
    :class:`InfluenceValueError` if the encoder is needed but missing, or if the recorded vectors
    belong to another encoder or other images.
    """

    def __init__(
        self, task: Task, method: str, seed: int, selection: Selection | None = None
    ) -> None:
        self.task, self.method, self.seed = task, method, seed
        self.device = task.device
        if selection is None:
            images, self.index = images_of(task.profile)
        else:
            images, self.index = selection.images, selection.index
        self.part = images.subset(self.index)
        folder = results.folder_of(task.profile, method, seed, task.root)
        recorded = vectors_of(task.profile, method, seed, task.root).origin
        path = results.weights_of(task.profile, method, seed, task.root)
        if recorded is None or selection is not None or path.is_file():
            _ = self.encoder
            weights = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            weights = recorded["encoder_sha256"]
        origin = {
            "data": f"{images.name} train, {len(self.index):,} of {len(images):,} images",
            "data_sha256": images.digest,
            "encoder_sha256": weights,
            "curvature": described(LoGra()),
        }
        if selection is not None:
            origin["selection"] = selection.name
            folder = run_folder(method, task.profile, seed, task.runs)
        name = "vectors" if selection is None else selection.name
        self.vectors = Vectors(folder / f"{name}.npz", origin)

    @cached_property
    def classifier(self) -> CifarResNet18:
        """The recorded encoder with its classifier, if it has one."""
        encoder = results.load_encoder(self.task.profile, self.method, self.seed, self.task.root)
        if encoder is None:
            raise InfluenceValueError(
                f"{self.task.profile}/{self.method}-{self.seed}: no recorded encoder; first run "
                f"influence-lab pretrain {self.method} --profile {self.task.profile} "
                f"--seed {self.seed}"
            )
        return encoder

    @cached_property
    def encoder(self) -> CifarResNet18:
        """The network that maps images to representations."""
        return representation(self.classifier)

    @property
    def images(self) -> Float[Tensor, "n c h w"]:
        """The encoder's input; computed each time, because one copy per encoder is large."""
        return normalise(self.part.tensor())

    def score(self, perturbation: Callable[..., Tensor], noise: int) -> Float64[np.ndarray, " n"]:
        """Magnitudes for one draw of the perturbation with seed ``noise``."""
        name = key("score", perturbation, noise)
        if name not in self.vectors:
            begin = time.perf_counter()
            scores = self._scorer(Invariance(perturbation), noise).score(self.images, self.index)
            self._add(name, scores.magnitude, begin)
        return self.vectors[name]

    def with_rivals(
        self, perturbation: Callable[..., Tensor], noise: int
    ) -> dict[str, Float64[np.ndarray, " n"]]:
        """The score, the loss and the norm of the projected gradient, from one pass."""
        names = {kind: key(kind, perturbation, noise) for kind in ("score", *RIVALS)}
        if not all(name in self.vectors for name in names.values()):
            begin = time.perf_counter()
            scorer = self._scorer(Invariance(perturbation), noise)
            found = score_with_rivals(scorer, self.images, self.index)
            for kind, name in names.items():
                if name not in self.vectors:
                    self._add(name, found[kind], begin)
                    begin = time.perf_counter()
        return {kind: self.vectors[name] for kind, name in names.items()}

    def without_gradients(
        self, perturbation: Callable[..., Tensor], noise: int
    ) -> dict[str, Float64[np.ndarray, " n"]]:
        """The loss and the norm of the representation, from forward passes alone."""
        names = {"loss": key("loss", perturbation, noise), "norm": key("representation norm")}
        if not all(name in self.vectors for name in names.values()):
            begin = time.perf_counter()
            objective, norms = Invariance(perturbation), []
            losses, encoder = [], self.encoder.to(self.device)
            rows = torch.from_numpy(self.index).split(512)
            for x, index in zip(self.images.split(512), rows, strict=True):

                def encode(pair: Tensor, m: int = len(index)) -> Tensor:
                    z = encoder(pair)
                    norms.append(z[:m].norm(dim=1))
                    return z

                x = x.to(self.device, memory_format=torch.channels_last)
                with torch.no_grad():
                    losses.append(objective(encode, (x,), index, 0, noise))
            for kind, parts in (("loss", losses), ("norm", norms)):
                if names[kind] not in self.vectors:
                    self._add(names[kind], torch.cat(parts).double().cpu().numpy(), begin)
                    begin = time.perf_counter()
        return {kind: self.vectors[name] for kind, name in names.items()}

    def squared_norm(
        self, perturbation: Callable[..., Tensor], noise: int
    ) -> Float64[np.ndarray, " n"]:
        """|g_i|² of the whole gradient; several times the cost of a score."""
        name = key("squared norm", perturbation, noise)
        if name not in self.vectors:
            begin = time.perf_counter()
            scorer = self._scorer(Invariance(perturbation), noise)
            scorer.curvature = Identity()
            self._add(name, scorer.score(self.images, self.index).magnitude, begin)
        return self.vectors[name]

    def with_labels(self) -> Float64[np.ndarray, " n"] | None:
        """Magnitudes of the classifier's cross-entropy; ``None`` without one for these classes."""
        head = self.classifier.fc
        if head is None or head.out_features != len(self.part.classes):
            return None
        name = key("score by labels")
        if name not in self.vectors:
            begin = time.perf_counter()
            scorer = InfluenceScorer(
                self.classifier, Supervised(), device=self.device, progress=sys.stderr.isatty()
            )
            items = TensorDataset(self.images, torch.from_numpy(self.part.labels.copy()))
            self._add(name, scorer.score(items, self.index).magnitude, begin)
        return self.vectors[name]

    def _scorer(self, objective: Invariance, noise: int) -> InfluenceScorer:
        return InfluenceScorer(
            self.encoder, objective, seed=noise, device=self.device, progress=sys.stderr.isatty()
        )

    def _add(self, name: str, magnitude: Float64[np.ndarray, " n"], begin: float) -> None:
        note = {"code": results.code_version(), "device": results.device_name(self.device)}
        seconds = round(time.perf_counter() - begin, 1)
        self.vectors.add(name, magnitude, seconds=seconds, **note)


def available(
    task: Task, runs: list[tuple[str, int]], selection: Selection | None = None
) -> dict[tuple[str, int], Scored]:
    """The ``runs``, (method, seed), with a recorded encoder or recorded vectors.

    Raises if there are none.
    """
    found = {
        run: Scored(task, *run, selection)
        for run in runs
        if results.load_encoder(task.profile, *run, task.root) is not None
        or (selection is None and vectors_of(task.profile, *run, task.root).origin is not None)
    }
    if not found:
        Scored(task, *runs[0], selection)
    return found


def whole(task: Task, method: str, images: Images) -> Float64[np.ndarray, " n"]:
    """Magnitudes of all ``images`` with an encoder of seed ``task.seed``, noise seed 0.

    The recorded ones (``scores-train.npz``) if they belong to these images, else a new pass.
    """
    recorded = results.load_scores(task.profile, method, task.seed, "train", task.root)
    if recorded is not None and recorded.provenance["data_sha256"] == images.digest:
        return recorded.magnitude
    everything = Selection(images, np.arange(len(images)), "all")
    return Scored(task, method, task.seed, everything).with_rivals(GaussianNoise(), 0)["score"]


def provenance(task: Task, scored: list[Scored]) -> dict[str, Any]:
    """The provenance of a record; seconds are those of all vectors of these encoders."""
    origin = scored[0].vectors.origin
    assert origin is not None
    chosen = f" ({origin['selection']})" if "selection" in origin else ""
    seconds = sum(note["seconds"] for one in scored for note in one.vectors.notes.values())
    return results.provenance(
        task.command, task.profile, task.seed, origin["data"] + chosen, origin["data_sha256"],
        results.device_name(task.device), seconds,
    )  # fmt: skip

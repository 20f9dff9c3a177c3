"""Training and scoring with records, for ``influence-lab`` and the experiments."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from influence_lab.datasets import Images, load, make_scenes
from influence_lab.pretrain import Run, cost, pretrain, run_folder, settings_for
from influence_lab.pretrain.checkpoint import read_checkpoint
from influence_lab.pretrain.probes import extract, knn_accuracy, linear_accuracy
from influence_lab.pretrain.processes import processes, rank
from influence_lab.pretrain.resnets import normalise, representation
from influence_lab.pretrain.train import fast_in_bf16
from influence_lab.records import results
from influence_ssl import InfluenceScorer, Scores, Supervised
from influence_ssl.errors import InfluenceValueError

TINY_SCENES = 512


def data_for(profile: str, split: str) -> Images:
    """The data of a profile: ``scenes`` (seeds 0 and 1) for ``tiny``, else real CIFAR-10."""
    if profile == "tiny":
        return make_scenes(TINY_SCENES, seed=0 if split == "train" else 1).images
    return load("cifar10", split)


def accuracies(encoder: torch.nn.Module, train: Images, test: Images) -> dict[str, float]:
    """Weighted kNN and linear accuracy on all of ``test``, from all of ``train``."""
    bank, queries = (extract(encoder, part.tensor()) for part in (train, test))
    labels, truth = (torch.from_numpy(part.labels.copy()) for part in (train, test))
    return {
        "knn": knn_accuracy(bank, labels, queries, truth),
        "linear": linear_accuracy(bank, labels, queries, truth),
    }


def pretrain_and_record(
    method: str,
    profile: str,
    seed: int,
    device: str = "cpu",
    progress: bool = True,
    runs: Path | None = None,
    root: Path | None = None,
) -> dict[str, Any] | None:
    """Train (or resume) a run, measure the encoder that is tracked, and record both.

    Accuracies are those of the float16 encoder that is written, so that readers can verify them.
    Under ``torchrun``, the first process records and the others return None.
    """
    settings = settings_for(method, profile)
    train, test = data_for(profile, "train"), data_for(profile, "test")
    folder = run_folder(method, profile, seed, runs)
    with processes(device) as place:
        run = pretrain(settings, seed, train, test, folder, place, progress=progress)
        kind = cost.here(place, settings.bf16 and fast_in_bf16(place))
        first = rank() == 0
    return record(run, train, test, kind, device, root) if first else None


def record(
    run: Run, train: Images, test: Images, kind: cost.Device, device: str, root: Path | None = None
) -> dict[str, Any]:
    """Record a run whose checkpoint is written: its encoder, in float16, and what that one reaches.

    ``device`` is where the encoder is measured.
    """
    settings = run.settings
    place = results.folder_of(settings.profile, settings.method, run.seed, root)
    results.save_encoder(run.encoder, place / "encoder.safetensors")
    encoder = results.load_encoder(settings.profile, settings.method, run.seed, root)
    assert encoder is not None
    checkpoint = read_checkpoint(run.folder / "checkpoint.pt")
    command = (
        f"influence-lab pretrain {settings.method} --profile {settings.profile} --seed {run.seed}"
    )
    found = {
        "provenance": results.provenance(
            command, settings.profile, run.seed, f"{train.name} train ({len(train):,} images)",
            train.digest, results.device_name(device), sum(e["seconds"] for e in run.epochs),
        ),
        "settings": checkpoint["settings"],
        "epochs": run.epochs,
        "cost": {
            "device": kind.name,
            "units": kind.units,
            "predicted": cost.predict(settings, train, kind),
            "measured": cost.measured(run.epochs),
        },
        "accuracy": accuracies(encoder.to(device), train, test),
        "test images": len(test),
    }  # fmt: skip
    results.save_json(place / "run.json", found)
    return found


def score_images(
    encoder: torch.nn.Module, images: Images, device: str = "cpu", progress: bool = True, **how: Any
) -> Scores:
    """Scores of all images with the paper's settings (library defaults) unless ``how`` differs."""
    scorer = InfluenceScorer(encoder, device=device, progress=progress, **how)
    return scorer.score(normalise(images.tensor()), names=images.names)


def score_with_labels(
    classifier: torch.nn.Module, images: Images, device: str = "cpu", progress: bool = True
) -> Scores:
    """Scores of all images by the classifier's cross-entropy, with the library's defaults."""
    scorer = InfluenceScorer(classifier, Supervised(), device=device, progress=progress)
    items = TensorDataset(normalise(images.tensor()), torch.from_numpy(images.labels.copy()))
    return scorer.score(items, names=images.names)


def score_and_record(
    method: str,
    profile: str,
    seed: int,
    split: str,
    device: str = "cpu",
    progress: bool = True,
    root: Path | None = None,
    labels: bool = False,
) -> results.RecordedScores:
    """Score ``split`` with the recorded encoder and record it.

    A supervised encoder is scored like the others, by its representation without the classifier.
    With ``labels`` its classifier's cross-entropy is scored; raises
    :class:`InfluenceValueError` for an encoder without a classifier.
    """
    images = data_for(profile, split)
    command = f"influence-lab score {method} --profile {profile} --seed {seed} --split {split}"
    command += " --labels" if labels else ""
    begin = time.perf_counter()
    encoder = results.load_encoder(profile, method, seed, root)
    if encoder is None:
        raise InfluenceValueError(
            f"{profile}/{method}-{seed}: no recorded encoder; first run "
            f"influence-lab pretrain {method} --profile {profile} --seed {seed}"
        )
    if labels and encoder.fc is None:
        raise InfluenceValueError(
            f"{method}: trained without labels, so it has no classifier whose loss could be "
            "scored; leave --labels out, or score supervised"
        )
    if labels:
        scores = score_with_labels(encoder, images, device, progress)
    else:
        scores = score_images(representation(encoder), images, device, progress)
    _check(scores)
    extra = results.provenance(
        command, profile, seed, f"{images.name} {split} ({len(images):,} images)", images.digest,
        results.device_name(device), time.perf_counter() - begin,
    )  # fmt: skip
    # The scorer's seed determines the noise, the run's seed the encoder.
    scores.provenance["noise seed"] = scores.provenance.pop("seed")
    extra["encoder seed"] = extra.pop("seed")
    recorded = results.compress(scores, extra)
    place = results.folder_of(profile, method, seed, root)
    results.save_scores(recorded, place / results.scores_name(split, labels))
    return recorded


def recorded_or_made(
    method: str,
    profile: str,
    seed: int,
    split: str,
    device: str = "cpu",
    runs: Path | None = None,
    root: Path | None = None,
    labels: bool = False,
) -> results.RecordedScores:
    """The recorded scores of a run; if there are none, its encoder is trained and scored."""
    if results.load_encoder(profile, method, seed, root) is None:
        pretrain_and_record(method, profile, seed, device, runs=runs, root=root)
    scores = results.load_scores(profile, method, seed, split, root, labels)
    return scores or score_and_record(
        method, profile, seed, split, device, root=root, labels=labels
    )


def _check(scores: Scores) -> None:
    if not np.isfinite(scores.values).all() or (scores.values > 0).any():
        raise InfluenceValueError("scores: not all are finite and ≤ 0; nothing was recorded")

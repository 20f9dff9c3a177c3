"""Baselines for an encoder: raw pixels, and untrained weights."""

from __future__ import annotations

import time

import torch

from influence_lab.experiments.task import Task
from influence_lab.pretrain import settings_for
from influence_lab.pretrain.probes import extract, knn_accuracy
from influence_lab.pretrain.resnets import cifar_resnet18, normalise
from influence_lab.records import results
from influence_lab.records.recording import data_for


def reproduce(task: Task) -> str:
    """kNN accuracy of the raw pixels and of an untrained encoder (seed 0), recorded."""
    profile = task.profile
    begin = time.perf_counter()
    train, test = data_for(profile, "train"), data_for(profile, "test")
    labels, truth = (torch.from_numpy(part.labels.copy()) for part in (train, test))
    pixels = [normalise(part.tensor()).flatten(1) for part in (train, test)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = cifar_resnet18(settings_for("simclr", profile).width)
    features = [extract(untrained, part.tensor()) for part in (train, test)]
    record = {
        "raw pixels": knn_accuracy(pixels[0], labels, pixels[1], truth),
        "untrained encoder": knn_accuracy(features[0], labels, features[1], truth),
        "provenance": results.provenance(
            task.command,
            profile,
            0,
            f"{train.name} train ({len(train):,} images), test ({len(test):,} images)",
            train.digest,
            results.device_name("cpu"),
            time.perf_counter() - begin,
        ),
    }
    results.save_json((task.root or results.results_root()) / profile / "baselines.json", record)
    return (
        f"kNN of raw pixels {record['raw pixels']:.2%}, of an untrained encoder "
        f"{record['untrained encoder']:.2%}"
    )

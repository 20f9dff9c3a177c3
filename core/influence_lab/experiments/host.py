"""What the processor feeds to a device: images per second, and how far its work hides behind it.

A card is simulated by a given time per image, during which the processor is free. As PyTorch starts
a card's work and goes on, it waits for a batch only when the next one is ready, and at the end of
the pass. Images come as a tensor, for which only the noise is left to do, or as JPEG files, which
have to be read and decoded as well.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from influence_lab.experiments.task import Task
from influence_lab.pretrain.resnets import cifar_resnet18
from influence_lab.records import results
from influence_ssl import GaussianNoise, Identity, InfluenceScorer
from influence_ssl.files.images import ImageFiles
from influence_ssl.objectives import Batch, Encode, Index

IMAGES = {"tiny": {32: (256, 64), 224: (16, 8)}, "cpu": {32: (24_576, 12_288), 224: (2_048, 2_048)}}
"""Images of a tensor and JPEG files, by side."""
ROUNDS = {"tiny": 1, "cpu": 5}
SPEEDS, ESTIMATE = (0.5, 1.0, 2.0), "H100"
"""Time of the simulated card over that of the processor, with all its cores at work."""
CARD = {32: 1 / 10_000, 224: 1 / 1_500}
"""Seconds per image of an H100, estimated, by side."""
SMALL = {"tiny": 16, "cpu": 256}
BATCH = {32: 256, 224: 16}


@dataclass
class Device:
    """A device that computes one batch after the other while the processor goes on."""

    free: float = 0.0  # when all it was given is computed

    def give(self, seconds: float) -> None:
        """Give it another batch. Waits until the earlier ones are computed, not for this one."""
        now = time.perf_counter()
        begins = max(now, self.free)
        self.free = begins + seconds
        time.sleep(begins - now)

    def finish(self) -> None:
        """Wait until all is computed."""
        time.sleep(max(0.0, self.free - time.perf_counter()))


@dataclass(frozen=True)
class Card:
    """An objective that draws an image's noise and leaves the rest to a device."""

    seconds: float = 0.0  # per image
    device: Device = field(default_factory=Device)
    drawn: bool = False

    def ahead(
        self, shape: Sequence[int], index: Index, draw: int, seed: int, pinned: bool = False
    ) -> Self:
        """The same objective with the noise drawn."""
        GaussianNoise().ahead(shape, index, draw, seed, pinned)
        return replace(self, drawn=True)

    def __call__(self, encode: Encode, batch: Batch, index: Index, draw: int, seed: int) -> Tensor:
        if not self.drawn:
            self.ahead(batch[0].shape, index, draw, seed)
        self.device.give(self.seconds * len(index))
        return encode(batch[0][:, :, :1, :1]).square().sum(1)


def seconds_of(
    images: Tensor | ImageFiles, side: int, workers: int | None, card: float = 0.0
) -> float:
    """Wall time per image of a pass over ``images`` with a card of ``card`` seconds per image."""
    encoder, simulated = nn.Sequential(nn.Flatten(), nn.Linear(3, 1)), Card(card)
    scorer = InfluenceScorer(
        encoder, simulated, Identity(), batch_size=BATCH[side], workers=workers, progress=False
    )
    begin = time.perf_counter()
    for _ in scorer.gradients(images):
        pass
    simulated.device.finish()
    return (time.perf_counter() - begin) / len(images)


def pictures(folder: Path, side: int, count: int) -> ImageFiles:
    """JPEG files of smooth random pictures."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(side)
    for k in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{k:05}.jpg")
    return ImageFiles(folder).readable()


def measure(images: Tensor | ImageFiles, side: int, cores: int, rounds: int) -> dict[str, Any]:
    """Images per second without threads, with the default and with one per core, and passes over
    the slower of both sides.

    Passes have the default threads for files, for a tensor one per core. The
    processor counts at its best: in its fastest round, without threads and divided by the cores, or
    with threads if that is faster. A pass is the median of its rounds.
    """
    threads = cores if isinstance(images, Tensor) else None

    def rounds_of(workers: int | None, card: float = 0.0) -> list[float]:
        return [seconds_of(images, side, workers, card) for _ in range(rounds)]

    alone, threaded = min(rounds_of(0)), min(rounds_of(threads))
    full = threaded if threads == cores else min(rounds_of(cores))
    processor = min(alone / cores, threaded)
    cards = {str(speed): speed * processor for speed in SPEEDS} | {ESTIMATE: CARD[side]}
    passes = {
        name: round(statistics.median(rounds_of(threads, card)) / max(processor, card), 3)
        for name, card in cards.items()
    }
    return {"images": len(images), "alone": round(1 / alone), "threads": round(1 / threaded),
            "cores": round(1 / full), "passes": passes}  # fmt: skip


def small(images: ImageFiles, rounds: int) -> float:
    """Wall time of scoring files on the processor with threads over without them."""
    torch.manual_seed(0)
    encoder = cifar_resnet18(8)
    found: dict[int | None, list[float]] = {0: [], None: []}
    for _ in range(rounds + 1):
        for workers, seconds in found.items():
            begin = time.perf_counter()
            InfluenceScorer(encoder, workers=workers, batch_size=32, progress=False).score(images)
            seconds.append(time.perf_counter() - begin)
    ratios = [a / b for a, b in zip(found[None][1:], found[0][1:], strict=True)]
    return round(statistics.median(ratios), 3)


def reproduce(task: Task) -> str:
    """Measure how many images per second the processor feeds, by size, source and threads."""
    size = "tiny" if task.profile == "tiny" else "cpu"
    begin, sizes = time.perf_counter(), IMAGES[size]
    rounds, cores = ROUNDS[size], os.cpu_count() or 1
    n = SMALL[size]
    found: dict[str, dict[str, Any]] = {}
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        few = small(pictures(Path(folder) / "small", 32, n), 3 * rounds)
        for side, (many, files) in sizes.items():
            read = pictures(Path(folder) / str(side), side, files)
            for path in sorted(read.source.iterdir()):
                digest.update(path.read_bytes())
            for source, images in (("tensor", torch.rand(many, 3, side, side)), ("JPEG", read)):
                found[f"{side} {source}"] = measure(images, side, cores, rounds)
    record: dict[str, Any] = {
        "cores": cores,
        "feeds": found,
        "small": {"images": n, "ratio": few},
        "provenance": results.provenance(
            task.command, task.profile, 0, "smooth random pictures as JPEG", digest.hexdigest(),
            results.device_name("cpu"), time.perf_counter() - begin,
        ),
    }  # fmt: skip
    results.save_json((task.root or results.results_root()) / task.profile / "host.json", record)
    slowest = max(max(one["passes"].values()) for one in found.values())
    return f"passes take at most {slowest:.2f} times the slower of processor and simulated card"

"""What the processor feeds to a device: images per second, and how far its work hides behind it.

A card is simulated by a given time per image, during which the processor is free. As PyTorch starts
a card's work and goes on, it waits for a batch only when the next one is ready, and at the end of
the pass. Images come as a tensor, for which only the noise is left to do, or as JPEG files: either
kept from their first reading or read and decoded again.

The most that the processor can do is measured, too: one process per core makes a share of the same
pass, with no threads and no card. Cores that share a processor's units or its clock do less
together than one alone times their number.
"""

from __future__ import annotations

import copy
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
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

IMAGES = {"tiny": {32: (256, 64), 224: (16, 8)}, "cpu": {32: (32_768, 12_288), 224: (768, 768)}}
"""Images of a tensor and JPEG files, by side."""
SOURCES = ("tensor", "JPEG", "JPEG, read again")
ROUNDS = {"tiny": 1, "cpu": 7}
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
    """Wall time per image of a pass over ``images`` with a card of ``card`` seconds per image.

    With a card, the caller's thread has nothing to compute. The little that it computes here takes
    one core: PyTorch's threads on others would wait for more in a loop, at the readers' cost.
    """
    encoder, simulated = nn.Sequential(nn.Flatten(), nn.Linear(3, 1)), Card(card)
    scorer = InfluenceScorer(
        encoder, simulated, Identity(), batch_size=BATCH[side], workers=workers, progress=False
    )
    own = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        begin = time.perf_counter()
        for _ in scorer.gradients(images):
            pass
        simulated.device.finish()
        return (time.perf_counter() - begin) / len(images)
    finally:
        torch.set_num_threads(own)


def pictures(folder: Path, side: int, count: int) -> ImageFiles:
    """JPEG files of smooth random pictures."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(side)
    for k in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{k:05}.jpg")
    return ImageFiles(folder).readable()


def prepared(folder: Path, source: str, side: int, count: int) -> Tensor | ImageFiles:
    """The images of a source; ``folder`` is made if they are files."""
    if source == "tensor":
        return torch.rand(count, 3, side, side)
    kept = pictures(folder, side, count)
    return kept if source == "JPEG" else copy.copy(kept)  # a copy keeps none


def _share(pipe: Connection, folder: Path, source: str, side: int, count: int) -> None:
    """Makes a pass over its own images for each message, in one core."""
    torch.set_num_threads(1)
    images = prepared(folder, source, side, count)
    pipe.send(None)
    while pipe.recv():
        seconds_of(images, side, workers=0)
        pipe.send(None)


@contextmanager
def processes(
    folder: Path, source: str, side: int, count: int, cores: int
) -> Iterator[list[Connection]]:
    """One process per core with its share of the images, each ready for a pass."""
    context, pipes, started = get_context("spawn"), [], []
    for k in range(cores):
        pipe, other = context.Pipe()
        mine = folder / f"process {k}", source, side, count // cores
        started.append(context.Process(target=_share, args=(other, *mine), daemon=True))
        started[-1].start()
        other.close()
        pipes.append(pipe)
    try:
        for pipe in pipes:
            pipe.recv()
        yield pipes
        for pipe in pipes:
            pipe.send(False)
        for process in started:
            process.join()
    finally:
        for process in started:
            process.kill()


def together(pipes: list[Connection], images: int) -> float:
    """Wall time per image of a pass that the processes share."""
    begin = time.perf_counter()
    for pipe in pipes:
        pipe.send(True)
    for pipe in pipes:
        pipe.recv()
    return (time.perf_counter() - begin) / images


def measure(
    folder: Path, source: str, side: int, count: int, cores: int, rounds: int
) -> dict[str, Any]:
    """Images per second, and passes over the slower of processor and card; medians of all rounds.

    ``alone``: without threads; ``threads``: with those of the default; ``cores``: with one per
    core; ``together``: by one process per core, which is how fast the processor counts as in the
    same round. ``first``: the first reading of the files.
    """
    images = prepared(folder / "all", source, side, count)
    threads = None if source == "JPEG, read again" else cores  # the default with a card
    found: dict[str, list[float]] = {}
    passes: dict[str, list[float]] = {}
    if source == "JPEG" and isinstance(images, ImageFiles):
        begin = time.perf_counter()
        ImageFiles(images.source).readable()
        found["first"] = [(time.perf_counter() - begin) / count]
    with processes(folder, source, side, count, cores) as pipes:
        for _ in range(rounds):
            processor = together(pipes, count // cores * cores)
            ways = {
                "alone": seconds_of(images, side, 0),
                "threads": seconds_of(images, side, threads),
                "cores": seconds_of(images, side, cores),
                "together": processor,
            }
            for name, seconds in ways.items():
                found.setdefault(name, []).append(seconds)
            cards = {str(speed): speed * processor for speed in SPEEDS} | {ESTIMATE: CARD[side]}
            for name, card in cards.items():
                took = seconds_of(images, side, threads, card)
                passes.setdefault(name, []).append(took / max(processor, card))
    return {
        "images": count,
        **{name: round(1 / statistics.median(seconds)) for name, seconds in found.items()},
        "passes": {name: round(statistics.median(ratios), 3) for name, ratios in passes.items()},
    }


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
            for source in SOURCES:
                own = Path(folder) / f"{side} {source}"
                count = many if source == "tensor" else files
                found[f"{side} {source}"] = measure(own, source, side, count, cores, rounds)
                for path in sorted(own.glob("all/*.jpg")):
                    digest.update(path.read_bytes())
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

"""What ``influence-ssl check`` costs beside ``score``, and groups among a hundred thousand images.

    python -m influence_lab.experiments.check_cost check
    python -m influence_lab.experiments.check_cost score
    python -m influence_lab.experiments.check_cost groups
    python -m influence_lab.experiments.check_cost index
    python -m influence_lab.experiments.check_cost copies

Each line writes its part of ``check-cost.json``, by the number of images (``--images``).
The commands run on the same test images of CIFAR-10, as PNG files, with the packaged encoder and
their own defaults. The groups are found among images of CIFAR-10, images composed of two halves of
them, which resemble both, and JPEG copies; the representations are those of the recorded SimCLR
encoder, whose time is measured with the commands. Two per cent are copies. ``groups`` compares
every image with every other, ``index`` uses the index and measures how many neighbours it finds.
The last line measures the opposite case: nearly all files are copies of a single one.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import resource
import shlex
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from influence_lab.datasets import load
from influence_lab.measures.copies import pairs, precision, recall
from influence_lab.practice import shell
from influence_lab.pretrain.probes import extract
from influence_lab.records import results
from influence_ssl.analysis import neighbours
from influence_ssl.analysis.duplicates import duplicate_groups
from influence_ssl.errors import InfluenceValueError

IMAGES, ROWS = 10_000, 100_000
PLANTED, COPIES, OTHERS = 0.02, 16_000, 2000
ASKED = 2000
VIEWS = "whitened representation", "thumbnail", "turned thumbnail", "representation"
COMMANDS = {
    "check": "influence-ssl check --data {folder} --device cpu --out {out}",
    "score": "influence-ssl score --data {folder} --encoder builtin:cifar-simclr --device cpu "
    "--out {out}",
}


class Arrays:
    """Images in memory for :func:`~influence_ssl.analysis.duplicates.duplicate_groups`."""

    def __init__(self, pixels: UInt8[np.ndarray, "n 32 32 3"]) -> None:
        self.pixels = pixels
        self.sha256 = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pixels]
        self.thumbnails = np.stack(
            [np.asarray(self.image(k).convert("L")) for k in range(len(pixels))]
        )

    def image(self, k: int) -> Image.Image:
        """Image k."""
        return Image.fromarray(self.pixels[k])


def command(name: str, images: int = IMAGES) -> dict[str, Any]:
    """Processor and wall-clock seconds of one of :data:`COMMANDS`."""
    test = load("cifar10", "test")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "images")
        folder.mkdir()
        for k, picture in enumerate(test.images[:images]):
            Image.fromarray(picture).save(folder / f"{k:05}.png")
        cpu, wall = time.process_time(), time.perf_counter()
        out = shlex.quote(str(Path(work, f"{name}.parquet")))
        shell(COMMANDS[name].format(folder=shlex.quote(str(folder)), out=out))
        return {
            "cpu": round(time.process_time() - cpu, 1),
            "wall": round(time.perf_counter() - wall, 1),
        }


def groups(rows: int = ROWS) -> dict[str, Any]:
    """Seconds, peak memory of the process, and how many of the copies are found, by blocks."""
    images, truth = composed(rows)
    return _groups(represented(images.pixels), images, truth, exact=True)


def index(rows: int = ROWS) -> dict[str, Any]:
    """Groups by the index, and per view the share of the neighbours that it finds and seconds."""
    images, truth = composed(rows)
    z = represented(images.pixels)
    searched: list[tuple[Float32[Tensor, "n d"], neighbours.Neighbours, float]] = []

    def timed(bank: Float32[Tensor, "n d"], k: int) -> neighbours.Neighbours:
        cpu, found = time.process_time(), by_index(bank, k)
        searched.append((bank, found, time.process_time() - cpu))
        return found

    by_index = neighbours.indexed
    with mock.patch.object(neighbours, "indexed", timed):
        found = _groups(z, images, truth, exact=False)
        neighbours.indexed(neighbours.unit(z), 1)
    found["views"] = {}
    for name, (view, near, seconds) in zip(VIEWS, searched, strict=True):
        n = len(view)  # copies of a file are searched once for groups
        asked = np.random.default_rng(0).choice(n, min(n, ASKED), replace=False)
        cpu = time.process_time()
        exact = neighbours.nearest(view, near.place.shape[1], asked)
        cpu = time.process_time() - cpu
        found["views"][name] = {
            "recall": round(shared(exact.place, near.place[asked]), 4),
            "cpu": round(seconds, 1),
            "cpu by blocks, from a sample": round(cpu * n / len(asked), 1),
        }
    return found


def shared(exact: Int64[np.ndarray, "n k"], found: Int64[np.ndarray, "n k"]) -> float:
    """The share of the exact neighbours that are found."""
    return float((exact[:, :, None] == found[:, None]).any(2).mean())


def composed(rows: int) -> tuple[Arrays, set[tuple[int, int]]]:
    """Images of CIFAR-10, images of two halves and copies; each pair of an image and its copy."""
    copies = round(PLANTED * rows)
    rng = np.random.default_rng(0)
    pixels = np.concatenate([load("cifar10", split).images for split in ("train", "test")])
    own = pixels[rng.permutation(len(pixels))[: rows * len(pixels) // ROWS]]
    number = rows - len(own) - copies
    left, right = rng.integers(0, len(own), (2, number))
    halves = np.concatenate([own[left][:, :, :16], own[right][:, :, 16:]], axis=2)
    sources = rng.permutation(len(own))[:copies]
    again = np.stack([_jpeg(own[k]) for k in sources])
    truth = {(int(k), len(own) + number + i) for i, k in enumerate(sources)}
    return Arrays(np.concatenate([own, halves, again])), truth


def _groups(
    z: Float32[Tensor, "n d"], images: Arrays, truth: set[tuple[int, int]], exact: bool
) -> dict[str, Any]:
    before = _peak()
    cpu, wall = time.process_time(), time.perf_counter()
    with mock.patch.object(neighbours, "EXACT", len(z) if exact else 0):
        found = pairs(group.members for group in duplicate_groups(z, images))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    planted = {pair for pair in found if pair[1] >= len(z) - len(truth)}
    return {
        "copies": len(truth),
        "pairs": len(found),
        "cpu": round(cpu, 1),
        "wall": round(wall, 1),
        "bytes": _peak(),
        "bytes before": before,
        "recall": [round(value, 4) for value in recall(found, truth) or ()],
        "precision of pairs with a copy": [
            round(value, 4) for value in precision(planted, truth) or ()
        ],
    }


def same_file(copies: int = COPIES) -> dict[str, Any]:
    """Seconds for the groups among copies of one file and :data:`OTHERS` other images."""
    pixels = load("cifar10", "test").images[:OTHERS]
    images = Arrays(np.concatenate([pixels, pixels[:1].repeat(copies, 0)]))
    z = represented(images.pixels)
    cpu, wall = time.process_time(), time.perf_counter()
    found = duplicate_groups(z, images)
    return {
        "cpu": round(time.process_time() - cpu, 1),
        "wall": round(time.perf_counter() - wall, 1),
        "members": max(len(group.members) for group in found),
    }


def represented(pixels: UInt8[np.ndarray, "n 32 32 3"]) -> Float32[Tensor, "n d"]:
    """The recorded SimCLR encoder's representations."""
    encoder = results.load_encoder("cpu", "simclr", 0)
    assert encoder is not None
    return extract(encoder, torch.tensor(pixels).permute(0, 3, 1, 2), batch_size=100)


def _jpeg(picture: UInt8[np.ndarray, "32 32 3"]) -> UInt8[np.ndarray, "32 32 3"]:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file).convert("RGB"))


PARTS = {"groups": (groups, ROWS), "index": (index, ROWS), "copies": (same_file, COPIES)}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure one part and add it to the record."""
    parser = argparse.ArgumentParser(description="Measure what check costs.")
    parser.add_argument("part", choices=(*COMMANDS, *PARTS))
    parser.add_argument("--images", type=int, help="how many images, or copies of one file")
    options, begin = parser.parse_args(), time.perf_counter()
    part = options.part
    measure, usual = PARTS.get(part, (partial(command, part), IMAGES))
    number = options.images or usual
    found = measure(number)
    record = results.load_record("cpu", "check-cost") or {}
    record.setdefault(part, {})[str(number)] = found
    test = load("cifar10", "test")
    record["provenance"] = results.provenance(
        f"python -m influence_lab.experiments.check_cost {part}", "cpu", 0, test.name, test.digest,
        results.device_name("cpu"), time.perf_counter() - begin,
    )  # fmt: skip
    results.save_json(results.results_root() / "cpu" / "check-cost.json", record)
    print(found)


def share(record: dict[str, Any]) -> tuple[int, float]:
    """The largest number of images that both commands were given, and the share of ``score``'s
    processor time that ``check`` takes."""
    both = [int(n) for n in record.get("check", {}) if n in record.get("score", {})]
    if not both:
        raise InfluenceValueError(
            "check-cost.json: check and score are not recorded for equally many images; run "
            "python -m influence_lab.experiments.check_cost check, and score."
        )
    n = str(max(both))
    return int(n), record["check"][n]["cpu"] / record["score"][n]["cpu"]


if __name__ == "__main__":
    main()

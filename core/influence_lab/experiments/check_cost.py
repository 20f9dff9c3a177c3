"""What ``influence-ssl check`` costs beside ``score``, and groups among a hundred thousand images.

    python -m influence_lab.experiments.check_cost check
    python -m influence_lab.experiments.check_cost score
    python -m influence_lab.experiments.check_cost groups
    python -m influence_lab.experiments.check_cost copies

Each line writes its part of ``check-cost.json``, by the number of images (``--images``).
The commands run on the same test images of CIFAR-10, as PNG files, with the packaged encoder and
their own defaults. The groups are found among images of CIFAR-10, images composed of two halves of
them, which resemble both, and JPEG copies; the representations are random projections of their
colours, because the encoder's time is measured with the commands. Two per cent are copies. The last
line measures the opposite case: nearly all files are copies of a single one.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import resource
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from influence_lab.datasets import load
from influence_lab.measures.copies import pairs, precision, recall
from influence_lab.practice import shell
from influence_lab.records import results
from influence_ssl.analysis.duplicates import duplicate_groups
from influence_ssl.errors import InfluenceValueError

IMAGES, ROWS = 10_000, 100_000
PLANTED, COPIES, OTHERS = 0.02, 16_000, 2000
DIMENSIONS = 128
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
    """Seconds, peak memory of the process, and how many of the copies are found."""
    copies = round(PLANTED * rows)
    rng = np.random.default_rng(0)
    pixels = np.concatenate([load("cifar10", split).images for split in ("train", "test")])
    kept = rng.permutation(len(pixels))[: rows * len(pixels) // ROWS]
    own = pixels[kept]
    number = rows - len(own) - copies
    left, right = rng.integers(0, len(own), (2, number))
    halves = np.concatenate([own[left][:, :, :16], own[right][:, :, 16:]], axis=2)
    sources = rng.permutation(len(own))[:copies]
    again = np.stack([_jpeg(own[k]) for k in sources])
    images = Arrays(np.concatenate([own, halves, again]))
    z = projected(images.pixels)
    before = _peak()
    cpu, wall = time.process_time(), time.perf_counter()
    found = pairs(group.members for group in duplicate_groups(z, images))
    truth = {(int(k), len(own) + number + i) for i, k in enumerate(sources)}
    planted = {pair for pair in found if pair[1] >= len(own) + number}
    return {
        "copies": copies,
        "cpu": round(time.process_time() - cpu, 1),
        "wall": round(time.perf_counter() - wall, 1),
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
    z = projected(images.pixels)
    cpu, wall = time.process_time(), time.perf_counter()
    found = duplicate_groups(z, images)
    return {
        "cpu": round(time.process_time() - cpu, 1),
        "wall": round(time.perf_counter() - wall, 1),
        "members": max(len(group.members) for group in found),
    }


def projected(pixels: UInt8[np.ndarray, "n 32 32 3"]) -> Float32[Tensor, "n d"]:
    """Random projections of the colours at 8 x 8 pixels."""
    found = []
    weights = torch.randn(192, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    for part in np.array_split(pixels, max(1, len(pixels) // 4096)):
        x = torch.tensor(part).permute(0, 3, 1, 2).float() / 255
        found.append(F.adaptive_avg_pool2d(x, 8).flatten(1) @ weights)
    return torch.cat(found)


def _jpeg(picture: UInt8[np.ndarray, "32 32 3"]) -> UInt8[np.ndarray, "32 32 3"]:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file).convert("RGB"))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure one part and add it to the record."""
    parser = argparse.ArgumentParser(description="Measure what check costs.")
    parser.add_argument("part", choices=(*COMMANDS, "groups", "copies"))
    parser.add_argument("--images", type=int, help="how many images, or copies of one file")
    options, begin = parser.parse_args(), time.perf_counter()
    part = options.part
    number = options.images or {"groups": ROWS, "copies": COPIES}.get(part, IMAGES)
    record = results.load_record("cpu", "check-cost") or {}
    if part == "groups":
        found = groups(number)
    else:
        found = same_file(number) if part == "copies" else command(part, number)
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

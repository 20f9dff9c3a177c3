"""Planted copies among look-alikes, CIFAR-10 and photographs: correct and false duplicate groups.

Sets of different pictures that look alike (:mod:`influence_lab.datasets.lookalikes`) must give no
group. Copies of twelve kinds are planted among CIFAR-10's test images and among tiles of
photographs from packages. The thresholds are chosen on one half of each set, to find the most
copies without a false pair. The reported numbers are those of the other half, for a trained and a
random encoder. Off-topic images are also planted among CIFAR-10's, to test which distance between
representations finds them.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor, nn

from influence_lab.datasets import load
from influence_lab.datasets.lookalikes import COPIES, SETS, file_of, photographs, tiles
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import rounded
from influence_lab.measures.detection import auroc
from influence_lab.pretrain.resnets import cifar_resnet18
from influence_lab.records import results
from influence_ssl.analysis.duplicates import Group, Limits, Search
from influence_ssl.analysis.offtopic import distances
from influence_ssl.encoders.builtin import NAME, PREFIX, from_package

Truth = dict[tuple[int, int], str]
"""(image, copy) → the kind of the copy."""

COUNT = 4000
IMAGES = {"tiny": 500}
"""Test images of CIFAR-10 in both halves, by profile; :data:`COUNT` where nothing is said."""

ALIKE = 24
"""Pictures in each set of look-alikes, and of digits five times as many."""

GRID = {
    "pixels": (0.93, 0.95, 0.97),
    "worst": (0.2, 0.3, 0.4, 0.5),
    "gap": (0.3, 0.5, 1.0),
    "veto": (0.0,),
}
"""Of the thresholds, all combinations are tried."""


class Pictures:
    """Files in memory, in the form for :class:`~influence_ssl.analysis.duplicates.Search`."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self.files = files
        self.sha256 = [hashlib.sha256(file).hexdigest() for file in files]
        small = (
            self.image(k).convert("L").resize((32, 32), Image.Resampling.BOX)
            for k in range(len(files))
        )
        self.thumbnails = np.stack([np.asarray(picture) for picture in small])

    def image(self, k: int) -> Image.Image:
        """Picture k."""
        return Image.open(self.stream(k)).convert("RGB")

    def stream(self, k: int) -> io.BytesIO:
        """File k."""
        return io.BytesIO(self.files[k])

    def represent(self, encoder: nn.Module) -> Tensor:
        """The pictures' representations at 32 x 32 pixels."""
        named = from_package(PREFIX + NAME)
        assert named is not None
        preprocess, found = named[1], []
        with torch.inference_mode():
            for start in range(0, len(self.files), 256):
                rows = range(start, min(start + 256, len(self.files)))
                found.append(encoder(torch.stack([preprocess(self.image(k)) for k in rows])))
        return torch.cat(found)


def encoders(seed: int) -> dict[str, nn.Module]:
    """The built-in encoder, and one with random weights."""
    trained = from_package(PREFIX + NAME)
    assert trained is not None
    torch.manual_seed(seed)
    return {"trained": trained[0], "random": cifar_resnet18(16).eval()}


def plant(
    images: Sequence[Image.Image], each: int, rng: np.random.Generator
) -> tuple[Pictures, Truth]:
    """The images' files and ``each`` copies of every kind, "file" among them, each of another
    image; and the kind of each pair (image, copy)."""
    files = [file_of(image) for image in images]
    kinds = [kind for kind in ("file", *COPIES) for _ in range(each)]
    sources = rng.permutation(len(images))[: len(kinds)].tolist()
    truth: Truth = {}
    copies: list[bytes] = []
    for k, kind in zip(sources, kinds, strict=False):
        truth[k, len(files) + len(copies)] = kind
        copies.append(files[k] if kind == "file" else COPIES[kind](images[k], rng))
    return Pictures([*files, *copies]), truth


def pairs(groups: Sequence[Group]) -> set[tuple[int, int]]:
    """All pairs of images in the same group."""
    return {pair for group in groups for pair in itertools.combinations(group.members, 2)}


def quality(found: set[tuple[int, int]], truth: Truth) -> dict[str, Any]:
    """Precision, recall and recall by kind, of pairs; with Wilson's 95 % intervals."""
    hits = Counter(truth[pair] for pair in found if pair in truth)
    wanted = Counter(truth.values())
    right = sum(hits.values())
    return {
        "pairs": len(found),
        "false": sorted(pair for pair in found if pair not in truth),
        "precision": _wilson(right, len(found)),
        "recall": _wilson(right, len(truth)),
        "recall by kind": {kind: round(hits[kind] / n, 3) for kind, n in wanted.items()},
    }


def _wilson(hits: int, n: int) -> list[float]:
    """(share, low, high)."""
    if n == 0:
        return [1.0, 0.0, 1.0]
    z, p = 1.96, hits / n
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
    return [round(float(value), 4) for value in (p, low, high)]


def strangers(found: set[tuple[int, int]], truth: Truth) -> int:
    """The number of pairs of different originals grouped directly or through their copies."""
    source = {copy: original for original, copy in truth}
    origins = {tuple(sorted((source.get(a, a), source.get(b, b)))) for a, b in found}
    return sum(a != b for a, b in origins)


def choose(half: dict[str, list[tuple[Search, Truth]]]) -> Limits:
    """The limits in :data:`GRID` that find the most copies without pairing different pictures.

    ``half`` contains, by set, a search with the kinds of its true pairs for each encoder. CIFAR-10
    has near-duplicates of its own, so pairs of its originals do not count.
    """
    best: tuple[float, ...] | None = None
    chosen = Limits()
    for values in itertools.product(*GRID.values()):
        limits = Limits(*values)
        false, shares = 0, []
        for name, searches in half.items():
            for search, truth in searches:
                found = pairs(search.groups(limits))
                false += 0 if name == "cifar10" else strangers(found, truth)
                shares += [len(found & truth.keys()) / len(truth)] if truth else []
        # Of equal ones the strictest.
        rank = (-false, round(float(np.mean(shares)), 6), limits.pixels, limits.worst,
                -limits.gap, limits.veto)  # fmt: skip
        if best is None or rank > best:
            best, chosen = rank, limits
    return chosen


def halves(
    images: np.ndarray, photos: Sequence[Image.Image], count: int, seed: int
) -> Iterator[dict[str, tuple[Pictures, Truth]]]:
    """By set, the pictures of the first half and of the second, with their planted copies.

    ``count`` of CIFAR-10's ``images`` are drawn for both halves together.
    """
    rows = np.random.default_rng(seed).permutation(len(images))
    each = max(2, count // 400)
    for half in (0, 1):
        rng = np.random.default_rng([seed, half])
        sets = {
            "cifar10": plant([Image.fromarray(images[k]) for k in rows[half:count:2]], each, rng),
            "photographs": plant(photos[half::2], 2, rng),
        }
        for name, draw in SETS.items():
            drawn = draw(ALIKE * (5 if name == "digits" else 1), rng)
            sets[name] = Pictures([file_of(picture) for picture in drawn]), {}
        yield sets


def reproduce(task: Task) -> str:
    """Choose on one half, report the other; record ``planted.json``."""
    begin = time.perf_counter()
    test, nets = load("cifar10", "test"), encoders(task.seed)
    count = IMAGES.get(task.profile, COUNT)
    photos = [tile for photo in photographs().values() for tile in tiles(photo)]
    searches = [
        {
            name: [(Search(found.represent(net), found), truth) for net in nets.values()]
            for name, (found, truth) in sets.items()
        }
        for sets in halves(test.images, photos, count, task.seed)
    ]
    chosen = choose(searches[0])
    report: dict[str, Any] = {}
    for name, pair in searches[1].items():
        report[name] = {"images": len(pair[0][0].images.sha256), "copies": len(pair[0][1])}
        for net, (search, truth) in zip(nets, pair, strict=True):
            found = pairs(search.groups(chosen))
            report[name][net] = {**quality(found, truth), "strangers": strangers(found, truth)}
    record = {
        "chosen": chosen._asdict(),
        "half reported": report,
        "off-topic": off_topic(test.images, nets, task.seed),
        "provenance": results.provenance(
            task.command, task.profile, task.seed,
            f"{test.name} test ({count:,} images), {len(photos)} tiles of {len(photographs())} "
            "photographs of scikit-learn and matplotlib, eight drawn sets of look-alikes",
            test.digest, results.device_name("cpu"), time.perf_counter() - begin,
        ),
    }  # fmt: skip
    root = results.results_root() if task.root is None else task.root
    results.save_json(root / task.profile / "planted.json", record)
    parts = []
    for name in ("cifar10", "photographs"):
        share = report[name]["trained"]
        parts.append(
            f"{name} precision {share['precision'][0]:.3f}, recall {share['recall'][0]:.3f}"
        )
    false = sum(report[name][net]["pairs"] for name in SETS for net in nets)
    return f"{'; '.join(parts)}; {false} false pairs among look-alikes"


def off_topic(
    images: np.ndarray, nets: dict[str, nn.Module], seed: int
) -> dict[str, dict[str, list[float]]]:
    """AUROC (value, low, high) of both distances for the pictures of :func:`with_foreign`."""
    pictures, wanted = with_foreign(images, seed)
    found = {}
    for name, net in nets.items():
        far = distances(pictures.represent(net))
        found[name] = {
            measure: rounded(auroc(values[wanted], values[~wanted]))
            for measure, values in (("density", far.density), ("mahalanobis", far.mahalanobis))
        }
    return found


def with_foreign(images: np.ndarray, seed: int) -> tuple[Pictures, Bool[np.ndarray, " n"]]:
    """2,000 of ``images`` and, marked, 50 of other domains: ten each of noise, forms, invoices,
    text pages and chest-like pictures."""
    rows, rng = np.random.default_rng(seed).permutation(len(images)), np.random.default_rng(seed)
    strange = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(10)]
    for name in ("forms", "invoices", "pages", "chests"):
        strange += SETS[name](10, rng)
    chosen = images[rows[:2000]]
    pictures = Pictures([file_of(p) for p in [*map(Image.fromarray, chosen), *strange]])
    return pictures, np.arange(len(pictures.files)) >= len(chosen)

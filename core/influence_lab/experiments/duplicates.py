"""Planted duplicates among real images: the command's groups against other methods.

``python -m influence_lab.experiments.duplicates`` plants copies, re-encodings and crops of CIFAR-10
test images of one class, runs ``influence-ssl score`` on the folder, and records precision and
recall of the duplicate groups beside those of the score, of representation kNN and of a perceptual
hash. The thresholds of :mod:`influence_ssl.analysis.duplicates` were chosen on the same copies.
"""

from __future__ import annotations

import shlex
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from PIL import Image

from influence_lab.datasets import load
from influence_lab.measures.pixel_duplicates import perceptual_hashes
from influence_lab.practice import shell
from influence_lab.records import results
from influence_ssl.analysis.ranking import Table, read_scores

KINDS = ("copy", "jpeg", "crop")
HASH_BITS = 10


def cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random crop of 27/32 to 30/32 of a square image's side, enlarged to the full size."""
    height = image.height
    side = int(rng.integers(height * 27 // 32, height * 30 // 32 + 1))
    x, y = rng.integers(0, height - side + 1, 2).tolist()
    crop = image.crop((x, y, x + side, y + side))
    return crop.resize(image.size, Image.Resampling.BICUBIC)


def plant(
    pixels: UInt8[np.ndarray, "n h w 3"],
    sources: Int64[np.ndarray, " m"],
    folder: Path,
    rng: np.random.Generator,
) -> list[tuple[str, str, str]]:
    """Write ``pixels`` and one duplicate of each of ``sources``; (kind, original, duplicate) names.

    The kinds take turns: a byte-identical copy, a JPEG of quality 75, and a crop of 27 to 30
    pixels at a random place, enlarged to the full size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{k:05}.png")
    planted = []
    for number, k in enumerate(sources.tolist()):
        kind, image = KINDS[number % 3], Image.fromarray(pixels[k])
        name = f"{kind}-{k:05}.{'jpg' if kind == 'jpeg' else 'png'}"
        if kind == "copy":
            (folder / name).write_bytes((folder / f"{k:05}.png").read_bytes())
        elif kind == "jpeg":
            image.save(folder / name, quality=75)
        else:
            cropped(image, rng).save(folder / name)
        planted.append((kind, f"{k:05}.png", name))
    return planted


def measure(table: Table, planted: list[tuple[str, str, str]], folder: Path) -> dict[str, Any]:
    """Precision and recall of the groups and of each rival, by images, and of the groups by pairs.

    An image counts as found if a method flags it; the targets are the planted duplicates and their
    originals, m images. Groups flag their members, and the hash flags images with another at most
    10 bits away. Score and kNN, which have no threshold of their own, flag the first m images of
    their ranking. This favours them, because m is unknown in practice.
    """
    assert table.group is not None
    assert table.similarity is not None
    row = {name: i for i, name in enumerate(table.name)}
    wanted = np.zeros(len(table), bool)
    for _, original, duplicate in planted:
        wanted[[row[original], row[duplicate]]] = True
    m = int(wanted.sum())
    nearest = hash_distances(folder, table.name)
    flags = {
        "duplicate groups": table.group >= 0,
        "score alone, highest": _first(table.magnitude, m),
        "score alone, lowest": _first(table.score, m),
        "representation kNN alone": _first(table.similarity, m),
        "perceptual hash alone": nearest <= HASH_BITS,
        "perceptual hash alone, first m": _first(-nearest.astype(np.float64), m),
    }
    pairs = _pairs(table.group)
    truth = {tuple(sorted((row[a], row[b]))): kind for kind, a, b in planted}
    hits = [truth[pair] for pair in pairs if pair in truth]
    duplicates = {row[b] for _, _, b in planted}
    touching = [pair for pair in pairs if duplicates.intersection(pair)]
    sizes = np.bincount(table.group[table.group >= 0])
    return {
        "images": len(table),
        "to find": m,
        "by images": {name: _quality(found, wanted) for name, found in flags.items()},
        "groups by pairs": {
            "recall": len(hits) / len(planted),
            "recall by kind": {
                kind: hits.count(kind) / sum(k == kind for k, _, _ in planted) for kind in KINDS
            },
            "precision": len(hits) / max(1, len(pairs)),
            "precision among pairs with a planted image": len(hits) / max(1, len(touching)),
            "groups": len(sizes),
            "groups without a planted image": sum(
                not wanted[table.group == number].any() for number in range(len(sizes))
            ),
        },
    }


def hash_distances(folder: Path, names: list[str]) -> Int64[np.ndarray, " n"]:
    """Smallest Hamming distance of each image's :func:`perceptual_hashes` to another's."""
    images = []
    for name in names:
        with Image.open(folder / name) as image:
            images.append(image.convert("L"))
    signs = perceptual_hashes(images)
    nearest = np.empty(len(names), np.int64)
    for start in range(0, len(names), 1024):
        same = signs[start : start + 1024] @ signs.T
        same[np.arange(len(same)), np.arange(start, start + len(same))] = -64
        nearest[start : start + 1024] = (64 - same.max(1)) // 2
    return nearest


def run(
    pixels: UInt8[np.ndarray, "n h w 3"],
    sources: Int64[np.ndarray, " m"],
    arguments: list[str],
    seed: int,
) -> dict[str, Any]:
    """Plant, score through the command, measure; in a temporary folder."""
    with tempfile.TemporaryDirectory() as work:
        folder, out = Path(work, "images"), Path(work, "scores.parquet")
        planted = plant(pixels, sources, folder, np.random.default_rng(seed))
        line = ["influence-ssl", "score", "--data", str(folder), "--out", str(out), *arguments]
        shell(shlex.join(line))
        return measure(read_scores(out), planted, folder)


def main() -> None:
    """Record ``book/results/cpu/duplicates.json`` from all 10,000 test images, 300 cats planted."""
    begin, seed = time.perf_counter(), 0
    test = load("cifar10", "test")
    pixels = test.images
    cats = np.flatnonzero(test.labels == test.classes.index("cat"))
    sources = np.random.default_rng(seed).permutation(cats)[:300]
    slim = ["--encoder", "influence_lab.pretrain.resnets:cifar_slim"]
    weights = results.weights_of("cpu", "simclr", 0)
    record = {
        "SimCLR, slim ResNet-18": run(pixels, sources, [*slim, "--weights", str(weights)], seed),
        "untrained, slim ResNet-18": run(pixels, sources, slim, seed),
        "provenance": results.provenance(
            "python -m influence_lab.experiments.duplicates",
            "cpu",
            seed,
            f"{test.name} test ({len(test):,} images) and 300 planted duplicates of cats",
            test.digest,
            results.device_name("cpu"),
            time.perf_counter() - begin,
        ),
    }
    results.save_json(results.results_root() / "cpu" / "duplicates.json", record)


def _first(key: np.ndarray, m: int) -> Bool[np.ndarray, " n"]:
    found = np.zeros(len(key), bool)
    found[np.argsort(-key, kind="stable")[:m]] = True
    return found


def _quality(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    hits = int((found & wanted).sum())
    return {
        "flagged": int(found.sum()),
        "precision": hits / max(1, int(found.sum())),
        "recall": hits / int(wanted.sum()),
    }


def _pairs(group: np.ndarray) -> list[tuple[int, int]]:
    found = []
    for number in range(int(group.max()) + 1):
        members = np.flatnonzero(group == number).tolist()
        found += [(a, b) for i, a in enumerate(members) for b in members[i + 1 :]]
    return found


if __name__ == "__main__":
    main()

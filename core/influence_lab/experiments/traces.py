"""Training images that help and hurt the representation of a query, and detection of its copies.

The training set is a fixed part of a profile's images with planted copies: exact ones, and crops
enlarged to full size. The queries are all images of this set and some test images. The influence on
each query is compared with the product of gradients without curvature and with nearest neighbours.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from influence_lab.experiments.duplicates import cropped
from influence_lab.experiments.encoder import encoder_of
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import mean, rounded
from influence_lab.measures.detection import auroc, share
from influence_lab.pretrain.probes import extract
from influence_lab.pretrain.resnets import normalise
from influence_lab.records import results
from influence_lab.records.recording import data_for
from influence_lab.records.thumbnails import load_sheet, save_sheet
from influence_ssl import InfluenceScorer, LoGra

KINDS = ("exact copy", "crop")
# Two passes of a gradient each; minutes on two cores.
EXTENT, COPIES, TEST = 2000, 200, 400
TOP, SHOWN = 10, 3
# So much damping that H no longer counts: what is left is the product of the gradients.
OVERWHELMING = 1e9
INFLUENCE, PRODUCT = "influence", "product of gradients"
COSINE, NEIGHBOURS = "cosine of embeddings", "nearest neighbours"


def plant(
    pixels: UInt8[np.ndarray, "m h w 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "m h w 3"]:
    """One copy of each image: in turn exact, and a crop enlarged to full size."""
    return np.stack(
        [
            np.asarray(cropped(Image.fromarray(image), rng)) if k % len(KINDS) else image
            for k, image in enumerate(pixels)
        ]
    )


def similarities(z: Float[Tensor, "q d"], bank: Float[Tensor, "n d"]) -> Float[np.ndarray, "q n"]:
    """Cosines of representations."""
    unit = torch.nn.functional.normalize
    return (unit(z, dim=1) @ unit(bank, dim=1).T).double().numpy()


def overlap(
    one: Int64[np.ndarray, "q k"], other: Int64[np.ndarray, "q k"]
) -> Float[np.ndarray, " q"]:
    """For each query, the share of the first k of ``one`` among the first k of ``other``."""
    return (one[:, :, None] == other[:, None, :]).any(2).mean(1)


def traced(
    encoder: torch.nn.Module,
    train: UInt8[np.ndarray, "n h w 3"],
    asked: UInt8[np.ndarray, "q h w 3"],
    index: Int64[np.ndarray, " q"],
    device: str,
    curvature: LoGra | None = None,
) -> Float[np.ndarray, "q n"]:
    """Influence of every training image on every query; ``index`` decides the queries' noise."""
    scorer = InfluenceScorer(
        encoder, curvature=curvature, device=device, progress=sys.stderr.isatty()
    )
    scorer.fit(_inputs(train), keep=True)
    return scorer.influence(_inputs(asked), index=index).values


def _inputs(pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    return normalise(_tensor(pixels))


def _tensor(pixels: UInt8[np.ndarray, "n h w 3"]) -> Tensor:
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


class Traces(NamedTuple):
    """The traced influences. The rows of every matrix begin with the columns' n images, m copies.

    ``influence`` and ``alike`` (n + m + q, n + m) have q test images below them; ``product``
    (m + q, n + m) has the copies and the test images only. ``copied`` (m,): the copies' originals.
    """

    influence: Float[np.ndarray, "a n"]
    product: Float[np.ndarray, "b n"]
    alike: Float[np.ndarray, "a n"]
    copied: Int64[np.ndarray, " m"]

    @property
    def counts(self) -> tuple[int, int]:
        """n and m."""
        m = len(self.copied)
        return self.influence.shape[1] - m, m


def has_a_copy(found: Traces) -> dict[str, Any]:
    """AUROC of three numbers for the copies and the images that have a copy in the set."""
    n, m = found.counts
    own = np.diagonal(found.influence[: n + m])
    pair = np.full(n + m, -1)
    pair[found.copied] = pair[n:] = np.arange(m)
    inside = pair >= 0
    keys = {
        "low self-influence": own,  # the least negative first
        "influence of another image": _others(_cosines(found)).max(1),
        "nearest neighbour": _others(found.alike[: n + m]).max(1),
    }
    return {name: auroc(key[inside], key[~inside], pair[inside]) for name, key in keys.items()}


def original_first(found: Traces) -> dict[str, dict[str, Any]]:
    """Share of the copies, by kind, whose original ranks first among the other images."""
    n, m = found.counts
    rows = np.arange(m)
    keys = {
        INFLUENCE: -found.influence[n : n + m],
        PRODUCT: -found.product[:m],
        COSINE: _cosines(found)[n:],
        NEIGHBOURS: found.alike[n : n + m].copy(),
    }
    shares: dict[str, dict[str, Any]] = {}
    for name, key in keys.items():
        key[rows, n + rows] = -np.inf
        place = (key > key[rows, found.copied][:, None]).sum(1)
        kinds = {kind: place[k :: len(KINDS)] for k, kind in enumerate(KINDS)}
        shares[name] = {kind: share(int((at == 0).sum()), len(at)) for kind, at in kinds.items()}
    return shares


def of_test_images(
    found: Traces, labels: Int64[np.ndarray, " n"], truth: Int64[np.ndarray, " q"]
) -> dict[str, dict[str, Any]]:
    """The properties of each test image's :data:`TOP` training images, by three rankings."""
    n, m = found.counts
    keys = {
        INFLUENCE: found.influence[n + m :, :n],
        PRODUCT: found.product[m:, :n],
        NEIGHBOURS: -found.alike[n + m :, :n],
    }
    tops = {name: np.argsort(key, axis=1, kind="stable")[:, :TOP] for name, key in keys.items()}
    same = {name: (labels[top] == truth[:, None]).mean(1) for name, top in tops.items()}
    same["any training image"] = (labels[:n] == truth[:, None]).mean(1)
    pairs = {
        f"{one} and {other}": overlap(tops[one], tops[other])
        for one, other in ((INFLUENCE, NEIGHBOURS), (PRODUCT, NEIGHBOURS), (INFLUENCE, PRODUCT))
    }
    return {
        "same class": {name: mean(shares) for name, shares in same.items()},
        "shared": {name: mean(shares) for name, shares in pairs.items()},
    }


def _cosines(found: Traces) -> Float[np.ndarray, "n n"]:
    r"""Cosines of the embeddings φ, :math:`-I_{ij}/\sqrt{I_{ii}I_{jj}}`."""
    square = found.influence[: sum(found.counts)]
    own = np.sqrt(-np.diagonal(square))
    return -square / own[:, None] / own


def _others(key: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    key = key.copy()
    np.fill_diagonal(key, -np.inf)
    return key


def reproduce(task: Task) -> str:
    """Trace the queries, compare with the rivals, record, and draw the shown queries."""
    from influence_lab.figures import save, use_style

    begin = time.perf_counter()
    images, test = data_for(task.profile, "train"), data_for(task.profile, "test")
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:EXTENT])
    n, rng = len(chosen), np.random.default_rng(3)
    part = images.subset(chosen)
    copied = np.sort(rng.permutation(n)[: min(COPIES, n // 4)])
    m = len(copied)
    asked = test.subset(np.sort(rng.permutation(len(test))[:TEST]))
    train = np.concatenate([part.images, plant(part.images[copied], rng)])
    everyone = np.concatenate([train, asked.images])
    index = np.arange(len(everyone))

    encoder, device = encoder_of(task), task.device
    z = extract(encoder, _tensor(everyone))
    found = Traces(
        traced(encoder, train, everyone, index, device),
        traced(encoder, train, everyone[n:], index[n:], device, LoGra(damping=OVERWHELMING)),
        similarities(z, z[: n + m]),
        copied,
    )
    labels = np.concatenate([part.labels, part.labels[copied], asked.labels])
    shown = _shown(found, [images.classes[label] for label in labels])
    record: dict[str, Any] = {
        "images": n,
        "copies": m,
        "queries": len(asked),
        "has a copy": rounded(has_a_copy(found)),
        "original first": rounded(original_first(found)),
        **rounded(of_test_images(found, labels[: n + m], asked.labels)),
        "shown": shown,
        "provenance": results.provenance(
            task.command, task.profile, task.seed,
            f"{images.name} train, {n:,} of {len(images):,} images and {m} planted copies; test, "
            f"{len(asked):,} of {len(test):,} images", images.digest, results.device_name(device),
            round(time.perf_counter() - begin, 1),
        ),
    }  # fmt: skip
    folder = (task.root or results.results_root()) / task.profile
    cells = [k for row in shown for k in row["positions"]]
    save_sheet(everyone[cells], 1 + 3 * SHOWN, folder / "traces.jpg")
    results.save_json(folder / "traces.json", record)
    use_style()
    save(figure(task.profile, record, task.root), task.picture)
    return "AUROC for images with a copy: " + ", ".join(
        f"{name} {estimate[0]:.3f}" for name, estimate in record["has a copy"].items()
    )


def _shown(found: Traces, classes: list[str]) -> list[dict[str, Any]]:
    """Six queries of different kinds: helpful, harmful and near images, by position."""
    n, m = found.counts
    by_own = np.argsort(np.diagonal(found.influence[:n]), kind="stable")
    by_help = n + m + np.argsort(found.influence[n + m :, :n].min(1), kind="stable")
    kinds = {
        "copy of a training image": n,
        "crop of a training image": n + 1,
        "training image of highest influence": by_own[0],
        "training image of median influence": by_own[n // 2],
        "test image with the most help": by_help[0],
        "test image with median help": by_help[len(by_help) // 2],
    }
    rows = []
    for kind, query in kinds.items():
        others = np.delete(np.arange(n + m), query) if query < n + m else np.arange(n + m)
        one, near = found.influence[query, others], found.alike[query, others]
        order = np.argsort(one, kind="stable")
        places = [*order[:SHOWN], *order[::-1][:SHOWN], *np.argsort(-near, kind="stable")[:SHOWN]]
        rows.append(
            {
                "kind": kind,
                "class": classes[query],
                "positions": [int(query), *(int(others[k]) for k in places)],
                "classes": [classes[others[k]] for k in places],
                "influence": [float(f"{one[k]:.4g}") for k in places],
            }
        )
    return rows


def figure(
    profile: str, record: dict[str, Any], root: Path | None = None, beside: str = "hurt"
) -> Any:
    """Each shown query, images that help it, and as many that ``"hurt"`` it or are ``"near"``."""
    import matplotlib.pyplot as plt

    from influence_lab.figures import WIDTH

    folder = (results.results_root() if root is None else root) / profile
    columns = 1 + 3 * SHOWN
    pictures = load_sheet(folder / "traces.jpg", columns)
    rows, start = record["shown"], 1 + SHOWN * (1 if beside == "hurt" else 2)
    cells = [0, *range(1, 1 + SHOWN), *range(start, start + SHOWN)]
    found = plt.figure(figsize=(WIDTH, 1.2 * len(rows)))
    parts: Any = found.subfigures(len(rows), 1)
    for k, (part, row) in enumerate(zip(parts, rows, strict=True)):
        part.suptitle(f"{row['kind']}: {row['class']}", fontsize=10, x=0.01, ha="left")
        names = ["query", *(row["classes"][cell - 1] for cell in cells[1:])]
        for axis, cell, name in zip(part.subplots(1, len(cells)), cells, names, strict=True):
            axis.imshow(pictures[k * columns + cell])
            axis.set_axis_off()
            axis.set_title(name[:9], fontsize=8, pad=2)
    return found

"""The score explorer: 2,000 training images with their scores and alternative measures.

Score, loss and gradient norm are those recorded for the fixed set, to which these images belong.
The distance to the nearest neighbours, the deviation of the border and one sheet of thumbnails are
recorded here.
"""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, UInt8, UInt16

from influence_lab.experiments.distributions import LABELS, METHODS
from influence_lab.experiments.scored import Scored, fixed_set, vectors_of
from influence_lab.experiments.task import Task
from influence_lab.measures import borders
from influence_lab.measures.agreement import rounded, spearman
from influence_lab.measures.neighbourhoods import K, features
from influence_lab.records import results
from influence_lab.records.keys import key
from influence_lab.records.recording import data_for
from influence_lab.records.thumbnails import load_sheet, save_sheet
from influence_ssl import GaussianNoise
from influence_ssl.analysis.neighbours import nearest
from influence_ssl.errors import InfluenceValueError
from influence_ssl.files.writing import replacing

EXTENT = 2000
COLUMNS = 50
# That of the JPEG copies: higher ones only repeat their errors in more bytes.
QUALITY = 75
SCORE = "score"
RIVALS = {
    "loss": "loss",
    "gradient norm": "gradient norm",
    "distance": "neighbour distance",
    "border": "border spread",
}
"""What could rank images in place of the score, and its words for a reader."""
# Uniform borders have a spread of 0, which has no logarithm.
LINEAR = ("border",)


class Explored(NamedTuple):
    """The record of the images in ascending order, beside the fixed set's vectors.

    ``border`` (n,): :func:`~influence_lab.measures.borders.measures`' deviation of the border;
    ``distance`` (m, n): for each method the mean cosine distance to the :data:`K` nearest of all
    training images.
    """

    image: UInt16[np.ndarray, " n"]
    label: UInt8[np.ndarray, " n"]
    border: Float32[np.ndarray, " n"]
    distance: Float32[np.ndarray, "m n"]


def chosen(n: int) -> Int64[np.ndarray, " m"]:
    """The indices, ascending, of the images shown, of n; all are in the fixed set."""
    return np.sort(np.random.default_rng(0).permutation(n)[:EXTENT])


def load(profile: str, root: Path | None = None) -> Explored:
    """The recorded numbers of a profile whose record is ``explorer.json``."""
    path = (results.results_root() if root is None else root) / profile / "explorer.npz"
    with np.load(path, allow_pickle=False) as file:
        return Explored(*(file[name] for name in Explored._fields))


def values(
    profile: str, record: dict[str, Any], method: str, root: Path | None = None
) -> dict[str, Float64[np.ndarray, " n"]]:
    """The score's magnitude and each of :data:`RIVALS` for one encoder."""
    vectors, explored = vectors_of(profile, method, record["seed"], root), load(profile, root)
    places = np.searchsorted(fixed_set(record["of"]), chosen(record["of"]))
    found = {
        name: vectors[key(name, GaussianNoise(), 0)][places]
        for name in (SCORE, "loss", "gradient norm")
    }
    found["distance"] = explored.distance[record["methods"].index(method)].astype(np.float64)
    found["border"] = explored.border.astype(np.float64)
    return found


def page_data(profile: str, record: dict[str, Any], root: Path | None = None) -> dict[str, Any]:
    """The data of the explorer in the page; vectors are little-endian float32 in base64."""
    explored = load(profile, root)
    methods = {}
    for method in record["methods"]:
        found = values(profile, record, method, root)
        methods[method] = {
            "label": LABELS[method],
            "values": {name: _packed(found[name]) for name in found if name != "border"},
            "correlations": {k: v[0] for k, v in record["correlations"][method].items()},
        }
    return {
        "columns": COLUMNS,
        "classes": record["classes"],
        "labels": explored.label.tolist(),
        "rivals": RIVALS,
        "linear": LINEAR,
        "border": _packed(explored.border),
        "methods": methods,
    }


def _packed(numbers: Float[np.ndarray, " n"]) -> str:
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode()


def figure(
    profile: str, record: dict[str, Any], method: str = "simclr", rival: str = "loss",
    root: Path | None = None,
) -> Any:  # fmt: skip
    """The images as points, and as many thumbnails at their places as fit without overlap."""
    import matplotlib.pyplot as plt
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    from influence_lab.figures import COLORS, WIDTH

    folder = (results.results_root() if root is None else root) / profile
    pictures = load_sheet(folder / "explorer.jpg", COLUMNS)
    found = values(profile, record, method, root)
    x, y = np.log(found[rival]), np.log(found[SCORE])
    figure, axis = plt.subplots(figsize=(WIDTH, 3.6))
    axis.scatter(x, y, s=3, linewidths=0, color=COLORS["grey"], alpha=0.5, rasterized=True)
    side, area = 0.25, np.array([4.0, 2.65])  # inches: of an image; of the axes, about
    places = (np.stack([x, y], 1) - (x.min(), y.min())) / (np.ptp(x), np.ptp(y)) * area
    for i in _apart(places, np.argsort(y), side):
        image = OffsetImage(pictures[i], zoom=72 * side / 32)
        axis.add_artist(AnnotationBbox(image, (x[i], y[i]), frameon=False, pad=0))
    axis.set(xlabel=f"ln {RIVALS[rival]}", ylabel="ln |I|")
    axis.margins(0.07)
    return figure


def _apart(
    places: Float64[np.ndarray, "n 2"], order: Int64[np.ndarray, " n"], side: float
) -> list[int]:
    """Places that are at least a side apart, taken from both ends first, then at random."""
    rest = np.random.default_rng(0).permutation(order)
    taken: list[int] = []
    for i in (order[-1], order[0], *rest):
        if (abs(places[taken] - places[i]).max(1) >= side).all():
            taken.append(int(i))
    return taken


def reproduce(task: Task) -> str:
    """Record the images, their borders and neighbours, and draw them by loss and score."""
    from influence_lab.figures import save, use_style

    begin = time.perf_counter()
    images = data_for(task.profile, "train")
    index = chosen(len(images))
    part = images.subset(index)
    distances = {}
    for method in METHODS:
        encoder = results.load_encoder(task.profile, method, task.seed, task.root)
        if encoder is None:
            continue
        Scored(task, method, task.seed).with_rivals(GaussianNoise(), 0)
        distances[method] = nearest(features(encoder, images), K, index).distance
    if not distances:
        raise InfluenceValueError(
            f"{task.profile}: no recorded encoder of seed {task.seed}; first run influence-lab "
            f"pretrain {METHODS[0]} --profile {task.profile} --seed {task.seed}"
        )
    explored = Explored(
        index.astype(np.uint16),
        part.labels.astype(np.uint8),
        borders.measures(part.images)["border deviation"].astype(np.float32),
        np.stack(list(distances.values())).astype(np.float32),
    )
    folder = (task.root or results.results_root()) / task.profile
    with replacing(folder / "explorer.npz", parents=True) as temporary, temporary.open("wb") as f:
        np.savez_compressed(f, **explored._asdict())
    save_sheet(part.images, COLUMNS, folder / "explorer.jpg", QUALITY)
    record: dict[str, Any] = {
        "images": len(index),
        "of": len(images),
        "classes": list(images.classes),
        "methods": list(distances),
        "seed": task.seed,
    }
    correlations = {}
    for method in distances:
        found = values(task.profile, record, method, task.root)
        correlations[method] = {name: spearman(found[SCORE], found[name]) for name in RIVALS}
    record["correlations"] = rounded(correlations)
    record["provenance"] = results.provenance(
        task.command, task.profile, task.seed,
        f"{images.name} train, {len(index):,} of {len(images):,} images", images.digest,
        results.device_name(task.device), time.perf_counter() - begin,
    )  # fmt: skip
    results.save_json(folder / "explorer.json", record)
    use_style()
    save(figure(task.profile, record, root=task.root), task.picture)
    return f"{len(index):,} images; rank correlation with the score: " + "; ".join(
        f"{LABELS[method]} "
        + ", ".join(f"{RIVALS[name]} {one.value:.2f}" for name, one in row.items())
        for method, row in correlations.items()
    )

"""Figure 3: t-SNE of the representations, and the claims of its text in numbers.

The claims are tested on the representations rather than in the picture: class purity of the nearest
neighbours, silhouettes and distances, for the lowest, the highest and random images, and for random
images of the same classes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float16, Float32, Int64, UInt8, UInt16
from sklearn.manifold import TSNE

from influence_lab.experiments.claims import FIRST, Reading, above, others, reading
from influence_lab.experiments.distributions import LABELS
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import Estimate, gap, rounded
from influence_lab.measures.neighbourhoods import K, recorded_features, structure
from influence_lab.records import results
from influence_lab.records.recording import data_for, recorded_or_made
from influence_ssl.analysis.neighbours import nearest
from influence_ssl.errors import InfluenceValueError
from influence_ssl.files.writing import replacing

METHODS = ("simclr", "byol", "barlow", "supervised")
# The caption's number and the text's; of a small data set the same shares of it, five times over.
SIZES = (2000, 1000)
PERPLEXITY = 30.0
LINK = "experiments/embedding.html#paper-fig-3"
PANELS = ("random", "lowest", "highest")
# What each claim compares: the first set has to have more of it than the second. In a claim
# "beyond", each set counts by what it has more than random images of its classes.
CLAIMS = {
    "caption": ("distance", "highest", "lowest"),
    "separated": ("purity", "lowest", "highest"),
    "separated-beyond": ("purity", "lowest", "highest"),
    "silhouette": ("silhouette", "lowest", "highest"),
    "silhouette-beyond": ("silhouette", "lowest", "highest"),
    "intermingled": ("purity", "classes of the highest", "highest"),
    "tight": ("distance", "random", "lowest"),
    "dispersed": ("distance", "highest", "random"),
}
WORDS = {
    "caption": "the highest are more dispersed than the lowest (distance to the 10 nearest, gap)",
    "separated": "the lowest form clearer class clusters than the highest (label purity, gap)",
    "separated-beyond": "the same, beyond what their mixtures of classes do (label purity, gap)",
    "silhouette": "the lowest form clearer class clusters than the highest (silhouette, gap)",
    "silhouette-beyond": "the same, beyond what their mixtures of classes do (silhouette, gap)",
    "intermingled": "the highest are mixed more than random images of their classes (purity, gap)",
    "tight": "the lowest are tight, more than random images (distance to the 10 nearest, gap)",
    "dispersed": "the highest are dispersed, more than random images (the same distance, gap)",
}
# The caption speaks of 2,000 images at either end, Section 4.2 of 1,000.
OF_THE_CAPTION = ("caption", "tight", "dispersed")
MEASURES = ("purity", "silhouette", "distance")
# Ten colours (Tol's muted scheme and a grey), of differing lightness.
CLASS_COLORS = (
    "#332288", "#CC6677", "#117733", "#88CCEE", "#882255",
    "#DDCC77", "#44AA99", "#AA4499", "#999933", "#5F6B7A",
)  # fmt: skip


class Map(NamedTuple):
    """A recorded t-SNE: the images' indices, positions, classes and sets.

    ``member``: bit b is set for images of the b-th of :data:`PANELS`.
    """

    image: UInt16[np.ndarray, " m"]
    place: Float16[np.ndarray, "m 2"]
    label: UInt8[np.ndarray, " m"]
    member: UInt8[np.ndarray, " m"]

    def of(self, name: str) -> np.ndarray:
        """A mask (m,) of one of :data:`PANELS`."""
        return (self.member >> PANELS.index(name)) & 1 == 1


def sizes(n: int) -> tuple[int, int]:
    """The two subset sizes: 2,000 and 1,000 images, or a fifth and a tenth of a small set."""
    return min(SIZES[0], n // 5), min(SIZES[1], n // 10)


def subsets(
    order: Int64[np.ndarray, " n"], labels: Int64[np.ndarray, " n"], size: int, seed: int = 0
) -> dict[str, Int64[np.ndarray, " m"]]:
    """The lowest and highest of an ascending ``order``, random images, and two matched controls.

    A control contains as many images of each class as the lowest (or highest) set, drawn at random.
    Effects of the class composition alone therefore also appear in the control.
    """
    rng = np.random.default_rng(seed)
    found = {"lowest": order[:size], "highest": order[::-1][:size].copy()}
    shuffled = rng.permutation(len(order))
    found["random"] = shuffled[:size]
    for name in ("lowest", "highest"):
        count = np.bincount(labels[found[name]])
        found[f"classes of the {name}"] = np.concatenate(
            [shuffled[labels[shuffled] == c][:m] for c, m in enumerate(count)]
        )
    return found


def measure(
    z: Float32[np.ndarray, "n d"], labels: Int64[np.ndarray, " n"], order: Int64[np.ndarray, " n"]
) -> dict[str, dict[str, dict[str, Any]]]:
    """For both sizes and each of the :func:`subsets`: :func:`structure`, and purity in all data.

    ``chance`` is the purity of labels that are unrelated to the representation.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for size in sizes(len(z)):
        found[str(size)] = {}
        for name, index in subsets(order, labels, size).items():
            share = np.bincount(labels[index]) / len(index)
            everywhere = nearest(z, K, index).purity(labels, labels[index])
            found[str(size)][name] = {
                **structure(z[index], labels[index]),
                "purity in all": float(everywhere.mean()),
                "chance": float((share**2).sum()),
                "largest class": float(share.max()),
            }
    return found


def tsne(z: Float32[np.ndarray, "n d"], seed: int = 0) -> Float32[np.ndarray, "n 2"]:
    """scikit-learn's t-SNE (van der Maaten and Hinton 2008) of unit rows, initialised with PCA.

    Between unit rows the squared distance is twice the cosine distance.
    """
    perplexity = min(PERPLEXITY, (len(z) - 1) / 4)
    return TSNE(
        perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed, n_jobs=1
    ).fit_transform(z)


def make_map(
    z: Float32[np.ndarray, "n d"], labels: Int64[np.ndarray, " n"], order: Int64[np.ndarray, " n"]
) -> Map:
    """One t-SNE of the random, lowest and highest images together, on one scale."""
    chosen = subsets(order, labels, sizes(len(z))[0])
    index = np.unique(np.concatenate([chosen[name] for name in PANELS]))
    member = sum(
        (np.isin(index, chosen[name]).astype(np.uint8) << bit for bit, name in enumerate(PANELS)),
        np.zeros(len(index), np.uint8),
    )
    place = tsne(z[index])
    scaled = (place / np.abs(place).max()).astype(np.float16)
    return Map(index.astype(np.uint16), scaled, labels[index].astype(np.uint8), member)


def load_map(profile: str, method: str, seed: int = 0, root: Path | None = None) -> Map | None:
    """The recorded t-SNE of a run, ``None`` if there is none."""
    path = results.folder_of(profile, method, seed, root) / "map.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        return Map(*(file[name] for name in Map._fields))


def save_map(found: Map, path: Path) -> None:
    """Write a map as one ``.npz``, about 6 bytes per point."""
    with replacing(path, parents=True) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **found._asdict())


def figure_3(maps: dict[str, Map | None], classes: list[str]) -> Any:
    """One row per method: random images, the lowest and the highest, with all others in grey."""
    import matplotlib.pyplot as plt

    from influence_lab.figures import WIDTH

    figure, axes = plt.subplots(
        len(maps), 3, figsize=(WIDTH, 0.9 + 1.85 * len(maps)), squeeze=False
    )
    for axis, text in zip(axes[0], PANELS, strict=True):
        axis.set_title(text)
    for row, (method, found) in zip(axes, maps.items(), strict=True):
        for axis, name in zip(row, PANELS, strict=True):
            axis.set(xticks=[], yticks=[], box_aspect=1)
            for side in ("top", "right"):
                axis.spines[side].set_visible(True)
            if found is None:
                axis.text(0.5, 0.5, "not\nrecorded\nyet", ha="center", va="center",
                          transform=axis.transAxes)  # fmt: skip
                continue
            dots = {"linewidths": 0, "rasterized": True}
            axis.scatter(*found.place.T.astype(float), s=1.5, c="#DDDDDD", **dots)
            own = found.of(name)
            colors = np.array(CLASS_COLORS)[found.label[own]]
            axis.scatter(*found.place[own].T.astype(float), s=3, c=colors, **dots)
        row[0].set_ylabel(LABELS[method])
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", color=color, label=name)
        for color, name in zip(CLASS_COLORS, classes, strict=False)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, handletextpad=0, columnspacing=0.8
    )
    return figure


def reproduce(task: Task) -> str:
    """Measure and map the representations of every recorded encoder, and draw Figure 3."""
    from influence_lab.figures import save, use_style

    begin = time.perf_counter()
    images = data_for(task.profile, "train")
    methods: dict[str, Any] = {}
    maps: dict[str, Map | None] = {}
    for method in METHODS:
        z = recorded_features(task.profile, method, task.seed, images, task.root)
        if z is None:
            continue
        scores = recorded_or_made(
            method, task.profile, task.seed, "train", task.device, task.runs, task.root
        )
        order = scores.order("lowest")
        methods[method] = _rounded(measure(z, images.labels, order))
        made = maps[method] = make_map(z, images.labels, order)
        folder = results.folder_of(task.profile, method, task.seed, task.root)
        save_map(made, folder / "map.npz")
    if not methods:
        raise InfluenceValueError(
            f"{task.profile}: no recorded encoder of seed {task.seed}; first run influence-lab "
            f"pretrain simclr --profile {task.profile} --seed {task.seed}"
        )
    record: dict[str, Any] = {
        "methods": methods,
        "classes": list(images.classes),
        "provenance": results.provenance(
            task.command, task.profile, task.seed,
            f"{images.name} train ({len(images):,} images)", images.digest,
            results.device_name(task.device), time.perf_counter() - begin,
        ),
    }  # fmt: skip
    path = (task.root or results.results_root()) / task.profile / "embedding.json"
    results.save_json(path, record)
    use_style()
    save(figure_3(maps, record["classes"]), task.picture)
    size = str(sizes(len(images))[0])
    parts = []
    for method, found in methods.items():
        pure = {name: f"{found[size][name]['purity'][0]:.3f}" for name in PANELS}
        parts.append(f"{LABELS[method]} " + ", ".join(f"{n} {p}" for n, p in pure.items()))
    return f"kNN label purity of {size} images: " + "; ".join(parts)


def _rounded(found: Any) -> Any:
    """:func:`rounded`, but plain numbers stay as they are."""
    if isinstance(found, dict):
        return {key: _rounded(value) for key, value in found.items()}
    return round(found, 4) if isinstance(found, float) else rounded(found)


def gap_of(sets: dict[str, dict[str, Any]], name: str) -> Estimate:
    """The difference that one of :data:`CLAIMS` states to be above 0, for independent sets."""
    what, more, less = CLAIMS[name]

    def of(part: str) -> Estimate:
        own = Estimate(*sets[part][what])
        if not name.endswith("-beyond"):
            return own
        return gap(own, Estimate(*sets[f"classes of the {part}"][what]))

    return gap(of(more), of(less))


def size_of(found: dict[str, Any], name: str) -> str:
    """The key of the size that the sentence of one of :data:`CLAIMS` names."""
    caption, text = sorted(found, key=int, reverse=True)
    return caption if name in OF_THE_CAPTION else text


def claims(root: Path | None = None) -> list[Reading]:
    """Section 4.2 and Figure 3's caption: separated, tight lowest; mixed, dispersed highest.

    The other pre-training's ranking is measured in the first encoder's representations.
    """
    found = results.largest_record("embedding", root)
    profile, record = found if found is not None else ("", {"methods": {}})
    rows = []
    for method in METHODS[:3]:
        first = record["methods"].get(method)
        for name, words in WORDS.items():
            sets, which = [], ""
            if first:
                size = size_of(first, name)
                sets = [first[size], *others(profile, method, "structure", size, root=root)]
                which = f", {int(size):,} images each"
            rows.append(
                reading(
                    f"fig-3-{method}-{name}", f"{LABELS[method]}, CIFAR-10{which}: {words}", "> 0",
                    [gap_of(one, name) for one in sets] or None, above(0.0), LINK,
                    record.get("provenance", {}).get("data", ""),
                    f"{LABELS[method]} encoder{FIRST}", profile, stand_in=profile == "tiny",
                )
            )  # fmt: skip
    return rows

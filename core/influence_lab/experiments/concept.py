"""A test of Figure 1: does the score find hard negatives, atypical images and near duplicates?

Two kinds of ground truth are used. On scenes it is planted: outliers, duplicates, and *lookalikes*,
scenes drawn twice with another shape. On real images it is derived without the score: images whose
nearest neighbour is of another class, images far from all others, and pixel twins. An AUROC above
one half means that the images rank as in the paper's figure: hard negatives and atypical images
high, duplicates low.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8

from influence_lab.datasets import Images, make_lookalikes, make_scenes
from influence_lab.experiments.claims import FIRST, Reading, above, both, reading
from influence_lab.experiments.distributions import LABELS
from influence_lab.experiments.scored import Scored, fixed_set, score_with_rivals
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import Estimate, average, rounded
from influence_lab.measures.detection import auroc
from influence_lab.measures.neighbourhoods import K, features, recorded_features
from influence_lab.measures.pixel_duplicates import pixel_twins
from influence_lab.pretrain.resnets import normalise
from influence_lab.records import results
from influence_lab.records.recording import TINY_SCENES, data_for
from influence_ssl import GaussianNoise, InfluenceScorer, Invariance
from influence_ssl.analysis.neighbours import Neighbours, nearest

METHODS = ("simclr", "byol", "barlow", "supervised")
# Whose neighbourhoods say what is atypical, where the encoder's own are a rival.
OTHER = {"simclr": "supervised", "byol": "simclr", "barlow": "simclr", "supervised": "simclr"}
TARGETS = {
    "lookalike": "hard negative: same scene, other shape",
    "hard negative": "hard negative: nearest neighbour of another class",
    "outlier": "atypical: coloured blocks",
    "atypical": "atypical: the 5 % furthest from their 10 nearest",
    "atypical elsewhere": "atypical: the same for another encoder",
    "near duplicate": "near duplicate",
    "exact duplicate": "exact duplicate",
}
LOW = ("near duplicate", "exact duplicate")
MEASURES = {
    "score": "influence",
    "loss": "loss",
    "gradient norm": "gradient norm",
    "distance": "kNN distance",
    "variance": "pixel variance",
    "edges": "edge energy",
    "random": "random",
}
# What decides whether an image is a target cannot be a rival in finding it.
DEFINES = {"atypical": "distance"}
# The paper has no number. This is the weakest reading of "high" and "low": than other images.
CLAIMED = {
    "hard negative": "hard negatives (nearest neighbour of another class) score higher than others",
    "atypical": "atypical images (the 5 % furthest from their neighbours) score higher than others",
    "near duplicate": "near duplicates (pixel correlation of 0.95 or more) score lower than others",
}
LOOKALIKES = 0.05
FURTHEST = 0.05
SCENE_SEEDS = (0, 1, 2)
LINK = "experiments/concept.html#paper-fig-1"

Keys = dict[str, Float[np.ndarray, " n"]]
Truth = dict[str, tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]]
Groups = Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class Planted:
    """Scenes and lookalikes; ``truth`` lists the images of each planted kind, and the plain ones.

    ``group``: both members of a pair have the same number.
    """

    images: Images
    truth: Truth
    plain: Bool[np.ndarray, " n"]
    group: Groups


def plant(n: int = TINY_SCENES, seed: int = 0) -> Planted:
    """``n`` scenes, followed by 5 % of them redrawn with another shape.

    Both members of a pair count, a duplicate or lookalike as well as its original. A *plain* scene
    is an ordinary one that is in no pair; each kind is compared with the plain scenes.
    """
    scenes = make_scenes(n, seed)
    copied = scenes.source[scenes.source >= 0]
    alone = scenes.is_kind("ordinary") & ~np.isin(np.arange(n), copied)
    chosen = np.sort(
        np.random.default_rng(seed).permutation(np.flatnonzero(alone))[: round(n * LOOKALIKES)]
    )
    twins = make_lookalikes(n, seed, chosen)
    images = Images(
        "scenes",
        np.concatenate([scenes.images.images, twins.images]),
        np.concatenate([scenes.images.labels, twins.labels]),
        scenes.images.names + twins.names,
        scenes.images.classes,
    )
    masks = {"lookalike": np.isin(np.arange(n), chosen), "outlier": scenes.is_kind("outlier")}
    for kind in LOW:
        masks[kind] = scenes.is_kind(kind)
        masks[kind][scenes.source[masks[kind]]] = True
    plain = alone & ~masks["lookalike"]
    extra = np.zeros(len(chosen), bool)
    whole = {kind: np.r_[mask, extra | (kind == "lookalike")] for kind, mask in masks.items()}
    plain = np.r_[plain, extra]
    group = np.r_[np.where(scenes.source >= 0, scenes.source, np.arange(n)), chosen]
    return Planted(images, {kind: (mask, plain) for kind, mask in whole.items()}, plain, group)


def pixel_keys(pixels: UInt8[np.ndarray, "n h w 3"], seed: int = 0) -> Keys:
    """Pixel variance, edge energy (mean squared step to the next pixel, grey), and chance."""
    found: dict[str, list[np.ndarray]] = {"variance": [], "edges": []}
    for part in np.array_split(pixels, max(1, len(pixels) // 5000)):
        real = part.astype(np.float32) / 255
        grey = real.mean(3)
        found["variance"].append(real.var((1, 2, 3)))
        found["edges"].append(
            (np.diff(grey, axis=1) ** 2).mean((1, 2)) + (np.diff(grey, axis=2) ** 2).mean((1, 2))
        )
    keys = {name: np.concatenate(parts).astype(np.float64) for name, parts in found.items()}
    return keys | {"random": np.random.default_rng(seed).random(len(pixels))}


def hard(near: Neighbours, labels: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Images whose nearest neighbour under the encoder is of another class."""
    return labels[near.place[:, 0]] != labels


def furthest(near: Neighbours) -> Bool[np.ndarray, " n"]:
    """The 5 % with the largest mean distance to their neighbours."""
    return near.distance >= np.quantile(near.distance, 1 - FURTHEST)


def keys_of_scenes(encoder: Any, planted: Planted, noise: int = 0) -> tuple[Keys, Truth]:
    """All measures of all scenes for one encoder, and the truth with that from the neighbours."""
    images = planted.images
    scorer = InfluenceScorer(encoder, Invariance(GaussianNoise()), seed=noise, progress=False)
    keys: Keys = dict(score_with_rivals(scorer, normalise(images.tensor()), np.arange(len(images))))
    near = nearest(features(encoder, images), K)
    keys |= {"distance": near.distance, **pixel_keys(images.images, noise)}
    crossed = hard(near, images.labels)
    truth = planted.truth | {
        "hard negative": (planted.plain & crossed, planted.plain & ~crossed),
    }
    return keys, truth


def measure(keys: Keys, truth: Truth, group: Groups) -> dict[str, dict[str, Estimate]]:
    """AUROC of each measure for each target; above ½ means agreement with the paper's figure."""
    found: dict[str, dict[str, Estimate]] = {}
    for target in (t for t in TARGETS if t in truth):
        inside, outside = truth[target]
        sign = -1.0 if target in LOW else 1.0
        found[target] = {
            name: auroc(sign * keys[name][inside], sign * keys[name][outside], group[inside])
            for name in MEASURES
            if name in keys and DEFINES.get(target) != name
        }
    return found


def over_scenes(encoder: Any, seeds: tuple[int, ...] = SCENE_SEEDS) -> dict[str, Any]:
    """:func:`measure` of one encoder, averaged over independent sets of scenes."""
    each, counts = [], []
    for seed in seeds:
        planted = plant(seed=seed)
        keys, truth = keys_of_scenes(encoder, planted, noise=seed)
        each.append(measure(keys, truth, planted.group))
        counts.append({target: int(inside.sum()) for target, (inside, _) in truth.items()})
    return {
        target: {
            "images": sum(count[target] for count in counts),
            "auroc": {name: average([one[target][name] for one in each]) for name in row},
        }
        for target, row in each[0].items()
    }


def truth_of(
    near: Neighbours,
    other: Neighbours | None,
    labels: Int64[np.ndarray, " n"],
    twin: Bool[np.ndarray, " n"],
) -> Truth:
    """The targets among real images, each compared with all other images."""
    masks = {"hard negative": hard(near, labels), "atypical": furthest(near)}
    if other is not None:
        masks["atypical elsewhere"] = furthest(other)
    masks["near duplicate"] = twin
    return {target: (mask, ~mask) for target, mask in masks.items()}


def of_real(
    keys: Keys, truth: Truth, group: Groups, fixed: Int64[np.ndarray, " m"], rivals: Keys
) -> dict[str, Any]:
    """AUROCs on all images, and with the ``rivals`` on their fixed set."""
    everything = measure(keys, truth, group)
    part = {name: values[fixed] for name, values in keys.items()} | rivals
    some = measure(part, {t: (a[fixed], b[fixed]) for t, (a, b) in truth.items()}, group[fixed])
    return {
        target: {
            "images": int(truth[target][0].sum()),
            "all": everything[target],
            "auroc": some[target],
        }
        for target in everything
    }


def reproduce(task: Task) -> str:
    """Measure on scenes (profile tiny) or on real images, record, and draw Figure 1."""
    from influence_lab.figures import save, use_style

    begin = time.perf_counter()
    images = data_for(task.profile, "train")
    cases = _scenes(task) if task.profile == "tiny" else _real(task, images)
    if not cases:
        Scored(task, METHODS[0], task.seed)
    record = {
        "cases": {
            name: {
                target: {k: v if k == "images" else rounded(v) for k, v in row.items()}
                for target, row in case.items()
            }
            for name, case in cases.items()
        },
        "provenance": results.provenance(
            task.command, task.profile, task.seed,
            f"{images.name} train ({len(images):,} images)", images.digest,
            results.device_name(task.device), time.perf_counter() - begin,
        ),
    }  # fmt: skip
    path = (task.root or results.results_root()) / task.profile / "concept.json"
    results.save_json(path, record)
    use_style()
    save(chart(next(iter(record["cases"].values()))), task.picture)
    parts = []
    for name, case in cases.items():
        text = [f"{t} {row['auroc']['score'].value:.2f}" for t, row in case.items()]
        parts.append(f"{name}: {', '.join(text)}")
    return "AUROC of the score: " + "; ".join(parts)


def _scenes(task: Task) -> dict[str, Any]:
    """The tiny encoders of two seeds, and one trained on real images."""
    runs = [("tiny", "simclr", task.seed), ("tiny", "simclr", task.seed + 1), ("cpu", "simclr", 0)]
    found = {}
    for run in runs:
        encoder = results.load_encoder(*run, task.root)
        if encoder is not None:
            found[case_name(*run)] = over_scenes(encoder)
    return found


def case_name(profile: str, method: str, seed: int) -> str:
    """The name of an encoder in the record."""
    return f"{LABELS[method]}, profile {profile}, seed {seed}"


def _real(task: Task, images: Images) -> dict[str, Any]:
    neighbours: Callable[[str], Neighbours | None] = partial(_neighbours, task, images)
    known = {method: neighbours(method) for method in METHODS}
    if not any(known.values()):
        return {}
    pixels, fixed = pixel_keys(images.images), fixed_set(len(images))
    twin, group = pixel_twins(images.images)
    found = {}
    for method, near in known.items():
        scores = results.load_scores(task.profile, method, task.seed, "train", task.root)
        if near is None or scores is None:
            continue
        truth = truth_of(near, known[OTHER[method]], images.labels, twin)
        keys = {"score": scores.magnitude, "distance": near.distance, **pixels}
        rivals = Scored(task, method, task.seed).with_rivals(GaussianNoise(), 0)
        rivals = {name: rivals[name] for name in ("loss", "gradient norm")}
        found[case_name(task.profile, method, task.seed)] = of_real(
            keys, truth, group, fixed, rivals
        )
    return found


def _neighbours(task: Task, images: Images, method: str) -> Neighbours | None:
    z: Float32[np.ndarray, "n d"] | None = recorded_features(
        task.profile, method, task.seed, images, task.root
    )
    return None if z is None else nearest(z, K)


def chart(case: dict[str, Any]) -> Any:
    """AUROC of every measure, one panel per target; the dotted line is chance."""
    import matplotlib.pyplot as plt

    from influence_lab.figures import COLORS, WIDTH

    columns = 2
    rows = -(-len(case) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, 0.5 + 2.1 * rows), sharex=True, sharey=True, squeeze=False
    )
    names = list(MEASURES)
    for axis in axes.flat[len(case) :]:
        axis.set_axis_off()
    for axis, (target, row) in zip(axes.flat, case.items(), strict=False):
        axis.axvline(0.5, color=COLORS["black"], linewidth=0.8, linestyle=":")
        for place, name in enumerate(names):
            if name not in row["auroc"]:
                axis.text(0.5, place, " by definition", va="center", fontsize=9)
                continue
            value, low, high = row["auroc"][name]
            color = COLORS["highest"] if name == "score" else COLORS["grey"]
            axis.plot([low, high], [place, place], color=color)
            axis.plot(value, place, "o" if name == "score" else "s", color=color)
        axis.set_title(target.replace(" elsewhere", ", other\nencoder"))
        axis.set(xlim=(-0.03, 1.03), ylim=(len(names) - 0.5, -0.5))
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.set_yticks(range(len(names)), list(MEASURES.values()))
    for axis in axes[-1]:
        axis.set_xlabel("AUROC")
    return figure


def picture(planted: Planted, key: Float[np.ndarray, " n"], each: int = 5) -> Any:
    """The paper's concept figure with real scenes: one row per kind, with percentiles.

    Each row shows members at even steps of its own ranking, from lowest to highest.
    """
    import matplotlib.pyplot as plt

    from influence_lab.figures import WIDTH

    rank = np.argsort(np.argsort(key, kind="stable"), kind="stable")
    percentile = 100 * (rank + 0.5) / len(key)
    kinds = {target: inside for target, (inside, _) in planted.truth.items()}
    kinds = {target: kinds[target] for target in TARGETS if target in kinds}
    kinds["plain"] = planted.plain
    figure, axes = plt.subplots(len(kinds), each, figsize=(WIDTH, 1.12 * len(kinds)))
    for row, (kind, mask) in zip(axes, kinds.items(), strict=True):
        members = np.flatnonzero(mask)
        members = members[np.argsort(key[members], kind="stable")]
        steps = np.linspace(0, len(members) - 1, each).round().astype(int)
        for axis, i in zip(row, members[steps], strict=True):
            axis.imshow(planted.images.images[i])
            axis.set_title(f"{percentile[i]:.0f} %", pad=2, fontsize=11)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(kind.replace(" ", "\n"), rotation=0, ha="right", va="center")
    return figure


def claims(root: Path | None = None) -> list[Reading]:
    """Figure 1's three scenarios for the paper's three methods; scenes only stand in.

    The first encoder's neighbours define two of them for the other pre-training's ranking, too.
    """
    largest = results.largest_record("concept", root)
    profile, record = largest if largest is not None else ("", {"cases": {}})
    rows = []
    for method in METHODS[:3]:
        case = record["cases"].get(case_name(profile, method, 0) if profile else "", {})
        for target, words in CLAIMED.items():
            # The planted outliers are the scenes' atypical images.
            row = case.get(target, case.get("outlier") if target == "atypical" else None)
            found = None if row is None else Estimate(*row.get("all", row["auroc"])["score"])
            rows.append(
                reading(
                    f"fig-1-{method}-{target.replace(' ', '-')}", f"{LABELS[method]}: {words}",
                    "AUROC > 0.5",
                    both(found, profile, method, "concept", target, root=root), above(0.5), LINK,
                    record.get("provenance", {}).get("data", ""),
                    f"{LABELS[method]} encoder" + ("" if target in LOW else FIRST), profile,
                    stand_in=profile == "tiny",
                )
            )  # fmt: skip
    return rows

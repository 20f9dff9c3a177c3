"""The same measurements on both pre-trainings, and comparisons that no other record contains.

The second encoder's weights are not recorded, but its scores of all training images are. Every
measurement on a ranking can therefore be made for both seeds; neighbourhoods are those of the first
encoder. Two measurements need scores that no figure uses: noise added before normalisation, and
influence with labels.
"""

from __future__ import annotations

import time
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from influence_lab.datasets import Images
from influence_lab.experiments import embedding
from influence_lab.experiments.claims import (
    FIRST,
    Reading,
    Region,
    above,
    agrees,
    below,
    reading,
    weakest,
)
from influence_lab.experiments.concept import LOW, truth_of
from influence_lab.experiments.distributions import LABELS, METHODS, PAPER, TELLING, moments
from influence_lab.experiments.galleries import EXTENT, TOP, ends, sample
from influence_lab.experiments.near_duplicates import COUNTS, RULES, SHOWN, of_class
from influence_lab.experiments.scored import Scored, available, fixed_set
from influence_lab.experiments.task import Task
from influence_lab.measures import borders
from influence_lab.measures.agreement import (
    Estimate,
    around,
    gap,
    rank_correlation,
    rounded,
    spearman,
)
from influence_lab.measures.detection import (
    auroc,
    cliffs_delta,
    precision_at,
    share,
    share_difference,
)
from influence_lab.measures.neighbourhoods import K, recorded_features
from influence_lab.measures.pixel_duplicates import Found, find, pixel_twins
from influence_lab.pretrain.views import PixelNoise
from influence_lab.records import results
from influence_lab.records.recording import data_for
from influence_ssl import GaussianNoise
from influence_ssl.analysis.neighbours import Neighbours, nearest

SEEDS = (0, 1)
SELF = ("simclr", "byol", "barlow")
NOISE_METHODS = ("simclr",)
PIXEL_TOP = 200
NOISE = GaussianNoise()
PIXELS = PixelNoise()
STABILITY = "experiments/stability.html#paper-fig-2"
GALLERIES = "experiments/galleries.html#paper-fig-5"
DISTRIBUTIONS = "experiments/score-distributions.html#paper-fig-9"
DUPLICATES = "experiments/near-duplicates.html#paper-fig-12"

Column = Float64[np.ndarray, " n"]


def scores_of(task: Task, images: Images) -> dict[str, list[Column]]:
    """Recorded magnitudes of all images, a vector per recorded seed of each method."""
    found: dict[str, list[Column]] = {}
    for method in METHODS:
        for seed in SEEDS:
            scores = results.load_scores(task.profile, method, seed, "train", task.root)
            if scores is not None and scores.provenance["data_sha256"] == images.digest:
                found.setdefault(method, []).append(scores.magnitude)
    return found


def duplicates(score: Column, found: Found) -> dict[str, Any]:
    """Near duplicates among the lowest of a class; ``cars``: the groups among the lowest 18."""
    truth = found.truth(RULES[1])
    low = np.argsort(score, kind="stable")[:SHOWN]
    return {
        "auroc": auroc(-score[truth], -score[~truth], found.group[truth]),
        **{str(k): precision_at(-score, truth, k) for k in COUNTS},
        "cars": len(np.unique(found.group[low])),
    }


def looks(score: Column, found: dict[str, Column]) -> dict[str, Any]:
    """Borders and colour of the ends of a ranking, against a random sample."""
    k = min(EXTENT, len(score) // 8)
    drawn, extremes = sample(len(score), k), ends(score, k)
    high, low = extremes["highest"], extremes["lowest"]
    uniform, extreme = borders.uniform(found), borders.white_or_black(found)

    def more(mark: Bool[np.ndarray, " n"], rows: Int64[np.ndarray, " k"]) -> Estimate:
        return share_difference((int(mark[rows].sum()), k), (int(mark[drawn].sum()), k))

    return {
        "uniform among the 12 highest": share(int(uniform[high[:TOP]].sum()), TOP),
        "uniform, highest": share(int(uniform[high].sum()), k),
        "uniform, highest minus random": more(uniform, high),
        "uniform, lowest minus random": more(uniform, low),
        "white or black, highest minus random": more(extreme, high),
        "colour, lowest": cliffs_delta(found["image colour"][low], found["image colour"][drawn]),
        "border deviation, lowest": cliffs_delta(
            found["border deviation"][low], found["border deviation"][drawn]
        ),
    }


def average_of(values: Column) -> Estimate:
    """The mean with the 95 % interval of its standard error; sets are too large for a bootstrap."""
    return around(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def bridges(
    score: Column,
    near: Neighbours,
    labels: Int64[np.ndarray, " n"],
    uniform: Bool[np.ndarray, " n"],
) -> dict[str, Any]:
    """The 10 nearest neighbours of images: how many have uniform borders or another class.

    ``plain``: images with a uniform border whose score is in the middle third.
    """
    k = min(EXTENT, len(score) // 8)
    extremes = ends(score, k)
    low, high = np.quantile(score, [1 / 3, 2 / 3])
    sets = {
        **extremes,
        "random": sample(len(score), k),
        "plain": np.flatnonzero(uniform & (score > low) & (score < high)),
    }
    beside = uniform[near.place].mean(1)
    other = 1 - near.purity(labels)
    parts = {
        what: {name: average_of(values[rows]) for name, rows in sets.items()}
        for what, values in {"uniform": beside, "another class": other}.items()
    }
    return parts | {
        "drawn together": gap(average_of(beside[uniform]), average_of(beside[~uniform]))
    }


def structures(
    z: Float32[np.ndarray, "n d"], labels: Int64[np.ndarray, " n"], score: Column
) -> dict[str, Any]:
    """Figure 3's numbers of a ranking: size → set → purity, silhouette and distance."""
    found = embedding.measure(z, labels, np.argsort(score, kind="stable"))
    return {
        size: {name: {what: row[what] for what in embedding.MEASURES} for name, row in sets.items()}
        for size, sets in found.items()
    }


def _auroc(
    key: Column, inside: Bool[np.ndarray, " n"], outside: Bool[np.ndarray, " n"],
    group: Int64[np.ndarray, " n"],
) -> Estimate:  # fmt: skip
    return auroc(key[inside], key[outside], group[inside])


def across(scores: dict[str, list[Column]], seed: int) -> dict[str, Estimate]:
    """Rank correlation between every two label-free methods, on all images."""
    return {
        f"{a} {b}": rank_correlation(scores[a][seed], scores[b][seed])
        for a, b in combinations([m for m in SELF if len(scores.get(m, ())) > seed], 2)
    }


def before_normalisation(
    one: Scored, uniform: Bool[np.ndarray, " n"], k: int = PIXEL_TOP
) -> dict[str, Any]:
    """The effect of adding the noise to pixels in [0, 1] instead of to the encoder's input."""
    kinds = {"after": one.score(NOISE, 0), "before": one.score(PIXELS, 0)}
    k = min(k, len(uniform) // 8)
    return {
        "rank correlation": spearman(kinds["after"], kinds["before"]),
        "top": k,
        **{
            f"{name} normalisation": {
                "uniform": share(int(uniform[ends(score, k)["highest"]].sum()), k),
                "deviation": moments(score)["std"],
            }
            for name, score in kinds.items()
        },
    }


def with_labels(
    one: Scored, near: Neighbours, labels: Int64[np.ndarray, " n"], k: int = PIXEL_TOP
) -> Estimate | None:
    """The surplus of neighbours of another class among the highest with labels over random images.

    The neighbours are those of an encoder trained without labels.
    """
    score = one.with_labels()
    if score is None:
        return None
    rows = one.index
    other = 1 - near.purity(labels)[rows]
    k = min(k, len(rows) // 8)
    return gap(
        average_of(other[ends(score, k)["highest"]]), average_of(other[sample(len(rows), k)])
    )


def _rounded(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _rounded(value) for key, value in found.items()}
    if isinstance(found, list):
        return [_rounded(value) for value in found]
    return rounded(found) if isinstance(found, Estimate) else found


def reproduce(task: Task) -> str:
    """Make all measurements on both seeds, and record them."""
    begin = time.perf_counter()
    images = data_for(task.profile, "train")
    scores = scores_of(task, images)
    scored = available(task, [(method, 0) for method in METHODS])
    encoders = {m: one for (m, _), one in scored.items()}
    pixels = borders.measures(images.images)
    uniform = borders.uniform(pixels)
    rows = fixed_set(len(images))
    # Scores come first and are kept, so that an interrupted run can resume.
    noise = {
        m: before_normalisation(encoders[m], uniform[rows]) for m in NOISE_METHODS if m in encoders
    }
    if "supervised" in encoders:
        encoders["supervised"].with_labels()
    chosen = of_class(images)
    found = find(images.subset(chosen.index).images)
    twin, group = pixel_twins(images.images)
    record: dict[str, Any] = {
        "class": round(float(found.truth(RULES[1]).mean()), 4), "methods": {}, "by loss": {},
    }  # fmt: skip
    known: dict[str, Neighbours] = {}
    for method, each in scores.items():
        record["methods"][method] = [
            {"duplicates": duplicates(score[chosen.index], found), "looks": looks(score, pixels)}
            for score in each
        ]
        z = None
        if method in SELF:
            z = recorded_features(task.profile, method, 0, images, task.root)
        if z is None:
            continue
        near = known[method] = nearest(z, K)
        truth = truth_of(near, None, images.labels, twin)
        for row, score in zip(record["methods"][method], each, strict=True):
            row["concept"] = {
                target: _auroc(-score if target in LOW else score, *masks, group)
                for target, masks in truth.items()
            }
            row["bridges"] = bridges(score, near, images.labels, uniform)
            row["structure"] = structures(z, images.labels, score)
        # The loss is recorded for a fixed set, so that both rankings are measured on it.
        record["by loss"][method] = {
            kind: structures(z[rows], images.labels[rows], keys)
            for kind, keys in encoders[method].with_rivals(NOISE, 0).items()
            if kind != "gradient norm"
        }
    record["between seeds"] = {
        m: rank_correlation(each[0], each[1]) for m, each in scores.items() if len(each) > 1
    }
    record["across methods"] = [across(scores, seed) for seed in SEEDS]
    record["noise"] = noise
    if "supervised" in encoders and "simclr" in known:
        record["label noise"] = with_labels(encoders["supervised"], known["simclr"], images.labels)
    record = _rounded(record) | {
        "provenance": results.provenance(
            task.command, task.profile, task.seed,
            f"{images.name} train ({len(images):,} images)", images.digest,
            results.device_name(task.device), time.perf_counter() - begin,
        )
    }  # fmt: skip
    path = (task.root or results.results_root()) / task.profile / "both-seeds.json"
    results.save_json(path, record)
    return "rank correlation of two pre-trainings, all images: " + ", ".join(
        f"{LABELS[m]} {value[0]:.3f}" for m, value in record["between seeds"].items()
    )


def claims(root: Path | None = None) -> list[Reading]:
    """Consistency across methods, bridges, backgrounds, the order of duplicates, and the noise."""
    found = results.largest_record("both-seeds", root)
    profile, record = found if found is not None else ("", {})
    data = record.get("provenance", {}).get("data", "")
    methods = record.get("methods", {})

    def row(
        name: str, words: str, paper: str, values: list[Estimate], claimed: Region, link: str,
        stand_in: bool = False, near: str = "", **rules: Any,
    ) -> Reading:  # fmt: skip
        return reading(
            name, words, paper, values or None, claimed, link, data,
            f"one encoder per method{near}", profile, stand_in=stand_in or profile == "tiny",
            **rules,
        )  # fmt: skip

    def each(method: str, *place: str) -> list[Estimate]:
        """One estimate per seed."""
        values = []
        for one in methods.get(method, []):
            for key in place:
                one = one[key]
            values.append(Estimate(*one))
        return values

    def beside(method: str, what: str, one: str, other: str) -> list[Estimate]:
        pairs = zip(
            each(method, "bridges", what, one), each(method, "bridges", what, other), strict=True
        )
        return [gap(a, b) for a, b in pairs]

    pairs = record.get("across methods", [])
    rows = [
        row("across-methods", "rank correlation of two methods' scores of all images (the least of "
            "three pairs), above one half", "consistent",
            [weakest([Estimate(*v) for v in of.values()]) for of in pairs if of], above(0.5),
            STABILITY)
    ]  # fmt: skip
    between = record.get("between seeds", {})
    for method in SELF:
        label = LABELS[method]
        rows += [
            row(f"fig-2-{method}-all", f"{label}, all training images: rank correlation of two "
                "pre-trainings, same noise", "> 0.96",
                [Estimate(*between[method])] if method in between else [], above(0.96), STABILITY,
                encoders=2),
            row(f"drawn-together-{method}", f"{label}: images with a uniform border have more "
                "neighbours with one than other images have (share, gap)", "> 0",
                each(method, "bridges", "drawn together")[:1], above(0.0), GALLERIES),
            row(f"bridges-{method}", f"{label}: the highest have more neighbours of another class "
                "than random images have (share, gap)", "> 0",
                beside(method, "another class", "highest", "random"), above(0.0), GALLERIES,
                near=FIRST),
            row(f"bridges-plain-{method}", f"{label}: the highest have more uniform neighbours "
                "than uniform images of middling score have (share, gap)",
                "> 0", beside(method, "uniform", "highest", "plain"), above(0.0), GALLERIES,
                near=FIRST),
            row(f"natural-{method}", f"{label}: the lowest have fewer uniform borders than random "
                "images (share, gap)", "< 0",
                each(method, "looks", "uniform, lowest minus random"), below(0.0), GALLERIES),
            row(f"natural-spread-{method}", f"{label}: the borders of the lowest vary more than "
                "those of random images (Cliff's δ)", "> 0",
                each(method, "looks", "border deviation, lowest"), above(0.0), GALLERIES),
            row(f"clear-{method}", f"{label}: the lowest have fewer neighbours of another class "
                "than random images have (share, gap)", "< 0",
                beside(method, "another class", "lowest", "random"), below(0.0), GALLERIES,
                near=FIRST),
            row(f"fig-12-{method}-more", f"{label}: more near duplicates among the 18 lowest than "
                "in the class (share)", "> class",
                each(method, "duplicates", "18"), above(record.get("class", 0.0)), DUPLICATES),
        ]  # fmt: skip
    for method in NOISE_METHODS:
        label, before = LABELS[method], record.get("noise", {}).get(method)
        before = before and before["before normalisation"]
        rows += [
            row(f"fig-9-{method}-std-before", f"{label}: deviation of log |I| with noise added "
                "before normalisation", f"{PAPER[method].std}",
                [Estimate(*before["deviation"])] if before else [],
                agrees(f"{PAPER[method].std:.2f}", TELLING["std"]), DISTRIBUTIONS),
            row(f"fig-5-{method}-before", f"{label}: share of uniform borders among the highest of "
                "5,000, noise added before normalisation", "predominantly",
                [Estimate(*before["uniform"])] if before else [], above(0.5), GALLERIES,
                stand_in=True),
        ]  # fmt: skip
    steps = [
        weakest([share_difference(a, b) for a, b in pairwise_hits(hits)])
        for hits in zip(
            *[[round(e.value * SHOWN) for e in each(m, "duplicates", "18")]
              for m in ("byol", "simclr", "barlow")], strict=False,
        )
    ]  # fmt: skip
    cars = [Estimate(*[float(one["duplicates"]["cars"])] * 3) for one in methods.get("byol", [])]
    easier = beside("simclr", "another class", "lowest", "random")
    noisy = record.get("label noise")
    rows += [
        row("fig-12-order", "near duplicates among the 18 lowest: BYOL > SimCLR > Barlow Twins "
            "(share, least step)", "> 0", steps, above(0.0), DUPLICATES),
        row("fig-12-cars", "BYOL: number of different cars among the 18 lowest", "2", cars,
            Region(2, 2, printed=True, counted=True), DUPLICATES),
        row("fig-14-easier", "SimCLR: the 400 lowest are easier, with fewer neighbours of another "
            "class than random images (share, gap)", "< 0", easier, below(0.0),
            GALLERIES.replace("5", "14"), stand_in=True, near=FIRST),
        row("fig-15-noise", "with labels, the highest have more neighbours of another class, under "
            "an encoder that saw no label, than random images (share, gap)", "> 0",
            [Estimate(*noisy)] if noisy else [], above(0.0), GALLERIES.replace("5", "15"),
            stand_in=True),
    ]  # fmt: skip
    return rows


def pairwise_hits(hits: tuple[int, ...]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Neighbouring counts among the 18 lowest, each with its 18."""
    return [((a, SHOWN), (b, SHOWN)) for a, b in pairwise(hits)]

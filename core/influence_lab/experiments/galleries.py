"""Figures 5 and 13 to 16: measured appearance of the images with the highest and lowest influence.

The paper shows CIFAR-100. If that is not found, CIFAR-10's images stand in for it, because the
score does not use labels. The supervised galleries use a score that does, that of the classifier's
cross-entropy, beside the label-free score of the same network.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from influence_lab.datasets import Images, data_root, load
from influence_lab.datasets.cifar import CIFAR100
from influence_lab.experiments.claims import Reading, Region, above, reading, within
from influence_lab.experiments.distributions import LABELS, METHODS
from influence_lab.experiments.scored import (
    Scored,
    Selection,
    available,
    fixed_set,
    provenance,
    whole,
)
from influence_lab.experiments.task import Task
from influence_lab.measures import borders
from influence_lab.measures.agreement import Estimate, partial_spearman, rounded, spearman
from influence_lab.measures.borders import MEASURES
from influence_lab.measures.detection import cliffs_delta, share, share_difference
from influence_lab.records import results
from influence_lab.records.recording import data_for
from influence_lab.records.thumbnails import load_sheet, save_sheet
from influence_ssl import GaussianNoise

EXTENT = 400
TOP = 12
LABELLED = "score with labels"
ENDS = ("highest", "lowest")
LINK = "experiments/galleries.html"
QUALITY = 50
# |δ| below it is called negligible (Romano et al. 2006).
NEGLIGIBLE = 0.147


class Sheet(NamedTuple):
    """One of the paper's galleries of 400: its method, score and end of the ranking."""

    method: str
    ranking: str
    end: str


SHEETS = {
    "fig-13": Sheet("simclr", "score", "highest"),
    "fig-14": Sheet("simclr", "score", "lowest"),
    "fig-15": Sheet("supervised", LABELLED, "highest"),
    "fig-16": Sheet("supervised", LABELLED, "lowest"),
}


def images_for(profile: str) -> Images:
    """CIFAR-100 if it is found, else its stand-in, CIFAR-10; ``scenes`` for ``tiny``."""
    if profile != "tiny" and any(
        (data_root() / name).is_dir() for name in ("cifar100", "cifar-100-python")
    ):
        return load("cifar100", "train")
    return data_for(profile, "train")


def rankings_of(
    one: Scored, score: Float64[np.ndarray, " n"]
) -> dict[str, Float64[np.ndarray, " n"]]:
    """The rankings whose ends are compared: the score, its rivals, and chance."""
    own = one.without_gradients(GaussianNoise(), 0)
    labelled = one.with_labels()
    n = len(score)
    variance = one.part.images.reshape(n, -1).var(1, dtype=np.float32).astype(np.float64)
    return {
        "score": score,
        **({} if labelled is None else {LABELLED: labelled}),
        "loss": own["loss"],
        "small representation norm": -own["norm"],
        "low pixel variance": -variance,
        "random": np.random.default_rng(2).permutation(n).astype(np.float64),
    }


def ends(key: Float64[np.ndarray, " n"], k: int) -> dict[str, Int64[np.ndarray, " k"]]:
    """The k images with the largest and the k with the smallest ``key``, outermost first."""
    order = np.argsort(key, kind="stable")
    return {"highest": order[::-1][:k], "lowest": order[:k]}


def sample(n: int, k: int) -> Int64[np.ndarray, " k"]:
    """The k random images, drawn once, with which both ends are compared."""
    return np.random.default_rng(1).permutation(n)[:k]


def compare(
    key: Float64[np.ndarray, " n"], looks: dict[str, Float64[np.ndarray, " n"]], k: int
) -> dict[str, dict[str, Any]]:
    """For both ends of ``key``, Cliff's δ of each measure against :func:`sample`, and counts."""
    drawn = sample(len(key), k)
    return {
        end: {
            "delta": rounded({m: cliffs_delta(looks[m][rows], looks[m][drawn]) for m in MEASURES}),
            **counts(looks, rows),
        }
        for end, rows in ends(key, k).items()
    }


def counts(looks: dict[str, np.ndarray], rows: Int64[np.ndarray, " k"]) -> dict[str, list[int]]:
    """The number of ``rows``, and of the first 12, with a uniform, white or black border."""
    marks = {"uniform": borders.uniform(looks), "white or black": borders.white_or_black(looks)}
    return {name: [int(mark[r].sum()) for r in (rows, rows[:TOP])] for name, mark in marks.items()}


def explained(
    rankings: dict[str, Float64[np.ndarray, " n"]], looks: dict[str, Float64[np.ndarray, " n"]]
) -> dict[str, list[float]]:
    """Rank correlations on the fixed set of 5,000: is the norm or the loss a full explanation?

    "uniformity" is minus the border's deviation; "small norm" minus the representation's.
    """
    rows = fixed_set(len(rankings["score"]))
    score, loss, small = (rankings[k][rows] for k in ("score", "loss", "small representation norm"))
    uniformity = -looks["border deviation"][rows]
    return rounded(
        {
            "score and loss": spearman(score, loss),
            "loss and small norm": spearman(loss, small),
            "score and small norm": spearman(score, small),
            "score and small norm, given loss": partial_spearman(score, small, loss),
            "score and uniformity": spearman(score, uniformity),
            "score and uniformity, given small norm": partial_spearman(score, uniformity, small),
            "score and uniformity, given loss": partial_spearman(score, uniformity, loss),
            "score and uniformity, given both": partial_spearman(score, uniformity, small, loss),
        }
    )


def reproduce(task: Task) -> str:
    """Measure both ends under every recorded encoder, record, and draw the figure of the task."""
    from influence_lab.figures import save, use_style

    images = images_for(task.profile)
    n = len(images)
    everything = Selection(images, np.arange(n), "all")
    scored = available(task, [(method, task.seed) for method in METHODS], everything)
    looks = borders.measures(images.images)
    k = min(EXTENT, n // 8)
    folder = (task.root or results.results_root()) / task.profile
    methods, reasons = {}, {}
    for (method, _), one in scored.items():
        rankings = rankings_of(one, whole(task, method, images))
        methods[method] = {name: compare(key, looks, k) for name, key in rankings.items()}
        reasons[method] = explained(rankings, looks)
        for result, sheet in SHEETS.items():
            if sheet.method == method and sheet.ranking in rankings:
                rows = ends(rankings[sheet.ranking], k)[sheet.end]
                save_sheet(images.images[rows], math.isqrt(k), folder / f"{result}.jpg", QUALITY)
        if method == SHEETS["fig-13"].method:
            rows = np.concatenate([v[:TOP] for v in ends(rankings["score"], k).values()])
            save_sheet(images.images[rows], TOP, folder / "fig-5.jpg")
    record: dict[str, Any] = {
        "data": images.name,
        "stand-in": not images.name.startswith(CIFAR100.title)
        or not _trained_on(images.name, task, list(methods)),
        "images": n,
        "extent": k,
        "all": {name: hits[0] for name, hits in counts(looks, np.arange(n)).items()},
        "sample": {name: hits[0] for name, hits in counts(looks, sample(n, k)).items()},
        "methods": methods,
        "explained": reasons,
        "provenance": provenance(task, list(scored.values())),
    }
    results.save_json(folder / "galleries.json", record)
    use_style()
    if task.result == "fig-5":
        save(figure_5(task.profile, record, task.root), task.picture)
    else:
        save(figure_sheet(task.result, task.profile, task.root), task.picture)
    return f"{images.name}, uniform borders, highest / lowest / random {k}: " + ", ".join(
        f"{LABELS[m]} {rows['score']['highest']['uniform'][0] / k:.0%} / "
        f"{rows['score']['lowest']['uniform'][0] / k:.0%} / {record['sample']['uniform'] / k:.0%}"
        for m, rows in methods.items()
    )


def _trained_on(name: str, task: Task, methods: list[str]) -> bool:
    runs = [results.load_run(task.profile, m, task.seed, task.root) for m in methods]
    return all(run and run["provenance"]["data"].startswith(f"{name} ") for run in runs)


def path_of(result: str, profile: str, root: Path | None = None) -> Path:
    """The path of a figure's recorded images."""
    return (results.results_root() if root is None else root) / profile / f"{result}.jpg"


def contact_sheet(result: str, profile: str, root: Path | None = None) -> Any:
    """The recorded sheet of one of :data:`SHEETS` as the notebook shows it: the JPEG as it is."""
    from IPython.display import Image

    path = path_of(result, profile, root)
    if not path.is_file():
        return figure_sheet(result, profile, root)
    return Image(data=path.read_bytes(), format="jpeg")


def figure_sheet(result: str, profile: str, root: Path | None = None) -> Any:
    """The sheet as a figure with its title, or a message if it is not recorded."""
    from matplotlib.figure import Figure

    from influence_lab.figures import WIDTH

    sheet, path = SHEETS[result], path_of(result, profile, root)
    if not path.is_file():
        # On axes, because a notebook shows no figure without.
        figure = Figure(figsize=(WIDTH, 1.0))
        axis = figure.subplots()
        axis.set_axis_off()
        axis.text(0.5, 0.5, f"{LABELS[sheet.method]}: not recorded yet", ha="center")
        return figure
    figure = Figure(figsize=(WIDTH, WIDTH + 0.4), layout="constrained")
    axis = figure.subplots()
    axis.imshow(load_sheet(path, 1)[0], interpolation="none")
    axis.set_axis_off()
    axis.set_title(f"{LABELS[sheet.method]}, {sheet.end} {sheet.ranking}")
    return figure


def figure_5(profile: str, record: dict[str, Any], root: Path | None = None) -> Any:
    """SimCLR's 12 images with the highest and the 12 with the lowest score, outermost first."""
    import matplotlib.pyplot as plt

    from influence_lab.figures import WIDTH

    columns = 6
    pictures = load_sheet(path_of("fig-5", profile, root), TOP)
    figure = plt.figure(figsize=(WIDTH, 2 * (TOP // columns * WIDTH / columns + 0.35)))
    parts: Any = figure.subfigures(len(ENDS), 1)
    for part, end, chosen in zip(parts, ENDS, np.split(pictures, len(ENDS)), strict=True):
        hits = record["methods"]["simclr"]["score"][end]["uniform"][1]
        part.suptitle(f"{end}: {hits} of {TOP} with a uniform border")
        for axis, image in zip(part.subplots(TOP // columns, columns).flat, chosen, strict=True):
            axis.imshow(image)
            axis.set_axis_off()
    return figure


def figure_deltas(record: dict[str, Any], measure: str = "border deviation") -> Any:
    """Cliff's δ of one measure between the highest of every ranking and the random sample."""
    import matplotlib.pyplot as plt

    from influence_lab.figures import COLORS, WIDTH

    methods = record["methods"]
    names = list(dict.fromkeys(name for rows in methods.values() for name in rows))
    figure, axis = plt.subplots(figsize=(WIDTH, 0.55 * len(names) + 1.4))
    axis.axvspan(-NEGLIGIBLE, NEGLIGIBLE, color=COLORS["grey"], alpha=0.2, linewidth=0)
    axis.axvline(0, color=COLORS["grey"], linestyle=":", linewidth=1.2)
    markers = dict(zip(METHODS, "os^D", strict=True))
    for number, (method, rows) in enumerate(methods.items()):
        places = np.array([names.index(name) for name in rows])
        shift = 0.16 * (number - (len(methods) - 1) / 2)
        found = np.array([row["highest"]["delta"][measure] for row in rows.values()])
        value, low, high = found.T
        axis.errorbar(value, places + shift, xerr=[value - low, high - value], linestyle="",
                      capsize=2, linewidth=1.4, marker=markers[method], color=COLORS[method],
                      label=LABELS[method])  # fmt: skip
    wrapped = [name.replace(" norm", "\nnorm").replace(" with", "\nwith") for name in names]
    axis.set(yticks=range(len(names)), xlim=(-1.02, 1.02),
             yticklabels=[name.replace("low pixel ", "low pixel\n") for name in wrapped],
             xlabel=f"Cliff's δ of the {measure}")  # fmt: skip
    axis.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def claims(root: Path | None = None) -> list[Reading]:
    """Sections 4.2 and B.5: uniform, white or black, colourful; and no trend with labels."""
    largest = results.largest_record("galleries", root)
    profile, record = largest if largest is not None else ("", {})
    methods = record.get("methods", {})

    def end(method: str, ranking: str, which: str) -> Any:
        return methods.get(method, {}).get(ranking, {}).get(which)

    def row(result: str, name: str, words: str, paper: str, found: Any, claimed: Region) -> Reading:
        method = SHEETS[result].method if result in SHEETS else "simclr"
        return reading(
            f"{result}-{name}", f"{LABELS[method]}, CIFAR-100: {words}", paper, found, claimed,
            f"{LINK}#paper-{result}", record.get("provenance", {}).get("data", ""),
            f"{LABELS[method]} encoder", profile, stand_in=record.get("stand-in", True),
        )  # fmt: skip

    top, bottom = (end("simclr", "score", which) for which in ENDS)
    drawn, k = record.get("sample", {}), record.get("extent", 0)
    rows = [
        row("fig-5", "uniform", "share of uniform borders among the 12 highest", "predominantly",
            share(top["uniform"][1], TOP) if top else None, above(0.5)),
        row("fig-13", "white-or-black", "uniform white or black borders, share among the 400 "
            "highest minus that of a random sample", "> 0",
            share_difference((top["white or black"][0], k), (drawn["white or black"], k))
            if top else None, above(0.0)),
        row("fig-14", "colour", "the 400 lowest have more colour than a random sample (Cliff's δ)",
            "> 0", Estimate(*bottom["delta"]["image colour"]) if bottom else None, above(0.0)),
    ]  # fmt: skip
    for result, which, name, ranking in (
        ("fig-15", "highest", "labels", LABELLED),
        ("fig-15", "highest", "label-free", "score"),
        ("fig-16", "lowest", "labels", LABELLED),
    ):
        found = end("supervised", ranking, which)
        rows.append(
            row(result, name, f"no trend in the border's deviation, {ranking} (Cliff's δ of the "
                f"400 {which}, within ±{NEGLIGIBLE})", "none",
                Estimate(*found["delta"]["border deviation"]) if found else None,
                within(NEGLIGIBLE))
        )  # fmt: skip
    return rows

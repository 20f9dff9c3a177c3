"""Figure 9: how the influence scores of a data set are distributed, method by method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from influence_lab.experiments.claims import (
    PUBLISHED,
    Reading,
    Region,
    above,
    agrees,
    reading,
    weakest,
)
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import Estimate, around, gap
from influence_lab.records import results
from influence_lab.records.recording import recorded_or_made
from influence_ssl import Scores
from influence_ssl.errors import InfluenceOSError

METHODS = ("simclr", "byol", "barlow", "supervised")
LABELS = {
    "simclr": "SimCLR",
    "byol": "BYOL",
    "barlow": "Barlow Twins",
    "supervised": "supervised",
}
WORDS = {"mean": "mean", "std": "deviation"}
LINK = "experiments/score-distributions.html#paper-fig-9"


class Summary(NamedTuple):
    """Mean and standard deviation of ln |I|."""

    mean: float
    std: float


# Appendix B.1 of the paper, CIFAR-10; the base of its logarithm is not stated.
PAPER = {
    "simclr": Summary(8.13, 1.27),
    "byol": Summary(8.47, 1.03),
    "barlow": Summary(8.71, 0.85),
}
# The same of CIFAR-100.
PAPER_100 = {
    "simclr": Summary(8.24, 1.18),
    "byol": Summary(8.81, 1.08),
    "barlow": Summary(8.96, 0.86),
}
# solo-learn's README, top-1 accuracy of the checkpoints that the paper scored, 10,000 test images.
TOP_1 = {
    "CIFAR-10": {"simclr": 0.9074, "byol": 0.9258, "barlow": 0.9210},
    "CIFAR-100": {"simclr": 0.6578, "byol": 0.7046, "barlow": 0.7090},
}
# Half the least difference between two methods in the paper: wider intervals cannot tell them.
TELLING = {"mean": 0.12, "std": 0.09}
SEEDS = (0, 1)
MEANS = {"CIFAR-10": PAPER, "CIFAR-100": PAPER_100}
TEST_IMAGES = 10_000


def summary(magnitude: Float[np.ndarray, " n"]) -> Summary:
    """Mean and standard deviation (over n, not n − 1) of ln |I|, examples that score 0 left out."""
    logs = np.log(magnitude[magnitude > 0])
    return Summary(float(logs.mean()), float(logs.std()))


def recorded(
    profile: str, split: str, seed: int = 0, root: Path | None = None
) -> dict[str, results.RecordedScores | None]:
    """The recorded scores of every method, ``None`` for methods without a record."""
    return {method: results.load_scores(profile, method, seed, split, root) for method in METHODS}


def largest_profile(split: str = "train", seed: int = 0, root: Path | None = None) -> str:
    """The largest profile with recorded scores of any method."""
    for profile in results.LARGEST_FIRST:
        if any(recorded(profile, split, seed, root).values()):
            return profile
    raise InfluenceOSError(
        f"no recorded scores of {split}, seed {seed}; make some with influence-lab reproduce fig-9"
    )


def effective_dimension(scores: results.RecordedScores | Scores) -> float:
    """Sum over the curvature's blocks of tr(H(H + λI)⁻¹), as the scorer recorded it."""
    return float(sum(scores.provenance["effective dimension"]))


def draw(axis: Any, scores: dict[str, Float[np.ndarray, " n"]]) -> None:
    """Densities of ln |I| as outlines, one colour and one line style per method."""
    from influence_lab.figures import COLORS

    logs = {method: np.log(m[m > 0]) for method, m in scores.items()}
    low = min(np.quantile(values, 0.001) for values in logs.values())
    high = max(values.max() for values in logs.values())
    edges = np.linspace(low, high, 61)
    styles = {"simclr": "-", "byol": "--", "barlow": "-.", "supervised": ":"}
    for method, values in logs.items():
        density, _ = np.histogram(values, edges, density=True)
        axis.stairs(
            density, edges, color=COLORS[method], linestyle=styles[method], linewidth=1.8,
            label=LABELS[method],
        )  # fmt: skip
    axis.set_xlabel("ln |I| (natural logarithm)")
    axis.set_ylabel("density")
    axis.legend(loc="upper left")


def reproduce(task: Task) -> str:
    """Train and score what is not recorded yet, and draw Figure 9."""
    import matplotlib.pyplot as plt

    from influence_lab.figures import save, use_style

    magnitudes = {}
    for method in METHODS:
        scores = recorded_or_made(
            method, task.profile, task.seed, "train", task.device, task.runs, task.root
        )
        magnitudes[method] = scores.magnitude
    use_style()
    figure, axis = plt.subplots()
    draw(axis, magnitudes)
    save(figure, task.picture)
    rows = {method: summary(magnitude) for method, magnitude in magnitudes.items()}
    return ", ".join(f"{LABELS[m]} {row.mean:.2f} ± {row.std:.2f}" for m, row in rows.items())


def moments(magnitude: Float[np.ndarray, " n"]) -> dict[str, Estimate]:
    """:func:`summary` with 95 % intervals from the large-sample variances of the two.

    The variance of the mean is s²/n, that of the standard deviation (m₄ − s⁴) / (4 s² n), with m₄
    the fourth central moment. The intervals cover only the choice of images.
    """
    logs = np.log(magnitude[magnitude > 0])
    mean, std = summary(magnitude)
    fourth = float(((logs - mean) ** 4).mean())
    errors = {"mean": std, "std": np.sqrt(max(0.0, fourth - std**4)) / (2 * std)}
    values = {"mean": mean, "std": std}
    return {
        what: around(value, errors[what] / np.sqrt(len(logs))) for what, value in values.items()
    }


def least_gap(ordered: Sequence[Estimate]) -> Estimate | None:
    """The weakest step of a descending order; ``None`` unless all three methods are recorded."""
    return weakest([gap(a, b) for a, b in pairwise(ordered)]) if len(ordered) == 3 else None


def order_of(what: str) -> list[str]:
    """The methods in the descending order of the paper's ``"mean"`` or ``"std"``."""
    return sorted(PAPER, key=lambda m: getattr(PAPER[m], what), reverse=True)


def order_words(what: str) -> str:
    """The order in words."""
    names = " > ".join(LABELS[m] for m in order_of(what))
    return f"order of the {WORDS[what]}s: {names} (least step)"


def ceiling(profile: str, root: Path | None = None) -> str:
    """Why the recorded level cannot be the paper's; empty where it could."""
    scores = results.load_scores(profile, "simclr", 0, "train", root) if profile else None
    if scores is None or "ranks" not in scores.provenance:
        return ""
    largest = sum(o * i for o, i in scores.provenance["ranks"].values())
    highest = max(paper.mean for paper in PAPER.values())
    if np.log(largest) > highest:
        return ""
    return f"no mean can exceed ln {largest:,} = {np.log(largest):.2f}; the paper's reach {highest}"


def claims(root: Path | None = None) -> list[Reading]:
    """Appendix B.1: mean and deviation of log |I| per method, their orders, and accuracy's."""
    try:
        profile = largest_profile(root=root)
    except InfluenceOSError:
        profile = ""
    every = [recorded(profile, "train", seed, root) for seed in SEEDS]
    found = [
        {m: moments(s.magnitude) for m, s in scores.items() if s is not None and m in PAPER}
        for scores in every
    ]
    found = [of for of in found if of]
    runs = [{m: results.load_run(profile, m, seed, root) for m in PAPER} for seed in SEEDS]
    data = next((s.provenance["data"] for s in every[0].values() if s is not None), "")
    limit = ceiling(profile, root)

    def row(
        name: str, words: str, paper: str, values: list[Estimate], claimed: Region, model: str,
        cannot: str = "",
    ) -> Reading:  # fmt: skip
        return reading(
            f"fig-9-{name}", words, paper, values or None, claimed, LINK, data, model, profile,
            stand_in=profile == "tiny", cannot=cannot,
        )  # fmt: skip

    rows = []
    for method, paper in PAPER.items():
        for what, number in paper._asdict().items():
            rows.append(
                row(f"{method}-{what}", f"{LABELS[method]}, CIFAR-10: {WORDS[what]} of log |I|, "
                    "ours at rank 16", f"{number:.2f}",
                    [of[method][what] for of in found if method in of],
                    agrees(f"{number:.2f}", TELLING[what]), f"{LABELS[method]} encoder",
                    limit if what == "mean" else "")
            )  # fmt: skip
    for what in WORDS:
        steps = [least_gap([of[m][what] for m in order_of(what) if m in of]) for of in found]
        rows.append(
            row(f"order-{what}", f"{order_words(what)}, ours at rank 16", "> 0",
                [step for step in steps if step], above(0.0), "one encoder per method",
                limit if what == "mean" else "")
        )  # fmt: skip
    steps = [_accuracy_step(of, run) for of, run in zip(found, runs, strict=False)]
    rows.append(
        row("accuracy", "accuracy has the order of our means (least step, our kNN accuracy)", "> 0",
            [step for step in steps if step], above(0.0), "one encoder per method")
    )  # fmt: skip
    for name in TOP_1:
        for suffix, text, step in (
            ("", "as published", printed_step(name)),
            ("-sampled", "published, with the error of the test images", least_step(name)),
        ):
            rows.append(
                reading(
                    f"fig-9-published-{name.lower()}{suffix}",
                    f"{name}: accuracy has the order of the paper's means (least step, {text})",
                    "> 0", step, above(0.0), LINK, f"{name} test (10,000 images)",
                    "solo-learn's checkpoints, as the paper", PUBLISHED,
                )
            )  # fmt: skip
    words = "CIFAR-100: means 8.96, 8.81, 8.24 and deviations 0.86, 1.08, 1.18, in the same order"
    rows.append(reading("fig-9-cifar100", words, "six numbers", None, above(0.0), LINK))
    return rows


def _accuracy_step(found: dict[str, dict[str, Estimate]], runs: dict[str, Any]) -> Estimate | None:
    order = sorted(found, key=lambda m: -found[m]["mean"].value)
    there = [run for m in order if (run := runs[m])]
    shares = [(run["accuracy"]["knn"], run["test images"]) for run in there]
    return least_gap([around(share, _share_error(share, n)) for share, n in shares])


def printed_step(data: str) -> Estimate:
    """:func:`least_step` without errors: the order of the published numbers is a fact."""
    return Estimate(*[least_step(data).value] * 3)


def least_step(data: str) -> Estimate:
    """The weakest step of the published accuracies, in the descending order of the paper's means.

    The binomial errors of 10,000 test images each are taken as independent. Because the images are
    the same, the true interval is narrower; the unknown variation between training runs widens it.
    """
    order = sorted(MEANS[data], key=lambda m: -MEANS[data][m].mean)
    shares = [TOP_1[data][method] for method in order]
    steps = least_gap([around(share, _share_error(share, TEST_IMAGES)) for share in shares])
    assert steps is not None
    return steps


def _share_error(share: float, n: int) -> float:
    return float(np.sqrt(share * (1 - share) / n))

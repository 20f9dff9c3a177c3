"""Figure 9: how the influence scores of a data set are distributed, method by method."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from influence_ssl import Scores
from influence_ssl.errors import InfluenceOSError

from .. import results
from ..agreement import Estimate, around, gap
from ..claims import Claim, above, agrees, claim, weakest
from ..tasks import recorded_or_made
from . import Task

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
MEANS = {"CIFAR-10": PAPER, "CIFAR-100": PAPER_100}
TEST_IMAGES = 10_000


def summary(magnitude: Float[np.ndarray, " n"]) -> Summary:
    """Mean and standard deviation (over n, not n − 1) of ln |I|, examples that score 0 left out."""
    logs = np.log(magnitude[magnitude > 0])
    return Summary(float(logs.mean()), float(logs.std()))


def recorded(
    profile: str, split: str, seed: int = 0, root: Path | None = None
) -> dict[str, results.RecordedScores | None]:
    """The recorded scores of every method, ``None`` where a method is not there yet."""
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
    from ..figures import COLORS

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

    from ..figures import save, use_style

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

    Of the mean s²/n, of the standard deviation (m₄ − s⁴) / (4 s² n), with m₄ the fourth central
    moment. They cover the choice of images and no other randomness.
    """
    logs = np.log(magnitude[magnitude > 0])
    mean, std = summary(magnitude)
    fourth = float(((logs - mean) ** 4).mean())
    errors = {"mean": std, "std": np.sqrt(max(0.0, fourth - std**4)) / (2 * std)}
    values = {"mean": mean, "std": std}
    return {
        what: around(value, errors[what] / np.sqrt(len(logs))) for what, value in values.items()
    }


def _least_gap(ordered: list[Estimate]) -> Estimate | None:
    """The weakest step of a descending order; ``None`` unless all three methods are there."""
    return weakest([gap(a, b) for a, b in pairwise(ordered)]) if len(ordered) == 3 else None


def claims(root: Path | None = None) -> list[Claim]:
    """Appendix B.1: mean and deviation of log |I| per method, their orders, and accuracy's."""
    try:
        profile = largest_profile(root=root)
    except InfluenceOSError:
        profile = ""
    scores = recorded(profile, "train", 0, root)
    found = {m: moments(s.magnitude) for m, s in scores.items() if s is not None and m in PAPER}
    runs = {m: results.load_run(profile, m, 0, root) for m in found}
    data = next((s.provenance["data"] for s in scores.values() if s is not None), "")

    def row(
        name: str, words: str, paper: str, estimate: Estimate | None, holds: Any, model: str
    ) -> Claim:
        return claim(
            f"fig-9-{name}", words, paper, estimate, holds, LINK, data, model, profile,
            profile == "tiny",
        )  # fmt: skip

    rows = []
    for method, paper in PAPER.items():
        for what, number in paper._asdict().items():
            words = f"{LABELS[method]}, CIFAR-10: {WORDS[what]} of log |I|, ours at rank 16"
            estimate = found[method][what] if method in found else None
            rows.append(
                row(f"{method}-{what}", words, f"{number:.2f}", estimate, agrees(f"{number:.2f}"),
                    f"{LABELS[method]} encoder")
            )  # fmt: skip
    for what, text in WORDS.items():
        order = sorted(PAPER, key=lambda m: getattr(PAPER[m], what), reverse=True)
        words = f"order of the {text}s: " + " > ".join(LABELS[m] for m in order)
        ordered = [found[m][what] for m in order if m in found]
        rows.append(
            row(f"order-{what}", f"{words} (least step)", "> 0", _least_gap(ordered), above(0.0),
                "one encoder per method")
        )  # fmt: skip
    accuracy = {
        m: around(run["accuracy"]["knn"], _share_error(run["accuracy"]["knn"], run["test images"]))
        for m, run in runs.items()
        if run is not None
    }
    order = sorted(accuracy, key=lambda m: -found[m]["mean"].value)
    rows.append(
        row("accuracy", "accuracy has the order of our means (least step, our kNN accuracy)", "> 0",
            _least_gap([accuracy[m] for m in order]), above(0.0), "one encoder per method")
    )  # fmt: skip
    for data in TOP_1:
        rows.append(
            claim(
                f"fig-9-published-{data.lower()}",
                "accuracy has the order of the paper's means (least step, published top-1)",
                "> 0", least_step(data), above(0.0), LINK, f"{data} test (10,000 images)",
                "solo-learn's checkpoints, as the paper", "published numbers",
            )
        )  # fmt: skip
    words = "CIFAR-100: means 8.96, 8.81, 8.24 and deviations 0.86, 1.08, 1.18, in the same order"
    rows.append(claim("fig-9-cifar100", words, "six numbers", None, above(0.0), LINK))
    return rows


def least_step(data: str) -> Estimate:
    """The weakest step of the published accuracies, in the descending order of the paper's means.

    Binomial errors of 10,000 test images each, taken as independent: the images are the same, so
    that the true interval is narrower; the error of another training, unknown, widens it.
    """
    order = sorted(MEANS[data], key=lambda m: -MEANS[data][m].mean)
    shares = [TOP_1[data][method] for method in order]
    steps = _least_gap([around(share, _share_error(share, TEST_IMAGES)) for share in shares])
    assert steps is not None
    return steps


def _share_error(share: float, n: int) -> float:
    return float(np.sqrt(share * (1 - share) / n))

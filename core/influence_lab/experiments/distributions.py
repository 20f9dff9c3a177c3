"""Figure 9: how the influence scores of a data set are distributed, method by method."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from influence_ssl import Scores
from influence_ssl.errors import InfluenceOSError

from .. import results
from ..tasks import recorded_or_made
from . import Task

METHODS = ("simclr", "byol", "barlow", "supervised")
LABELS = {
    "simclr": "SimCLR",
    "byol": "BYOL",
    "barlow": "Barlow Twins",
    "supervised": "supervised",
}


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
    for profile in ("paper", "gpu", "cpu", "tiny"):
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

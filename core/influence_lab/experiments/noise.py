"""Figures 10 and 11: the strength of the Gaussian noise and its effect on the scores.

Appendix B.3 of the paper varies mean and standard deviation of the noise. Its text names N(0.01,
0.2) and the deviations 0.2 and 0.3. The other values of its grid appear only in the figures, so the
grid here is ours. With one seed, the noises of a grid share their standard normal numbers.
Correlations with the scores of N(0.01, 0.2) are therefore computed twice, with its draw from the
same seed and with one from another seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from influence_lab.experiments.claims import Reading, above, reading, weakest
from influence_lab.experiments.distributions import LABELS
from influence_lab.experiments.scored import available, provenance, vectors_of
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import (
    Estimate,
    difference,
    gap,
    linear_correlation,
    mean,
    overlap,
    rounded,
    spearman,
)
from influence_lab.records import results
from influence_lab.records.keys import key
from influence_ssl import GaussianNoise

METHOD = "simclr"
MEANS = (0.01, 0.05, 0.1)
DEVIATIONS = (0.1, 0.2, 0.3, 0.5)
BASE = (0.01, 0.2)
NAMED = (0.2, 0.3)
FIGURE_10 = "experiments/perturbations.html#paper-fig-10"
FIGURE_11 = "experiments/perturbations.html#paper-fig-11"
DRAWS = {"same": "same draw", "other": "another draw"}
# The caption has "Pearson ranked correlation": both are computed.
STATISTICS = {
    "": ("rank correlation", spearman),
    "-pearson": ("Pearson's correlation", linear_correlation),
}

Column = Float64[np.ndarray, " n"]
Grid = dict[tuple[float, float], Column]


def measure(grid: Grid, base: dict[str, Column]) -> dict[str, Any]:
    """The data of Figures 10 and 11.

    ``grid`` contains the scores for each (mean, deviation), and ``base`` those of :data:`BASE`,
    ``same`` in the grid's draw and ``other`` in another. Per mean: ln |I| at 0.3 minus at 0.2,
    paired, and the overlap of the two distributions of ln |I|. Per draw: the decrease of the
    correlation with the base from 0.2 to 0.5 at the base's mean.
    """
    cells = {}
    for (mu, sigma), scores in grid.items():
        logs = np.log(scores)
        cells[f"{mu} {sigma}"] = {
            "mean |I|": mean(scores),
            "mean ln|I|": mean(logs),
            **{
                f"{draw}{suffix}": correlation(base[draw], scores)
                for draw in DRAWS
                for suffix, (_, correlation) in STATISTICS.items()
            },
        }
    found: dict[str, Any] = {"cells": cells, "shift": {}, "overlap": {}}
    for mu in dict.fromkeys(mu for mu, _ in grid):
        narrow, wide = (np.log(grid[mu, sigma]) for sigma in (0.2, 0.3))
        found["shift"][str(mu)] = mean(wide - narrow)
        found["overlap"][str(mu)] = overlap(narrow, wide)
    weak, strong = grid[BASE[0], 0.3], grid[BASE[0], 0.5]
    found["loss of correlation"] = {
        draw: difference((base[draw], weak), (base[draw], strong)) for draw in DRAWS
    }
    return found


def recorded(profile: str, seed: int = 0, root: Path | None = None) -> Grid:
    """The recorded scores of the grid so far."""
    vectors = vectors_of(profile, METHOD, seed, root)
    names = {
        (mu, sigma): key("score", GaussianNoise(mu, sigma), 0)
        for mu in MEANS
        for sigma in DEVIATIONS
    }
    return {cell: vectors[name] for cell, name in names.items() if name in vectors}


def figure_10(grid: Grid) -> Any:
    """Distributions of ln |I| in one panel: median, middle half and middle nine tenths of each."""
    import matplotlib.pyplot as plt

    from influence_lab.figures import COLORS, WIDTH

    figure, axis = plt.subplots(figsize=(WIDTH, 4.2))
    looks = zip(MEANS, ("blue", "vermilion", "green"), ("o", "s", "^"), (-1, 0, 1), strict=True)
    for mu, color, marker, side in looks:
        row = [(place, grid[mu, s]) for place, s in enumerate(DEVIATIONS) if (mu, s) in grid]
        if not row:
            continue
        at = np.array([place for place, _ in row]) + 0.2 * side
        shares = (0.05, 0.25, 0.5, 0.75, 0.95)
        ends = np.array([np.quantile(np.log(scores), shares) for _, scores in row]).T
        axis.vlines(at, ends[0], ends[4], color=COLORS[color], linewidth=1.2)
        axis.vlines(at, ends[1], ends[3], color=COLORS[color], linewidth=4.5)
        axis.plot(at, ends[2], marker=marker, color=COLORS[color], linestyle="", markersize=8,
                  markeredgecolor="white", label=f"μ = {mu}")  # fmt: skip
    axis.set(xticks=range(len(DEVIATIONS)), xticklabels=[f"{s}" for s in DEVIATIONS],
             xlabel="deviation σ of the noise", ylabel="ln |I| (natural logarithm)")  # fmt: skip
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def figure_11(cells: dict[str, Any]) -> Any:
    """Rank correlation with the base by deviation: one line per mean, one panel per draw."""
    import matplotlib.pyplot as plt

    from influence_lab.figures import COLORS, WIDTH

    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.6), sharey=True)
    looks = zip(MEANS, ("blue", "vermilion", "green"), ("o", "s", "^"), (-1, 0, 1), strict=True)
    for mu, color, marker, side in looks:
        row = [(s, cells[f"{mu} {s}"]) for s in DEVIATIONS if f"{mu} {s}" in cells]
        if not row:
            continue
        at = np.array([s for s, _ in row]) + 0.006 * side
        for axis, draw in zip(axes, DRAWS, strict=True):
            value, low, high = np.array([cell[draw] for _, cell in row]).T
            axis.errorbar(at, value, [value - low, high - value], color=COLORS[color],
                          marker=marker, linewidth=1.2, capsize=2, label=f"μ = {mu}")  # fmt: skip
    for axis, text in zip(axes, DRAWS.values(), strict=True):
        axis.axhline(0.9, color=COLORS["grey"], linestyle=":", linewidth=1.2)
        axis.set(title=text, xlabel="deviation σ", xticks=DEVIATIONS)
    axes[0].set_ylabel("rank correlation\nwith N(0.01, 0.2)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def reproduce(task: Task) -> str:
    """Score the grid with the recorded SimCLR encoder, record, and draw Figure 10 or 11."""
    from influence_lab.figures import save, use_style

    scored = available(task, [(METHOD, task.seed)])[METHOD, task.seed]
    grid = {
        (mu, sigma): scored.score(GaussianNoise(mu, sigma), 0)
        for mu in MEANS
        for sigma in DEVIATIONS
    }
    base = {"same": grid[BASE], "other": scored.score(GaussianNoise(*BASE), 1)}
    record = {
        **rounded(measure(grid, base)),
        "method": METHOD,
        "provenance": provenance(task, [scored]),
    }
    results.save_json((task.root or results.results_root()) / task.profile / "noise.json", record)
    use_style()
    save(figure_10(grid) if task.result == "fig-10" else figure_11(record["cells"]), task.picture)
    lowest = {draw: min(cell[draw][0] for cell in record["cells"].values()) for draw in DRAWS}
    return "lowest rank correlation with N(0.01, 0.2): " + ", ".join(
        f"{DRAWS[draw]} {value:.3f}" for draw, value in lowest.items()
    )


def steps(cells: dict[str, Any], what: str) -> list[Estimate]:
    """What ``what`` gains from each deviation to the next, at each mean.

    The two cells are taken as independent. They share images and draws, so that the true interval
    is narrower.
    """
    return [
        gap(Estimate(*cells[f"{mu} {wide}"][what]), Estimate(*cells[f"{mu} {narrow}"][what]))
        for mu in MEANS
        for narrow, wide in pairwise(DEVIATIONS)
        if f"{mu} {wide}" in cells and f"{mu} {narrow}" in cells
    ]


def claims(root: Path | None = None) -> list[Reading]:
    """Appendix B.3: a shift to the right, an overlap, correlations above 0.9 that fall slowly."""
    found = results.largest_record("noise", root)
    profile, record = found if found is not None else ("", {})

    def row(
        name: str, words: str, paper: str, found: Sequence[Sequence[float]], bound: float,
        link: str,
    ) -> Reading:  # fmt: skip
        estimate = weakest([Estimate(*numbers) for numbers in found]) if found else None
        return reading(
            name, words, paper, estimate, above(bound), link,
            record["provenance"]["data"] if record else "",
            f"{LABELS[METHOD]} encoder", profile, stand_in=profile == "tiny",
        )  # fmt: skip

    rows = [
        row("fig-10-shift", "σ from 0.2 to 0.3 moves the distribution to the right (ln |I|, least "
            "over the means)", "> 0", list(record.get("shift", {}).values()), 0.0,
            FIGURE_10),
        row("fig-10-overlap", "σ of 0.2 and 0.3: the distributions overlap significantly (shared "
            "area, least over the means)", "> half", list(record.get("overlap", {}).values()), 0.5,
            FIGURE_10),
        row("fig-10-average", "each larger σ of 0.1 to 0.5 has the higher mean ln |I| (least step)",
            "> 0", steps(record.get("cells", {}), "mean ln|I|"), 0.0, FIGURE_10),
        row("fig-10-average-plain", "each larger σ of 0.1 to 0.5 has the higher mean |I|, which "
            "the effective dimension bounds (least step)", "> 0",
            steps(record.get("cells", {}), "mean |I|"), 0.0, FIGURE_10),
    ]  # fmt: skip
    for draw, text in DRAWS.items():
        for suffix, (statistic, _) in STATISTICS.items():
            cells: dict[bool, list[list[float]]] = {True: [], False: []}
            for name, cell in record.get("cells", {}).items():
                if name != f"{BASE[0]} {BASE[1]}":
                    cells[float(name.split()[1]) in NAMED].append(cell[f"{draw}{suffix}"])
            words = f"{statistic} with N(0.01, 0.2), {text} (the least)"
            rows += [
                row(f"fig-11-{draw}{suffix}", f"σ of 0.2 and 0.3, which the text names: {words}",
                    "> 0.9", cells[True], 0.9, FIGURE_11),
                row(f"fig-11-{draw}-other{suffix}", "σ of 0.1 and 0.5, which it does not name: "
                    f"{words}", "> 0.9", cells[False], 0.9, FIGURE_11),
            ]  # fmt: skip
        lost = record.get("loss of correlation", {})
        rows.append(
            row(f"fig-11-falls-{draw}", f"σ of 0.5 correlates less than 0.3, {text}", "> 0",
                [lost[draw]] if lost else [], 0.0, FIGURE_11)
        )  # fmt: skip
    return rows

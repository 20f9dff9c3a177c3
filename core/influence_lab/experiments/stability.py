"""Figure 2: a comparison of the scores from two independent runs, and the effect of averaging.

The paper names "different initializations", that is, another pre-training run, but has one
checkpoint per method. Three readings are measured: another noise draw for the same encoder, another
pre-training run scored with the same noise, and both. Run A of an encoder uses the noise seeds 0,
2, …, 14, run B the seeds 1, 3, …, 15. Averages of k draws use the first k of a run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from influence_lab.experiments.claims import Reading, above, reading
from influence_lab.experiments.distributions import LABELS
from influence_lab.experiments.scored import RIVALS, Scored, available, provenance, vectors_of
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import Estimate, pearson, rounded, spearman
from influence_lab.records import results
from influence_lab.records.keys import described, key
from influence_ssl import GaussianNoise

METHODS = ("simclr", "byol", "barlow")
DRAWS = (1, 2, 4, 8)
READINGS = {
    "noise": "another draw of the noise",
    "training": "another pre-training run, same noise",
    "both": "another pre-training run and noise",
}
# The paper writes "Pearson rank correlation" and, in Table 4, "Pearsonr": both are shown.
STATISTICS = {"spearman": "rank correlation", "pearson": "Pearson's correlation"}
COLUMNS = ("other noise", "other training", "both other")
NOISE = GaussianNoise()
LINK = "experiments/stability.html#paper-fig-2"
# Section 4.1 of the paper, for all three methods and both data sets.
PAPER = 0.96

Run = list[Float64[np.ndarray, " n"]]


def seeds_of(run: int, draws: int = DRAWS[-1]) -> list[int]:
    """The noise seeds of run 0 (A) or 1 (B)."""
    return [2 * k + run for k in range(draws)]


def paired(a: Run, b: Run, other: Run | None) -> dict[str, tuple[Run, Run]]:
    """The two runs of each reading: A and B of one encoder, ``other`` run A of another."""
    found = {"noise": (a, b)}
    if other:
        found |= {"training": (a, other), "both": (b, other)}
    return found


def measure(a: Run, b: Run, other: Run | None) -> dict[str, dict[str, dict[str, Estimate]]]:
    """For each reading and number of draws, the correlations between the means over the draws."""
    found: dict[str, dict[str, dict[str, Estimate]]] = {}
    for kind, (left, right) in paired(a, b, other).items():
        found[kind] = {}
        for k in (k for k in DRAWS if k <= min(len(left), len(right))):
            x, y = np.mean(left[:k], 0), np.mean(right[:k], 0)
            found[kind][str(k)] = {"spearman": spearman(x, y), "pearson": pearson(x, y)}
    return found


def pairs(
    profile: str, method: str, seed: int = 0, root: Path | None = None
) -> dict[str, tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]]:
    """The recorded one-draw scores that each reading compares."""
    first, second = (vectors_of(profile, method, s, root) for s in (seed, seed + 1))

    def run(vectors: Any, number: int) -> Run:
        name = key("score", NOISE, number)
        return [vectors[name]] if name in vectors else []

    a, b, other = run(first, 0), run(first, 1), run(second, 0)
    if not (a and b):
        return {}
    return {reading: (x[0], y[0]) for reading, (x, y) in paired(a, b, other).items()}


def draw(axis: Any, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], cells: int) -> None:
    """Density of ln |I| of two runs, on equal axes, with the line of equality."""
    from influence_lab.figures import COLORS

    left, right = np.log(x), np.log(y)
    low = min(np.quantile(v, 0.002) for v in (left, right))
    high = max(np.quantile(v, 0.999) for v in (left, right))
    inside = (np.minimum(left, right) > low) & (np.maximum(left, right) < high)
    axis.hexbin(
        left[inside], right[inside], gridsize=cells, extent=(low, high, low, high), mincnt=1,
        bins="log", cmap="viridis_r", linewidths=0.1,
    )  # fmt: skip
    axis.plot([low, high], [low, high], color=COLORS["black"], linewidth=0.8, linestyle=":")
    axis.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    first = math.ceil(low)
    axis.set_xticks(range(first, math.floor(high) + 1, 2))
    axis.set_yticks(range(first, math.floor(high) + 1, 2))


def figure_2(profile: str, record: dict[str, Any], seed: int = 0, root: Path | None = None) -> Any:
    """One cloud, and all methods' rank correlations with intervals beside the paper's bound.

    The cloud compares two noise draws for the first recorded method.
    """
    import matplotlib.pyplot as plt

    from influence_lab.figures import COLORS, WIDTH

    methods = record["methods"]
    figure, (cloud, axis) = plt.subplots(
        2, 1, figsize=(WIDTH, 6.2), gridspec_kw={"height_ratios": (1.5, 1)}
    )
    first = next(iter(methods))
    x, y = pairs(profile, first, seed, root)["noise"]
    draw(cloud, x, y, cells=40)
    value = methods[first]["score"]["noise"]["1"]["spearman"][0]
    cloud.set(xlabel="ln |I|, run 1", ylabel="ln |I|, run 2",
              title=f"{LABELS[first]}, {COLUMNS[0]}: ρ = {value:.2f}")  # fmt: skip
    axis.axvline(PAPER, color=COLORS["black"], linestyle=":", linewidth=1.2)
    axis.annotate(f"paper: above {PAPER}", (PAPER, 1), xycoords=("data", "axes fraction"),
                  xytext=(-4, 3), textcoords="offset points", ha="right")  # fmt: skip
    markers = dict(zip(METHODS, "os^", strict=True))
    for number, (method, found) in enumerate(methods.items()):
        for place, kind in enumerate(READINGS):
            if kind in found["score"]:
                value, low, high = found["score"][kind]["1"]["spearman"]
                axis.errorbar(
                    value, place + 0.2 * (number - 1), xerr=[[value - low], [high - value]],
                    marker=markers[method], color=COLORS[method], linestyle="", capsize=2,
                    label=LABELS[method] if kind == "noise" else None,
                )  # fmt: skip
    axis.set(yticks=range(len(COLUMNS)), yticklabels=COLUMNS, ylim=(len(COLUMNS) - 0.5, -0.5),
             xlabel="rank correlation of the scores of two runs")  # fmt: skip
    axis.set_xlim(right=1.005)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def reproduce(task: Task) -> str:
    """Score with every recorded encoder of seeds s and s + 1, record, and draw Figure 2."""
    from influence_lab.figures import save, use_style

    seeds = (task.seed, task.seed + 1)
    scored = available(task, [(method, seed) for seed in seeds for method in METHODS])
    methods = {
        method: _measured(scored[method, task.seed], scored.get((method, task.seed + 1)))
        for method in METHODS
        if (method, task.seed) in scored
    }
    record = {
        "methods": methods,
        "noise": described(NOISE),
        "images": len(next(iter(scored.values())).index),
        "provenance": provenance(task, list(scored.values())),
    }
    results.save_json(
        (task.root or results.results_root()) / task.profile / "stability.json", record
    )
    use_style()
    save(figure_2(task.profile, record, task.seed, task.root), task.picture)
    parts = []
    for method in METHODS:
        score = methods.get(method, {}).get("score", {})
        text = [f"{r} {score[r]['1']['spearman'][0]:.3f}" for r in READINGS if r in score]
        parts.append(f"{LABELS[method]} {', '.join(text) or 'not recorded yet'}")
    return "rank correlation of two runs: " + "; ".join(parts)


def _measured(first: Scored, second: Scored | None) -> dict[str, Any]:
    """All correlations of one method; ``second`` is the encoder from the other pre-training run."""
    at = {noise: first.with_rivals(NOISE, noise) for noise in (0, 1)}
    a, b = ([first.score(NOISE, noise) for noise in seeds_of(run)] for run in (0, 1))
    there = None if second is None else second.with_rivals(NOISE, 0)
    other = None if second is None else [second.score(NOISE, noise) for noise in seeds_of(0)]
    one = at[0]
    against = {kind: spearman(one["score"], one[kind]) for kind in RIVALS}
    against["whole gradient"] = spearman(one["score"], first.squared_norm(NOISE, 0))
    found: dict[str, Any] = {"score": measure(a, b, other)}
    for kind in RIVALS:
        again = None if there is None else [there[kind]]
        found[kind] = measure([at[0][kind]], [at[1][kind]], again)
    return rounded(found | {"score against": against})


def claims(root: Path | None = None) -> list[Reading]:
    """Section 4.1: correlation above 0.96, in three readings and two statistics; CIFAR-100."""
    found = results.largest_record("stability", root)
    profile, record = found if found is not None else ("", {"methods": {}})
    rows = []
    for method in METHODS:
        readings = record["methods"].get(method, {}).get("score", {})
        for kind, text in READINGS.items():
            for what, label in STATISTICS.items():
                estimate = readings.get(kind, {}).get("1", {}).get(what)
                rows.append(
                    reading(
                        f"fig-2-{method}-{kind}{'' if what == 'spearman' else '-pearson'}",
                        f"{LABELS[method]}, CIFAR-10: {label} of two runs; {text}",
                        f"> {PAPER}",
                        None if estimate is None else Estimate(*estimate),
                        above(PAPER),
                        LINK,
                        record.get("provenance", {}).get("data", ""),
                        f"{LABELS[method]} encoder, one draw",
                        profile,
                        encoders=1 if kind == "noise" else 2,
                        stand_in=profile == "tiny",
                    )
                )
    words = "CIFAR-100: correlation of two runs, three methods"
    rows.append(reading("fig-2-cifar100", words, f"> {PAPER}", None, above(PAPER), LINK))
    return rows

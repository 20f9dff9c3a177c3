"""The benchmark's picture: accuracy against cost."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from influence_lab.benchmark.candidates import CANDIDATES, EXACT, LOSS, SKETCH
from influence_lab.figures import COLORS, WIDTH

STYLES = {
    "LoGra random, per layer": ("blue", "o", "-"),
    "LoGra random, joint": ("vermilion", "s", "-"),
    "LoGra PCA, per layer": ("sky", "o", ":"),
    "LoGra PCA, joint": ("purple", "s", ":"),
}
SINGLES = {
    LOSS: ("loss", "x"),
    "gradient norm": ("gradient norm", "v"),
    "diagonal": ("diagonal", "D"),
    "K-FAC": ("K-FAC", "<"),
    "EK-FAC": ("EK-FAC", ">"),
    "full per layer": ("full, per layer", "P"),
    f"global {SKETCH}": (f"global, {SKETCH:,}", "*"),
}


def figure(cost: dict[str, Any], found: dict[str, Any], faithful: float) -> Figure:
    """One minus the rank correlation with the exact score against cost, both logarithmic.

    ``faithful`` is the correlation that a line marks.
    """
    drawing, axis = plt.subplots(figsize=(WIDTH, 5.4))
    for family, (color, marker, line) in STYLES.items():
        names = [name for name, one in CANDIDATES.items() if one.family == family]
        axis.plot(
            [cost[name]["cpu"] for name in names], [1 - found[name][0] for name in names],
            color=COLORS[color], marker=marker, linestyle=line, label=family,
        )  # fmt: skip
    for name, (label, marker) in SINGLES.items():
        axis.plot(
            cost[name]["cpu"], 1 - found[name][0], marker, color=COLORS["grey"], label=label,
            linestyle="none",
        )  # fmt: skip
    axis.axvline(cost[EXACT]["cpu"], color=COLORS["black"], linestyle=":", linewidth=1.2)
    axis.annotate("exact", (cost[EXACT]["cpu"], 0.95), xycoords=("data", "axes fraction"),
                  ha="right", xytext=(-3, 0), textcoords="offset points")  # fmt: skip
    axis.axhline(1 - faithful, color=COLORS["green"], linestyle="--", linewidth=1.2)
    axis.set(xscale="log", yscale="log")
    ticks = [0.2, 0.5, 1, 2, 5, 10, 20, 50]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.xaxis.set_minor_formatter("")
    all_costs = [value["cpu"] for value in cost.values()]
    axis.set_xlim(0.7 * min(all_costs), 1.3 * max(all_costs))
    axis.set_xlabel("cost in plain forward + backward passes")
    axis.set_ylabel("1 − rank correlation with exact")
    drawing.legend(loc="outside lower center", ncols=2, columnspacing=1.0, handlelength=1.6)
    return drawing

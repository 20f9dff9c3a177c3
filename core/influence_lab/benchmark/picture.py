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
DEFAULT = "random 16 per layer"
# A single candidate's words, and on which side of its mark they stand.
SINGLES = {
    LOSS: ("loss", "right"),
    "gradient norm": ("gradient norm", "left"),
    "diagonal": ("diagonal", "left"),
    "K-FAC": ("K-FAC", "left"),
    "EK-FAC": ("EK-FAC", "right"),
    "full per layer": ("full, per layer", "right"),
    f"global {SKETCH}": (f"global, {SKETCH:,}", "left"),
}


def figure(cost: dict[str, Any], found: dict[str, Any], faithful: float) -> Figure:
    """One minus the rank correlation with the exact score against cost, both logarithmic.

    ``faithful`` is the correlation that a line marks; a ring marks the library's default.
    """
    drawing, axis = plt.subplots(figsize=(WIDTH, 5.0))
    for family, (color, marker, line) in STYLES.items():
        names = [name for name, one in CANDIDATES.items() if one.family == family]
        axis.plot(
            [cost[name]["cpu"] for name in names], [1 - found[name][0] for name in names],
            color=COLORS[color], marker=marker, linestyle=line, label=family,
        )  # fmt: skip
    for name, (label, side) in SINGLES.items():
        place = cost[name]["cpu"], 1 - found[name][0]
        axis.plot(*place, "D", color=COLORS["grey"], markersize=4)
        axis.annotate(
            label, place, xytext=(-6 if side == "left" else 6, 0), textcoords="offset points",
            ha="right" if side == "left" else "left", va="center", fontsize=10,
            color=COLORS["grey"],
        )  # fmt: skip
    default = cost[DEFAULT]["cpu"], 1 - found[DEFAULT][0]
    axis.plot(*default, "o", markersize=14, markerfacecolor="none", color=COLORS["black"])
    axis.annotate("default", default, xytext=(-10, -12), textcoords="offset points", ha="right",
                  va="center")  # fmt: skip
    axis.axvline(cost[EXACT]["cpu"], color=COLORS["black"], linestyle=":", linewidth=1.2)
    axis.annotate("exact", (cost[EXACT]["cpu"], 0.5), xycoords=("data", "axes fraction"),
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

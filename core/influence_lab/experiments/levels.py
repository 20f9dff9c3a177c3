"""The effect of rank and damping on the distribution of scores: LogIX's settings and others.

The level of Figure 9 follows from the effective dimension, which depends on choices that the paper
does not state. LogIX, which the paper names, projects to rank 64 and damps by 0.1 × the mean
eigenvalue of each layer's block. Cells are recorded one by one; recorded cells of this encoder and
data are not computed again.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from influence_lab.experiments.claims import Reading, above, agrees, reading
from influence_lab.experiments.distributions import (
    LABELS,
    LINK,
    PAPER,
    TELLING,
    WORDS,
    least_gap,
    moments,
    order_of,
    order_words,
)
from influence_lab.experiments.scored import available
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import Estimate, rounded, spearman
from influence_lab.records import results
from influence_ssl import GaussianNoise, InfluenceScorer, Invariance, LoGra, Relative

LOGIX = (64, 0.1)
DEFAULT = (16, 0.1)
CELLS = ((4, 0.1), (8, 0.1), DEFAULT, (32, 0.1), LOGIX, (16, 0.01), (16, 1.0))
# The grid is one encoder's; the others are compared with the paper alone.
GRID_METHOD = "simclr"
NOISE = GaussianNoise()


def name_of(rank: int, c: float) -> str:
    """The name of a cell in the record."""
    return f"rank {rank}, damping {c:g}"


def cells_of(method: str) -> tuple[tuple[int, float], ...]:
    """The pairs (rank, damping) to measure for a method, with damping in mean eigenvalues."""
    return CELLS if method == GRID_METHOD else (LOGIX,)


def path_of(profile: str, root: Path | None = None) -> Path:
    """Where the cells are recorded."""
    return (root or results.results_root()) / profile / "levels.json"


def reproduce(task: Task) -> str:
    """Score the fixed set with every recorded encoder in every cell; record after each."""
    found = available(task, [(method, task.seed) for method in PAPER])
    record = results.load_record(task.profile, "levels", task.root) or {"methods": {}}
    for (method, _), scored in found.items():
        origin = dict(scored.vectors.origin or {})
        del origin["curvature"]
        known = record["methods"].get(method, {})
        cells = known["cells"] if known.get("origin") == origin else {}
        record["methods"][method] = {"origin": origin, "cells": cells}
        images, usual = scored.images, scored.with_rivals(NOISE, 0)["score"]
        for rank, c in cells_of(method):
            if name_of(rank, c) in cells:
                continue
            begin = time.perf_counter()
            scores = InfluenceScorer(
                scored.encoder, Invariance(NOISE), LoGra(rank, damping=Relative(c)),
                device=task.device, progress=sys.stderr.isatty(),
            ).score(images, scored.index)  # fmt: skip
            ranks = scores.provenance["ranks"].values()
            cells[name_of(rank, c)] = {
                "mean |I|": round(float(scores.magnitude.mean()), 2),
                "effective dimension": round(sum(scores.provenance["effective dimension"]), 2),
                "ceiling": sum(o * i for o, i in ranks),
                **rounded(moments(scores.magnitude)),
                "rank correlation": rounded(spearman(scores.magnitude, usual)),
                "provenance": results.provenance(
                    task.command, task.profile, task.seed, origin["data"], origin["data_sha256"],
                    results.device_name(task.device), time.perf_counter() - begin,
                ),
            }  # fmt: skip
            results.save_json(path_of(task.profile, task.root), record)
    parts = []
    for (method, _), _ in found.items():
        cell = record["methods"][method]["cells"][name_of(*LOGIX)]
        parts.append(f"{LABELS[method]} {cell['mean'][0]:.2f} ± {cell['std'][0]:.2f}")
    return f"ln |I| at {name_of(*LOGIX)}: " + ", ".join(parts)


def cell(
    profile: str, method: str, rank: int, c: float, root: Path | None = None
) -> dict[str, Any] | None:
    """A recorded cell; ``None`` if it is not recorded yet."""
    record = results.load_record(profile, "levels", root) or {"methods": {}}
    return record["methods"].get(method, {}).get("cells", {}).get(name_of(rank, c))


def claims(root: Path | None = None) -> list[Reading]:
    """Appendix B.1's means and deviations compared with ours at LogIX's settings."""
    profile, _ = results.largest_record("levels", root) or ("", {})
    rows = []
    for method, paper in PAPER.items():
        found = cell(profile, method, *LOGIX, root) if profile else None
        for what, number in paper._asdict().items():
            rows.append(
                reading(
                    f"fig-9-{method}-{what}-logix",
                    f"{LABELS[method]}, CIFAR-10: {WORDS[what]} of log |I|, ours at LogIX's "
                    f"{name_of(*LOGIX)}",
                    f"{number:.2f}", Estimate(*found[what]) if found else None,
                    agrees(f"{number:.2f}", TELLING[what]), LINK,
                    found["provenance"]["data"] if found else "", f"{LABELS[method]} encoder",
                    profile, stand_in=profile == "tiny",
                )
            )  # fmt: skip
    for what in WORDS:
        cells = [cell(profile, m, *LOGIX, root) if profile else None for m in order_of(what)]
        there = [Estimate(*found[what]) for found in cells if found]
        rows.append(
            reading(
                f"fig-9-order-{what}-logix", f"{order_words(what)}, at LogIX's {name_of(*LOGIX)}",
                "> 0", least_gap(there), above(0.0), LINK,
                cells[0]["provenance"]["data"] if cells[0] else "", "one encoder per method",
                profile, stand_in=profile == "tiny",
            )
        )  # fmt: skip
    return rows


def predicted(cell: dict[str, Any]) -> float:
    """The ceiling of the mean of ln |I|: ln of the effective dimension."""
    return float(np.log(cell["effective dimension"]))

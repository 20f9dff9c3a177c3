"""The content of a report as plain data, shown on the page and written by ``--json``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas
from jaxtyping import Float64

from influence_ssl.analysis.breakdown import breakdown
from influence_ssl.analysis.duplicates import confirmed
from influence_ssl.analysis.ranking import Table
from influence_ssl.analysis.reliability import spearman
from influence_ssl.version import __version__

GALLERY = 24
FIRST = 6
"""Number of pictures per finding at the top of the page."""
SETTLED = 0.9
"""Below this reliability the page warns that the order is not reliable."""
GROUPS = 40
PICTURED = 12
"""Number of groups with pictures in print."""
MEMBERS = 8
EXTREME = 0.05
_BINS = 48
_TOP = 100

# Printed numbers: enough to tell rows apart, few enough to keep 50,000 rows small.
_DIGITS = 6


def content(table: Table, source: str, labels: pandas.DataFrame | None) -> dict[str, Any]:
    """The whole report except the pictures; NaN becomes None, numbers have six digits.

    ``source`` names the score file; ``labels`` are the columns joined to it, in the table's order.
    """
    top = min(_TOP, max(1, len(table) // 10))
    return {
        "title": "Influence report",
        "version": __version__,
        "source": source,
        "images": len(table),
        "top": top,
        "missing": table.missing(),
        "skipped": _skipped(table),
        "ignored": _ignored(table),
        "rotated": _rotated(table),
        "alerts": _alerts(table.provenance),
        "summary": _summary(table),
        "distribution": _distribution(table.magnitude),
        "rivals": _rivals(table, top),
        "highest": _gallery(table, range(min(GALLERY, len(table)))),
        "lowest": _gallery(table, range(len(table) - 1, max(-1, len(table) - 1 - GALLERY), -1)),
        "groups": _groups(table),
        "outliers": _outliers(table),
        "breakdown": None if labels is None else breakdown(labels, table.percentile, top),
        # The groups stand above, each with its images.
        "settings": {k: v for k, v in table.provenance.items() if k != "duplicate groups"},
        "rows": _rows(table, labels),
    }


def _alerts(provenance: dict[str, Any]) -> list[str]:
    """Conditions that make the other results worthless, or nearly so."""
    found = []
    if provenance.get("untrained"):
        found.append(
            "The encoder has random weights, so the results below do not describe a trained "
            "encoder. Give --weights to influence-ssl score."
        )
    reliability, draws = provenance.get("reliability"), provenance.get("draws")
    if isinstance(reliability, float) and reliability < SETTLED:
        found.append(
            f"The order is not reliable. Another run with the same number of draws would have a "
            f"rank correlation of about {reliability:.2f} with this one. Score with more --draws."
        )
    elif draws == 1:
        found.append(
            "The scores are based on one draw of the perturbation, so the reliability of their "
            "order is unknown. Score with more --draws."
        )
    return found


def _summary(table: Table) -> dict[str, Any]:
    magnitude, provenance = table.magnitude, table.provenance
    dimension = provenance.get("effective dimension")
    own = provenance.get("examples") is not None and provenance.get(
        "fitted gradients"
    ) == provenance.get("draws", 1) * provenance.get("examples")
    relative = table.standard_error / np.maximum(magnitude, 1e-300)
    known = np.isfinite(relative)
    return {
        "mean": number(magnitude.mean()),
        "median": number(np.median(magnitude)),
        "largest": number(magnitude.max()),
        "smallest": number(magnitude.min()),
        "top_share": number(magnitude[: max(1, len(table) // 100)].sum() / magnitude.sum())
        if magnitude.sum() > 0
        else None,
        "draws": provenance.get("draws"),
        "reliability": provenance.get("reliability"),
        "relative_error": number(np.median(relative[known])) if known.any() else None,
        # Of its own data alone is the mean the effective dimension.
        "effective_dimension": number(sum(dimension)) if dimension and own else None,
    }


def _distribution(magnitude: Float64[np.ndarray, " n"]) -> dict[str, Any]:
    """A histogram of ln magnitude; magnitudes ≤ 0 have none and are counted apart."""
    positive = magnitude[magnitude > 0]
    left_out = len(magnitude) - len(positive)
    if not len(positive):
        return {"edges": [], "counts": [], "median": None, "left_out": left_out}
    logs = np.log(positive)
    low, high = logs.min(), logs.max()
    if high - low < 1e-4 * max(1.0, abs(low)):  # less than the edges' digits can tell apart
        low, high = low - 0.5, high + 0.5
    bins = min(_BINS, max(5, math.isqrt(len(logs))))
    counts, edges = np.histogram(logs, bins, (low, high))
    return {
        "edges": [number(edge) for edge in edges],
        "counts": counts.tolist(),
        "median": number(np.median(logs)),
        "left_out": left_out,
    }


def _rivals(table: Table, top: int) -> list[dict[str, Any]]:
    """How well a cheap measure gives the same order: Spearman's ρ, and the shared top images."""
    found = []
    for what, values in (
        ("loss", table.loss),
        ("gradient norm", table.gradient_norm),
        ("similarity to the nearest image", table.similarity),
    ):
        if values is None or np.isfinite(values).sum() < 2:
            continue
        sign = -1 if what.startswith("similarity") else 1
        largest = np.argsort(-sign * np.nan_to_num(values, nan=-sign * np.inf), kind="stable")[:top]
        found.append(
            {
                "measure": what if sign > 0 else f"low {what}",
                "rank_correlation": number(spearman(table.magnitude, sign * values)),
                "shared_top": int((largest < top).sum()),
                "top": top,
            }
        )
    return found


def _entry(table: Table, row: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": table.name[row],
        "rank": int(table.rank[row]),
        "score": number(table.score[row]),
        "percentile": round(float(table.percentile[row]), 1),
    }
    if table.nearest is not None and table.nearest[row]:
        found["nearest"] = table.nearest[row]
    if table.similarity is not None:
        found["similarity"] = number(table.similarity[row])
    sizes = table.width, table.height, table.bytes
    if all(column is not None for column in sizes):
        found["size"] = [int(column[row]) for column in sizes if column is not None]
    return found


def _gallery(table: Table, rows: range) -> list[dict[str, Any]]:
    return [_entry(table, row) for row in rows]


def _groups(table: Table) -> dict[str, Any] | None:
    """The duplicate groups, those that rest on pixels alone first, then the closest; the
    ``reason`` is taken from the score file."""
    if table.group is None:
        return None
    members: dict[int, list[int]] = {}
    for row, group in enumerate(table.group.tolist()):
        if group >= 0:
            members.setdefault(group, []).append(row)
    found = [_group(table, group, rows) for group, rows in members.items()]
    found.sort(
        key=lambda g: (
            g["confirmed"] is not False,
            not g["same_file"],
            -(g["similarity"] or -1),
            g["group"],
        )
    )
    return {
        "total": len(found),
        "unconfirmed": sum(group["confirmed"] is False for group in found),
        "images": sum(len(rows) for rows in members.values()),
        "shown": found[:GROUPS],
    }


def _group(table: Table, group: int, rows: list[int]) -> dict[str, Any]:
    rows = sorted(rows, key=lambda row: table.index[row])
    digests = {table.sha256[row] for row in rows} if table.sha256 is not None else set()
    same_file = table.sha256 is not None and len(digests) < len(rows) and "" not in digests
    inside = {table.name[row] for row in rows}
    within = [
        float(table.similarity[row])
        for row in rows
        if table.similarity is not None
        and table.nearest is not None
        and table.nearest[row] in inside
        and np.isfinite(table.similarity[row])
    ]
    known = table.provenance.get("duplicate groups")
    told = known[group] if isinstance(known, list) and group < len(known) else {}
    return {
        "group": group + 1,
        "size": len(rows),
        "rules": told.get("reasons"),
        "confirmed": confirmed(table.provenance).get(group),
        "same_file": same_file,
        "files": len(digests) if same_file else None,
        # The least similar of the members whose nearest image is in the group.
        "similarity": number(min(within)) if within else None,
        "pixels": None,
        # Of the pair least alike among those that hold the group together.
        "rule_pixels": number(told["pixels"]) if "pixels" in told else None,
        "rule_representation": number(told["representation"]) if "representation" in told else None,
        "members": [_entry(table, row) for row in rows[:MEMBERS]],
    }


def _outliers(table: Table) -> dict[str, Any] | None:
    """The 5 % of images least similar to their nearest image, the least similar first."""
    if table.similarity is None or not np.isfinite(table.similarity).any():
        return None
    known = np.isfinite(table.similarity)
    count = max(1, round(EXTREME * int(known.sum())))
    order = np.argsort(np.where(known, table.similarity, np.inf), kind="stable")
    rows = order[:count].tolist()
    return {
        "total": len(rows),
        "share": EXTREME,
        "rows": rows,
        "shown": [_entry(table, row) for row in rows[:GALLERY]],
    }


def _rows(table: Table, labels: pandas.DataFrame | None) -> dict[str, Any]:
    """All rows by column, in the order of rank; ``columns`` gives each column's title and kind."""
    kinds: list[tuple[str, str, Any]] = [
        ("rank", "number", table.rank.tolist()),
        ("name", "text", table.name),
        ("score", "number", _numbers(table.score)),
        ("percentile", "number", np.round(table.percentile, 1).tolist()),
    ]
    if np.isfinite(table.standard_error).any():
        kinds.insert(3, ("standard_error", "number", _numbers(table.standard_error)))
    for key, values in (("loss", table.loss), ("gradient_norm", table.gradient_norm)):
        if values is not None:
            kinds.append((key, "number", _numbers(values)))
    if table.nearest is not None:
        kinds.append(("nearest", "text", table.nearest))
    if table.similarity is not None:
        kinds.append(("similarity", "number", _numbers(table.similarity)))
    if table.group is not None:
        groups = [group + 1 if group >= 0 else None for group in table.group.tolist()]
        kinds.append(("duplicate_group", "number", groups))
    if labels is not None:
        kinds += [(f"table: {name}", "text", labels[name].tolist()) for name in labels.columns]
    return {
        "columns": [{"key": key, "kind": kind} for key, kind, _ in kinds],
        "values": [values for _, _, values in kinds],
    }


def _skipped(table: Table) -> list[list[str]]:
    data = table.provenance.get("data")
    skipped = data.get("skipped", []) if isinstance(data, dict) else []
    return [[str(part) for part in pair] for pair in skipped]


def _ignored(table: Table) -> dict[str, int]:
    """The number of files that are no images by their names, by extension."""
    data = table.provenance.get("data")
    found = data.get("other files") if isinstance(data, dict) else None
    return found if isinstance(found, dict) else {}


def _rotated(table: Table) -> int:
    data = table.provenance.get("data")
    found = data.get("EXIF rotation not applied") if isinstance(data, dict) else None
    return found if isinstance(found, int) else 0


def number(value: float) -> float | None:
    """Six significant digits; None where it is not finite."""
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _numbers(values: Float64[np.ndarray, " n"]) -> list[float | None]:
    return [number(value) for value in values.tolist()]

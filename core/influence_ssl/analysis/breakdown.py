"""Labels over-represented among the highest scores: shares against base rates, with tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas
from jaxtyping import Float64

from influence_ssl.analysis.shares import fisher_exact, holm, wilson

VALUES = 20
_BINNED = 12


def breakdown(
    labels: pandas.DataFrame, percentile: Float64[np.ndarray, " n"], top: int
) -> dict[str, Any]:
    """For each column and value: base rate, share among the first ``top`` rows, ratio and test.

    ``labels`` are in the order of rank. Images with an empty label are left out of that column.
    ``interval`` is Wilson's 95 % interval of the share among the top, ``p`` the p-value of Fisher's
    exact two-sided test of that share against the base rate, and ``p_holm`` its correction over all
    tests of all columns. Numbers with more than 12 distinct values are cut at their quartiles. Of
    more than 20 texts, the 19 most frequent are kept and the others are merged. A column that names
    almost every image differently is listed in ``left_out``.
    """
    columns: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    for name in labels.columns:
        text = labels[name]
        present = (text != "").to_numpy()
        values, reason = _binned(text[present])
        if values is None:
            left_out.append({"column": str(name), "reason": reason})
            continue
        in_top = np.flatnonzero(present) < top
        columns.append(_column(str(name), values, in_top, percentile[present], len(text)))
    rows = [row for column in columns for row in column["values"]]
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    for row in rows:
        for key in ("base_rate", "share", "ratio", "median_percentile", "p", "p_holm"):
            row[key] = _short(row[key])
        row["interval"] = [_short(end) for end in row["interval"]]
    return {
        "matched": labels.attrs.get("matched", len(labels)),
        "tests": len(rows),
        "columns": columns,
        "left_out": left_out,
    }


def _column(
    name: str,
    values: pandas.Series,
    in_top: np.ndarray,
    percentile: Float64[np.ndarray, " n"],
    images: int,
) -> dict[str, Any]:
    total, drawn = len(values), int(in_top.sum())
    rows = []
    for value in values.cat.categories:
        here = (values == value).to_numpy()
        marked, found = int(here.sum()), int((here & in_top).sum())
        base, share = marked / total, found / drawn if drawn else math.nan
        rows.append(
            {
                "value": str(value),
                "images": marked,
                "base_rate": base,
                "in_top": found,
                "share": share,
                "interval": list(wilson(found, drawn)),
                "ratio": share / base,
                "median_percentile": float(np.median(percentile[here])),
                "p": fisher_exact(found, drawn, marked, total),
            }
        )
    return {
        "column": name,
        "images": total,
        "without": images - total,
        "top": drawn,
        "values": rows,
    }


def _binned(text: pandas.Series) -> tuple[pandas.Series | None, str]:
    """The column as non-empty categories, or None and the reason."""
    distinct = text.nunique()
    if distinct < 2:
        return None, "empty" if distinct == 0 else f"the same for all images: {text.iloc[0]}"
    numeric = pandas.to_numeric(text, errors="coerce")
    if np.isfinite(numeric).all():
        if distinct > _BINNED:
            bins = pandas.qcut(numeric, 4, duplicates="drop").cat.remove_unused_categories()
            if len(bins.cat.categories) < 2:
                return None, f"{text.mode().iloc[0]} for most images"
            cuts = [*bins.cat.categories.left[1:], math.inf]
            lows = [-math.inf, *cuts[:-1]]
            return bins.cat.rename_categories(
                [_range(low, high) for low, high in zip(lows, cuts, strict=True)]
            ), ""
        order = sorted(text.unique(), key=float)
    elif distinct > VALUES:
        if distinct > len(text) / 2:
            return None, f"{distinct} different values in {len(text)} images"
        counts = text.value_counts()
        rest = f"({distinct - VALUES + 1} other values)"
        order = [*sorted(counts.index[: VALUES - 1]), rest]
        text = text.where(text.isin(order), rest)
    else:
        order = sorted(text.unique())
    return text.astype(pandas.CategoricalDtype(order)), ""


def _range(low: float, high: float) -> str:
    if low == -math.inf:
        return f"up to {high:.6g}"
    return f"above {low:.6g}" if high == math.inf else f"above {low:.6g}, up to {high:.6g}"


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None

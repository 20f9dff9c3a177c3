"""The histogram of a report, laid out for its template."""

from __future__ import annotations

import math
from typing import Any

from influence_ssl.report.pages import count as noun

_WIDTH, _HEIGHT = 720, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 708, 14, 268


def chart(distribution: dict[str, Any]) -> dict[str, Any] | None:
    """Bars, ticks and the median in the SVG's own units; None where there is nothing to draw."""
    counts, edges = distribution["counts"], distribution["edges"]
    if not counts:
        return None
    y_ticks = _ticks(0, max(counts))
    ceiling = max(max(counts), y_ticks[-1])

    def x(value: float) -> float:
        return round(_LEFT + (value - edges[0]) / (edges[-1] - edges[0]) * (_RIGHT - _LEFT), 2)

    def y(value: float) -> float:
        return round(_BOTTOM - value / ceiling * (_BOTTOM - _TOP), 2)

    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": _RIGHT,
        "top": _TOP,
        "bottom": _BOTTOM,
        "median": x(distribution["median"]),
        "bars": [
            {
                "x": x(low),
                "y": y(count),
                "width": max(0.5, round(x(high) - x(low) - 1, 2)),
                "height": round(_BOTTOM - y(count), 2),
                "text": f"{noun(count, 'image')} from {low:.4g} to {high:.4g}",
            }
            for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True)
        ],
        "x": [{"at": x(t), "label": f"{t:.6g}"} for t in _ticks(edges[0], edges[-1])],
        "y": [{"at": y(t), "label": f"{t:,.0f}"} for t in y_ticks if t == int(t)],
        "text": f"From {edges[0]:.4g} to {edges[-1]:.4g}, median {distribution['median']:.4g}; the "
        f"highest bar contains {max(counts)} of {noun(sum(counts), 'image')}.",
    }


def _ticks(low: float, high: float) -> list[float]:
    """About six round numbers between low and high."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]

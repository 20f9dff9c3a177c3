"""Agreement of two score files of the same images, and the images that moved most."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from influence_ssl.analysis.ranking import Table, read_scores
from influence_ssl.analysis.reliability import spearman
from influence_ssl.errors import InfluenceValueError, printable

_RESAMPLES = 1000


class Comparison(NamedTuple):
    """Spearman's correlation of the images in both files, its interval, and the largest moves.

    ``moved`` lists (name, percentile in A, percentile in B), the largest difference first.
    Percentiles are taken over the images in both files; the largest magnitude has 100.
    """

    correlation: float
    low: float
    high: float
    images: int
    only_a: int
    only_b: int
    moved: list[tuple[str, float, float]]


def compare(a: Path, b: Path, top: int = 10, seed: int = 0) -> Comparison:
    """Compare two score files by the images' names.

    The interval is the 95 % percentile bootstrap over images (1,000 resamples). Raises
    :class:`InfluenceError` if fewer than three images are in both.
    """
    first, second = _scores(a), _scores(b)
    names = [name for name in first if name in second]
    if len(names) < 3:
        raise InfluenceValueError(
            f"{str(a)!r} and {str(b)!r} have {len(names)} images in common; score the same images, "
            "from the same --data."
        )
    x, y = (np.array([scores[name] for name in names]) for scores in (first, second))
    for scores, path in ((x, a), (y, b)):
        if np.ptp(scores) == 0:
            raise InfluenceValueError(
                f"{str(path)!r}: all common scores are equal, so no ranking exists."
            )
    low, high = _interval(x, y, np.random.default_rng(seed))
    place = [_percentile(-values) for values in (x, y)]
    order = np.argsort(-np.abs(place[0] - place[1]), kind="stable")[:top]
    moved = [(names[i], float(place[0][i]), float(place[1][i])) for i in order]
    return Comparison(
        spearman(x, y), low, high, len(names), len(first) - len(names), len(second) - len(names),
        moved,
    )  # fmt: skip


def show(found: Comparison, a: Path, b: Path) -> str:
    """The comparison as lines of text."""
    lines = [
        f"{found.images} images in both files; only in {a}: {found.only_a}, only in {b}: "
        f"{found.only_b}",
        f"rank correlation (Spearman) {found.correlation:.4f}, 95 % interval "
        f"[{found.low:.4f}, {found.high:.4f}] (bootstrap over images)",
        "moved most (percentile of the magnitude, first -> second file):",
    ]
    lines += [f"  {p:6.1f} -> {q:6.1f}  {printable(name)}" for name, p, q in found.moved]
    return "\n".join(lines)


def _scores(path: Path) -> dict[str, float]:
    table: Table = read_scores(path)
    if len(set(table.name)) < len(table):
        raise InfluenceValueError(f"{str(path)!r} names an image twice; score each image once.")
    return dict(zip(table.name, table.score.tolist(), strict=True))


def _percentile(magnitude: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    ordered = np.sort(magnitude)
    sides = [np.searchsorted(ordered, magnitude, side) for side in ("left", "right")]
    return 50.0 * (sides[0] + sides[1] - 1) / (len(magnitude) - 1)


def _interval(
    x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"], rng: np.random.Generator
) -> tuple[float, float]:
    found = []
    for _ in range(_RESAMPLES):
        rows = rng.integers(0, len(x), len(x))
        found.append(spearman(x[rows], y[rows]))
    low, high = np.nanquantile(found, (0.025, 0.975))
    return float(low), float(high)

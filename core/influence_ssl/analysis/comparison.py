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
    ``replaced`` lists the names in both files that stand for other pictures and are left out.
    """

    correlation: float
    low: float
    high: float
    images: int
    only_a: int
    only_b: int
    moved: list[tuple[str, float, float]]
    replaced: list[str]


class _Row(NamedTuple):
    """The score of an image, and the SHA-256 of its file; empty for none."""

    score: float
    sha256: str


def compare(a: Path, b: Path, top: int = 10, seed: int = 0) -> Comparison:
    """Compare two score files by the images' names.

    Where both files hold an image's SHA-256, it must be the same. The interval is the 95 %
    percentile bootstrap over images (1,000 resamples). Raises :class:`InfluenceError` if fewer than
    three images are in both.
    """
    tables = _table(a), _table(b)
    _refuse_other_data(a, b, *tables)
    first, second = map(_rows, tables)
    common = [name for name in first if name in second]
    gone = {name for name in common if _differ(first[name].sha256, second[name].sha256)}
    replaced = sorted(gone)
    names = [name for name in common if name not in gone]
    if len(names) < 3:
        why = f", because {_stand_for(replaced)} different files (SHA-256)" if replaced else ""
        raise InfluenceValueError(
            f"{str(a)!r} and {str(b)!r} have {len(names)} images in common{why}; score the same "
            "images, from the same --data."
        )
    x, y = (np.array([rows[name].score for name in names]) for rows in (first, second))
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
        spearman(x, y), low, high, len(names), len(first) - len(common), len(second) - len(common),
        moved, replaced,
    )  # fmt: skip


def show(found: Comparison, a: Path, b: Path) -> str:
    """The comparison as lines of text."""
    lines = [
        f"{found.images} images in both files; only in {a}: {found.only_a}, only in {b}: "
        f"{found.only_b}"
    ]
    if found.replaced:
        lines.append(f"note: {_stand_for(found.replaced)} different files (SHA-256); left out")
    lines += [
        f"rank correlation (Spearman) {found.correlation:.4f}, 95 % interval "
        f"[{found.low:.4f}, {found.high:.4f}] (bootstrap over images)",
        "moved most (percentile of the magnitude, first -> second file):",
    ]
    lines += [f"  {p:6.1f} -> {q:6.1f}  {printable(name)}" for name, p, q in found.moved]
    return "\n".join(lines)


def _table(path: Path) -> Table:
    table = read_scores(path)
    if len(set(table.name)) < len(table):
        raise InfluenceValueError(f"{str(path)!r} names an image twice; score each image once.")
    return table


def _rows(table: Table) -> dict[str, _Row]:
    digests = [""] * len(table) if table.sha256 is None else table.sha256
    return dict(zip(table.name, map(_Row, table.score.tolist(), digests), strict=True))


def _differ(a: str, b: str) -> bool:
    # Scores made from Python have no digests; names alone tell their images apart.
    return a != b and "" not in (a, b)


def _stand_for(names: list[str]) -> str:
    first = printable(names[0])
    if len(names) == 1:
        return f"1 name, {first}, stands for"
    return f"{len(names)} names, {first} first, stand for"


def _refuse_other_data(a: Path, b: Path, first: Table, second: Table) -> None:
    """Raise if an ``.npz``, which has no digest per image, is of other files of these names."""
    if first.sha256 is not None and second.sha256 is not None:
        return
    known = [_data(table) for table in (first, second)]
    if None not in known and known[0] != known[1] and _names(first) == _names(second):
        raise InfluenceValueError(
            f"{str(a)!r} and {str(b)!r} name the same images, but not all of them are the same "
            "files; score the same images, or score to .parquet or .csv, which tell them apart."
        )


def _data(table: Table) -> str | None:
    """The digest of the names and files of exactly these rows, if the command recorded it."""
    data = table.provenance.get("data")
    if not isinstance(data, dict) or data.get("images") != len(table):
        return None
    return data.get("sha256")


def _names(table: Table) -> list[str]:
    """In the order of the listing, in which the digest was taken."""
    return [table.name[i] for i in np.argsort(table.index, kind="stable")]


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

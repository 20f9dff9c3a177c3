"""Agreement of two score vectors: correlations with bootstrap intervals, and gaps of estimates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

RESAMPLES = 1000
CONFIDENCE = 0.95
_CHUNK = 50
_Z = 1.959963984540054

Statistic = Callable[..., Float64[np.ndarray, " b"]]


class Estimate(NamedTuple):
    """A number and the ends of its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def spearman(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], seed: int = 0) -> Estimate:
    """Spearman's rank correlation, mid-ranks for ties.

    Percentile bootstrap: images are drawn with replacement :data:`RESAMPLES` times and reranked, so
    the interval covers only the choice of images. NaN if one side is constant.
    """
    return bootstrap(_rank_correlation, Ranked(x), Ranked(y), n=len(x), seed=seed)


def plain_spearman(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation without an interval; NaN if one side is constant."""
    return float(_rank_correlation(np.ones((1, len(x))), Ranked(x), Ranked(y))[0])


def rank_correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Estimate:
    r"""Spearman's correlation with an analytic interval, for vectors too long for the bootstrap.

    :math:`\tanh(\operatorname{artanh} r\pm z_{0.975}\sqrt{(1+r^2/2)/(n-3)})` (Bonett and Wright
    2000, Sample size requirements for estimating Pearson, Kendall and Spearman correlations).
    """
    value = plain_spearman(x, y)
    reach = _Z * np.sqrt((1 + value**2 / 2) / (len(x) - 3))
    low, high = np.tanh(np.arctanh(value) + np.array([-reach, reach]))
    return Estimate(value, float(low), float(high))


def pearson(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], seed: int = 0) -> Estimate:
    """Pearson's correlation with the same interval as :func:`spearman`."""
    return bootstrap(_linear_correlation, x, y, n=len(x), seed=seed)


def linear_correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Estimate:
    r"""Pearson's correlation with an analytic interval that assumes no distribution.

    With x and y standardised, an observation's influence on r is :math:`xy-r(x^2+y^2)/2` (Devlin,
    Gnanadesikan and Kettenring 1975, Robust estimation and outlier detection with correlation
    coefficients). Its deviation over the root of n is the standard error, and the interval is
    symmetric in artanh r. NaN if one side is constant, ±1 without an interval if one is a multiple
    of the other.
    """
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Estimate(np.nan, np.nan, np.nan)
    u, v = ((side - side.mean()) / side.std() for side in (x, y))
    value = float((u * v).mean())
    if 1 - abs(value) < 1e-12:  # artanh 1 is infinite
        return Estimate(*[float(np.sign(value))] * 3)
    error = (u * v - value * (u**2 + v**2) / 2).std() / np.sqrt(len(u))
    reach = _Z * error / (1 - value**2)
    low, high = np.tanh(np.arctanh(value) + np.array([-reach, reach]))
    return Estimate(value, float(low), float(high))


def mean(x: Float[np.ndarray, " n"], seed: int = 0) -> Estimate:
    """The mean with the same interval; of a paired difference, for instance."""
    return bootstrap(lambda weights, v: weights @ v / weights.sum(1), x, n=len(x), seed=seed)


def difference(
    one: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]],
    other: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]],
    seed: int = 0,
) -> Estimate:
    """Spearman's correlation of the first pair minus that of the second, on the same images."""

    def between(weights: np.ndarray, *columns: Ranked) -> np.ndarray:
        a, b, c, d = (column.ranks(weights) for column in columns)
        return _correlation(weights, a, b) - _correlation(weights, c, d)

    ranked = (Ranked(column) for column in (*one, *other))
    return bootstrap(between, *ranked, n=len(one[0]), seed=seed)


def overlap(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], seed: int = 0) -> Estimate:
    r"""Shared area of two distributions, :math:`\sum_k \min(p_k, q_k)`, paired like the others.

    The ten bins have equal shares of the pooled values; with more bins, their noise would count as
    a difference.
    """
    edges = np.quantile(np.concatenate([x, y]), np.linspace(0, 1, 11)[1:-1])
    places = [np.eye(10)[np.searchsorted(edges, v)] for v in (x, y)]

    def shared(weights: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.minimum(weights @ a, weights @ b).sum(1) / weights.sum(1)

    return bootstrap(shared, *places, n=len(x), seed=seed)


def partial_spearman(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    *given: Float[np.ndarray, " n"],
    seed: int = 0,
) -> Estimate:
    r"""Spearman's partial correlation of x and y given other vectors.

    :math:`-P_{xy}/\sqrt{P_{xx}P_{yy}}` with P the inverse of the matrix of rank correlations.
    """

    def remaining(weights: np.ndarray, *columns: Ranked) -> np.ndarray:
        ranks = [column.ranks(weights) for column in columns]
        rows = [np.stack([_correlation(weights, a, b) for b in ranks], 1) for a in ranks]
        inverse = np.linalg.inv(np.stack(rows, 1))
        return -inverse[:, 0, 1] / np.sqrt(inverse[:, 0, 0] * inverse[:, 1, 1])

    return bootstrap(remaining, *(Ranked(v) for v in (x, y, *given)), n=len(x), seed=seed)


def bootstrap(
    statistic: Statistic,
    *columns: object,
    n: int,
    seed: int = 0,
) -> Estimate:
    """``statistic(weights, *columns)`` of n images, with its percentile interval.

    ``weights`` (B, n) counts how often each image was drawn; the statistic returns (B,).
    """
    rng = np.random.default_rng(seed)
    value = float(statistic(np.ones((1, n)), *columns)[0])
    draws = (
        rng.multinomial(n, np.full(n, 1 / n), _CHUNK).astype(np.float64)
        for _ in range(RESAMPLES // _CHUNK)
    )
    parts = [statistic(drawn, *columns) for drawn in draws]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(parts), [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def around(value: float, error: float) -> Estimate:
    """``value`` with the 95 % interval of a normal error."""
    return Estimate(value, float(value - _Z * error), float(value + _Z * error))


def gap(a: Estimate, b: Estimate) -> Estimate:
    """a − b, of independent estimates whose intervals are symmetric."""
    return around(a.value - b.value, float(np.hypot(_error(a), _error(b))))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates of similar quantities."""
    errors = np.array([_error(found) for found in estimates])
    center = float(np.mean([found.value for found in estimates]))
    return around(center, float(np.sqrt((errors**2).sum()) / len(errors)))


def _error(found: Estimate) -> float:
    return (found.high - found.low) / (2 * _Z)


def rounded(found: Any) -> Any:
    """A tree of dictionaries and estimates in the form of a record: lists of four-digit numbers."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    return [round(number, 4) for number in found]


class Ranked:
    """A sorted vector with its groups of equal values, prepared for reranking."""

    def __init__(self, values: Float[np.ndarray, " n"]) -> None:
        self.order: Int64[np.ndarray, " n"] = np.argsort(values, kind="stable")
        ascending = np.asarray(values)[self.order]
        first = np.r_[True, ascending[1:] != ascending[:-1]]
        self.starts = np.flatnonzero(first)
        self.group: Int64[np.ndarray, " n"] = np.empty(len(values), np.int64)
        self.group[self.order] = np.cumsum(first) - 1

    def ranks(self, weights: Float64[np.ndarray, "b n"]) -> Float64[np.ndarray, "b n"]:
        """Mid-ranks (up to a constant) in the sample with image i ``weights[:, i]`` times."""
        size = np.add.reduceat(weights[:, self.order], self.starts, axis=1)
        return (np.cumsum(size, axis=1) - size / 2)[:, self.group]


def _rank_correlation(weights: np.ndarray, x: Ranked, y: Ranked) -> Float64[np.ndarray, " b"]:
    return _correlation(weights, x.ranks(weights), y.ranks(weights))


def _linear_correlation(
    weights: np.ndarray, x: np.ndarray, y: np.ndarray
) -> Float64[np.ndarray, " b"]:
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # rounding in the mean would leave a variance
        return np.full(len(weights), np.nan)
    return _correlation(weights, np.asarray(x)[None], np.asarray(y)[None])


def _correlation(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> Float64[np.ndarray, " b"]:
    total = weights.sum(1, keepdims=True)
    x = x - (weights * x).sum(1, keepdims=True) / total
    y = y - (weights * y).sum(1, keepdims=True) / total
    covariance, xx, yy = ((weights * p).sum(1) for p in (x * y, x * x, y * y))
    with np.errstate(invalid="ignore"):
        return covariance / np.sqrt(xx * yy)

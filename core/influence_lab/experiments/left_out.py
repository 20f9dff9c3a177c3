r"""The effect of leaving an image out, from training runs on random halves, and its prediction.

Feldman and Zhang (2020), What neural networks memorize and why, Equation 1, for a loss:

.. math:: m_i = \mathrm{mean}\{L_i(t) : i \notin S_t\} - \mathrm{mean}\{L_i(t) : i \in S_t\}

over training runs t with images :math:`S_t`. The estimate varies with the runs. Its reliability is
the rank correlation between two estimates from disjoint halves of the runs, extrapolated to all
runs with the Spearman-Brown formula. A correlation with the estimate is
:math:`\sqrt{\text{reliability}}` times the correlation with the estimate from infinitely many runs
(Spearman 1904, The proof and measurement of association between two things), so it is divided by
that root. The correction is exact for Pearson's correlation with independent errors and an
approximation for ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.stats import rankdata

from influence_lab.measures.agreement import CONFIDENCE, RESAMPLES, Estimate
from influence_ssl.analysis.reliability import spearman_brown
from influence_ssl.errors import InfluenceValueError

SPLITS = 100
_Z, _POWER = 1.959963984540054, 0.8416212335729143  # two-sided 5 %, and a power of 80 %
_RANKS = 1.06  # variance of the z-transform of a rank correlation, times n - 3 (Fieller 1957)


def memorisation(
    values: Float[np.ndarray, "t n"],
    inside: Bool[np.ndarray, "t n"],
    weights: Float[np.ndarray, "b t"],
) -> Float64[np.ndarray, "b n"]:
    """m_i of each image, with training run t counted ``weights[:, t]`` times.

    ``values`` is the loss of image i in run t, and ``inside`` tells whether t saw i. NaN for an
    image that all counted runs saw, or none.
    """
    means = []
    for member in (~inside, inside):
        with np.errstate(invalid="ignore"):
            means.append(weights @ (member * values) / (weights @ member.astype(np.float64)))
    return means[0] - means[1]


def rank_correlation(
    x: Float[np.ndarray, "b n"], y: Float[np.ndarray, "b n"]
) -> Float64[np.ndarray, " b"]:
    """Spearman's correlation row by row, mid-ranks for ties; NaN where a row is constant or NaN."""
    return (_ranked(x) * _ranked(y)).sum(1)


def _ranked(x: Float[np.ndarray, "b n"]) -> Float64[np.ndarray, "b n"]:
    """Each row's ranks, centred and of unit length."""
    ranks = rankdata(x, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return ranks / np.linalg.norm(ranks, axis=1, keepdims=True)


def reliability(
    values: Float[np.ndarray, "t n"], inside: Bool[np.ndarray, "t n"], seed: int = 0
) -> float:
    """Reliability of the estimate from all runs, averaged over :data:`SPLITS` random halvings."""
    rng = np.random.default_rng(seed)
    first = _splits(rng, SPLITS, len(values))
    one, other = (memorisation(values, inside, part) for part in (first, 1 - first))
    return spearman_brown(float(np.nanmean(rank_correlation(one, other))), 2)


def _splits(rng: np.random.Generator, b: int, t: int) -> Float64[np.ndarray, "b t"]:
    half = np.zeros(t)
    half[: t // 2] = 1
    return rng.permuted(np.tile(half, (b, 1)), axis=1)


def detectable(n: int, reliability: float) -> float:
    r"""Smallest detectable rank correlation with the truth: n images, two-sided 5 %, power 80 %.

    :math:`\tanh\big((z_{0.975} + z_{0.8})\sqrt{1.06/(n-3)}\big)` is detectable with the estimate;
    the correlation with the truth is larger by :math:`1/\sqrt{\text{reliability}}`. NaN if the
    reliability is not positive, because no correlation is detectable then.
    """
    if reliability <= 0:
        return math.nan
    return math.tanh((_Z + _POWER) * math.sqrt(_RANKS / (n - 3))) / math.sqrt(reliability)


class Sampled:
    """A number, and its values in resamples of runs and images; differences stay paired."""

    def __init__(self, value: float, samples: Float[np.ndarray, " b"]) -> None:
        self.value, self.samples = value, samples

    def __sub__(self, other: Sampled) -> Sampled:
        return Sampled(self.value - other.value, self.samples - other.samples)

    @property
    def estimate(self) -> Estimate:
        """With the percentile interval; all NaN if more than 2.5 % of the samples are NaN.

        A corrected correlation is then unknown, because the reliability may be 0.
        """
        tail = (1 - CONFIDENCE) / 2
        if np.isnan(self.samples).mean() > tail:
            return Estimate(math.nan, math.nan, math.nan)
        low, high = (float(q) for q in np.nanquantile(self.samples, [tail, 1 - tail]))
        return Estimate(self.value, low, high)


@dataclass(frozen=True)
class LeftOut:
    """One quantity of all runs: estimate, reliability, and correlations with other numbers.

    ``values``, ``inside``: as in :func:`memorisation`. Intervals resample runs and, independently,
    images :data:`RESAMPLES` times. The runs of a resample are split in two before they are counted,
    so that none is in both halves. The resample's correlation is corrected by its own reliability,
    because an estimate from resampled runs has twice the error, in both. If the reliability is far
    below 1, the intervals are therefore wider than necessary.
    """

    values: Float[np.ndarray, "t n"]
    inside: Bool[np.ndarray, "t n"]
    seed: int = 0

    def __post_init__(self) -> None:
        t = len(self.inside)
        seen = self.inside.sum(0)
        if (lacking := np.flatnonzero((seen == 0) | (seen == t))).size:
            raise InfluenceValueError(
                f"image {lacking[0]}: all or none of {t} training runs saw it; add training runs"
            )

    @cached_property
    def estimate(self) -> Float64[np.ndarray, " n"]:
        """m_i from all runs."""
        return memorisation(self.values, self.inside, np.ones((1, len(self.values))))[0]

    @cached_property
    def reliability(self) -> float:
        """The reliability of :attr:`estimate`."""
        return reliability(self.values, self.inside, self.seed)

    @cached_property
    def _images(self) -> Int64[np.ndarray, "b n"]:
        n = self.values.shape[1]
        return np.random.default_rng([self.seed, 0]).integers(0, n, (RESAMPLES, n))

    @cached_property
    def _resampled(self) -> tuple[Float64[np.ndarray, "b n"], Float64[np.ndarray, " b"]]:
        """The resamples' estimates, drawn images and reliabilities."""
        rng = np.random.default_rng([self.seed, 1])
        t = len(self.values)
        counts = rng.multinomial(t, np.full(t, 1 / t), RESAMPLES).astype(np.float64)
        first = _splits(rng, RESAMPLES, t)
        whole, one, other = (
            np.take_along_axis(memorisation(self.values, self.inside, w), self._images, 1)
            for w in (counts, counts * first, counts * (1 - first))
        )
        half = rank_correlation(one, other)
        return whole, 2 * half / (1 + half)

    @cached_property
    def _resampled_ranks(self) -> Float64[np.ndarray, "b n"]:
        return _ranked(self._resampled[0])

    def mean(self) -> Sampled:
        """The mean of m_i over the images."""
        return Sampled(float(self.estimate.mean()), self._resampled[0].mean(1))

    def reliable(self) -> Sampled:
        """:attr:`reliability`; resamples have a lower one, because they contain fewer runs."""
        return Sampled(self.reliability, self._resampled[1])

    def correlation(self, numbers: Float[np.ndarray, "g n"]) -> Sampled:
        """The corrected rank correlation with each row of ``numbers``, on average over the rows."""
        rows = np.asarray(numbers, np.float64)
        images, whole, reliable = self._images, self._resampled_ranks, self._resampled[1]
        value = np.mean([rank_correlation(row[None], self.estimate[None])[0] for row in rows])
        samples = np.mean([(_ranked(row[images]) * whole).sum(1) for row in rows], axis=0)
        return Sampled(
            float(value) / _root(np.array(self.reliability)).item(), samples / _root(reliable)
        )

    def partial(self, number: Float[np.ndarray, " n"], given: Float[np.ndarray, " n"]) -> Sampled:
        r"""Corrected partial rank correlation of ``number`` with the truth, ``given`` another.

        :math:`(r_{xm} - r_{xg} r_{gm})/\sqrt{(1 - r_{xg}^2)(1 - r_{gm}^2)}`, :math:`r_{xm}` and
        :math:`r_{gm}` corrected. NaN where one of them reaches 1.
        """
        x, g = self.correlation(number[None]), self.correlation(given[None])
        between = rank_correlation(number[None], given[None])[0]
        samples = rank_correlation(number[self._images], given[self._images])
        return Sampled(
            _remaining(np.array(x.value), np.array(g.value), between).item(),
            _remaining(x.samples, g.samples, samples),
        )


def _root(reliable: np.ndarray) -> np.ndarray:
    return np.sqrt(np.where(reliable > 0, reliable, np.nan))


def _remaining(x: np.ndarray, g: np.ndarray, between: np.ndarray) -> np.ndarray:
    left = (1 - between**2) * (1 - g**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x - between * g) / np.sqrt(np.where(left > 0, left, np.nan))

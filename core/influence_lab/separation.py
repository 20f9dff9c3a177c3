"""How well two samples stand apart: AUROC with DeLong's interval, and gaps of estimates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64
from scipy.stats import rankdata

from .agreement import Estimate

_Z = 1.959963984540054


def delong(
    inside: Float[np.ndarray, " m"],
    outside: Float[np.ndarray, " n"],
    group: Int64[np.ndarray, " m"] | None = None,
) -> Estimate:
    r"""AUROC, the chance that a value of ``inside`` exceeds one of ``outside``; ties count half.

    With ranks r among both samples and s among its own,
    :math:`V_i = (r_i - s_i) / n` for i inside and likewise outside, AUROC = mean V, and
    :math:`\mathrm{var} = \mathrm{var}(V^{in})/m + \mathrm{var}(V^{out})/n` (DeLong, DeLong and
    Clarke-Pearson 1988). With ``group``, values of one group (the members of a pair) are one piece
    of evidence: the first variance is that of the groups' sums (Obuchowski 1997). 95 % interval,
    cut to [0, 1]; NaN where a sample has fewer than 2 values. Time: (m + n) log(m + n).
    """
    m, n = len(inside), len(outside)
    if min(m, n) < 2:
        return Estimate(float("nan"), float("nan"), float("nan"))
    ranks = rankdata(np.concatenate([inside, outside]))
    within = (ranks[:m] - rankdata(inside)) / n
    without = 1 - (ranks[m:] - rankdata(outside)) / m
    value = float(within.mean())
    _, member = np.unique(np.arange(m) if group is None else group, return_inverse=True)
    sums = np.bincount(member, within - value)
    several = len(sums) / max(1, len(sums) - 1)
    error = np.sqrt(several * (sums**2).sum() / m**2 + without.var(ddof=1) / n)
    found = around(value, float(error))
    return Estimate(value, max(0.0, found.low), min(1.0, found.high))


def around(value: float, error: float) -> Estimate:
    """``value`` with the 95 % interval of a normal error."""
    return Estimate(value, float(value - _Z * error), float(value + _Z * error))


def gap(a: Estimate, b: Estimate) -> Estimate:
    """a − b, of independent estimates whose intervals are symmetric."""
    return around(a.value - b.value, float(np.hypot(_error(a), _error(b))))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates of like quantities."""
    errors = np.array([_error(found) for found in estimates])
    mean = float(np.mean([found.value for found in estimates]))
    return around(mean, float(np.sqrt((errors**2).sum()) / len(errors)))


def _error(found: Estimate) -> float:
    return (found.high - found.low) / (2 * _Z)

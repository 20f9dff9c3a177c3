r"""What removal does to the removed images themselves, by the losses that each run measures.

Random removal is a randomised trial: which images a run leaves out depends on its seed alone. For a
group of images, such as a decile of the score, the effect m of being left out is fitted to the
logarithms of the losses by least squares,

.. math:: \log L_{it} = a_i + b_t + m\,[i \notin S_t]

over the runs t whose images :math:`S_t` were drawn at random, or are all images. :math:`a_i` takes
up how hard image i is, and :math:`b_t` how good run t's encoder is, so that m compares left-out
with trained-on images alone. Being left out multiplies the loss by
:math:`e^m`. Intervals resample images.

Removal of the highest or the lowest leaves out a whole group at once. Its effect is a difference of
differences, among the images that the run of the same seed kept when it removed as many at random:
the change of the mean log loss from that run to this one, for the removed images minus for the kept
ones. How good the two encoders are thus does not count. Intervals are Student's over seeds.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from influence_lab.experiments.distributions import LABELS
from influence_lab.experiments.removal import (
    NOTHING,
    ORDERS,
    PLANS,
    Plan,
    Training,
    kept,
    name_of,
    with_labels,
)
from influence_lab.experiments.removal_effects import Estimate as OverSeeds
from influence_lab.experiments.removal_effects import t_interval
from influence_lab.experiments.removal_losses import LOSSES, PoolLosses
from influence_lab.measures.agreement import CONFIDENCE, RESAMPLES, Estimate
from influence_lab.records import results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECILES = 10


class Panel(NamedTuple):
    """A method's runs: log losses (t, p) of the pool, who was left out, and the scores (p,)."""

    runs: list[Training]
    log_loss: Float64[np.ndarray, "t p"]
    out: Bool[np.ndarray, "t p"]
    magnitude: Float64[np.ndarray, " p"]

    def only(self, *orders: str) -> Panel:
        """The runs of these orders."""
        rows = [i for i, run in enumerate(self.runs) if run.order in orders]
        return Panel(
            [self.runs[i] for i in rows], self.log_loss[rows], self.out[rows], self.magnitude
        )


def losses_of(profile: str, root: Path | None = None) -> PoolLosses:
    """The recorded losses of a profile; without rows if there are none."""
    folder = (root or results.results_root()) / profile
    return PoolLosses(folder / "removal-losses.npz")


def panel(
    losses: PoolLosses, plan: Plan, scores: results.RecordedScores, method: str, loss: str
) -> Panel:
    """The measured runs of ``method``; ``loss`` is a key of :data:`LOSSES`."""
    pool = plan.indices(len(scores))
    runs = [
        run
        for run in plan.trainings()
        if run.method == method and loss in losses.rows.get(name_of(run), {})
    ]
    values = np.array([losses.rows[name_of(run)][loss] for run in runs], np.float64)
    out = np.array([~np.isin(pool, kept(run, scores, pool)) for run in runs], bool)
    shape = (len(runs), len(pool))
    return Panel(runs, np.log(values).reshape(shape), out.reshape(shape), scores.magnitude[pool])


def left_out_effect(
    log_loss: Float[np.ndarray, "t p"],
    out: Bool[np.ndarray, "t p"],
    weights: Float[np.ndarray, "b p"] | None = None,
) -> Float64[np.ndarray, " b"]:
    """m of the model above, with image i counted ``weights[:, i]`` times; NaN if none was left out.

    Within a run and an image, the least-squares solution for balanced data removes the means of
    both; by the Frisch-Waugh-Lovell theorem m is then the slope of a regression on what remains.
    """
    t, p = out.shape
    counts = np.ones((1, p)) if weights is None else weights
    share = counts / counts.sum(1, keepdims=True)
    y = log_loss - log_loss.mean(0)
    d = out - out.mean(0)
    # Weighted means over images, b x t each; means over runs are 0 already.
    yd, dd = ((a * d).sum(0) for a in (y, d))
    y_run, d_run = share @ y.T, share @ d.T
    above = share @ yd - (y_run * d_run).sum(1)
    below = share @ dd - (d_run**2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 1e-12 * t, above / below, np.nan)


def estimated(
    log_loss: Float[np.ndarray, "t p"], out: Bool[np.ndarray, "t p"], seed: int = 0
) -> Estimate:
    """:func:`left_out_effect` and its percentile interval over images."""
    samples = left_out_effect(log_loss, out, _resampled(log_loss.shape[1], seed))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Estimate(float(left_out_effect(log_loss, out)[0]), float(low), float(high))


@cache
def _resampled(p: int, seed: int) -> Float64[np.ndarray, "b p"]:
    """How often each image is drawn, alike for every loss: drawing takes most of the time."""
    counts = np.random.default_rng(seed).multinomial(p, np.full(p, 1 / p), RESAMPLES)
    return counts.astype(np.float64)


def deciles(magnitude: Float64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
    """Each image's decile of the score: 0 has the lowest magnitudes, 9 the highest."""
    rank = np.argsort(np.argsort(magnitude, kind="stable"), kind="stable")
    return rank * DECILES // len(rank)


def by_decile(whole: Panel) -> list[Estimate] | None:
    """The effect of being left out at random, by decile; ``None`` if no run left any out."""
    trial = whole.only(NOTHING, "random")
    if len(trial.runs) < 2 or not trial.out.any():
        return None
    decile = deciles(trial.magnitude)
    return [
        estimated(trial.log_loss[:, decile == d], trial.out[:, decile == d]) for d in range(DECILES)
    ]


def in_absolute_terms(
    profile: str, method: str, loss: str, root: Path | None = None
) -> list[Estimate] | None:
    """:func:`by_decile` for the losses themselves, L = a + b + m, instead of their logarithms.

    This is the change that self-influence predicts, -I / n.
    """
    scores = results.load_scores(profile, method, 0, "train", root, labels=with_labels(method))
    if scores is None:
        return None
    whole = panel(losses_of(profile, root), PLANS[profile], scores, method, loss)
    return by_decile(whole._replace(log_loss=np.exp(whole.log_loss)))


def at_random(whole: Panel) -> Estimate | None:
    """The effect of being left out at random, all images together."""
    trial = whole.only(NOTHING, "random")
    if len(trial.runs) < 2 or not trial.out.any():
        return None
    return estimated(trial.log_loss, trial.out)


def as_a_group(whole: Panel, order: str, amount: int) -> Float64[np.ndarray, " s"]:
    """The rise of the removed images' mean log loss beyond that of kept ones, per seed.

    The rise is that over random removal of as many; images that it removed do not count.
    """
    rises = []
    place = {run: i for i, run in enumerate(whole.runs)}
    for run, i in place.items():
        control = place.get(run._replace(order="random"))
        if run.order != order or run.amount != amount or control is None:
            continue
        out, seen = whole.out[i], ~whole.out[control]
        change = whole.log_loss[i] - whole.log_loss[control]
        rises.append(change[out & seen].mean() - change[~out & seen].mean())
    return np.array(rises)


class Found(NamedTuple):
    """What was found for a method and a loss; ``groups``: (order, amount) → an interval."""

    method: str
    loss: str
    trial: Estimate
    deciles: list[Estimate]
    groups: dict[tuple[str, int], OverSeeds]

    @property
    def spread(self) -> float:
        """The highest decile's effect minus the lowest's."""
        return self.deciles[-1].value - self.deciles[0].value


def findings(profile: str, root: Path | None = None) -> list[Found]:
    """For every method and loss with measured runs, in the order of the methods."""
    losses, plan, found = losses_of(profile, root), PLANS[profile], []
    for method in LABELS:
        scores = results.load_scores(profile, method, 0, "train", root, labels=with_labels(method))
        for loss in LOSSES if scores is not None else ():
            assert scores is not None
            whole = panel(losses, plan, scores, method, loss)
            trial, parts = at_random(whole), by_decile(whole)
            if trial is None or parts is None:
                continue
            groups = {
                (order, amount): t_interval(rises)
                for order in ORDERS[:2]
                for amount in plan.amounts
                if len(rises := as_a_group(whole, order, amount))
            }
            found.append(Found(method, loss, trial, parts, groups))
    return found


def draw(found: list[Found]) -> Figure:
    """The effect of being left out by decile of the score, a panel for each method.

    Points are the randomised trial's, with 95 % intervals over images.
    """
    import matplotlib.pyplot as plt

    from influence_lab.figures import COLORS, WIDTH

    looks = {
        "noise": ("o-", "highest"), "alignment": ("s--", "lowest"), "label": ("^:", "black"),
    }  # fmt: skip
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, 5.4), sharex=True, sharey=True)
    for axis, (method, label) in zip(axes.flat, LABELS.items(), strict=True):
        axis.set_title(label)
        axis.axhline(0, color=COLORS["black"], linewidth=1)
        for i, one in enumerate(one for one in found if one.method == method):
            look, color = looks[one.loss]
            value, low, high = 100 * np.expm1(np.array(one.deciles)).T
            axis.errorbar(
                np.arange(1, DECILES + 1) + 0.15 * (i - 1), value, [value - low, high - value],
                fmt=look, color=COLORS[color], capsize=2, label=LOSSES[one.loss],
            )  # fmt: skip
    names: dict[str, Any] = {}
    for axis in axes.flat:
        names |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(names.values(), names.keys(), loc="outside upper center", ncols=3)
    figure.supxlabel("decile of the score, 1 the lowest", fontsize=12)
    figure.supylabel("rise of the loss when left out, %", fontsize=12)
    return figure

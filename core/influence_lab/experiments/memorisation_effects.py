"""Results of training on random halves: memorisation, its reliability, and its predictors.

The power is computed first: the smallest correlation detectable with this number of images and this
reliability. A number is compared for one encoder and averaged over several, with its partial
correlation given the loss, and with its gap to the loss's correlation. *The* loss of a quantity is
the same quantity for the encoders trained on all images, which needs only forward passes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from influence_lab.experiments.claims import Reading, above, reading
from influence_lab.experiments.left_out import (
    LeftOut,
    Sampled,
    detectable,
    rank_correlation,
    reliability,
)
from influence_lab.experiments.memorisation import (
    QUANTITIES,
    RECORDS,
    REGIMES,
    Study,
    carry_out,
    plan_of,
)
from influence_lab.experiments.predictors import Predictors, Rows
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import Estimate
from influence_lab.records import results

SIZES = (1, 4, 16)
SCORE = "noise score, LoGra"
DIGITS = 5
WORDS = {"digits": "digits", "cifar10": "CIFAR-10"}
LINKS = {
    "digits": "experiments/memorisation.html#fig-memorisation",
    "cifar10": "experiments/memorisation.html#fig-memorisation-photographs",
}
# Two views that the encoder is to align, and the score of the same two views.
ALIGNED = {"noise loss": SCORE, "alignment loss": "alignment score, LoGra"}


def averaged(rows: Rows, size: int) -> Rows:
    """The means of disjoint groups of ``size`` encoders; all rows if there is only one."""
    groups = max(1, len(rows) // size)
    return np.stack([part.mean(0) for part in np.array_split(rows[: groups * size], groups)])


def measure(study: Study, numbers: dict[str, dict[str, Rows]]) -> dict[str, Any]:
    """The record without provenance, from the training runs and the predictors' ``numbers``."""
    n, regimes = study.plan.pool, study.recorded
    truth: dict[str, dict[str, LeftOut]] = {}
    for regime in regimes:
        values, inside = study.trainings.values[regime].astype(np.float64), study.inside(regime)
        truth[regime] = {
            quantity: LeftOut(values[:, row, :n], inside, study.task.seed)
            for row, quantity in enumerate(QUANTITIES)
        }
    sizes = [size for size in SIZES if size <= study.plan.references]
    found: dict[str, Any] = {
        "images": n,
        "trainings": {regime: len(study.trainings.values[regime]) for regime in regimes},
        "power": {r: {q: _power(found, n) for q, found in truth[r].items()} for r in regimes},
        "memorisation": {r: {q: _size(found) for q, found in truth[r].items()} for r in regimes},
        "predictors": {
            r: {q: _compared(q, found, numbers[r], sizes) for q, found in truth[r].items()}
            for r in regimes
        },
        "agreement of two encoders": {
            r: {name: _agreement(rows) for name, rows in numbers[r].items() if len(rows) > 1}
            for r in regimes
        },
    }
    if regimes == list(REGIMES):
        found["score, difference of regimes"] = _regimes(truth, numbers, sizes[-1])
    return found


def _power(found: LeftOut, n: int) -> dict[str, Any]:
    """Reliability, the detectable correlation, and the reliability for mismatched halves."""
    mismatched = np.roll(found.inside, 1, axis=0)
    return {
        "reliability": _number(found.reliability),
        "detectable": _number(detectable(n, found.reliability)),
        "reliability, halves of other trainings": _number(
            reliability(found.values, mismatched, found.seed)
        ),
    }


def _size(found: LeftOut) -> dict[str, Any]:
    inside = found.inside
    return {
        "with": round(float(found.values[inside].mean()), DIGITS),
        "without": round(float(found.values[~inside].mean()), DIGITS),
        "mean": _numbers(found.mean()),
        "deviation over images": round(
            float(found.estimate.std(ddof=1) * np.sqrt(max(found.reliability, 0))), DIGITS
        ),
    }


def _compared(
    quantity: str, found: LeftOut, numbers: dict[str, Rows], sizes: list[int]
) -> dict[str, dict[str, list[float | None]]]:
    """Corrected correlations of every number with one quantity's memorisation."""
    largest = sizes[-1]
    loss = averaged(numbers[quantity], largest)
    plain = found.correlation(loss)
    rows: dict[str, dict[str, list[float | None]]] = {}
    for name, values in numbers.items():
        every = {str(m): found.correlation(averaged(values, m)) for m in sizes if len(values) >= m}
        last = list(every.values())[-1]
        rows[name] = {m: _numbers(one) for m, one in every.items()}
        if name != quantity:
            one = averaged(values, largest)[0]
            rows[name]["given the loss"] = _numbers(found.partial(one, loss[0]))
            rows[name]["minus the loss"] = _numbers(last - plain)
    return rows


def _agreement(rows: Rows) -> float:
    """The mean rank correlation between two encoders' numbers, over all pairs."""
    one, other = np.triu_indices(len(rows), 1)
    return round(float(rank_correlation(rows[one], rows[other]).mean()), DIGITS)


def _regimes(
    truth: dict[str, dict[str, LeftOut]], numbers: dict[str, dict[str, Rows]], size: int
) -> dict[str, list[float | None]]:
    """The increase in the score's correlation due to noise among the augmentations."""
    without, among = REGIMES
    return {
        quantity: _numbers(
            truth[among][quantity].correlation(averaged(numbers[among][SCORE], size))
            - truth[without][quantity].correlation(averaged(numbers[without][SCORE], size))
        )
        for quantity in QUANTITIES
    }


def _numbers(found: Sampled) -> list[float | None]:
    return [_number(number) for number in found.estimate]


def _number(number: float) -> float | None:
    """The rounded number; unknown values are null in the record."""
    return round(number, DIGITS) if math.isfinite(number) else None


def known(numbers: list[float | None]) -> Estimate:
    """A recorded estimate; NaN if it is not known."""
    return Estimate(*(math.nan if number is None else number for number in numbers))


def at_most(rows: dict[str, list[float | None]]) -> Estimate:
    """A number's recorded correlation at the largest number of encoders."""
    return known([found for size, found in rows.items() if size.isdecimal()][-1])


def claims(root: Path | None = None) -> list[Reading]:
    """Section 3: the score says what an image's exclusion does to the alignment of its views.

    CIFAR-10 tests the sentence; digits stand in for it.
    """
    return [
        one
        for data, prefix in (("cifar10", "exclusion-cifar"), ("digits", "exclusion"))
        for one in _readings(data, prefix, root)
    ]


def _readings(data: str, prefix: str, root: Path | None) -> list[Reading]:
    profile, found = results.largest_record(RECORDS[data], root) or ("", {})
    regime = next(iter(REGIMES))
    rows = []
    for loss, score in ALIGNED.items():
        kind = loss.removesuffix(" loss")
        numbers = found["predictors"][regime][loss][score] if found else {}
        for name, words, estimate in (
            ("", "", at_most(numbers) if numbers else None),
            (
                "-given-loss",
                ", given the loss",
                known(numbers["given the loss"]) if numbers else None,
            ),
        ):
            rows.append(
                reading(
                    f"{prefix}-{kind}{name}",
                    f"{WORDS[data]}: rank correlation of the {kind} score, a mean over encoders, "
                    f"with what training without the image changes of its {loss}{words}; corrected "
                    "for the reliability of that change, so that an interval may exceed 1",
                    "> 0", estimate, above(0.0), LINKS[data],
                    found["provenance"]["data"] if found else "",
                    "small encoders, many training runs",
                    profile, encoders=int(max(filter(str.isdecimal, numbers), key=int, default=0)),
                    stand_in=data == "digits",
                )
            )  # fmt: skip
    return rows


def record(study: Study) -> dict[str, Any]:
    """:func:`measure` of everything recorded so far, written beside the training runs.

    Missing numbers of the predictors are computed first.
    """
    task, seconds = study.task, study.trainings.seconds
    predictors = Predictors(study)
    predictors.complete()
    devices = dict.fromkeys([*study.trainings.devices, *predictors.devices])
    found = measure(study, predictors.rows) | {
        "wall seconds per training": {
            regime: round(seconds[regime] / len(values), 2)
            for regime, values in study.trainings.values.items()
            if len(values)
        },
        "trainings made by": study.trainings.code,
        "provenance": results.provenance(
            task.command, task.profile, task.seed,
            study.pool.title, study.pool.digest, "; ".join(devices), sum(seconds.values()),
        ),
    }  # fmt: skip
    results.save_json(study.folder / f"{study.name}.json", found)
    return found


def line(found: dict[str, Any]) -> str:
    """The finding in one line, for the terminal."""
    parts = []
    for regime, quantities in found["predictors"].items():
        rows = quantities["noise loss"]
        score, loss = (at_most(rows[name]) for name in (SCORE, "noise loss"))
        parts.append(f"{regime}: score {score}, loss {loss}")
    return "rank correlation with the memorisation of the noise loss, " + "; ".join(parts)


def draw(found: dict[str, Any]) -> Any:
    """Corrected correlations of all numbers, one panel per regime and one marker per quantity."""
    import matplotlib.pyplot as plt

    from influence_lab.figures import COLORS, WIDTH

    regimes = found["predictors"]
    names = list(next(iter(next(iter(regimes.values())).values())))
    figure, (axes,) = plt.subplots(
        1, len(regimes), figsize=(WIDTH, 0.42 * len(names) + 1.6), sharey=True, sharex=True,
        squeeze=False,
    )  # fmt: skip
    looks = list(
        zip(QUANTITIES, ("blue", "vermilion", "green"), "os^", (-0.2, 0, 0.2), strict=True)
    )
    for axis, (regime, quantities) in zip(axes, regimes.items(), strict=True):
        axis.axvline(0, color=COLORS["grey"], linestyle=":", linewidth=1.2)
        for quantity, color, marker, shift in looks:
            value, low, high = np.array([at_most(v) for v in quantities[quantity].values()]).T
            axis.errorbar(
                value, np.arange(len(names)) + shift, xerr=[value - low, high - value],
                linestyle="", marker=marker, color=COLORS[color], capsize=2, linewidth=1.2,
                markersize=4, label=quantity,
            )  # fmt: skip
        axis.set(title=regime, xlabel="rank correlation", xlim=(-1, 1.1))
    axes[0].set(yticks=range(len(names)), yticklabels=names)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def reproduce(task: Task) -> str:
    """Carry out missing training runs, record the results, and draw each number's prediction."""
    from influence_lab.figures import save, use_style

    data = {name: data for data, name in RECORDS.items()}[task.result]
    study = Study(plan_of(task.profile, data), task)
    carry_out(study)
    found = record(study)
    use_style()
    save(draw(found), task.picture)
    return line(found)

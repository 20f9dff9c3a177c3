"""The effects of removal: paired differences, intervals, verdicts on the paper's claims, Figure 6.

Every difference is taken within a seed, between two encoders with the same initial weights, and its
interval is Student's, over seeds. All differences are measured on the same test images, so the
interval does not cover the choice of test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from influence_lab.experiments.claims import POWER, Reading, above, below, reading, together
from influence_lab.experiments.distributions import LABELS, TOP_1
from influence_lab.experiments.removal import BEFORE, NOTHING, ORDERS, PLANS, carry_out
from influence_lab.experiments.task import Task
from influence_lab.measures import agreement
from influence_lab.records import results
from influence_ssl.errors import InfluenceOSError, InfluenceValueError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVEL = 0.95
LINK = "experiments/removal.html#paper-fig-6"
# A training that went less than half of the way from an untrained network to the accuracy of the
# paper's encoders cannot say what removal does to those.
WAY = 0.5
AGAINST = {NOTHING: "nothing removed", "random": "as many removed at random"}

Accuracies = dict[tuple[str, int], Float64[np.ndarray, " s"]]
"""(order, amount) → one accuracy per seed, the seeds in the same order everywhere."""


@dataclass(frozen=True)
class Statement:
    """Section 4.3: removal in ``order`` moves the accuracy of ``methods`` up (+1) or down (−1)."""

    words: str
    methods: tuple[str, ...]
    order: str
    sign: int


STATEMENTS = (
    Statement(
        "without labels, removing the highest first improves",
        ("simclr", "byol", "barlow"), "highest", 1,
    ),
    Statement("with labels, removing the highest first degrades", ("supervised",), "highest", -1),
    Statement("removing the lowest first degrades, all methods", tuple(LABELS), "lowest", -1),
)  # fmt: skip


class Estimate(NamedTuple):
    """A mean difference with its interval; NaN bounds for a single seed."""

    mean: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Finding:
    """A statement and a comparison, with a reading per method."""

    statement: Statement
    against: str
    readings: dict[str, Reading]

    @property
    def verdict(self) -> str:
        """The verdict on all methods together."""
        return together(one.verdict for one in self.readings.values())


def measure_of(method: str) -> str:
    """The accuracy for the verdict: a linear layer's, or with labels the network's own."""
    return "classifier" if method == "supervised" else "linear"


def complete_seeds(record: dict[str, Any], method: str) -> list[int]:
    """The seeds for which every removal in the plan, and the run without any, is recorded."""
    plan = record["plan"]
    wanted = {(NOTHING, 0), *((order, k) for k in plan["amounts"] for order in ORDERS)}
    found: dict[int, set[tuple[str, int]]]
    found = {seed: set() for seed in plan["seeds"]} if method in plan["methods"] else {}
    for outcome in record["outcomes"]:
        if outcome["method"] == method and outcome["seed"] in found:
            found[outcome["seed"]].add((outcome["order"], outcome["amount"]))
    return [seed for seed, done in found.items() if wanted <= done]


def accuracies(record: dict[str, Any], method: str, measure: str) -> Accuracies:
    """``measure`` of every removal of a method, over its complete seeds."""
    seeds = complete_seeds(record, method)
    values = {
        (o["order"], o["amount"], o["seed"]): o.get(measure)
        for o in record["outcomes"]
        if o["method"] == method
    }
    cells = sorted({(order, amount) for order, amount, seed in values if seed in seeds})
    return {
        (order, amount): np.array([values[order, amount, seed] for seed in seeds])
        for order, amount in cells
    }


def difference(
    found: Accuracies, order: str, against: str, amount: int | None = None
) -> Float64[np.ndarray, " s"]:
    """Per seed: the accuracy after removal in ``order`` minus that of ``against``.

    ``against``: ``"none"`` (nothing removed) or another order at the same amount. Without
    ``amount`` the mean over all amounts, which is one number per seed and thus one test per claim.
    """
    amounts = [k for o, k in found if o == order] if amount is None else [amount]
    other = {k: found[against, 0 if against == NOTHING else k] for k in amounts}
    return np.mean([found[order, k] - other[k] for k in amounts], axis=0)


def t_interval(values: Float64[np.ndarray, " s"], level: float = LEVEL) -> Estimate:
    r"""Student's interval for a mean: :math:`\bar d\pm t_{(1+q)/2,\,s-1}\,\hat\sigma/\sqrt s`.

    With three seeds a bootstrap has ten different samples and covers too little; this interval is
    exact for normal differences. :math:`\hat\sigma` divides by s − 1.
    """
    from scipy.stats import t

    if len(values) == 0:
        raise InfluenceValueError("values: no seed to take a mean over; pass one or more")
    mean, s = float(values.mean()), len(values)
    if s == 1:
        return Estimate(mean, float("nan"), float("nan"), s)
    half = float(t.ppf((1 + level) / 2, s - 1) * values.std(ddof=1) / np.sqrt(s))
    return Estimate(mean, mean - half, mean + half, s)


def estimate(record: dict[str, Any], method: str, order: str, against: str) -> Estimate | None:
    """The mean effect over amounts on :func:`measure_of`'s accuracy; ``None`` without seeds."""
    found = accuracies(record, method, measure_of(method))
    return t_interval(difference(found, order, against)) if found else None


def seen(values: Float64[np.ndarray, " s"], level: float = LEVEL) -> float:
    r"""The smallest mean difference that :func:`t_interval` tells from 0 with a chance of 80 %.

    :math:`T'^2` is noncentral F with 1 and s − 1 degrees of freedom, so that the noncentrality
    solves :math:`P(F'>t^2_{(1+q)/2,\,s-1})=0.8`; its root is taken times
    :math:`\hat\sigma/\sqrt s`. NaN for one seed.
    """
    from scipy.optimize import brentq
    from scipy.stats import ncf, t

    s = len(values)
    if s < 2:
        return float("nan")
    bound = t.ppf((1 + level) / 2, s - 1)
    shift = brentq(lambda x: ncf.sf(bound**2, 1, s - 1, x**2) - POWER, 0.01, 5 * bound)
    return float(shift * values.std(ddof=1) / np.sqrt(s))


def way(record: dict[str, Any], method: str) -> tuple[float, float] | None:
    """The gain of training over an untrained network's accuracy, also as a share of the maximum.

    The maximum is the published accuracy of the paper's encoders. ``None`` with labels, and if the
    untrained network is not recorded.
    """
    start = record.get(BEFORE, {}).get(measure_of(method))
    found = accuracies(record, method, measure_of(method))
    if method == "supervised" or not start or not found:
        return None
    begin = float(np.mean(start))
    added = float(found[NOTHING, 0].mean()) - begin
    return added, added / (TOP_1["CIFAR-10"][method] - begin)


def cannot(record: dict[str, Any], method: str, smallest: float) -> str:
    """Why these runs cannot test the effect of removal; empty if they can.

    They cannot until every seed of the plan is recorded (stopping at the first favourable interval
    raises the error rate above its level), or if training made less than half the possible gain.
    """
    done, planned = len(complete_seeds(record, method)), len(record["plan"]["seeds"])
    if done < max(2, planned):
        return f"{done} of {planned} seeds are there"
    power = f"a change of {100 * smallest:.1f} points would be seen 4 times in 5"
    gone = way(record, method)
    if gone is None or gone[1] >= WAY:
        return ""
    return (
        f"training added {100 * gone[0]:.1f} points, {gone[1]:.0%} of the way to the paper's "
        f"encoders; {power}"
    )


def judged(record: dict[str, Any], statement: Statement, against: str, method: str) -> Reading:
    """A statement about one method, as a row of the ledger."""
    effect = "improves" if statement.sign > 0 else "degrades"
    name = f"fig-6-{method}-{statement.order}-{against}"
    by = ", ranked with labels" if method == "supervised" else ""
    words = (
        f"{LABELS[method]}{by}, CIFAR-10: removing the {statement.order} first {effect} (change "
        f"of accuracy in points, against {AGAINST[against]})"
    )
    paper, claimed = ("> 0", above(0.0)) if statement.sign > 0 else ("< 0", below(0.0))
    found = accuracies(record, method, measure_of(method)) if record else {}
    if not found:
        return reading(name, words, paper, None, claimed, LINK)
    values = difference(found, statement.order, against)
    mean, low, high, seeds = t_interval(values)
    smallest = seen(values)
    origin = record["provenance"]
    return reading(
        name, words, paper, agreement.Estimate(100 * mean, 100 * low, 100 * high), claimed, LINK,
        origin["data"], f"{LABELS[method]}, {seeds} seeds", origin["profile"], encoders=seeds,
        stand_in=origin["profile"] == "tiny",
        cannot=cannot(record, method, smallest), seen=100 * smallest,
    )  # fmt: skip


def findings(record: dict[str, Any]) -> list[Finding]:
    """Every statement compared with no removal (the paper's words) and with random removal."""
    return [
        Finding(statement, against, {m: judged(record, statement, against, m) for m in
                                     statement.methods})
        for statement in STATEMENTS
        for against in AGAINST
    ]  # fmt: skip


def claims(root: Path | None = None) -> list[Reading]:
    """Section 4.3: a row for each statement, comparison and method, and one for CIFAR-100."""
    try:
        _, record = largest(root)
    except InfluenceOSError:
        record = {}
    rows = [
        judged(record, statement, against, method)
        for statement in STATEMENTS
        for against in AGAINST
        for method in statement.methods
    ]
    words = "CIFAR-100: removal does to accuracy what it does on CIFAR-10"
    return [*rows, reading("fig-6-cifar100", words, "the same", None, above(0.0), LINK)]


def largest(root: Path | None = None) -> tuple[str, dict[str, Any]]:
    """The largest profile in which a method has a complete seed, and its record."""
    for profile in ("paper", "gpu", "cpu", "tiny"):
        record = results.load_record(profile, "removal", root)
        if record is not None and any(complete_seeds(record, method) for method in LABELS):
            return profile, record
    raise InfluenceOSError(
        "no recorded removal; make one with influence-lab reproduce fig-6 --profile tiny"
    )


def draw(record: dict[str, Any]) -> Figure:
    """Figure 6: accuracy minus that after random removal of as many, all methods on one scale.

    Points are means over complete seeds, error bars Student's intervals. The accuracy without any
    removal, the paper's comparison, is shown beside both orders.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from influence_lab.figures import COLORS, WIDTH

    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, 5.4), sharex=True, sharey=True)
    looks = {
        "highest": ("o-", "highest", "highest first"),
        "lowest": ("s--", "lowest", "lowest first"),
        NOTHING: ("^:", "all", "nothing removed"),
    }
    shift = 0.02 * max(record["plan"]["amounts"], default=0)
    for axis, (method, label) in zip(axes.flat, LABELS.items(), strict=True):
        axis.set_title(label)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        found = accuracies(record, method, measure_of(method))
        if not found:
            axis.text(0.5, 0.5, "not recorded yet", ha="center", transform=axis.transAxes)
            continue
        axis.axhline(0, color=COLORS["black"], linewidth=1)
        amounts = sorted({k for _, k in found if k})
        for i, (order, (look, color, text)) in enumerate(looks.items()):
            points = [
                t_interval(100 * (found[order, k if order != NOTHING else 0] - found["random", k]))
                for k in amounts
            ]
            mean, low, high = np.array([point[:3] for point in points]).T
            reach = np.nan_to_num(np.array([mean - low, high - mean]))
            axis.errorbar(
                np.array(amounts) + (i - 1) * shift, mean, reach, fmt=look, color=COLORS[color],
                capsize=3, label=text,
            )  # fmt: skip
    drawn = [axis for axis in axes.flat if axis.lines]
    if drawn:
        figure.legend(*drawn[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.supxlabel("images removed", fontsize=12)
    figure.supylabel("accuracy minus random removal's, points", fontsize=12)
    return figure


def reproduce(task: Task) -> str:
    """Carry out the missing runs, and draw Figure 6 from the record."""
    from influence_lab.figures import save, use_style

    plan = PLANS[task.profile]
    record = carry_out(plan, task)
    use_style()
    save(draw(record), task.picture)
    done = f"{len(record['outcomes'])} of {len(plan.trainings())} training runs recorded"
    return "; ".join([done, *(f"{f.statement.words}: {f.verdict}" for f in findings(record)[::2])])

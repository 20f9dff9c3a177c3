"""What removal did: paired differences, their intervals, verdicts on the paper's words, Figure 6.

Every difference is taken within a seed, between two encoders that began with the same weights, and
its interval is Student's, over seeds. All are measured on the same test images, so the interval
does not cover the choice of test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from influence_ssl.errors import InfluenceOSError, InfluenceValueError

from .. import results
from ..claims import NOT_REPRODUCED, NOT_TESTED, REPRODUCED, Claim, above, claim
from .distributions import LABELS
from .removal import BEFORE, NOTHING, ORDERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVEL = 0.95
LINK = "experiments/removal.html#paper-fig-6"
AGAINST = {NOTHING: "nothing removed", "random": "as many removed at random"}

Accuracies = dict[tuple[str, int], Float64[np.ndarray, " s"]]
"""(order, amount) → one accuracy per seed, the seeds in the same order everywhere."""


@dataclass(frozen=True)
class Statement:
    """Section 4.3: removal in ``order`` moves the accuracy of ``methods``, up (+1) or down (−1)."""

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
    """A mean difference with its interval; NaN bounds where there is one seed."""

    mean: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Finding:
    """A statement and a comparison: an estimate (or none yet) and a verdict per method."""

    statement: Statement
    against: str
    estimates: dict[str, Estimate | None]
    verdicts: dict[str, str]
    verdict: str


def measure_of(method: str) -> str:
    """The accuracy that a verdict rests on: a linear layer's, with labels the network's own."""
    return "classifier" if method == "supervised" else "linear"


def complete_seeds(record: dict[str, Any], method: str) -> list[int]:
    """The seeds of which every removal of the plan, and the training without any, is recorded."""
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
    ``amount`` the mean over all amounts, which is one number a seed and so one test a claim.
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
    """The mean effect over amounts, on the accuracy that the verdict rests on; ``None`` so far."""
    found = accuracies(record, method, measure_of(method))
    return t_interval(difference(found, order, against)) if found else None


def verdict(estimate: Estimate | None, sign: int, seeds: int, real: bool) -> str:
    """*Reproduced* where the whole interval lies on the claimed side of 0.

    *Not tested here* on stand-in data, and until all ``seeds`` of the plan are there: whoever stops
    at the first interval that pleases errs more often than the level says.
    """
    if estimate is None or not real or estimate.seeds < max(2, seeds):
        return NOT_TESTED
    nearest = estimate.low if sign > 0 else -estimate.high
    return REPRODUCED if nearest > 0 else NOT_REPRODUCED


def findings(record: dict[str, Any]) -> list[Finding]:
    """Every statement against nothing removed (the paper's words) and against random removal."""
    real, seeds = record["provenance"]["profile"] != "tiny", len(record["plan"]["seeds"])
    rows = []
    for statement in STATEMENTS:
        methods, order = statement.methods, statement.order
        for against in AGAINST:
            estimates = {m: estimate(record, m, order, against) for m in methods}
            verdicts = {m: verdict(e, statement.sign, seeds, real) for m, e in estimates.items()}
            whole = _all(list(verdicts.values()))
            rows.append(Finding(statement, against, estimates, verdicts, whole))
    return rows


def _all(verdicts: list[str]) -> str:
    """A statement about several methods fails with one of them."""
    for outcome in (NOT_REPRODUCED, NOT_TESTED):
        if outcome in verdicts:
            return outcome
    return REPRODUCED


def claims(root: Path | None = None) -> list[Claim]:
    """Section 4.3: a row for each statement, comparison and method, and one for CIFAR-100."""
    try:
        profile, record = largest(root)
    except InfluenceOSError:
        profile, record = "", {}
    found = {(f.statement, f.against): f for f in findings(record)} if record else {}
    rows = [
        _row(statement, against, method, found.get((statement, against)), profile, record)
        for statement in STATEMENTS
        for against in AGAINST
        for method in statement.methods
    ]
    words = "CIFAR-100: removal does to accuracy what it does on CIFAR-10"
    return [*rows, claim("fig-6-cifar100", words, "the same", None, above(0.0), LINK)]


def _row(
    statement: Statement, against: str, method: str, found: Finding | None, profile: str,
    record: dict[str, Any],
) -> Claim:  # fmt: skip
    effect = "improves" if statement.sign > 0 else "degrades"
    name = f"fig-6-{method}-{statement.order}-{against}"
    words = (
        f"{LABELS[method]}, CIFAR-10: removing the {statement.order} first {effect} (change of "
        f"accuracy against {AGAINST[against]})"
    )
    paper = "> 0" if statement.sign > 0 else "< 0"
    estimate = found.estimates[method] if found else None
    if found is None or estimate is None or not np.isfinite(estimate.low):
        return claim(name, words, paper, None, above(0.0), LINK)
    return Claim(
        name, words, paper, f"{estimate.mean:+.3f}", f"{estimate.low:+.3f} to {estimate.high:+.3f}",
        record["provenance"]["data"], f"{LABELS[method]}, {estimate.seeds} seeds", profile,
        found.verdicts[method], LINK,
    )  # fmt: skip


def largest(root: Path | None = None) -> tuple[str, dict[str, Any]]:
    """The largest profile of which a method has a complete seed, and its record."""
    for profile in ("paper", "gpu", "cpu", "tiny"):
        record = results.load_record(profile, "removal", root)
        if record is not None and any(complete_seeds(record, method) for method in LABELS):
            return profile, record
    raise InfluenceOSError(
        "no recorded removal; make one with influence-lab reproduce fig-6 --profile tiny"
    )


def draw(record: dict[str, Any]) -> Figure:
    """Figure 6: accuracy against the number of removed images, one panel per method.

    Points are means over complete seeds, error bars their standard deviation (n − 1). A line marks
    the untrained network, where the measure is one that it has as well.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from ..figures import COLORS, WIDTH

    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, 5.4))
    looks = {"highest": ("o-", "highest"), "lowest": ("s--", "lowest"), "random": ("^:", "all")}
    shift = 0.02 * max(record["plan"]["amounts"], default=0)
    for axis, (method, label) in zip(axes.flat, LABELS.items(), strict=True):
        axis.set_title(label)
        found = accuracies(record, method, measure_of(method))
        if not found:
            axis.text(0.5, 0.5, "not recorded yet", ha="center", transform=axis.transAxes)
            axis.set(xticks=[], yticks=[])
            continue
        amounts = [0, *sorted({k for _, k in found if k})]
        for i, (order, (look, color)) in enumerate(looks.items()):
            points = [100 * found[(order, k) if k else (NOTHING, 0)] for k in amounts]
            axis.errorbar(
                np.array(amounts) + (i - 1) * shift,
                [values.mean() for values in points],
                [values.std(ddof=1) if len(values) > 1 else 0.0 for values in points],
                fmt=look, color=COLORS[color], capsize=3,
                label=order if order == "random" else f"{order} first",
            )  # fmt: skip
        if start := record.get(BEFORE, {}).get(measure_of(method)):
            axis.axhline(100 * np.mean(start), color=COLORS["black"], lw=1, label="untrained")
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.xaxis.set_major_formatter("{x:,.0f}")
    drawn = [axis for axis in axes.flat if axis.lines]
    if drawn:
        figure.legend(*drawn[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.supxlabel("images removed", fontsize=12)
    figure.supylabel("test accuracy in %", fontsize=12)
    return figure

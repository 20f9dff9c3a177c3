"""Table 4: rank correlation of the scores under six families of perturbations.

The paper does not state which scores its correlations compare. There are three readings: ``again``
compares a family's scores with those of another draw of the same family, ``gaussian`` with those of
another draw of the Gaussian noise, and ``training`` with those of another pre-training run in the
same draw. The score's rivals are the loss alone and the gradient norm.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from influence_lab.experiments.claims import Reading, Region, above, agrees, reading, weakest
from influence_lab.experiments.distributions import LABELS
from influence_lab.experiments.scored import RIVALS, available, provenance, vectors_of
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import (
    Estimate,
    difference,
    gap,
    linear_correlation,
    rank_correlation,
    rounded,
    spearman,
)
from influence_lab.pretrain import views
from influence_lab.records import results
from influence_lab.records.keys import described, key

METHOD = "simclr"
OTHERS = ("simclr", "byol", "barlow")
LINK = "experiments/perturbations.html#paper-table-4"
READINGS = {"again": "another draw of the family", "gaussian": "the Gaussian noise's scores"}
SEEDS = (0, 1)
# Other pre-training runs of the same method. Of seed 1 the weights were not kept, so that only its
# scores with Gaussian noise are recorded.
AGAIN, ONCE = (METHOD, 2), (METHOD, 1)
# The head of the table's column is "Pearsonr"; the text has "Pearson rank correlation".
STATISTICS = {
    "": ("rank correlation", rank_correlation),
    "-pearson": ("Pearson's correlation", linear_correlation),
}
UNSTATED = "the paper states neither this family's strengths nor whose scores are correlated"
"""Why a family's number cannot be contradicted by one choice of both."""
UNSTATED_SCORES = "the paper does not state whose scores are correlated"
"""The same for the noise, whose σ is stated: two draws and two runs give different numbers."""
# Half of what Gaussian noise leads crops by in the paper: wider intervals cannot tell rows apart.
TELLING = 0.0118


class Family(NamedTuple):
    """A row of Table 4: its name there, the paper's number, and the perturbation."""

    label: str
    paper: float
    perturbation: Any


FAMILIES = {
    "flip_grey_blur": Family("flip + grey + blur", 0.7197, views.flip_grey_blur),
    "flip_jitter_grey": Family("flip + jitter + grey", 0.7234, views.flip_jitter_grey),
    "flip_jitter_blur": Family("flip + jitter + blur", 0.7422, views.flip_jitter_blur),
    "flip_blur": Family("flip + blur", 0.7447, views.flip_blur),
    "crop": Family("crop", 0.9509, views.crop),
    "gaussian": Family("Gaussian noise", 0.9745, views.gaussian),
}
COLOURS = tuple(name for name in FAMILIES if name.startswith("flip"))

Column = Float64[np.ndarray, " n"]


def measure(scores: dict[str, tuple[Column, Column]]) -> dict[str, Any]:
    """Each family's correlation in both readings; ``scores`` holds two draws of each.

    Each reading also contains the differences that make up the paper's order: Gaussian noise minus
    each other family, and crops minus each of the four with flips.
    """
    other = scores["gaussian"][1]
    against = {name: {"again": pair, "gaussian": (pair[0], other)} for name, pair in scores.items()}
    found: dict[str, Any] = {
        "families": {
            name: {reading: spearman(*against[name][reading]) for reading in READINGS}
            for name in scores
        }
    }
    for best in ("gaussian", "crop"):
        lower = [name for name in scores if name in COLOURS or (best, name) == ("gaussian", "crop")]
        found[f"{best} over"] = {
            reading: {
                name: difference(against[best][reading], against[name][reading]) for name in lower
            }
            for reading in READINGS
        }
    return found


def unchanged(score: Column) -> float:
    """Share of images that the perturbation left unchanged, so that they score exactly 0."""
    return round(float((score == 0).mean()), 4)


def reproduce(task: Task) -> str:
    """Score two draws of every family with SimCLR, one with the other encoders, and record."""
    scored = available(task, [(METHOD, task.seed)])[METHOD, task.seed]
    found = {
        name: [scored.with_rivals(family.perturbation, seed) for seed in SEEDS]
        for name, family in FAMILIES.items()
    }
    for other in available(task, [*((method, task.seed) for method in OTHERS), AGAIN]).values():
        for family in FAMILIES.values():
            other.score(family.perturbation, SEEDS[0])
    record: dict[str, Any] = {
        "method": METHOD,
        "perturbations": {
            name: described(family.perturbation) for name, family in FAMILIES.items()
        },
        "left alone": {name: unchanged(pair[0]["score"]) for name, pair in found.items()},
    }
    for kind in ("score", *RIVALS):
        columns = {name: (pair[0][kind], pair[1][kind]) for name, pair in found.items()}
        record[kind] = rounded(measure(columns))
    record["provenance"] = provenance(task, [scored])
    results.save_json(
        (task.root or results.results_root()) / task.profile / "families.json", record
    )
    return ", ".join(
        f"{family.label} {record['score']['families'][name]['again'][0]:.3f}"
        for name, family in FAMILIES.items()
    )


def claims(root: Path | None = None) -> list[Reading]:
    """Table 4: six numbers, and their order, in three readings."""
    found = results.largest_record("families", root)
    profile, record = found if found is not None else ("", {})
    score = record.get("score", {})

    def row(
        name: str, words: str, paper: str, values: list[Estimate], claimed: Region,
        method: str = METHOD, **rules: Any,
    ) -> Reading:  # fmt: skip
        return reading(
            name, words, paper, values or None, claimed, LINK,
            record["provenance"]["data"] if record else "",
            f"{LABELS[method]} encoder, one draw", profile, stand_in=profile == "tiny", **rules,
        )  # fmt: skip

    rows = []
    for suffix, (statistic, _) in STATISTICS.items():
        pairs = [
            between((METHOD, 0), run, profile, root, suffix) if record else {}
            for run in (AGAIN, ONCE)
        ]
        for name, family in FAMILIES.items():
            values = [pair[name] for pair in pairs if name in pair]
            rows.append(
                row(f"table-4-{name}-training{suffix}", f"{family.label}: {statistic} with the "
                    "same draw, another pre-training run", f"{family.paper}", values,
                    agrees(f"{family.paper}", TELLING), encoders=2,
                    cannot=UNSTATED_SCORES if name == "gaussian" else UNSTATED)
            )  # fmt: skip
    statistic, _ = STATISTICS["-pearson"]
    for method in OTHERS:
        again = repeated(method, profile, root, "-pearson") if record else None
        rows.append(
            row(f"table-4-gaussian-again-pearson-{method}", f"Gaussian noise: {statistic} with "
                f"another draw, {LABELS[method]}", f"{FAMILIES['gaussian'].paper}",
                [] if again is None else [again],
                agrees(f"{FAMILIES['gaussian'].paper}", TELLING), method)
        )  # fmt: skip
    for how, text in READINGS.items():
        for name, family in FAMILIES.items():
            if (name, how) == ("gaussian", "gaussian"):
                continue  # the same two draws as the other reading's
            values = [Estimate(*score["families"][name][how])] if score else []
            rows.append(
                row(f"table-4-{name}-{how}", f"{family.label}: rank correlation with {text}",
                    f"{family.paper}", values, agrees(f"{family.paper}", TELLING))
            )  # fmt: skip
        for best, words in (
            ("gaussian", "Gaussian noise has the highest correlation"),
            ("crop", "crops come before the four families with flips"),
        ):
            gaps = score[f"{best} over"][how].values() if score else ()
            least = [weakest([Estimate(*gap) for gap in gaps])] if gaps else []
            rows.append(
                row(f"table-4-{best}-first-{how}", f"{words} (least lead; against {text})",
                    "> 0", least, above(0.0))
            )  # fmt: skip
    return rows + _leads(profile, root, row)


def between(
    one: tuple[str, int], other: tuple[str, int], profile: str, root: Path | None = None,
    statistic: str = "",
) -> dict[str, Estimate]:  # fmt: skip
    """Each family's correlation between two encoders, (method, seed), in the same draw.

    Figure 2 compares two runs in the same manner. Families whose scores are not recorded for both
    encoders are left out. ``statistic`` is one of :data:`STATISTICS`.
    """
    _, correlation = STATISTICS[statistic]
    first, second = (vectors_of(profile, *encoder, root) for encoder in (one, other))
    names = {name: key("score", family.perturbation, 0) for name, family in FAMILIES.items()}
    return {
        name: correlation(first[key], second[key])
        for name, key in names.items()
        if key in first and key in second
    }


def repeated(
    method: str, profile: str, root: Path | None = None, statistic: str = ""
) -> Estimate | None:
    """A method's correlation between two draws of the Gaussian noise; ``None`` if not recorded."""
    vectors = vectors_of(profile, method, 0, root)
    names = [key("score", FAMILIES["gaussian"].perturbation, seed) for seed in SEEDS]
    if any(name not in vectors for name in names):
        return None
    return STATISTICS[statistic][1](*(vectors[name] for name in names))


def across(
    profile: str, root: Path | None = None, statistic: str = ""
) -> dict[str, dict[str, Estimate]]:
    """:func:`between` for each pair of methods; pairs without all families are left out."""
    found = {
        f"{a} {b}": between((a, 0), (b, 0), profile, root, statistic)
        for a, b in combinations(OTHERS, 2)
    }
    return {pair: of for pair, of in found.items() if len(of) == len(FAMILIES)}


def _leads(profile: str, root: Path | None, row: Any) -> list[Reading]:
    """The paper's order, by each pair's least lead: two runs of a method, then two methods."""
    rows = []
    for suffix, (statistic, _) in STATISTICS.items():
        runs = between((METHOD, 0), AGAIN, profile, root, suffix) if profile else {}
        several = across(profile, root, suffix) if profile else {}
        kinds = {
            "training": ("two pre-training runs, same draw; least lead", 2,
                         [runs] if len(runs) == len(FAMILIES) else []),
            "across": ("two encoders of different methods, same draw; least lead in each pair",
                       len(OTHERS), list(several.values())),
        }  # fmt: skip
        for kind, (text, encoders, pairs) in kinds.items():
            for best, words, others in (
                ("gaussian", "Gaussian noise has the highest correlation", (*COLOURS, "crop")),
                ("crop", "crops come before the four families with flips", COLOURS),
                ("gaussian", "Gaussian noise comes before the four families with flips", COLOURS),
            ):
                place = "flips" if others == COLOURS else "first"
                leads = [weakest([gap(of[best], of[name]) for name in others]) for of in pairs]
                rows.append(
                    row(f"table-4-{best}-{place}-{kind}{suffix}", f"{words} ({statistic} of "
                        f"{text})", "> 0", leads, above(0.0), encoders=encoders)
                )  # fmt: skip
    return rows

"""The paper's empirical claims: each sentence, our measurements and the verdict.

A :class:`Claim` is one sentence of the paper; ``book/inventory.yml`` lists them all. A
:class:`Reading` is one measured comparison. Some readings *test* the sentence as its authors would
read it; the others, stricter or alternative readings and controls, do not affect the verdict.
Each experiment has ``claims(root) -> list[Reading]``, a function of its recorded result alone.
:func:`match` assigns readings to sentences.

Verdicts are computed from intervals by :func:`verdict` and :func:`together` and cannot be set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf, isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from scipy.special import ndtri

from influence_lab.measures.agreement import CONFIDENCE, Estimate
from influence_lab.records import results
from influence_ssl.errors import InfluenceOSError, InfluenceValueError

REPRODUCED, CONTRADICTED, INCONCLUSIVE, NOT_TESTED = VERDICTS = (
    "reproduced",
    "contradicted",
    "inconclusive",
    "not tested here",
)
PUBLISHED = "published numbers"
POWER = 0.8
FIRST = ", neighbours under the first run"
"""The second run's weights are not recorded: both rankings are measured in one representation."""


class Region(NamedTuple):
    """The values that a claim allows.

    An interval must lie strictly between ``low`` and ``high``. For a ``printed`` number, the
    interval must meet the values that round to it and be no wider than ``telling`` on either side.
    A ``counted`` number must be found exactly.
    """

    low: float
    high: float
    printed: bool = False
    counted: bool = False
    telling: float = inf


def above(bound: float) -> Region:
    """The value lies above ``bound``."""
    return Region(bound, inf)


def below(bound: float) -> Region:
    """The value lies below ``bound``."""
    return Region(-inf, bound)


def within(bound: float) -> Region:
    """The value lies between −``bound`` and ``bound``."""
    return Region(-bound, bound)


def agrees(printed: str, telling: float) -> Region:
    """The value rounds to ``printed``.

    ``telling``: the largest half-width of an interval that still distinguishes this number from
    those with which the paper compares it.
    """
    half = 0.5 * 10.0 ** -len(printed.partition(".")[2])
    return Region(float(printed) - half, float(printed) + half, printed=True, telling=telling)


def counts(hits: int, n: int) -> Region:
    """The share is ``hits`` of ``n``, to the image."""
    return Region(hits / n, hits / n, printed=True, counted=True)


def hull(found: Sequence[Estimate]) -> tuple[float, float]:
    """The interval over seeds and images, from the lowest end to the highest; NaN if any is NaN."""
    ends = np.array([[one.low, one.high] for one in found])
    return float(ends[:, 0].min()), float(ends[:, 1].max())


def verdict(
    found: Sequence[Estimate],
    claimed: Region,
    *,
    encoders: int | None = None,
    smaller: bool = True,
    stand_in: bool = False,
    cannot: str = "",
) -> str:
    """The verdict on a claim from the interval over all seeds, one of :data:`VERDICTS`.

    Args:
        found: an estimate per seed of the encoder, or none if nothing is recorded.
        claimed: the values that the claim allows.
        encoders: the number of training runs behind ``found``; by default its length.
        smaller: the encoder is smaller than the paper's, so *contradicted* takes two training runs.
        stand_in: the data replace the paper's, so the verdict is *not tested here*.
        cannot: why this design cannot test the claim; the verdict is then at most *inconclusive*.
    """
    if stand_in or not found:
        return NOT_TESTED
    low, high = hull(found)
    if cannot or not (isfinite(low) and isfinite(high)):
        return INCONCLUSIVE
    if high < claimed.low or low > claimed.high:
        enough = not smaller or (len(found) if encoders is None else encoders) > 1
        return CONTRADICTED if enough else INCONCLUSIVE
    if claimed.counted:
        hit = all(abs(one.value - claimed.low) < 1e-9 for one in found)
    elif claimed.printed:
        hit = (high - low) / 2 <= claimed.telling
    else:
        hit = claimed.low < low and high < claimed.high
    return REPRODUCED if hit else INCONCLUSIVE


def together(verdicts: Iterable[str]) -> str:
    """The verdict on a sentence, which asserts all its tests, from the verdicts on these.

    *Contradicted* if one of them is, *reproduced* if all are, *not tested here* if there are none.
    """
    known = set(verdicts) or {NOT_TESTED}
    return next(v for v in (CONTRADICTED, INCONCLUSIVE, NOT_TESTED, REPRODUCED) if v in known)


def detectable(found: Sequence[Estimate]) -> float:
    """The smallest distance from a bound that such an interval clears with a probability of 80 %.

    For normal errors, it is the half-width times :math:`1 + z_{0.8}/z_{0.975}`, about 1.43.
    """
    low, high = hull(found)
    ends = ndtri([POWER, (1 + CONFIDENCE) / 2])
    return float((high - low) / 2 * (1 + ends[0] / ends[1]))


@dataclass(frozen=True)
class Reading:
    """One measured comparison.

    Attributes:
        id: short and unique, ``fig-2-simclr-noise``.
        words: the comparison in words.
        paper: the paper's number, as text.
        found: our estimates, one per seed of the encoder; possibly empty.
        claimed: the values that the paper claims.
        link: chapter and anchor, ``experiments/stability.html#paper-fig-2``.
        data, model, profile: the basis of our measurement.
        encoders, stand_in, cannot: as in :func:`verdict`.
        seen: the smallest detectable effect; by default :func:`detectable`.
    """

    id: str
    words: str
    paper: str
    found: tuple[Estimate, ...]
    claimed: Region
    link: str
    data: str = ""
    model: str = ""
    profile: str = ""
    encoders: int | None = None
    stand_in: bool = False
    cannot: str = ""
    seen: float | None = None

    @property
    def smaller(self) -> bool:
        """The encoder is smaller than the paper's."""
        return self.profile not in ("paper", PUBLISHED)

    @property
    def verdict(self) -> str:
        """The verdict by the rule."""
        return verdict(
            self.found, self.claimed, encoders=self.encoders, smaller=self.smaller,
            stand_in=self.stand_in, cannot=self.cannot,
        )  # fmt: skip

    @property
    def ours(self) -> str:
        """One number per seed, as text."""
        return " and ".join(_number(one.value, one.value) for one in self.found)

    @property
    def interval(self) -> str:
        """The interval over seeds and images."""
        if not self.found or not all(map(isfinite, hull(self.found))):
            return ""
        return " to ".join(_number(end, self.found[0].value) for end in hull(self.found))

    @property
    def why(self) -> str:
        """A note to the verdict: its scope, or why it is not a different one."""
        if not self.found:
            return "nothing recorded"
        if self.stand_in:
            return "measured on a stand-in"
        if self.verdict == CONTRADICTED and self.smaller:
            return "for these encoders"
        if self.verdict != INCONCLUSIVE:
            return ""
        if self.cannot:
            return self.cannot
        low, high = hull(self.found)
        if not self.interval:
            return "too few values for an interval"
        if high < self.claimed.low or low > self.claimed.high:
            return "outside, but only one training of a smaller encoder"
        if self.claimed.printed:
            return "the interval contains the paper's number and is too wide to decide"
        seen = detectable(self.found) if self.seen is None else self.seen
        return f"an effect of {_number(seen, self.found[0].value)} would be seen 4 times in 5"


def _number(value: float, scale: float) -> str:
    """Three decimals; four of a number below 0.01, one of a number from 10 on."""
    digits = 1 if abs(scale) >= 10 else 4 if 0 < abs(scale) < 0.01 else 3
    return f"{value:.{digits}f}"


def reading(
    id: str,
    words: str,
    paper: str,
    found: Estimate | Sequence[Estimate] | None,
    claimed: Region,
    link: str,
    data: str = "",
    model: str = "",
    profile: str = "",
    **rules: Any,
) -> Reading:
    """A :class:`Reading` of one estimate, of one per seed, or of none yet."""
    several: tuple[Estimate, ...]
    if found is None:
        several, data, model, profile = (), "", "", ""
    else:
        several = (found,) if isinstance(found, Estimate) else tuple(found)
    return Reading(id, words, paper, several, claimed, link, data, model, profile, **rules)


def weakest(estimates: Sequence[Estimate]) -> Estimate:
    """The estimate with the lowest lower end; what holds for it holds for all."""
    return min(estimates, key=lambda found: found.low)


def both(
    found: Estimate | None, profile: str, method: str, *place: str, root: Path | None = None
) -> list[Estimate] | None:
    """``found``, and the estimate of the other pre-training if ``both-seeds`` has it."""
    if found is None:
        return None
    return [found, *(Estimate(*one) for one in others(profile, method, *place, root=root))]


def others(profile: str, method: str, *place: str, root: Path | None = None) -> list[Any]:
    """What ``both-seeds`` holds at ``place`` of the other pre-trainings of a method."""
    record = results.load_record(profile, "both-seeds", root) or {"methods": {}}
    several: list[Any] = record["methods"].get(method, [])[1:]
    for key in place:
        several = [one[key] for one in several]
    return several


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper.

    Attributes:
        id: ``claim-41-initialisations``.
        section: its place, ``4.1`` or ``Figure 3, caption``.
        display: the figure, table or equation that it refers to, ``paper-fig-2``.
        says: the sentence, quoted or shortened.
        tests: ids of the readings that it asserts; a trailing ``*`` matches any ending.
        ours: ids of stricter or alternative readings and of controls.
        needs: what a test would require, if there is none here.
    """

    id: str
    section: str
    display: str
    says: str
    tests: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()
    needs: str = ""


@dataclass(frozen=True)
class Row:
    """A sentence and its readings."""

    claim: Claim
    tests: tuple[Reading, ...]
    ours: tuple[Reading, ...]

    @property
    def verdict(self) -> str:
        """The verdict on all tests together."""
        return together(test.verdict for test in self.tests)

    @property
    def deciding(self) -> tuple[Reading, ...]:
        """The tests that determine the verdict."""
        return tuple(test for test in self.tests if test.verdict == self.verdict)

    @property
    def why(self) -> str:
        """The verdict's scope, or why it is not a different one."""
        if self.verdict == NOT_TESTED and self.claim.needs:
            return f"needs {self.claim.needs}"
        return next((test.why for test in self.deciding if test.why), "")


def sentences(path: Path | None = None) -> list[Claim]:
    """The paper's empirical sentences, from ``book/inventory.yml``."""
    path = results.results_root().parent / "inventory.yml" if path is None else path
    if not path.is_file():
        raise InfluenceOSError(
            f"{path}: no inventory of the paper's sentences; work in a clone of the repository"
        )
    listed: list[dict[str, Any]] = yaml.safe_load(path.read_text("utf-8"))["claims"]
    names = ("tests", "ours")
    return [
        Claim(**{**entry, **{name: tuple(entry.get(name, ())) for name in names}})
        for entry in listed
    ]


def match(listed: Sequence[Claim], readings: Sequence[Reading]) -> list[Row]:
    """Assign to each sentence the readings that it names."""
    used: set[str] = set()

    def named(claim: Claim, patterns: tuple[str, ...]) -> tuple[Reading, ...]:
        found = []
        for pattern in patterns:
            hits = [one for one in readings if fnmatchcase(one.id, pattern)]
            if not hits:
                raise InfluenceValueError(
                    f"{claim.id}: no reading is called {pattern}; correct it in book/inventory.yml"
                )
            found += hits
        used.update(one.id for one in found)
        return tuple(dict.fromkeys(found))

    made = [Row(one, named(one, one.tests), named(one, one.ours)) for one in listed]
    left = [one.id for one in readings if one.id not in used]
    if left:
        raise InfluenceValueError(
            f"readings of no sentence: {', '.join(left)}; name them in book/inventory.yml"
        )
    return made


def status(display: str, found: Sequence[Row]) -> str:
    """Whether a figure or table rests on real data or a stand-in, and what is missing.

    A display about which the paper makes no empirical claim (its settings) needs no data.
    """
    about = [row for row in found if row.claim.display == display]
    if not about:
        return "no data needed"
    tests = [test for row in about for test in row.tests]
    real = any(test.found and not test.stand_in for test in tests)
    stand_in = any(test.found and test.stand_in for test in tests)
    needed = dict.fromkeys(
        row.claim.needs
        for row in about
        if row.verdict in (NOT_TESTED, INCONCLUSIVE) and row.claim.needs
    )
    missing = f"; missing: {', '.join(needed)}" if needed else ""
    if real:
        return f"partial{missing}" if needed else "real data"
    return f"{'stand-in' if stand_in else 'not recorded yet'}{missing}"


def lines(readings: Iterable[Reading]) -> Iterator[dict[str, str]]:
    """What is compared, both numbers and the verdict of each, as rows of a table."""
    for one in readings:
        interval = f" [{one.interval}]" if one.interval else ""
        why = f" ({one.why})" if one.why else ""
        yield {
            "claim": one.words,
            "paper": one.paper,
            "ours": f"{one.ours}{interval}" or "–",
            "verdict": f"{one.verdict}{why}",
        }


def tally(found: Iterable[Row | Reading]) -> str:
    """The number of readings with each verdict."""
    count = Counter(one.verdict for one in found)
    return ", ".join(f"{count[name]} {name}" for name in VERDICTS)

"""The paper's empirical claims: its number, ours with an interval, and what that comes to.

Each experiment that tests a claim has ``claims(root) -> list[Claim]``, a function of its recorded
result alone. :func:`collect` asks all experiments of :data:`influence_lab.experiments.RESULTS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

from .agreement import Estimate

REPRODUCED, NOT_REPRODUCED, NOT_TESTED = VERDICTS = (
    "reproduced",
    "not reproduced",
    "not tested here",
)


@dataclass(frozen=True)
class Claim:
    """One row of the ledger.

    Attributes:
        id: short and unique, ``fig-2-simclr-noise``.
        words: what the paper says, in short.
        paper: its number, as text.
        ours: ours, as text; empty where there is none.
        interval: a 95 % interval of ours, as text.
        data, model, profile: what ours was measured on.
        verdict: one of :data:`VERDICTS`.
        link: chapter and anchor, ``experiments/stability.html#paper-fig-2``.
    """

    id: str
    words: str
    paper: str
    ours: str
    interval: str
    data: str
    model: str
    profile: str
    verdict: str
    link: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"{self.id}: verdict {self.verdict!r} is not one of {VERDICTS}")
        if self.verdict != NOT_TESTED and not (self.ours and self.interval):
            raise ValueError(f"{self.id}: a verdict needs a number and its interval")


def claim(
    id: str,
    words: str,
    paper: str,
    found: Estimate | None,
    holds: Callable[[Estimate], bool],
    link: str,
    data: str = "",
    model: str = "",
    profile: str = "",
    stand_in: bool = False,
) -> Claim:
    """A row from an estimate: *reproduced* where ``holds(found)``, else *not reproduced*.

    ``None``, or a stand-in for the paper's data, makes it *not tested here*, whatever was found.
    """
    if found is None:
        return Claim(id, words, paper, "", "", "", "", "", NOT_TESTED, link)
    digits = 3 if abs(found.value) < 10 else 1
    ours, low, high = (f"{number:.{digits}f}" for number in found)
    verdict = REPRODUCED if holds(found) else NOT_REPRODUCED
    return Claim(
        id, words, paper, ours, f"{low} to {high}", data, model, profile,
        NOT_TESTED if stand_in else verdict, link,
    )  # fmt: skip


def above(bound: float) -> Callable[[Estimate], bool]:
    """The whole interval lies above ``bound``."""
    return lambda found: found.low > bound


def agrees(printed: str) -> Callable[[Estimate], bool]:
    """The interval meets the numbers that are rounded to ``printed``."""
    half = 0.5 * 10.0 ** -len(printed.partition(".")[2])
    return lambda found: found.low <= float(printed) + half and found.high >= float(printed) - half


def weakest(estimates: Sequence[Estimate]) -> Estimate:
    """The one whose interval begins lowest: what holds for it holds for all of them."""
    return min(estimates, key=lambda found: found.low)


def collect(root: Path | None = None) -> list[Claim]:
    """The rows of every experiment that has some, in the order of its results."""
    from .experiments import RESULTS

    found: list[Claim] = []
    for name in dict.fromkeys(RESULTS.values()):
        module: Any = import_module(f"{__package__}.experiments.{name}")
        if hasattr(module, "claims"):
            found += module.claims(root)
    twice = [name for name, count in Counter(row.id for row in found).items() if count > 1]
    if twice:
        raise ValueError(f"claims with the same id: {', '.join(twice)}")
    return found


def report(rows: Sequence[Claim]) -> str:
    """Two lines a claim: what it is, and numbers and verdict."""
    lines = []
    for row in rows:
        ours = f"ours {row.ours} [{row.interval}]" if row.ours else "no number of ours"
        lines += [f"{row.id}: {row.words}", f"  paper {row.paper}; {ours}: {row.verdict}"]
    return "\n".join(lines)


def tally(rows: Sequence[Claim]) -> str:
    """How many claims have each verdict."""
    counts = Counter(row.verdict for row in rows)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)


def table(rows: Sequence[Claim], base: str) -> str:
    """The ledger as HTML; ``base`` leads from the page that shows it to the book's folder."""
    head = "".join(f"<th>{text}</th>" for text in ("Claim", "Paper", "Ours", "Verdict", "From"))
    body = "".join(_row(row, base) for row in rows)
    return (
        f'<table class="claims-ledger"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def _row(row: Claim, base: str) -> str:
    ours = f"{row.ours}<br>[{row.interval}]" if row.ours else "–"
    origin = ", ".join(text for text in (row.data, row.model, row.profile) if text) or "–"
    cells = (
        f'<a href="{escape(base + row.link)}">{escape(row.words)}</a>', escape(row.paper), ours,
        row.verdict, escape(origin),
    )  # fmt: skip
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"

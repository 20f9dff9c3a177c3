"""Verdicts on statements, backed by the checks that a chapter computes.

A chapter ends each statement with `verdict(...)`. It raises an error if a check fails, prints the
outcome for the reader, and stores a record in the notebook's outputs, from which the book's
extension `book/_ext/ledger.py` builds the ledger page.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

VERDICTS = ("holds", "holds under a stated condition", "false as stated", "definition")
RECORD_PREFIX = "ledger:"
PAPER_PREFIX = "paper-"


class CheckFailed(AssertionError):
    """A check behind a verdict fails."""


class Below(NamedTuple):
    """An error and its upper bound."""

    error: float
    bound: float


@dataclass(frozen=True)
class Verdict:
    """One row of the ledger; the chapter shows its text form.

    Attributes:
        statement: anchor id, `paper-theorem-1`.
        verdict: one of `VERDICTS`.
        what: the statement; empty for the paper's statements, whose text is in the inventory.
        condition: the condition under which it holds, or the correct statement.
        counterexample: the smallest counterexample, with its numbers.
        checks: one line per check.
    """

    statement: str
    verdict: str
    what: str
    condition: str
    counterexample: str
    checks: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join([f"{self.statement}: {self.verdict}", *(f"  {c}" for c in self.checks)])


def verdict(
    statement: str,
    verdict: str,
    checks: Mapping[str, bool | Below],
    *,
    what: str = "",
    condition: str = "",
    counterexample: str = "",
) -> Verdict:
    """Record the verdict on a statement after all its checks.

    Args:
        statement: anchor id; ids that do not begin with `paper-` go beyond the paper.
        verdict: one of `VERDICTS`.
        checks: description → a bool that must be True, or `Below(error, bound)`.
        what: the statement, if it goes beyond the paper.
        condition: required with "holds under a stated condition".
        counterexample: required with "false as stated".

    Raises:
        CheckFailed: names the statement and the failed check.
        ValueError: a verdict that is not one of the four, or one without a required argument.
    """
    if verdict not in VERDICTS:
        raise ValueError(f"verdict of {statement} is {verdict!r}, not one of {VERDICTS}")
    if not checks:
        raise ValueError(f"{statement} has no check, so it cannot have a verdict")
    if verdict == VERDICTS[1] and not condition:
        raise ValueError(f"{statement} holds under a condition that is not stated")
    if verdict == VERDICTS[2] and not counterexample:
        raise ValueError(f"{statement} is false as stated without a counterexample")
    if statement.startswith(PAPER_PREFIX) == bool(what):
        raise ValueError(f"{statement}: `what` is for statements beyond the paper, and only those")
    lines = tuple(_line(statement, name, outcome) for name, outcome in checks.items())
    row = Verdict(statement, verdict, what, condition, counterexample, lines)
    _leave_record(row)
    return row


def _line(statement: str, name: str, outcome: bool | Below) -> str:
    if isinstance(outcome, Below):
        # `not <` so that NaN fails too
        if not outcome.error < outcome.bound:
            raise CheckFailed(
                f"{statement}: {name}: error {outcome.error:.3g}, not below {outcome.bound:.0e}"
            )
        return f"{name}: error below {outcome.bound:.0e}"
    if not isinstance(outcome, bool | np.bool_):
        raise ValueError(
            f"{statement}: {name}: a {type(outcome).__name__} is neither bool nor Below"
        )
    if not outcome:
        raise CheckFailed(f"{statement}: {name}: does not hold")
    return f"{name}: yes"


def _leave_record(row: Verdict) -> None:
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return
    if get_ipython() is None:
        return
    from myst_nb.ext.glue import GLUE_PREFIX

    name = RECORD_PREFIX + row.statement
    display(
        {GLUE_PREFIX + "text/plain": json.dumps(asdict(row), ensure_ascii=False)},
        raw=True,
        metadata={"scrapbook": {"name": name, "mime_prefix": GLUE_PREFIX}},
    )

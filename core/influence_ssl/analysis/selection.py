"""From a score file to a list of file names to keep or to drop; the images stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from influence_ssl.analysis.ranking import Table, read_scores
from influence_ssl.errors import InfluenceValueError
from influence_ssl.files.writing import replacing


class Rule(NamedTuple):
    """What to drop: at least one of these. ``highest`` and ``lowest`` are ``"N"`` or ``"P%"``."""

    highest: str | None = None
    lowest: str | None = None
    above: float | None = None
    below: float | None = None
    duplicates: bool = False


def select(path: Path, rule: Rule) -> tuple[list[str], list[str]]:
    """(names to keep, names to drop) of the score file ``path``, both in the order of its index.

    ``highest`` and ``lowest`` drop a number or a share of all images by magnitude, ties by index;
    ``above`` and ``below`` drop the magnitudes > or < a threshold; ``duplicates`` drops all of each
    duplicate group but one, the one of the lowest index that no other rule drops, or the lowest
    index where the others drop all of them. Several rules drop what any of them drops. Raises
    :class:`InfluenceError`.
    """
    table = read_scores(path)
    if not table.named:
        raise InfluenceValueError(f"{str(path)!r} has no names to list; score files with names.")
    drop = np.zeros(len(table), bool)
    magnitude = table.magnitude
    highest = _count(rule.highest, "--drop-highest", len(table))
    lowest = _count(rule.lowest, "--drop-lowest", len(table))
    # The table stands in the order of rank; of equal magnitudes the first index goes first.
    drop[:highest] = True
    drop[np.lexsort((table.index, magnitude))[:lowest]] = True
    if rule.above is not None:
        drop |= magnitude > rule.above
    if rule.below is not None:
        drop |= magnitude < rule.below
    if rule.duplicates:
        drop |= _duplicates(table, drop, path)
    order = np.argsort(table.index, kind="stable")
    names = [(table.name[i], bool(drop[i])) for i in order]
    return [name for name, out in names if not out], [name for name, out in names if out]


def write_list(names: list[str], out: Path) -> None:
    """Write one name a line; the file appears whole or not at all."""
    unsafe = next((name for name in names if "\n" in name or "\r" in name), None)
    if unsafe is not None:
        raise InfluenceValueError(f"{unsafe!r} holds a line break; rename it and score again.")
    with replacing(out) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")


def _duplicates(table: Table, dropped: np.ndarray, path: Path) -> np.ndarray:
    if table.group is None:
        raise InfluenceValueError(
            f"{str(path)!r} has no column duplicate_group; score to .parquet or .csv."
        )
    out = np.zeros(len(table), bool)
    # Within a group the kept ones first, then by index.
    order = np.lexsort((table.index, dropped))
    seen: set[int] = set()
    for i in order:
        group = int(table.group[i])
        if group < 0:
            continue
        out[i] = group in seen
        seen.add(group)
    return out


def _count(text: str | None, option: str, n: int) -> int:
    if text is None:
        return 0
    try:
        if text.endswith("%"):
            share = float(text[:-1])
            number = round(n * share / 100) if 0 <= share <= 100 else -1
        else:
            number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= n:
        raise InfluenceValueError(
            f"{option} {text!r}: give a number from 0 to {n}, or a share such as 10%."
        )
    return number

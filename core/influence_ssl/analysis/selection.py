"""Lists of file names to keep or to drop, from a score file; no image is changed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from influence_ssl.analysis.duplicates import confirmed
from influence_ssl.analysis.ranking import Table, read_rows
from influence_ssl.errors import InfluenceValueError
from influence_ssl.files.writing import replacing

SHARE = 0.1
"""The largest share of images that groups resting on pixels alone may drop without ``yes``."""


class Rule(NamedTuple):
    """What to drop, by at least one rule. ``highest`` and ``lowest`` are ``"N"`` or ``"P%"``.

    ``yes``: groups that rest on pixels alone may drop more than :data:`SHARE`.
    """

    highest: str | None = None
    lowest: str | None = None
    above: float | None = None
    below: float | None = None
    duplicates: bool = False
    yes: bool = False


def select(path: Path, rule: Rule) -> tuple[list[str], list[str]]:
    """(names to keep, names to drop) of the file ``path``, both in the order of its index.

    ``highest`` and ``lowest`` drop a number or a share of all images by magnitude, ties by index.
    ``above`` and ``below`` drop the magnitudes > or < a threshold. ``duplicates`` keeps only the
    best copy of each duplicate group: the largest in pixels, then in bytes, then the first by name,
    and preferably one that no other rule drops. An image is dropped if any rule drops it. Raises
    :class:`InfluenceError`, also if groups that neither files nor representations confirm would
    drop more than :data:`SHARE` of all images.
    """
    table = read_rows(path)
    if not table.scored and rule != Rule(duplicates=True, yes=rule.yes):
        raise InfluenceValueError(
            f"{str(path)!r} was written by influence-ssl check and holds no scores to select by; "
            "use only --drop-duplicates, or score the images."
        )
    if not table.named:
        raise InfluenceValueError(f"{str(path)!r} has no names to list; score files with names.")
    drop = np.zeros(len(table), bool)
    magnitude = table.magnitude
    highest = _count(rule.highest, "--drop-highest", len(table))
    lowest = _count(rule.lowest, "--drop-lowest", len(table))
    # The table is in the order of rank; ties are broken by index.
    drop[:highest] = True
    drop[np.lexsort((table.index, magnitude))[:lowest]] = True
    if rule.above is not None:
        drop |= magnitude > rule.above
    if rule.below is not None:
        drop |= magnitude < rule.below
    if rule.duplicates:
        drop |= _duplicates(table, drop, path, rule.yes)
    order = np.argsort(table.index, kind="stable")
    names = [(table.name[i], bool(drop[i])) for i in order]
    return [name for name, out in names if not out], [name for name, out in names if out]


def write_list(names: list[str], out: Path) -> None:
    """Write one name per line, the whole file or nothing."""
    unsafe = next((name for name in names if "\n" in name or "\r" in name), None)
    if unsafe is not None:
        raise InfluenceValueError(f"{unsafe!r} holds a line break; rename it and score again.")
    with replacing(out) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")


def _duplicates(table: Table, dropped: np.ndarray, path: Path, yes: bool) -> np.ndarray:
    if table.group is None:
        raise InfluenceValueError(
            f"{str(path)!r} has no column duplicate_group; score to .parquet or .csv."
        )
    out, unsure = np.zeros(len(table), bool), 0
    sure = confirmed(table.provenance)
    # Within a group, kept images come first, then the best.
    size = (
        np.zeros(len(table))
        if table.width is None or table.height is None
        else table.width * table.height
    )
    weight = np.zeros(len(table)) if table.bytes is None else table.bytes
    files: dict[int, set[str]] = {}
    for i in np.lexsort((np.array(table.name), -weight, -size, dropped)):
        group = int(table.group[i])
        if group < 0:
            continue
        seen = files.setdefault(group, set())
        out[i] = bool(seen)
        digest = "" if table.sha256 is None else table.sha256[i]
        copy = digest in seen and digest != ""
        unsure += bool(seen) and not copy and not sure.get(group, False)
        seen.add(digest)
    if unsure > SHARE * len(table) and not yes:
        raise InfluenceValueError(
            f"--drop-duplicates would drop {unsure} of {len(table)} images in groups that rest on "
            f"pixels alone, more than {SHARE:.0%}; inspect these groups in the report, then add "
            "--yes to drop them."
        )
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

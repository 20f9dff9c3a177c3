"""The rows that a page contains: all rows of a small set, or as many as still open fast."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, TextIO

ROWS = 50_000
BYTES = 12_000_000
"""The size limit of the rows, so that a page with its pictures stays below 20 MB."""


def chosen(rows: dict[str, Any], outliers: list[int]) -> list[int] | None:
    """The rows to show, in the order of rank; None for all of them.

    Images far from the others and members of duplicate groups come first, each with up to a quarter
    of the places; both ends of the ranking share the remaining places.
    """
    n = len(rows["values"][0])
    places = min(ROWS, n)
    while True:
        found = _first(rows, outliers, places)
        if places <= 2 or _size(rows, found) <= BYTES:
            return None if len(found) == n else found
        places //= 2


def taken(rows: dict[str, Any], found: list[int] | None) -> dict[str, Any]:
    """``rows`` with only the rows that :func:`chosen` found."""
    if found is None:
        return rows
    return rows | {"values": [[column[row] for row in found] for column in rows["values"]]}


def beside(out: Path) -> Path:
    """The file for all rows if the page ``out`` does not contain them."""
    return out.with_name(f"{out.stem}.rows.csv")


def write_all(rows: dict[str, Any], file: TextIO) -> None:
    """All rows as CSV."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(column["key"].removeprefix("table: ") for column in rows["columns"])
    writer.writerows(zip(*rows["values"], strict=True))


def _first(rows: dict[str, Any], outliers: list[int], places: int) -> list[int]:
    n = len(rows["values"][0])
    if places >= n:
        return list(range(n))
    keys = [column["key"] for column in rows["columns"]]
    grouped = (
        [row for row, group in enumerate(rows["values"][keys.index("duplicate_group")])
         if group is not None]
        if "duplicate_group" in keys
        else []
    )  # fmt: skip
    found = {*outliers[: places // 4], *grouped[: places // 4]}
    for k in range((n + 1) // 2):
        if len(found) >= places - 1:
            break
        found |= {k, n - 1 - k}
    return sorted(found)


def _size(rows: dict[str, Any], found: list[int]) -> int:
    text = json.dumps(taken(rows, found)["values"], ensure_ascii=False, separators=(",", ":"))
    return len(text.encode("utf-8", "backslashreplace")) + 5 * text.count("<")

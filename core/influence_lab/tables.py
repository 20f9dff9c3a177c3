"""Tables for chapters: HTML on a page, aligned text in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pandas import DataFrame


class Table(DataFrame):
    """A table that is shown whole: no long text is cut, no row left out, no column wrapped."""

    def _repr_html_(self) -> str:
        return self.to_html(border=0)

    def __repr__(self) -> str:
        return self.to_string()


def table(rows: Iterable[Mapping[str, Any]], heads: int = 1) -> Table:
    """One line per mapping, with its keys as the columns, in the order in which they first appear.

    Args:
        rows: values are shown through ``str``; missing keys give empty cells.
        heads: how many of the first columns name the line; repeated names are shown once.
    """
    found = [{name: str(value) for name, value in row.items()} for row in rows]
    frame = DataFrame(found).fillna("")
    return Table(frame.set_index(list(frame.columns[:heads])))

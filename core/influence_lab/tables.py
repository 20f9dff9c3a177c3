"""Tables for chapters: HTML on a page, aligned text in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame


def table(rows: Iterable[Mapping[str, Any]], heads: int = 1) -> DataFrame:
    """One line per mapping, with its keys as the columns, in the order in which they first appear.

    Args:
        rows: values are shown through ``str``; missing keys give empty cells.
        heads: how many of the first columns name the line; repeated names are shown once.
    """
    import pandas as pd

    found = [{name: str(value) for name, value in row.items()} for row in rows]
    frame = pd.DataFrame(found).fillna("")
    return frame.set_index(list(frame.columns[:heads]))

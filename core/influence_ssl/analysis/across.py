"""Duplicates on both sides of a border: under two labels, in training and test set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from influence_ssl.analysis.duplicates import Group

if TYPE_CHECKING:
    import pandas

# A column with a value for nearly each image tells no groups apart.
_VALUES = 0.5


def across(
    groups: Sequence[Group], names: Sequence[str], labels: pandas.DataFrame | None
) -> dict[str, list[str]]:
    """For each column of ``labels``, or for the images' first folders where there are none, what
    each image's group spans: the values found in it, joined by ``" | "``, empty where all its
    members have one.

    Images without a value do not count. Columns with different values for more than half of the
    images, such as notes, are left out.
    """
    columns: dict[str, list[str]] = {}
    if labels is None:
        folders = [name.replace("\\", "/").split("/") for name in names]
        columns["folder"] = [parts[0] if len(parts) > 1 else "" for parts in folders]
    else:
        columns = {str(name): labels[name].tolist() for name in labels.columns}
    found = {}
    for name, values in columns.items():
        kinds = set(values) - {""}
        if len(kinds) < 2 or len(kinds) > max(2, _VALUES * len(values)):
            continue
        spans = [""] * len(names)
        for group in groups:
            inside = sorted({values[i] for i in group.members} - {""})
            if len(inside) > 1:
                for i in group.members:
                    spans[i] = " | ".join(inside)
        found[name] = spans
    return found

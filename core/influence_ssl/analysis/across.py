"""Duplicates across groups, such as two labels or the training and test sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from influence_ssl.analysis.duplicates import Group

if TYPE_CHECKING:
    import pandas

# A column with a different value for almost every image defines no groups.
_VALUES = 0.5


def across(
    groups: Sequence[Group], names: Sequence[str], labels: pandas.DataFrame | None
) -> dict[str, list[str]]:
    """The values that each image's duplicate group spans, per column of ``labels``.

    Without labels, the images' first folders are used. The values are joined by ``" | "``; the text
    is empty if all members of the group share one value. Images without a value do not count.
    Columns in which more than half of the values are distinct, such as notes, are left out.
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

"""Tables with a provenance, as CSV and Parquet: scores and influences, which need pandas."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_ssl.scores import Scores

if TYPE_CHECKING:
    import pandas

    from influence_ssl.influence import Influence

_COMMENT = "# provenance: "


def write_csv(scores: Scores | Influence, path: str) -> None:
    """Write the columns as text, after a line with the provenance."""
    table = scores.to_pandas()
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(_COMMENT + json.dumps(scores.provenance) + "\n")
        # Unquoted, a carriage return would be read as the end of a line.
        texts = (table[name].astype(str) for name in ("name", "query") if name in table)
        odd = any(column.str.contains("\r", regex=False).any() for column in texts)
        how = csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL
        table.to_csv(file, index=False, float_format="%.17g", quoting=how)


def read_csv(path: Path) -> Scores:
    """Read what :func:`write_csv` wrote."""
    import pandas

    with open(path, encoding="utf-8", newline="") as file:
        first = file.readline()
        if not first.startswith(_COMMENT):
            raise ValueError("its first line is no provenance")
        # As text: a name such as "NA" stays a name, and Python's float reads back every digit.
        table = pandas.read_csv(file, dtype=str, keep_default_na=False)
    return _from_table(table, json.loads(first.removeprefix(_COMMENT)))


def write_parquet(scores: Scores | Influence, path: str) -> None:
    """Write the columns, with the provenance in the metadata of the schema."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pandas(scores.to_pandas(), preserve_index=False)
    metadata = {**(table.schema.metadata or {}), b"provenance": json.dumps(scores.provenance)}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)


def read_parquet(path: Path) -> Scores:
    """Read what :func:`write_parquet` wrote."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    return _from_table(table.to_pandas(), json.loads(table.schema.metadata[b"provenance"]))


def _from_table(table: pandas.DataFrame, provenance: dict[str, Any]) -> Scores:
    return Scores(
        np.array([float(value) for value in table["score"]]),
        # An empty cell of a CSV is no number; a zero is one.
        np.array([float("nan" if value == "" else value) for value in table["standard_error"]]),
        table["index"].to_numpy().astype(np.int64),
        table["name"].tolist() if "name" in table else None,
        provenance,
    )

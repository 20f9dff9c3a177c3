"""Tables with a provenance, as CSV and Parquet. They need pandas, an optional dependency."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from influence_ssl.errors import InfluenceTypeError, InfluenceValueError, path_of
from influence_ssl.files.writing import replacing

if TYPE_CHECKING:
    import pandas

_COMMENT = "# provenance: "
_LOST = (
    "it has no provenance, which is lost when pandas writes a table; give the file that was "
    "written first"
)


class Tabular(Protocol):
    """A result that can be saved: scores or influences."""

    @property
    def provenance(self) -> dict[str, Any]: ...

    def to_pandas(self) -> pandas.DataFrame: ...


def frame(columns: Mapping[str, Any]) -> pandas.DataFrame:
    """A data frame of these columns. Raises for a name that UTF-8, and so a file, cannot hold."""
    for column in ("name", "query"):
        for text in set(columns.get(column, ())):
            try:
                str(text).encode("utf-8")
            except UnicodeEncodeError as error:
                raise InfluenceValueError(
                    f"the {column} {text!r} is not valid Unicode and fits into no table; give "
                    "name.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')."
                ) from error
    return _pandas().DataFrame(dict(columns))


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise InfluenceTypeError(
            "pandas is not installed; install it with: pip install 'influence-ssl[report]'"
        ) from error
    return pandas


def save(
    found: Tabular,
    path: str | os.PathLike[str],
    others: Mapping[str, Callable[[Any, Path], None]] | None = None,
) -> None:
    """Write ``found`` by the suffix of ``path``; the file appears whole or not at all.

    ``others`` are writers of further suffixes.
    """
    path, writers = (
        path_of(path, "path"),
        {**(others or {}), ".csv": write_csv, ".parquet": write_parquet},
    )
    write = writers.get(path.suffix)
    if write is None:
        raise InfluenceValueError(f"{path}: the suffix must be one of {', '.join(writers)}.")
    with replacing(path) as temporary:
        write(found, temporary)


def write_csv(found: Tabular, path: Path) -> None:
    """Write a line with the provenance, then the columns as text."""
    table = found.to_pandas()
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(_COMMENT + json.dumps(found.provenance) + "\n")
        # Unquoted, a carriage return would be read as the end of a line.
        texts = (table[name].astype(str) for name in ("name", "query") if name in table)
        odd = any(column.str.contains("\r", regex=False).any() for column in texts)
        how = csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL
        table.to_csv(file, index=False, float_format="%.17g", quoting=how)


def read_csv(path: Path) -> tuple[pandas.DataFrame, dict[str, Any]]:
    """The columns that :func:`write_csv` wrote, all cells as text, and the provenance."""
    with path.open(encoding="utf-8", newline="") as file:
        first = file.readline()
        if not first.startswith(_COMMENT):
            raise ValueError(_LOST)
        # As text, so that a name such as "NA" stays a name and Python's float restores every digit.
        table = _pandas().read_csv(file, dtype=str, keep_default_na=False)
    return table, json.loads(first.removeprefix(_COMMENT))


def columns(path: Path) -> list[str]:
    """The columns of a file that :func:`save` wrote; none if it is another file, or not there."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            schema = pyarrow.parquet.read_schema(path)
            return schema.names if b"provenance" in schema.metadata else []
        with path.open(encoding="utf-8", newline="") as file:
            return next(csv.reader(file)) if file.readline().startswith(_COMMENT) else []
    except Exception:  # a file of another kind may fail in any way
        return []


def write_parquet(found: Tabular, path: Path) -> None:
    """Write the columns, with the provenance in the metadata of the schema."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pandas(found.to_pandas(), preserve_index=False)
    metadata = {**(table.schema.metadata or {}), b"provenance": json.dumps(found.provenance)}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)


def read_parquet(path: Path) -> tuple[pandas.DataFrame, dict[str, Any]]:
    """The columns that :func:`write_parquet` wrote, and the provenance."""
    _pandas()
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    if (found := (table.schema.metadata or {}).get(b"provenance")) is None:
        raise ValueError(_LOST)
    return table.to_pandas(), json.loads(found)

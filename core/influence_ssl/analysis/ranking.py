"""A score file as columns, and what it lacks; a CSV joined to it by the images' paths."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from jaxtyping import Float64, Int64

from influence_ssl.errors import InfluenceOSError, InfluenceValueError
from influence_ssl.files.sources import PATH_COLUMNS, separator
from influence_ssl.scores import Scores

KEYS = (*PATH_COLUMNS, "name")


@dataclass(frozen=True)
class Table:
    """The rows of a score file, ordered by rank.

    ``score`` (N,) is signed, ``rank`` counts from 1 at the largest magnitude, ``percentile`` is
    100 there and 0 at the smallest. ``loss``, ``gradient_norm``, ``similarity`` (NaN for none),
    ``nearest``, ``sha256`` (empty for none) and ``group`` (−1 for none) are None where the file
    has no such column.
    """

    name: list[str]
    named: bool
    index: Int64[np.ndarray, " n"]
    score: Float64[np.ndarray, " n"]
    standard_error: Float64[np.ndarray, " n"]
    rank: Int64[np.ndarray, " n"]
    percentile: Float64[np.ndarray, " n"]
    loss: Float64[np.ndarray, " n"] | None
    gradient_norm: Float64[np.ndarray, " n"] | None
    similarity: Float64[np.ndarray, " n"] | None
    nearest: list[str] | None
    sha256: list[str] | None
    group: Int64[np.ndarray, " n"] | None
    provenance: dict[str, Any] = field(repr=False)

    def __len__(self) -> int:
        return len(self.score)

    @property
    def magnitude(self) -> Float64[np.ndarray, " n"]:
        """−score."""
        return -self.score

    def missing(self) -> list[str]:
        """The optional columns that the file does not have."""
        columns = {
            "name": self.named or None,
            "sha256": self.sha256,
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "nearest": self.nearest,
            "similarity": self.similarity,
            "duplicate_group": self.group,
        }
        return [name for name, found in columns.items() if found is None]


def read_scores(path: Path) -> Table:
    """Read a score file of any of the forms that ``Scores.save`` and ``influence-ssl score`` write.

    Rank and percentile are worked out where the file has none. Raises :class:`InfluenceError`.
    """
    scores = Scores.load(path)
    n = len(scores)
    if n == 0:
        raise InfluenceValueError(f"{str(path)!r} holds no scores; score at least two images.")
    if not np.isfinite(scores.values).all():
        row = int(np.flatnonzero(~np.isfinite(scores.values))[0])
        raise InfluenceValueError(
            f"{str(path)!r}: the score in row {row} is not finite; score again, with "
            "--dtype float64 or more --damping."
        )
    order = scores.order("highest")
    frame = _frame(path).iloc[order] if path.suffix != ".npz" else pandas.DataFrame()
    name = [f"image {i}" for i in scores.index] if scores.names is None else list(scores.names)

    def numbers(column: str) -> Float64[np.ndarray, " n"] | None:
        if column not in frame:
            return None
        try:
            return pandas.to_numeric(frame[column].replace("", None)).to_numpy(
                np.float64, copy=True
            )
        except (ValueError, TypeError) as error:
            raise InfluenceValueError(
                f"{str(path)!r}: the column {column!r} holds something that is no number; score "
                "again, or take the column out."
            ) from error

    def texts(column: str) -> list[str] | None:
        return frame[column].fillna("").astype(str).tolist() if column in frame else None

    rank, percentile, group = numbers("rank"), numbers("percentile"), numbers("duplicate_group")
    return Table(
        name=[name[i] for i in order],
        named=scores.names is not None,
        index=scores.index[order],
        score=scores.values[order],
        standard_error=scores.standard_error[order],
        rank=np.arange(1, n + 1) if rank is None else rank.astype(np.int64),
        percentile=np.linspace(100, 0, n) if percentile is None else percentile,
        loss=numbers("loss"),
        gradient_norm=numbers("gradient_norm"),
        similarity=numbers("similarity"),
        nearest=texts("nearest"),
        sha256=texts("sha256"),
        group=None if group is None else np.nan_to_num(group, nan=-1).astype(np.int64),
        provenance=scores.provenance,
    )


def read_labels(path: Path, names: Iterable[str]) -> pandas.DataFrame:
    """The CSV's columns for the images ``names``, in their order; text, empty where it has no row.

    The images' paths stand in the first there is of the columns :data:`KEYS`, as in the score file
    (``./`` in front and the slash's direction do not matter). Commas, semicolons or tabs separate
    the columns. ``attrs["matched"]`` counts the images found. Raises :class:`InfluenceError`.
    """
    try:
        frame = pandas.read_csv(
            path,
            sep=separator(path, KEYS) or ",",
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
        )
    except OSError as error:
        raise InfluenceOSError(
            f"--table {str(path)!r} cannot be read: {error.strerror or error}."
        ) from error
    except ValueError as error:
        raise InfluenceValueError(
            f"--table {str(path)!r} is not a CSV in UTF-8: {' '.join(str(error).split())}."
        ) from error
    frame.columns = [str(column).strip() for column in frame.columns]
    key = next((c for wanted in KEYS for c in frame.columns if c.lower() == wanted), None)
    if key is None:
        raise InfluenceValueError(
            f"--table {str(path)!r} has no column of paths; call it {' or '.join(KEYS)} "
            f"(found: {', '.join(frame.columns)[:100]})."
        )
    frame[key] = frame[key].map(_plain)
    twice = frame[key][frame[key].duplicated()]
    if len(twice):
        raise InfluenceValueError(
            f"--table {str(path)!r} names {twice.iloc[0]!r} twice; give each image one row."
        )
    if frame.columns.duplicated().any():
        column = frame.columns[frame.columns.duplicated()][0]
        raise InfluenceValueError(f"--table {str(path)!r} has two columns {column!r}; rename one.")
    wanted = [_plain(name) for name in names]
    found = frame.set_index(key).reindex(wanted)
    known = set(frame[key])
    matched = sum(name in known for name in wanted)
    if not matched:
        raise InfluenceValueError(
            f"--table {str(path)!r} names none of the images, for instance {frame[key].iloc[0]!r} "
            f"against {wanted[0]!r}; paths must read as in the score file."
            if len(frame)
            else f"--table {str(path)!r} has no rows."
        )
    found = found.fillna("").apply(lambda column: column.str.strip()).reset_index(drop=True)
    found.attrs["matched"] = matched
    return found


def _frame(path: Path) -> pandas.DataFrame:
    if path.suffix == ".parquet":
        return pandas.read_parquet(path)
    # As text: a name such as "NA" stays a name. The first line is the provenance.
    return pandas.read_csv(path, skiprows=1, dtype=str, keep_default_na=False)


def _plain(name: str) -> str:
    return posixpath.normpath(name.strip().replace("\\", "/"))

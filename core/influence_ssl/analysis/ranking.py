"""A score file as columns, and a CSV joined to it by the paths of the images."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from jaxtyping import Float64, Int64

from influence_ssl.errors import InfluenceOSError, InfluenceValueError, described, path_of
from influence_ssl.files.sources import PATH_COLUMNS, separator
from influence_ssl.files.tables import read_csv, read_parquet
from influence_ssl.scores import Scores

KEYS = (*PATH_COLUMNS, "name")


@dataclass(frozen=True)
class Table:
    """The rows of a score file, ordered by rank.

    ``score`` (N,) is signed, ``rank`` counts from 1 at the largest magnitude, and ``percentile``
    is 100 there and 0 at the smallest. ``loss``, ``gradient_norm``, ``similarity`` (NaN for none),
    ``nearest``, ``sha256`` (empty for none), ``group``, ``width``, ``height`` and ``bytes`` of the
    file are None where the file has no such column. ``group`` is a position in the provenance's
    list of groups, one less than the number in the file; −1 for none.
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
    width: Float64[np.ndarray, " n"] | None
    height: Float64[np.ndarray, " n"] | None
    bytes: Float64[np.ndarray, " n"] | None
    provenance: dict[str, Any] = field(repr=False)
    scored: bool = True

    def __len__(self) -> int:
        return len(self.score)

    @property
    def magnitude(self) -> Float64[np.ndarray, " n"]:
        """−score."""
        return -self.score

    def missing(self) -> list[str]:
        """The optional columns that the file lacks."""
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


def read_rows(path: str | Path) -> Table:
    """A score file as :func:`read_scores` reads it, or one of ``influence-ssl check``.

    The latter has no scores: ``scored`` is False, and score, rank and percentile are meaningless.
    """
    path = path_of(path, "path")
    if path.suffix not in (".csv", ".parquet") or not path.is_file():
        return read_scores(path)
    try:
        frame, provenance = (read_csv if path.suffix == ".csv" else read_parquet)(path)
    except Exception:  # reported when the scores are read
        return read_scores(path)
    if "score" in frame or not provenance.get("checked"):
        return read_scores(path)
    nothing = np.full(len(frame), np.nan)
    try:
        index = frame["index"].to_numpy().astype(np.int64)
        names = frame["name"].astype(str).tolist()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InfluenceValueError(
            f"{str(path)!r} is not what influence-ssl check wrote ({described(error)}); check "
            "again."
        ) from error
    scores = Scores(np.zeros(len(frame)), nothing, index, names, provenance)
    return replace(_table(path, scores, frame), scored=False)


def read_scores(path: str | Path) -> Table:
    """Read a score file of any of the forms that ``Scores.save`` and ``influence-ssl score`` write.

    Rank and percentile are computed if the file has none. Raises :class:`InfluenceError`.
    """
    path = path_of(path, "path")
    scores = Scores.load(path)
    n = len(scores)
    if n == 0:
        raise InfluenceValueError(f"{str(path)!r} holds no scores; score at least two images.")
    if not np.isfinite(scores.values).all():
        row = int(np.flatnonzero(~np.isfinite(scores.values))[0])
        raise InfluenceValueError(
            f"{str(path)!r}: the score in row {row} is not finite; score again with "
            "--dtype float64 or a larger --damping."
        )
    return _table(path, scores, _frame(path) if path.suffix != ".npz" else pandas.DataFrame())


def _table(path: Path, scores: Scores, rows: pandas.DataFrame) -> Table:
    n, order = len(scores), scores.order("highest")
    frame = rows.iloc[order] if len(rows) else rows
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
                f"{str(path)!r}: the column {column!r} holds a value that is not a number; "
                "score again, or remove the column."
            ) from error

    def texts(column: str) -> list[str] | None:
        return frame[column].fillna("").astype(str).tolist() if column in frame else None

    rank, percentile, group = numbers("rank"), numbers("percentile"), numbers("duplicate_group")
    if group is not None and (group < 1).any():
        raise InfluenceValueError(
            f"{str(path)!r}: the column 'duplicate_group' contains a number below 1, but groups "
            "are numbered from 1; score again, or remove the column."
        )
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
        group=None if group is None else np.nan_to_num(group, nan=0).astype(np.int64) - 1,
        width=numbers("width"),
        height=numbers("height"),
        bytes=numbers("bytes"),
        provenance=scores.provenance,
    )


def read_labels(path: Path, names: Iterable[str]) -> pandas.DataFrame:
    """The CSV's columns for the images ``names``, in their order; text, empty if there is no row.

    The paths of the images are in the first existing column of :data:`KEYS`. They may have more or
    fewer leading folders than in the score file: absolute, below another folder, or bare names. A
    leading ``./`` and the direction of slashes do not matter. A path that fits two images, or an
    image that two paths fit, is an error. Commas, semicolons or tabs separate the columns.
    ``attrs["matched"]`` counts the images found. Raises :class:`InfluenceError`.
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
            f"--table {str(path)!r} has no column of paths; name it {' or '.join(KEYS)} "
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
    joined = _joined(wanted, frame[key].tolist(), path)
    found = frame.set_index(key).reindex(joined)
    matched = sum(name != "" for name in joined)
    if not matched:
        raise InfluenceValueError(
            f"--table {str(path)!r} names none of the images: it has {frame[key].iloc[0]!r}, "
            f"the scores have {wanted[0]!r}; write the paths as in the score file."
            if len(frame)
            else f"--table {str(path)!r} has no rows; add one per image."
        )
    found = found.fillna("").apply(lambda column: column.str.strip()).reset_index(drop=True)
    found.attrs["matched"] = matched
    return found


def _joined(wanted: list[str], keys: list[str], table: Path) -> list[str]:
    """For each image, its path in the table, or "": the same path, or the only one of which one
    is the ending of the other."""
    own = set(wanted) & set(keys)
    whole, ends = set(keys) - own, dict[str, list[str]]()
    for key in whole:
        for end in _ends(key):
            ends.setdefault(end, []).append(key)
    found, taken = [], dict[str, str]()
    for name in wanted:
        fit = [name] if name in own else sorted(ends.get(name, []))
        if not fit:
            fit = [part for part in _ends(name) if part in whole][:1]
        if len(fit) > 1:
            raise InfluenceValueError(
                f"--table {str(table)!r} has {fit[0]!r} and {fit[1]!r} for the image {name!r}; "
                "give unambiguous paths."
            )
        if fit and fit[0] in taken:
            raise InfluenceValueError(
                f"--table {str(table)!r}: {fit[0]!r} fits the images {taken[fit[0]]!r} and "
                f"{name!r}; give unambiguous paths."
            )
        taken |= dict.fromkeys(fit, name)
        found += fit or [""]
    return found


def _ends(path: str) -> Iterator[str]:
    """The endings of a path without its first folder, its first two folders, and so on."""
    parts = path.split("/")
    return ("/".join(parts[start:]) for start in range(1, len(parts)))


def _frame(path: Path) -> pandas.DataFrame:
    if path.suffix == ".parquet":
        return pandas.read_parquet(path)
    # As text: a name such as "NA" stays a name. The first line is the provenance.
    return pandas.read_csv(path, skiprows=1, dtype=str, keep_default_na=False)


def _plain(name: str) -> str:
    return posixpath.normpath(name.strip().replace("\\", "/"))

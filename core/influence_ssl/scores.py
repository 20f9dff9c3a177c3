"""Scores: values, order, uncertainty; saved and loaded with their provenance."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from influence_ssl._numbers import is_one_of
from influence_ssl.errors import (
    InfluenceOSError,
    InfluenceTypeError,
    InfluenceValueError,
    described,
    path_of,
)
from influence_ssl.files.tables import frame, read_csv, read_parquet, save

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Scores:
    r"""Influence scores :math:`I_i = -g_i^\top(H+\lambda\mathbf I)^{-1}g_i` of N examples.

    ``values`` (N,) float64 holds the signed scores of the paper's Equation 6, averaged over draws;
    they are ≤ 0 if H + λI is positive definite. ``standard_error`` (N,) is taken over draws and is
    NaN for a single draw. ``index`` (N,) holds the indices of the examples, ``names`` their paths,
    if there are any, and ``provenance`` records how the scores were computed.

    The same pass also yields ``loss`` (N,), the objective's loss, and ``gradient_norm`` (N,),
    :math:`|g_i|` of the projected gradient, both averaged over draws. ``per_draw`` (draws, N) holds
    the signed scores of each draw, and ``representations`` (N, D) holds :math:`f(x_i)` in float32
    if they were requested. An ``.npz`` file keeps all of this, ``.csv`` and ``.parquet`` only the
    scores.

    ``scores[rows]`` selects rows by a slice, a mask or positions, and ``numpy.asarray(scores)`` is
    ``values``. Two scores are equal if all their columns and their provenance are equal.
    """

    values: Float64[np.ndarray, " n"]
    standard_error: Float64[np.ndarray, " n"]
    index: Int64[np.ndarray, " n"]
    names: Sequence[str] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    loss: Float64[np.ndarray, " n"] | None = None
    gradient_norm: Float64[np.ndarray, " n"] | None = None
    per_draw: Float64[np.ndarray, "draws n"] | None = None
    representations: Float32[np.ndarray, "n d"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", checked_names(self.names))
        for name, (_, axes) in _FORMS.items():
            column = getattr(self, name)
            if name != "names" and (column is not None or name in _ALWAYS):
                object.__setattr__(self, name, column := np.asarray(column))
                if column.ndim != axes:
                    raise InfluenceValueError(
                        f"Scores: {name} must be an array with {axes} axes, not {column.ndim}."
                    )
        rows = self.loss, self.gradient_norm, self.representations, self.names
        lengths = {len(self.values), len(self.standard_error), len(self.index)}
        lengths |= {len(column) for column in rows if column is not None}
        lengths |= set() if self.per_draw is None else {self.per_draw.shape[1]}
        if len(lengths) > 1:
            raise InfluenceValueError(f"Scores: the columns have different lengths {lengths}.")

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> Scores:
        if isinstance(rows, int | np.integer):
            raise InfluenceTypeError(
                f"scores[{rows}]: give a slice, a mask or a list of positions; for one value, use "
                f"scores.values[{rows}]."
            )
        if hasattr(rows, "__array__"):  # NumPy takes a tensor of one position for a number
            rows = np.asarray(rows)
        n = len(self)
        ways = f"scores[{rows!r:.60}]: give a slice, a mask or a list of positions below {n}."
        try:
            kept = None if isinstance(rows, tuple) else np.arange(n)[rows]
        except (IndexError, TypeError, ValueError) as error:
            raise InfluenceValueError(ways) from error
        if kept is None or kept.ndim != 1:
            raise InfluenceTypeError(ways)
        found: dict[str, Any] = {name: column[kept] for name, column in self._columns().items()}
        names = None if self.names is None else [self.names[i] for i in kept]
        per_draw = None if self.per_draw is None else self.per_draw[:, kept]
        return replace(self, **found, names=names, per_draw=per_draw)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scores):
            return NotImplemented
        a, b = (
            scores._columns() | ({} if scores.per_draw is None else {"per_draw": scores.per_draw})
            for scores in (self, other)
        )
        names = [None if x.names is None else list(x.names) for x in (self, other)]
        return (
            a.keys() == b.keys()
            and all(np.array_equal(a[name], b[name], equal_nan=True) for name in a)
            and names[0] == names[1]
            and self.provenance == other.provenance
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)

    def _columns(self) -> dict[str, np.ndarray]:
        """The fields that have one row per example."""
        names = "values", "standard_error", "index", "loss", "gradient_norm", "representations"
        found = {name: getattr(self, name) for name in names}
        return {name: column for name, column in found.items() if column is not None}

    @property
    def magnitude(self) -> Float64[np.ndarray, " n"]:
        """−values; "highest influence" always means the largest magnitude."""
        return -self.values

    def order(self, which: str = "highest") -> Int64[np.ndarray, " n"]:
        """Positions sorted by magnitude, ``"highest"`` or ``"lowest"`` first; ties by index."""
        if not is_one_of(which, ("highest", "lowest")):
            raise InfluenceValueError(f"order: which={which!r} must be 'highest' or 'lowest'.")
        key = self.values if which == "highest" else self.magnitude
        return np.lexsort((self.index, key))

    def to_pandas(self) -> pandas.DataFrame:
        """A table with the columns index, name (if there are names), score, standard_error."""
        names = {} if self.names is None else {"name": list(self.names)}
        scores = {"score": self.values, "standard_error": self.standard_error}
        return frame({"index": self.index, **names, **scores})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``.npz``, ``.csv`` or ``.parquet``, whole or not at all."""
        save(self, path, {".npz": _write_npz})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Read a file that :meth:`save` wrote."""
        path = path_of(path, "path")
        read = _READERS.get(path.suffix)
        if read is None:
            raise InfluenceValueError(f"{path}: the suffix must be one of {', '.join(_READERS)}.")
        try:
            return read(path)
        except InfluenceTypeError:
            raise
        except OSError as error:
            raise InfluenceOSError(f"{path}: cannot be read: {error.strerror or error}.") from error
        except Exception as error:
            raise InfluenceValueError(
                f"{path}: is not a file of scores ({described(error)})."
            ) from error


def checked_names(names: Iterable[str] | None) -> Sequence[str] | None:
    """The names. Raises unless all are strings, which files give back as they were."""
    if names is not None and not isinstance(names, Iterable):
        raise InfluenceTypeError(f"names={names!r:.60} must hold one name per image.")
    if not isinstance(names, Sequence | None):  # a pandas.Series finds by its own labels
        names = list(names)
    for i, name in enumerate(() if names is None else names):
        if not isinstance(name, str):
            raise InfluenceValueError(
                f"names must be strings, but name {i} is {name!r:.60} ({type(name).__name__}); "
                "give [str(name) for name in names]."
            )
    return names


def _write_npz(scores: Scores, path: Path) -> None:
    columns: dict[str, Any] = scores._columns()
    if scores.names is not None:
        columns["names"] = np.array(list(scores.names), dtype=str)
        if odd := [name for name in scores.names if name.endswith("\0")]:
            raise InfluenceValueError(
                f"an .npz file drops the null character at the end of the name {odd[0]!r}; remove "
                "it from the name."
            )
    if scores.per_draw is not None:
        columns["per_draw"] = scores.per_draw
    np.savez_compressed(path, provenance=np.array(json.dumps(scores.provenance)), **columns)


_ALWAYS = "values", "standard_error", "index"
# The kind of numbers and the axes of each array of an .npz.
_FORMS = dict.fromkeys(("values", "standard_error", "loss", "gradient_norm"), ("f", 1))
_FORMS |= {"per_draw": ("f", 2), "representations": ("f", 2), "index": ("i", 1), "names": ("U", 1)}


def _read_npz(path: Path) -> Scores:
    with np.load(path, allow_pickle=False) as file:
        columns = {name: file[name] for name in file.files}
    for name, column in columns.items():
        kind, axes = _FORMS.get(name, (column.dtype.kind, column.ndim))
        if (column.dtype.kind, column.ndim) != (kind, axes):
            raise ValueError(f"{name} is of type {column.dtype} with {column.ndim} axes")
    names = columns.pop("names", None)
    provenance = json.loads(str(columns.pop("provenance")))
    return Scores(names=None if names is None else names.tolist(), provenance=provenance, **columns)


def _from_table(path: Path, table: pandas.DataFrame, provenance: dict[str, Any]) -> Scores:
    if "score" not in table and provenance.get("checked"):
        raise InfluenceTypeError(
            f"{path}: influence-ssl check wrote this file, which holds no scores; give a file "
            "that influence-ssl score wrote."
        )
    return Scores(
        np.array([float(value) for value in table["score"]]),
        # An empty cell of a CSV is no number; a zero is one.
        np.array([float("nan" if value == "" else value) for value in table["standard_error"]]),
        table["index"].to_numpy().astype(np.int64),
        table["name"].tolist() if "name" in table else None,
        provenance,
    )


_READERS: dict[str, Callable[[Path], Scores]] = {
    ".npz": _read_npz,
    ".csv": lambda path: _from_table(path, *read_csv(path)),
    ".parquet": lambda path: _from_table(path, *read_parquet(path)),
}

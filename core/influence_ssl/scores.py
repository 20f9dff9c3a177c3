"""Scores: values, order, uncertainty; saved and loaded with their provenance."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Int64

from influence_ssl.errors import InfluenceOSError, InfluenceTypeError, InfluenceValueError

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Scores:
    r"""Influence scores :math:`I_i = -g_i^\top(H+\lambda I)^{-1}g_i` of N examples.

    ``values`` (N,) float64 are signed as in the paper's Equation 6, ≤ 0 where H + λI is positive
    definite; with several draws the mean over draws. ``standard_error`` (N,) over draws, NaN for
    one draw. ``index`` (N,) the examples' indices, ``names`` their paths where there are any,
    ``provenance`` how the scores were made.
    """

    values: Float64[np.ndarray, " n"]
    standard_error: Float64[np.ndarray, " n"]
    index: Int64[np.ndarray, " n"]
    names: Sequence[str] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {len(self.values), len(self.standard_error), len(self.index)}
        if self.names is not None:
            lengths.add(len(self.names))
        if len(lengths) > 1:
            raise InfluenceValueError(f"Scores: the columns have different lengths {lengths}.")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def magnitude(self) -> Float64[np.ndarray, " n"]:
        """−values: "highest influence" always means the largest magnitude."""
        return -self.values

    def order(self, which: str = "highest") -> Int64[np.ndarray, " n"]:
        """Positions sorted by magnitude, ``"highest"`` or ``"lowest"`` first; ties by index."""
        if which not in ("highest", "lowest"):
            raise InfluenceValueError(f"order: which={which!r} must be 'highest' or 'lowest'.")
        key = self.values if which == "highest" else self.magnitude
        return np.lexsort((self.index, key))

    def to_pandas(self) -> pandas.DataFrame:
        """A table with the columns index, name (where there are names), score, standard_error."""
        try:
            import pandas
        except ImportError as error:
            raise InfluenceTypeError(
                "pandas is not installed; install it with: pip install 'influence-ssl[report]'"
            ) from error
        names = {} if self.names is None else {"name": list(self.names)}
        scores = {"score": self.values, "standard_error": self.standard_error}
        return pandas.DataFrame({"index": self.index, **names, **scores})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``.npz``, ``.csv`` or ``.parquet``; the file appears whole or not at all."""
        path = Path(path)
        write = _WRITERS.get(path.suffix)
        if write is None:
            raise InfluenceValueError(f"{path}: the suffix must be one of {', '.join(_WRITERS)}.")
        part = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            try:
                write(self, str(part))
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise InfluenceOSError(f"{path}: cannot be written: {error.strerror}.") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Read what :meth:`save` wrote."""
        path = Path(path)
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
            raise InfluenceValueError(f"{path}: is not a file of scores ({error}).") from error


def _write_npz(scores: Scores, path: str) -> None:
    names = None if scores.names is None else np.array(list(scores.names), dtype=str)
    columns: dict[str, Any] = {} if names is None else {"names": names}
    np.savez_compressed(
        path, values=scores.values, standard_error=scores.standard_error, index=scores.index,
        provenance=np.array(json.dumps(scores.provenance)), **columns,
    )  # fmt: skip


def _read_npz(path: Path) -> Scores:
    with np.load(path, allow_pickle=False) as file:
        names = [str(name) for name in file["names"]] if "names" in file else None
        provenance = json.loads(str(file["provenance"]))
        return Scores(file["values"], file["standard_error"], file["index"], names, provenance)


def _tables(name: str) -> Callable[..., Any]:
    """A function on tables; their module comes with the extra ``report``, as pandas does."""
    return lambda *x: getattr(import_module("influence_ssl.report.tables"), name)(*x)


_WRITERS: dict[str, Callable[..., None]] = {".npz": _write_npz, ".csv": _tables("write_csv")}
_WRITERS[".parquet"] = _tables("write_parquet")
_READERS: dict[str, Callable[..., Scores]] = {".npz": _read_npz, ".csv": _tables("read_csv")}
_READERS[".parquet"] = _tables("read_parquet")

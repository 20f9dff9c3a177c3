r"""The influence of training images on queries, :math:`-g_q^\top (H+\lambda\mathbf I)^{-1} g_i`.

It is the derivative of the query's loss with respect to the weight of training image i in the
objective (Koh and Liang 2017, arXiv:1703.04730). A negative value *helps* the query: more weight
on the image lowers the query's loss. In terms of the curvature's φ it is
:math:`-\varphi(g_q)\cdot\varphi(g_i)`, and its diagonal is the self-score.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from influence_ssl._kept import Embedded
from influence_ssl._memory import free_memory
from influence_ssl._numbers import is_one_of
from influence_ssl.errors import InfluenceTypeError, InfluenceValueError
from influence_ssl.files.tables import frame, save

if TYPE_CHECKING:
    import pandas

NORMALISED = "cosine", "centred"
# At most this many influences, or numbers of φ, are held at a time.
_ENTRIES = 2**25
_CPU = torch.device("cpu")
_NAN = float("nan")
_UNUSABLE = TypeError, ValueError, RuntimeError
_PLAIN = (
    "group must hold one plain label per training image, such as a string or an integer, for "
    "instance [str(label) for label in group]."
)


@dataclass(frozen=True, eq=False)
class Influence:
    r"""The influence of training images on Q queries.

    ``values`` (Q, T) float64 holds one row per query. By default the row contains all T = N
    training images in their order. With ``top`` it contains only the extremes, sorted from the
    image that helps the query most (the most negative value) to the one that hurts it most. With
    ``group`` it contains the sums over groups.

    ``positions`` (Q, T) gives the training image or group in each place, ``names`` their names and
    ``index`` (N,) the indices of the training images (or the numbers of the groups). ``queries``
    (Q,) holds the names of the queries, or their indices if they have none, and ``provenance``
    records how everything was computed.
    """

    values: Float64[np.ndarray, "q t"]
    positions: Int64[np.ndarray, "q t"]
    index: Int64[np.ndarray, " n"]
    names: Sequence[str] | None
    queries: Sequence[Hashable]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per query and training image: query, rank, index, name, influence."""
        q, t = self.values.shape
        places = self.positions.reshape(-1)
        columns: dict[str, Any] = {
            "query": np.repeat(np.array(self.queries, dtype=object), t),
            "rank": np.tile(np.arange(1, t + 1), q),
            "index": self.index[places],
        }
        if self.names is not None:
            columns["name"] = [self.names[i] for i in places]
        return frame({**columns, "influence": self.values.reshape(-1)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table of :meth:`to_pandas` to ``.csv`` or ``.parquet``, whole or not at all.

        A CSV holds the provenance in its first line, a Parquet file in its metadata.
        """
        save(self, path)


def refuse(
    kept: Embedded,
    queries: int,
    top: int | None,
    group: list[Hashable] | None,
    normalise: str | None,
) -> None:
    """Raise before any pass if :func:`products` could not do what is asked."""
    if top is not None and (not isinstance(top, Integral) or top < 1):
        raise InfluenceValueError(f"top={top!r} must be None or an integer ≥ 1.")
    if normalise is not None and not is_one_of(normalise, NORMALISED):
        raise InfluenceValueError(
            f"normalise={normalise!r} must be None or one of {', '.join(map(repr, NORMALISED))}."
        )
    if normalise == "centred" and queries < 2:
        raise InfluenceValueError(
            "normalise='centred' subtracts the mean over queries; give at least two queries."
        )
    if normalise == "cosine" and group is not None:
        raise InfluenceValueError(
            "normalise='cosine' applies to single images, and a sum of cosines is not a cosine; "
            "leave out group."
        )
    if normalise == "cosine" and kept.signs is not None:
        raise InfluenceValueError(
            "normalise='cosine': H + λI is indefinite and defines no length; increase the damping."
        )
    n = len(kept.index)
    if group is not None:
        if len(group) != n:
            raise InfluenceValueError(f"group holds {len(group)} labels for {n} training images.")
        n = len(_named(group))
    if (top is None or group is not None) and 8.0 * queries * n > free_memory(_CPU) / 2:
        raise InfluenceValueError(
            f"the influence of {n} images on {queries} queries takes {8e-9 * queries * n:.1f} GB; "
            "give top=20, or fewer queries at a time."
        )


def products(
    asked: Embedded,
    kept: Embedded,
    top: int | None,
    group: list[Hashable] | None,
    normalise: str | None,
    provenance: dict[str, Any],
) -> Influence:
    """−φ(q)·φ(i) for all pairs of query and training image, or for the ``top`` at both ends."""
    phi = asked.phi
    if normalise == "centred":
        phi = phi - phi.mean(0)
    if normalise == "cosine":
        phi = _unit(phi)
    if kept.signs is not None:
        phi = phi * kept.signs.repeat(phi.shape[1] // len(kept.signs))
    index, names, member = kept.index, kept.names, None
    if group is not None:
        different, member = _groups(group)
        index, names = np.arange(len(different)), list(map(str, different))
    n, q, start = len(index), len(phi), 0
    whole = None if top is not None and member is None else np.zeros((q, n))
    ends = None if top is None else _Ends(q, min(top, n))
    # φ of the training images may be on a disk, so it is read once.
    for some in kept.blocks(max(1, _ENTRIES // max(q, phi.shape[1]))):
        rows = some.to(phi)
        if normalise == "cosine":
            rows = _unit(rows)
        found = -(phi @ rows.T).cpu().numpy()
        stop = start + len(rows)
        if member is not None:
            assert whole is not None
            np.add.at(whole.T, member[start:stop], found.T)
        elif whole is not None:
            whole[:, start:stop] = found
        elif ends is not None:
            ends.see(found, start)
        start = stop
    queries = asked.index.tolist() if asked.names is None else list(asked.names)
    if ends is None:
        assert whole is not None
        return Influence(whole, np.tile(np.arange(n), (q, 1)), index, names, queries, provenance)
    if whole is not None:
        ends.see(whole, 0)
    return Influence(*ends.found(), index, names, queries, provenance)


def _unit(phi: Float[Tensor, "b m"]) -> Float[Tensor, "b m"]:
    """Rows scaled to length 1; the zero row of a zero gradient stays zero."""
    length = phi.norm(dim=1, keepdim=True)
    return phi / length.where(length > 0, 1)


class _Ends:
    """The ``top`` lowest and highest values per row, from blocks of columns; ties by column."""

    def __init__(self, rows: int, top: int) -> None:
        self.top = top
        self.values: list[np.ndarray] = [np.empty(0)] * rows
        self.places: list[np.ndarray] = [np.empty(0, np.int64)] * rows

    def see(self, values: Float[np.ndarray, "q b"], start: int) -> None:
        """Add the next columns, of which the first has number ``start``."""
        k, b = self.top, values.shape[1]
        for i, row in enumerate(values):
            columns = np.arange(b)
            if b > 4 * k:
                sorted_ends = np.partition(row, [k - 1, b - k])
                columns = np.flatnonzero((row <= sorted_ends[k - 1]) | (row >= sorted_ends[b - k]))
            found = np.concatenate([self.values[i], row[columns]])
            places = np.concatenate([self.places[i], columns + start])
            order = np.lexsort((places, found))
            n = len(order)
            order = order[[*range(min(k, n)), *range(max(k, n - k), n)]]
            self.values[i], self.places[i] = found[order], places[order]

    def found(self) -> tuple[Float64[np.ndarray, "q t"], Int64[np.ndarray, "q t"]]:
        """Values in ascending order and their columns."""
        return np.stack(self.values), np.stack(self.places)


def labels(group: Iterable[Hashable] | Tensor) -> list[Hashable]:
    """Plain values, because tensors of equal labels differ, as NaN differs from itself."""
    try:
        values: Any = group.tolist() if isinstance(group, Tensor | np.ndarray) else list(group)
        plain = [one.item() if isinstance(one, Tensor | np.generic) else one for one in values]
        return [_NAN if one != one else one for one in plain]
    except _UNUSABLE as error:  # a number, rows, a missing value of pandas
        raise InfluenceTypeError(_PLAIN) from error


def _named(group: list[Hashable]) -> dict[str, Hashable]:
    """The different labels by name. Raises where they name no groups."""
    found: dict[str, Hashable] = {}
    try:
        different = dict.fromkeys(group)
    except TypeError as error:  # a list
        raise InfluenceTypeError(_PLAIN) from error
    for label in different:
        if (other := found.setdefault(str(label), label)) is not label:
            raise InfluenceValueError(
                f"group holds {other!r} and {label!r}, two labels of one name; give labels of one "
                "type, for instance [str(label) for label in group]."
            )
    return found


def _groups(group: list[Hashable]) -> tuple[list[Hashable], Int64[np.ndarray, " n"]]:
    """The labels in order of first appearance, and the place of each image's label among them."""
    number: dict[Hashable, int] = {}
    member = [number.setdefault(label, len(number)) for label in group]
    return list(number), np.array(member, dtype=np.int64)

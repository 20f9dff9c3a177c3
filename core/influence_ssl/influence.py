r"""The influence of training images on queries, :math:`-g_q^\top (H+\lambda I)^{-1} g_i`.

It is the derivative of the query's loss with respect to the weight of training image i in the
objective (Koh and Liang 2017, arXiv:1703.04730): negative where more of the image lowers the
query's loss, so a negative value *helps* the query. With φ of the curvature it is
:math:`-\varphi(g_q)\cdot\varphi(g_i)`, and its diagonal is the self-score.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from influence_ssl._memory import free_memory
from influence_ssl.errors import InfluenceTypeError, InfluenceValueError
from influence_ssl.scores import TABLES, save

if TYPE_CHECKING:
    import pandas

# So many influences are computed at a time.
_ENTRIES = 2**25


@dataclass(frozen=True, eq=False)
class Embedded:
    """φ of the training images that a scorer keeps, with their indices and names."""

    phi: Float[Tensor, "n m"]
    index: Int64[np.ndarray, " n"]
    names: Sequence[str] | None
    signs: Float64[Tensor, " m"] | None


@dataclass(frozen=True, eq=False)
class Influence:
    r"""Influence of training images on Q queries.

    ``values`` (Q, T) float64: of all training images, T = N, in their order; or with ``top`` of the
    ones that matter most, sorted, first those that help the query most (the most negative values)
    and last those that hurt it most; or with ``group`` the sums over groups. ``positions`` (Q, T)
    says which training image or group stands where, ``names`` what they are called and
    ``index`` (N,) the training images' indices (of groups: their numbers). ``queries`` (Q,) are the
    queries' names, or their indices where they have none; ``provenance`` how all was made.
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
        try:
            import pandas
        except ImportError as error:
            raise InfluenceTypeError(
                "pandas is not installed; install it with: pip install 'influence-ssl[report]'"
            ) from error
        q, t = self.values.shape
        places = self.positions.reshape(-1)
        columns: dict[str, Any] = {
            "query": np.repeat(np.array(self.queries, dtype=object), t),
            "rank": np.tile(np.arange(1, t + 1), q),
            "index": self.index[places],
        }
        if self.names is not None:
            columns["name"] = [self.names[i] for i in places]
        return pandas.DataFrame({**columns, "influence": self.values.reshape(-1)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table of :meth:`to_pandas` to ``.csv`` or ``.parquet``, whole or not at all.

        The provenance stands in the first line of a CSV and in the metadata of a Parquet file.
        """
        save(self, path, TABLES)


def refuse_too_large(n: int, width: int, like: Tensor) -> None:
    """Raise where φ (n, width) does not fit into half of the free memory, in ``like``'s dtype."""
    needed, free = n * width * like.element_size(), free_memory(like.device)
    if needed > free / 2:
        raise InfluenceValueError(
            f"the embeddings of {n} images take {needed / 1e9:.1f} GB, more than half of the "
            f"{free / 1e9:.1f} GB that are free; give fewer images or draws, or a lower rank."
        )


def products(
    asked: Embedded,
    kept: Embedded,
    top: int | None,
    group: Sequence[Hashable] | np.ndarray | None,
    draws: int,
    provenance: dict[str, Any],
) -> Influence:
    """−φ(q)·φ(i) of all queries and training images, all of them or the ``top`` at both ends."""
    if top is not None and (not isinstance(top, Integral) or top < 1):
        raise InfluenceValueError(f"top={top!r} must be None or an integer ≥ 1.")
    phi = -asked.phi if kept.signs is None else -asked.phi * kept.signs.repeat(draws)
    index, names, member = kept.index, kept.names, None
    if group is not None:
        labels, member = _groups(group, len(index))
        index, names = np.arange(len(labels)), list(map(str, labels))
    n, q = len(index), len(phi)
    if top is None and 8.0 * q * n > free_memory(phi.device) / 2:
        raise InfluenceValueError(
            f"the influence of {n} images on {q} queries takes {8e-9 * q * n:.1f} GB; give top=20, "
            "or fewer queries at a time."
        )
    found: list[np.ndarray] = []
    places: list[np.ndarray] = []
    for rows in phi.split(max(1, _ENTRIES // len(kept.phi))):
        values = (rows @ kept.phi.T).double()
        if member is not None:
            at = torch.from_numpy(member).to(values.device)
            values = values.new_zeros(len(rows), n).index_add_(1, at, values)
        if top is not None:
            values, order = values.sort(stable=True, dim=1)  # ties by position
            ends = [*range(min(top, n)), *range(max(top, n - top), n)]
            values, order = values[:, ends], order[:, ends]
            places.append(order.cpu().numpy())
        found.append(values.cpu().numpy())
    values = np.concatenate(found)
    positions = np.concatenate(places) if places else np.tile(np.arange(n), (q, 1))
    queries = asked.index.tolist() if asked.names is None else list(asked.names)
    return Influence(values, positions, index, names, queries, provenance)


def _groups(
    group: Sequence[Hashable] | np.ndarray, n: int
) -> tuple[list[Hashable], Int64[np.ndarray, " n"]]:
    """The labels in the order of their first image, and each image's place among them."""
    if len(group) != n:
        raise InfluenceValueError(f"group holds {len(group)} labels for {n} training images.")
    number: dict[Hashable, int] = {}
    member = [number.setdefault(label, len(number)) for label in group]
    return list(number), np.array(member, dtype=np.int64)

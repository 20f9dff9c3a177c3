r"""For each query, the images that help and hurt it, beside those that look similar.

The influence of image i on query q is :math:`-\varphi_q\cdot\varphi_i`, as in
:mod:`influence_ssl.influence`: negative values help. The two alternatives use no gradient: the
cosine of the representations and Pearson's correlation of the grey thumbnails.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor
from torch.utils.data import Subset

from influence_ssl.analysis.neighbours import unit
from influence_ssl.analysis.reliability import reliability
from influence_ssl.errors import InfluenceValueError
from influence_ssl.files.tables import frame, save
from influence_ssl.scorer import InfluenceScorer

if TYPE_CHECKING:
    import pandas

    from influence_ssl.files.images import ImageFiles

LISTS = ("helps", "hurts", "representation", "pixels")
# At most this many influences, over all draws, or numbers of φ are held at a time.
_ENTRIES = 2**25


class Seen(NamedTuple):
    """The fitted images' f(x), grey thumbnails and pixel digests, as a supplement to φ."""

    representations: Float[np.ndarray, "n d"]
    thumbnails: UInt8[np.ndarray, "n h w"]
    pixels: Sequence[str]


class Entry(NamedTuple):
    """A fitted image in a list: its position, three numbers, and whether it is the query itself."""

    position: int
    influence: float
    representation: float
    pixels: float
    same: bool


class Found(NamedTuple):
    """One query: its lists by name, each best first, and further facts.

    ``same``: positions of the fitted images with identical pixels. ``reliability``: the expected
    rank correlation between its influences and those of another run with as many draws; None for
    one draw.
    """

    query: str
    lists: dict[str, list[Entry]]
    same: list[int]
    reliability: float | None

    def shared(self, rival: str) -> int:
        """The number of images that help most and are also in the list ``rival``."""
        near = {entry.position for entry in self.lists[rival]}
        return sum(entry.position in near for entry in self.lists["helps"])


@dataclass(frozen=True, eq=False)
class Trace:
    """The lists of all queries; ``names`` and ``index`` (N,) are the fitted images'."""

    found: list[Found]
    top: int
    names: Sequence[str]
    index: Int64[np.ndarray, " n"]
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per query, list and image.

        Columns: query, list (one of :data:`LISTS`), rank in it, index and name of the image, its
        influence on the query, the cosine of the two representations, the correlation of the two
        thumbnails, and whether the image has the query's pixels.
        """
        rows = [
            (one.query, which, rank, int(self.index[e.position]), self.names[e.position], *e[1:])
            for one in self.found
            for which in LISTS
            for rank, e in enumerate(one.lists[which], 1)
        ]
        columns = "query", "list", "rank", "index", "name", "influence", *LISTS[2:], "same_pixels"
        parts = zip(*rows, strict=True) if rows else [()] * len(columns)
        return frame(dict(zip(columns, map(list, parts), strict=True)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_pandas` to ``.csv`` or ``.parquet``, whole or not at all."""
        save(self, path)


def trace(
    scorer: InfluenceScorer,
    seen: Seen,
    queries: ImageFiles,
    top: int = 10,
    cosine: bool = False,
) -> Trace:
    r"""The ``top`` images of each of the four lists, for each query.

    - scorer: fitted with ``keep=True`` on the images that ``seen`` describes, in the same order.
    - queries: after :meth:`~influence_ssl.files.images.ImageFiles.readable`. Their noise is that of
      indices after all fitted images', so influences equal those of ``scorer.influence(queries)``.
    - top: an image helps only if its influence is negative and hurts only if it is positive, so a
      list of influences may be shorter.
    - cosine: influences divided by the lengths of both φ.

    Cost: two passes over the queries and one product of φ. Apart from the result, memory does not
    grow with the number of queries. Raises :class:`InfluenceError`.
    """
    kept = scorer.fit_.kept
    if kept is None or kept.names is None:
        raise InfluenceValueError(
            "no named images were kept; call fit(images, names=..., keep=True)."
        )
    n = len(kept.index)
    if not 1 <= top <= n:
        raise InfluenceValueError(f"top={top} must be from 1 to {n}, the number of images.")
    index = queries.index + int(kept.index.max()) + 1
    known: dict[str, list[int]] = {}
    for position, digest in enumerate(seen.pixels):
        known.setdefault(digest, []).append(position)
    bank = unit(seen.representations), _patterns(seen.thumbnails)
    found: list[Found] = []
    provenance: dict[str, Any] = {}
    step = max(1, _ENTRIES // (scorer.draws * max(n, kept.parts[0].shape[2])))
    for rows in torch.arange(len(queries)).split(step):
        part = Subset(queries, rows.tolist())
        scores = scorer.score(part, index[rows], representations=True)
        assert scores.representations is not None
        provenance = scores.provenance
        per_draw = influences(scorer, scorer.embed(part, index[rows]), cosine)
        asked = unit(scores.representations), _patterns(queries.thumbnails[rows.numpy()])
        alike = [(a @ b.T).double().numpy() for a, b in zip(asked, bank, strict=True)]
        found += [
            _found(
                queries.names[row],
                per_draw[:, k],
                [rival[k] for rival in alike],
                known.get(queries.pixels[row], []),
                top,
            )
            for k, row in enumerate(rows.tolist())
        ]
    provenance |= {"examples": len(queries), "normalise": "cosine" if cosine else None}
    return Trace(found, top, kept.names, kept.index, provenance)


def influences(
    scorer: InfluenceScorer, phi: Float[Tensor, "q dm"], cosine: bool = False
) -> Float64[np.ndarray, "draws q n"]:
    r"""Influences of the kept images on queries with embeddings φ, per draw. Their mean over draws
    is what ``scorer.influence`` returns."""
    kept, draws = scorer.fit_.kept, scorer.draws
    assert kept is not None

    def by_draw(rows: Float[Tensor, "b dm"]) -> Float[Tensor, "draws b m"]:
        if cosine:
            length = rows.norm(dim=1, keepdim=True)
            rows = rows / length.where(length > 0, 1)
        return rows.view(len(rows), draws, -1).transpose(0, 1)

    asked = by_draw(phi)
    blocks = kept.blocks(max(1, _ENTRIES // phi.shape[1]))
    found = [-draws * (asked @ by_draw(rows.to(phi)).mT) for rows in blocks]
    return torch.cat(found, 2).cpu().double().numpy()


def _found(
    query: str,
    per_draw: Float64[np.ndarray, "draws n"],
    alike: list[Float64[np.ndarray, " n"]],
    same: list[int],
    top: int,
) -> Found:
    values = per_draw.mean(0)
    orders = [
        np.argsort(key, kind="stable")[:top] for key in (values, -values, *(-a for a in alike))
    ]
    orders[0] = orders[0][values[orders[0]] < 0]
    orders[1] = orders[1][values[orders[1]] > 0]
    near, pixels = alike

    def entry(i: int) -> Entry:
        return Entry(i, float(values[i]), float(near[i]), float(pixels[i]), i in same)

    lists = {
        name: [entry(i) for i in order.tolist()] for name, order in zip(LISTS, orders, strict=True)
    }
    return Found(query, lists, same, reliability(per_draw))


def _patterns(thumbnails: UInt8[np.ndarray, "n h w"]) -> Float[Tensor, "n hw"]:
    """Centred grey values of length 1, whose products are correlations; 0 for a uniform picture."""
    rows = torch.from_numpy(thumbnails).flatten(1).double()
    return unit(rows - rows.mean(1, keepdim=True))

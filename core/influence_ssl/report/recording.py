"""What a run of the scorer passes by on its way: losses, representations, norms, single draws."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from influence_ssl.curvature import Curvature, Gradients
from influence_ssl.errors import InfluenceOSError
from influence_ssl.gradients import Layer, Objective
from influence_ssl.objectives import Encode
from influence_ssl.report.statistics import spearman


class Recorder:
    """Keeps what :class:`InfluenceScorer` does not return, while it scores with a ``store``.

    ``objective`` and ``curvature`` wrap those of a scorer and change nothing of what they compute.
    Losses and clean representations of each batch are written into the store before its gradients
    are, so that a run that goes on from the store finds them there. After ``score`` returned:
    :meth:`losses`, :meth:`representations`, :meth:`gradient_norms` and :meth:`per_draw`.
    """

    def __init__(self, store: Path, index: Tensor, draws: int) -> None:
        self.store = store
        self.index = index
        self.draws = draws
        self.armed = False
        self.norms: list[Tensor] = []
        self.values: list[Tensor] = []

    def objective(self, inner: Objective) -> Objective:
        """``inner``, recorded."""
        return _Objective(inner, self)

    def curvature(self, inner: Curvature) -> Curvature:
        """``inner``, recorded."""
        return _Curvature(inner, self)

    def add(self, index: Tensor, draw: int, losses: Tensor, z: Tensor | None) -> None:
        """Write one batch's losses (B,) and, in the first draw, representations (B, D)."""
        path = self.store / f"record-{draw}-{int(index[0])}-{int(index[-1])}.npz"
        columns: dict[str, Any] = {
            "index": index.numpy(),
            "losses": losses.detach().double().cpu().numpy(),
        }
        if draw == 0 and z is not None:
            columns["z"] = z.detach().float().cpu().numpy()
        with open(path.with_suffix(".part"), "wb") as file:
            np.savez(file, **columns)
        path.with_suffix(".part").replace(path)

    def losses(self) -> Float64[np.ndarray, " n"]:
        """The objective's loss of each example, mean over draws."""
        found = np.full((self.draws, len(self.index)), np.nan)
        for draw in range(self.draws):
            for rows, record in self._records(draw):
                found[draw, rows] = record["losses"]
        return found.mean(0)

    def representations(self) -> Float32[Tensor, "n d"]:
        """f(x) of each example."""
        parts = [(rows, record["z"]) for rows, record in self._records(0)]
        found = np.empty((len(self.index), parts[0][1].shape[1]), np.float32)
        for rows, z in parts:
            found[rows] = z
        return torch.from_numpy(found)

    def gradient_norms(self) -> Float64[np.ndarray, " n"]:
        """|g_i| of the projected gradients, mean over draws."""
        return torch.cat(self.norms).reshape(self.draws, -1).mean(0).numpy()

    def per_draw(self) -> Float64[np.ndarray, "draws n"]:
        """The scores of each draw."""
        return torch.cat(self.values).reshape(self.draws, -1).numpy()

    def _records(self, draw: int) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
        order = self.index.argsort().numpy()
        ordered = self.index.numpy()[order]
        found = []
        for path in sorted(self.store.glob(f"record-{draw}-*.npz")):
            try:
                with np.load(path) as file:
                    record = {key: file[key] for key in file.files}
            except (OSError, ValueError, zipfile.BadZipFile) as error:
                raise InfluenceOSError(
                    f"{str(path)!r} is damaged; remove the folder {str(self.store)!r} and start "
                    "again."
                ) from error
            found.append((order[np.searchsorted(ordered, record["index"])], record))
        return found


def reliability(per_draw: Float64[np.ndarray, "draws n"]) -> float | None:
    r"""Estimated rank correlation of two independent runs of m draws each; ``None`` for one draw,
    and where a draw's scores are all equal.

    :math:`m r / (1 + (m - 1) r)` (Spearman–Brown), with r the mean Spearman correlation of two
    draws. Encoder, images and projections are the same in both runs, the noise alone is new.
    """
    draws = len(per_draw)
    if draws < 2:
        return None
    pairs = [(a, b) for a in range(draws) for b in range(a)]
    r = float(np.mean([spearman(per_draw[a], per_draw[b]) for a, b in pairs]))
    if not np.isfinite(r):
        return None
    return draws * r / (1 + (draws - 1) * r) if r > 0 else r


class _Objective:
    def __init__(self, inner: Objective, recorder: Recorder) -> None:
        self.inner = inner
        self.recorder = recorder

    def __call__(
        self, encode: Encode, batch: tuple[Tensor, ...], index: Tensor, draw: int, seed: int
    ) -> Tensor:
        seen: list[Tensor] = []

        def recorded(x: Tensor) -> Tensor:
            z = encode(x)
            # The first rows of the first call are the images themselves.
            if not seen:
                seen.append(z.detach()[: len(index)])
            return z

        losses = self.inner(recorded, batch, index, draw, seed)
        if self.recorder.armed:
            self.recorder.add(index, draw, losses, seen[0] if seen else None)
        return losses

    def __repr__(self) -> str:
        return repr(self.inner)


class _Curvature:
    def __init__(self, inner: Curvature, recorder: Recorder) -> None:
        self.inner = inner
        self.recorder = recorder

    def project(self, layers: list[Layer]) -> None:
        self.inner.project(layers)

    def fit(self, gradients: Gradients) -> _Fitted:
        # The checks before this, in another precision, are no part of the run.
        self.recorder.armed = True
        return _Fitted(self.inner.fit(gradients), self.recorder)

    def __repr__(self) -> str:
        return repr(self.inner)


class _Fitted:
    def __init__(self, inner: Callable[[Tensor], Tensor], recorder: Recorder) -> None:
        self.inner = inner
        self.recorder = recorder
        self.provenance: dict[str, Any] = getattr(inner, "provenance", {})

    def __call__(self, gradients: Tensor) -> Tensor:
        forms = self.inner(gradients)
        self.recorder.values.append(-forms.cpu())
        self.recorder.norms.append(gradients.double().norm(dim=1).cpu())
        return forms

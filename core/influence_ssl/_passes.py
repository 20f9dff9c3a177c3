"""The gradients of one data set, draw by draw and batch by batch: what a curvature sees."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev
from tqdm import tqdm

from influence_ssl._examples import Examples
from influence_ssl._store import Store
from influence_ssl.curvature import free_memory
from influence_ssl.errors import InfluenceValueError
from influence_ssl.gradients import Capture, Layer
from influence_ssl.processes import place, total

# The curvature sees so many gradients at a time, and no more bytes: to add a small product to a
# large matrix costs more than the product.
_CHUNK, _CHUNK_BYTES = 1024, 2**29


class Gradients:
    """The draws·N gradients of ``examples``, in batches of ``step`` images at most.

    Each iteration is a pass over the images; after :meth:`keep` the first one serves the later.
    ``capture`` takes them; ``exact`` is the one that the encoder was checked with, in float64 where
    the encoder allows.
    """

    def __init__(
        self,
        capture: Capture,
        exact: Capture,
        examples: Examples,
        draws: int,
        step: int,
        store: Store | None,
        stage: str | None,
    ) -> None:
        self.capture = capture
        self.exact = exact
        self.examples = examples
        self.store = store
        self.stage = stage
        self.layers: list[Layer] = capture.layers
        self.device = capture.device
        self.n = draws * examples.n
        self.index = examples.index
        self._width = sum(layer.size for layer in self.layers) * capture.working.itemsize
        # Unprojected gradients are large: then fewer examples at a time, which no value notices.
        (rank, count), n, most = place(), examples.n, int(_CHUNK_BYTES // self._width)
        if n < count:
            raise InfluenceValueError(f"{count} processes have {n} images; start at most {n}.")
        step = max(1, min(step, most, n // count))
        rows = [range(start, min(start + step, n)) for start in range(0, n, step)]
        own = rows[len(rows) * rank // count : len(rows) * (rank + 1) // count]
        self._batches = [(draw, part) for draw in range(draws) for part in own]
        self._chunk = max(1, min(_CHUNK, most) // step)  # batches at a time to the curvature
        self._kept: list[Tensor] | None = None

    def keep(self) -> None:
        """Keep the gradients of the next pass for later ones, where the memory holds them."""
        size = sum(len(rows) for _, rows in self._batches) * self._width
        if size < free_memory(self.device) / 3:
            self._kept = []
        if self.stage:
            kept = f"{size / 1e9:.1f} GB kept" if self._kept is not None else "two passes"
            self.stage = f"{self.stage} ({kept})"

    def __iter__(self) -> Iterator[Tensor]:
        if self._kept:
            yield from self._kept
            return
        images, finite = sum(len(rows) for _, rows in self._batches), []
        with tqdm(total=images, desc=self.stage, unit="image", disable=not self.stage) as bar:
            for start in range(0, len(self._batches), self._chunk):
                found = []
                for draw, rows in self._batches[start : start + self._chunk]:
                    found.append(self._batch(draw, rows))
                    bar.update(len(rows))
                chunk = torch.cat(found)
                finite.append(chunk.sum(1).isfinite())
                if self._kept is not None:
                    self._kept.append(chunk)
                yield chunk
        # Asked once, at the end of a pass: an answer within it would wait for the device.
        bad = torch.cat(finite).logical_not().nonzero()[:, 0].tolist()
        if bad:
            numbers = [i for _, rows in self._batches for i in rows]
            raise InfluenceValueError(
                f"the gradient of image {int(self.index[numbers[bad[0]]])} is not finite; check "
                "this image and the encoder's weights, or give another dtype."
            )

    def _batch(self, draw: int, rows: range) -> Tensor:
        batch, index = self.examples.batch(rows), self.index[list(rows)]
        if self.store is None:
            return self.capture.flat(batch, index, draw)

        def make() -> Tensor:
            return self.capture.flat(batch, index, draw)

        return self.store.gradients(draw, rows.start, batch, index, make).to(self.device)

    def hessian(self) -> Tensor:
        """Mean Hessian (p, p) of the objective in θ, the layers' weights flattened row by row."""
        weights = {f"{layer.name}.weight": layer.weight for layer in self.layers}
        theta = torch.cat([weight.detach().flatten() for weight in weights.values()])

        def loss(theta: Tensor, rows: range, draw: int) -> Tensor:
            pieces = theta.split([weight.numel() for weight in weights.values()])
            named = {n: p.view_as(w) for (n, w), p in zip(weights.items(), pieces, strict=True)}

            def encode(x: Tensor) -> Tensor:
                return functional_call(self.capture.encoder, named, (x.to(self.capture.dtype),))

            batch, index = self.examples.batch(rows), self.index[list(rows)]
            return self.capture.losses(batch, index, draw, encode).sum()

        hessian = torch.zeros(len(theta), len(theta), dtype=theta.dtype, device=theta.device)
        for draw, rows in self._batches:
            hessian += jacrev(grad(loss), chunk_size=256)(theta, rows, draw)
        hessian = total(hessian)
        return (hessian + hessian.T) / (2 * self.n)

"""The gradients of one data set, draw by draw and batch by batch, for the curvature."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev
from tqdm import tqdm

from influence_ssl._examples import Examples
from influence_ssl._gradients import Capture, Layer
from influence_ssl._memory import free_memory
from influence_ssl._store import Columns, Store
from influence_ssl.curvature import CHUNK, CHUNK_BYTES
from influence_ssl.errors import InfluenceValueError
from influence_ssl.objectives import Batch, Encode, Index, Objective
from influence_ssl.processes import place, total


class Gradients:
    """The draws·N gradients of ``examples``, in batches of at most ``step`` images.

    Each iteration is a pass over the images; after :meth:`keep`, later iterations reuse the first.
    ``capture`` computes the gradients. ``exact`` is the capture with which the encoder was checked,
    in float64 if the encoder allows it.
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
        # Covariances are summed and solved in float64, which Apple's GPU lacks.
        self.device = torch.device("cpu") if capture.device.type == "mps" else capture.device
        self.n = draws * examples.n
        self.index = examples.index
        self._width = sum(layer.size for layer in self.layers) * capture.working.itemsize
        # Unprojected gradients are large, so fewer are taken at a time; no value depends on that.
        (rank, count), n, most = place(), examples.n, int(CHUNK_BYTES // self._width)
        if n < count:
            raise InfluenceValueError(f"{count} processes share {n} images; start at most {n}.")
        step = max(1, min(step, most, n // count))
        rows = [range(start, min(start + step, n)) for start in range(0, n, step)]
        own = rows[len(rows) * rank // count : len(rows) * (rank + 1) // count]
        self._batches = [(draw, part) for draw in range(draws) for part in own]
        self._chunk = max(1, min(CHUNK, most) // step)  # batches per call of the curvature
        self._kept: list[Tensor] | None = None
        self._seen: dict[int, Columns] = {}  # by batch: what a pass computes besides gradients
        self.representations = False  # whether a pass also computes them

    @property
    def own(self) -> int:
        """The number of images that this process handles."""
        return sum(len(rows) for draw, rows in self._batches if draw == 0)

    def keep(self) -> None:
        """Keep the gradients of the next pass for later ones if they fit into memory."""
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
                for number in range(start, min(start + self._chunk, len(self._batches))):
                    columns = self._batch(*self._batches[number])
                    found.append(columns.pop("gradients").to(self.device))
                    self._seen[number] = columns
                    bar.update(len(self._batches[number][1]))
                chunk = torch.cat(found)
                finite.append(chunk.sum(1).isfinite())
                if self._kept is not None:
                    self._kept.append(chunk)
                yield chunk
        # Checked once, at the end of a pass, because each check waits for the device.
        bad = torch.cat(finite).logical_not().nonzero()[:, 0].tolist()
        if bad:
            numbers = [i for _, rows in self._batches for i in rows]
            raise InfluenceValueError(
                f"the gradient of image {int(self.index[numbers[bad[0]]])} is not finite; check "
                "this image and the encoder's weights, or use another dtype."
            )

    def losses(self) -> Tensor:
        """The objective's losses (draws·N,) in the last pass, in float64."""
        return self._column("losses").double()

    def encoded(self) -> Tensor:
        """f(x) (N, D) of the images in the last pass, in float32."""
        return self._column("representations")

    def _column(self, name: str) -> Tensor:
        found = [self._seen[i][name] for i in sorted(self._seen) if name in self._seen[i]]
        return torch.cat([column.to(self.device) for column in found])

    def _batch(self, draw: int, rows: range) -> Columns:
        batch, index = self.examples.batch(rows), self.index[list(rows)]
        seen = draw == 0 and self.representations

        def make() -> Columns:
            observed = _Observed(self.capture.objective, seen)
            gradients = replace(self.capture, objective=observed).flat(batch, index, draw)
            found = {"gradients": gradients, "losses": observed.losses}
            return found | ({"representations": self._encoded(batch[0], observed)} if seen else {})

        if self.store is None:
            return make()
        needed = {"gradients", "losses"} | ({"representations"} if seen else set())
        return self.store.kept(draw, rows.start, batch, index, make, needed)

    @torch.no_grad()
    def _encoded(self, x: Tensor, observed: _Observed) -> Tensor:
        """f(x) in float32, as the objective computed it or else from a separate pass."""
        if observed.z is not None:
            return observed.z.float()
        return self.capture.encode(x.to(self.device), len(x)).float()

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
        return ((hessian + hessian.T) / (2 * self.n)).to(self.device)


class _Observed:
    """An objective that keeps its losses (B,), and f(x) (B, D) if it encodes x itself first.

    That check waits for the device, so it is made only if ``look`` is set.
    """

    def __init__(self, inner: Objective, look: bool) -> None:
        self.inner = inner
        self.look = look
        self.z: Tensor | None = None

    def __call__(self, encode: Encode, batch: Batch, index: Index, draw: int, seed: int) -> Tensor:
        b, first = len(index), self.look

        def observed(x: Tensor) -> Tensor:
            nonlocal first
            z = encode(x)
            if first and torch.equal(x[:b], batch[0]):
                self.z = z.detach()[:b]
            first = False
            return z

        losses = self.inner(observed, batch, index, draw, seed)
        self.losses = losses.detach()
        return losses

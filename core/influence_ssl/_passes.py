"""The gradients of one data set, draw by draw and batch by batch, for the curvature."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev
from tqdm import tqdm

from influence_ssl._batches import Batches, Ready
from influence_ssl._examples import Examples
from influence_ssl._gradients import Capture, Layer
from influence_ssl._memory import free_memory
from influence_ssl._store import Columns, Store
from influence_ssl.curvature import CHUNK, CHUNK_BYTES
from influence_ssl.errors import InfluenceTypeError, InfluenceValueError
from influence_ssl.objectives import Batch, Encode, Index, Objective
from influence_ssl.processes import place, total


class Gradients:
    """The draws·N gradients of ``examples``, in batches of at most ``step`` images.

    Each iteration is a pass over the images; after :meth:`keep`, later iterations reuse the first.
    ``capture`` computes the gradients. ``exact`` is the capture with which the encoder was checked,
    in float64 if the encoder allows it. ``origin`` names what a fit on them depends on.
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
        workers: int | None,
        origin: dict[str, str],
    ) -> None:
        self.capture = capture
        self.exact = exact
        self.origin = origin
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
        self._source = Batches(examples, capture, step, store, workers)
        if draws > 1:
            self._source.keep(self.own)
        self._chunk = max(1, min(CHUNK, most) // step)  # batches per call of the curvature
        self._kept: list[Tensor] | None = None
        self._seen: dict[int, Columns] = {}  # by batch: what a pass computes besides gradients
        self.representations = False  # whether a pass also computes them
        self._clean: bool | None = None  # whether the objective encodes the images themselves first
        self._same: list[Tensor] = []  # whether it did, batch by batch, once that has been found

    @property
    def own(self) -> int:
        """The number of images that this process handles."""
        return sum(len(rows) for draw, rows in self._batches if draw == 0)

    def keep(self) -> None:
        """Keep the gradients of the next pass for later ones if they fit into memory."""
        size = sum(len(rows) for _, rows in self._batches) * self._width
        if size < free_memory(self.device) / 3:
            self._kept = []
        else:
            self._source.keep(self.own)
        if self.stage:
            kept = f"{size / 1e9:.1f} GB kept" if self._kept is not None else "two passes"
            self.stage = f"{self.stage} ({kept})"

    def __iter__(self) -> Iterator[Tensor]:
        if self._kept:
            yield from self._kept
            return
        images, finite = sum(len(rows) for _, rows in self._batches), []
        self._clean, self._same = None, []
        bar = tqdm(total=images, desc=self.stage, unit="image", disable=not self.stage)
        with bar, closing(self._source.ready(self._batches, self._needed)) as source:
            for start in range(0, len(self._batches), self._chunk):
                found = []
                for number in range(start, min(start + self._chunk, len(self._batches))):
                    columns = self._computed(self._batches[number][0], next(source))
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
        if self._same and not torch.stack(self._same).all():
            raise InfluenceTypeError(
                "the objective encodes the images themselves first in some batches only, so their "
                "representations cannot be told; score without representations=True."
            )
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

    def _needed(self, draw: int) -> set[str]:
        seen = draw == 0 and self.representations
        return {"gradients", "losses"} | ({"representations"} if seen else set())

    def _computed(self, draw: int, ready: Ready) -> Columns:
        if ready.stored is not None:
            return ready.stored
        seen = "representations" in self._needed(draw)
        observed = _Observed(ready.objective, seen)
        capture = replace(self.capture, objective=observed)
        found = {"gradients": capture.flat(ready.batch, ready.index, draw)}
        found["losses"] = observed.losses
        if seen:
            found["representations"] = self._encoded(ready.batch[0], observed)
        if self.store is not None:
            self.store.keep(ready.name, found)
        return found

    @torch.no_grad()
    def _encoded(self, x: Tensor, observed: _Observed) -> Tensor:
        """f(x) in float32, as the objective computed it or else from a separate pass."""
        if observed.z is not None and observed.same is not None:
            if self._clean is None or self.store is not None:
                self._clean = bool(observed.same)
            elif self._clean:
                self._same.append(observed.same)
            if self._clean:
                return observed.z.float()
        # An encoder may change its input in place, which is the caller's.
        return self.capture.encode(x.clone(), len(x)).float()

    def hessian(self) -> Tensor:
        """Mean Hessian (p, p) of the objective in θ, the layers' weights flattened row by row."""
        for layer in self.layers:
            if layer.modules[0]._parameters.get("weight") is None:
                raise InfluenceTypeError(
                    f"layer {layer.name!r} ({type(layer.modules[0]).__name__}) recomputes its "
                    "weight in each pass, so autograd forms no exact Hessian; leave it out with "
                    f"layers=['-{layer.name}'], remove its parametrisation, or use LoGra."
                )
        weights = {f"{layer.name}.weight": layer.weight for layer in self.layers}
        theta = torch.cat([weight.detach().flatten() for weight in weights.values()])

        def loss(theta: Tensor, ready: Ready, draw: int) -> Tensor:
            pieces = theta.split([weight.numel() for weight in weights.values()])
            named = {n: p.view_as(w) for (n, w), p in zip(weights.items(), pieces, strict=True)}

            def encode(x: Tensor) -> Tensor:
                # A clone, because the encoder may work in place.
                x = x.to(self.capture.device, self.capture.dtype).clone()
                return functional_call(self.capture.encoder, named, (x,))

            capture = replace(self.capture, objective=ready.objective)
            return capture.losses(ready.batch, ready.index, draw, encode).sum()

        hessian = torch.zeros(len(theta), len(theta), dtype=theta.dtype, device=theta.device)
        with closing(self._source.ready(self._batches, self._needed)) as source:
            for (draw, _), ready in zip(self._batches, source, strict=True):
                hessian += jacrev(grad(loss), chunk_size=256)(theta, ready, draw)
        hessian = total(hessian)
        return ((hessian + hessian.T) / (2 * self.n)).to(self.device)


class _Observed:
    """An objective that keeps its losses (B,), and f(x) (B, D) if it encodes x itself first.

    ``same`` is the answer to that, on the device. It is computed only if ``look`` is set.
    """

    def __init__(self, inner: Objective, look: bool) -> None:
        self.inner = inner
        self.look = look
        self.z: Tensor | None = None
        self.same: Tensor | None = None
        self.on_host = getattr(inner, "on_host", False)

    def __call__(self, encode: Encode, batch: Batch, index: Index, draw: int, seed: int) -> Tensor:
        b, first = len(index), self.look

        def observed(x: Tensor) -> Tensor:
            nonlocal first
            z = encode(x)
            if first and x[:b].shape == batch[0].shape:
                self.z, self.same = z.detach()[:b], (x[:b] == batch[0].to(x.device)).all()
            first = False
            return z

        losses = self.inner(observed, batch, index, draw, seed)
        self.losses = losses.detach()
        return losses

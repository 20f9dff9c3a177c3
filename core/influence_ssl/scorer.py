r"""The method: :math:`I_i = -g_i^\top (H + \lambda I)^{-1} g_i`, Equation 6 of the paper."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev
from tqdm import tqdm

from influence_ssl.curvature import Curvature, LoGra, free_memory
from influence_ssl.errors import InfluenceTypeError, InfluenceValueError
from influence_ssl.gradients import (
    Capture,
    Layer,
    Objective,
    called_layers,
    check_encoder,
    fold_batch_norm,
    untouched,
)
from influence_ssl.objectives import Invariance
from influence_ssl.processes import gather, place, total
from influence_ssl.scores import Scores
from influence_ssl.version import __version__

# The curvature sees so many gradients at a time, and no more bytes: to add a small product to a
# large matrix costs more than the product.
_CHUNK, _CHUNK_BYTES = 1024, 2**29
_BATCH, _LEAST = 256, 8  # images of 3 x 64 x 64, and at least so many of any size

Indices = Sequence[int] | np.ndarray | Tensor


class Dataset(Protocol):
    """A map-style data set: its items are a tensor, or a tuple that begins with one."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


class InfluenceScorer:
    r"""Self-influence of each image on an encoder's own representation of it.

    .. math:: I_i = -g_i^\top (H + \lambda I)^{-1} g_i,\qquad g_i = \nabla_\theta L_i

    with L_i the ``objective``'s loss of example i, θ the weights of the ``Conv2d`` and ``Linear``
    modules that the forward pass calls (or of those named by ``layers``), and (H + λI)⁻¹ the
    ``curvature``. With several ``draws`` of the perturbation H is fitted on all of them, and the
    score is the mean of the per-draw scores. Cost: one forward and one backward pass a draw, the
    backward pass without weight gradients. Source: the paper's Equation 6.

    Where ``torch.distributed`` is initialised, each process takes its part of the examples and all
    of them return all the scores.

    - encoder: maps (B, ...) to (B, D). It runs in eval mode and is left as it was found.
    - objective: :class:`Invariance` by default, or :class:`Supervised`, or any such callable.
    - curvature: :class:`LoGra` by default, ``EmpiricalFisher``, ``ExactHessian`` or ``Identity``.
    - draws, seed: example i's randomness depends on (seed, i, draw) alone.
    - batch_size: for speed and memory only; values do not depend on it. ``None``: 256 images, fewer
      of those larger than 3 x 64 x 64, so that a batch takes about the same memory.
    - device, dtype: where and in what the encoder runs, on a copy where they differ from its own.
    - layers: names of the modules whose weights make θ; ``None`` for all that are called.
    - store: a folder that keeps the projected gradients, so that a stopped run goes on where it
      stopped; one folder for each combination of encoder and settings.
    """

    def __init__(
        self,
        encoder: nn.Module,
        objective: Objective | None = None,
        curvature: Curvature | None = None,
        draws: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        layers: Sequence[str] | None = None,
        progress: bool = True,
        store: str | Path | None = None,
    ) -> None:
        if not isinstance(encoder, nn.Module):
            raise InfluenceTypeError(f"encoder is a {type(encoder).__name__}; give an nn.Module.")
        at_once = 1 if batch_size is None else batch_size
        counts = ("draws", draws, 1), ("batch_size", at_once, 1), ("seed", seed, 0)
        for name, number, least in counts:
            if not isinstance(number, int) or number < least:
                raise InfluenceValueError(f"{name}={number!r} must be an integer ≥ {least}.")
        if dtype and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise InfluenceValueError(f"dtype={dtype!r} must be a floating-point torch.dtype.")
        self.encoder = encoder
        self.objective = Invariance() if objective is None else objective
        self.curvature = LoGra() if curvature is None else curvature
        parts = ("objective", "__call__", "Invariance()"), ("curvature", "fit", "LoGra()")
        for name, method, example in parts:
            if isinstance(part := getattr(self, name), type) or not hasattr(part, method):
                raise InfluenceTypeError(f"{name}={part!r} must be an instance as {example} is.")
        self.draws = draws
        self.seed = seed
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.layers = layers
        self.progress = progress
        self.store = None if store is None else Path(store)

    def images_at_once(self, values: int) -> int:
        """The batch size for images of so many values."""
        return self.batch_size or max(_LEAST, min(_BATCH, _BATCH * 3 * 64**2 // values))

    def fit(self, images: Tensor | Dataset, index: Indices | None = None) -> InfluenceScorer:
        """Fit the curvature on ``images``; later calls of :meth:`score` use it.

        ``index`` (N,) gives the examples' indices where they are not 0 … N − 1.
        """
        with self._gradients(images, index, "fit") as gradients:
            self.fitted_ = self.curvature.fit(gradients)
            self.n_fitted_ = gradients.n
            self.layers_ = [(layer.name, layer.shape) for layer in gradients.layers]
        return self

    def score(
        self,
        images: Tensor | Dataset,
        index: Indices | None = None,
        names: Sequence[str] | None = None,
    ) -> Scores:
        """Scores of ``images``; without an earlier :meth:`fit`, fitted on them for this call."""
        with self._gradients(images, index, "score") as gradients:
            if names is not None and len(names) != gradients.examples.n:
                raise InfluenceValueError(f"names holds {len(names)}, not one for each image.")
            if hasattr(self, "fitted_"):
                fitted, n_fitted = self.fitted_, self.n_fitted_
                if self.layers_ != [(layer.name, layer.shape) for layer in gradients.layers]:
                    raise InfluenceValueError("the encoder's layers changed since fit; fit again.")
            else:
                gradients.keep()
                fitted, n_fitted = self.curvature.fit(gradients), gradients.n
            values = torch.cat([-fitted(g) for g in gradients]).reshape(self.draws, -1)
            per_draw = gather(values.T).T.cpu().numpy()
            provenance = self._provenance(gradients, fitted, n_fitted)
            found = gradients.index.numpy()
        error = np.full(per_draw.shape[1], np.nan)
        if self.draws > 1:
            error = per_draw.std(0, ddof=1) / np.sqrt(self.draws)
        return Scores(per_draw.mean(0), error, found, names, provenance)

    @contextmanager
    def _gradients(
        self, images: Tensor | Dataset, index: Indices | None, stage: str
    ) -> Iterator[_Gradients]:
        examples = _Examples(images, index)
        encoder = self.encoder
        own = Capture(encoder, [], self.objective, self.seed)
        try:
            device = torch.empty(0, device=self.device or own.device).device
        except (RuntimeError, AssertionError) as error:
            reason = f"device={str(self.device)!r} cannot be used: {str(error).splitlines()[0]}"
            raise InfluenceValueError(reason) from None
        dtype = self.dtype or own.dtype
        with untouched(self.encoder):
            first = range(min(2, examples.n))
            sample = examples.batch(first), examples.index[list(first)]
            try:
                # In double precision, where only what is wrong differs, and not rounding.
                exact = encoder if own.dtype == torch.float64 else copy.deepcopy(encoder).double()
                check_encoder(self._capture(exact, examples), *sample)
            except (RuntimeError, TypeError):  # an encoder or a device that knows no doubles
                check_encoder(self._capture(encoder, examples), *sample)
            if (device, dtype) != (own.device, own.dtype):
                encoder = copy.deepcopy(encoder).to(device, dtype)
            capture = fold_batch_norm(self._capture(encoder, examples), sample[0][0])
            yield _Gradients(self, capture, examples, stage)

    def _capture(self, encoder: nn.Module, examples: _Examples) -> Capture:
        """The encoder's layers as one example meets them, with the curvature's projections."""
        capture = Capture(encoder, [], self.objective, self.seed)
        batch, index = examples.batch(range(1)), examples.index[:1]

        def run() -> None:
            capture.losses(batch, index, 0, lambda x: capture.encode(x, 1))

        names = None if self.layers is None else list(self.layers)
        capture.layers = called_layers(encoder, run, names)
        self.curvature.project(capture.layers)
        return capture

    def _provenance(self, gradients: _Gradients, fitted: object, n_fitted: int) -> dict[str, Any]:
        capture = gradients.capture
        used = {id(self.encoder.get_submodule(layer.name).weight) for layer in capture.layers}
        parameters = self.encoder.named_parameters(remove_duplicate=False)
        return {
            "encoder": type(self.encoder).__name__,
            "objective": repr(self.objective),
            "curvature": repr(self.curvature),
            "draws": self.draws,
            "seed": self.seed,
            "examples": gradients.examples.n,
            "fitted gradients": n_fitted,
            "layers": {x.name: [x.out_features, x.in_features] for x in capture.layers},
            "left out": [name for name, x in parameters if id(x) not in used],
            "dtype": str(capture.dtype).removeprefix("torch."),
            "device": str(capture.device),
            "versions": {"influence_ssl": __version__, "torch": torch.__version__},
            **getattr(fitted, "provenance", {}),
        }


class _Gradients:
    """The gradients of one data set, draw by draw and batch by batch: what a curvature sees."""

    def __init__(
        self, scorer: InfluenceScorer, capture: Capture, examples: _Examples, stage: str
    ) -> None:
        self.capture = capture
        self.examples = examples
        self.store = scorer.store
        rank, count = place()
        self.stage = stage if scorer.progress and rank == 0 else None
        self.layers: list[Layer] = capture.layers
        self.device = capture.device
        self.n = scorer.draws * examples.n
        self.index = examples.index
        self._width = sum(layer.size for layer in self.layers) * capture.working.itemsize
        # Unprojected gradients are large: then fewer examples at a time, which no value notices.
        n, most = examples.n, int(_CHUNK_BYTES // self._width)
        if n < count:
            raise InfluenceValueError(f"{count} processes have {n} images; start at most {n}.")
        step = max(1, min(scorer.images_at_once(examples.values), most, n // count))
        rows = [range(start, min(start + step, n)) for start in range(0, n, step)]
        own = rows[len(rows) * rank // count : len(rows) * (rank + 1) // count]
        self._batches = [(draw, part) for draw in range(scorer.draws) for part in own]
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
        batch, index, path = self.examples.batch(rows), self.index[list(rows)], None
        if self.store:
            content = b"".join(x.cpu().double().numpy().tobytes() for x in (*batch, index))
            name = f"{draw}-{rows.start}-{hashlib.sha256(content).hexdigest()[:32]}.npy"
            path = self.store / name
        if path and path.exists():
            with suppress(ValueError, EOFError):  # a damaged file is made again
                return torch.from_numpy(np.load(path)).to(self.device)
        found = self.capture.flat(batch, index, draw)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path.with_suffix(".part"), "wb") as file:
                np.save(file, found.cpu().numpy())
            path.with_suffix(".part").replace(path)
        return found

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


class _Examples:
    """Images with their indices, checked at the boundary."""

    def __init__(self, images: Tensor | Dataset, index: Indices | None) -> None:
        if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
            raise InfluenceTypeError(
                f"images is a {type(images).__name__}, without a length or without items by "
                "number; give a tensor (N, ...) or a map-style data set, as DataLoader.dataset is."
            )
        self.n = len(images)
        if self.n == 0:
            raise InfluenceValueError("images is empty; there is nothing to score.")
        self.images = images
        self.index = torch.arange(self.n) if index is None else torch.as_tensor(index).long().cpu()
        if self.index.shape != (self.n,) or (self.index < 0).any():
            raise InfluenceValueError(f"index must hold {self.n} numbers ≥ 0, one for each image.")
        self._shape: torch.Size | None = None
        self.values = self.batch(range(1))[0].numel()  # of one image

    def batch(self, rows: range) -> tuple[Tensor, ...]:
        """The items of these rows, stacked; the images first."""
        if isinstance(self.images, Tensor):
            self._check(self.images[rows.start : rows.stop], rows)
            return (self.images[rows.start : rows.stop],)
        read = getattr(self.images, "__getitems__", None)  # a data set that reads several at once
        found = read(list(rows)) if read else (self.images[i] for i in rows)
        items = [self._item(i, item) for i, item in zip(rows, found, strict=True)]
        return tuple(torch.stack(list(column)) for column in zip(*items, strict=True))

    def _item(self, i: int, item: Any) -> tuple[Tensor, ...]:
        item = tuple(item) if isinstance(item, tuple | list) else (item,)
        if not item or not isinstance(item[0], Tensor):
            raise InfluenceTypeError(f"item {i} of images begins with no tensor: {item!r:.60}.")
        if self._shape is None:
            self._shape = item[0].shape
        if item[0].shape != self._shape:
            raise InfluenceValueError(
                f"image {i} has shape {tuple(item[0].shape)}, the ones before it "
                f"{tuple(self._shape)}; resize them to one shape."
            )
        self._check(item[0][None], range(i, i + 1))
        # What is no number (a path, say) is of no use to an objective.
        rest = (torch.as_tensor(x) for x in item[1:] if isinstance(x, Tensor | int | float))
        return (item[0], *rest)

    def _check(self, images: Tensor, rows: range) -> None:
        if not images.is_floating_point():
            raise InfluenceTypeError(
                f"images are {images.dtype}; convert them to floating point as the encoder "
                "expects, for instance images.float() / 255."
            )
        bad = ~images.isfinite().flatten(1).all(1)
        if bad.any():
            i = rows[int(bad.nonzero()[0])]
            raise InfluenceValueError(f"image {i} has NaN or infinite values; repair or drop it.")


def score(encoder: nn.Module, images: Tensor | Dataset, **settings: Any) -> Scores:
    """``InfluenceScorer(encoder, **settings).score(images)`` in one line."""
    return InfluenceScorer(encoder, **settings).score(images)

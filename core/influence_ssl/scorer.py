r"""The method: :math:`I_i = -g_i^\top (H + \lambda\mathbf I)^{-1} g_i`, Equation 6 of the paper."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from influence_ssl._checks import prepare
from influence_ssl._examples import Dataset, Examples, Indices
from influence_ssl._fit import Fit, foreign, made, project, projections, read, write
from influence_ssl._gradients import Capture, refuse_unusable, untouched
from influence_ssl._kept import HALVES, Embedded, Room
from influence_ssl._passes import Gradients
from influence_ssl._store import (
    ENCODER,
    Probe,
    Store,
    differing,
    fingerprint,
    is_same,
    origin,
    settings_of,
    steady,
    variables,
)
from influence_ssl.curvature import Curvature, LoGra
from influence_ssl.errors import (
    InfluenceError,
    InfluenceTypeError,
    InfluenceValueError,
    path_of,
)
from influence_ssl.influence import Influence, labels, products, refuse
from influence_ssl.objectives import Invariance, Objective
from influence_ssl.processes import gather, place, together
from influence_ssl.provenance import device_used, made_with
from influence_ssl.scores import Scores, checked_names

_METHODS = {"objective": ("__call__", "Invariance()"), "curvature": ("fit", "LoGra()")}
_BATCH, _LEAST = 256, 8  # images of 3 x 64 x 64, and at least so many of any size


class InfluenceScorer:
    r"""The influence of each image on the encoder's own representation of that image.

    .. math:: I_i = -g_i^\top (H + \lambda\mathbf I)^{-1} g_i,\qquad g_i = \nabla_\theta L_i

    where L_i is the loss that ``objective`` assigns to example i, θ the weights of all ``Conv2d``
    and ``Linear`` modules that the forward pass calls (or of those that ``layers`` selects), and
    (H + λI)⁻¹ comes from ``curvature``. With several ``draws`` of the perturbation, H is fitted on
    all of them and the score is the mean over draws. Each draw costs one forward and one backward
    pass; no weight gradients are formed. Source: the paper's Equation 6.

    If ``torch.distributed`` is initialised, each process handles its share of the examples and
    every process returns all scores.

    - encoder: maps (B, ...) to (B, D). It runs in eval mode, and its state is restored afterwards.
    - objective: :class:`Invariance` by default, :class:`Supervised`, or a similar callable.
    - curvature: :class:`LoGra` by default, ``EmpiricalFisher``, ``ExactHessian`` or ``Identity``.
    - draws, seed: the randomness of example i depends only on (seed, i, draw).
    - batch_size: affects speed and memory, never the values. ``None`` means 256 images, or fewer if
      they are larger than 3 x 64 x 64, so that each batch takes about the same memory.
    - device, dtype: where and in which precision the encoder runs; a copy is made if necessary.
    - layers: names of the modules whose weights form θ. If every name starts with ``-``, these
      modules and all modules inside them are left out instead. ``None``: all modules called.
    - store: a folder for the projected gradients, so that an interrupted run can be resumed. It
      belongs to one encoder and one set of settings and rejects all others.
    - workers: the number of threads that read images and draw noise ahead of the device; affects
      speed, never the values. With 0, nothing runs ahead. ``None`` means one per processor, at most
      eight, for :class:`~influence_ssl.files.images.ImageFiles` and, on a card, for a tensor; one
      for files of small images that must be read, which is mostly Python code; on the processor
      itself nothing runs ahead for images in memory, because the noise is a small part of the work.
      Any other data set is then read in the calling thread, because not all can be read by several
      threads. Set ``workers`` if yours can.
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
        layers: Iterable[str] | None = None,
        progress: bool = True,
        store: str | Path | None = None,
        workers: int | None = None,
    ) -> None:
        _refuse_no_module(encoder)
        at_once = 1 if batch_size is None else batch_size
        threads = 0 if workers is None else workers
        counts = (
            ("draws", draws, 1), ("batch_size", at_once, 1), ("seed", seed, 0),
            ("workers", threads, 0),
        )  # fmt: skip
        for name, number, least in counts:
            if not isinstance(number, Integral) or number < least:
                raise InfluenceValueError(f"{name}={number!r} must be an integer ≥ {least}.")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise InfluenceValueError(f"dtype={dtype!r} must be a floating-point torch.dtype.")
        self.encoder = encoder
        self.objective = Invariance() if objective is None else objective
        self.curvature = LoGra() if curvature is None else curvature
        _refuse_no_instance("objective", self.objective)
        _refuse_no_instance("curvature", self.curvature)
        self.draws = int(draws)
        self.seed = int(seed)
        self.batch_size = None if batch_size is None else int(batch_size)
        self.device = device
        self.dtype = dtype
        self.layers = _listed(layers)
        self.progress = progress
        self.store = None if store is None else path_of(store, "store")
        self.workers = None if workers is None else int(workers)

    fit_: Fit  # set by fit or load

    def __repr__(self) -> str:
        always = "objective", "curvature", "draws", "seed"
        settings = {name: getattr(self, name) for name in always}
        for name in ("batch_size", "device", "dtype", "layers", "store", "workers"):
            if (value := getattr(self, name)) is not None:
                settings[name] = str(value) if name == "store" else value
        words = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        fit = getattr(self, "fit_", None)
        state = "not fitted" if fit is None else f"fitted on {fit.n:,} gradients"
        return f"InfluenceScorer({type(self.encoder).__name__}, {words}; {state})"

    def images_at_once(self, values: int) -> int:
        """The batch size for images with this many values."""
        return self.batch_size or max(_LEAST, min(_BATCH, _BATCH * 3 * 64**2 // values))

    def fit(
        self,
        images: Tensor | Dataset,
        index: Indices | None = None,
        names: Sequence[str] | None = None,
        keep: bool | torch.dtype = False,
        objective: Objective | None = None,
    ) -> InfluenceScorer:
        """Fit the curvature on ``images``; later calls of :meth:`score` use it.

        - index: (N,) the indices of the examples, if they are not 0 … N − 1.
        - names: the names of the images.
        - keep: whether to keep the embeddings φ (N, draws·m) that :meth:`influence` needs. They are
          held in memory or, if the scorer has a ``store``, in a file there that lasts as long as
          the fit. ``torch.float16`` or ``torch.bfloat16`` halves their size.
        - objective: the loss of the fitted images, if it differs from the scorer's.

        If the encoder or a setting changes afterwards, all calls fail until the next fit.
        """
        if not isinstance(keep, bool) and not any(keep is half for half in HALVES):
            raise InfluenceValueError(
                f"keep={keep!r} must be True, False, torch.float16 or torch.bfloat16."
            )
        with self._gradients(images, index, "fit", objective=objective) as gradients:
            names = self._checked(names, gradients)
            if keep:
                gradients.keep()
            form = self.curvature.fit(gradients)
            self.fit_ = Fit(
                form=form,
                n=gradients.n,
                objective=gradients.capture.objective,
                settings=self._settings(),
                origin=gradients.origin,
                projections=projections(gradients.exact.layers),
                probe=Probe.take(gradients.exact, *gradients.examples.first(), self.draws),
                kept=self._keep(gradients, form, names, keep) if keep else None,
            )
        return self

    def score(
        self,
        images: Tensor | Dataset,
        index: Indices | None = None,
        names: Sequence[str] | None = None,
        representations: bool = False,
    ) -> Scores:
        """Score ``images``; without an earlier :meth:`fit`, the curvature is fitted on them first.

        ``representations``: whether to return f(x_i) in :attr:`Scores.representations` as well.
        """
        fit = getattr(self, "fit_", None)
        with self._gradients(images, index, "score", fit) as gradients:
            names = self._checked(names, gradients)
            gradients.representations = representations
            if fit is None:
                gradients.keep()
                form, n_fitted = self.curvature.fit(gradients), gradients.n
            else:
                form, n_fitted = fit.form, fit.n
            forms, norms = zip(*((form(g), g.double().norm(dim=1)) for g in gradients), strict=True)
            columns = torch.stack([-torch.cat(forms), torch.cat(norms), gradients.losses()])
            # (N, 3, draws): with several processes, each has its own rows.
            columns = gather(columns.reshape(3, self.draws, -1).permute(2, 0, 1)).cpu()
            per_draw, norm, loss = columns.permute(1, 2, 0).numpy()
            z = gather(gradients.encoded()).cpu().numpy() if representations else None
            provenance = self._provenance(gradients, form, n_fitted)
            found = gradients.index.numpy()
        error = np.full(per_draw.shape[1], np.nan)
        if self.draws > 1:
            error = per_draw.std(0, ddof=1) / np.sqrt(self.draws)
        return Scores(
            per_draw.mean(0), error, found, names, provenance,
            loss=loss.mean(0), gradient_norm=norm.mean(0), per_draw=per_draw, representations=z,
        )  # fmt: skip

    def gradients(
        self, images: Tensor | Dataset, index: Indices | None = None
    ) -> Iterator[Float[Tensor, "b k"]]:
        r"""The projected gradients g of ``images``, batch by batch, as passed to the curvature.

        Each row (k,) concatenates the gradients :math:`P G_i Q^\top` of all layers, each flattened
        row by row. All images of one draw precede the next draw. Until the iteration ends, the
        encoder is in eval mode and its weights require no gradient. With several processes, each
        receives its own share.
        """
        fit, outside = getattr(self, "fit_", None), _modes()
        with self._gradients(images, index, "gradients", fit) as gradients:
            for g in gradients:
                with outside():
                    yield g

    def embed(
        self, images: Tensor | Dataset, index: Indices | None = None
    ) -> Float[Tensor, "n dm"]:
        r"""The embedding φ of each image, (N, draws·m); scores and influences are inner products.

        The self-score of image i is :math:`-|\varphi_i|^2`, and the influence of image i on image q
        is :math:`-\varphi_q\cdot\varphi_i`. The draws are concatenated, each divided by √draws, so
        a product pairs draw d of one image with draw d of the other and averages over draws.

        The mean over all pairs of draws is a different estimator. With φ as (N, draws, m) it is
        :math:`-\sum_d\varphi_{qd}\cdot\sum_d\varphi_{id}` over the number of draws. For two images
        with independent noise it has the same expectation and a lower variance. With a single
        encoder it predicted more accurately how retraining changes the alignment of other images
        (``influence-lab reproduce datamodels``). Its diagonal is not the self-score.

        Without an earlier :meth:`fit`, the curvature is fitted on ``images`` first. Raises
        :class:`InfluenceTypeError` if the curvature has no φ: an indefinite Hessian, or a custom
        curvature that returns only quadratic forms.
        """
        fit = getattr(self, "fit_", None)
        with self._gradients(images, index, "embed", fit) as gradients:
            if fit is None:
                gradients.keep()
            form = self.curvature.fit(gradients) if fit is None else fit.form
            found = self._embedded(gradients, form)
        if found.signs is not None:
            raise InfluenceTypeError(
                "H + λI is indefinite, so no embedding reproduces its products; increase the "
                "damping, or call scorer.influence, which needs no embedding."
            )
        return found.phi

    def influence(
        self,
        queries: Tensor | Dataset,
        index: Indices | None = None,
        names: Sequence[str] | None = None,
        top: int | None = None,
        group: Iterable[Hashable] | Tensor | None = None,
        objective: Objective | None = None,
        normalise: str | None = None,
    ) -> Influence:
        r"""The influence :math:`-g_q^\top(H+\lambda\mathbf I)^{-1}g_i` of fitted images on queries.

        It is the derivative of the query's loss with respect to the weight of training image i, so
        a negative value means that the image helps the query. Call ``fit(images, keep=True)``
        first.

        - index: the indices of the queries, which determine their noise. ``None`` assigns numbers
          that no training image has. If a training image is queried under its own index, its
          influence on itself is its self-score.
        - names: the names of the queries.
        - top: return only the ``top`` images that help and the ``top`` that hurt each query most.
        - group: (N,) a label per training image; influences are summed within each label.
        - objective: the loss of the queries, if it differs from the scorer's.
        - normalise: ``None`` returns the derivative itself. ``"cosine"`` divides it by the lengths
          of both φ, so that it lies between −1 and 1 and images with large gradients do not head
          every list (RelatIF, Barshan et al. 2020, arXiv:2003.11630, divides only by the training
          image's length). ``"centred"`` subtracts the mean over the queries and thereby removes
          what an image does to all of them alike; a centred value depends on the set of queries.
        """
        fit = getattr(self, "fit_", None)
        if fit is None or fit.kept is None:
            raise InfluenceValueError(
                "no training images were kept; call fit(images, keep=True) before influence."
            )
        group = None if group is None else labels(group)
        if hasattr(queries, "__len__"):  # what has no length is refused below
            refuse(fit.kept, len(queries), top, group, normalise)
            if index is None:
                index = torch.arange(len(queries)) + int(fit.kept.index.max()) + 1
        with self._gradients(queries, index, "influence", fit, objective) as gradients:
            names = self._checked(names, gradients)
            asked = self._embedded(gradients, fit.form, names)
            provenance = self._provenance(gradients, fit.form, fit.n)
            provenance["query objective"] = _described(gradients.capture.objective)
            provenance["normalise"] = normalise
            provenance["embeddings"] = {
                "dtype": str(fit.kept.parts[0].dtype).removeprefix("torch."),
                "bytes": fit.kept.bytes,
            }
        return products(asked, fit.kept, top, group, normalise, provenance)

    def save(self, folder: str | Path) -> None:
        """Write the fit into ``folder``, so that another process can :meth:`load` it.

        ``fit.json`` and ``fit.safetensors`` hold the curvature, its projections, the settings and
        any kept embeddings. They also hold the first two fitted examples with their gradients,
        which reveal a changed forward pass or closure. The encoder is not saved.
        """
        fit = getattr(self, "fit_", None)
        if fit is None:
            raise InfluenceValueError("the scorer is not fitted; call fit(images) before save.")
        if not is_same(fit.objective, self.objective):
            raise InfluenceTypeError(
                f"the fit uses another objective than the scorer, {fit.objective!r}, and a folder "
                "can hold only one; fit a scorer that has this objective and save that."
            )
        names = "objective", "curvature", "draws", "seed", "dtype", "layers"
        write(path_of(folder, "folder"), fit, {name: getattr(self, name) for name in names})

    @classmethod
    def load(
        cls,
        folder: str | Path,
        encoder: nn.Module,
        objective: Objective | None = None,
        curvature: Curvature | None = None,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        progress: bool = True,
        workers: int | None = None,
    ) -> InfluenceScorer:
        """Return a scorer with the fit that :meth:`save` wrote, for the same encoder.

        Give ``objective`` or ``curvature`` if the fit used one of your own, because files cannot
        hold them. Raises :class:`InfluenceError` if the folder is damaged or if the encoder or an
        argument differs from the fit's. An attribute of the encoder is compared at the first call,
        which shows whether a forward pass changes it.
        """
        _refuse_no_module(encoder)
        refuse_unusable(encoder)
        folder = path_of(folder, "folder")
        own = Capture(encoder, [], Invariance(), 0).device
        words, fit = read(folder, _usable(device, own))
        try:
            settings: dict[str, Any] = {
                "objective": made(words["objective"], "objective", objective),
                "curvature": made(words["curvature"], "curvature", curvature),
                "dtype": None if words["dtype"] is None else getattr(torch, words["dtype"]),
                **{name: words[name] for name in ("draws", "seed", "layers")},
            }
            saved_for = fit.origin[ENCODER]
        except InfluenceError:
            raise
        except Exception as error:
            raise foreign(folder, error) from error
        found = cls(
            encoder, **settings, batch_size=batch_size, device=device, progress=progress,
            workers=workers,
        )  # fmt: skip
        if fingerprint(encoder) != saved_for:
            raise InfluenceValueError(
                f"{str(folder)!r} holds the fit of an encoder with different modules or weights; "
                "give that encoder, or fit again."
            )
        found.fit_ = replace(fit, settings=found._settings(), objective=found.objective)
        return found

    def _keep(
        self,
        gradients: Gradients,
        form: Callable[[Tensor], Tensor],
        names: Sequence[str] | None,
        keep: bool | torch.dtype,
    ) -> Embedded:
        """φ of the fitted images; reports how many bytes they take."""
        dtype = None if isinstance(keep, bool) else keep
        found = self._embedded(gradients, form, names, dtype, self.store)
        if gradients.stage:
            where = "memory" if self.store is None else str(self.store)
            n, kind = len(found.index), str(found.parts[0].dtype).removeprefix("torch.")
            words = f"embeddings of {n} images: {found.bytes / 1e9:.2f} GB of {kind} in {where}"
            tqdm.write(words, file=sys.stderr)
        return found

    def _embedded(
        self,
        gradients: Gradients,
        form: Callable[[Tensor], Tensor],
        names: Sequence[str] | None = None,
        dtype: torch.dtype | None = None,
        folder: Path | None = None,
    ) -> Embedded:
        """φ of all images, from one pass over their gradients; see :class:`Room`."""
        embed = getattr(form, "embed", None)
        if embed is None:
            raise InfluenceTypeError(
                f"curvature={self.curvature!r} gives only scores; for embeddings and influence, "
                "the object that its fit returns needs a method embed(gradients) -> (B, m)."
            )
        room = Room(gradients.own, gradients.examples.n, self.draws, dtype, folder)
        for g in gradients:
            room.add(embed(g) / self.draws**0.5)
        return room.embedded(gradients.index.numpy(), names, getattr(form, "signs", None))

    @staticmethod
    def _checked(names: Sequence[str] | None, gradients: Gradients) -> Sequence[str] | None:
        names = checked_names(names)
        if names is not None and len(names) != gradients.examples.n:
            raise InfluenceValueError(f"names holds {len(names)} names; give one per image.")
        return names

    @contextmanager
    def _gradients(
        self,
        images: Tensor | Dataset,
        index: Indices | None,
        stage: str,
        fit: Fit | None = None,
        objective: Objective | None = None,
    ) -> Iterator[Gradients]:
        with together():
            if fit is not None:
                self._refuse(differing(self._settings(), fit.settings))
            examples = Examples(images, index)
            asked = self.objective if objective is None else objective
            _refuse_no_instance("objective", asked)
            own = Capture(self.encoder, [], asked, self.seed)
            device = _usable(self.device, own.device)
            dtype = self.dtype or own.dtype
            choose = self.curvature.project if fit is None else partial(project, fit.projections)
            cast = {"cpu", own.device.type, device.type}
            with untouched(self.encoder) as restore, _without_autocast(cast):
                sample = examples.first()
                named = fit is not None or self.store is not None or stage == "fit"
                before = variables(self.encoder, asked) if named else {}
                capture, exact = prepare(own, self.layers, choose, *sample, device, dtype)
                restore()  # what the checks wrote into buffers is no part of the encoder
                store, parts = None, {}
                if named:
                    parts = origin(self.encoder, capture)
                    parts |= steady(before, variables(self.encoder, asked))
                if fit is not None:
                    self._refuse(differing(parts, fit.origin, is_same(asked, fit.objective)))
                    if not fit.probe.agrees(replace(exact, objective=fit.objective)):
                        self._refuse(["the objective or the encoder's forward pass"])
                if self.store is not None and objective is None:  # it holds the scorer's objective
                    store = Store(self.store, parts, exact, *sample, self.draws)
                step = self.images_at_once(examples.values)
                shown = stage if self.progress and place()[0] == 0 else None
                try:
                    yield Gradients(
                        capture, exact, examples, self.draws, step, store, shown, self.workers,
                        parts,
                    )  # fmt: skip
                finally:
                    if named:
                        steady(before, variables(self.encoder, asked))

    def _settings(self) -> dict[str, Any]:
        """The current settings that must not change between a fit and its use."""
        names = "objective", "curvature", "draws", "seed", "device", "dtype", "layers"
        return settings_of(self, names)

    def _refuse(self, changed: Iterable[str]) -> None:
        if names := list(changed):
            raise InfluenceValueError(
                f"{', '.join(names)} changed since fit; fit again, or use another scorer."
            )

    def _provenance(self, gradients: Gradients, fitted: object, n_fitted: int) -> dict[str, Any]:
        capture = gradients.capture
        used = {id(self.encoder.get_submodule(layer.name).weight) for layer in capture.layers}
        parameters = self.encoder.named_parameters(remove_duplicate=False)
        return {
            "encoder": type(self.encoder).__name__,
            "objective": _described(self.objective),
            "curvature": _described(self.curvature),
            "draws": self.draws,
            "seed": self.seed,
            "examples": gradients.examples.n,
            "fitted gradients": n_fitted,
            "layers": {x.name: [x.out_features, x.in_features] for x in capture.layers},
            "left out": [name for name, x in parameters if id(x) not in used],
            "dtype": str(capture.dtype).removeprefix("torch."),
            **device_used(capture.device),
            **made_with(),
            **getattr(fitted, "provenance", {}),
        }


def _refuse_no_module(encoder: object) -> None:
    if not isinstance(encoder, nn.Module):
        raise InfluenceTypeError(f"encoder is a {type(encoder).__name__}; give an nn.Module.")


def _refuse_no_instance(name: str, part: object) -> None:
    """Raise for a class or for what lacks the method of an objective or a curvature."""
    method, example = _METHODS[name]
    if isinstance(part, type) or not hasattr(part, method):
        raise InfluenceTypeError(f"{name}={part!r} must be an instance, such as {example}.")


def _usable(device: str | torch.device | None, own: torch.device) -> torch.device:
    """The device, with its number; ``None`` stands for the encoder's own."""
    try:
        return torch.empty(0, device=own if device is None else device).device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = f"device={str(device)!r} cannot be used: {str(error).splitlines()[0]}"
        raise InfluenceValueError(reason) from None


def _described(part: object) -> str:
    """Its ``repr`` without addresses in memory, which differ between runs."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(part))


def _listed(layers: object) -> list[str] | None:
    """The names as a list, because an iterator would be used up by the first call."""
    if layers is None:
        return None
    if isinstance(layers, Iterable) and not isinstance(layers, str):
        names = list(layers)
        if all(isinstance(name, str) for name in names):
            return names
    raise InfluenceValueError(
        f"layers={layers!r} must be a list of names, for instance layers=['conv1']."
    )


def _modes() -> Callable[[], ExitStack]:
    """A function that restores PyTorch's present modes for the code between two batches."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    casts = [
        (kind, torch.get_autocast_dtype(kind))
        for kind in ("cpu", "cuda", "mps")
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    ]

    def enter() -> ExitStack:
        modes = ExitStack()
        modes.enter_context(torch.inference_mode(inference))
        modes.enter_context(torch.set_grad_enabled(grad))
        for kind, dtype in casts:
            modes.enter_context(torch.autocast(kind, dtype))
        return modes

    return enter


@contextmanager
def _without_autocast(kinds: set[str]) -> Iterator[None]:
    """Switch autocast off, so that scores have the precision that their provenance names."""
    with ExitStack() as off:
        for kind in kinds:
            if torch.amp.is_autocast_available(kind):
                off.enter_context(torch.autocast(kind, enabled=False))
        yield


def score(encoder: nn.Module, images: Tensor | Dataset, **settings: Any) -> Scores:
    """``InfluenceScorer(encoder, **settings).score(images)`` in one line."""
    return InfluenceScorer(encoder, **settings).score(images)

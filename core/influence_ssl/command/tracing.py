"""Traces queries and writes a page and tables of what helps and hurts them."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from influence_ssl.analysis import trace as analysis
from influence_ssl.analysis.trace import Trace
from influence_ssl.command import embeddings, settings
from influence_ssl.command.embeddings import Embeddings
from influence_ssl.command.options import TOP
from influence_ssl.command.scoring import ZOOS, with_names
from influence_ssl.command.summary import size
from influence_ssl.encoders.loading import Loaded, import_function, load_encoder
from influence_ssl.errors import (
    InfluenceError,
    InfluenceOSError,
    InfluenceValueError,
    printable,
)
from influence_ssl.files.images import ImageFiles, pixel_digest
from influence_ssl.files.sources import refuse_overwriting
from influence_ssl.files.writing import replacing
from influence_ssl.objectives import Invariance
from influence_ssl.report.trace import page
from influence_ssl.scorer import InfluenceScorer

PAGE = 100
"""The most queries on a page."""
_NEEDS = {".html": ("jinja2",), ".parquet": ("pandas", "pyarrow"), ".csv": ("pandas",)}


def trace(options: argparse.Namespace) -> None:
    """Run the command; raises :class:`InfluenceError` before anything is written."""
    started, progress = time.monotonic(), sys.stderr.isatty()
    kept = embeddings.read(options.folder)
    images = Path(kept.source) if options.images is None else options.images
    _refuse_outputs(options, images)
    top = _top(options.top, len(kept.seen.pixels))
    wants_page = any(out.suffix == ".html" for out in options.out)
    if wants_page and not images.exists():
        raise InfluenceOSError(
            f"the scored images, which the page shows, are not in {str(images)!r}; "
            "give --images PATH, or write a .parquet."
        )
    device, loaded = settings.device(options.device), _encoder(options, kept)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    listed = ImageFiles(options.query, loaded.preprocess, kept.bits)
    if wants_page and len(listed) > PAGE:
        raise InfluenceValueError(
            f"{str(options.query)!r} holds {len(listed)} images, but a page shows at most {PAGE} "
            "queries; give fewer, or write a .parquet."
        )
    queries = listed.readable(options.strict, progress, options.workers)
    if queries.shape != kept.shape:
        sizes = (" x ".join(map(str, shape or ())) for shape in (queries.shape, kept.shape))
        raise InfluenceValueError(
            "the encoder would receive queries of {} but was fitted on images of {}; resize the "
            "queries, or use a preprocess that resizes them.".format(*sizes)
        )
    scorer = kept.scorer(
        loaded.module, _objective(options, kept), options.batch_size, device, progress,
        options.workers,
    )  # fmt: skip
    _refuse_other_preprocess(images, kept, scorer, loaded)
    found = _traced(scorer, kept, queries, top, options.cosine)
    found.provenance.update(
        folder=str(options.folder),
        images=kept.source,
        queries={
            "source": str(options.query),
            "images": len(queries),
            "skipped": [list(skipped) for skipped in queries.skipped],
        },
        untrained=kept.untrained,
    )
    _write(found, options, images, kept)
    _summarise(found, queries, kept, options, time.monotonic() - started)


def _refuse_other_preprocess(
    source: Path, kept: Embeddings, scorer: InfluenceScorer, loaded: Loaded
) -> None:
    """Raise if the first scored images, where they are still there, are prepared differently."""
    fit = scorer.fit_
    assert fit.kept is not None
    try:
        listed = ImageFiles(source, loaded.preprocess, kept.bits)
    except InfluenceError:
        return
    for name, pixels, x in zip(
        fit.kept.names or (), kept.seen.pixels, fit.probe.batch[0], strict=False
    ):
        if name not in listed.names:
            continue
        k = listed.names.index(name)
        try:
            image = listed.image(k)
        except InfluenceError:
            continue
        # Otherwise it is another image, from which nothing follows.
        if pixel_digest(image) == pixels and not _agree(listed[k][0], x):
            raise InfluenceValueError(
                f"the preprocess of --encoder differs from that of the scores: it turns {name!r} "
                "into another tensor; give the one that was scored with, or score again."
            )


def _agree(x: Tensor, y: Tensor) -> bool:
    """Up to rounding, in which processors may differ."""
    x, y = x.detach().cpu().double(), y.double()
    return x.shape == y.shape and bool((x - y).abs().max() <= 1e-5 * y.abs().max())


def _traced(
    scorer: InfluenceScorer, kept: Embeddings, queries: ImageFiles, top: int, cosine: bool
) -> Trace:
    try:
        return analysis.trace(scorer, kept.seen, queries, top, cosine)
    except InfluenceError as error:
        assert scorer.fit_.kept is not None
        index = queries.index + int(scorer.fit_.kept.index.max()) + 1
        raise InfluenceError(with_names(str(error), index, queries.names)) from error


def _write(found: Trace, options: argparse.Namespace, images: Path, kept: Embeddings) -> None:
    """Write all files or none."""
    digests = dict(zip(found.names, kept.seen.pixels, strict=True))
    with ExitStack() as files:
        for out in options.out:
            temporary = files.enter_context(replacing(out))
            if out.suffix == ".html":
                text = page(found, options.query, images, digests, kept.bits)
                temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
            else:
                found.save(temporary)


def _refuse_outputs(options: argparse.Namespace, images: Path) -> None:
    for number, out in enumerate(options.out):
        others = options.out[:number]
        refuse_overwriting("--out", out, [options.folder, options.query, images, *others])
        settings.check_output(out, _NEEDS)
        settings.refuse_other_results(out, settings.TRACE)


def _top(top: int | None, images: int) -> int:
    if top is None:
        return min(TOP, images)
    if not 1 <= top <= images:
        raise InfluenceValueError(
            f"--top {top} must be from 1 to {images}, the number of scored images."
        )
    return top


def _encoder(options: argparse.Namespace, kept: Embeddings) -> Loaded:
    known: dict[str, Any] = kept.arguments
    spec, weights = options.encoder, options.weights or known.get("weights")
    if spec is None:
        spec = known["encoder"]
        if not spec.startswith(ZOOS):
            raise InfluenceValueError(
                f"{str(options.folder)!r} was made with the encoder {spec!r}, and code named in a "
                f"folder runs only on request; give --encoder {spec}."
            )
    return load_encoder(spec, weights, known["seed"], known.get("weights-part"))


def _objective(options: argparse.Namespace, kept: Embeddings) -> Invariance | None:
    own = kept.arguments.get("perturbation")
    if options.perturbation is None:
        if own is not None:
            raise InfluenceValueError(
                f"{str(options.folder)!r} was made with the perturbation {own!r}, and code named "
                f"in a folder runs only on request; give --perturbation {own}."
            )
        return None
    if own is None:
        raise InfluenceValueError(
            f"--perturbation {options.perturbation!r}: {str(options.folder)!r} was made with "
            "Gaussian noise; leave it out."
        )
    return Invariance(import_function(options.perturbation, "--perturbation"))


def _summarise(
    found: Trace,
    queries: ImageFiles,
    kept: Embeddings,
    options: argparse.Namespace,
    seconds: float,
) -> None:
    took = timedelta(seconds=round(seconds))
    n, device = len(kept.seen.pixels), found.provenance["device"]
    print(f"{_queries(len(queries))} ({size(queries)}) traced to {n} images on {device} in {took}")
    if kept.untrained:
        print("untrained: random weights, because score was given no --weights")
    if queries.skipped:
        print(f"{_queries(len(queries.skipped))} skipped as unreadable:")
        for name, reason in queries.skipped[:20]:
            print(f"  {printable(name)}: {reason}")
    for one in found.found[:3]:
        for which in ("helps", "hurts"):
            for entry in one.lists[which][:1]:
                name = printable(found.names[entry.position])
                print(f"  {printable(one.query)}: {name} {which} most, {entry.influence:.6g}")
    same = [one.query for one in found.found if one.same]
    if same:
        print(
            f"identical to scored images in every pixel: {_queries(len(same))}, "
            f"{printable(same[0])} first"
        )
    known = [one.reliability for one in found.found if one.reliability is not None]
    if known:
        print(
            f"reliability: {np.median(known):.3f}, the expected rank correlation with another run "
            f"of {found.provenance['draws']} draws (median query)"
        )
    else:
        print("reliability: not estimated; score with --draws 2 or more estimates it")
    print(f"written to {' and '.join(map(str, options.out))}")
    if any(out.suffix == ".html" for out in options.out):
        print("the page contains pictures of the queries and images; .parquet and .csv have none")


def _queries(count: int) -> str:
    return "1 query" if count == 1 else f"{count} queries"

"""The cost of tracing relative to scoring, and the recall of a search in fewer dimensions.

The curvature is fitted on all training images in the profile's data, φ is kept, and queries are
traced. The same images are scored before and after, so that a drift of the machine shows. Two more
measurements show whether an approximate index would be worth its dependency: the exact search's
share of the total, and the share of its listed images that a search with φ in fewer dimensions
finds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from influence_lab.experiments.encoder import encoder_of
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import mean, rounded
from influence_lab.pretrain.resnets import normalise
from influence_lab.records import results
from influence_lab.records.recording import data_for
from influence_ssl import InfluenceScorer, LoGra

TOP = 20
QUERIES = {"tiny": 64, "cpu": 1_000}
REDUCED = {"tiny": (16, 64), "cpu": (256, 1_024)}
# A linear layer, so that a gradient costs next to nothing and φ has WIDTH² numbers.
SYNTHETIC = {"tiny": 2_000, "cpu": 1_000_000}
WIDTH = 16


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, and its result."""
    begin = time.perf_counter()
    found = call()
    return round(time.perf_counter() - begin, 2), found


def recall(
    queries: Float[Tensor, "q m"], phi: Float[Tensor, "n m"], dimensions: int, top: int = TOP
) -> Float[np.ndarray, " q"]:
    """Share of each query's ``top`` most helpful images also found in fewer dimensions of φ.

    φ is projected on ``dimensions`` random orthonormal directions.
    """
    generator = torch.Generator().manual_seed(0)
    m = phi.shape[1]
    directions = torch.linalg.qr(torch.randn(m, dimensions, generator=generator).to(phi))[0]
    exact = (queries @ phi.T).topk(top).indices
    found = ((queries @ directions) @ (phi @ directions).T).topk(top).indices
    return (exact[:, :, None] == found[:, None, :]).any(2).double().mean(1).numpy()


def measure(encoder: nn.Module, train: Tensor, queries: Tensor, task: Task) -> dict[str, Any]:
    """Seconds of each call, and recall by dimensions."""
    progress = sys.stderr.isatty()

    def score() -> float:
        return seconds(lambda: InfluenceScorer(encoder, progress=progress).score(train))[0]

    scored = [score()]
    scorer = InfluenceScorer(encoder, progress=progress)
    fitted, _ = seconds(lambda: scorer.fit(train, keep=True))
    embedded, asked = seconds(lambda: scorer.embed(queries, np.arange(len(queries)) + len(train)))
    traced, _ = seconds(lambda: scorer.influence(queries, top=TOP))
    kept = scorer.fit_.kept
    assert kept is not None
    phi = kept.phi
    searched, _ = seconds(lambda: (asked @ phi.T).topk(TOP))
    scored.append(score())
    return {
        "scored": scored,
        "seconds": {
            "score": round(sum(scored) / 2, 2), "fit, φ kept": fitted, "influence": traced,
            "of which gradients": embedded, "of which search": searched,
        },
        "dimensions": phi.shape[1],
        "recall": rounded({str(k): mean(recall(asked, phi, k)) for k in REDUCED[task.profile]}),
    }  # fmt: skip


def synthetic(profile: str) -> dict[str, Any]:
    """Seconds for tracing queries among many images whose gradients cost nothing."""
    torch.manual_seed(0)
    many = torch.randn(SYNTHETIC[profile], WIDTH)
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    scorer = InfluenceScorer(layer, curvature=LoGra(rank=WIDTH), progress=sys.stderr.isatty())
    scorer.fit(many, keep=True)
    found, _ = seconds(lambda: scorer.influence(torch.randn(QUERIES[profile], WIDTH), top=TOP))
    return {"images": len(many), "dimensions": WIDTH**2, "seconds": found}


def reproduce(task: Task) -> str:
    """Time scoring and tracing once, and record."""
    begin = time.perf_counter()
    images, test = data_for(task.profile, "train"), data_for(task.profile, "test")
    chosen = np.sort(np.random.default_rng(0).permutation(len(test))[: QUERIES[task.profile]])
    train, queries = (normalise(part.tensor()) for part in (images, test.subset(chosen)))
    record = {
        "images": len(train),
        "queries": len(queries),
        "top": TOP,
        **measure(encoder_of(task), train, queries, task),
        "synthetic": synthetic(task.profile),
        "provenance": results.provenance(
            task.command, task.profile, task.seed,
            f"{images.name} train, {len(train):,} images; test, {len(queries):,} queries",
            images.digest, results.device_name("cpu"), time.perf_counter() - begin,
        ),
    }  # fmt: skip
    path = (task.root or results.results_root()) / task.profile / "trace-cost.json"
    results.save_json(path, record)
    return line(record)


def ratio(record: dict[str, Any]) -> float:
    """Seconds for fitting with φ kept and tracing the queries, divided by those for scoring."""
    took = record["seconds"]
    return (took["fit, φ kept"] + took["influence"]) / took["score"]


def line(record: dict[str, Any]) -> str:
    """The finding in one line."""
    share = record["seconds"]["of which search"] / record["seconds"]["score"]
    return (
        f"{record['queries']:,} queries among {record['images']:,} images: {ratio(record):.2f} "
        f"times a score's time, the search {share:.3f} of it"
    )

"""Other libraries at the influence of images on others: 100 queries, 2,000 images, a loss of pairs.

A peer is a script under ``benchmarks/pairs`` that defines ``PACKAGE``, ``METHOD`` and
``influence(encoder, train, queries, damping) -> (q, n)``, positive where an image helps a query;
``train`` and ``queries`` are each (images, noisy copies). It holds nothing that a user of that
library would not write, and runs in an environment of its own:

    python -m influence_lab.experiments.pairwise benchmarks/pairs/traker_trak.py OUT.json

The reference is the exact empirical Fisher of all convolutions, in double precision from the core's
gradients, made once. Agreement is Spearman's correlation over the images, one for each query. Time
is the processor time of the whole call, over that of a plain forward and backward pass over all
pairs, which is timed before and after it in the faster memory layout. A peer that fails, or does
not come to an end in time or takes more memory than it may, is recorded with its error.
"""

from __future__ import annotations

import argparse
import copy
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from influence_lab.benchmark import timing
from influence_lab.benchmark.exact import products
from influence_lab.benchmark.scale import peak
from influence_lab.experiments.encoder import encoder_of
from influence_lab.experiments.fidelity import MAIN
from influence_lab.experiments.peers import lines, words_of
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import mean, plain_spearman, rounded
from influence_lab.pretrain.resnets import normalise
from influence_lab.records import results
from influence_lab.records.recording import data_for
from influence_ssl import GaussianNoise, Identity, InfluenceScorer, Invariance
from influence_ssl.errors import InfluenceError
from influence_ssl.files.writing import replacing

SCRIPTS = (
    "ours", "logix_ai", "kronfluence_ekfac", "traker_trak", "dattri_datainf", "dattri_logra",
    "captum_tracin", "captum_arnoldi", "bergson_index",
)  # fmt: skip
TRAIN, QUERIES, TOP = 2000, 100, 10
BATCH = 64
SMALL = {"tiny": (48, 6)}
SECONDS = 900
"""The most processor time that a call may take."""
SEEN = 0.02
"""Seconds of processor time below which calls are repeated; a busy machine's clock may stand."""
MEMORY = 16 * 2**30
"""The most bytes that the process of a call may reserve."""

Pair = tuple[Tensor, Tensor]
Influences = Callable[[nn.Module, Pair, Pair, float], Tensor]


class Work(NamedTuple):
    """The encoder, the images and the queries with their noisy copies, and what they are."""

    encoder: nn.Module
    train: Pair
    queries: Pair
    data: str
    digest: str


def recorded(root: Path | None = None) -> dict[str, dict[str, Any] | None]:
    """The record of each peer by its script's name, ``None`` where there is none yet."""
    return {name: results.load_record("cpu", f"pairs/{name}", root) for name in SCRIPTS}


def work_of(task: Task) -> Work:
    """The same for every peer: fixed images, their noise that of their positions."""
    n, q = SMALL.get(task.profile, (TRAIN, QUERIES))
    rng, noise = np.random.default_rng(0), GaussianNoise()
    parts, names, digest = [], [], ""
    start = 0
    for split, count in (("train", n), ("test", q)):
        images = data_for(task.profile, split)
        chosen = images.subset(np.sort(rng.permutation(len(images))[:count]))
        x = normalise(torch.from_numpy(chosen.images.transpose(0, 3, 1, 2).copy()))
        parts.append((x, noise(x, torch.arange(start, start + len(x)), 0, 0)))
        names.append(f"{len(x):,} of {len(images):,} images of {images.name} {split}")
        digest, start = digest or images.digest, start + len(x)
    train, queries = parts
    return Work(encoder_of(task).eval(), train, queries, "; ".join(names), digest)


def exact(work: Work, path: Path) -> tuple[Float64[np.ndarray, "q n"], float]:
    """Minus the exact influences, and their λ, made once and kept in ``path``.

    With the gradients of the images as the rows of Γ and those of the queries as the rows of Q,
    Q(ΓᵀΓ/n + λI)⁻¹Γᵀ = QΓᵀ(ΓΓᵀ/n + λI)⁻¹ needs matrices of the images only.
    """
    if not path.exists():
        (x, noisy), (y, copies) = work.train, work.queries
        both, n = torch.cat([noisy, copies]), len(x)
        scorer = InfluenceScorer(
            work.encoder, Invariance(lambda x, index, draw, seed: both[index]), Identity(),
            batch_size=BATCH, progress=sys.stderr.isatty(),
        )  # fmt: skip
        # The index tells whose noise it is.
        rows = torch.cat([*scorer.gradients(x, np.arange(n))])
        queries = torch.cat([*scorer.gradients(y, np.arange(n, len(both)))])
        gram = products(rows, rows) / n
        λ = MAIN * float(gram.trace()) / n
        gram.diagonal().add_(λ)
        found = torch.linalg.solve(gram, products(queries, rows), left=False).numpy()
        with replacing(path, parents=True) as temporary, temporary.open("wb") as file:
            np.savez(file, influence=found, damping=λ, digest=work.digest)
    kept = np.load(path)
    if str(kept["digest"]) != work.digest:
        raise InfluenceError(f"{str(path)!r} is of other images; remove it.")
    return kept["influence"], float(kept["damping"])


def usable(found: Tensor, shape: tuple[int, ...]) -> Float64[np.ndarray, "q n"]:
    """What a script returned. Raises where it has another shape or is not finite."""
    values = found.detach().double().cpu().numpy()
    if values.shape != shape:
        raise ValueError(f"a result of shape {values.shape}, not {shape}")
    if not np.isfinite(values).all():
        raise ValueError("a result that is not finite")
    return values


def agreement(
    found: Float64[np.ndarray, "q n"], reference: Float64[np.ndarray, "q n"]
) -> dict[str, Any]:
    """Spearman's correlation over the images and the share of the first ten, over the queries."""
    rho = np.array([plain_spearman(a, b) for a, b in zip(found, reference, strict=True)])
    firsts = [np.argsort(-rows, axis=1, kind="stable")[:, :TOP] for rows in (found, reference)]
    shared = [len(set(a) & set(b)) for a, b in zip(*map(np.ndarray.tolist, firsts), strict=True)]
    return {
        "spearman": rounded({"": mean(rho)})[""],
        "quartiles": timing.quartiles(rho.tolist()),
        "shared of ten": rounded({"": mean(np.array(shared, dtype=np.float64))})[""],
    }


def run(path: Path, work: Work, reference: Float64[np.ndarray, "q n"], λ: float) -> dict[str, Any]:
    """The record of one peer."""
    record: dict[str, Any] = {"lines": lines(path), "package": "", "version": None, "error": None}
    train, queries = work.train, work.queries
    unit = _plain(work)
    try:
        script = runpy.run_path(str(path))
        record |= {"package": script["PACKAGE"], "method": script["METHOD"]}
        record["version"] = version(script["PACKAGE"])
        found: dict[str, Tensor] = {}

        def call() -> None:
            clones = [tuple(x.clone() for x in pair) for pair in (train, queries)]
            encoder = copy.deepcopy(work.encoder).requires_grad_()
            found[""] = script["influence"](encoder, *clones, λ)

        with limited(SECONDS, MEMORY):
            begin = time.process_time()
            record["bytes"] = peak(call)
        seconds = time.process_time() - begin
        values = usable(found[""], reference.shape)
        again = _plain(work)
        record |= {
            "seconds": round(seconds, 1),
            "plain seconds": [round(unit, 2), round(again, 2)],
            "passes": round(seconds / min(unit, again), 2),
            **agreement(values, reference),
        }
    except InfluenceError:  # no finding about the library: data or a record are not there
        raise
    except PackageNotFoundError:
        raise
    except Exception as error:  # whatever a foreign library raises is the finding
        record["error"] = words_of(error)
    return record


class TooLong(Exception):
    """A call that took more processor time than it may."""


class limited:
    """Raises in the block after so many seconds of processor time, or where memory is refused.

    Without the second limit, the system would end the process, which could record nothing. Python
    prints and drops what is raised in a callback, as of the garbage collector, so the time is said
    to be over again after each further second.
    """

    def __init__(self, seconds: int, memory: int | None = None) -> None:
        self.seconds, self.memory = seconds, memory

    def __enter__(self) -> None:
        def stop(*_: Any) -> None:
            raise TooLong(f"not done after {self.seconds} seconds of processor time")

        self.before = signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, self.seconds, 1)
        self.allowed = resource.getrlimit(resource.RLIMIT_DATA)
        if self.memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (self.memory, self.allowed[1]))

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self.before)
        resource.setrlimit(resource.RLIMIT_DATA, self.allowed)


def _plain(work: Work) -> float:
    """Processor time of a plain pass over all pairs, in the faster layout."""
    pairs = [
        torch.cat(both)
        for one, other in (work.train, work.queries)
        for both in zip(one.split(BATCH), other.split(BATCH), strict=True)
    ]
    return min(map(_seconds, timing.plain_passes(work.encoder, pairs).values()))


def _seconds(job: timing.Job) -> float:
    """Processor time of one call; the mean of several if the clock can hardly see one."""
    calls, begin = 0, time.process_time()
    while True:
        job()
        calls += 1
        seconds = time.process_time() - begin
        if seconds >= SEEN:
            return seconds / calls


def main() -> None:
    """Measure one script and write its record."""
    parser = argparse.ArgumentParser(description="Measure one peer at the influence on queries.")
    parser.add_argument("script", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--profile", default="cpu")
    options = parser.parse_args()
    begin, name = time.perf_counter(), options.out.stem
    work = work_of(Task("pairs", options.profile))
    reference, λ = exact(work, options.out.with_name("exact.npz"))
    record = run(options.script, work, reference, λ)
    record["provenance"] = results.provenance(
        f"make bench (pairs/{name})", options.profile, 0, work.data,
        work.digest, results.device_name("cpu"), time.perf_counter() - begin,
    )  # fmt: skip
    results.save_json(options.out, record)
    print(f"{name}: {record['error'] or record['spearman']}", file=sys.stderr)


if __name__ == "__main__":
    main()

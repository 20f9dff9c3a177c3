"""Other libraries at the same task: label-free self-influence with a loss of pairs.

A peer is a script that defines ``PACKAGE``, ``METHOD`` and
``score(encoder, clean, noisy, damping) -> magnitudes (n,)``, and nothing that a user of that
library would not write; one that takes ``rank`` can be measured at another. It runs in an
environment of its own:

    python -m influence_lab.benchmark.peers benchmarks/peers/logix_ai.py OUT.json --rank 64

Fidelity is measured on the encoder, images and noise of ``fidelity``, speed and memory on an
untrained ResNet-18 of width 64, where values do not matter. This library's own scripts beside the
peer's are timed in the same rounds. A peer that fails is recorded with its error.
"""

from __future__ import annotations

import argparse
import ast
import copy
import runpy
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from influence_ssl import GaussianNoise

from .. import results
from ..agreement import rounded, spearman
from ..encoders import cifar_resnet18
from ..experiments import Task
from ..experiments.cost import plain_pass
from ..experiments.fidelity import EXACT, MAIN, Fidelity
from ..scale import peak
from . import timing

SCRIPTS = (
    "ours", "ours_joint", "ours_bf16", "logix_ai", "logix_ai-64", "torch_func",
    "kronfluence_ekfac", "traker_trak", "pydvl_harmonic", "captum_tracin", "dattri_logra",
)  # fmt: skip
BATCH, ROUNDS = 64, 10
AIMS = {"logix_ai": (1.25, 2.4), "logix_ai-64": (1.0, 1.0)}
"""How many times as long as ours, in float32 and in bfloat16, a library was to take at least."""
OTHERS = (3.0, 3.0)
OURS = {"float32": "ours.py", "bfloat16": "ours_bf16.py"}
SPENT, LONG = 120.0, 120.0  # seconds of one-batch calls over all rounds; of one that has no rounds
QUICK, FURTHER = 6.0, 3  # seconds of a one-batch call beside which this many further ones are timed

Score = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


def recorded(root: Path | None = None) -> dict[str, dict[str, Any] | None]:
    """The record of each peer by its script's name, ``None`` where there is none yet."""
    return {name: results.load_record("cpu", f"peers/{name}", root) for name in SCRIPTS}


def lines(path: Path) -> int:
    """Lines of code of a script: no blank ones, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    kept: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.stmt):
            last = node.end_lineno or node.lineno
            inner = [child.lineno for child in getattr(node, "body", [])]
            kept |= set(range(node.lineno, min([last, *(i - 1 for i in inner)]) + 1))
    blank = {n for n, line in enumerate(text.splitlines(), 1) if not line.split("#")[0].strip()}
    return len(kept - blank)


def fidelity(score: Score, profile: str, root: Path | None = None) -> list[float]:
    """Rank correlation with the exact score, with its interval."""
    one = Fidelity(Task("fidelity", profile, root=root))
    noisy = GaussianNoise()(one.images, one.index, 0, 0)
    found = score(copy.deepcopy(one.encoder), one.images, noisy, MAIN * one.unit)
    exact = one.vectors[f"{EXACT}, {MAIN}"]
    return list(spearman(np.asarray(found, dtype=np.float64), exact))


def speed(
    score: Score, ours: dict[str, Score], width: int, rounds: int, further: int | None = None
) -> dict[str, Any]:
    """Peak memory in bytes, and costs over a plain pass over one batch.

    ``total`` is a call's on one batch. What a call on more of them costs more is what each further
    batch costs (``cpu``, ``wall``): on ``further`` more, by default on :data:`FURTHER` of a quick
    call and on one of another. ``against`` has how many times that is the same of ``ours``, in the
    same rounds: median and quartiles. Of a call longer than :data:`LONG` seconds there is only
    ``total``: what a further batch costs is lost in what the call costs once.
    """
    torch.manual_seed(0)
    encoder = cifar_resnet18(width).eval()
    clean = torch.randn((1 + (further or FURTHER)) * BATCH, 3, 32, 32)
    pairs = timing.pairs_of(clean, BATCH)
    noisy = torch.cat([pair.chunk(2)[1] for pair in pairs])

    def plain() -> None:
        plain_pass(encoder, pairs[:1])
        encoder.zero_grad(set_to_none=True)

    def work(scoring: Score, images: int) -> None:
        scoring(copy.deepcopy(encoder), clean[:images], noisy[:images], 1e-3)

    def calls(batches: int) -> list[Callable[[], None]]:
        return [partial(work, scoring, batches * BATCH) for scoring in (score, *ours.values())]

    record: dict[str, Any] = {"plain bytes": peak(plain)}
    begin = time.perf_counter()
    record["bytes"] = peak(calls(1)[0])
    once = time.perf_counter() - begin
    if once > LONG:
        begin = time.perf_counter()
        plain()
        total = once / (time.perf_counter() - begin)
        return record | {"total": round(total, 4), "wall": None, "rounds": 1}
    more = further or (FURTHER if once < QUICK else 1)
    jobs = (plain, *calls(1), *calls(1 + more))
    # (rounds, scripts) of each clock, in plain passes
    first, added = {}, {}
    for clock, rows in timing.seconds(jobs, max(2, min(rounds, int(SPENT / once)))).items():
        unit, seconds = np.split(np.array(rows), [1], axis=1)
        first[clock], both = np.split(seconds / unit, 2, axis=1)
        added[clock] = (both - first[clock]) / more
    against = added["wall"][:, :1] / added["wall"][:, 1:]
    record["against"] = {
        words: np.quantile(ratios, (0.5, 0.25, 0.75)).round(4).tolist()
        for words, ratios in zip(ours, against.T, strict=True)
    }
    total = float(np.median(first["wall"][:, 0]))
    summary = timing.summary({c: values[:, 0].tolist() for c, values in added.items()}, "wall")
    return record | {"total": round(total, 4), "further batches": more} | summary


def run(
    path: Path,
    ours: dict[str, Score],
    profile: str,
    width: int,
    rounds: int,
    rank: int | None = None,
    further: int | None = None,
) -> dict[str, Any]:
    """The record of one peer."""
    script = runpy.run_path(str(path))
    package, method, score = (script[name] for name in ("PACKAGE", "METHOD", "score"))
    if rank is not None:
        method, score = method.replace("rank 16", f"rank {rank}"), partial(score, rank=rank)
    record: dict[str, Any] = {
        "package": package,
        "version": version(package),
        "method": method,
        "lines": lines(path),
        "error": None,
    }
    try:
        record["spearman"] = rounded({"": fidelity(score, profile)})[""]
        record["speed"] = speed(score, ours, width, rounds, further)
    except Exception as error:  # whatever a foreign library raises is the finding
        text = " ".join(str(error).split())
        record["error"] = f"{type(error).__name__}: {text[:200]}"
    return record


def main() -> None:
    """Measure one script and write its record."""
    parser = argparse.ArgumentParser(description="Measure one peer.")
    parser.add_argument("script", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rank", type=int)
    parser.add_argument(
        "--further", type=int, help="batches, where the first one is most of a call"
    )
    options = parser.parse_args()
    begin = time.perf_counter()
    ours: dict[str, Score] = {}
    if options.rank is None:  # ours are at the default rank
        beside = {words: options.script.with_name(name) for words, name in OURS.items()}
        ours = {words: runpy.run_path(str(path))["score"] for words, path in beside.items()}
    record = run(
        options.script, ours, options.profile, options.width, options.rounds, options.rank,
        options.further,
    )  # fmt: skip
    record["provenance"] = results.provenance(
        f"make bench ({options.out.stem})", options.profile, 0, "see fidelity", "",
        results.device_name("cpu"), time.perf_counter() - begin,
    )  # fmt: skip
    results.save_json(options.out, record)
    print(f"{options.out.stem}: {record['error'] or record['speed']}", file=sys.stderr)


if __name__ == "__main__":
    main()

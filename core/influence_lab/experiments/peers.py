"""Other libraries on the same task: label-free self-influence with a loss of pairs.

A peer is a script that defines ``PACKAGE``, ``METHOD`` and
``score(encoder, clean, noisy, damping) -> magnitudes (n,)``, and
nothing that a user of that library would not write. If ``score`` takes ``rank``, other ranks can be
measured. It runs in an
environment of its own:

    python -m influence_lab.experiments.peers benchmarks/peers/logix_ai.py OUT.json --rank 64

Fidelity is measured with the encoder, images and noise of ``fidelity``, speed and memory with an
untrained ResNet-18 of width 64, where values do not matter. Encoder and images are passed in the
memory layout in which the script's call takes less time: one call in each, two for a quick script.
Our own scripts are timed in the peer's rounds and layout. A peer that fails is recorded with its
error.

With ``--speed`` the recorded rank correlation is kept, because speed does not change it.
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

from influence_lab.benchmark import timing
from influence_lab.benchmark.scale import peak
from influence_lab.experiments.fidelity import EXACT, MAIN, Fidelity
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import rounded, spearman
from influence_lab.pretrain.resnets import cifar_resnet18
from influence_lab.pretrain.train import fast_in_bf16
from influence_lab.records import results
from influence_ssl import GaussianNoise
from influence_ssl.errors import InfluenceError, InfluenceValueError

SCRIPTS = (
    "ours", "ours_joint", "ours_bf16", "logix_ai", "logix_ai-64", "torch_func",
    "kronfluence_ekfac", "traker_trak", "pydvl_harmonic", "captum_tracin", "dattri_logra",
)  # fmt: skip
BATCH, ROUNDS, LEAST = 64, 10, 3
AIMS = {"logix_ai": (1.25, 2.4), "logix_ai-64": (1.0, 1.0)}
"""How many times as long as ours, in float32 and in bfloat16, a library was to take at least."""
OTHERS = (3.0, 3.0)
OURS = {"float32": "ours.py", "bfloat16": "ours_bf16.py"}
"""Our scripts that a peer is timed beside; in bfloat16 where the processor computes in it."""
QUICK, LONG = 1.75, 45.0
"""A call on one batch of so many plain passes gets all rounds; one of so many seconds gets none."""

Score = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


def recorded(root: Path | None = None) -> dict[str, dict[str, Any] | None]:
    """The record of each peer by its script's name, ``None`` if there is none yet."""
    return {name: results.load_record("cpu", f"peers/{name}", root) for name in SCRIPTS}


def lines(path: Path) -> int:
    """A script's lines of code, without blank lines, comments and docstrings."""
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
    score: Score,
    ours: dict[str, Score],
    width: int,
    rounds: int,
    further: int | None = None,
    batch: int = BATCH,
) -> dict[str, Any]:
    """Peak memory in bytes, and costs relative to the best plain pass over one batch.

    ``total`` is the cost of a call on one batch. The additional cost of a call on more batches is
    the cost per further batch (``cpu``, ``wall``); ``against`` is its ratio to that of ``ours`` in
    the same rounds, as median and quartiles. There are one further batch and ``rounds`` rounds,
    :data:`LEAST` for a call longer than :data:`QUICK`. If a call on one batch takes longer than
    :data:`LONG`, ``further`` batches are timed in one round. Without them there is only ``total``,
    because the cost of a further batch is hidden by the call's fixed cost.
    """
    torch.manual_seed(0)
    encoder = cifar_resnet18(width).eval()
    more = further or 1
    clean = torch.randn((1 + more) * batch, 3, 32, 32)
    pairs = timing.pairs_of(clean, batch)
    noisy = torch.cat([pair.chunk(2)[1] for pair in pairs])
    plain = timing.plain_passes(encoder, pairs[:1])
    layout = next(iter(plain))

    def job(scoring: Score, batches: int, layout: str) -> Callable[[], None]:
        def call() -> None:
            images = clean[: batches * batch], noisy[: batches * batch]
            own, (x, y) = timing.in_layout(layout, encoder, images)
            scoring(own, x, y, 1e-3)

        return call

    record: dict[str, Any] = {"batch": batch, "plain bytes": peak(plain[layout])}
    first: dict[str, float] = {}
    record["bytes"] = peak(lambda: first.update(timing.seconds_of(job(score, 1, layout))))
    unit = timing.timed(plain, [], 1).unit("wall")[0]
    quick, long = first["wall"] <= QUICK * unit, first["wall"] > LONG
    if long and further is None:
        total = round(first["wall"] / unit, 4)
        return record | {"layout": layout, "total": total, "wall": None, "rounds": 1}
    if not long:
        layout, refused = _faster({name: job(score, 1, name) for name in plain}, 2 if quick else 1)
        record |= {"refused": refused}
    jobs = [job(one, n, layout) for n in (1, 1 + more) for one in (score, *ours.values())]
    found = timing.timed(plain, jobs, 1 if long else rounds if quick else min(rounds, LEAST))
    # (rounds, scripts), in plain passes
    once, added = {}, {}
    for clock in timing.CLOCKS:
        once[clock], both = np.split(found.ratios(clock), 2, axis=1)
        added[clock] = (both - once[clock]) / more
    against = added["wall"][:, :1] / added["wall"][:, 1:]
    record["against"] = {
        words: np.quantile(ratios, (0.5, 0.25, 0.75)).round(4).tolist()
        for words, ratios in zip(ours, against.T, strict=True)
    }
    total = round(float(np.median(once["wall"][:, 0])), 4)
    summary = timing.summary({c: values[:, 0].tolist() for c, values in added.items()}, "wall")
    return record | {"layout": layout, "total": total, "further batches": more} | summary


def _faster(calls: dict[str, Callable[[], None]], tries: int) -> tuple[str, dict[str, str]]:
    """The layout with the fastest call, and the layouts that the script refuses."""
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    for _ in range(tries):
        for name, call in calls.items():
            try:
                took = timing.seconds_of(call)["wall"]
            except Exception as error:  # the same call in the first layout has gone through
                refused[name] = words_of(error)
            else:
                seconds[name] = min(took, seconds.get(name, took))
    return min(seconds, key=lambda name: seconds[name]), refused


def words_of(error: Exception) -> str:
    """An error as recorded: its type and the beginning of its message, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def run(
    path: Path,
    ours: dict[str, Score],
    profile: str,
    width: int,
    rounds: int,
    rank: int | None = None,
    further: int | None = None,
    batch: int = BATCH,
    known: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of one peer; the rank correlation of ``known``, an earlier record, is kept."""
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
    if known:
        for what in ("package", "version", "method"):
            if record[what] != known[what]:
                raise InfluenceValueError(
                    f"{path.stem}: the recorded {what} is {known[what]!r}, this one "
                    f"{record[what]!r}; measure fidelity too, without --speed."
                )
    try:
        if known and known["error"] is None:
            record["spearman"] = known["spearman"]
        else:
            record["spearman"] = rounded({"": fidelity(score, profile)})[""]
        record["speed"] = speed(score, ours, width, rounds, further, batch)
    except InfluenceError:  # no finding about the library: data or a record are not there
        raise
    except Exception as error:  # whatever a foreign library raises is the finding
        record["error"] = words_of(error)
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
    parser.add_argument("--batch", type=int, default=BATCH, help="fewer pairs for a slow script")
    parser.add_argument(
        "--further", type=int, help="batches, where the first one is most of a call"
    )
    parser.add_argument(
        "--speed", action="store_true", help="keep the recorded rank correlation, time alone"
    )
    options = parser.parse_args()
    begin, name = time.perf_counter(), options.out.stem
    known = results.load_record(options.profile, f"peers/{name}") if options.speed else None
    if options.speed and not known:
        parser.error(f"{name} is not recorded; measure fidelity too, without --speed")
    ours: dict[str, Score] = {}
    # Ours are at the default rank, and need no comparison with themselves.
    if options.rank is None and not options.script.stem.startswith("ours"):
        fast = fast_in_bf16(torch.device("cpu"))
        beside = {words: name for words, name in OURS.items() if fast or words != "bfloat16"}
        ours = {
            words: runpy.run_path(str(options.script.with_name(name)))["score"]
            for words, name in beside.items()
        }
    record = run(
        options.script, ours, options.profile, options.width, options.rounds, options.rank,
        options.further, options.batch, known,
    )  # fmt: skip
    record["provenance"] = results.provenance(
        f"make bench ({name})", options.profile, 0, "see fidelity", "",
        results.device_name("cpu"), time.perf_counter() - begin,
    )  # fmt: skip
    results.save_json(options.out, record)
    print(f"{name}: {record['error'] or record['speed']}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Other libraries at the same task: label-free self-influence with a loss of pairs.

A peer is a script that defines ``PACKAGE``, ``METHOD``, ``BATCH`` and
``score(encoder, clean, noisy, damping) -> magnitudes (n,)``, and nothing that a user of that
library would not write. It runs in an environment of its own:

    python -m influence_lab.benchmark.peers benchmarks/peers/logix_ai.py OUT.json

Fidelity is measured on the encoder, images and noise of ``fidelity``, speed and memory on an
untrained ResNet-18 of width 64, where values do not matter. A peer that fails is recorded with its
error.
"""

from __future__ import annotations

import argparse
import ast
import copy
import runpy
import sys
import time
from collections.abc import Callable
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
    "ours", "ours_joint", "ours_bf16", "logix_ai", "torch_func", "kronfluence_ekfac",
    "traker_trak", "pydvl_harmonic", "captum_tracin", "dattri_logra",
)  # fmt: skip
IMAGES, BATCH, ROUNDS = 64, 64, 10
LONG = 90.0

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


def speed(score: Score, width: int, images: int, rounds: int) -> dict[str, Any]:
    """Peak memory and ratios to the plain pass; one round alone where a round is long."""
    torch.manual_seed(0)
    encoder = cifar_resnet18(width).eval()
    clean = torch.randn(images, 3, 32, 32)
    pairs = timing.pairs_of(clean, BATCH)
    noisy = torch.cat([pair.chunk(2)[1] for pair in pairs])

    def plain() -> None:
        plain_pass(encoder, pairs)
        encoder.zero_grad(set_to_none=True)

    def work() -> None:
        score(copy.deepcopy(encoder), clean, noisy, 1e-3)

    unit = peak(plain)
    begin = time.process_time()
    memory = peak(work)
    one = time.process_time() - begin
    found = timing.ratios(work, plain, 2 if one > LONG else rounds)
    return timing.summary(found) | {"bytes": memory, "plain bytes": unit, "images": images}


def run(path: Path, profile: str, width: int, images: int, rounds: int) -> dict[str, Any]:
    """The record of one peer."""
    script = runpy.run_path(str(path))
    package = script["PACKAGE"]
    record: dict[str, Any] = {
        "package": package,
        "version": version(package),
        "method": script["METHOD"],
        "lines": lines(path),
        "error": None,
    }
    try:
        record["spearman"] = rounded({"": fidelity(script["score"], profile)})[""]
        record["speed"] = speed(script["score"], width, images, rounds)
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
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    begin = time.perf_counter()
    record = run(options.script, options.profile, options.width, options.images, options.rounds)
    record["provenance"] = results.provenance(
        f"make bench ({options.script.name})", options.profile, 0, "see fidelity", "",
        results.device_name("cpu"), time.perf_counter() - begin,
    )  # fmt: skip
    results.save_json(options.out, record)
    print(f"{options.script.stem}: {record['error'] or record['speed']['cpu']}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""``influence-ssl score``: scores images and writes them with their alternatives."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from influence_ssl.command.options import Command, natural

DRAWS = 2
"""The fewest draws whose scores have a reliability of 0.95 in the benchmark of the book's chapter
on it (real CIFAR-10, rank 16); a test holds it to the record."""

DTYPES = ("float64", "float32", "bfloat16")


def add(commands: Any) -> None:
    """Add the sub-command."""
    command = Command(
        commands,
        "score",
        run,
        "--data PATH --encoder SPEC --out FILE",
        "Score every image by its influence on the encoder's own representation of it.",
        "--data photos --encoder mine.py:encoder --out scores.parquet",
    )
    option = command.add
    option(
        "--data",
        "PATH",
        "folder, zip, or CSV (comma, semicolon or tab) with a column 'path'",
        type=Path,
        required=True,
    )
    option(
        "--encoder",
        "SPEC",
        "builtin:cifar-simclr, timm:NAME, torchvision:NAME, or your file.py:function or "
        "module:function for a module (fed RGB in [0, 1]) or (module, preprocess)",
        required=True,
    )
    option(
        "--weights",
        "FILE",
        "checkpoint (--weights-part NAME: which part) or 'pretrained' (may download)",
    )
    # The help of --weights names it, as does the error that requires it.
    option("--weights-part", "NAME", argparse.SUPPRESS)
    option(
        "--out", "FILE", ".parquet or .csv; .npz holds only the scores", type=Path, required=True
    )
    option(
        "--noise-mean",
        "X",
        "mean of the Gaussian noise (0.05); --noise-std X: standard deviation (0.2)",
        type=float,
    )
    # The help of --noise-mean names it.
    option("--noise-std", "X", argparse.SUPPRESS, type=float)
    option("--perturbation", "SPEC", "instead, your function (x, index, draw, seed) -> perturbed x")
    option(
        "--curvature",
        "NAME",
        "logra (default), fisher (exact, small encoders) or identity (gradient norm)",
        choices=("logra", "fisher", "identity"),
        default="logra",
    )
    option("--rank", "R", "rank of logra's projections in each layer (16)", type=int)
    option(
        "--damping",
        "L",
        "a number, or relative:C for C times the mean eigenvalue (relative:0.1)",
    )
    option(
        "--layers",
        "NAMES",
        "modules to use (all), such as conv1,fc; --layers=-NAME leaves NAME out",
    )
    option(
        "--draws",
        "N",
        "perturbations per image (2, the fewest for a reliability of 0.95)",
        type=int,
        default=DRAWS,
    )
    option(
        "--seed",
        "N",
        "seed of noise, projections and untrained weights (0)",
        type=natural,
        default=0,
    )
    option(
        "--batch-size",
        "N",
        "affects memory, not scores (256, or fewer); --workers N: reading threads",
        type=int,
    )
    # The help of --batch-size names it.
    option("--workers", "N", argparse.SUPPRESS, type=natural)
    option("--dtype", "TYPE", "float64, float32 or bfloat16 (the encoder's own)", choices=DTYPES)
    option("--device", "NAME", "cpu, cuda, cuda:1, ... (cuda if available)")
    option("--keep", "FOLDER", "keep the embeddings, for influence-ssl trace", type=Path)
    command.switch("--strict", "stop at an unreadable image instead of skipping it")


def run(options: argparse.Namespace) -> None:
    """Score the images."""
    from influence_ssl.command.scoring import score

    score(options)

"""``influence-ssl check``: finds duplicates, off-topic candidates and flagged images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from influence_ssl.command.options import Command, natural


def add(commands: Any) -> None:
    """Add the sub-command."""
    command = Command(
        commands,
        "check",
        run,
        "--data PATH --out FILE",
        "Find duplicates, off-topic images and odd ones, without any gradient.",
        "--data photos --out check.parquet",
    )
    option = command.add
    option("--data", "PATH", "folder, zip, or CSV with a column 'path'", type=Path, required=True)
    option("--out", "FILE", ".parquet or .csv, one row per image", type=Path, required=True)
    option(
        "--encoder",
        "SPEC",
        "builtin:cifar-simclr (the default, 32 pixels), timm:NAME, torchvision:NAME, or your "
        "function, as influence-ssl score takes it",
        default="builtin:cifar-simclr",
    )
    option("--weights", "FILE", "the encoder's checkpoint, or 'pretrained' (may download)")
    option("--weights-part", "NAME", argparse.SUPPRESS)
    option(
        "--table",
        "FILE",
        "CSV of paths and columns such as label or split, across which to count copies "
        "(without it: across folders)",
        type=Path,
    )
    option("--seed", "N", "seed of untrained weights (0)", type=natural, default=0)
    option("--batch-size", "N", "images at a time (64)", type=natural, default=64)
    ahead = "threads that read ahead (one per processor, at most 8; one for small images)"
    option("--workers", "N", ahead, type=natural)
    option("--device", "NAME", "cpu, cuda, cuda:1, ... (cuda if available)")
    command.switch("--strict", "stop at an unreadable image instead of skipping it")


def run(options: argparse.Namespace) -> None:
    """Check the images."""
    from influence_ssl.command.checking import check

    check(options)

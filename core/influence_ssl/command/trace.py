"""``influence-ssl trace``: finds the images that help and hurt queries."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from influence_ssl.command.options import TOP, Command, natural


def add(commands: Any) -> None:
    """Add the sub-command."""
    command = Command(
        commands,
        "trace",
        run,
        "FOLDER --query PATH --out FILE",
        "Find the images that most help and hurt the encoder's representation of other images.",
        "kept --query queries --encoder mine.py:encoder --out trace.html",
    )
    option = command.add
    option("folder", "FOLDER", "a folder written by influence-ssl score --keep", type=Path)
    option("--query", "PATH", "the query images: an image, folder, zip or CSV", type=Path,
           required=True)  # fmt: skip
    option(
        "--out",
        "FILE",
        ".html with pictures, .parquet or .csv; several at once",
        type=Path,
        required=True,
        nargs="+",
    )
    option("--top", "N", f"images in each list ({TOP}, or all if there are fewer)", type=natural)
    option("--images", "PATH", "the scored images, if they have moved",
           type=Path)  # fmt: skip
    option(
        "--encoder",
        "SPEC",
        "as given to score; required for file.py:function, because the folder holds no code",
    )
    option("--weights", "FILE", "the checkpoint, if it has moved")
    option("--perturbation", "SPEC", "as given to score")
    command.switch("--cosine", "divide influences by the lengths of both embeddings")
    option("--batch-size", "N", "affects memory, not influences", type=int)
    ahead = "threads that read ahead (one per processor, at most 8; one for small images)"
    option("--workers", "N", ahead, type=natural)
    option("--device", "NAME", "cpu, cuda, cuda:1, ... (cuda if available)")
    command.switch("--strict", "stop at an unreadable query instead of skipping it")


def run(options: argparse.Namespace) -> None:
    """Trace the queries."""
    from influence_ssl.command.tracing import trace

    trace(options)
